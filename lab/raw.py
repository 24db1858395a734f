# SPDX-License-Identifier: Apache-2.0
"""The few raw ioctls with which the lab proves itself, written apart from the package.

The package's own `kernel` wing is what the lab tests. This room must not use it: two independent
readings of the same kernel are worth more than one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TYPE1V2 = 3
READ, WRITE = 1, 2
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B6A
SET_IOMMU, GET_INFO, MAP_DMA, UNMAP_DMA = 0x3B66, 0x3B70, 0x3B71, 0x3B72
DEVICE_GET_INFO, GET_REGION_INFO = 0x3B6B, 0x3B6C
BIND_IOMMUFD, ATTACH_PT = 0x3B76, 0x3B77
IOAS_ALLOC, IOVA_RANGES, IOAS_MAP, IOAS_UNMAP = 0x3B81, 0x3B84, 0x3B85, 0x3B86
CONFIG_REGION = 7

Ranges = list[tuple[int, int]]


def buffer(size: int) -> mmap.mmap:
    """Return anonymous shared memory, page aligned."""
    return mmap.mmap(-1, size)


def address(memory: mmap.mmap) -> int:
    """Return where memory lies in this process."""
    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    return ctypes.addressof(view)


class Capabilities:
    """The chain of capabilities behind a VFIO information structure."""

    def __init__(self, data: bytes, first: int) -> None:
        self.payloads: dict[int, bytes] = {}
        seen: set[int] = set()
        while first and first not in seen:
            seen.add(first)
            kind, _, following = struct.unpack_from("=HHI", data, first)
            self.payloads[kind] = data[first:]
            first = following


@contextmanager
def opened(path: str) -> Iterator[int]:
    """Open a device file for the length of a block."""
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


class Type1:
    """A type1 v2 container with one group in it."""

    def __init__(self, container: int, group: int) -> None:
        self.container = container
        self.group = group

    def info(self) -> tuple[int, int, Capabilities]:
        """Return flags, page sizes and capabilities."""
        data = bytearray(4096)
        struct.pack_into("=I", data, 0, len(data))
        fcntl.ioctl(self.container, GET_INFO, data)
        _, flags, sizes, first, _ = struct.unpack_from("=IIQII", data)
        return flags, sizes, Capabilities(bytes(data), first)

    def ranges(self) -> Ranges:
        """Return the ranges that may be mapped, both ends inclusive."""
        payload = self.info()[2].payloads[1]
        (count,) = struct.unpack_from("=I", payload, 8)
        return [struct.unpack_from("=QQ", payload, 16 + 16 * index) for index in range(count)]

    def available(self) -> int:
        """Return how many mappings are left."""
        (left,) = struct.unpack_from("=I", self.info()[2].payloads[3], 8)
        return int(left)

    def map(self, iova: int, memory: mmap.mmap, size: int = 0, flags: int = READ | WRITE) -> int:
        """Map memory; return 0 or the errno."""
        packed = struct.pack("=IIQQQ", 32, flags, address(memory), iova, size or len(memory))
        return _errno(self.container, MAP_DMA, bytearray(packed))

    def unmap(self, iova: int, size: int) -> int:
        """Unmap; return how many bytes the kernel says it unmapped."""
        data = bytearray(struct.pack("=IIQQ", 24, 0, iova, size))
        fcntl.ioctl(self.container, UNMAP_DMA, data)
        return int(struct.unpack_from("=IIQQ", data)[3])

    def device(self, bdf: str) -> int:
        """Return a new file of a device of the group."""
        name = bytearray(bdf.encode() + b"\0")
        return int(fcntl.ioctl(self.group, GROUP_GET_DEVICE_FD, name))


@contextmanager
def type1(group: int) -> Iterator[Type1]:
    """Open a container around one group; SET_IOMMU's errno comes as an OSError."""
    with ExitStack() as stack:
        container = stack.enter_context(opened("/dev/vfio/vfio"))
        handle = stack.enter_context(opened(f"/dev/vfio/{group}"))
        fcntl.ioctl(handle, GROUP_SET_CONTAINER, struct.pack("=i", container))
        fcntl.ioctl(container, SET_IOMMU, TYPE1V2)
        yield Type1(container, handle)


