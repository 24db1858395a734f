# SPDX-License-Identifier: Apache-2.0
"""A virtio disk driven over VFIO, so that hosts which refuse QEMU's edu device can prove DMA too.

The disk reads a request and data from memory and writes data and a status to it, all through the
IOMMU: bytes that arrive were translated. One queue, one request at a time, no interrupts.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

from lab import raw

if TYPE_CHECKING:
    import mmap

SECTOR = 512
SIZE = 16 * 4096
DESCRIPTORS, AVAILABLE, USED, REQUEST, DATA = 0, 0x1000, 0x2000, 0x3000, 0x4000
QUEUE = 8
COMMON, NOTIFY = 1, 2
NEXT, WRITE = 1, 2
# Modern device (bit 32), and addresses that go through the platform's IOMMU (bit 33).
FEATURES_HIGH = 0b11


class Disk:
    """A virtio-blk device whose queue and buffers lie in `memory`, mapped at `iova`."""

    def __init__(self, device: int, memory: mmap.mmap, iova: int) -> None:
        self.device = device
        self.memory = memory
        self.iova = iova
        self.done = 0
        self.places: dict[int, tuple[int, int]] = {}
        raw.enable(device)
        self._find_registers()
        self._start()

    def _config(self, offset: int, size: int) -> bytes:
        base, _ = raw.region(self.device, raw.CONFIG_REGION)
        return os.pread(self.device, size, base + offset)

    def _find_registers(self) -> None:
        """Walk the PCI capabilities to the two register blocks that are needed."""
        at = self._config(0x34, 1)[0] & ~3
        while at:
            kind, following, _, block, bar = struct.unpack("<BBBBB", self._config(at, 5))
            if kind == 9 and block in (COMMON, NOTIFY) and block not in self.places:
                offset, _, factor = struct.unpack("<III", self._config(at + 8, 12))
                self.places[block] = (raw.region(self.device, bar)[0] + offset, factor)
            at = following & ~3

    def _write(self, register: int, form: str, value: int) -> None:
        os.pwrite(self.device, struct.pack(form, value), self.places[COMMON][0] + register)

    def _read(self, register: int, form: str) -> int:
        data = os.pread(self.device, struct.calcsize(form), self.places[COMMON][0] + register)
        return int(struct.unpack(form, data)[0])

    def _start(self) -> None:
        """Reset, agree on features, and give the device its queue."""
        self._write(0x14, "<B", 0)
        while self._read(0x14, "<B"):
            time.sleep(0.001)
        self._write(0x14, "<B", 1 | 2)
        self._write(0x08, "<I", 0)
        self._write(0x0C, "<I", 0)
        self._write(0x08, "<I", 1)
        self._write(0x0C, "<I", FEATURES_HIGH)
        self._write(0x14, "<B", 1 | 2 | 8)
        if not self._read(0x14, "<B") & 8:
            raise OSError("the virtio device refused to go through the IOMMU")
        self._write(0x16, "<H", 0)
        self._write(0x18, "<H", QUEUE)
        for register, place in ((0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)):
            self._write(register, "<I", (self.iova + place) & 0xFFFFFFFF)
            self._write(register + 4, "<I", (self.iova + place) >> 32)
        self.notify = self.places[NOTIFY][0] + self._read(0x1E, "<H") * self.places[NOTIFY][1]
        self._write(0x1C, "<H", 1)
        self._write(0x14, "<B", 1 | 2 | 8 | 4)

    def _request(self, kind: int, sector: int, size: int, data: int) -> int:
        """Make one request over data at an IOVA; return the status that the device wrote."""
        struct.pack_into("<IIQB", self.memory, REQUEST, kind, 0, sector, 0xFF)
        chain = (
            (self.iova + REQUEST, 16, NEXT, 1),
            (data, size, NEXT | (0 if kind else WRITE), 2),
            (self.iova + REQUEST + 16, 1, WRITE, 0),
        )
        for index, descriptor in enumerate(chain):
            struct.pack_into("<QIHH", self.memory, DESCRIPTORS + 16 * index, *descriptor)
        struct.pack_into("<H", self.memory, AVAILABLE + 4 + 2 * (self.done % QUEUE), 0)
        self.done += 1
        struct.pack_into("<HH", self.memory, AVAILABLE, 1, self.done & 0xFFFF)
        os.pwrite(self.device, struct.pack("<H", 0), self.notify)
        for _ in range(400):
            if struct.unpack_from("<H", self.memory, USED + 2)[0] == self.done & 0xFFFF:
                return self.memory[REQUEST + 16]
            time.sleep(0.005)
        raise TimeoutError("the virtio disk did not finish its request")

    def read(self, sector: int, size: int, data: int | None = None) -> int:
        """Let the disk write sectors into memory at an IOVA; by default into its own buffer."""
        return self._request(0, sector, size, self.iova + DATA if data is None else data)

    def write(self, sector: int, size: int, data: int | None = None) -> int:
        """Let the disk read sectors out of memory at an IOVA; by default from its own buffer."""
        return self._request(1, sector, size, self.iova + DATA if data is None else data)
