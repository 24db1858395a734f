# SPDX-License-Identifier: Apache-2.0
"""What every device of the simulated kernel has: regions, configuration space, interrupts.

Source: drivers/vfio/pci/vfio_pci_core.c, vfio_pci_intrs.c, vfio_pci_config.c and
drivers/vfio/vfio_main.c (vfio_set_irqs_validate_and_prepare) of Linux 6.12 to 7.3.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vmm_iova.kernel import uapi
from vmm_iova.ranges import BASE_PAGE
from vmm_iova.simulated.model import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.kernel.syscalls import RegisterWindow

Dma = Callable[[int, int, bytes | None], bytes]
"""Reads memory at an IOVA as the device, or writes it: IOVA, bytes, and what is written."""

CONFIG, CONFIG_SIZE = 7, 256
REGIONS, IRQS = 9, 5
INTX, MSI, MSIX, ERROR, REQUEST = range(IRQS)
_OFFSET_SHIFT = 40  # as in drivers/vfio/pci/vfio_pci_core.h
_COMMAND, _STATUS, _CAPABILITIES, _PIN = 4, 6, 0x34, 0x3D
_MEMORY, _MASTER = 2, 4
_ACTIONS = uapi.IRQ_MASK | uapi.IRQ_UNMASK | uapi.IRQ_TRIGGER
_DATA = uapi.IRQ_DATA_NONE | uapi.IRQ_DATA_BOOL | uapi.IRQ_DATA_EVENTFD
_WIDTHS = {uapi.IRQ_DATA_NONE: 0, uapi.IRQ_DATA_BOOL: 1, uapi.IRQ_DATA_EVENTFD: 4}
_CAP_POWER, _CAP_EXPRESS, _CAP_MSIX = 0x01, 0x10, 0x11
_POWER_AT, _EXPRESS_AT, _MSIX_AT = 0x40, 0x50, 0x70


class SimPci:
    """A device; what its registers do is in the classes made of it.

    Args:
        dma: reads (`data` is None) or writes memory at an IOVA, as the device.

    Attributes:
        resets: whether the kernel has a way to reset it.
        sparse: areas of BAR 0 that may be mapped, as a driver of its own would say; None for all.
        reports_errors: whether it has the error interrupt.
        widest: bytes of the widest access that the kernel makes for one of user space.
        windows: how many mappings of registers there are.
    """

    vendor: ClassVar[int]
    device: ClassVar[int]
    class_code: ClassVar[int]
    revision: ClassVar[int]
    bar_size: ClassVar[int]
    express: ClassVar[bool] = False
    irqs: ClassVar[dict[int, int]]
    msix_table: ClassVar[tuple[int, int] | None] = None
    """Where the table of MSI-X lies in BAR 0, and its entries."""

    def __init__(self, dma: Dma) -> None:
        self._dma = dma
        self.resets = True
        self.sparse: tuple[tuple[int, int], ...] | None = None
        self.reports_errors = self.express
        self.widest = 8
        self.windows = 0
        self._kind: int | None = None
        self._events: dict[tuple[int, int], int] = {}
        self._masked = False
        self.config = bytearray(CONFIG_SIZE)
        self._write_config()
        self.clear()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.vendor:04x}:{self.device:04x}>"

    # What a device is made of.

    def clear(self) -> None:
        """Put the registers into the state after power-on."""
        raise NotImplementedError

    def load(self, at: int, size: int) -> bytes:
        """Read registers of BAR 0."""
        raise NotImplementedError

    def store(self, at: int, data: bytes) -> None:
        """Write registers of BAR 0; some start something."""
        raise NotImplementedError

    def line(self) -> bool:
        """Whether the device holds its INTx line down."""
        return False

    def _write_config(self) -> None:
        struct.pack_into("<HHHH", self.config, 0, self.vendor, self.device, _MEMORY, 0)
        struct.pack_into("<I", self.config, 8, self.class_code << 8 | self.revision)
        self.config[_PIN] = 1 if self.irqs.get(INTX) else 0
        chain = []
        if self.express:
            chain += [(_POWER_AT, _CAP_POWER, b""), (_EXPRESS_AT, _CAP_EXPRESS, b"\x02")]
        if self.msix_table is not None:
            at, entries = self.msix_table
            chain.append((_MSIX_AT, _CAP_MSIX, struct.pack("<HII", entries - 1, at, at + 0x1000)))
        where = _CAPABILITIES
        for at, number, body in chain:
            self.config[where] = at
            self.config[at : at + 2 + len(body)] = bytes((number, 0)) + body
            where = at + 1
        if chain:
            self.config[_STATUS] |= 0x10

    @property
    def _command(self) -> int:
        word: int = struct.unpack_from("<H", self.config, _COMMAND)[0]
        return word

    @property
    def master(self) -> bool:
        """Whether it may do DMA."""
        return bool(self._command & _MASTER) and self._awake

    @property
    def _awake(self) -> bool:
        return not self.express or self.config[_POWER_AT + 4] & 3 == 0

    @property
    def answers(self) -> bool:
        """Whether the registers of its BARs can be reached."""
        return bool(self._command & _MEMORY) and self._awake

    # Calls of the kernel.

    def reset(self) -> None:
        """VFIO_DEVICE_RESET: the registers are new, what the kernel keeps of the rest stays."""
        if not self.resets:
            raise refuse(errno.EINVAL)
        self.clear()

    def close(self) -> None:
        """The last file is closed: the device is as it was found, and does nothing any more.

        Where the kernel has a way to reset it, it does (vfio_pci_core_disable).
        """
        if self._kind is not None:
            self._disable(self._kind)
        for key in list(self._events):
            self._forget(key)
        self._write_config()
        if self.resets:
            self.clear()

    def size(self, index: int) -> int:
        """Bytes of a region."""
        return {0: self.bar_size, CONFIG: CONFIG_SIZE}.get(index, 0)

    def _accesses(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Cut an access of a BAR as the kernel does: where each part begins, and its bytes.

        What lies behind the end is left out; 8 bytes are one access since 6.11.
        """
        index, at = offset >> _OFFSET_SHIFT, offset & (1 << _OFFSET_SHIFT) - 1
        if at >= self.size(index):
            raise refuse(errno.EINVAL)
        if not self.answers:
            raise refuse(errno.EIO)
        stop = min(at + size, self.size(index))
        while at < stop:
            fits = (w for w in (8, 4, 2, 1) if w <= min(self.widest, stop - at))
            width = next(w for w in fits if at % w == 0)
            yield at, width
            at += width

    def pread(self, size: int, offset: int) -> bytes:
        """Read registers through the file of the device."""
        if offset >> _OFFSET_SHIFT == CONFIG:
            at = self._config_place(offset, size)
            return bytes(self.config[at : at + size])
        # The table of MSI-X is the kernel's own.
        return b"".join(
            b"\xff" * width if self._in_table(at, width) else self.load(at, width)
            for at, width in self._accesses(offset, size)
        )

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write registers; some start something."""
        if offset >> _OFFSET_SHIFT == CONFIG:
            for number, byte in enumerate(data, self._config_place(offset, len(data))):
                self._write_config_byte(number, byte)
            return len(data)
        done = 0
        for at, width in self._accesses(offset, len(data)):
            if not self._in_table(at, width):
                self.store(at, data[done : done + width])
            done += width
        return done

    def _config_place(self, offset: int, size: int) -> int:
        at = offset & (1 << _OFFSET_SHIFT) - 1
        if at + size > CONFIG_SIZE:
            raise refuse(errno.EFAULT)
        return at

    def _write_config_byte(self, at: int, byte: int) -> None:
        if at == _COMMAND:
            self.config[at] = byte & (_MEMORY | _MASTER)
        elif self.express and at == _POWER_AT + 4:
            self.config[at] = byte & 3

    def _in_table(self, at: int, size: int) -> bool:
        if self.msix_table is None:
            return False
        start, entries = self.msix_table
        return at < start + 16 * entries and at + size > start

    def region_info(self, arg: bytearray) -> int:
        """VFIO_DEVICE_GET_REGION_INFO."""
        argsz, _, index = struct.unpack_from("=III", arg)
        if argsz < uapi.REGION_INFO.size or index >= REGIONS:
            raise refuse(errno.EINVAL)
        size = self.size(index)
        flags = uapi.REGION_FLAG_READ | uapi.REGION_FLAG_WRITE if size else 0
        chain = b""
        if index == 0:
            flags |= uapi.REGION_FLAG_MMAP
            chain = self._region_chain()
        total, first = argsz, 0
        if chain:
            flags |= uapi.REGION_FLAG_CAPS
            if argsz < uapi.REGION_INFO.size + len(chain):
                total = uapi.REGION_INFO.size + len(chain)
            else:
                first = uapi.REGION_INFO.size
                arg[first : first + len(chain)] = chain
        uapi.REGION_INFO.codec.pack_into(
            arg, 0, total, flags, index, first, size, index << _OFFSET_SHIFT
        )
        return 0

    def _region_chain(self) -> bytes:
        if self.sparse is not None:
            areas = b"".join(uapi.SPARSE_AREA.codec.pack(*area) for area in self.sparse)
            head = uapi.SPARSE_HEAD.codec.pack(uapi.CAP_SPARSE_MMAP, 1, 0, len(self.sparse), 0)
            return head + areas
        if self.msix_table is not None:
            return uapi.CAP_HEADER.codec.pack(uapi.CAP_MSIX_MAPPABLE, 1, 0)
        return b""

    def map_registers(self, size: int, offset: int) -> RegisterWindow:
        """Mmap of registers: whole pages of what may be mapped."""
        index, at = offset >> _OFFSET_SHIFT, offset & (1 << _OFFSET_SHIFT) - 1
        if index != 0 or at % BASE_PAGE or not 0 < size <= self.bar_size - at:
            raise refuse(errno.EINVAL)
        areas = ((0, self.bar_size),) if self.sparse is None else self.sparse
        if not any(start <= at and at + size <= start + length for start, length in areas):
            raise refuse(errno.EINVAL)
        return SimWindow(self, at)

    # Interrupts.

    def irq_info(self, arg: bytearray) -> int:
        """VFIO_DEVICE_GET_IRQ_INFO."""
        argsz, _, index, _ = uapi.IRQ_INFO.codec.unpack_from(arg)
        known = index < IRQS and (index != ERROR or self.reports_errors)
        if argsz < uapi.IRQ_INFO.size or not known:
            raise refuse(errno.EINVAL)
        more = uapi.IRQ_INFO_NORESIZE
        if index == INTX:
            more = uapi.IRQ_INFO_MASKABLE | uapi.IRQ_INFO_AUTOMASKED
        flags = uapi.IRQ_INFO_EVENTFD | more
        uapi.IRQ_INFO.codec.pack_into(arg, 0, argsz, flags, index, self._count(index))
        return 0

    def _count(self, index: int) -> int:
        if index == ERROR:
            return int(self.reports_errors)
        return 1 if index == REQUEST else self.irqs.get(index, 0)

    def set_irqs(self, arg: bytearray) -> int:
        """VFIO_DEVICE_SET_IRQS: one action on interrupts of one index."""
        argsz, flags, index, start, count = uapi.IRQ_SET.codec.unpack_from(arg)
        data = flags & _DATA
        if argsz < uapi.IRQ_SET.size or index >= IRQS or flags & ~(_DATA | _ACTIONS):
            raise refuse(errno.EINVAL)
        if start >= self._count(index) or start + count > self._count(index):
            raise refuse(errno.EINVAL)
        if data not in _WIDTHS or argsz - uapi.IRQ_SET.size < count * _WIDTHS[data]:
            raise refuse(errno.EINVAL)
        action = flags & _ACTIONS
        values: tuple[int, ...] = ()
        if data != uapi.IRQ_DATA_NONE:
            code = "i" if data == uapi.IRQ_DATA_EVENTFD else "B"
            values = struct.unpack_from(f"={count}{code}", arg, uapi.IRQ_SET.size)
        if index == INTX and action in (uapi.IRQ_MASK, uapi.IRQ_UNMASK):
            self._mask_line(action == uapi.IRQ_MASK, data, count, values)
        elif action != uapi.IRQ_TRIGGER or (index == ERROR and not self.reports_errors):
            raise refuse(errno.ENOTTY)
        elif index in (ERROR, REQUEST):
            self._set_single(index, data, count, values)
        elif data == uapi.IRQ_DATA_NONE and not count and self._kind == index:
            self._disable(index)
        else:
            self._set_events(index, data, range(start, start + count), values)
        return 0

    def _mask_line(self, hold: bool, data: int, count: int, values: tuple[int, ...]) -> None:
        if self._kind != INTX or count != 1:
            raise refuse(errno.EINVAL)
        if data == uapi.IRQ_DATA_EVENTFD:
            raise refuse(errno.ENOTTY)  # the simulation has no unmasking by eventfd
        if data == uapi.IRQ_DATA_NONE or values[0]:
            self._masked = hold
            self.update_line()

    def _set_single(self, index: int, data: int, count: int, values: tuple[int, ...]) -> None:
        """The error or the request interrupt: one, beside whatever else is on."""
        key = (index, 0)
        if data == uapi.IRQ_DATA_EVENTFD:
            if not count:
                raise refuse(errno.EINVAL)
            self._remember(key, values[0])
        elif data == uapi.IRQ_DATA_BOOL:
            if not count:
                raise refuse(errno.EINVAL)
            if values[0]:
                self.signal(index)
        elif key not in self._events:
            raise refuse(errno.EINVAL)
        elif count:
            self.signal(index)
        else:
            self._forget(key)

    def _set_events(self, index: int, data: int, numbers: range, values: tuple[int, ...]) -> None:
        if self._kind not in (None, index) or (index == INTX and len(numbers) != 1):
            raise refuse(errno.EINVAL)
        if data == uapi.IRQ_DATA_EVENTFD:
            self._switch_on(index, numbers, values)
            return
        if self._kind != index:
            raise refuse(errno.EINVAL)
        for place, number in enumerate(numbers):
            if data == uapi.IRQ_DATA_NONE or values[place]:
                self.signal(index, number)

    def _switch_on(self, index: int, numbers: range, values: tuple[int, ...]) -> None:
        was, self._kind = self._kind, index
        try:
            if was is None and index != INTX and not numbers:
                raise refuse(errno.ERANGE)
            for number, fd in zip(numbers, values, strict=True):
                if index != INTX:
                    self._forget((index, number))  # before the new one is looked at
                self._remember((index, number), fd)
        except OSError:
            if was is None:
                self._disable(index)
            raise
        if index == INTX and was is None:  # another event for one that is on: masked as it was
            self._masked = False
            self.update_line()

    def _remember(self, key: tuple[int, int], fd: int) -> None:
        """Take hold of an eventfd, as the kernel does: it lives on when its owner closes it."""
        if fd < -1 or (fd == -1 and key not in self._events):
            return
        if fd >= 0:
            try:
                target = str(Path(f"/proc/self/fd/{fd}").readlink())
            except OSError:
                raise refuse(errno.EBADF) from None
            if "[eventfd]" not in target:
                raise refuse(errno.EINVAL)
        self._forget(key)
        if fd >= 0:
            self._events[key] = os.dup(fd)

    def _forget(self, key: tuple[int, int]) -> None:
        fd = self._events.pop(key, None)
        if fd is not None:
            os.close(fd)

    def _disable(self, index: int) -> None:
        for key in [key for key in self._events if key[0] == index]:
            self._forget(key)
        self._kind = None

    def signal(self, index: int, number: int = 0) -> None:
        """Raise an event, if somebody waits for it."""
        fd = self._events.get((index, number))
        if fd is not None:
            os.eventfd_write(fd, 1)

    def signal_error(self) -> None:
        """Raise the error interrupt, as the kernel does when PCI Express reports one (AER)."""
        self.signal(ERROR)

    def signal_request(self) -> None:
        """Raise the request interrupt, as the kernel does when the device is to be unbound."""
        self.signal(REQUEST)

    def interrupt(self, number: int = 0) -> None:
        """Raise an interrupt by the way that is on."""
        if self._kind in (MSI, MSIX) and self.master:
            self.signal(self._kind, number)
        self.update_line()

    def update_line(self) -> None:
        """Pass INTx on, and mask it with that, as the kernel does."""
        if self._kind == INTX and not self._masked and self.line():
            self._masked = True
            self.signal(INTX)


class SimWindow:
    """A mapping of registers; each access is one of the device.

    Args:
        device: whose.
        start: offset in BAR 0.
    """

    def __init__(self, device: SimPci, start: int) -> None:
        self._device = device
        self._start = start
        self._open = True
        device.windows += 1

    def _check(self) -> None:
        # A real kernel takes the mapping away, and the access kills the process.
        if not self._open or not self._device.answers:
            raise RuntimeError("SIGBUS: registers of a device that does not answer were touched")

    def load(self, at: int, width: int) -> int:
        """Read a register, in the byte order of the machine."""
        self._check()
        return int.from_bytes(self._device.load(self._start + at, width), sys.byteorder)

    def store(self, at: int, width: int, value: int) -> None:
        """Write one."""
        self._check()
        self._device.store(self._start + at, value.to_bytes(width, sys.byteorder))

    def close(self) -> None:
        """Unmap it. Idempotent."""
        if self._open:
            self._open = False
            self._device.windows -= 1
