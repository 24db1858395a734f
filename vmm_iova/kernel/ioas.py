# SPDX-License-Identifier: Apache-2.0
"""One address space of an iommufd with its devices and mappings.

Source of what is said here: drivers/iommu/iommufd/{ioas,io_pagetable,device}.c of Linux 6.2 to 7.3.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import TYPE_CHECKING, Self

from vmm_iova.errors import ClosedError, DmaError, UnknownNameError
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.kernel.batch import IOAS_MAP, ioas_flags, pack_ioas
from vmm_iova.kernel.book import LiveMappings, caller, spot
from vmm_iova.kernel.dirty import DirtyTables
from vmm_iova.kernel.handle import IOMMUFD_MAP_HINTS
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
from vmm_iova.kernel.syscalls import Kernel, LockBudget, UserBuffer, is_direct
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, Hva, Iova, MappableRanges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmm_iova.host.facts import SpaceKind
    from vmm_iova.kernel.book import Mappable, Spot
    from vmm_iova.kernel.iommufd import Iommufd, VfioCdev

_FILE_NAME, _COPY_NAME = "IOMMU_IOAS_MAP_FILE", "IOMMU_IOAS_COPY"
_UNMAP = struct.Struct("=IIQQ")
_ADDRESS = struct.Struct("=Q")


@calls_in_c
class Ioas(Calls):
    """One I/O address space of an iommufd with its devices and mappings: an `AddressSpace`.

    Its ranges are final only after ALL devices are attached: each adds what it reserves, and a
    fresh one says "everything, alignment 1", which means nothing.

    Attributes:
        allowed: the list that `allow` gave last.

    Args:
        iommufd: the file; closed with this object if `owns` is true.
        owns: whether to close the file.

    Synchronization: external.
    """

    kind: SpaceKind = "iommufd"
    _map_name, _map_hints = "IOMMU_IOAS_MAP", IOMMUFD_MAP_HINTS
    _unmap_name = "IOMMU_IOAS_UNMAP"

    def __init__(self, iommufd: Iommufd, *, owns: bool = False) -> None:
        self.iommufd = iommufd
        self.live = LiveMappings()
        self.devices: dict[str, VfioCdev] = {}
        self._dirty = DirtyTables(iommufd)
        self._owns = owns
        self.allowed: tuple[AddrRange, ...] = ()
        self._place = "{}:{}".format(*caller())
        self._ioas_id = 0
        self._ioas_id = iommufd.alloc_ioas()
        if is_direct(iommufd.kernel):
            self._ask_directly(self.live.book, iommufd._fds, abi.IOAS_MAP, abi.IOAS_UNMAP, True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_ioas_id", 0) and not self.iommufd.closed:
            self.live.warn_if_any(f"the IOAS made at {self._place}", self)
            with contextlib.suppress(DmaError):
                self.close()

    def __repr__(self) -> str:
        return f"<Ioas {self._ioas_id}, {len(self.devices)} devices, {len(self.live)} mappings>"

    @property
    def id(self) -> int:
        """Number of the object in its file.

        Raises:
            ClosedError: it is closed.
        """
        if not self._ioas_id:
            raise ClosedError(f"the IOAS made at {self._place} is closed")
        return self._ioas_id

    @property
    def kernel(self) -> Kernel:
        """Where the calls go."""
        return self.iommufd.kernel

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._ioas_id

    def attach(self, name: str, device: VfioCdev, *, dirty: bool = False) -> SpaceFacts:
        """Attach a bound device; this object closes it. The ranges are read anew.

        Args:
            name: its BDF.
            device: after `VfioCdev.bind`.
            dirty: attach it through a page table that can track written pages.

        Raises:
            DmaError: as `VfioCdev.attach`; `EOPNOTSUPP` the IOMMU cannot track; `EBUSY` a device of
                that name is attached. Nothing changed.
        """
        if name in self.devices:
            step = "VFIO_DEVICE_ATTACH_IOMMUFD_PT"
            raise DmaError(f"{name} is attached already", errno=errno.EBUSY, ioctl=step)
        table = self.iommufd.alloc_hwpt(device.device_id, self.id, dirty=True) if dirty else None
        try:
            if table is not None:
                self._dirty.by_device[name] = table
            device.attach(self.id if table is None else table)
            self.devices[name] = device
            return self.facts()
        except BaseException:
            self.devices.pop(name, None)
            with contextlib.suppress(DmaError):
                device.detach()
            with contextlib.suppress(DmaError):
                self._dirty.drop(name)
            raise

    def detach(self, name: str) -> SpaceFacts:
        """Detach and close a device; ranges may become wider.

        Raises:
            UnknownNameError: it is not attached.
            DmaError: the kernel refused.
        """
        device = self._device(name)
        try:
            device.detach()
            self._forget(name, device)
        except DmaError:
            raise
        except BaseException:
            # An interrupt: it is brought to its end; closing a device detaches it, too.
            self._forget(name, device)
            raise
        return self.facts()

    def _forget(self, name: str, device: VfioCdev) -> None:
        device.close()
        self.devices.pop(name, None)
        self._dirty.drop(name)

    def _device(self, name: str) -> VfioCdev:
        if name not in self.devices:
            _ = self.id  # a closed address space says so
            raise UnknownNameError(
                f"device {name} is not attached; {', '.join(sorted(self.devices)) or 'none'} is",
                kind="device",
                name=name,
                known=sorted(self.devices),
            )
        return self.devices[name]

    @property
    def open_devices(self) -> tuple[str, ...]:
        """BDFs of the attached devices, in the order of attachment."""
        return tuple(self.devices)

    def device_fd(self, bdf: str) -> int:
        """Return the descriptor of an attached device.

        Raises:
            UnknownNameError: it is not attached.
            ClosedError: this address space is closed.
        """
        return self._device(bdf).fd

    def device(self, bdf: str) -> Device:
        """Return a device with its registers and interrupts; raises as `device_fd`, and DmaError.

        It is as open as this is.
        """
        windows = self._device(bdf).windows
        return Device(self.kernel, windows, lambda: self.device_fd(bdf), bdf)

    def ranges(self) -> tuple[MappableRanges, int]:
        """Return where mappings may lie now, and the alignment in bytes.

        Raises:
            CapabilityError: it never fits, or contradicts itself.
            DmaError: the kernel refused.
        """
        return self.iommufd.ranges(self.id)

    def facts(self) -> SpaceFacts:
        """Ask the kernel for ranges and alignment; final only when every device is attached."""
        ranges, alignment = self.ranges()
        return SpaceFacts(
            ranges, alignment, 0, None, "IOMMU_IOAS_IOVA_RANGES", final=bool(self.devices)
        )

    def allow(self, ranges: Iterable[AddrRange]) -> None:
        """Replace the list of places for automatic placement; none clears it.

        It also guards them: an attach that would reserve one of them fails. Fixed mappings outside
        are still accepted.

        Raises:
            DmaError: `EADDRINUSE` one touches a reserved part; `EINVAL` they overlap, or one is a
                single byte.
        """
        items = list(ranges)
        room = UserBuffer(max(len(items), 1) * abi.IOVA_RANGE_ITEM.size)
        room.write(b"".join(abi.IOVA_RANGE_ITEM.codec.pack(i.start, i.last) for i in items))
        arg = abi.ALLOW_ARG.pack(
            size=abi.ALLOW_ARG.size,
            ioas_id=self.id,
            num_iovas=len(items),
            allowed_iovas=room.address,
        )
        before = self.allowed
        self.allowed = tuple(items)
        try:
            self.iommufd.call("IOMMU_IOAS_ALLOW_IOVAS", abi.IOAS_ALLOW_IOVAS, arg)
        except DmaError:
            self.allowed = before
            raise

    def map(
        self, iova: Iova, hva: Hva, size: int, *, read: bool = True, write: bool = True
    ) -> None:
        """Map memory of this process at a fixed place. All, or nothing.

        Without an attached device nothing is pinned yet, and the want of memory shows at attach.

        Args:
            iova: first address, a multiple of the alignment.
            hva: address of the memory; its place in a page must be so aligned, too.
            size: bytes, likewise.
            read: the device may read.
            write: the device may write.

        Raises:
            DmaError: `EINVAL` not aligned or touches a reserved part (said before an overlap is);
                `EEXIST` overlaps a mapping; `EOVERFLOW` beyond 2^64; `ENOMEM` locked memory;
                `EFAULT` no memory there, or a BAR.

        Source: iommufd_ioas_map, iopt_alloc_area_pages (Linux 7.3).
        """
        self._placed(True, hva, size, iova, read, write)

    def map_many(self, pieces: Sequence[Mappable]) -> tuple[int, DmaError | None]:
        """Map many at fixed places in one entry to C, in the order given, until one is refused.

        Args:
            pieces: what; each as the arguments of `map`.

        Returns:
            How many are mapped, and the error of the next, or None when all are.

        Complexity: one ioctl a piece; the interpreter's lock is released for all of them together.
        """
        place = spot()
        try:
            records = pack_ioas(pieces, self.id)
            done, number = self.iommufd.call_many(abi.IOAS_MAP, records, IOAS_MAP.size)
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

    def map_anywhere(self, hva: Hva, size: int, *, read: bool = True, write: bool = True) -> Iova:
        """Map memory where the kernel finds room; return the IOVA. Address 0 is never chosen.

        Raises:
            DmaError: `ENOSPC` no room, else as `map`.

        Source: iopt_alloc_iova (Linux 7.3).
        """
        return self._placed(False, hva, size, Iova(0), read, write)

    def _placed(
        self, fixed: bool, hva: Hva, size: int, iova: Iova, read: bool, write: bool
    ) -> Iova:
        flags = ioas_flags(fixed, read, write)
        place = spot(3)
        try:
            arg = bytearray(IOAS_MAP.pack(40, flags, self.id, 0, hva, size, iova))
        except struct.error as exc:
            raise no_number(iova=iova, hva=hva, size=size) from exc
        try:
            self.iommufd.ioctl(abi.IOAS_MAP, arg)
            placed: Iova = IOAS_MAP.unpack_from(arg)[6]
            self.live.book.put(placed, size, hva, read, write, place)
        except OSError as exc:
            where = iova if fixed else None
            raise self._map_refused(where, hva, size, exc.errno or 0) from exc
        except BaseException:
            self._undo(fixed, IOAS_MAP.unpack_from(arg)[6], size, hva, place)
            raise
        return placed

    def _undo(self, fixed: bool, placed: Iova, size: int, hva: Hva, place: Spot) -> None:
        """Take back what an interrupted call may have mapped."""
        # Where the kernel was to choose and has not, there still is the 0 that it never chooses.
        if fixed or placed:
            undo_doubtful(self, [Doubtful(placed, hva, size, True, True)], place)

    def map_file(
        self, fd: int, offset: int, size: int, iova: Iova | None = None, *, write: bool = True
    ) -> Iova:
        """Map a part of a memfd or of a VFIO dma-buf, without an address in this process (6.13).

        Args:
            fd: the file.
            offset: bytes from its start.
            size: bytes.
            iova: where, or None for anywhere.
            write: the device may write.

        Returns:
            The IOVA.

        Raises:
            DmaError: `ENOTTY` an older kernel, `EBADF` no file, `EINVAL` not such a file, else as
                `map`.
        """
        arg = abi.MAP_FILE_ARG.pack(
            size=abi.MAP_FILE_ARG.size,
            flags=ioas_flags(iova is not None, True, write),
            ioas_id=self.id,
            fd=fd,
            start=offset,
            length=size,
            iova=iova or 0,
        )
        return self._noted(_FILE_NAME, arg, iova, size, Hva(offset), write)

    def copy_from(
        self, source: Ioas, source_iova: Iova, size: int, iova: Iova | None = None
    ) -> Iova:
        """Map here what another IOAS of the same file has mapped; the pins are shared.

        Returns:
            The IOVA.

        Raises:
            DmaError: `ENOENT` a gap in the source, `EPERM` it is read-only, else as `map`.
        """
        arg = abi.COPY_ARG.pack(
            size=abi.COPY_ARG.size,
            flags=ioas_flags(iova is not None, True, True),
            dst_ioas_id=self.id,
            src_ioas_id=source.id,
            length=size,
            dst_iova=iova or 0,
            src_iova=source_iova,
        )
        return self._noted(_COPY_NAME, arg, iova, size, Hva(0), True)

    def _noted(
        self, name: str, arg: bytearray, iova: Iova | None, size: int, hva: Hva, write: bool
    ) -> Iova:
        """Make a call that maps and answers where, and note it."""
        request = abi.IOAS_COPY if name == _COPY_NAME else abi.IOAS_MAP_FILE
        at = abi.COMMANDS[request].offsets["dst_iova" if request == abi.IOAS_COPY else "iova"][0]
        place = spot(3)
        try:
            self.iommufd.call(name, request, arg, hints=IOMMUFD_MAP_HINTS, iova=iova, length=size)
            placed: Iova = _ADDRESS.unpack_from(arg, at)[0]
            self.live.book.put(placed, size, hva, True, write, place)
        except DmaError:
            raise
        except BaseException:
            self._undo(iova is not None, _ADDRESS.unpack_from(arg, at)[0], size, hva, place)
            raise
        return placed

    def unmap(self, iova: Iova, size: int) -> int:
        """Unmap exactly one mapping and verify what the kernel removed.

        Returns:
            Bytes unmapped: `size`.

        Raises:
            NotAllocatedError: `size` bytes at `iova` are not one mapping; nothing was done.
            DmaError: `ENOENT`, `EBUSY`.
            PartialUnmapError: it removed another number of bytes.
        """
        return self._whole(iova, size, unmap_exactly(self, iova, size))

    def unmap_range(self, iova: Iova, size: int) -> int:
        """Make the bare ioctl, without the book of live mappings; return the bytes it removed.

        Not atomic: when the upper end cuts a mapping, those below may be gone.
        """
        try:
            arg = bytearray(_UNMAP.pack(24, self.id, iova, size))
            self.iommufd.ioctl(abi.IOAS_UNMAP, arg)
        except struct.error as exc:
            raise no_number(iova=iova, size=size) from exc
        except OSError as exc:
            raise self._unmap_refused(iova, size, exc.errno or 0) from exc
        return int(_UNMAP.unpack_from(arg)[3])

    def unmap_all(self) -> int:
        """Unmap everything, also what this object does not know of; return the bytes."""
        return empty(self, lambda: self.unmap_range(Iova(0), ADDRESS_LAST))

    def start_dirty(self) -> None:
        """Begin to track written pages of devices attached with `dirty=True`.

        Raises:
            DmaError: `EINVAL` a device is attached without, `EOPNOTSUPP` none is attached with it,
                or the kernel refused; nothing tracks.
        """
        self._dirty.check(self.devices)
        self._dirty.start()

    def stop_dirty(self) -> None:
        """End tracking."""
        self._dirty.stop()

    def read_dirty(self, iova: Iova, size: int) -> bytes:
        """Return the bitmap of pages that any device wrote since the last reading.

        Args:
            iova: start of one mapping or of several whole ones.
            size: bytes.

        Returns:
            One bit a granule, the lowest first, in whole 64-bit words.

        Raises:
            DmaError: `EINVAL` tracking is off, or a device writes unseen.
        """
        self._dirty.check(self.devices)
        return self._dirty.read(iova, size, self.facts().granule)

    def lock_budget(self) -> LockBudget:
        """Return how much memory this process may lock; iommufd counts by user, unlike type1."""
        return self.iommufd.lock_budget()

    def close(self) -> None:
        """Close devices, then mappings, the IOAS and, if it is owned, the file. Idempotent."""
        if self.closed:
            return
        # Devices first: closing one stops its DMA, so that no unmapped memory is written to.
        for name in list(self.devices):
            self.devices.pop(name).close()
        try:
            # With the file go all its objects.
            if not self._owns and not self.iommufd.closed:
                for name in list(self._dirty.by_device):
                    self._dirty.drop(name)
                self.unmap_all()
                self.iommufd.destroy(self.id)
        except DmaError:
            self._ioas_id = 0
            raise
        if self._owns:
            self.iommufd.close()
        self._dirty.by_device.clear()
        self.live.clear()
        self._ioas_id = 0
