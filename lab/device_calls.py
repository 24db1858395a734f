"""Calls on one device for the differential: registers, configuration space, interrupts, reset.

The device is QEMU's `edu` on the real kernel and the one that the simulation has after it. What is
compared is what both have: not the copies, which take a tenth of a second there, and not the
buffer, which only the simulation lets one read.
"""

from __future__ import annotations

import os
import select
import struct
import time
from typing import TYPE_CHECKING

from vmm_iova.kernel import uapi
from vmm_iova.kernel.windows import COMMAND, CONFIG, MASTER, MEMORY

from lab.calls import Answer, Op

if TYPE_CHECKING:
    import random

    from vmm_iova.kernel.syscalls import Kernel, RegisterWindow

BAR_SIZE = 1 << 20
_FACTORIAL, _STATUS, _RAISE, _ACK = 0x08, 0x20, 0x60, 0x64
_REGISTERS = (0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64, 0x80, 0x84, 0x88, 0x90, 0x98, 0x0C, 0x1000)
_FROM, _TO, _COUNT, _COPY, _BUFFER = 0x80, 0x88, 0x90, 0x98, 0x40000
_FIRST = (
    *((_STATUS, 0), (_ACK, 0xFFFF_FFFF), (0x04, 0xFFFF_FFFF), (_FACTORIAL, 1)),
    *((_FROM, 0), (_TO, _BUFFER), (_COUNT, 1), (_COPY, 1)),
)
"""Registers and what is written there at first; the last copies a byte, if memory is there.

Of no bytes QEMU takes it for an attack, and ends (edu_check_range, hw/misc/edu.c, 7.2)."""

_EVENTS = 4
_SETTLE = 0.01
"""Seconds in which an interrupt would have come that should not."""

_ARRIVES = 5.0
"""Seconds in which one arrives that was raised, on a busy machine."""


