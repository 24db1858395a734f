# SPDX-License-Identifier: Apache-2.0
"""A device in the hand: its registers, its configuration space, its reset and its interrupts.

    device = space.device("0000:01:00.0")
    device.enable(memory=True, bus_master=True)
    bar = device.region(0)
    bar.write(0x80, iova, 8)
    with device.interrupts("msi", 1) as (event,):
        bar.write(0x98, 1, 8)
        event.wait(1.0)

Source: include/uapi/linux/vfio.h, drivers/vfio/pci/vfio_pci_core.c, vfio_pci_intrs.c (Linux 7.3).
"""

from __future__ import annotations

import errno
import os
import select
import struct
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from vmm_iova.errors import ClosedError, DmaError, IovaError, RequestError
from vmm_iova.kernel import caps, uapi
from vmm_iova.kernel.syscalls import LINUX, hold
from vmm_iova.kernel.windows import COMMAND, CONFIG, MASTER, MEMORY, WIDEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmm_iova.kernel.syscalls import Kernel, RegisterWindow
    from vmm_iova.kernel.windows import Windows
    from vmm_iova.ranges import AddrRange

Order = Literal["little", "native"]
"""Of the bytes of a register; those of PCI are little-endian, on every host."""

Width = Literal[1, 2, 4, 8]
"""Bytes of a register."""

InterruptKind = Literal["intx", "msi", "msix", "error", "request"]
"""How a device raises one; `error` and `request` come from the kernel (AER, and unbinding)."""

_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_ERROR = 3


