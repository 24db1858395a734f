# SPDX-License-Identifier: Apache-2.0
"""iommufd: the file, its objects, and the device files bound to it. Address spaces: `ioas`.

Source of what is said here: drivers/iommu/iommufd/{main,ioas,io_pagetable,device,hw_pagetable}.c
and drivers/vfio/{device_cdev,iommufd}.c of Linux 6.2 to 7.3.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.errors import CapabilityError, DmaError
from vmm_iova.kernel import caps, uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.kernel.handle import Handle
from vmm_iova.kernel.syscalls import LINUX, Kernel, UserBuffer
from vmm_iova.kernel.windows import Windows
from vmm_iova.record import record

if TYPE_CHECKING:
    from vmm_iova.ranges import Iova, MappableRanges


class Iommufd(Handle):
    """The file behind every IOAS; objects of one file can share, those of two cannot.

    Args:
        kernel: where the calls go.
        path: the node.

    Raises:
        DmaError: `ENOENT` a kernel without iommufd (before 6.2, or not configured), `EACCES`.

    Synchronization: external.
    """

    def __init__(self, kernel: Kernel = LINUX, *, path: str = "/dev/iommu") -> None:
        super().__init__(kernel, path, "iommufd", say.LOAD_IOMMUFD)

    def alloc_ioas(self) -> int:
        """Make an address space; return its id."""
        arg = abi.IOAS_ALLOC_ARG.pack(size=abi.IOAS_ALLOC_ARG.size)
        return self._alloc("IOMMU_IOAS_ALLOC", abi.IOAS_ALLOC, arg, "out_ioas_id")

    def _alloc(
        self,
        name: str,
        request: int,
        arg: bytearray,
        out: str,
        hints: dict[int, str] | None = None,
    ) -> int:
        """Make an object; after an interrupt there is none."""
        record = abi.COMMANDS[request]
        try:
            self.call(name, request, arg, hints=hints)
            return record.read(arg)[out]
        except DmaError:
            raise
        except BaseException:
            number = record.read(arg)[out]
            if number:
                self.destroy(number)
            raise

    def destroy(self, object_id: int) -> None:
        """Destroy an object.

        Raises:
            DmaError: `ENOENT` no such object, `EBUSY` in use.
        """
        arg = abi.DESTROY_ARG.pack(size=abi.DESTROY_ARG.size, id=object_id)
        self.call("IOMMU_DESTROY", abi.DESTROY, arg, message=f"object {object_id} stays")

    def get_option(self, option: int, object_id: int = 0) -> int:
        """Return an option's value.

        Raises:
            DmaError: `EOPNOTSUPP` unknown option, or an object where there is to be none.
        """
        arg = abi.OPTION_ARG.pack(
            size=abi.OPTION_ARG.size,
            option_id=option,
            op=abi.OPTION_OP_GET,
            object_id=object_id,
        )
        self.call("IOMMU_OPTION", abi.OPTION, arg)
        return abi.OPTION_ARG.read(arg)["val64"]

    def set_option(self, option: int, value: int, object_id: int = 0) -> None:
        """Set an option.

        Raises:
            DmaError: `EOPNOTSUPP` unknown option; `EINVAL` wrong value, or domains have mappings;
                `EPERM` and `EBUSY` for RLIMIT_MODE; `EADDRINUSE` mappings are not aligned for it.
        """
        arg = abi.OPTION_ARG.pack(
            size=abi.OPTION_ARG.size,
            option_id=option,
            op=abi.OPTION_OP_SET,
            object_id=object_id,
            val64=value,
        )
        self.call("IOMMU_OPTION", abi.OPTION, arg)

    def set_compat_ioas(self, ioas_id: int) -> None:
        """Choose the IOAS that VFIO's container ioctls on this file act on.

        Raises:
            DmaError: `ENOENT` no such IOAS.
        """
        arg = abi.VFIO_IOAS_ARG.pack(
            size=abi.VFIO_IOAS_ARG.size, ioas_id=ioas_id, op=abi.VFIO_IOAS_SET
        )
        self.call("IOMMU_VFIO_IOAS", abi.VFIO_IOAS, arg)

    def alloc_hwpt(self, device_id: int, ioas_id: int, *, dirty: bool = False) -> int:
        """Make a hardware page table for a device on an IOAS; return its id.

        Args:
            device_id: from `VfioCdev.bind`.
            ioas_id: from `alloc_ioas`.
            dirty: with tracking of written pages (6.7).

        Raises:
            DmaError: `EOPNOTSUPP` the IOMMU cannot track; `ENOTTY` before 6.6; `EADDRINUSE` a
                mapping lies outside of the device's aperture.
        """
        flags = abi.HWPT_ALLOC_DIRTY_TRACKING if dirty else 0
        arg = abi.HWPT_ALLOC_ARG.pack(
            size=abi.HWPT_ALLOC_ARG.size, flags=flags, dev_id=device_id, pt_id=ioas_id
        )
        hints = {errno.EOPNOTSUPP: "this IOMMU does not track written pages"}
        return self._alloc("IOMMU_HWPT_ALLOC", abi.HWPT_ALLOC, arg, "out_hwpt_id", hints)

    def ranges(self, ioas_id: int) -> tuple[MappableRanges, int]:
        """Return where mappings of an IOAS may lie now, and the alignment in bytes.

        Asks with no room first; the list can grow between two calls, so it is asked until it fits.

        Raises:
            CapabilityError: it never fits, or contradicts itself.
            DmaError: the kernel refused.

        Source: iommufd_ioas_iova_ranges (Linux 6.2 to 7.3).
        """
        record, count = abi.RANGES_ARG, 0
        for _ in range(uapi.GROW_LIMIT):
            room = UserBuffer(max(count, 1) * abi.IOVA_RANGE_ITEM.size)
            arg = record.pack(
                size=record.size,
                ioas_id=ioas_id,
                num_iovas=count,
                allowed_iovas=room.address if count else 0,
            )
            try:
                self.call("IOMMU_IOAS_IOVA_RANGES", abi.IOAS_IOVA_RANGES, arg)
            except DmaError as exc:
                if exc.errno != errno.EMSGSIZE:
                    raise
                count = record.read(arg)["num_iovas"]
                continue
            answer = record.read(arg)
            used = room.content()[: answer["num_iovas"] * abi.IOVA_RANGE_ITEM.size]
            pairs = sorted(abi.IOVA_RANGE_ITEM.codec.iter_unpack(used))
            return caps.checked_ranges(pairs), answer["out_iova_alignment"]
        raise CapabilityError("the list of IOVA ranges keeps growing", offset=0)

    def hw_info(self, device_id: int) -> HardwareInfo:
        """Ask what the IOMMU of a device is; for diagnostics, ranges are the authority.

        Raises:
            DmaError: `ENOTTY` before 6.6, `ENOENT` no such device.
        """
        data = b""
        for _ in range(uapi.GROW_LIMIT):
            room = UserBuffer(max(len(data), 1))
            arg = abi.HW_INFO_ARG.pack(
                size=abi.HW_INFO_ARG.size,
                dev_id=device_id,
                data_len=len(data),
                data_uptr=room.address if data else 0,
            )
            self.call("IOMMU_GET_HW_INFO", abi.GET_HW_INFO, arg)
            answer = abi.HW_INFO_ARG.read(arg)
            if answer["data_len"] <= len(data):
                kept = room.content()[: answer["data_len"]]
                return HardwareInfo(
                    answer["out_data_type"],
                    kept,
                    answer["out_capabilities"],
                    answer["out_max_pasid_log2"],
                )
            data = bytes(answer["data_len"])
        raise CapabilityError("the answer to IOMMU_GET_HW_INFO keeps growing", offset=0)

    def set_dirty(self, hwpt_id: int, *, enable: bool) -> None:
        """Begin or end tracking of written pages (6.7).

        Raises:
            DmaError: `ENOENT` no such page table, `EOPNOTSUPP` not made for tracking.
        """
        arg = abi.SET_DIRTY_ARG.pack(
            size=abi.SET_DIRTY_ARG.size,
            hwpt_id=hwpt_id,
            flags=abi.DIRTY_TRACKING_ENABLE if enable else 0,
        )
        self.call("IOMMU_HWPT_SET_DIRTY_TRACKING", abi.HWPT_SET_DIRTY_TRACKING, arg)

    def read_dirty(
        self, hwpt_id: int, iova: Iova, size: int, page: int, *, clear: bool = True
    ) -> bytes:
        """Return the bitmap of written pages: one bit a `page`, lowest first, in 64-bit words.

        Raises:
            DmaError: `EINVAL` tracking is off or not aligned, `ENOENT` no such page table.
        """
        bitmap = UserBuffer(max(-(-size // page // 64), 1) * 8)
        arg = abi.GET_DIRTY_ARG.pack(
            size=abi.GET_DIRTY_ARG.size,
            hwpt_id=hwpt_id,
            flags=0 if clear else abi.DIRTY_NO_CLEAR,
            iova=iova,
            length=size,
            page_size=page,
            data=bitmap.address,
        )
        self.call(
            "IOMMU_HWPT_GET_DIRTY_BITMAP",
            abi.HWPT_GET_DIRTY_BITMAP,
            arg,
            iova=iova,
            length=size,
        )
        return bitmap.content()


@record
class HardwareInfo:
    """What the IOMMU of a device is.

    Attributes:
        type: `uapi_iommufd.HW_INFO_*`.
        data: registers, by type.
        capabilities: bit 0 is tracking of written pages (6.7).
        pasid_bits: bits of a PASID that the device may use (6.15); 0 if none.
    """

    type: int
    data: bytes
    capabilities: int
    pasid_bits: int = 0

    def registers(self) -> dict[str, int]:
        """Return the registers by name; empty for a type that is not known, or a short answer."""
        record = _INFO.get(self.type)
        if record is None or len(self.data) < record.size:
            return {}
        fields = record.read(bytearray(self.data[: record.size]))
        return {
            name.removesuffix("_reg"): value
            for name, value in fields.items()
            if name not in ("flags", "_reserved")
        }

    @property
    def tracks_dirty(self) -> bool:
        """Whether the IOMMU can tell written pages."""
        return bool(self.capabilities & abi.HW_CAP_DIRTY_TRACKING)


_INFO = {
    abi.HW_INFO_INTEL_VTD: abi.VTD_INFO,
    abi.HW_INFO_ARM_SMMUV3: abi.SMMU_INFO,
    abi.HW_INFO_AMD: abi.AMD_INFO,
}


class VfioCdev(Handle):
    """A device file of its own (6.6), bound to an iommufd and attached to an address space.

    Args:
        kernel: where the calls go.
        path: /dev/vfio/devices/vfioX.

    Raises:
        DmaError: the node cannot be opened.

    Synchronization: external.
    """

    def __init__(self, kernel: Kernel, path: str) -> None:
        # Before the node is open: whatever interrupts the opening, `close` finds it all.
        self.device_id = 0
        self.pt_id = 0
        self.windows = Windows(kernel)
        super().__init__(kernel, path, "device", say.BIND_AND_GIVE)

    def close(self) -> None:
        """Close the device and its mapped registers. Idempotent."""
        self.windows.close()
        super().close()

    def bind(self, iommufd: Iommufd) -> int:
        """Claim the device; return its id in the iommufd.

        Raises:
            DmaError: `EPERM` no interrupt remapping; `EBUSY` its group is open; `EINVAL` bound
                already, not cache-coherent, or a `direct` region.
        """
        arg = uapi.BIND.pack(argsz=uapi.BIND.minimum, iommufd=iommufd.fd)
        self.call("VFIO_DEVICE_BIND_IOMMUFD", uapi.DEVICE_BIND_IOMMUFD, arg, hints=_BIND_HINTS)
        self.device_id = uapi.BIND.read(arg)["out_devid"]
        return self.device_id

    def attach(self, pt_id: int) -> int:
        """Attach to an IOAS or a page table; return the id of the page table. Replaces.

        Raises:
            DmaError: `ENOENT` no such object; `EADDRINUSE` a mapping or an allowed range touches
                what this device reserves; `EINVAL`.
        """
        size = uapi.ATTACH.minimum
        arg = uapi.ATTACH.pack(argsz=size, pt_id=pt_id)
        self.call(
            "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
            uapi.DEVICE_ATTACH_IOMMUFD_PT,
            arg,
            hints={errno.EADDRINUSE: say.REHEARSE},
        )
        self.pt_id = uapi.ATTACH.read(arg)["pt_id"]
        return self.pt_id

    def detach(self) -> None:
        """Detach; nothing happens when it is not attached."""
        arg = uapi.DETACH.pack(argsz=uapi.DETACH.minimum)
        self.call("VFIO_DEVICE_DETACH_IOMMUFD_PT", uapi.DEVICE_DETACH_IOMMUFD_PT, arg)
        self.pt_id = 0


_BIND_HINTS: dict[int, str] = {
    errno.EPERM: say.REMAP_OR_UNSAFE.format(module="iommufd"),
    errno.EBUSY: say.IS_OPEN,
    errno.EINVAL: say.BOUND_ALREADY,
}
