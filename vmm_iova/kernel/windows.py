# SPDX-License-Identifier: Apache-2.0
"""Registers of an open device that are mapped: which may be, and when they may be touched.

A load from a BAR of a device that does not answer (memory not enabled, or asleep) is no error
that can be caught: the kernel has taken the mapping away, and SIGBUS ends the process (since 5.8,
drivers/vfio/pci/vfio_pci_core.c, vfio_pci_mmap_fault). So the command register and the power state
are read again whenever something may have changed them, and where the device does not answer, the
access goes through the descriptor, which says EIO.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vmm_iova.kernel import uapi
from vmm_iova.kernel.syscalls import PAGE_SIZE
from vmm_iova.ranges import AddrRange, RangeSet

if TYPE_CHECKING:
    from vmm_iova.kernel.syscalls import Kernel, RegisterWindow

CONFIG = 7
COMMAND = 4  # PCI specification, 7.5.1.1.3
MEMORY, MASTER = 2, 4
_STATUS, _FIRST_CAPABILITY = 6, 0x34
_HAS_CAPABILITIES = 0x10
_CAP_POWER, _CAP_MSIX = 0x01, 0x11  # 7.5.2 and 7.7.2
_MOST_CAPABILITIES = 48  # of 4 bytes and more in 192
WIDEST = struct.calcsize("P")
"""Bytes of the widest access that is one instruction."""


class Windows:
    """The mapped registers of one open device. Made and closed by what has its descriptor.

    It does not hold the space, which holds it: so the descriptor comes with every question.

    Args:
        kernel: where the calls go.

    Attributes:
        closed: whether `close` was called.

    Synchronization: external.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._open: dict[tuple[int, int], RegisterWindow | None] = {}
        self.closed = False
        self._answers = False
        self._config_at: int | None = None
        self._capabilities: dict[int, int] | None = None

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._open)} mapped"
        return f"<Windows, {state}>"

    def changed(self) -> None:
        """Take note that the device may have ceased to answer."""
        self._answers = False

    def answer(self, fd: int) -> bool:
        """Tell whether the registers may be touched; asks the device when that may have changed."""
        if not self._answers:
            try:
                awake = _CAP_POWER not in self._found(fd) or not self._power(fd) & 3
                self._answers = awake and bool(self._read(fd, COMMAND, 2) & MEMORY)
            except OSError:
                return False
        return self._answers

    def _power(self, fd: int) -> int:
        return self._read(fd, self._found(fd)[_CAP_POWER] + 4, 2)

    def _read(self, fd: int, at: int, width: int) -> int:
        if self._config_at is None:
            arg = uapi.REGION_INFO.pack(argsz=uapi.REGION_INFO.size, index=CONFIG)
            self._kernel.ioctl(fd, uapi.DEVICE_GET_REGION_INFO, arg)
            self._config_at = uapi.REGION_INFO.read(arg)["offset"]
        data = self._kernel.pread(fd, width, self._config_at + at)
        return int.from_bytes(data, "little")

    def _found(self, fd: int) -> dict[int, int]:
        """Where the capabilities begin in the configuration space, by their number."""
        if self._capabilities is None:
            found: dict[int, int] = {}
            has = self._read(fd, _STATUS, 2) & _HAS_CAPABILITIES
            at = self._read(fd, _FIRST_CAPABILITY, 1) & ~3 if has else 0
            for _ in range(_MOST_CAPABILITIES):  # a chain of a broken device may be a circle
                if at < 0x40:
                    break
                found.setdefault(self._read(fd, at, 1), at)
                at = self._read(fd, at + 1, 1) & ~3
            self._capabilities = found
        return self._capabilities

    def areas(self, fd: int, index: int, allowed: RangeSet) -> tuple[AddrRange, ...]:
        """Return which parts of a region are to be mapped: whole pages, without MSI-X's table.

        The kernel keeps that table for itself: through the descriptor it reads as ones, and what
        is written to it is dropped. Since 4.16 it can be mapped all the same, and a stray write
        would change where interrupts go.
        """
        if allowed:
            allowed -= self._table(fd, index)
        pages = (item.align_inward(PAGE_SIZE) for item in allowed)
        return tuple(item for item in pages if item is not None)

    def _table(self, fd: int, index: int) -> RangeSet:
        try:
            at = self._found(fd).get(_CAP_MSIX)
            if at is None:
                return RangeSet()
            where, entries = self._read(fd, at + 4, 4), (self._read(fd, at + 2, 2) & 0x7FF) + 1
        except OSError:
            return RangeSet([AddrRange(0, (1 << 64) - 1)])  # not known: nothing is mapped
        if where & 7 != index:
            return RangeSet()
        table = AddrRange.from_size(where & ~7, 16 * entries)
        return RangeSet([table.align_outward(PAGE_SIZE)])

    def window(self, fd: int, index: int, area: AddrRange, offset: int) -> RegisterWindow | None:
        """Map an area, once; None where the kernel does not.

        Args:
            fd: of the device.
            index: of the region.
            area: offsets in it.
            offset: of the area in the device's file.
        """
        key = index, area.start
        if key not in self._open:
            try:
                self._open[key] = self._kernel.map_registers(fd, area.size, offset)
            except OSError:
                self._open[key] = None
        return self._open[key]

    def close(self) -> None:
        """Unmap all. Idempotent; called before the device is closed, which they would keep open."""
        self.closed = True
        self._answers = False
        for key in list(self._open):
            window = self._open[key]
            if window is not None:
                window.close()
            del self._open[key]
