# SPDX-License-Identifier: Apache-2.0
"""Numbers and structures of VFIO, as `include/uapi/linux/vfio.h` has them (Linux 3.6 to 7.3).

Structures are packed with `struct` and native byte order, because s390x is big-endian; a bad value
raises at the line that made it. VFIO's request numbers carry no size, so nothing but `argsz`
protects from a wrong structure; sizes and offsets are therefore compared with the system's own
headers by a test. iommufd's structures are in `uapi_iommufd`, capability chains in `caps`.
"""

from __future__ import annotations

import platform
import struct
import sys
from typing import TYPE_CHECKING, Literal

from vmm_iova.errors import CapabilityError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

_Order = Literal["=", "<", ">"]
_ByteOrder = Literal["little", "big"]

# ABI: _IO() of these architectures sets a "no data" bit that others leave clear
# (arch/*/include/uapi/asm/ioctl.h).
_IO_NONE = 0x2000_0000 if platform.machine().startswith(("ppc", "mips", "sparc", "alpha")) else 0


def request(number: int) -> int:
    """Return `_IO(';', number)` of this architecture."""
    return _IO_NONE | ord(";") << 8 | number


class Record:
    """A structure of the user API: how it is packed, and where each field lies.

    Args:
        name: as the header has it.
        fields: `name:code` words, codes of the `struct` module; padding begins with `_`.
        minimum: bytes that the oldest kernel knows; default all.
        order: byte order; anything but native is for tests.

    Synchronization: none required (immutable).
    """

    __slots__ = ("_codes", "codec", "fields", "minimum", "name", "offsets", "size")

    def __init__(
        self, name: str, fields: str, *, minimum: int | None = None, order: _Order = "="
    ) -> None:
        self.name = name
        pairs = [word.split(":") for word in fields.split()]
        self.fields = tuple(pair[0] for pair in pairs)
        self._codes = tuple(pair[1] for pair in pairs)
        self.codec = struct.Struct(order + "".join(self._codes))
        self.size = self.codec.size
        self.minimum = self.size if minimum is None else minimum
        self.offsets: dict[str, tuple[int, int]] = {}
        at = 0
        for field, code in zip(self.fields, self._codes, strict=True):
            width = struct.calcsize("=" + code)
            self.offsets[field] = (at, width)
            at += width

    def reordered(self, order: _Order) -> Record:
        """Return the same structure in another byte order (`<` or `>`)."""
        words = zip(self.fields, self._codes, strict=True)
        return Record(self.name, " ".join(map(":".join, words)), minimum=self.minimum, order=order)

    def pack(self, room: int | None = None, /, **values: int) -> bytearray:
        """Return the structure with `values` set and all else zero.

        Args:
            room: bytes of the buffer, at least the structure's own; the rest is zero.
            values: by field name.

        Raises:
            RequestError: a value does not fit its field, or there is no such field.
        """
        unknown = values.keys() - self.offsets.keys()
        if unknown:
            field = min(unknown)
            raise RequestError(f"{self.name} has no field {field}", field=field, value=field)
        buffer = bytearray(self.size if room is None else room)
        try:
            self.codec.pack_into(buffer, 0, *(values.get(field, 0) for field in self.fields))
        except struct.error as exc:
            for field, code in zip(self.fields, self._codes, strict=True):
                try:
                    struct.pack("=" + code, values.get(field, 0))
                except struct.error:
                    value = values[field]
                    raise RequestError(
                        f"{value!r} does not fit into {field} of {self.name}",
                        field=field,
                        value=value,
                    ) from exc
            raise
        return buffer

    def read(self, buffer: bytes | bytearray | memoryview, offset: int = 0) -> dict[str, int]:
        """Return the fields of the structure at `offset`.

        Raises:
            CapabilityError: the buffer is too short for it.
        """
        if len(buffer) - offset < self.size:
            raise CapabilityError(
                f"{self.name} of {self.size} bytes does not fit at byte {offset} of an answer of "
                f"{len(buffer)} bytes",
                offset=offset,
            )
        return dict(zip(self.fields, self.codec.unpack_from(buffer, offset), strict=True))


