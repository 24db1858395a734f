# SPDX-License-Identifier: Apache-2.0
"""What must differ from what was given, so that a guest can be had on a host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.errors import PlanError
from vmm_iova.machines.firmware import candidates
from vmm_iova.planning.firmware_bars import ovmf_megabytes
from vmm_iova.planning.guest import Guest, Reading
from vmm_iova.planning.plan import can_be, plan
from vmm_iova.planning.request import VIOMMU_BITS, machine_of, resolve
from vmm_iova.ranges import GIB, MIB
from vmm_iova.record import record, replace
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.definitions.definition import Definition
    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.layout import OnHole

_LEAST_BITS, _MOST_BITS = 36, 52
_OVERHEAD = GIB  # beside RAM: what libvirt adds, too (qemuDomainGetMemLockLimitBytes())

Levers = dict[str, Any]
"""Fields of a `Guest`, with the values that they are to have instead."""


@record
class Change:
    """What must differ.

    Attributes:
        guest: the guest as it is to be.
        levers: the fields of it that differ, with their values.
        hard_limit: bytes that the VM may lock, where what it states is too little; else None.
        caching_mode: True if its Intel IOMMU has to tell what it maps.
    """

    guest: Guest
    levers: Levers
    hard_limit: int | None = None
    caching_mode: bool = False

    def __bool__(self) -> bool:
        """Tell whether anything differs."""
        return bool(self.levers or self.hard_limit or self.caching_mode)


_COMPARED = (
    "machine",
    "ram",
    "nodes",
    "page_size",
    "maxmem",
    "slots",
    "phys_bits",
    "ovmf_window",
    "pci64",
    "max_ram_below_4g",
    "viommu_bits",
)


def change_between(given: Definition | None, wanted: Guest, locked: int = 0) -> Change:
    """Return what differs between a definition and a guest.

    Args:
        given: the definition; None where all has to be said.
        wanted: the guest as it is to be.
        locked: bytes that it locks.

    Complexity: O(1).
    """
    base = Guest() if given is None else given.guest
    levers = {
        name: getattr(wanted, name)
        for name in _COMPARED
        if _bytes(getattr(wanted, name)) != _bytes(getattr(base, name))
    }
    if given is None:
        levers.pop("viommu_bits", None)
        return Change(wanted, levers)
    limit = given.hard_limit
    short = limit is not None and limit < locked + _OVERHEAD
    lacks = any(fault.lever == "caching-mode" for fault in given.faults)
    stated = locked + _OVERHEAD if short and locked else None
    return Change(wanted, levers, stated, lacks)


def _bytes(value: Any) -> Any:
    """A size in bytes: `64G` and 68719476736 are the same."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and value[:1].isdecimal() and value != "0":
        return parse_size(value)
    return value


def most_in_place(asked: Definition, usable: Usable, on_hole: OnHole) -> int | None:
    """Return the most `maxmem` with which the VMM does not move RAM; None where there is none.

    QEMU moves all RAM above 4 GiB to 1 TiB when what may be plugged in reaches AMD's hole.

    Complexity: 20 plans at most.
    """
    guest = asked.guest
    low = _ram_of(guest) // GIB
    high = parse_size(guest.maxmem or low * GIB) // GIB
    found: int | None = None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            done = plan(_with(asked, {"maxmem": middle * GIB}), usable, on_hole).policy
        except PlanError:
            done = "move"
        if done == "as is":
            low, found = middle, middle * GIB
        else:
            high = middle
    return found


# -- looking for one ----------------------------------------------------------------------------


def mended(asked: Definition, usable: Usable, on_hole: OnHole) -> Definition | None:
    """Return the definition with the fewest changes with which it fits; None where none does.

    Tried, in this order: the width of its IOMMU, its address bits, OVMF's window, two or three of
    these; less memory to plug in; no 64-bit window; less RAM.

    Complexity: some hundred attempts at most.
    """
    for levers in _choices(asked, usable):
        changed = _with(asked, levers)
        if _works(changed, usable, on_hole):
            return changed
    return _less(asked, usable, on_hole)


def _with(asked: Definition, levers: Levers) -> Definition:
    return asked.with_guests(
        Reading(item.text, replace(item.guest, **levers)) for item in asked.readings
    )


def _works(asked: Definition, usable: Usable, on_hole: OnHole) -> bool:
    readings = asked.readings_on(usable.arch)
    return all(can_be(item.guest, usable, on_hole) for item in readings)


