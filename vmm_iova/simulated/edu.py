# SPDX-License-Identifier: Apache-2.0
"""A device of the simulated kernel whose registers start copies, like QEMU's `edu`.

Source: docs/specs/edu.rst and hw/misc/edu.c of QEMU 7.2 to 10. What differs: a copy is done as soon
as it is started. Its interrupts are INTx and one MSI.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from vmm_iova.kernel import uapi
from vmm_iova.simulated.model import refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    Dma = Callable[[int, int, bytes | None], bytes]

BAR_SIZE = 1 << 20
CONFIG_SIZE = 256
BUFFER_AT, BUFFER_SIZE = 0x40000, 4096

_ID, _LIVE, _FACTORIAL, _STATUS, _IRQ_STATUS = 0x00, 0x04, 0x08, 0x20, 0x24
_RAISE, _ACK, _SOURCE, _TARGET, _COUNT, _COMMAND = 0x60, 0x64, 0x80, 0x88, 0x90, 0x98
_START, _FROM_DEVICE, _RAISE_AFTER = 1, 2, 4
_DMA_DONE = 0x100
_INTX, _MSI = 0, 1
_SIZES = {0: BAR_SIZE, 7: CONFIG_SIZE}
_OFFSET_SHIFT = 40  # as in drivers/vfio/pci/vfio_pci_core.h


class SimEdu:
    """The registers of one device.

    Args:
        dma: reads (`data` is None) or writes memory at an IOVA, as the device.
    """

    def __init__(self, dma: Dma) -> None:
        self._dma = dma
        self._events: dict[int, int] = {}
        self._masked = False
        self.reset()

    def reset(self) -> None:
        """VFIO_DEVICE_RESET."""
        self._config = bytearray(CONFIG_SIZE)
        struct.pack_into("<HHHH", self._config, 0, 0x1234, 0x11E8, 0, 0x10)
        struct.pack_into("<I", self._config, 8, 0x00FF_0010)
        self._words = dict.fromkeys((_SOURCE, _TARGET, _COUNT, _COMMAND), 0)
        self._live = self._factorial = self._irq_status = 0
        self._buffer = bytearray(BUFFER_SIZE)

    @property
    def _command(self) -> int:
        word: int = struct.unpack_from("<H", self._config, 4)[0]
        return word

    def pread(self, size: int, offset: int) -> bytes:
        """Read registers through the file of the device."""
        index, at = offset >> _OFFSET_SHIFT, offset & (1 << _OFFSET_SHIFT) - 1
        if index not in _SIZES or at + size > _SIZES[index]:
            raise refuse(errno.EINVAL)
        if index == 7:
            return bytes(self._config[at : at + size])
        if not self._command & 2:
            raise refuse(errno.EIO)
        if at >= BUFFER_AT and at + size <= BUFFER_AT + BUFFER_SIZE:
            return bytes(self._buffer[at - BUFFER_AT : at - BUFFER_AT + size])
        values = {
            _ID: 0x0100_00ED,
            _LIVE: self._live,
            _FACTORIAL: self._factorial,
            _STATUS: 0,
            _IRQ_STATUS: self._irq_status,
            **self._words,
        }
        return (values.get(at, 0) & (1 << 8 * size) - 1).to_bytes(size, "little")

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write registers; some start something."""
        index, at = offset >> _OFFSET_SHIFT, offset & (1 << _OFFSET_SHIFT) - 1
        size = len(data)
        if index not in _SIZES or at + size > _SIZES[index]:
            raise refuse(errno.EINVAL)
        if index == 7:
            # Only the command register of this device can be written.
            for number in range(at, at + size):
                if number in (4, 5):
                    self._config[number] = data[number - at]
            return size
        if not self._command & 2:
            raise refuse(errno.EIO)
        value = int.from_bytes(data, "little")
        if at >= BUFFER_AT and at + size <= BUFFER_AT + BUFFER_SIZE:
            self._buffer[at - BUFFER_AT : at - BUFFER_AT + size] = data
        elif at == _LIVE:
            self._live = ~value & 0xFFFF_FFFF
        elif at == _FACTORIAL:
            self._factorial = _factorial(value)
        elif at == _RAISE:
            self._raise(value)
        elif at == _ACK:
            self._irq_status &= ~value
        elif at in self._words:
            self._words[at] = value
            if at == _COMMAND and value & _START:
                self._copy()
        return size

    def _copy(self) -> None:
        command, count = self._words[_COMMAND], self._words[_COUNT]
        self._words[_COMMAND] = command & ~_START
        inside = self._words[_SOURCE if command & _FROM_DEVICE else _TARGET] - BUFFER_AT
        outside = self._words[_TARGET if command & _FROM_DEVICE else _SOURCE]
        if not self._command & 4 or not 0 <= inside <= BUFFER_SIZE - count:
            return  # no bus master, or not its own buffer: nothing moves
        try:
            if command & _FROM_DEVICE:
                self._dma(outside, count, bytes(self._buffer[inside : inside + count]))
            else:
                self._buffer[inside : inside + count] = self._dma(outside, count, None)
        except OSError:
            return  # a real IOMMU logs a fault, and the device reads ones or writes nowhere
        if command & _RAISE_AFTER:
            self._raise(_DMA_DONE)

    def _raise(self, status: int) -> None:
        self._irq_status |= status
        for index in (_MSI, _INTX):
            if index in self._events:
                if index == _INTX and self._masked:
                    return
                self._masked = index == _INTX  # the kernel masks INTx when it passes it on
                os.eventfd_write(self._events[index], 1)
                return

    def region_info(self, arg: bytearray) -> int:
        """VFIO_DEVICE_GET_REGION_INFO."""
        argsz, _, index = struct.unpack_from("=III", arg)
        if argsz < uapi.REGION_INFO.size or index >= 9:
            raise refuse(errno.EINVAL)
        size = _SIZES.get(index, 0)
        flags = uapi.REGION_FLAG_READ | uapi.REGION_FLAG_WRITE if size else 0
        uapi.REGION_INFO.codec.pack_into(
            arg, 0, argsz, flags, index, 0, size, index << _OFFSET_SHIFT
        )
        return 0

    def irq_info(self, arg: bytearray) -> int:
        """VFIO_DEVICE_GET_IRQ_INFO."""
        argsz, _, index, _ = uapi.IRQ_INFO.codec.unpack_from(arg)
        if argsz < uapi.IRQ_INFO.size or index >= 5:
            raise refuse(errno.EINVAL)
        count = int(index in (_INTX, _MSI))
        flags = uapi.IRQ_INFO_EVENTFD if count else 0
        uapi.IRQ_INFO.codec.pack_into(arg, 0, argsz, flags, index, count)
        return 0

    def set_irqs(self, arg: bytearray) -> int:
        """VFIO_DEVICE_SET_IRQS: one action on one index."""
        argsz, flags, index, start, count = uapi.IRQ_SET.codec.unpack_from(arg)
        action = flags & (uapi.IRQ_MASK | uapi.IRQ_UNMASK | uapi.IRQ_TRIGGER)
        data = flags & (uapi.IRQ_DATA_NONE | uapi.IRQ_DATA_EVENTFD)
        if argsz < uapi.IRQ_SET.size or not action or not data or index not in (_INTX, _MSI):
            raise refuse(errno.EINVAL)
        if start + count > 1 or (data == uapi.IRQ_DATA_EVENTFD and not count):
            raise refuse(errno.EINVAL)
        if action == uapi.IRQ_TRIGGER and not count:
            self._events.pop(index, None)
        elif action == uapi.IRQ_TRIGGER and data == uapi.IRQ_DATA_EVENTFD:
            if any(other != index for other in self._events):
                raise refuse(errno.EINVAL)
            self._events[index] = struct.unpack_from("=i", arg, uapi.IRQ_SET.size)[0]
            self._masked = False
        elif index not in self._events or (action != uapi.IRQ_TRIGGER and index != _INTX):
            raise refuse(errno.EINVAL)
        elif action == uapi.IRQ_TRIGGER:
            os.eventfd_write(self._events[index], 1)
        else:
            self._masked = action == uapi.IRQ_MASK
            if not self._masked and self._irq_status:
                self._raise(0)
        return 0


def _factorial(value: int) -> int:
    product = 1
    for factor in range(2, min(value, 64) + 1):
        product = product * factor & 0xFFFF_FFFF
    return product
