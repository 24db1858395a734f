# SPDX-License-Identifier: Apache-2.0
"""An I/O page table of iommufd in memory: reserved and allowed parts, areas, domains.

Source: drivers/iommu/iommufd/io_pagetable.c of Linux 6.2 to 7.3; each method names its function.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet
from vmm_iova.simulated.model import (
    Areas,
    SimArea,
    SimGroup,
    SimMemory,
    SimPages,
    SimSettings,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_SPACE = 1 << 64


@dataclass
class SimHwpt:
    """A hardware page table.

    Attributes:
        ioas: its address space.
        group: whose IOMMU it is for.
        auto: made by an attach, gone with the last device.
        dirty: whether it can track; `tracking` whether it does.
        users: names of the attached devices.
    """

    ioas: SimIoas
    group: SimGroup
    auto: bool
    dirty: bool
    tracking: bool = False
    users: list[str] = field(default_factory=list)
    written: set[int] = field(default_factory=set)

    def fits(self, group: SimGroup) -> bool:
        """Whether a device of `group` can use the same table."""
        ours = self.group
        return (ours.aperture, ours.page_sizes) == (group.aperture, group.page_sizes)


@dataclass(frozen=True)
class SimPart:
    """Memory that is to become one area."""

    hva: int
    size: int
    pages: SimPages
    of_file: bool = False


class SimIoas:
    """One I/O address space."""

    def __init__(self, settings: SimSettings, memory: SimMemory) -> None:
        self.settings = settings
        self.memory = memory
        self.areas = Areas()
        self.allowed: list[AddrRange] = []
        self.reserved: list[tuple[AddrRange, object]] = []
        self.domains: list[SimHwpt] = []
        self.huge_pages = True
        self.alignment = 1
        self._holes: list[AddrRange] | None = None

    def __repr__(self) -> str:
        return (
            f"IOAS aligned to {self.alignment}, domains {[t.users for t in self.domains]}, "
            f"holes {self.holes()}, allowed {self.allowed}, {self.areas!r}"
        )

    def holes(self) -> list[AddrRange]:
        """Return what no one reserves, ascending: what IOVA_RANGES tells."""
        if self._holes is None:
            self._holes = list(~RangeSet(where for where, _ in self.reserved))
        return self._holes

    def _touches_reserved(self, start: int, last: int) -> bool:
        return not any(hole.start <= start and last <= hole.last for hole in self.holes())

    def reserve(self, where: AddrRange, owner: object) -> None:
        """iopt_reserve_iova."""
        if self.areas.first(where.start, where.last) or any(
            item.overlaps(where) for item in self.allowed
        ):
            raise refuse(errno.EADDRINUSE)
        self.reserved.append((where, owner))
        self._holes = None

    def release(self, owner: object) -> None:
        """iopt_remove_reserved_iova."""
        self.reserved = [item for item in self.reserved if item[1] is not owner]
        self._holes = None

    def allow(self, pairs: list[tuple[int, int]]) -> None:
        """iommufd_ioas_load_iovas, iopt_set_allow_iova."""
        taken: list[AddrRange] = []
        for start, last in pairs:
            if start >= last:
                raise refuse(errno.EINVAL)
            item = AddrRange(start, last)
            if any(item.overlaps(other) for other in taken):
                raise refuse(errno.EINVAL)
            taken.append(item)
        if any(self._touches_reserved(item.start, item.last) for item in taken):
            raise refuse(errno.EADDRINUSE)
        self.allowed = sorted(taken)

    # Alignment and domains.

    def _wanted_alignment(self, domains: list[SimHwpt], *, huge: bool) -> int:
        """iopt_calculate_iova_alignment."""
        page = self.memory.page
        wanted = 1 if huge else page
        for table in domains:
            sizes = table.group.page_sizes
            wanted = max(wanted, sizes & -sizes)
        return wanted

    def _check_alignment(self, wanted: int) -> None:
        """iopt_check_iova_alignment."""
        page = self.memory.page
        for area in self.areas:
            if (area.start | area.size | area.hva % page) & (wanted - 1):
                raise refuse(errno.EADDRINUSE)

    def add_domain(self, table: SimHwpt) -> None:
        """iopt_table_add_domain: alignment, aperture, then the memory is pinned."""
        sizes = table.group.page_sizes
        wanted = max(sizes & -sizes, self.alignment)
        if wanted > self.memory.page:
            raise refuse(errno.EINVAL)
        if wanted != self.alignment:
            self._check_alignment(wanted)
        window = table.group.aperture
        try:
            if window.start:
                self.reserve(AddrRange(0, window.start - 1), table)
            if window.last != ADDRESS_LAST:
                self.reserve(AddrRange(window.last + 1, ADDRESS_LAST), table)
            if not self.domains:
                self._pin_some(self.areas)
        except OSError:
            self.release(table)
            raise
        self.alignment = wanted
        self.domains.append(table)

    def remove_domain(self, table: SimHwpt) -> None:
        """iopt_table_remove_domain."""
        self.domains.remove(table)
        self.release(table)
        self.alignment = self._wanted_alignment(self.domains, huge=self.huge_pages)
        if not self.domains:
            for area in self.areas:
                self._unpin(area)

    def _pin_some(self, areas: Iterable[SimArea]) -> None:
        """Pin all of these, or none."""
        done: list[SimArea] = []
        try:
            for area in areas:
                fresh = not area.pages.held
                self._pin(area)
                if fresh:
                    done.append(area)
        except OSError:
            for area in done:
                self._unpin(area)
            raise

    def _pin(self, area: SimArea) -> None:
        if not area.pages.held:
            memory = self.memory
            area.pages.pinned = memory.pin(area.hva, area.size, write=area.pages.writable)
            area.pages.held = True

    def _unpin(self, area: SimArea) -> None:
        self.memory.unpin(area.pages.pinned)
        area.pages.pinned, area.pages.held = 0, False

    def set_huge_pages(self, *, on: bool) -> None:
        """iopt_enable_large_pages, iopt_disable_large_pages."""
        if on == self.huge_pages:
            return
        # Turning them on again is never refused.
        if not on and self.domains and len(self.areas):
            raise refuse(errno.EINVAL)
        wanted = self._wanted_alignment(self.domains, huge=on)
        if wanted > self.alignment:
            self._check_alignment(wanted)
        self.huge_pages, self.alignment = on, wanted

    # Mapping.

    def map(
        self,
        hva: int,
        length: int,
        iova: int | None,
        *,
        read: bool,
        write: bool,
        of_file: bool = False,
    ) -> int:
        """iopt_map_user_pages; returns the IOVA."""
        if hva + length >= _SPACE:
            raise refuse(errno.EOVERFLOW)
        if length > ADDRESS_LAST - self.memory.page:
            raise refuse(errno.EINVAL)
        part = SimPart(hva, length, SimPages(users=0, writable=write), of_file)
        return self.map_parts([part], length, iova, read=read, write=write)

    def map_parts(
        self, parts: list[SimPart], length: int, iova: int | None, *, read: bool, write: bool
    ) -> int:
        """iopt_map_pages: a copy has an area for each that it copies; all, or none."""
        if not length or length & (self.alignment - 1):
            raise refuse(errno.EINVAL)
        placed = self._find(parts[0].hva, length) if iova is None else self._check(iova, length)
        page = self.memory.page
        for part in parts:
            if write and not part.pages.writable:
                raise refuse(errno.EPERM)
            if part.hva % page & (self.alignment - 1):
                raise refuse(errno.EINVAL)
        areas, at = [], placed
        for part in parts:
            areas.append(SimArea(at, part.size, part.hva, read, write, part.pages))
            areas[-1].of_file = part.of_file
            at += part.size
        if self.domains:
            self._pin_some(areas)
        for area in areas:
            area.pages.users += 1
            self.areas.add(area)
        return placed

    def _check(self, iova: int, length: int) -> int:
        """iopt_check_iova: alignment, wrap, reserved, and overlap last."""
        if iova & (self.alignment - 1):
            raise refuse(errno.EINVAL)
        if iova + length > _SPACE:
            raise refuse(errno.EOVERFLOW)
        if self._touches_reserved(iova, iova + length - 1):
            raise refuse(errno.EINVAL)
        if self.areas.first(iova, iova + length - 1):
            raise refuse(errno.EEXIST)
        return iova

    def _find(self, hva: int, length: int) -> int:
        """iopt_alloc_iova: the lowest fit from the second page on, congruent to the memory."""
        page = self.memory.page
        if length >= ADDRESS_LAST // 2:
            raise refuse(errno.EOVERFLOW)
        align = 1 << (length - 1).bit_length()
        if hva:
            align = min(align, hva & -hva)
        align = min(align, self.settings.max_auto_alignment)
        if align < self.alignment:
            raise refuse(errno.EINVAL)
        offset = hva % page
        spans = self.allowed or [AddrRange(page, ADDRESS_LAST - page)]
        for span in spans:
            start = max(span.start, page)
            start, last = (start + align - 1) & -align | offset, min(span.last, ADDRESS_LAST - page)
            if start >= last or last - start < length - 1:
                continue
            for free in self._free(start, last):
                at = (free.start + align - 1) & -align | offset
                # KERNEL: 7.3 passes over a hole of one byte (__alloc_iova_check_range: >=).
                if at < free.last and free.last - at >= length - 1:
                    return at
        raise refuse(errno.ENOSPC)

    def _free(self, start: int, last: int) -> list[AddrRange]:
        """Spans of start..last that are neither reserved nor mapped, ascending."""
        spans_left: list[AddrRange] = []
        for hole in self.holes():
            piece = hole.intersect(AddrRange(start, last))
            if piece is None:
                continue
            at = piece.start
            area = self.areas.first(at, piece.last)
            while area is not None and at <= piece.last:
                if at < area.start:
                    spans_left.append(AddrRange(at, area.start - 1))
                at = area.last + 1
                area = self.areas.first(at, piece.last) if at <= piece.last else None
            if at <= piece.last:
                spans_left.append(AddrRange(at, piece.last))
        return spans_left

    def parts_of(self, iova: int, length: int) -> list[SimPart]:
        """iopt_get_pages: what a copy is made of; the source must be mapped without a gap."""
        if not length:
            raise refuse(errno.EINVAL)
        if iova + length > _SPACE:
            raise refuse(errno.EOVERFLOW)
        parts, at, last = [], iova, iova + length - 1
        while at <= last:
            area = self.areas.first(at, at)
            if area is None:
                raise refuse(errno.ENOENT)
            size = min(area.last, last) - at + 1
            parts.append(SimPart(area.hva + at - area.start, size, area.pages, area.of_file))
            at += size
        return parts

    def unmap(self, iova: int, last: int) -> int:
        """iopt_unmap_iova_range: one by one from the bottom, so a cut above is seen too late."""
        total = 0
        area = self.areas.first(iova, last)
        while area is not None:
            if area.start < iova or area.last > last:
                raise refuse(errno.ENOENT)
            self._drop(area)
            total += area.size
            area = self.areas.first(iova, last)
        return total

    def unmap_sized(self, iova: int, length: int) -> int:
        """iopt_unmap_iova."""
        if not length:
            raise refuse(errno.EINVAL)
        if iova + length > _SPACE:
            raise refuse(errno.EOVERFLOW)
        return self.unmap(iova, iova + length - 1)

    def _drop(self, area: SimArea) -> None:
        self.areas.remove(area)
        area.pages.users -= 1
        if not area.pages.users:
            self._unpin(area)

    def clear(self) -> None:
        """Unmap everything."""
        for area in self.areas:
            self._drop(area)
