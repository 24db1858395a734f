# SPDX-License-Identifier: Apache-2.0
"""VFIO's container ioctls on a simulated iommufd.

Source: drivers/iommu/iommufd/vfio_compat.c of Linux 6.2 to 7.3. What differs from the native
container: partial chains, an `argsz` that is always exact, ENOENT where that says EINVAL.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from vmm_iova.kernel import uapi
from vmm_iova.ranges import ADDRESS_LAST
from vmm_iova.simulated.ioas import SimIoas
from vmm_iova.simulated.model import refuse
from vmm_iova.simulated.type1 import link

if TYPE_CHECKING:
    from vmm_iova.simulated.model import SimMemory, SimSettings
    from vmm_iova.simulated.objects import SimObjects


class SimCompat:
    """The part of an iommufd that speaks VFIO.

    Attributes:
        ioas: what the container's calls act on, or None.
    """

    def __init__(self, settings: SimSettings, memory: SimMemory, objects: SimObjects) -> None:
        self.ioas: SimIoas | None = None
        self._settings = settings
        self._memory = memory
        self._objects = objects

    def create(self) -> None:
        """iommufd_vfio_compat_ioas_create: the first group brings an IOAS along."""
        if self.ioas is None:
            self.ioas = SimIoas(self._settings, self._memory)
            self._objects.add(self.ioas)

    def id(self) -> int:
        """Return the id of the IOAS for container calls."""
        return self._objects.id_of(self._chosen())

    def ioctl(self, request: int, arg: int | bytes | bytearray) -> int:
        """Answer a container's call."""
        if request == uapi.GET_API_VERSION:
            return 0
        if request == uapi.CHECK_EXTENSION:
            yes = (uapi.TYPE1_IOMMU, uapi.TYPE1_V2_IOMMU, uapi.EXT_UNMAP_ALL)
            return int(arg in yes or (arg == uapi.DMA_CC_IOMMU and self.ioas is not None))
        handler = {
            uapi.IOMMU_GET_INFO: self._info,
            uapi.IOMMU_MAP_DMA: self._map,
            uapi.IOMMU_UNMAP_DMA: self._unmap,
        }.get(request)
        if request == uapi.SET_IOMMU:
            ioas = self._chosen()
            if arg not in (uapi.TYPE1_IOMMU, uapi.TYPE1_V2_IOMMU):
                raise refuse(errno.EINVAL)
            if arg == uapi.TYPE1_IOMMU:
                ioas.set_huge_pages(on=False)
            return 0
        if handler is None:
            raise refuse(errno.ENOTTY)
        if not isinstance(arg, bytearray):
            raise refuse(errno.EFAULT)
        return handler(arg)

    def _chosen(self) -> SimIoas:
        if self.ioas is None:
            raise refuse(errno.ENODEV)
        return self.ioas

    def _info(self, arg: bytearray) -> int:
        argsz = struct.unpack_from("=I", arg)[0]
        if argsz < uapi.TYPE1_INFO.minimum:
            raise refuse(errno.EINVAL)
        ioas = self._chosen()
        holes = ioas.holes()
        head = uapi.IOVA_RANGE_HEAD.codec.pack(1, 1, 0, len(holes), 0)
        body = b"".join(uapi.IOVA_RANGE.codec.pack(h.start, h.last) for h in holes)
        avail = uapi.DMA_AVAIL.codec.pack(3, 1, 0, 0xFFFF_FFFF)
        chain = link([avail, head + body], aligned=self._settings.release >= (6, 6))
        total = 24 + len(chain)
        if argsz >= total:
            arg[24:total] = chain
        sizes = -self._memory.page & ADDRESS_LAST
        for table in ioas.domains:
            sizes &= table.group.page_sizes
        offset = 24 if argsz >= total else 0
        flags = uapi.INFO_PGSIZES | uapi.INFO_CAPS
        packed = struct.pack("=IIQII", total, flags, sizes, offset, 0)
        shown = min(argsz, 24)
        arg[:shown] = packed[:shown]
        return 0

    def _map(self, arg: bytearray) -> int:
        argsz, flags, hva, iova, size = uapi.DMA_MAP.codec.unpack_from(arg)
        if argsz < 32 or flags & ~(uapi.MAP_READ | uapi.MAP_WRITE):
            raise refuse(errno.EINVAL)
        read, write = bool(flags & uapi.MAP_READ), bool(flags & uapi.MAP_WRITE)
        self._chosen().map(hva, size, iova, read=read, write=write)
        return 0

    def _unmap(self, arg: bytearray) -> int:
        argsz, flags, iova, size = uapi.DMA_UNMAP.codec.unpack_from(arg)
        if argsz < 24 or flags & ~uapi.UNMAP_ALL:
            raise refuse(errno.EINVAL)
        ioas = self._chosen()
        if flags:
            if iova or size:
                raise refuse(errno.EINVAL)
            total = ioas.unmap(0, ADDRESS_LAST)
        else:
            total = ioas.unmap_sized(iova, size)
            if not total and self._settings.release < (6, 18):
                raise refuse(errno.ENOENT)
        struct.pack_into("=Q", arg, 16, total)
        return 0