# ABI: include/uapi/linux/vfio.h; numbers are 100 upwards from VFIO_BASE.
GET_API_VERSION = request(100)
CHECK_EXTENSION = request(101)
SET_IOMMU = request(102)
GROUP_GET_STATUS = request(103)
GROUP_SET_CONTAINER = request(104)
GROUP_UNSET_CONTAINER = request(105)
GROUP_GET_DEVICE_FD = request(106)
DEVICE_GET_INFO = request(107)
DEVICE_GET_REGION_INFO = request(108)
DEVICE_GET_IRQ_INFO = request(109)
DEVICE_SET_IRQS = request(110)
DEVICE_RESET = request(111)
IOMMU_GET_INFO = request(112)
IOMMU_MAP_DMA = request(113)
IOMMU_UNMAP_DMA = request(114)
IOMMU_DIRTY_PAGES = request(117)
"""Linux 5.8; the same number is VFIO_DEVICE_FEATURE on a device."""
DEVICE_BIND_IOMMUFD = request(118)
"""Linux 6.6, as the two that follow."""
DEVICE_ATTACH_IOMMUFD_PT = request(119)
DEVICE_DETACH_IOMMUFD_PT = request(120)

TYPE1_IOMMU = 1
TYPE1_V2_IOMMU = 3
DMA_CC_IOMMU = 4
NESTING_IOMMU = 6
"""Withdrawn between 6.12 and 6.14."""
NOIOMMU_IOMMU = 8
EXT_UNMAP_ALL = 9
"""Linux 5.12."""
EXT_UPDATE_VADDR = 10

GROUP_VIABLE = 1
GROUP_CONTAINER_SET = 2
INFO_PGSIZES = 1
INFO_CAPS = 2
"""Linux 5.4."""
MAP_READ = 1
"""The device may read the memory."""
MAP_WRITE = 2
MAP_VADDR = 4
"""Linux 5.12."""
UNMAP_GET_DIRTY = 1
UNMAP_ALL = 2
"""Linux 5.12."""
UNMAP_VADDR = 4
DIRTY_START = 1
DIRTY_STOP = 2
DIRTY_GET = 4
DEVICE_FLAG_RESET = 1
DEVICE_FLAG_PCI = 2
DEVICE_FLAG_CAPS = 128
REGION_FLAG_READ = 1
REGION_FLAG_WRITE = 2
REGION_FLAG_MMAP = 4
REGION_FLAG_CAPS = 8
"""Linux 4.6."""
IRQ_INFO_EVENTFD = 1
IRQ_INFO_MASKABLE = 2
IRQ_INFO_AUTOMASKED = 4
IRQ_INFO_NORESIZE = 8
IRQ_DATA_NONE = 1
IRQ_DATA_BOOL = 2
IRQ_DATA_EVENTFD = 4
IRQ_MASK = 8
IRQ_UNMASK = 16
IRQ_TRIGGER = 32

CAP_IOVA_RANGE = 1
"""Linux 5.4; absent when the list is empty (a container that has mediated devices only)."""
CAP_MIGRATION = 2
"""Linux 5.8."""
CAP_DMA_AVAIL = 3
"""Linux 5.10, and 5.4.y."""
CAP_SPARSE_MMAP = 1
"""On a region; Linux 4.6. Only these areas of it can be mapped."""
CAP_MSIX_MAPPABLE = 3
"""On a region; Linux 4.16. The pages with the table of MSI-X can be mapped, too."""
CAP_ZPCI_BASE = 1
"""On a device; Linux 5.10, as the three that follow."""
CAP_ZPCI_GROUP = 2
CAP_ZPCI_UTIL = 3
CAP_ZPCI_PFIP = 4

DIRTY_BITMAP_LIMIT = 1 << 28
"""Bytes of one dirty bitmap at most (DIRTY_BITMAP_SIZE_MAX, drivers/vfio/vfio_iommu_type1.c)."""