class Region:
    """A region of a device: a BAR, or the configuration space.

    Registers are mapped into this process where the kernel allows it, when the first of them is
    touched. The others go through the device's descriptor: regions that cannot be mapped, the
    pages with the table of MSI-X, all of them on s390 (whose processors reach them by
    instructions of their own), and those of a device that does not answer. There, kernels before
    6.11 make two accesses of one of 8 bytes (drivers/vfio/pci/vfio_pci_rdwr.c).

    Attributes:
        index: 0 to 5 are the BARs, 6 the ROM, 7 the configuration space.
        size: bytes; 0 for one that the device does not have.
        flags: `uapi.REGION_FLAG_*`.
        offset: where it lies in the device's file.

    Synchronization: external.
    """

    def __init__(self, kernel: Kernel, windows: Windows, fd: Callable[[], int], index: int) -> None:
        self._kernel = kernel
        self._windows = windows
        self._fd = fd
        self.index = index
        number = fd()
        ask = partial(kernel.ioctl, number, uapi.DEVICE_GET_REGION_INFO)
        try:
            answer = uapi.grow_by_argsz(ask, uapi.REGION_INFO, index=index)
        except OSError as exc:
            raise DmaError(
                f"the device has no region {index}: {exc.strerror}",
                errno=exc.errno or 0,
                ioctl="VFIO_DEVICE_GET_REGION_INFO",
            ) from exc
        fields, allowed = caps.read_region_info(answer)
        self._mappable = windows.areas(number, index, allowed)
        self.size, self.flags, self.offset = fields["size"], fields["flags"], fields["offset"]

    def __repr__(self) -> str:
        return f"<Region {self.index}, {self.size:#x} bytes>"

    @property
    def mappable(self) -> tuple[AddrRange, ...]:
        """Offsets of registers that are reached without a call of the kernel: whole pages."""
        return self._mappable

    def read(self, offset: int, width: Width = 4, order: Order = "little") -> int:
        """Read a register, in one access of exactly this width.

        Args:
            offset: bytes from the start of the region, a multiple of `width`.
            width: bytes: 1, 2, 4 or 8.
            order: of its bytes.

        Raises:
            RequestError: not inside the region, or not aligned.
            DmaError: the kernel refused; `EIO` memory is not enabled, or the power is off.
        """
        where = self._where(offset, width)
        fd = self._fd()
        found = self._mapped(fd, offset, width)
        if found is not None:
            return _ordered(found[0].load(found[1], width), width, order)
        try:
            data = self._kernel.pread(fd, width, where)
        except OSError as exc:
            raise self._refused("read", offset, exc.errno or 0, "pread") from exc
        if len(data) != width:
            raise self._refused("read", offset, errno.EIO, "pread")
        value: int = struct.unpack(_format(width, order), data)[0]
        return value

    def write(self, offset: int, value: int, width: Width = 4, order: Order = "little") -> None:
        """Write a register, in one access of exactly this width; raises as `read`.

        Args:
            offset: bytes from the start of the region, a multiple of `width`.
            value: from 0 up, that fits `width` bytes.
            width: bytes: 1, 2, 4 or 8.
            order: of its bytes.
        """
        where = self._where(offset, width)
        try:
            data = struct.pack(_format(width, order), value)
        except struct.error as exc:
            raise RequestError(
                f"{value!r} does not fit a register of {width} bytes", field="value", value=value
            ) from exc
        fd = self._fd()
        found = self._mapped(fd, offset, width)
        if found is not None:
            found[0].store(found[1], width, _ordered(value, width, order))
            return
        if self.index == CONFIG:
            self._windows.changed()
        try:
            written = self._kernel.pwrite(fd, data, where)
        except OSError as exc:
            raise self._refused("written", offset, exc.errno or 0, "pwrite") from exc
        if written != width:
            raise self._refused("written", offset, errno.EIO, "pwrite")

    def _mapped(self, fd: int, offset: int, width: int) -> tuple[RegisterWindow, int] | None:
        """Return the window with a register and where in it; None: by the descriptor."""
        for area in self._mappable:
            if area.start <= offset and offset + width - 1 <= area.last:
                break
        else:
            return None
        if width > WIDEST or not self._windows.answer(fd):
            return None
        window = self._windows.window(fd, self.index, area, self.offset + area.start)
        return None if window is None else (window, offset - area.start)

    def _where(self, offset: int, width: int) -> int:
        if width not in _CODES:
            raise RequestError(
                f"a register has 1, 2, 4 or 8 bytes, not {width!r}", field="width", value=width
            )
        if not isinstance(offset, int) or offset < 0 or offset + width > self.size:
            shown = f"{offset:#x}" if isinstance(offset, int) else repr(offset)
            raise RequestError(
                f"{width} bytes at {shown} are not inside region {self.index} of "
                f"{self.size:#x} bytes",
                field="offset",
                value=offset,
            )
        if offset % width:
            raise RequestError(
                f"offset {offset:#x} is not a multiple of the width {width}",
                field="offset",
                value=offset,
            )
        return self.offset + offset

    def _refused(self, done: str, offset: int, number: int, call: str) -> DmaError:
        return DmaError(
            f"region {self.index} cannot be {done} at {offset:#x}: {os.strerror(number)}",
            errno=number,
            ioctl=call,
            hint="enable(memory=True) lets a PCI device answer on its BARs",
        )


