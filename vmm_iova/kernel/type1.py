# SPDX-License-Identifier: Apache-2.0
"""VFIO's type1 container, version 2: groups in, mappings in, everything out in the right order.

Source of what is said here: drivers/vfio/vfio_iommu_type1.c, drivers/vfio/container.c and
drivers/vfio/group.c of Linux 4.4 to 7.3.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.errors import DmaError, EvidenceError, UnknownNameError
from vmm_iova.kernel import caps, uapi
from vmm_iova.kernel.batch import TYPE1_MAP, pack_type1
from vmm_iova.kernel.book import LiveMappings, spot
from vmm_iova.kernel.group import VfioGroup
from vmm_iova.kernel.handle import ATTACH_HINTS, TYPE1_MAP_HINTS, Handle
from vmm_iova.kernel.registers import Device
from vmm_iova.kernel.space import (
    Calls,
    Doubtful,
    SpaceFacts,
    calls_in_c,
    empty,
    no_number,
    no_numbers,
    undo_doubtful,
    unmap_exactly,
)
from vmm_iova.kernel.syscalls import LINUX, Kernel, UserBuffer, is_direct
from vmm_iova.kernel.windows import Windows
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, Iova

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.host.facts import SpaceKind
    from vmm_iova.kernel.book import Mappable
    from vmm_iova.ranges import Hva

_UNMAP = struct.Struct("=IIQQ")
_HALF = Iova(1 << 63)


@calls_in_c
class Type1Container(Calls, Handle):
    """A container with its groups and mappings: an `AddressSpace`.

    The backend is chosen when the first group is added, because the kernel refuses it before.
    Ranges, page sizes and remaining entries change with every group: `facts` asks anew each time.

    Args:
        kernel: where the calls go.
        path: node of the container.
        version: 2, or 1 for tests of the old rules of unmapping.

    Raises:
        DmaError: the node cannot be opened (`ENOENT`, `EACCES`), speaks another API version
            (`EPROTO`) or has no type1 backend (`ENODEV`).

    Synchronization: external.
    """

    kind: SpaceKind = "type1"
    _map_name, _map_hints = "VFIO_IOMMU_MAP_DMA", TYPE1_MAP_HINTS
    _unmap_name = "VFIO_IOMMU_UNMAP_DMA"

    def __init__(
        self, kernel: Kernel = LINUX, *, path: str = "/dev/vfio/vfio", version: int = 2
    ) -> None:
        self._groups: dict[int, VfioGroup] = {}
        self._devices: dict[str, int] = {}
        self._windows: dict[str, Windows] = {}
        self._ready = False
        self.live = LiveMappings()
        self._type = uapi.TYPE1_V2_IOMMU if version == 2 else uapi.TYPE1_IOMMU
        super().__init__(
            kernel,
            path,
            "type1 container",
            "load the vfio modules, or give this user access to /dev/vfio",
        )
        if is_direct(kernel):
            self._ask_directly(
                self.live.book, self._fds, uapi.IOMMU_MAP_DMA, uapi.IOMMU_UNMAP_DMA, False
            )
        try:
            if self.call("VFIO_GET_API_VERSION", uapi.GET_API_VERSION) != 0:
                raise DmaError(
                    f"{path} speaks an unknown version of VFIO",
                    errno=errno.EPROTO,
                    ioctl="VFIO_GET_API_VERSION",
                )
            if not self.extension(self._type):
                raise DmaError(
                    f"{path} has no type1 IOMMU backend",
                    errno=errno.ENODEV,
                    ioctl="VFIO_CHECK_EXTENSION",
                    hint=f"{say.LOAD_TYPE1}; {say.NO_POWER}",
                )
            self.compat = self._is_iommufd()
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        if getattr(self, "_fds", None):
            self.live.warn_if_any(f"the type1 container made at {self._place}", self)
            self.close()

    def __repr__(self) -> str:
        groups = ", ".join(map(str, self._groups)) or "no groups"
        return f"<Type1Container {groups}, {len(self.live)} mappings>"

    @property
    def groups(self) -> tuple[int, ...]:
        """Numbers of the attached groups, in the order of attachment."""
        return tuple(self._groups)

    def _is_iommufd(self) -> bool:
        # KERNEL: with CONFIG_IOMMUFD_VFIO_CONTAINER (6.2) /dev/vfio/vfio is an iommufd. Only there
        # does destroying the object 0 mean "no such object"; a container answers EINVAL or ENOTTY.
        try:
            self._kernel.ioctl(self.fd, uapi.request(0x80), bytearray(struct.pack("=II", 8, 0)))
        except OSError as exc:
            return exc.errno == errno.ENOENT
        return False

    def add_group(self, number: int, *, path: str | None = None) -> SpaceFacts:
        """Open a group and attach it; the ranges are read anew.

        Either the group is attached, or everything is as it was. Mappings that are live are also
        seen by its devices.

        Args:
            number: of the group, as in /sys/kernel/iommu_groups.
            path: its node, if it is not /dev/vfio/NUMBER.

        Returns:
            What the kernel says now.

        Raises:
            DmaError: `EBUSY` the group is open elsewhere; `EINVAL` not viable, a live mapping lies
                where the group's IOMMU cannot translate, or a `direct` region; `EPERM` no
                interrupt remapping; `ENODEV` the backend is missing.

        Source: vfio_group_ioctl_set_container, vfio_iommu_type1_attach_group (Linux 7.3).
        """
        if number in self._groups:
            raise DmaError(f"group {number} is attached already", errno=errno.EBUSY, ioctl="open")
        group = VfioGroup(self._kernel, number, path or f"/dev/vfio/{number}")
        try:
            group.join(self.fd)
            if not self._ready:
                self.call(
                    "VFIO_SET_IOMMU",
                    uapi.SET_IOMMU,
                    self._type,
                    message=f"group {number} cannot be attached",
                    hints=ATTACH_HINTS,
                )
                self._ready = True
            self._groups[number] = group
            return self.facts()
        except BaseException:
            # Closing the file also takes the group out of the container.
            self._groups.pop(number, None)
            self._ready = bool(self._groups)
            group.close()
            raise

    def remove_group(self, number: int) -> SpaceFacts | None:
        """Detach and close a group; its devices must be closed before.

        With the last group go all mappings, and the backend: None is returned.

        Raises:
            DmaError: `EBUSY` a device of it is open.
            UnknownNameError: it is not attached.
        """
        group = self._group(number)
        try:
            group.leave()
            self._forget_group(number)
        except DmaError:
            raise
        except BaseException:
            # An interrupt: whether the kernel has let the group go, it alone knows.
            if not group.joined:
                self._forget_group(number)
            raise
        return self.facts() if self._groups else None

    def _group(self, number: int) -> VfioGroup:
        if number not in self._groups:
            _ = self.fd  # a closed container says so
            raise UnknownNameError(
                f"group {number} is not attached",
                kind="group",
                name=str(number),
                known=sorted(map(str, self._groups)),
            )
        return self._groups[number]

    def _forget_group(self, number: int) -> None:
        """Close a group; with the last go the backend and all mappings."""
        if self._groups.keys() <= {number}:
            self._ready = False
            self.live.clear()
        if number in self._groups:
            self._groups[number].close()
            del self._groups[number]

    def open_device(self, bdf: str, group: int) -> int:
        """Return the descriptor of a device of an attached group; this container closes it.

        One that is open already is given again.

        Raises:
            DmaError: `ENODEV` the group has no such device or it is not bound to VFIO; `EINVAL`.
            UnknownNameError: the group is not attached.
        """
        if bdf not in self._devices:
            self._group(group).open_device(self._devices, bdf)
        return self._devices[bdf]

    @property
    def open_devices(self) -> tuple[str, ...]:
        """BDFs of the open devices, in the order of opening."""
        return tuple(self._devices)

    def device_fd(self, bdf: str) -> int:
        """Return the descriptor of a device that is open.

        Raises:
            UnknownNameError: it is not open here.
            ClosedError: this container is closed.
        """
        if bdf not in self._devices:
            _ = self.fd  # a closed container says so
            raise UnknownNameError(
                f"device {bdf} is not open; {', '.join(sorted(self._devices)) or 'none'} is",
                kind="device",
                name=bdf,
                known=sorted(self._devices),
            )
        return self._devices[bdf]

    def device(self, bdf: str) -> Device:
        """Return a device with its registers and interrupts; raises as `device_fd`, and DmaError.

        It is as open as this is.
        """
        self.device_fd(bdf)
        if bdf not in self._windows:
            self._windows[bdf] = Windows(self.kernel)
        return Device(self.kernel, self._windows[bdf], lambda: self.device_fd(bdf), bdf)

    def close_device(self, bdf: str) -> None:
        """Close a device; nothing happens when it is closed already."""
        if bdf in self._windows:
            self._windows[bdf].close()
            del self._windows[bdf]
        if bdf in self._devices:
            fd = self._devices[bdf]
            del self._devices[bdf]
            self._kernel.close(fd)

    def info(self) -> caps.Type1Facts:
        """Return the container's own words.

        Raises:
            DmaError: `EINVAL` no group is attached yet.
            CapabilityError: the answer contradicts itself.
        """
        answer = uapi.grow_by_argsz(
            lambda buffer: self.call("VFIO_IOMMU_GET_INFO", uapi.IOMMU_GET_INFO, buffer),
            uapi.TYPE1_INFO,
        )
        return caps.read_type1_info(answer)

    def facts(self) -> SpaceFacts:
        """Ask the kernel for ranges, page sizes and entries; the answer changes with every attach.

        Raises:
            DmaError: `EINVAL` no group is attached yet.
            CapabilityError: the answer contradicts itself.
            EvidenceError: the kernel gives no page sizes.
        """
        info = self.info()
        if not info.page_sizes:
            raise EvidenceError(
                "the container does not say which page sizes its IOMMU takes",
                looked_at=["VFIO_IOMMU_GET_INFO: flag PGSIZES is clear"],
                settles=["a kernel from 3.6 on that sets it"],
            )
        return SpaceFacts(
            info.ranges,
            info.page_sizes & -info.page_sizes,
            info.page_sizes,
            None if self.compat else info.entries_left,
            "VFIO_IOMMU_GET_INFO",
            # Behind an iommufd a group's devices are attached when they are opened, not before.
            final=not self.compat or bool(self._devices),
        )

    def map(
        self, iova: Iova, hva: Hva, size: int, *, read: bool = True, write: bool = True
    ) -> None:
        """Map memory of this process; it is pinned meanwhile. All, or nothing.

        Args:
            iova: first address, a multiple of the granule.
            hva: address of the memory, likewise.
            size: bytes, likewise, from the granule on; inside one range.
            read: the device may read; s390 asks for it.
            write: the device may write.

        Raises:
            DmaError: `EINVAL` not aligned, or outside of every range; `EEXIST` overlaps a mapping
                (also if it is the same); `ENOSPC` no entry left; `ENOMEM` RLIMIT_MEMLOCK;
                `EFAULT` no memory there, or beyond the IOMMU's width; `EOVERFLOW` wraps (6.18).

        Source: vfio_dma_do_map (Linux 7.3).
        """
        place = spot()
        flags = (uapi.MAP_READ if read else 0) | (uapi.MAP_WRITE if write else 0)
        try:
            buffer = bytearray(TYPE1_MAP.pack(32, flags, hva, iova, size))
            self.ioctl(uapi.IOMMU_MAP_DMA, buffer)
            self.live.book.put(iova, size, hva, read, write, place)
        except OSError as exc:
            raise self._map_refused(iova, hva, size, exc.errno or 0) from exc
        except struct.error as exc:
            raise no_number(iova=iova, hva=hva, size=size) from exc
        except BaseException:
            undo_doubtful(self, [Doubtful(iova, hva, size, read, write)], place)
            raise

    def map_many(self, pieces: Sequence[Mappable]) -> tuple[int, DmaError | None]:
        """Map many in one entry to C, in the order given, until one is refused.

        Args:
            pieces: what; each as the arguments of `map`.

        Returns:
            How many are mapped, and the error of the next, or None when all are.

        Complexity: one ioctl a piece; the interpreter's lock is released for all of them together.
        """
        place = spot()
        try:
            records = pack_type1(pieces)
            done, number = self.call_many(uapi.IOMMU_MAP_DMA, records, TYPE1_MAP.size)
            self.live.add_many(pieces[:done], place)
        except (struct.error, OverflowError, TypeError) as exc:
            raise no_numbers(pieces) from exc
        except BaseException:
            undo_doubtful(self, pieces, place)
            raise
        if not number:
            return done, None
        bad = pieces[done]
        return done, self._map_refused(bad.iova, bad.hva, bad.size, number)

    def unmap(self, iova: Iova, size: int) -> int:
        """Unmap exactly one mapping of this container and verify what the kernel removed.

        Returns:
            Bytes unmapped: `size`.

        Raises:
            NotAllocatedError: `size` bytes at `iova` are not one mapping; nothing was done.
            DmaError: the kernel refused.
            PartialUnmapError: it removed another number of bytes.
        """
        return self._whole(iova, size, unmap_exactly(self, iova, size))

    def unmap_range(self, iova: Iova, size: int, *, flags: int = 0) -> int:
        """Make the bare ioctl, without the book of live mappings; return the bytes it removed."""
        try:
            buffer = bytearray(_UNMAP.pack(24, flags, iova, size))
            self.ioctl(uapi.IOMMU_UNMAP_DMA, buffer)
        except struct.error as exc:
            raise no_number(iova=iova, size=size) from exc
        except OSError as exc:
            raise self._unmap_refused(iova, size, exc.errno or 0) from exc
        return int(_UNMAP.unpack_from(buffer)[3])

    def unmap_all(self) -> int:
        """Unmap everything, also what this object does not know of; return the bytes.

        Where the kernel has no such flag (before 5.12) two calls, cut at 2^63, do it; a mapping
        across 2^63 goes on its own first. They leave out the last granule below 2^64: before 6.18
        a range that ends there finds nothing, so nobody should map it (the judge never offers it).

        Raises:
            DmaError: the kernel refused; `live` has what is still mapped.
        """
        return empty(self, self._unmap_everything)

    def _unmap_everything(self) -> int:
        if self.extension(uapi.EXT_UNMAP_ALL):
            return self.unmap_range(Iova(0), 0, flags=uapi.UNMAP_ALL)
        # The size 2^64 cannot be written, and a cut through a mapping is EINVAL.
        across = self.live.overlapping(AddrRange(_HALF - 1, _HALF - 1))
        top = ADDRESS_LAST + 1 - self.facts().granule
        steps = [
            *((item.range.start, item.range.size) for item in across),
            *((0, _HALF), (_HALF, top - _HALF)),
        ]
        return sum(self._unmap_and_forget(Iova(start), size) for start, size in steps)

    def _unmap_and_forget(self, iova: Iova, size: int) -> int:
        """Unmap a range; if a later step is refused, the book is still true."""
        unmapped = self.unmap_range(iova, size)
        self.live.forget(AddrRange(iova, iova + size - 1))
        return unmapped

    def extension(self, number: int) -> int:
        """Return what the kernel says of an extension; 0 is "no"."""
        return self.call("VFIO_CHECK_EXTENSION", uapi.CHECK_EXTENSION, number)

    def start_dirty(self) -> None:
        """Begin to track which pages devices may have written (5.8).

        Raises:
            DmaError: `ENOTTY` an older kernel, or an iommufd in disguise.
        """
        self._dirty(uapi.DIRTY_START)

    def stop_dirty(self) -> None:
        """End tracking."""
        self._dirty(uapi.DIRTY_STOP)

    def _dirty(self, flag: int) -> None:
        arg = uapi.DIRTY.pack(argsz=uapi.DIRTY.size, flags=flag)
        self.call("VFIO_IOMMU_DIRTY_PAGES", uapi.IOMMU_DIRTY_PAGES, arg)

    def read_dirty(self, iova: Iova, size: int) -> bytes:
        """Return the bitmap of pages that may have been written since the last reading.

        Args:
            iova: start of one mapping or of several whole ones.
            size: bytes.

        Returns:
            One bit a granule, the lowest first, in whole 64-bit words.

        Raises:
            DmaError: `EINVAL` tracking is off, or the range cuts a mapping.

        Source: vfio_iova_dirty_bitmap (Linux 5.8).
        """
        granule = self.facts().granule
        words = (size // granule + 63) // 64 or 1
        bitmap = UserBuffer(words * 8)
        head, body = uapi.DIRTY, uapi.DIRTY_RANGE
        arg = head.pack(head.size + body.size, argsz=head.size + body.size, flags=uapi.DIRTY_GET)
        arg[head.size :] = body.pack(
            iova=iova, size=size, pgsize=granule, bitmap_size=bitmap.size, data=bitmap.address
        )
        self.call("VFIO_IOMMU_DIRTY_PAGES", uapi.IOMMU_DIRTY_PAGES, arg, iova=iova, length=size)
        # KERNEL: after a reading from another offset, bits of it stand behind mappings (7.3).
        mapped = 0
        for item in self.live.overlapping(AddrRange(iova, iova + size - 1)):
            pages = (1 << item.range.size // granule) - 1
            mapped |= pages << (item.range.start - iova) // granule
        bits = uapi.read_bits(bitmap.content()) & mapped
        return uapi.write_bits(bits, bitmap.size)

    def close(self) -> None:
        """Close devices, then mappings, groups and the container. Idempotent."""
        if self.closed:
            return
        # Devices first: closing one stops its DMA, so that no unmapped memory is written to. The
        # container is last, so that a close that was interrupted can be called again.
        for bdf in list(self._devices):
            self.close_device(bdf)
        if self._ready and self.live:
            # The kernel also does it when the last group goes; what it refuses here it does
            # there, so a refusal is no news.
            with contextlib.suppress(DmaError):
                self.unmap_all()
        for number in reversed(list(self._groups)):
            self._forget_group(number)
        super().close()