def _choices(asked: Definition, usable: Usable) -> Iterator[Levers]:
    yield {}
    widths: list[Levers] = [{"viommu_bits": bits} for bits in _viommu_bits(asked, usable)]
    bits: list[Levers] = [{"phys_bits": number} for number in _address_bits(asked, usable)]
    windows: list[Levers] = [{"ovmf_window": size} for size in _windows(asked, usable)]
    for levers in (widths, bits, windows):
        yield from levers
    for first, second in ((widths, bits), (widths, windows), (bits, windows)):
        yield from ({**one, **two} for one in first for two in second)
    yield from ({**a, **b, **c} for a in widths for b in bits for c in windows)
    if asked.guest.maxmem is not None:
        none: Levers = {"maxmem": None, "slots": 0}
        yield from ({**less, **more} for less in _hotplug(asked) for more in ({}, *bits, *windows))
        yield none
    if asked.guest.pci64 is None and asked.kind in ("qemu", "libvirt", "proxmox"):
        yield {"pci64": 0}


def _viommu_bits(asked: Definition, usable: Usable) -> Sequence[int]:
    reach, has = usable.ranges.hull, asked.guest.viommu_bits
    if reach is None or has is None:
        return ()
    return [
        bits for bits in reversed(VIOMMU_BITS) if bits <= reach.last.bit_length() and bits < has
    ]


def _address_bits(asked: Definition, usable: Usable) -> Sequence[int]:
    """Fewer bits, as many as the host's IOMMU has; or more, up to the CPU's."""
    guest = asked.guest
    machine = machine_of(guest, usable.arch)
    if machine.arch != "x86_64" or not usable.ranges.hull:
        return ()
    reach = (usable.ranges.hull.last + 1).bit_length() - 1
    has = guest.phys_bits or usable.cpu_bits or _MOST_BITS
    most = min(usable.cpu_bits or _MOST_BITS, machine.phys_bits or _MOST_BITS)
    fewer = [reach] if _LEAST_BITS <= reach < has else []
    more = range(has + 1, most + 1) if guest.phys_bits is not None else ()
    return [*fewer, *more]


def _windows(asked: Definition, usable: Usable) -> Sequence[int]:
    guest = asked.guest
    machine = machine_of(guest, usable.arch)
    firmware = candidates(guest.firmware, machine)
    if not any(item.kind == "ovmf" for item in firmware):
        return ()
    bars = [bar for bar in resolve(guest, usable).bars if bar.bits == 64]
    sizes = {ovmf_megabytes(bars) * MIB} if bars else {32 * GIB}
    return [size for size in sorted(sizes) if size != guest.ovmf_window]


def _hotplug(asked: Definition) -> Iterator[Levers]:
    """Less memory to plug in: halfway down, in whole GiB."""
    guest = asked.guest
    ram = _ram_of(guest)
    more = parse_size(guest.maxmem or ram) - ram
    while more >= 2 * GIB:
        more = more // 2 // GIB * GIB
        yield {"maxmem": ram + more}


def _ram_of(guest: Guest) -> int:
    if guest.ram is not None:
        return parse_size(guest.ram)
    return sum(
        parse_size(item if isinstance(item, (str, int)) else item.size) for item in guest.nodes
    )


def _less(asked: Definition, usable: Usable, on_hole: OnHole) -> Definition | None:
    """The most RAM that fits, in whole GiB, shared by its nodes, without memory to plug in."""
    low, high = max(0, len(asked.guest.nodes) - 1), _ram_of(asked.guest) // GIB
    found: Definition | None = None
    widths: list[Levers] = [{"viommu_bits": bits} for bits in _viommu_bits(asked, usable)]
    first = widths[0] if widths else {}
    while high - low > 1:
        middle = (low + high) // 2
        less: Levers = {**_shared(asked.guest, middle), "maxmem": None, "slots": 0}
        changed = _with(asked, {**first, **less})
        if _works(changed, usable, on_hole):
            low, found = middle, changed
        else:
            high = middle
    return found


def _shared(guest: Guest, gibs: int) -> Levers:
    """So many GiB for a guest, as evenly among its nodes as whole GiB allow."""
    if not guest.nodes:
        return {"ram": gibs * GIB}
    each, more = divmod(gibs, len(guest.nodes))
    sizes = [(each + (index < more)) * GIB for index in range(len(guest.nodes))]
    nodes = tuple(
        size if isinstance(node, (str, int)) else replace(node, size=size)
        for node, size in zip(guest.nodes, sizes, strict=True)
    )
    return {"ram": None, "nodes": nodes}