CAP_HEADER = Record("vfio_info_cap_header", "id:H version:H next:I")
TYPE1_INFO = Record(
    "vfio_iommu_type1_info",
    "argsz:I flags:I iova_pgsizes:Q cap_offset:I _pad:I",
    minimum=16,
)
IOVA_RANGE_HEAD = Record(
    "vfio_iommu_type1_info_cap_iova_range", "id:H version:H next:I nr_iovas:I _reserved:I"
)
IOVA_RANGE = Record("vfio_iova_range", "start:Q end:Q")
MIGRATION = Record(
    "vfio_iommu_type1_info_cap_migration",
    "id:H version:H next:I flags:I _pad:I pgsize_bitmap:Q max_dirty_bitmap_size:Q",
)
DMA_AVAIL = Record("vfio_iommu_type1_info_dma_avail", "id:H version:H next:I avail:I")
DMA_MAP = Record("vfio_iommu_type1_dma_map", "argsz:I flags:I vaddr:Q iova:Q size:Q")
DMA_UNMAP = Record("vfio_iommu_type1_dma_unmap", "argsz:I flags:I iova:Q size:Q")
BITMAP = Record("vfio_bitmap", "pgsize:Q size:Q data:Q")
DIRTY = Record("vfio_iommu_type1_dirty_bitmap", "argsz:I flags:I")
DIRTY_RANGE = Record(
    "vfio_iommu_type1_dirty_bitmap_get", "iova:Q size:Q pgsize:Q bitmap_size:Q data:Q"
)
GROUP_STATUS = Record("vfio_group_status", "argsz:I flags:I")
DEVICE_INFO = Record(
    "vfio_device_info",
    "argsz:I flags:I num_regions:I num_irqs:I cap_offset:I _pad:I",
    minimum=16,
)
REGION_INFO = Record("vfio_region_info", "argsz:I flags:I index:I cap_offset:I size:Q offset:Q")
SPARSE_HEAD = Record(
    "vfio_region_info_cap_sparse_mmap", "id:H version:H next:I nr_areas:I _reserved:I"
)
SPARSE_AREA = Record("vfio_region_sparse_mmap_area", "offset:Q size:Q")
IRQ_INFO = Record("vfio_irq_info", "argsz:I flags:I index:I count:I")
IRQ_SET = Record("vfio_irq_set", "argsz:I flags:I index:I start:I count:I")
BIND = Record(
    "vfio_device_bind_iommufd",
    "argsz:I flags:I iommufd:i out_devid:I token_uuid_ptr:Q",
    minimum=16,
)
ATTACH = Record("vfio_device_attach_iommufd_pt", "argsz:I flags:I pt_id:I pasid:I", minimum=12)
DETACH = Record("vfio_device_detach_iommufd_pt", "argsz:I flags:I pasid:I", minimum=8)
ZPCI_BASE = Record(
    "vfio_device_info_cap_zpci_base",
    "id:H version:H next:I start_dma:Q end_dma:Q pchid:H vfn:H fmb_length:H pft:B gid:B",
)
ZPCI_GROUP = Record(
    "vfio_device_info_cap_zpci_group",
    "id:H version:H next:I dasm:Q msi_addr:Q flags:Q mui:H noi:H maxstbl:H version_id:B _res:B",
)

GROW_LIMIT = 16
"""Rounds of a "tell me the size" protocol before an answer that keeps growing is given up."""


def grow_by_argsz(call: Callable[[bytearray], object], record: Record, **fields: int) -> bytearray:
    """Ask until the answer fits: the `argsz` protocol of VFIO's INFO calls.

    The needed size may grow between two calls (hotplug), and kernels before 5.4 leave everything
    beyond the first 16 bytes of `vfio_iommu_type1_info` untouched, so each buffer begins as zeros.

    Args:
        call: makes the ioctl on a buffer, in and out.
        record: the fixed part; its first field is `argsz`.
        fields: other fields that the question has.

    Returns:
        The answer, cut to the size that the kernel gives.

    Raises:
        CapabilityError: the answer still grows after `GROW_LIMIT` rounds, or shrinks below its
            fixed part.

    Source: drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_get_info (Linux 7.3).
    """
    size = record.size
    for _ in range(GROW_LIMIT):
        buffer = record.pack(size, argsz=size, **fields)
        call(buffer)
        needed = struct.unpack_from("=I", buffer)[0]
        if needed < record.minimum:
            raise CapabilityError(
                f"the kernel says that {record.name} has {needed} bytes, fewer than the fixed part",
                offset=0,
            )
        if needed <= size:
            # The compat layer gives the exact total, the native one leaves argsz as it was.
            return buffer
        size = needed
    raise CapabilityError(
        f"{record.name} grew {GROW_LIMIT} times while it was read; last {size} bytes",
        offset=0,
        hint="devices come and go meanwhile: try again when hotplug is quiet",
    )


def read_bits(bitmap: bytes, order: _ByteOrder = sys.byteorder) -> int:
    """Return a bitmap of 64-bit words as one number; bit n of it is page n.

    The words have the machine's byte order, so on s390x the first byte holds bits 63 to 56.
    """
    if order == "big":
        bitmap = b"".join(bitmap[at : at + 8][::-1] for at in range(0, len(bitmap), 8))
    return int.from_bytes(bitmap, "little")


def write_bits(bits: int, size: int, order: _ByteOrder = sys.byteorder) -> bytes:
    """Return a number as a bitmap of `size` bytes, a multiple of 8; the inverse of `read_bits`."""
    plain = bits.to_bytes(size, "little")
    if order == "big":
        return b"".join(plain[at : at + 8][::-1] for at in range(0, size, 8))
    return plain
