# SPDX-License-Identifier: Apache-2.0
"""A device of the simulated kernel whose registers start copies, like QEMU's `edu`.

Source: docs/specs/edu.rst and hw/misc/edu.c of QEMU 7.2 to 10. What differs: a copy is done as soon
as it is started, and its buffer can be read and written like memory, in any width. Its interrupts
are INTx and one MSI.
"""

from __future__ import annotations

from typing import ClassVar

from vmm_iova.simulated.pci import INTX, MSI, SimPci

BUFFER_AT, BUFFER_SIZE = 0x40000, 4096

_ID, _LIVE, _FACTORIAL, _STATUS, _IRQ_STATUS = 0x00, 0x04, 0x08, 0x20, 0x24
_RAISE, _ACK, _SOURCE, _TARGET, _COUNT, _COMMAND = 0x60, 0x64, 0x80, 0x88, 0x90, 0x98
_START, _FROM_DEVICE, _RAISE_AFTER = 1, 2, 4
_DMA_DONE = 0x100
_STATUS_IRQ = 0x80


class SimEdu(SimPci):
    """The registers of one device."""

    vendor: ClassVar[int] = 0x1234
    device: ClassVar[int] = 0x11E8
    class_code: ClassVar[int] = 0x00FF00
    revision: ClassVar[int] = 0x10
    bar_size: ClassVar[int] = 1 << 20
    irqs: ClassVar[dict[int, int]] = {INTX: 1, MSI: 1}

    def clear(self) -> None:
        """Put the registers into the state after power-on."""
        self._words = dict.fromkeys((_SOURCE, _TARGET, _COUNT, _COMMAND), 0)
        self._live = self._factorial = self._status = self._irq_status = 0
        self._buffer = bytearray(BUFFER_SIZE)

    def line(self) -> bool:
        """INTx is held as long as an interrupt is not acknowledged."""
        return bool(self._irq_status)

    def load(self, at: int, size: int) -> bytes:
        """Read registers; those below 0x80 have 4 bytes, and the others 4 or 8."""
        if at >= BUFFER_AT and at + size <= BUFFER_AT + BUFFER_SIZE:
            return bytes(self._buffer[at - BUFFER_AT : at - BUFFER_AT + size])
        values = {
            _ID: 0x0100_00ED,
            _LIVE: self._live,
            _FACTORIAL: self._factorial,
            _STATUS: self._status,
            _IRQ_STATUS: self._irq_status,
            **self._words,
        }
        if size < 4:
            return bytes(size)  # QEMU takes no such access
        if size > 4 and at < _SOURCE:
            return b"\xff" * size
        value = values.get(at, (1 << 64) - 1)
        return (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def store(self, at: int, data: bytes) -> None:
        """Write registers; some start something."""
        value = int.from_bytes(data, "little")
        if at >= BUFFER_AT and at + len(data) <= BUFFER_AT + BUFFER_SIZE:
            self._buffer[at - BUFFER_AT : at - BUFFER_AT + len(data)] = data
        elif len(data) not in ((4,) if at < _SOURCE else (4, 8)):
            return
        elif at == _LIVE:
            self._live = ~value & 0xFFFF_FFFF
        elif at == _FACTORIAL:
            self._factorial = _factorial(value)
            if self._status & _STATUS_IRQ:
                self._raise(1)
        elif at == _STATUS:
            self._status = value & _STATUS_IRQ
        elif at == _RAISE:
            self._raise(value)
        elif at == _ACK:
            self._irq_status &= ~value
        elif at == _COMMAND and value & _START:
            self._words[at] = value
            self._copy()
        elif at in self._words and at != _COMMAND:
            self._words[at] = value

    def _copy(self) -> None:
        command, count = self._words[_COMMAND], self._words[_COUNT]
        self._words[_COMMAND] = command & ~_START
        inside = self._words[_SOURCE if command & _FROM_DEVICE else _TARGET] - BUFFER_AT
        outside = self._words[_TARGET if command & _FROM_DEVICE else _SOURCE]
        if not self.master or not 0 <= inside <= BUFFER_SIZE - count:
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
        if self._irq_status:
            self.interrupt()


def _factorial(value: int) -> int:
    product = 1
    for factor in range(2, min(value, 64) + 1):
        product = product * factor & 0xFFFF_FFFF
    return product
