# SPDX-License-Identifier: Apache-2.0
"""A type1 container in memory: the checks of the real one, in its order, with its errno.

Source: drivers/vfio/vfio_iommu_type1.c of Linux 5.4 to 7.3; where releases differ, the `release`
of the simulated kernel decides. Held to real kernels by the lab, which runs the same random
sequences on both.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from vmm_iova.kernel import uapi
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.simulated.model import (
    Areas,
    SimArea,
    SimGroup,
    SimMemory,
    SimPages,
    SimSettings,
    refuse,
)

_SPACE = 1 << 64


class SimContainer:
    """What is behind a descriptor of /dev/vfio/vfio."""

    def __init__(self, settings: SimSettings, memory: SimMemory) -> None:
        self.settings = settings
        self.memory = memory
        self.groups: list[SimGroup] = []
        self.type = 0
        self._reset()

    def _reset(self) -> None:
        self.type = 0
        self.attached: list[SimGroup] = []
        self.areas = Areas()
        self.ranges: list[AddrRange] = []
        self.avail = self.settings.dma_entry_limit
        self.tracking = False
        self.invalid = 0

    def __repr__(self) -> str:
        return f"container, type {self.type}, {[g.number for g in self.attached]}, {self.areas!r}"

    @property
    def v2(self) -> bool:
        """Whether the second version of the rules holds."""
        return self.type == uapi.TYPE1_V2_IOMMU

    # KERNEL: hardware pages below the kernel's own are hidden (vfio_update_pgsize_bitmap).
    @property
    def page_sizes(self) -> int:
        """Bitmap common to all groups."""
        common = ADDRESS_LAST
        for group in self.attached:
            common &= group.page_sizes
        page = self.memory.page
        return (common & -page) | (page if common & (page - 1) else 0)

    @property
    def granule(self) -> int:
        """Smallest page."""
        return self.page_sizes & -self.page_sizes

    def ioctl(self, request: int, arg: int | bytes | bytearray) -> int:
        """Answer a call on the container."""
        if request == uapi.GET_API_VERSION:
            return 0
        if request == uapi.CHECK_EXTENSION:
            return self._extension(int(arg))
        if request == uapi.SET_IOMMU:
            return self._set_iommu(int(arg))
        if not self.type:
            raise refuse(errno.EINVAL)
        handler = {
            uapi.IOMMU_GET_INFO: self._info,
            uapi.IOMMU_MAP_DMA: self._map,
            uapi.IOMMU_UNMAP_DMA: self._unmap,
            uapi.IOMMU_DIRTY_PAGES: self._dirty,
        }.get(request)
        if handler is None:
            raise refuse(errno.ENOTTY)
        if not isinstance(arg, bytearray):
            raise refuse(errno.EFAULT)
        return handler(arg)

    def _extension(self, number: int) -> int:
        if number in (uapi.TYPE1_IOMMU, uapi.TYPE1_V2_IOMMU):
            return 1
        if number == uapi.EXT_UNMAP_ALL:
            return int(self.settings.release >= (5, 12))
        if number == uapi.EXT_UPDATE_VADDR:
            return int(self.settings.release >= (5, 12) and bool(self.type))
        if number == uapi.NESTING_IOMMU:
            # KERNEL: public through 6.12, reserved in 6.14.
            return int(self.settings.release <= (6, 12))
        coherent = bool(self.attached) and all(group.coherent for group in self.attached)
        return int(number == uapi.DMA_CC_IOMMU and coherent)

    def _set_iommu(self, kind: int) -> int:
        if not self.groups or self.type:
            raise refuse(errno.EINVAL)
        if kind not in (uapi.TYPE1_IOMMU, uapi.TYPE1_V2_IOMMU):
            raise refuse(errno.ENODEV)
        self.avail = self.settings.dma_entry_limit
        self.type = kind
        try:
            for group in self.groups:
                self.attach(group)
        except OSError:
            self._reset()
            raise
        return 0

    def join(self, group: SimGroup) -> None:
        """Take a group in (VFIO_GROUP_SET_CONTAINER)."""
        self.groups.append(group)
        if self.type:
            try:
                self.attach(group)
            except OSError:
                self.groups.remove(group)
                raise

    def leave(self, group: SimGroup) -> None:
        """Let a group go; the last takes all mappings with it."""
        self.groups.remove(group)
        if group in self.attached:
            self.attached.remove(group)
        if not self.groups:
            for area in self.areas:
                self._drop(area)
            self._reset()
        else:
            self._recompute()

    def attach(self, group: SimGroup) -> None:
        """vfio_iommu_type1_attach_group: aperture, then reserved regions, then interrupts."""
        if self.invalid:
            raise refuse(errno.EBUSY)
        if self.ranges:
            first, last = self.ranges[0].start, self.ranges[-1].last
            window = group.aperture
            if window.start > last or window.last < first:
                raise refuse(errno.EINVAL)
            if window.start > first and self.areas.first(first, window.start - 1):
                raise refuse(errno.EINVAL)
            if window.last < last and self.areas.first(window.last + 1, last):
                raise refuse(errno.EINVAL)
        for region in group.held_back():
            if self.areas.first(region.start, region.last):
                raise refuse(errno.EINVAL)
        before = self.attached
        self.attached = [*before, group]
        if not self._narrowed():
            self.attached = before
            raise refuse(errno.EINVAL)
        if not group.isolated_msi and not self.settings.allow_unsafe_interrupts:
            self.attached = before
            raise refuse(errno.EPERM)
        self._recompute()

    def _narrowed(self) -> list[AddrRange]:
        """Aperture of all, less what any reserves; touching pieces stay apart."""
        pieces = [AddrRange(0, ADDRESS_LAST)]
        for group in self.attached:
            cut = (piece.intersect(group.aperture) for piece in pieces)
            pieces = [piece for piece in cut if piece is not None]
        for group in self.attached:
            for region in group.held_back():
                pieces = [rest for piece in pieces for rest in piece.subtract(region)]
        return pieces

    def _recompute(self) -> None:
        self.ranges = self._narrowed() if self.attached else []

    def _info(self, arg: bytearray) -> int:
        argsz = _argsz(arg)
        if argsz < uapi.TYPE1_INFO.minimum:
            raise refuse(errno.EINVAL)
        chain = self._chain() if self.settings.release >= (5, 4) else b""
        total = 24 + len(chain)
        answer_size, offset = argsz, 0
        if chain and argsz < total:
            answer_size = total
        elif chain:
            arg[24:total] = chain
            offset = 24
        flags = uapi.INFO_PGSIZES | (uapi.INFO_CAPS if chain else 0)
        head = struct.pack("=IIQII", answer_size, flags, self.page_sizes, offset, 0)
        visible = 24 if self.settings.release >= (5, 4) else 16
        shown = min(argsz, visible)
        arg[:shown] = head[:shown]
        return 0

    def _chain(self) -> bytes:
        """MIGRATION, DMA_AVAIL, IOVA_RANGE, in the order and alignment of the release."""
        release = self.settings.release
        parts: list[bytes] = []
        if release >= (5, 8):
            parts.append(
                uapi.MIGRATION.codec.pack(2, 1, 0, 0, 0, self.granule, uapi.DIRTY_BITMAP_LIMIT)
            )
        if release >= (5, 10):
            parts.append(uapi.DMA_AVAIL.codec.pack(3, 1, 0, self.avail))
        if self.ranges:
            head = uapi.IOVA_RANGE_HEAD.codec.pack(1, 1, 0, len(self.ranges), 0)
            body = (uapi.IOVA_RANGE.codec.pack(item.start, item.last) for item in self.ranges)
            parts.append(head + b"".join(body))
        return link(parts, aligned=release >= (6, 6))

    def _map(self, arg: bytearray) -> int:
        if _argsz(arg) < 32:
            raise refuse(errno.EINVAL)
        _, flags, vaddr, iova, size = uapi.DMA_MAP.codec.unpack_from(arg)
        late = self.settings.release >= (6, 18)
        allowed = uapi.MAP_READ | uapi.MAP_WRITE
        if self.settings.release >= (5, 12):
            allowed |= uapi.MAP_VADDR
        set_vaddr, prot = flags & uapi.MAP_VADDR, flags & (uapi.MAP_READ | uapi.MAP_WRITE)
        if flags & ~allowed:
            raise refuse(errno.EINVAL)
        wraps = size > 0 and (iova + size > _SPACE or vaddr + size > _SPACE)
        if late and size == 0:
            raise refuse(errno.EINVAL)
        if late and wraps:
            raise refuse(errno.EOVERFLOW)
        if bool(prot) == bool(set_vaddr):
            raise refuse(errno.EINVAL)
        if not size or (size | iova | vaddr) & (self.granule - 1) or wraps:
            raise refuse(errno.EINVAL)
        there = self._overlap(iova, size)
        if set_vaddr:
            return self._set_vaddr(there, iova, size, vaddr)
        if there:
            raise refuse(errno.EEXIST)
        if not self.avail:
            raise refuse(errno.ENOSPC)
        if self.settings.release >= (5, 4) and not self._fits(iova, iova + size - 1):
            raise refuse(errno.EINVAL)
        write = bool(flags & uapi.MAP_WRITE)
        pages = SimPages(self.memory.pin(vaddr, size, write=write), writable=write)
        self.avail -= 1
        self.areas.add(SimArea(iova, size, vaddr, bool(flags & uapi.MAP_READ), write, pages))
        return 0

    def _overlap(self, iova: int, size: int) -> SimArea | None:
        # KERNEL: before 6.18 iova + size wraps to 0 at the top of the space, and vfio_find_dma
        # sees nothing; so a mapping there can be made twice, and unmapping misses it.
        if iova + size == _SPACE and self.settings.release < (6, 18):
            return None
        return self.areas.first(iova, iova + size - 1)

    def _set_vaddr(self, there: SimArea | None, iova: int, size: int, vaddr: int) -> int:
        if there is None:
            raise refuse(errno.ENOENT)
        if there.vaddr_valid or there.start != iova or there.size != size:
            raise refuse(errno.EINVAL)
        there.hva, there.vaddr_valid = vaddr, True
        self.invalid -= 1
        return 0

    def _fits(self, start: int, last: int) -> bool:
        if not self.ranges:
            return True
        return any(item.start <= start and last <= item.last for item in self.ranges)

    def _unmap(self, arg: bytearray) -> int:
        argsz = _argsz(arg)
        if argsz < 24:
            raise refuse(errno.EINVAL)
        _, flags, iova, size = uapi.DMA_UNMAP.codec.unpack_from(arg)
        release = self.settings.release
        allowed = uapi.UNMAP_GET_DIRTY if release >= (5, 8) else 0
        if release >= (5, 12):
            allowed |= uapi.UNMAP_ALL | uapi.UNMAP_VADDR
        everything, vaddr = flags & uapi.UNMAP_ALL, flags & uapi.UNMAP_VADDR
        get_dirty = flags & uapi.UNMAP_GET_DIRTY
        if flags & ~allowed or (get_dirty and flags & ~uapi.UNMAP_GET_DIRTY):
            raise refuse(errno.EINVAL)
        pgsize, room, target = self._dirty_tail(arg, argsz, size) if get_dirty else (0, 0, 0)
        mask = self.granule - 1
        if iova & mask:
            raise refuse(errno.EINVAL)
        if everything:
            if iova or size:
                raise refuse(errno.EINVAL)
            last = ADDRESS_LAST
        else:
            if not size or size & mask:
                raise refuse(errno.EINVAL)
            if iova + size > _SPACE:
                raise refuse(errno.EOVERFLOW if release >= (6, 18) else errno.EINVAL)
            last = iova + size - 1
        if get_dirty and (not self.tracking or pgsize != self.granule):
            raise refuse(errno.EINVAL)
        if self.v2 and not everything:
            self._refuse_cut(iova, last)
        at_top = not everything and iova + size == _SPACE and release < (6, 18)
        removed = [] if at_top else self._select(iova, last)
        if vaddr:
            total = self._invalidate(removed)
        else:
            if get_dirty:
                self._write_bitmap(removed, iova, room, target)
            total = sum(area.size for area in removed)
            for area in removed:
                self._drop(area)
        struct.pack_into("=Q", arg, 16, total & ADDRESS_LAST)
        return 0

    def _dirty_tail(self, arg: bytearray, argsz: int, size: int) -> tuple[int, int, int]:
        if argsz < 48:
            raise refuse(errno.EINVAL)
        pgsize, room, target = uapi.BITMAP.codec.unpack_from(arg, 24)
        if pgsize & (pgsize - 1) or not pgsize:
            raise refuse(errno.EINVAL)
        _check_bitmap(size // pgsize, room)
        return pgsize, room, target

    def _refuse_cut(self, iova: int, last: int) -> None:
        low = self.areas.first(iova, iova)
        high = self.areas.first(last, last)
        if (low and low.start != iova) or (high and high.last != last):
            raise refuse(errno.EINVAL)

    def _select(self, iova: int, last: int) -> list[SimArea]:
        chosen = self.areas.within(iova, last)
        first = self.areas.first(iova, last)
        # The first version stops at a mapping that begins below the range.
        if not self.v2 and first and first.start < iova:
            return []
        return chosen

    def _invalidate(self, areas: list[SimArea]) -> int:
        if any(not area.vaddr_valid for area in areas):
            raise refuse(errno.EINVAL)
        for area in areas:
            area.vaddr_valid = False
            self.invalid += 1
        return sum(area.size for area in areas)

    def _drop(self, area: SimArea) -> None:
        self.memory.unpin(area.pages.pinned)
        self.areas.remove(area)
        self.avail += 1
        if not area.vaddr_valid:
            self.invalid -= 1

    def _dirty(self, arg: bytearray) -> int:
        if not self.v2:
            raise refuse(errno.EACCES)
        if self.settings.release < (5, 8):
            raise refuse(errno.ENOTTY)
        argsz, flags = uapi.DIRTY.codec.unpack_from(arg)
        if argsz < 8 or flags not in (uapi.DIRTY_START, uapi.DIRTY_STOP, uapi.DIRTY_GET):
            raise refuse(errno.EINVAL)
        if flags != uapi.DIRTY_GET:
            self.tracking = flags == uapi.DIRTY_START
            return 0
        if argsz < 48:
            raise refuse(errno.EINVAL)
        iova, size, pgsize, room, target = uapi.DIRTY_RANGE.codec.unpack_from(arg, 8)
        late = self.settings.release >= (6, 18)
        if late and size and iova + size > _SPACE:
            raise refuse(errno.EOVERFLOW)
        if (not late and iova + size >= _SPACE) or not pgsize or not size:
            raise refuse(errno.EINVAL)
        _check_bitmap(size // (pgsize & -pgsize), room)
        mask = self.granule - 1
        if pgsize != self.granule or (iova | size) & mask or not size or not self.tracking:
            raise refuse(errno.EINVAL)
        self._refuse_cut(iova, iova + size - 1)
        self._write_bitmap(self.areas.within(iova, iova + size - 1), iova, room, target)
        return 0

    def _write_bitmap(self, areas: list[SimArea], iova: int, room: int, target: int) -> None:
        # Everything that an IOMMU-backed group has pinned counts as written, every time
        # (update_user_bitmap: num_non_pinned_groups).
        bits = 0
        for area in areas:
            pages = area.size // self.granule
            bits |= ((1 << pages) - 1) << (area.start - iova) // self.granule
        length = (bits.bit_length() + 63) // 64 * 8
        if bits:
            merged = bits | uapi.read_bits(ctypes.string_at(target, length))
            ctypes.memmove(target, uapi.write_bits(merged, length), length)


def link(parts: list[bytes], *, aligned: bool) -> bytes:
    """Chain capabilities behind a fixed part of 24 bytes; 8-byte aligned since Linux 6.6."""
    chain = b""
    for index, part in enumerate(parts):
        padded = part + bytes(-len(part) % 8) if aligned else part
        # The offset of the next is that of this one and its padded size.
        following = 24 + len(chain) + len(padded) if index + 1 < len(parts) else 0
        chain += padded[:4] + struct.pack("=I", following) + padded[8:]
    return chain


def _argsz(arg: bytearray) -> int:
    argsz: int = struct.unpack_from("=I", arg)[0]
    return argsz


def _check_bitmap(pages: int, room: int) -> None:
    """verify_bitmap_size of vfio_iommu_type1.c."""
    needed = (pages + 63) // 64 * 8
    if not pages or not room or room > uapi.DIRTY_BITMAP_LIMIT or room < needed:
        raise refuse(errno.EINVAL)
