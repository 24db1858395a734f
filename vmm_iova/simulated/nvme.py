# SPDX-License-Identifier: Apache-2.0
"""A disk of the simulated kernel: an NVMe controller with one namespace, in memory.

It does what a small driver asks of it: reset and enable, Identify, queues of both kinds, reads and
writes with PRP lists, completion by phase and by MSI-X. What it does not know it refuses with
"invalid opcode". Source: NVM Express Base Specification 1.4, sections 3.1, 4 to 6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vmm_iova.simulated.pci import INTX, MSIX, SimPci

if TYPE_CHECKING:
    from vmm_iova.simulated.pci import Dma

PAGE, BLOCK = 4096, 512
BLOCKS = 1 << 16  # 32 MiB, of which only what is written takes memory

_CAP, _VERSION, _CC, _CSTS, _AQA, _ASQ, _ACQ, _DOORBELLS = (
    0,
    8,
    0x14,
    0x1C,
    0x24,
    0x28,
    0x30,
    0x1000,
)
_MOST_ENTRIES, _STRIDE = 256, 4
_ENABLE, _READY, _FATAL = 1, 1, 2
_OK, _BAD_OPCODE, _BAD_FIELD, _BAD_TRANSFER, _BAD_RANGE, _BAD_QUEUE = 0, 1, 2, 4, 0x80, 0x101


@dataclass
class _Queue:
    at: int
    entries: int
    head: int = 0
    tail: int = 0
    phase: int = 1
    """Of a completion queue."""
    pair: int = 0
    """Of a submission queue: its completion queue."""
    vector: int | None = None


class _StatusError(Exception):
    """A command ends with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class SimNvme(SimPci):
    """The registers, queues and blocks of one controller."""

    vendor: ClassVar[int] = 0x1B36
    device: ClassVar[int] = 0x0010
    class_code: ClassVar[int] = 0x010802
    revision: ClassVar[int] = 2
    bar_size: ClassVar[int] = 1 << 14
    express: ClassVar[bool] = True
    irqs: ClassVar[dict[int, int]] = {INTX: 1, MSIX: 4}
    msix_table: ClassVar[tuple[int, int] | None] = (0x2000, 4)

    def __init__(self, dma: Dma) -> None:
        self._blocks: dict[int, bytes] = {}
        super().__init__(dma)

    def clear(self) -> None:
        """Reset the controller; the blocks stay."""
        self._registers = bytearray(_DOORBELLS)
        capabilities = (_MOST_ENTRIES - 1) | 1 << 16 | 0x0F << 24 | 1 << 37
        struct.pack_into("<QI", self._registers, _CAP, capabilities, 0x0001_0400)
        self._submissions: dict[int, _Queue] = {}
        self._completions: dict[int, _Queue] = {}

    def line(self) -> bool:
        """INTx is held while an answer was not taken."""
        return any(item.head != item.tail for item in self._completions.values())

    def _word(self, at: int, code: str = "I") -> int:
        value: int = struct.unpack_from("<" + code, self._registers, at)[0]
        return value

    def load(self, at: int, size: int) -> bytes:
        """Read registers; doorbells read as zeros."""
        return bytes(self._registers[at : at + size]).ljust(size, b"\0")

    def store(self, at: int, data: bytes) -> None:
        """Write registers; a doorbell lets commands be done."""
        if at >= _DOORBELLS:
            if len(data) == 4 and at % _STRIDE == 0:
                self._ring((at - _DOORBELLS) // _STRIDE, int.from_bytes(data, "little"))
            return
        for number, byte in enumerate(data, at):
            if _CC <= number < _CC + 4 or _AQA <= number < _ACQ + 8:
                self._registers[number] = byte
        if at <= _CC < at + len(data):
            self._switch()

    def _switch(self) -> None:
        """CC.EN: make the admin queues, or forget all queues."""
        if not self._word(_CC) & _ENABLE:
            self._submissions.clear()
            self._completions.clear()
            self._registers[_CSTS] = 0
        elif not self._registers[_CSTS] & _READY:
            sizes = self._word(_AQA)
            self._submissions[0] = _Queue(self._word(_ASQ, "Q"), (sizes & 0xFFF) + 1)
            self._completions[0] = _Queue(
                self._word(_ACQ, "Q"), (sizes >> 16 & 0xFFF) + 1, vector=0
            )
            self._registers[_CSTS] = _READY

    def _ring(self, doorbell: int, value: int) -> None:
        number, of_answers = doorbell // 2, doorbell % 2
        queue = (self._completions if of_answers else self._submissions).get(number)
        if queue is None or value >= queue.entries:
            return
        if of_answers:
            queue.head = value
            return
        queue.tail = value
        try:
            while queue.head != queue.tail:
                self._do_next(number, queue)
        except OSError:  # the queues themselves cannot be reached: the controller gives up
            self._registers[_CSTS] |= _FATAL

    def _do_next(self, number: int, queue: _Queue) -> None:
        entry = self._dma(queue.at + 64 * queue.head, 64, None)
        queue.head = (queue.head + 1) % queue.entries
        first, namespace, prp1, prp2, *words = struct.unpack("<II16xQQ6I", entry)
        answer, status = 0, _OK
        try:
            if not self.master:
                raise _StatusError(_BAD_TRANSFER)
            known = self._admin if number == 0 else self._read_write
            answer = known(first & 0xFF, namespace, (prp1, prp2), words)
        except _StatusError as exc:
            status = exc.status
        except OSError:
            status = _BAD_TRANSFER
        self._answer(self._completions[queue.pair], number, queue, first >> 16, answer, status)

    def _answer(
        self, to: _Queue, number: int, queue: _Queue, command: int, answer: int, status: int
    ) -> None:
        data = struct.pack(
            "<IIHHHH", answer, 0, queue.head, number, command, status << 1 | to.phase
        )
        self._dma(to.at + 16 * to.tail, 16, data)
        to.tail = (to.tail + 1) % to.entries
        to.phase ^= to.tail == 0
        if to.vector is not None:
            self.interrupt(to.vector)

    def _admin(self, opcode: int, namespace: int, prps: tuple[int, int], words: list[int]) -> int:
        if opcode == 0x06:
            self._identify(namespace, prps, words[0] & 0xFF)
        elif opcode in (0x01, 0x05):
            self._make_queue(opcode == 0x01, prps[0], words)
        elif opcode in (0x00, 0x04):
            queues = self._submissions if opcode == 0x00 else self._completions
            if not words[0] & 0xFFFF or queues.pop(words[0] & 0xFFFF, None) is None:
                raise _StatusError(_BAD_QUEUE)
        elif opcode == 0x09 and words[0] & 0xFF == 7:
            return 0  # one queue of each kind
        else:
            raise _StatusError(_BAD_OPCODE)
        return 0

    def _make_queue(self, commands: bool, at: int, words: list[int]) -> None:
        number, entries, how = words[0] & 0xFFFF, (words[0] >> 16) + 1, words[1]
        queues = self._submissions if commands else self._completions
        if number != 1 or number in queues or at % PAGE or not how & 1:
            raise _StatusError(_BAD_QUEUE)
        if not 2 <= entries <= _MOST_ENTRIES:
            raise _StatusError(_BAD_QUEUE + 1)
        queue = _Queue(at, entries)
        if commands:
            queue.pair = how >> 16
            if queue.pair not in self._completions:
                raise _StatusError(_BAD_QUEUE - 1)
        elif how & 2:
            queue.vector = how >> 16
        queues[number] = queue

    def _identify(self, namespace: int, prps: tuple[int, int], what: int) -> None:
        data = bytearray(PAGE)
        if what == 1:
            name = b"simulated NVMe".ljust(40)
            struct.pack_into("<HH20s40s8s", data, 0, 0x1B36, 0x1AF4, b"1", name, b"1")
            data[77] = 7  # 512 KiB a command
            data[512], data[513] = 0x66, 0x44
            struct.pack_into("<I", data, 516, 1)
        elif what == 0 and namespace == 1:
            struct.pack_into("<QQQ", data, 0, BLOCKS, BLOCKS, BLOCKS)
            struct.pack_into("<I", data, 128, 9 << 16)
        else:
            raise _StatusError(_BAD_FIELD)
        self._move(prps, PAGE, bytes(data))

    def _read_write(
        self, opcode: int, namespace: int, prps: tuple[int, int], words: list[int]
    ) -> int:
        if opcode not in (1, 2) or namespace != 1:
            raise _StatusError(_BAD_OPCODE if namespace == 1 else _BAD_FIELD)
        first, count = words[0] | words[1] << 32, (words[2] & 0xFFFF) + 1
        if first + count > BLOCKS:
            raise _StatusError(_BAD_RANGE)
        if opcode == 1:
            data = self._move(prps, count * BLOCK, None)
            for number in range(count):
                self._blocks[first + number] = data[number * BLOCK : (number + 1) * BLOCK]
        else:
            empty = bytes(BLOCK)
            found = (self._blocks.get(first + number, empty) for number in range(count))
            self._move(prps, count * BLOCK, b"".join(found))
        return 0

    def _move(self, prps: tuple[int, int], size: int, data: bytes | None) -> bytes:
        """Read memory by its pages, or write it."""
        read, at = bytearray(), 0
        for page in self._pages(prps, size):
            step = min(PAGE - page % PAGE, size - at)
            read += self._dma(page, step, None if data is None else data[at : at + step])
            at += step
        return bytes(read)

    def _pages(self, prps: tuple[int, int], size: int) -> list[int]:
        """Follow the PRPs: one page, two, or the second names a list of all others."""
        left = size - (PAGE - prps[0] % PAGE)
        count = -(-max(left, 0) // PAGE)
        if count < 2:
            others = [prps[1]] * count
        else:
            if prps[1] % 8 or count > (PAGE - prps[1] % PAGE) // 8:
                raise _StatusError(_BAD_FIELD)  # longer lists are chained: not known here
            others = list(struct.unpack(f"<{count}Q", self._dma(prps[1], 8 * count, None)))
        if any(page % PAGE for page in others):
            raise _StatusError(_BAD_FIELD + 0x11)
        return [prps[0], *others]