class Ioas:
    """An iommufd with one address space, and devices attached to it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        data = bytearray(struct.pack("=III", 12, 0, 0))
        fcntl.ioctl(handle, IOAS_ALLOC, data)
        self.number = int(struct.unpack("=III", data)[2])

    def attach(self, device: int) -> None:
        """Bind an opened device file and attach it."""
        fcntl.ioctl(device, BIND_IOMMUFD, bytearray(struct.pack("=IIiI", 16, 0, self.handle, 0)))
        fcntl.ioctl(device, ATTACH_PT, bytearray(struct.pack("=III", 12, 0, self.number)))

    def ranges(self) -> tuple[Ranges, int]:
        """Return the ranges and the alignment."""
        room = (ctypes.c_uint64 * 256)()
        packed = struct.pack(
            "=IIIIQQ", 32, self.number, len(room) // 2, 0, ctypes.addressof(room), 0
        )
        data = bytearray(packed)
        fcntl.ioctl(self.handle, IOVA_RANGES, data)
        _, _, count, _, _, alignment = struct.unpack("=IIIIQQ", data)
        return [(room[2 * n], room[2 * n + 1]) for n in range(count)], int(alignment)

    def map(self, memory: mmap.mmap, iova: int | None) -> tuple[int, int]:
        """Map memory at an IOVA, or where the kernel likes; return errno and IOVA."""
        flags = 6 | (iova is not None)
        packed = struct.pack(
            "=IIIIQQQ", 40, flags, self.number, 0, address(memory), len(memory), iova or 0
        )
        data = bytearray(packed)
        code = _errno(self.handle, IOAS_MAP, data)
        return code, int(struct.unpack("=IIIIQQQ", data)[6])

    def unmap(self, iova: int, size: int) -> int:
        """Unmap; return how many bytes the kernel says it unmapped."""
        data = bytearray(struct.pack("=IIQQ", 24, self.number, iova, size))
        fcntl.ioctl(self.handle, IOAS_UNMAP, data)
        return int(struct.unpack("=IIQQ", data)[3])


def device_capabilities(device: int) -> Capabilities:
    """Return the capabilities of a VFIO device; on s390 they hold what zPCI allows."""
    data = bytearray(1024)
    struct.pack_into("=I", data, 0, len(data))
    fcntl.ioctl(device, DEVICE_GET_INFO, data)
    fields = struct.unpack_from("=IIIIII", data)
    return Capabilities(bytes(data), fields[4] if fields[1] & (1 << 7) else 0)


def region(device: int, index: int) -> tuple[int, int]:
    """Return offset in the device file and size of a region."""
    data = bytearray(struct.pack("=IIIIQQ", 32, 0, index, 0, 0, 0))
    fcntl.ioctl(device, GET_REGION_INFO, data)
    _, _, _, _, size, offset = struct.unpack("=IIIIQQ", data)
    return offset, size


def enable(device: int) -> None:
    """Let a PCI device answer on its BARs and be a bus master."""
    offset, _ = region(device, CONFIG_REGION)
    (word,) = struct.unpack("<H", os.pread(device, 2, offset + 4))
    os.pwrite(device, struct.pack("<H", word | 6), offset + 4)


def _errno(handle: int, request: int, data: bytearray) -> int:
    try:
        fcntl.ioctl(handle, request, data)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def call(handle: int, request: int, argument: int) -> int:
    """Make an ioctl that takes a number and returns one."""
    return fcntl.ioctl(handle, request, argument)


def edu_copy(device: int, iova: int, size: int, to_device: bool) -> None:
    """Let QEMU's edu device copy between its own 4 KiB buffer and an IOVA."""
    inside = 0x40000
    source, target = (iova, inside) if to_device else (inside, iova)
    command = 1 | (0 if to_device else 2)
    offset, _ = region(device, 0)
    for register, value in ((0x80, source), (0x88, target), (0x90, size), (0x98, command)):
        os.pwrite(device, struct.pack("<Q", value), offset + register)
    for _ in range(2000):
        if not struct.unpack("<Q", os.pread(device, 8, offset + 0x98))[0] & 1:
            return
        time.sleep(0.005)
    raise TimeoutError("the edu device did not finish its DMA")
