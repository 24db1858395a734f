# SPDX-License-Identifier: Apache-2.0
"""What the simulated kernel is made of: groups of devices, mapped areas, locked memory."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sortedcontainers import SortedDict

from vmm_iova.ranges import BASE_PAGE, AddrRange, RangeSet
from vmm_iova.record import brief, record

if TYPE_CHECKING:
    from collections.abc import Iterator

RegionWord = Literal["direct", "direct-relaxable", "reserved", "msi"]
"""Words of sysfs (drivers/iommu/iommu.c, iommu_group_resv_type_string)."""

MSI_X86: tuple[AddrRange, RegionWord] = (AddrRange(0xFEE0_0000, 0xFEEF_FFFF), "msi")
"""The window of every x86 IOMMU (drivers/iommu/intel/iommu.c, amd/iommu.c; since 4.11)."""

_WIDTH_48 = AddrRange(0, (1 << 48) - 1)


def refuse(number: int) -> OSError:
    """Make the error that a system call gives."""
    return OSError(number, os.strerror(number))


@record
class SimSettings:
    """What a simulated kernel is and how it was configured; see `SimulatedKernel`."""

    release: tuple[int, int]
    dma_entry_limit: int
    allow_unsafe_interrupts: bool
    compat_container: bool
    max_auto_alignment: int


@brief
@dataclass(frozen=True)
class SimGroup:
    """An IOMMU group as firmware and drivers make it. Everything may be invented.

    Attributes:
        number: of the group.
        devices: BDFs of its members.
        aperture: what its IOMMU translates.
        reserved: its reserved regions: range, and the word of sysfs.
        page_sizes: bitmap of the IOMMU's page sizes.
        driver: of all its devices; None is unbound.
        isolated_msi: whether interrupts are remapped.
        tracks_dirty: whether its IOMMU can track written pages.
        zpci: window of an s390 function, or None.
        coherent: whether its IOMMU enforces coherent DMA (VFIO_DMA_CC_IOMMU).
        hw_info: type and structure that IOMMU_GET_HW_INFO answers with.
        pasid_bits: bits of a PASID that its devices may use.
    """

    number: int
    devices: tuple[str, ...]
    aperture: AddrRange = _WIDTH_48
    reserved: tuple[tuple[AddrRange, RegionWord], ...] = (MSI_X86,)
    page_sizes: int = 0x4020_1000
    driver: str | None = "vfio-pci"
    isolated_msi: bool = True
    tracks_dirty: bool = False
    zpci: AddrRange | None = None
    coherent: bool = True
    hw_info: tuple[int, bytes] = (0, b"")
    pasid_bits: int = 0

    def held_back(self) -> list[AddrRange]:
        """Return the reserved regions that count; `direct-relaxable` does not."""
        return [where for where, kind in self.reserved if kind != "direct-relaxable"]

    @property
    def direct(self) -> bool:
        """Whether firmware demands a 1:1 mapping, so that current kernels keep the device."""
        return any(kind == "direct" for _, kind in self.reserved)


@dataclass
class SimArea:
    """A mapping in the simulated kernel."""

    start: int
    size: int
    hva: int
    read: bool
    write: bool
    pages: SimPages
    vaddr_valid: bool = True
    of_file: bool = False
    dirty: set[int] = field(default_factory=set)

    @property
    def last(self) -> int:
        """The last IOVA."""
        return self.start + self.size - 1


@dataclass
class SimPages:
    """The memory of one map call, which copies share: bytes accounted, and whether it is held."""

    pinned: int = 0
    held: bool = False
    users: int = 1
    writable: bool = True


class Areas:
    """Areas by IOVA, as the kernel's interval trees have them."""

    def __init__(self) -> None:
        self._areas: SortedDict[int, SimArea] = SortedDict()

    def __len__(self) -> int:
        return len(self._areas)

    def __repr__(self) -> str:
        return ", ".join(f"{area.start:#x}-{area.last:#x}" for area in self) or "nothing mapped"

    def __iter__(self) -> Iterator[SimArea]:
        return iter(list(self._areas.values()))

    def add(self, area: SimArea) -> None:
        """Put one in."""
        self._areas[area.start] = area

    def remove(self, area: SimArea) -> None:
        """Take one out."""
        del self._areas[area.start]

    def first(self, start: int, last: int) -> SimArea | None:
        """Return the lowest area that shares an address with start..last."""
        below = self._areas.bisect_right(start) - 1
        if below >= 0:
            area: SimArea = self._areas.peekitem(below)[1]
            if area.last >= start:
                return area
        above = below + 1
        if above < len(self._areas):
            area = self._areas.peekitem(above)[1]
            if area.start <= last:
                return area
        return None

    def within(self, start: int, last: int) -> list[SimArea]:
        """Return the areas that begin in start..last, ascending."""
        return [self._areas[key] for key in self._areas.irange(start, last)]


@dataclass
class SimMemory:
    """The memory of the process, and what of it is locked.

    Attributes:
        page: bytes.
        limit: RLIMIT_MEMLOCK in bytes, or None: CAP_IPC_LOCK.
        absent: host addresses where nothing is mapped.
        read_only: host addresses that may not be written.
        locked: bytes accounted.
    """

    page: int = BASE_PAGE
    limit: int | None = None
    absent: RangeSet = field(default_factory=RangeSet)
    read_only: RangeSet = field(default_factory=RangeSet)
    locked: int = 0

    def pin(self, hva: int, size: int, *, write: bool) -> int:
        """Lock memory page by page, or none of it; return the bytes that were accounted.

        Raises:
            OSError: `EFAULT` a page is absent or may not be written; `ENOMEM` the limit.
        """
        start = hva & -self.page
        last = (hva + size - 1) | (self.page - 1)
        window = RangeSet([AddrRange(start, min(last, (1 << 64) - 1))])
        bad = window & (self.absent | self.read_only if write else self.absent)
        pages = (last - start + 1) // self.page
        room = pages if self.limit is None else (self.limit - self.locked) // self.page
        if bad and (bad[0].start - start) // self.page <= room:
            raise refuse(errno.EFAULT)
        if pages > room:
            raise refuse(errno.ENOMEM)
        if self.limit is not None:
            self.locked += pages * self.page
            return pages * self.page
        return 0

    def unpin(self, accounted: int) -> None:
        """Give back what `pin` accounted."""
        self.locked -= accounted
