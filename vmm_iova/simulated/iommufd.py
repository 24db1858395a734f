# SPDX-License-Identifier: Apache-2.0
"""An iommufd in memory: objects and commands, with the checks of the real one in its order.

Source: drivers/iommu/iommufd/{main,ioas,hw_pagetable,device}.c of Linux 6.2 to 7.3.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import TYPE_CHECKING

from vmm_iova.kernel import uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.ranges import ADDRESS_LAST
from vmm_iova.simulated.compat import SimCompat
from vmm_iova.simulated.ioas import SimHwpt, SimIoas
from vmm_iova.simulated.model import refuse
from vmm_iova.simulated.objects import SimDevice, SimObjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_iova.simulated.model import SimMemory, SimSettings

_RIGHTS = abi.MAP_WRITEABLE | abi.MAP_READABLE


class SimIommufd:
    """What is behind a descriptor of /dev/iommu.

    Attributes:
        objects: IOASes, page tables and bound devices.
        compat: what answers a container's calls.
        per_process: whether locked memory is accounted to the process.
    """

    def __init__(self, settings: SimSettings, memory: SimMemory) -> None:
        self._settings = settings
        self._memory = memory
        self.objects = SimObjects()
        self.compat = SimCompat(settings, memory, self.objects)
        self.per_process = False
        self._handlers: dict[int, Callable[[bytearray], int]] = {
            abi.DESTROY: self._destroy,
            abi.IOAS_ALLOC: self._ioas_alloc,
            abi.IOAS_ALLOW_IOVAS: self._allow,
            abi.IOAS_COPY: self._copy,
            abi.IOAS_IOVA_RANGES: self._ranges,
            abi.IOAS_MAP: self._map,
            abi.IOAS_UNMAP: self._unmap,
            abi.OPTION: self._option,
            abi.VFIO_IOAS: self._vfio_ioas,
            abi.HWPT_ALLOC: self._hwpt_alloc,
            abi.GET_HW_INFO: self._hw_info,
            abi.HWPT_SET_DIRTY_TRACKING: self._set_dirty,
            abi.HWPT_GET_DIRTY_BITMAP: self._get_dirty,
            abi.IOAS_MAP_FILE: self._map_file,
            abi.IOAS_CHANGE_PROCESS: self._change_process,
        }
        since = {abi.HWPT_ALLOC: (6, 6), abi.GET_HW_INFO: (6, 6)}
        since |= {abi.HWPT_SET_DIRTY_TRACKING: (6, 7), abi.HWPT_GET_DIRTY_BITMAP: (6, 7)}
        since |= {abi.IOAS_MAP_FILE: (6, 13), abi.IOAS_CHANGE_PROCESS: (6, 13)}
        for number, release in since.items():
            if settings.release < release:
                del self._handlers[number]

    def __repr__(self) -> str:
        return f"iommufd {self.objects!r}"

    def release_all(self) -> None:
        """Free everything, as the last close does."""
        for space in self.objects.address_spaces():
            space.clear()
        self.objects.clear()
        self.compat.ioas = None

    def ioctl(self, request: int, arg: int | bytes | bytearray) -> int:
        """Answer a call: size, then flags and reserved fields, then objects, then the rest."""
        handler = self._handlers.get(request)
        if handler is None:
            if request in range(uapi.GET_API_VERSION, uapi.IOMMU_DIRTY_PAGES):
                return self.compat.ioctl(request, arg)
            raise refuse(errno.ENOTTY)
        if not isinstance(arg, bytearray):
            raise refuse(errno.EFAULT)
        record = abi.COMMANDS[request]
        size = struct.unpack_from("=I", arg)[0]
        if size < record.minimum:
            raise refuse(errno.EINVAL)
        if size > record.size and any(arg[record.size : size]):
            raise refuse(errno.E2BIG)
        whole = bytearray(record.size)
        shown = min(size, record.size)
        whole[:shown] = arg[:shown]
        try:
            return handler(whole)
        finally:
            # Some commands answer although they refuse (IOVA_RANGES with EMSGSIZE).
            arg[:shown] = whole[:shown]

    def _destroy(self, arg: bytearray) -> int:
        number = struct.unpack_from("=I", arg, 4)[0]
        item = self.objects.get(number)
        if item is None:
            raise refuse(errno.ENOENT)
        if isinstance(item, SimDevice):
            raise refuse(errno.EBUSY)
        if isinstance(item, SimHwpt):
            if item.users or item.auto:
                raise refuse(errno.EBUSY)
            item.ioas.remove_domain(item)
        else:
            if item.domains:
                raise refuse(errno.EBUSY)
            item.clear()
            if self.compat.ioas is item:
                self.compat.ioas = None
        self.objects.forget(item)
        return 0

    def _ioas_alloc(self, arg: bytearray) -> int:
        if struct.unpack_from("=I", arg, 4)[0]:
            raise refuse(errno.EOPNOTSUPP)
        struct.pack_into("=I", arg, 8, self.objects.add(SimIoas(self._settings, self._memory)))
        return 0

    def _allow(self, arg: bytearray) -> int:
        _, number, count, reserved, pointer = abi.ALLOW_ARG.codec.unpack(arg)
        if reserved:
            raise refuse(errno.EOPNOTSUPP)
        ioas = self.objects.ioas(number)
        pairs = []
        if count:
            raw = ctypes.string_at(pointer, 16 * count)
            pairs = list(abi.IOVA_RANGE_ITEM.codec.iter_unpack(raw))
        ioas.allow(pairs)
        return 0

    def _ranges(self, arg: bytearray) -> int:
        _, number, room, reserved, pointer, _ = abi.RANGES_ARG.codec.unpack(arg)
        if reserved:
            raise refuse(errno.EOPNOTSUPP)
        ioas = self.objects.ioas(number)
        holes = ioas.holes()
        shown = holes[:room]
        raw = b"".join(abi.IOVA_RANGE_ITEM.codec.pack(h.start, h.last) for h in shown)
        if raw:
            ctypes.memmove(pointer, raw, len(raw))
        struct.pack_into("=I", arg, 8, len(holes))
        struct.pack_into("=Q", arg, 24, ioas.alignment)
        if len(holes) > room:
            raise refuse(errno.EMSGSIZE)
        return 0

    def _map(self, arg: bytearray) -> int:
        _, flags, number, reserved, hva, length, iova = abi.MAP_ARG.codec.unpack(arg)
        if flags & ~(abi.MAP_FIXED_IOVA | _RIGHTS) or reserved:
            raise refuse(errno.EOPNOTSUPP)
        return self._place(arg, flags, number, hva, length, iova)

    def _map_file(self, arg: bytearray) -> int:
        _, flags, number, fd, start, length, iova = abi.MAP_FILE_ARG.codec.unpack(arg)
        if flags & ~(abi.MAP_FIXED_IOVA | _RIGHTS):
            raise refuse(errno.EOPNOTSUPP)
        if fd < 0:
            raise refuse(errno.EBADF)
        return self._place(arg, flags, number, start, length, iova, of_file=True)

    def _change_process(self, arg: bytearray) -> int:
        if struct.unpack_from("=I", arg, 4)[0]:
            raise refuse(errno.EOPNOTSUPP)
        if any(not area.of_file for space in self.objects.address_spaces() for area in space.areas):
            raise refuse(errno.EINVAL)
        return 0

    def _place(
        self,
        arg: bytearray,
        flags: int,
        number: int,
        hva: int,
        length: int,
        iova: int,
        *,
        of_file: bool = False,
    ) -> int:
        if iova >= ADDRESS_LAST or length >= ADDRESS_LAST:
            raise refuse(errno.EOVERFLOW)
        # KERNEL: a mapping without any right was accepted up to 6.8.
        if not flags & _RIGHTS and self._settings.release >= (6, 9):
            raise refuse(errno.EINVAL)
        placed = self.objects.ioas(number).map(
            hva,
            length,
            iova if flags & abi.MAP_FIXED_IOVA else None,
            read=bool(flags & abi.MAP_READABLE),
            write=bool(flags & abi.MAP_WRITEABLE),
            of_file=of_file,
        )
        struct.pack_into("=Q", arg, 32, placed)
        return 0

    def _copy(self, arg: bytearray) -> int:
        _, flags, dst, src, length, dst_iova, src_iova = abi.COPY_ARG.codec.unpack(arg)
        if flags & ~(abi.MAP_FIXED_IOVA | _RIGHTS):
            raise refuse(errno.EOPNOTSUPP)
        if max(length, dst_iova, src_iova) >= ADDRESS_LAST:
            raise refuse(errno.EOVERFLOW)
        if not flags & _RIGHTS and self._settings.release >= (6, 9):
            raise refuse(errno.EINVAL)
        parts = self.objects.ioas(src).parts_of(src_iova, length)
        placed = self.objects.ioas(dst).map_parts(
            parts,
            length,
            dst_iova if flags & abi.MAP_FIXED_IOVA else None,
            read=bool(flags & abi.MAP_READABLE),
            write=bool(flags & abi.MAP_WRITEABLE),
        )
        struct.pack_into("=Q", arg, 24, placed)
        return 0

    def _unmap(self, arg: bytearray) -> int:
        _, number, iova, length = abi.UNMAP_ARG.codec.unpack(arg)
        ioas = self.objects.ioas(number)
        if iova == 0 and length == ADDRESS_LAST:
            total = ioas.unmap(0, ADDRESS_LAST)
        else:
            if iova >= ADDRESS_LAST or length >= ADDRESS_LAST:
                raise refuse(errno.EOVERFLOW)
            total = ioas.unmap_sized(iova, length)
            if not total:
                raise refuse(errno.ENOENT)
        struct.pack_into("=Q", arg, 16, total)
        return 0

    def _option(self, arg: bytearray) -> int:
        _, option, op, reserved, number, value = abi.OPTION_ARG.codec.unpack(arg)
        if reserved or option not in (abi.OPTION_RLIMIT_MODE, abi.OPTION_HUGE_PAGES):
            raise refuse(errno.EOPNOTSUPP)
        if option == abi.OPTION_RLIMIT_MODE:
            answer = self._rlimit_mode(op, number, value)
        else:
            ioas = self.objects.ioas(number)
            if op not in (abi.OPTION_OP_GET, abi.OPTION_OP_SET):
                raise refuse(errno.EOPNOTSUPP)
            if op == abi.OPTION_OP_SET:
                if value > 1:
                    raise refuse(errno.EINVAL)
                ioas.set_huge_pages(on=bool(value))
                return 0
            answer = int(ioas.huge_pages)
        struct.pack_into("=Q", arg, 16, answer)
        return 0

    def _rlimit_mode(self, op: int, number: int, value: int) -> int:
        if number or op not in (abi.OPTION_OP_GET, abi.OPTION_OP_SET):
            raise refuse(errno.EOPNOTSUPP)
        if op == abi.OPTION_OP_SET:
            if self._memory.limit is not None:
                raise refuse(errno.EPERM)
            if self.objects:
                raise refuse(errno.EBUSY)
            if value > 1:
                raise refuse(errno.EINVAL)
            self.per_process = bool(value)
            return value
        return int(self.per_process)

    def _vfio_ioas(self, arg: bytearray) -> int:
        _, number, op, reserved = abi.VFIO_IOAS_ARG.codec.unpack(arg)
        if reserved:
            raise refuse(errno.EOPNOTSUPP)
        if op == abi.VFIO_IOAS_GET:
            struct.pack_into("=I", arg, 4, self.compat.id())
        elif op == abi.VFIO_IOAS_SET:
            self.compat.ioas = self.objects.ioas(number)
        elif op == abi.VFIO_IOAS_CLEAR:
            self.compat.ioas = None
        else:
            raise refuse(errno.EOPNOTSUPP)
        return 0

    # Devices and page tables.

    def _hwpt_alloc(self, arg: bytearray) -> int:
        fields = abi.HWPT_ALLOC_ARG.read(arg)
        known = abi.HWPT_ALLOC_NEST_PARENT | abi.HWPT_ALLOC_DIRTY_TRACKING
        if fields["_reserved"] or fields["_reserved2"]:
            raise refuse(errno.EOPNOTSUPP)
        group = self.objects.device(fields["dev_id"]).group
        ioas = self.objects.get(fields["pt_id"])
        if isinstance(ioas, SimHwpt):
            # A table on a table is nested, and that wants data of the driver.
            raise refuse(errno.EOPNOTSUPP)
        if not isinstance(ioas, SimIoas):
            raise refuse(errno.EINVAL)
        dirty = bool(fields["flags"] & abi.HWPT_ALLOC_DIRTY_TRACKING)
        if fields["flags"] & ~known or (dirty and not group.tracks_dirty):
            raise refuse(errno.EOPNOTSUPP)
        table = SimHwpt(ioas, group, auto=False, dirty=dirty)
        ioas.add_domain(table)
        struct.pack_into("=I", arg, 16, self.objects.add(table))
        return 0

    def _hw_info(self, arg: bytearray) -> int:
        fields = abi.HW_INFO_ARG.read(arg)
        if fields["flags"] or fields["_res0"] or fields["_res1"]:
            raise refuse(errno.EOPNOTSUPP)
        device = self.objects.device(fields["dev_id"])
        kind, data = device.group.hw_info
        if fields["data_len"] and fields["data_uptr"]:
            ctypes.memset(fields["data_uptr"], 0, fields["data_len"])
            kept = data[: fields["data_len"]]
            ctypes.memmove(fields["data_uptr"], kept, len(kept))
        struct.pack_into("=I", arg, 12, len(data))
        struct.pack_into("=IB", arg, 24, kind, device.group.pasid_bits)
        tracks = abi.HW_CAP_DIRTY_TRACKING if device.group.tracks_dirty else 0
        struct.pack_into("=Q", arg, 32, tracks)
        return 0

    def _set_dirty(self, arg: bytearray) -> int:
        _, flags, number, reserved = abi.SET_DIRTY_ARG.codec.unpack(arg)
        if flags & ~abi.DIRTY_TRACKING_ENABLE or reserved:
            raise refuse(errno.EOPNOTSUPP)
        table = self.objects.table(number)
        if not table.dirty:
            raise refuse(errno.EOPNOTSUPP)
        if flags and not table.tracking:
            table.written.clear()
        table.tracking = bool(flags)
        return 0

    def _get_dirty(self, arg: bytearray) -> int:
        fields = abi.GET_DIRTY_ARG.read(arg)
        if fields["flags"] & ~abi.DIRTY_NO_CLEAR or fields["_reserved"]:
            raise refuse(errno.EOPNOTSUPP)
        table = self.objects.table(fields["hwpt_id"])
        iova, length, page = fields["iova"], fields["length"], fields["page_size"]
        if not table.tracking or not page or page & (page - 1) or not length:
            raise refuse(errno.EINVAL)
        if (iova | length) & (page - 1):
            raise refuse(errno.EINVAL)
        bits = 0
        for address in [a for a in table.written if iova <= a < iova + length]:
            bits |= 1 << (address - iova) // page
            if not fields["flags"]:
                table.written.discard(address)
        room = max(-(-length // page // 64), 1) * 8
        old = uapi.read_bits(ctypes.string_at(fields["data"], room))
        ctypes.memmove(fields["data"], uapi.write_bits(bits | old, room), room)
        return 0
