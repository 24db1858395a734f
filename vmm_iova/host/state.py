# SPDX-License-Identifier: Apache-2.0
"""What a host has at the moment: memory, huge pages, nodes, and what its kernel lets us do.

Not about addresses, and another minute it may be otherwise: hosts that differ in nothing else are
the same to a plan.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from vmm_iova.files import node_usable, nodes_below
from vmm_iova.patterns import regex
from vmm_iova.plain import whole_number
from vmm_iova.record import names, record

if TYPE_CHECKING:
    from collections.abc import Iterator


@record
class Memory:
    """Memory of a host in bytes.

    Attributes:
        total: all that its kernel has (MemTotal).
        available: what programs can have without swapping (MemAvailable); huge pages are no part.
    """

    total: int
    available: int


@record
class PagePool:
    """Huge pages of one size.

    Attributes:
        page_size: bytes.
        total: pages in the pool.
        free: pages that nobody has or has reserved.
    """

    page_size: int
    total: int
    free: int


@record
class DeviceNode:
    """A node of VFIO or iommufd in /dev.

    Attributes:
        path: such as `/dev/vfio/12`.
        usable: True if who read the facts may read and write it.
    """

    path: str
    usable: bool


@record
class State:
    """What a host has at the moment, beside addresses. None: not known.

    Attributes:
        memory: its memory.
        huge_pages: its pools, the largest pages first; empty where its kernel has none.
        nodes: what is in /dev of VFIO and iommufd, sorted; empty where nothing is.
        remaps_interrupts: True if an IOMMU or the interrupt controller isolates interrupts.
        unsafe_interrupts: True if vfio_iommu_type1 is told to go without that.
        unsafe_iommufd: the same of iommufd, which has its own parameter.
        may_lock: True if who read the facts has CAP_IPC_LOCK, so that no locked memory is counted.
    """

    memory: Memory | None = None
    huge_pages: tuple[PagePool, ...] | None = None
    nodes: tuple[DeviceNode, ...] | None = None
    remaps_interrupts: bool | None = None
    unsafe_interrupts: bool | None = None
    unsafe_iommufd: bool | None = None
    may_lock: bool | None = None

    def joined(self, more: State) -> State:
        """Return this, with what another source of the same host knows where this does not."""
        values = {name: getattr(self, name) for name in names(type(self))}
        return State(**{k: getattr(more, k) if v is None else v for k, v in values.items()})


class SmallFiles(Protocol):
    """Small files of one `/sys` and the `/proc` beside it; None, or none, where there are none."""

    def names(self, path: str) -> list[str]:
        """Names in a directory of `/sys`, sorted."""

    def number(self, path: str) -> int | None:
        """Content of a decimal file of `/sys`."""

    def line_of(self, path: str) -> str | None:
        """The line of a file of `/sys`."""

    def proc_text(self, path: str) -> str | None:
        """A file of `/proc`."""


def read_state(files: SmallFiles, *, live: bool, dev: str = "/dev") -> State:
    """Read what a host has at the moment.

    Args:
        files: its `/sys` and `/proc`.
        live: True for the machine that this runs on: nodes and capabilities are asked for, too.
        dev: where its nodes are.

    Complexity: a few small files, and one for each interrupt until the controller is known.
    """
    memory = parse_meminfo(files.proc_text("meminfo") or "")
    return State(
        memory=memory,
        huge_pages=_pools(files),
        nodes=tuple(_nodes(dev)) if live else None,
        remaps_interrupts=_remaps(files),
        unsafe_interrupts=_told(files, "vfio_iommu_type1"),
        unsafe_iommufd=_told(files, "iommufd"),
        may_lock=may_lock(files.proc_text("self/status") or "") if live else None,
    )


_YES = {"Y": True, "N": False}  # lib/params.c (kernel/params.c), param_get_bool
_POOLS = "kernel/mm/hugepages"
_POOL = regex(r"hugepages-([0-9]{1,12})kB")
_KIB_LINE = regex(r"^(MemTotal|MemAvailable):\s{1,20}([0-9]{1,15}) kB$", re.MULTILINE)
_CAPABILITIES = regex(r"^CapEff:\s{1,9}([0-9a-f]{1,16})$", re.MULTILINE)
_IPC_LOCK = 14  # include/uapi/linux/capability.h
_MOST_INTERRUPTS = 4096  # that are looked at


def parse_meminfo(text: str) -> Memory | None:
    """Read `/proc/meminfo` (MemAvailable since Linux 3.14); None where it does not say."""
    found = {name: int(size) << 10 for name, size in _KIB_LINE.findall(text)}
    if len(found) < 2:
        return None
    return Memory(found["MemTotal"], found["MemAvailable"])


def may_lock(status: str) -> bool | None:
    """Tell from `/proc/self/status` whether the process has CAP_IPC_LOCK; None: not known."""
    match = _CAPABILITIES.search(status)
    return None if match is None else bool(int(match[1], 16) >> _IPC_LOCK & 1)


def _told(files: SmallFiles, module: str) -> bool | None:
    return _YES.get(files.line_of(f"module/{module}/parameters/allow_unsafe_interrupts") or "")


def _pools(files: SmallFiles) -> tuple[PagePool, ...] | None:
    """The pools of huge pages; None where not even the folder above them is there."""
    if not files.names("kernel/mm"):
        return None
    pools = []
    for name in files.names(_POOLS):
        match = _POOL.fullmatch(name)
        where = f"{_POOLS}/{name}"
        total, free = (
            files.number(f"{where}/{file}") for file in ("nr_hugepages", "free_hugepages")
        )
        if match is None or total is None or free is None:
            continue
        promised = files.number(f"{where}/resv_hugepages") or 0
        pools.append(PagePool(int(match[1]) << 10, total, max(free - promised, 0)))
    return tuple(sorted(pools, key=lambda pool: -pool.page_size))


def _remaps(files: SmallFiles) -> bool | None:
    """Tell by the names of interrupt controllers whether interrupts are isolated.

    Source: arch/x86 names the remapped ones IR-IO-APIC and IR-PCI-MSI (drivers/iommu/intel,
    drivers/iommu/amd); Arm's ITS isolates (drivers/irqchip/irq-gic-v3-its-msi-parent.c).
    """
    numbers = [name for name in files.names("kernel/irq") if whole_number(name) is not None]
    for number in numbers[:_MOST_INTERRUPTS]:
        name = files.line_of(f"kernel/irq/{number}/chip_name") or ""
        if name.startswith(("IR-", "ITS-")):
            return True
        if name == "IO-APIC":
            return False
    return None


def _nodes(dev: str) -> Iterator[DeviceNode]:
    """What is there to open, not opened: a group and a device open once."""
    for path in (*nodes_below(f"{dev}/vfio"), *nodes_below(f"{dev}/vfio/devices"), f"{dev}/iommu"):
        usable = node_usable(path)
        if usable is not None:
            yield DeviceNode(path, usable)