class Event:
    """An interrupt of a device, as an eventfd.

    For `select`, threads and asyncio (`loop.add_reader(event.fileno(), ...)`).

    Synchronization: the kernel's; `wait` may be called from any thread.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __repr__(self) -> str:
        return f"<Event, descriptor {self._fd}>"

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def take(self) -> int:
        """Return how often it was raised since the last call, and do not wait."""
        try:
            return os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0

    def wait(self, seconds: float | None = None) -> int:
        """Wait until it is raised; return how often, 0 when the time is over."""
        ready, _, _ = select.select([self._fd], [], [], seconds)
        return self.take() if ready else 0


class Device:
    """A device of an open address space.

    It is as open as the space is: closing the space closes it. Make one with `space.device(bdf)`.

    Attributes:
        bdf: which one.
        info: what `VFIO_DEVICE_GET_INFO` says.

    Synchronization: external.
    """

    def __init__(self, kernel: Kernel, windows: Windows, fd: Callable[[], int], bdf: str) -> None:
        self._kernel = kernel
        self._windows = windows
        self._open_fd = fd
        self.bdf = bdf
        self.info = device_facts(self.fd, kernel)

    def __repr__(self) -> str:
        return f"<Device {self.bdf}, {self.info.regions} regions>"

    @property
    def fd(self) -> int:
        """The descriptor.

        Raises:
            ClosedError: the space is closed, or the device is, and was opened again.
        """
        fd = self._open_fd()
        if self._windows.closed:
            raise ClosedError(f"{self.bdf} was closed: ask its space for it anew")
        return fd

    def region(self, index: int) -> Region:
        """Return a region: 0 to 5 are the BARs.

        Raises:
            DmaError: `EINVAL` the device has no such region.
        """
        return Region(self._kernel, self._windows, lambda: self.fd, index)

    @property
    def config(self) -> Region:
        """The configuration space."""
        return self.region(CONFIG)

    def enable(self, *, memory: bool = True, bus_master: bool = True) -> None:
        """Set or clear in the command register whether BARs answer, and whether it may do DMA."""
        config = self.config
        command = config.read(COMMAND, 2) & ~(MEMORY | MASTER)
        command |= (MEMORY if memory else 0) | (MASTER if bus_master else 0)
        config.write(COMMAND, command, 2)

    def reset(self) -> None:
        """Reset the device; its registers are as after power-on.

        Raises:
            DmaError: `ENOTTY` the device, or its driver, has no reset of its own.
        """
        self._windows.changed()
        try:
            self._kernel.ioctl(self.fd, uapi.DEVICE_RESET)
        except OSError as exc:
            raise DmaError(
                f"{self.bdf} cannot be reset: {exc.strerror}",
                errno=exc.errno or 0,
                ioctl="VFIO_DEVICE_RESET",
            ) from exc

    def interrupt_count(self, kind: InterruptKind) -> int:
        """Return how many interrupts of a kind the device has; 0 when none.

        Raises:
            RequestError: there is no such kind.
            DmaError: the kernel refused.
        """
        index = _index(kind)
        if index >= self.info.irqs:
            return 0
        arg = uapi.IRQ_INFO.pack(argsz=uapi.IRQ_INFO.size, index=index)
        try:
            self._kernel.ioctl(self.fd, uapi.DEVICE_GET_IRQ_INFO, arg)
        except OSError as exc:
            if index == _ERROR and exc.errno == errno.EINVAL:
                return 0  # before about 7.1, of a device that is not PCI Express
            raise DmaError(
                f"{self.bdf} does not say how many {kind} it has: {exc.strerror}",
                errno=exc.errno or 0,
                ioctl="VFIO_DEVICE_GET_IRQ_INFO",
            ) from exc
        return uapi.IRQ_INFO.read(arg)["count"]

    @contextmanager
    def interrupts(self, kind: InterruptKind, count: int = 1) -> Iterator[tuple[Event, ...]]:
        """Let interrupts 0 to `count` - 1 raise events; leaving turns them off.

        Args:
            kind: how the device raises them.
            count: how many, from 1.

        Raises:
            RequestError: the device has not so many.
            DmaError: the kernel refused; `EINVAL` another kind is in use.
        """
        there = self.interrupt_count(kind)
        if not 1 <= count <= there:
            raise RequestError(
                f"{self.bdf} has {there} interrupts of {kind}, not {count}",
                field="count",
                value=count,
            )
        fds: list[int] = []
        try:
            for _ in range(count):
                hold(fds, os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._set(kind, uapi.IRQ_DATA_EVENTFD | uapi.IRQ_TRIGGER, 0, fds)
            yield tuple(Event(fd) for fd in fds)
        finally:
            if len(fds) == count:
                # Nobody may write to a descriptor that is closed and soon another's.
                self._off(kind)
            while fds:
                fd = fds[-1]
                del fds[-1]
                os.close(fd)

    def _off(self, kind: InterruptKind) -> None:
        try:
            fd = self.fd
        except IovaError:
            return  # the space is closed, and with the device went its interrupts
        arg = _irq_set(_index(kind), uapi.IRQ_DATA_NONE | uapi.IRQ_TRIGGER, 0, 0, b"")
        try:
            self._kernel.ioctl(fd, uapi.DEVICE_SET_IRQS, arg)
        except OSError:
            return  # they were not on

    def mask(self, kind: InterruptKind, index: int = 0) -> None:
        """Hold an interrupt back; `EINVAL` where the kind cannot be (all but INTx, before 7)."""
        self._set(kind, uapi.IRQ_DATA_NONE | uapi.IRQ_MASK, index, None)

    def unmask(self, kind: InterruptKind, index: int = 0) -> None:
        """Let it through again. INTx is masked by itself when it is raised."""
        self._set(kind, uapi.IRQ_DATA_NONE | uapi.IRQ_UNMASK, index, None)

    def trigger(self, kind: InterruptKind, index: int = 0) -> None:
        """Raise it from here, for tests."""
        self._set(kind, uapi.IRQ_DATA_NONE | uapi.IRQ_TRIGGER, index, None)

    def _set(self, kind: InterruptKind, flags: int, start: int, fds: list[int] | None) -> None:
        data = b"" if fds is None else struct.pack(f"={len(fds)}i", *fds)
        count = 1 if fds is None else len(fds)
        arg = _irq_set(_index(kind), flags, start, count, data)
        try:
            self._kernel.ioctl(self.fd, uapi.DEVICE_SET_IRQS, arg)
        except OSError as exc:
            raise DmaError(
                f"interrupt {start} of {kind} of {self.bdf} cannot be set: {exc.strerror}",
                errno=exc.errno or 0,
                ioctl="VFIO_DEVICE_SET_IRQS",
            ) from exc


def device_facts(fd: int, kernel: Kernel = LINUX) -> caps.DeviceFacts:
    """Ask an open device what it is; s390 functions tell their DMA window.

    Args:
        fd: from `AddressSpace.device_fd`.
        kernel: where the call goes.

    Raises:
        DmaError: the kernel refused.
        CapabilityError: the answer contradicts itself.
    """
    try:
        answer = uapi.grow_by_argsz(
            lambda buffer: kernel.ioctl(fd, uapi.DEVICE_GET_INFO, buffer), uapi.DEVICE_INFO
        )
    except OSError as exc:
        raise DmaError(
            f"the device does not say what it is: {exc.strerror}",
            errno=exc.errno or 0,
            ioctl="VFIO_DEVICE_GET_INFO",
        ) from exc
    return caps.read_device_info(answer)


def _index(kind: InterruptKind) -> int:
    kinds = get_args(InterruptKind)
    if kind not in kinds:
        raise RequestError(
            f"there is no interrupt {kind!r}; there are {', '.join(kinds)}",
            field="kind",
            value=kind,
        )
    return kinds.index(kind)


def _irq_set(index: int, flags: int, start: int, count: int, data: bytes) -> bytearray:
    size = uapi.IRQ_SET.size + len(data)
    arg = uapi.IRQ_SET.pack(size, argsz=size, flags=flags, index=index, start=start, count=count)
    arg[uapi.IRQ_SET.size :] = data
    return arg


def _ordered(value: int, width: int, order: Order) -> int:
    """Turn a value around where the machine has the bytes of a register the other way."""
    if order == "native" or sys.byteorder == "little":
        return value
    return int.from_bytes(value.to_bytes(width, "little"), "big")


def _format(width: int, order: Order) -> str:
    little = order == "little" or sys.byteorder == "little"
    return ("<" if little else ">") + _CODES[width]
