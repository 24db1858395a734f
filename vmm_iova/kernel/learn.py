# SPDX-License-Identifier: Apache-2.0
"""What an open address space teaches about its host: the strongest evidence that there is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_iova.host.model import DmaWindow, Host, KernelRanges, Note, Source
from vmm_iova.host.sysfs import read_sysfs
from vmm_iova.kernel.device import device_facts
from vmm_iova.kernel.syscalls import LINUX, Kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.kernel.space import AddressSpace


def learn_host(
    space: AddressSpace, bdfs: Sequence[str], host: Host | None = None, *, kernel: Kernel = LINUX
) -> Host:
    """Add what the kernel says, now that these devices are attached, to the facts of a host.

    Ask when all devices are attached, and again after each further attach: every one can narrow.

    Args:
        space: from `open_space`.
        bdfs: the devices that are attached, all of them.
        host: facts so far; default what sysfs says now.
        kernel: where the calls go.

    Returns:
        The host with the kernel's range list for the groups of these devices, its granule and page
        sizes, and for s390 functions the DMA window of the zPCI base capability.

    Raises:
        DmaError: the kernel refused to answer (errno of the call).
        UnknownNameError: the host has no such device.

    Complexity: one ioctl, and one a device.
    Synchronization: external.
    """
    known = read_sysfs() if host is None else host
    facts = space.facts()
    groups = tuple(sorted({known.device(bdf).group or "" for bdf in bdfs} - {""}, key=_number))
    source = Source(f"{facts.source} with {', '.join(bdfs)}")
    lists: tuple[KernelRanges, ...] = ()
    notes: tuple[Note, ...] = ()
    if facts.ranges is None:
        text = f"{facts.source} gives no range list (before Linux 5.4): nothing says the aperture"
        notes = (Note(text),)
    elif facts.final:
        sizes = facts.page_sizes or None
        lists = (KernelRanges(facts.ranges, space.kind, source, groups, facts.granule, sizes),)
    windows = []
    for bdf in bdfs:
        zpci = device_facts(space.device_fd(bdf), kernel).zpci
        if zpci is not None:
            windows.append(DmaWindow(bdf, zpci.dma, Source(f"VFIO_DEVICE_GET_INFO of {bdf}")))
    return replace(
        known,
        kernel_ranges=(*known.kernel_ranges, *lists),
        windows=(*known.windows, *windows),
        notes=(*known.notes, *notes),
    )


def _number(group: str) -> int:
    return int(group) if group.isdecimal() else -1