class DeviceCalls:
    """One open device, and what is asked of it."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self._kernel = kernel
        self._fd = fd
        self._events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(_EVENTS)]
        self._window: RegisterWindow | None = None
        self._fresh = False

    def close(self) -> None:
        """Give windows and events back."""
        if self._window is not None:
            self._window.close()
        for fd in self._events:
            os.close(fd)

    def ioctl(self, request: int, arg: bytearray) -> Answer:
        """Make a call; of a refused one nothing was written."""
        try:
            value = self._kernel.ioctl(self._fd, request, arg)
        except OSError as error:
            return Answer(error.errno or 0)
        return Answer(0, value, bytes(arg))

    def op_region(self, index: int, argsz: int) -> Answer:
        """Ask for a region."""
        arg = uapi.REGION_INFO.pack(max(argsz, 32), argsz=argsz, index=index)
        return self.ioctl(uapi.DEVICE_GET_REGION_INFO, arg)

    def op_irq(self, index: int, argsz: int) -> Answer:
        """Ask for interrupts."""
        return self.ioctl(uapi.DEVICE_GET_IRQ_INFO, uapi.IRQ_INFO.pack(argsz=argsz, index=index))

    def op_set(
        self, index: int, flags: int, start: int, count: int, spare: int, event: int
    ) -> Answer:
        """Switch interrupts on or off, mask, unmask or raise them."""
        if index == 0 and flags & uapi.IRQ_DATA_EVENTFD:
            self._lower()
        known = event < _EVENTS
        fd = self._events[event] if known else (-1, 999_999, 0)[event - _EVENTS]
        width = {uapi.IRQ_DATA_BOOL: 1, uapi.IRQ_DATA_EVENTFD: 4}.get(flags & 7, 0)
        data = struct.pack("=i", fd) * count if width == 4 else bytes([event & 1]) * count * width
        size = uapi.IRQ_SET.size + len(data)
        arg = uapi.IRQ_SET.pack(
            size, argsz=size - spare, flags=flags, index=index, start=start, count=count
        )
        arg[uapi.IRQ_SET.size :] = data
        answer = self.ioctl(uapi.DEVICE_SET_IRQS, arg)
        return Answer(answer.errno, answer.value)

    def _lower(self) -> None:
        """Take back what the device raises, before INTx is switched on.

        A line that is held then is passed on by hardware. QEMU's I/O APIC forgets the level of a
        pin while nobody uses it (hw/intc/ioapic.c: Linux makes its entry one of edges), so the lab
        cannot show it.
        """
        command = self._read(CONFIG, COMMAND, 2).data
        self._write(CONFIG, COMMAND, command[0] | MEMORY, 2)
        self.op_ack(0xFFFF_FFFF)
        self._write(CONFIG, COMMAND, command[0], 2)

    def op_reset(self) -> Answer:
        """Reset."""
        return self.ioctl(uapi.DEVICE_RESET, bytearray(4))

    def _begin(self) -> None:
        """Give the registers their first values: what other tests left in them is not compared.

        The last command of a copy stays in its register, so there has to be a last one.
        """
        try:
            before = self._kernel.pread(self._fd, 2, (CONFIG << 40) + COMMAND)
        except OSError:
            return  # not open yet, as a cdev is that is bound to nothing
        self._fresh = True
        self.op_command(MASTER | MEMORY)
        for at, value in _FIRST:
            self._write(0, at, value, 4)
            self._computed(at)
        ends = time.monotonic() + _ARRIVES
        while self._read(0, _COPY, 4).data[:1] != b"\0" and time.monotonic() < ends:
            time.sleep(_SETTLE)
        self._write(0, _TO, 0, 8)
        self._write(0, _COUNT, 0, 8)
        self.op_command(int.from_bytes(before, "little"))

    def _read(self, index: int, at: int, width: int) -> Answer:
        if not self._fresh:
            self._begin()
        try:
            return Answer(0, 0, self._kernel.pread(self._fd, width, (index << 40) + at))
        except OSError as error:
            return Answer(error.errno or 0)

    def _write(self, index: int, at: int, value: int, width: int) -> Answer:
        if not self._fresh:
            self._begin()
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        try:
            return Answer(0, self._kernel.pwrite(self._fd, data, (index << 40) + at))
        except OSError as error:
            return Answer(error.errno or 0)

    def op_load(self, at: int, width: int) -> Answer:
        """Read a register through the descriptor."""
        return self._read(0, at, width)

    def op_store(self, at: int, value: int, width: int) -> Answer:
        """Write one."""
        answer = self._write(0, at, value, width)
        self._computed(at)
        return answer

    def _computed(self, at: int) -> None:
        """Wait for the factorial, which QEMU computes beside."""
        while at == _FACTORIAL and self._read(0, _STATUS, 4).data[:1] in (b"\x01", b"\x81"):
            pass

    def op_config(self, at: int, width: int) -> Answer:
        """Read the configuration space: of the command register, what both devices have of it."""
        answer = self._read(CONFIG, at, width)
        if at == COMMAND and not answer.errno:
            return Answer(0, 0, bytes([answer.data[0] & (MEMORY | MASTER)]))
        return answer

    def op_command(self, value: int) -> Answer:
        """Write the command register."""
        return self._write(CONFIG, COMMAND, value, 2)

    def _mapped(self) -> RegisterWindow | None:
        """Map the BAR once; None where the device does not answer, as a load would be the end."""
        if self._window is None:
            self._window = self._kernel.map_registers(self._fd, BAR_SIZE, 0)
        command = self._read(CONFIG, COMMAND, 1)
        return self._window if not command.errno and command.data[0] & MEMORY else None

    def op_peek(self, at: int, width: int) -> Answer:
        """Read a register that is mapped."""
        window = self._mapped()
        return Answer(1) if window is None else Answer(0, window.load(at, width))

    def op_poke(self, at: int, value: int, width: int) -> Answer:
        """Write one."""
        window = self._mapped()
        if window is None:
            return Answer(1)
        window.store(at, width, value & (1 << 8 * width) - 1)
        self._computed(at)
        return Answer(0)

    def op_raise(self, value: int) -> Answer:
        """Let the device raise an interrupt."""
        return self.op_store(_RAISE, value, 4)

    def op_ack(self, value: int) -> Answer:
        """Take it back."""
        return self.op_store(_ACK, value, 4)

    def op_seen(self) -> Answer:
        """Look which events were raised since the last look."""
        raised = set[int]()
        # Of two interrupts the second may come while the first is read: it belongs to this look.
        while now := self.raised(_SETTLE):
            for fd in now:
                os.eventfd_read(fd)
            raised.update(now)
        return Answer(0, 0, bytes(fd in raised for fd in self._events))

    def raised(self, seconds: float = 0) -> list[int]:
        """Return the events that are raised; wait so long for the first."""
        return select.select(self._events, [], [], seconds)[0]

    def keeps_up(self, other: DeviceCalls) -> bool:
        """Wait until here is raised what is there: a real interrupt takes its time to arrive."""
        until = time.monotonic() + _ARRIVES
        wanted = {other._events.index(fd) for fd in other.raised()}
        while not wanted <= {self._events.index(fd) for fd in self.raised()}:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True


def device_ops(rng: random.Random, count: int) -> list[Op]:
    """Make a sequence of calls on a device."""
    ops: list[Op] = []
    while len(ops) < count:
        ops.append(_one(rng))
        if ops[-1].name == "raise":
            ops.append(Op("seen"))
    return ops


def _one(rng: random.Random) -> Op:
    kind = rng.random()
    at = rng.choice(_REGISTERS)
    if kind < 0.3:
        width = rng.choice((4, 4, 4, 8, 2, 1))
        if rng.random() < 0.05:
            return Op("load", (rng.choice((BAR_SIZE - width, BAR_SIZE - 1, BAR_SIZE)), width))
        return Op("load" if at % width or rng.random() < 0.6 else "peek", (at, width))
    if kind < 0.5:
        at, width = rng.choice((0x04, 0x08, 0x80, 0x88, 0x90, 0x20)), rng.choice((4, 4, 8, 2))
        width = 4 if at == 0x04 else width  # of 8 bytes, the kernel makes two, one a factorial
        value = rng.getrandbits(64) & ~1
        value = value % 30 if at == _FACTORIAL else value & ~0x80 if at == _STATUS else value
        return Op(rng.choice(("store", "poke")), (at, value, width))
    if kind < 0.56:
        at, width = rng.choice(((0, 2), (2, 2), (0, 4), (8, 4), (COMMAND, 1), (0x3D, 1), (256, 4)))
        return Op("config", (at, width))
    if kind < 0.62:
        return Op("command", (rng.choice((6, 6, 6, 6, 2, 4, 0)),))
    if kind < 0.66:
        return Op("region", (rng.choice((0, 1, 5, 7, 9, 40)), rng.choice((32, 32, 64, 31, 0))))
    if kind < 0.7:
        return Op("irq", (rng.randrange(7), rng.choice((16, 16, 16, 15, 0))))
    if kind < 0.72:
        return Op("reset")
    if kind < 0.74:
        return Op("seen")
    if kind < 0.78:
        return Op("raise", (rng.choice((1, 2, 0x100, 0)),))
    if kind < 0.82:
        return Op("ack", (rng.choice((0xFFFF_FFFF, 1, 2)),))
    return _interrupt(rng)


def _interrupt(rng: random.Random) -> Op:
    index = rng.choice((0, 0, 1, 1, 1, 2, 3, 4, 4, 6))
    events, none = (uapi.IRQ_DATA_EVENTFD,) * 3, (uapi.IRQ_DATA_NONE,) * 3
    data = rng.choice((*events, *none, uapi.IRQ_DATA_BOOL, 0, 5))
    action = rng.choice((uapi.IRQ_TRIGGER,) * 5 + (uapi.IRQ_MASK, uapi.IRQ_UNMASK))
    if index == 0 and data == uapi.IRQ_DATA_EVENTFD and action == uapi.IRQ_UNMASK:
        action = uapi.IRQ_TRIGGER  # unmasking by an eventfd of the user: the simulation has none
    flags = data | action | (64 if rng.random() < 0.02 else 0)
    start, count = rng.choice(((0, 1),) * 6 + ((0, 0),) * 3 + ((1, 1), (0, 2), (1, 0)))
    event = rng.choice((0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6))
    return Op("set", (index, flags, start, count, int(rng.random() < 0.03), event))
