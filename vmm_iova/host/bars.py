# SPDX-License-Identifier: Apache-2.0
"""BARs as facts of a host: from the file `resource` of a PCI device in sysfs.

Source: drivers/pci/pci-sysfs.c, resource_show and pci_bar_resize (Linux 2.6 to 7.3);
include/linux/ioport.h for the flags; include/linux/pci.h for which line is what.
"""

from __future__ import annotations

import enum
from typing import Literal

from vmm_iova.errors import HostDataError
from vmm_iova.patterns import regex
from vmm_iova.ranges import MIB
from vmm_iova.record import record
from vmm_iova.units import shorten

BarBits = Literal[32, 64]
"""Address bits of a BAR."""


class BarKind(enum.Enum):
    """What sort of address space a device asks for."""

    BAR = "bar"
    """A memory BAR of the device."""
    ROM = "rom"
    """Its expansion ROM, which has 32 bits."""
    VF = "vf"
    """A BAR of all its virtual functions together, in the device's SR-IOV capability."""


@record
class DeviceBar:
    """A memory BAR of a device, as large as it is now; where the host has it is no guest's concern.

    Attributes:
        index: number of the BAR, from 0 (of the virtual functions' own for `VF`); 0 for a ROM; its
            place in the list where that has no numbers (`lspci -v`).
        size: bytes, or None where that is not known.
        bits: 32 or 64, the addresses that it takes.
        prefetchable: True if it is.
        kind: what sort it is.
        assigned: False if the host has no address for it, so that nothing can drive the device.
        sizes: sizes that it can be given (PCIe Resizable BAR), ascending; empty where it has one.
    """

    index: int
    size: int | None
    bits: BarBits = 64
    prefetchable: bool = False
    kind: BarKind = BarKind.BAR
    assigned: bool = True
    sizes: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """Its name, for messages: `BAR 1`, `ROM`, `VF BAR 0`."""
        if self.kind is BarKind.ROM:
            return "ROM"
        return f"{'VF ' if self.kind is BarKind.VF else ''}BAR {self.index}"


_LINE = regex(r"0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16})")
_MEMORY, _TYPES, _PREFETCH = 0x200, 0x1F00, 0x2000
_WIDE, _UNSET = 0x0010_0000, 0x2000_0000
_BARS, _ROM, _VF_BARS = range(6), 6, range(7, 13)  # 7 to 10 are a bridge's windows without SR-IOV
_WITH_VFS = 13  # lines of a kernel that knows SR-IOV
_MOST_LINES = 17  # DEVICE_COUNT_RESOURCE


def parse_resource(text: str, shown: str) -> tuple[DeviceBar, ...]:
    """Return the memory BARs that a file `resource` lists: a line of zeros is none.

    A BAR that the kernel gave up on may be such a line, too: it cannot be told from none.

    Args:
        text: the content.
        shown: name of the file, for messages.

    Raises:
        HostDataError: it has not the form of that file; half a list of BARs is none.

    Complexity: O(lines), of which there are 17 at most.
    """
    lines = text.splitlines()
    if not _ROM < len(lines) <= _MOST_LINES:
        raise HostDataError(f"{shown} has {len(lines)} lines: not those of a device", source=shown)
    found = []
    for number, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        start, last, flags = (int(part, 16) for part in match.groups()) if match else (1, 0, 0)
        empty = last == start - 1 and flags & _TYPES
        if last - start >= 1 << 63 or (last < start and not empty):
            raise HostDataError(
                f"{shown}:{number + 1}: {shorten(line)!r} is no line of a resource",
                source=shown,
                line=number + 1,
            )
        bar = _bar(number, last - start + 1, flags, vfs=len(lines) >= _WITH_VFS)
        if bar is not None:
            found.append(bar)
    return tuple(found)


def _bar(number: int, size: int, flags: int, *, vfs: bool) -> DeviceBar | None:
    if flags & _TYPES & ~_PREFETCH != _MEMORY or not size:
        return None
    kind, index = BarKind.BAR, number
    if number == _ROM:
        kind, index = BarKind.ROM, 0
    elif number in _VF_BARS and vfs:
        kind, index = BarKind.VF, number - _VF_BARS.start
    elif number not in _BARS:
        return None
    wide = bool(flags & _WIDE)
    prefetchable = bool(flags & _PREFETCH) and kind is not BarKind.ROM  # of which it says nothing
    return DeviceBar(index, size, 64 if wide else 32, prefetchable, kind, not flags & _UNSET)


def resizable_sizes(bitmap: int) -> tuple[int, ...]:
    """Return the sizes of a file `resourceN_resize`: bit 0 is 1 MiB, bit 1 is 2 MiB, and so on."""
    return tuple(MIB << bit for bit in range(_MOST_BITS) if bitmap >> bit & 1)


_MOST_BITS = 44  # 2^43 MiB is half of all addresses (PCIe 6.0, 7.8.6: 8 EiB)
