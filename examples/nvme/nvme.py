# SPDX-License-Identifier: Apache-2.0
"""A user-space NVMe driver that reads and writes real blocks.

    python examples/nvme/nvme.py 0000:01:00.0 64MiB

It OVERWRITES the first blocks of the first namespace, reads them back and compares each. The device
must be bound to vfio-pci. Commands are completed by polling, or with `--interrupts` by MSI-X.

Numbers are those of the NVM Express Base Specification 1.4 (registers: 3.1; queues: 4; commands: 5
and 6). Everything that DMA needs comes from the package: addresses, memory, doorbells, interrupts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import struct
import time
from typing import TYPE_CHECKING, Any

import vmm_iova as vi
from vmm_iova.kernel import LINUX, Device, Event, Kernel, Region, open_space, with_kernel_facts
from vmm_iova.mapping import DmaPart, DmaPool, DynamicMaps

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
CAP, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
ENABLE, ENTRY_SIZES = 1, 6 << 16 | 4 << 20  # of 64 and of 16 bytes
READY, FATAL = 1, 2
IDENTIFY, CREATE_SQ, CREATE_CQ, SET_FEATURES = 0x06, 0x01, 0x05, 0x09
WRITE, READ = 0x01, 0x02
ENTRIES = 32
TRANSFER = 128 << 10  # bytes a command; one page of PRPs names 2 MiB
PATIENCE = 60.0  # seconds


class NvmeError(Exception):
    """The controller does not do what it was asked for."""


class Queue:
    """A submission queue and its completion queue, one command at a time in each place."""

    def __init__(self, bar: Region, number: int, stride: int, pool: DmaPool) -> None:
        self.number = number
        self._bar = bar
        self._tail_at = DOORBELLS + 2 * number * stride
        self._head_at = self._tail_at + stride
        self.commands = pool.allocate(ENTRIES * 64, align=PAGE, tag=f"commands {number}")
        self.answers = pool.allocate(ENTRIES * 16, align=PAGE, tag=f"answers {number}")
        self.commands.view[:] = bytes(ENTRIES * 64)
        self.answers.view[:] = bytes(ENTRIES * 16)
        self._tail = self._head = 0
        self._phase = 1
        self._next = 0
        self.event: Event | None = None

    def submit(
        self,
        opcode: int,
        *,
        namespace: int = 0,
        prp1: int = 0,
        prp2: int = 0,
        words: tuple[int, ...],
    ) -> int:
        """Put a command into the queue, and ring the doorbell; return its number."""
        number, self._next = self._next, (self._next + 1) & 0xFFFF
        command = struct.pack(
            "<II8xQQQ6I",
            *(opcode | number << 16, namespace, 0, prp1, prp2),
            *(*words, *(0,) * (6 - len(words))),
        )
        at = self._tail * 64
        self.commands.view[at : at + 64] = command
        self._tail = (self._tail + 1) % ENTRIES
        self._bar.write(self._tail_at, self._tail)
        return number

    def _answer(self) -> tuple[int, int] | None:
        """Return result and status of the next command that is done, or None."""
        at = self._head * 16
        result, _, _, last = struct.unpack("<4I", self.answers.view[at : at + 16])
        if last >> 16 & 1 != self._phase:
            return None
        self._head = (self._head + 1) % ENTRIES
        self._phase ^= self._head == 0
        self._bar.write(self._head_at, self._head)
        return result, last >> 17

    def finish(self) -> int:
        """Wait for one command; return its result."""
        until = time.monotonic() + PATIENCE
        while (answer := self._answer()) is None:
            if time.monotonic() > until:
                raise NvmeError(f"queue {self.number} does not answer")
            if self.event is not None:
                self.event.wait(0.5)
        result, status = answer
        if status & 0x7FF:
            raise NvmeError(f"a command of queue {self.number} failed with status {status:#x}")
        return result

    def do(self, opcode: int, **more: Any) -> int:
        """Do one command."""
        self.submit(opcode, **more)
        return self.finish()


class Nvme:
    """A controller with one queue for reads and writes.

    Args:
        device: bound to VFIO, in a space.
        maps: of the same space.
        interrupts: whether completions come by MSI-X; else they are polled.
    """

    def __init__(self, device: Device, maps: DynamicMaps, *, interrupts: bool = False) -> None:
        self._device = device
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            device.enable(memory=True, bus_master=True)
            self._closing.callback(device.enable, memory=False, bus_master=False)
            self._memory = self._closing.enter_context(maps.allocate(64 * PAGE, tag="nvme"))
            self._pool = self._memory.pool(PAGE)
            self._bar = device.region(0)
            stride = 4 << (self._bar.read(CAP, 8) >> 32 & 0xF)
            self._stop()
            self._closing.callback(self._stop)
            self._admin = Queue(self._bar, 0, stride, self._pool)
            self._start()
            self.model, largest = self._identify()
            self.block, self.blocks = self._identify_namespace()
            self.transfer = min(TRANSFER, largest)
            self._io = self._make_queue(stride, interrupts=interrupts)
            undo.pop_all()

    def _stop(self) -> None:
        self._bar.write(CC, 0)
        self._wait(READY, 0)

    def _start(self) -> None:
        self._bar.write(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1))
        self._bar.write(ASQ, self._admin.commands.iova, 8)
        self._bar.write(ACQ, self._admin.answers.iova, 8)
        self._bar.write(CC, ENABLE | ENTRY_SIZES)
        self._wait(READY, READY)

    def _wait(self, mask: int, value: int) -> None:
        until = time.monotonic() + PATIENCE
        while (status := self._bar.read(CSTS)) & mask != value:
            if status & FATAL or time.monotonic() > until:
                raise NvmeError(f"the controller is not ready: status {status:#x}")
            time.sleep(0.001)

    @contextlib.contextmanager
    def _identified(self, namespace: int, what: int) -> Iterator[memoryview]:
        with self._pool.allocate(PAGE) as page:
            self._admin.do(IDENTIFY, namespace=namespace, prp1=page.iova, words=(what,))
            yield page.view

    def _identify(self) -> tuple[str, int]:
        """Return the name of the model, and the most bytes of a command."""
        with self._identified(0, 1) as answer:
            power = answer[77]
            return bytes(answer[24:64]).decode("ascii").strip(), PAGE << power if power else 1 << 62

    def _identify_namespace(self) -> tuple[int, int]:
        """Return bytes of a block and how many there are, of namespace 1."""
        with self._identified(1, 0) as answer:
            (count,) = struct.unpack_from("<Q", answer)
            (layout,) = struct.unpack_from("<I", answer, 128 + 4 * (answer[26] & 0xF))
            return 1 << (layout >> 16 & 0xFF), count

    def _make_queue(self, stride: int, *, interrupts: bool) -> Queue:
        self._admin.do(SET_FEATURES, words=(7, 0))  # one queue of each kind
        queue = Queue(self._bar, 1, stride, self._pool)
        if interrupts:
            (queue.event,) = self._closing.enter_context(self._device.interrupts("msix", 1))
        size = (ENTRIES - 1) << 16 | queue.number
        contiguous, raises = 1, 2 if interrupts else 0
        self._admin.do(CREATE_CQ, prp1=queue.answers.iova, words=(size, contiguous | raises))
        self._admin.do(
            CREATE_SQ, prp1=queue.commands.iova, words=(size, contiguous | queue.number << 16)
        )
        return queue

    def move(self, opcode: int, iova: int, offset: int, size: int) -> None:
        """Read or write `size` bytes at `offset` of the namespace, from or to an IOVA.

        Several commands are under way at a time, each with its list of pages.
        """
        with contextlib.ExitStack() as lists:
            free: list[DmaPart] = [
                lists.enter_context(self._pool.allocate(PAGE)) for _ in range(ENTRIES // 2)
            ]
            under_way = 0
            for at in range(0, size, self.transfer):
                if under_way == len(free):
                    self._io.finish()
                    under_way -= 1
                count = min(self.transfer, size - at)
                pages = free[at // self.transfer % len(free)]
                self._io.submit(
                    opcode,
                    namespace=1,
                    prp1=iova + at,
                    prp2=_page_list(pages, iova + at, count),
                    words=(
                        (offset + at) // self.block & 0xFFFF_FFFF,
                        (offset + at) // self.block >> 32,
                        count // self.block - 1,
                    ),
                )
                under_way += 1
            for _ in range(under_way):
                self._io.finish()

    def close(self) -> None:
        """Stop the controller, and give its memory back."""
        self._closing.close()


def _page_list(pages: DmaPart, iova: int, size: int) -> int:
    """Return the second PRP of a command: nothing, the second page, or a list of all others."""
    others = range(iova + PAGE, iova + size, PAGE)
    if len(others) < 2:
        return others[0] if others else 0
    pages.view[: 8 * len(others)] = struct.pack(f"<{len(others)}Q", *others)
    return pages.iova


def main(bdf: str, size: int, *, interrupts: bool = False, kernel: Kernel = LINUX) -> str:
    """Write, read back, compare; return what was done in one line."""
    with open_space([bdf], kernel=kernel) as space, contextlib.ExitStack() as stack:
        usable = with_kernel_facts(vi.load_host(kernel=kernel), space).usable(devices=[bdf])
        maps = stack.enter_context(DynamicMaps(vi.IovaAllocator(usable), space))
        disk = Nvme(space.device(bdf), maps, interrupts=interrupts)
        stack.callback(disk.close)
        if size % disk.block or size > disk.block * disk.blocks:
            raise NvmeError(f"{size:#x} bytes are not whole blocks of the {disk.blocks} there are")
        out = stack.enter_context(maps.allocate(size, page="2MiB", tag="written"))
        back = stack.enter_context(maps.allocate(size, page="2MiB", tag="read"))
        for at in range(0, size, 1 << 20):
            out.view[at : at + (1 << 20)] = os.urandom(min(1 << 20, size - at))
        disk.move(WRITE, out.iova, 0, size)
        disk.move(READ, back.iova, 0, size)
        wrong = sum(
            out.view[at : at + disk.block] != back.view[at : at + disk.block]
            for at in range(0, size, disk.block)
        )
        if wrong:
            raise NvmeError(f"{wrong} blocks of {size // disk.block} came back changed")
        how = "MSI-X" if interrupts else "polling"
        return f"{disk.model}: {size // disk.block} blocks written, read and the same, by {how}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="OVERWRITES the first blocks of an NVMe disk")
    parser.add_argument("bdf")
    parser.add_argument("size", type=vi.parse_size)
    parser.add_argument("--interrupts", action="store_true")
    chosen = parser.parse_args()
    print(main(chosen.bdf, chosen.size, interrupts=chosen.interrupts))
