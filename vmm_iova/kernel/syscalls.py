# SPDX-License-Identifier: Apache-2.0
"""The thin layer between this wing and a kernel: open, close, ioctl, and reading sysfs.

Everything above takes a `Kernel`. `LinuxKernel` is the one that the process runs on; the one in
memory is `simulated.SimulatedKernel`. So what is tested without hardware is the very code that
drives it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_iova.host.host import Host

from vmm_iova.host.load import load_host
from vmm_iova.record import record

try:
    from vmm_iova.kernel import _ioctl as _ioctl  # the others take it from here
except ImportError:  # not compiled: the loop in Python does the same
    _ioctl = None  # type: ignore[assignment]

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
"""Bytes of a page of this process; the granule of an IOMMU is another matter."""

_CAP_IPC_LOCK = 14  # ABI: include/uapi/linux/capability.h


@record
class LockBudget:
    """How much memory this process may lock.

    Attributes:
        limit: soft RLIMIT_MEMLOCK in bytes, or None: unlimited, or the process has CAP_IPC_LOCK.
        locked: bytes that count already.
    """

    limit: int | None
    locked: int


class RegisterWindow(Protocol):
    """Registers of a device that are mapped; offsets are in bytes from where the mapping begins."""

    def load(self, at: int, width: int, /) -> int:
        """Read a register in one access; its bytes are in the order of the machine."""

    def store(self, at: int, width: int, value: int, /) -> None:
        """Write one in one access."""

    def close(self) -> None:
        """Unmap them. Idempotent."""


class MappedRegisters:
    """Registers of a device that are mapped by this process's kernel.

    CPython reads and writes an item of a memoryview by one `memcpy` of its size, which compilers
    make one instruction. `struct.pack_into` writes zeros first, and `ctypes` reads what it
    overwrites: a device would see both.

    Args:
        memory: whole pages.

    Synchronization: external.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        whole = memoryview(memory)
        self._views = {1: whole, 2: whole.cast("H"), 4: whole.cast("I"), 8: whole.cast("Q")}

    def load(self, at: int, width: int) -> int:
        """Read a register; see `RegisterWindow`."""
        return self._views[width][at // width]

    def store(self, at: int, width: int, value: int) -> None:
        """Write a register; see `RegisterWindow`."""
        self._views[width][at // width] = value

    def close(self) -> None:
        """Unmap them. Idempotent."""
        for width in sorted(self._views, reverse=True):  # those of `whole` before itself
            self._views[width].release()
        self._memory.close()


class Kernel(Protocol):
    """What this wing asks of a kernel. Every method raises OSError with the kernel's errno."""

    def open(self, path: str, /) -> int:
        """Open a device node for reading and writing; return the descriptor."""

    def close(self, fd: int, /) -> None:
        """Close a descriptor."""

    def ioctl(self, fd: int, request: int, arg: int | bytearray = 0, /) -> int:
        """Make an ioctl; a bytearray is read and written in place, an int goes by value."""

    def pread(self, fd: int, size: int, offset: int, /) -> bytes:
        """Read from a descriptor in one access."""

    def pwrite(self, fd: int, data: bytes, offset: int, /) -> int:
        """Write to a descriptor in one access; return the bytes."""

    def map_registers(self, fd: int, size: int, offset: int, /) -> RegisterWindow:
        """Map registers of a device into this process, whole pages of them."""

    def ioctl_many(self, fd: int, request: int, records: bytearray, stride: int) -> tuple[int, int]:
        """Make an ioctl for each record of `stride` bytes until one is refused.

        Returns how many were taken, and the errno of the one that was not, or 0.
        """

    def read_text(self, path: str) -> str:
        """Return the content of a small file, such as those of sysfs."""

    def list_dir(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""

    def read_link(self, path: str) -> str:
        """Return where a symbolic link points."""

    def exists(self, path: str) -> bool:
        """Tell whether there is something at `path`."""

    def lock_budget(self) -> LockBudget:
        """Return how much memory this process may lock."""

    def host(self) -> Host:
        """Return the facts of its host, for `vmm_iova.load_host(kernel=...)`."""


_T = TypeVar("_T")


def hold(box: list[_T], call: Callable[..., _T], *args: object) -> None:
    """Append to a list what a call returns.

    Python looks for signals when a call has returned, so Ctrl-C can come before an assignment
    stores what was returned: an open file, an address, memory that nobody knows of. Here C appends
    it, and nothing can come between as long as `call` is written in C, too.
    """
    box.extend(starmap(call, [args]))


def ioctl_one_by_one(
    kernel: Kernel, fd: int, request: int, records: bytearray, stride: int
) -> tuple[int, int]:
    """Do what `Kernel.ioctl_many` promises, one call at a time."""
    for index in range(len(records) // stride):
        record = records[index * stride : (index + 1) * stride]
        try:
            kernel.ioctl(fd, request, record)
        except OSError as exc:
            return index, exc.errno or 0
        records[index * stride : (index + 1) * stride] = record
    return len(records) // stride, 0


class LinuxKernel:
    """The kernel that this process runs on.

    Args:
        sysroot: prefix of every path, for containers and copied trees.

    Synchronization: none required (immutable).
    """

    # These three are C all the way: with a frame of Python around them, Ctrl-C could come when a
    # file is open and nobody knows of it, or closed and still known.
    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    pwrite: ClassVar[Callable[..., int]] = staticmethod(os.pwrite)
    ioctl: ClassVar[Callable[..., int]] = staticmethod(fcntl.ioctl)

    def __init__(self, sysroot: str | Path = "/") -> None:
        self._root = Path(sysroot)
        # What is opened is not inherited by children.
        plain = partial(os.open, flags=os.O_RDWR | os.O_CLOEXEC)
        self.open: Callable[[str], int] = (
            plain if self._root == Path("/") else lambda path: plain(self._path(path))
        )

    def __repr__(self) -> str:
        return f"LinuxKernel({str(self._root)!r})"

    def _path(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def map_registers(self, fd: int, size: int, offset: int) -> RegisterWindow:
        """Map registers of a device; see `Kernel`. On s390 they cannot be reached by loads."""
        if platform.machine().startswith("s390"):
            raise OSError(errno.EOPNOTSUPP, "registers are reached by instructions of their own")
        return MappedRegisters(mmap.mmap(fd, size, offset=offset))

    def ioctl_many(self, fd: int, request: int, records: bytearray, stride: int) -> tuple[int, int]:
        """Make many ioctls in one entry to C, if the extension is there; see `Kernel`."""
        if _ioctl is not None:
            return _ioctl.ioctl_many(fd, request, records, stride)
        return ioctl_one_by_one(self, fd, request, records, stride)

    def host(self) -> Host:
        """Return the facts of this host, as sysfs says them; see `vmm_iova.load_host`."""
        return load_host(sysroot=self._root)

    def read_text(self, path: str) -> str:
        """Return the content of a small file."""
        return self._path(path).read_text(encoding="ascii", errors="replace")

    def list_dir(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(os.listdir(self._path(path)))  # noqa: PTH208 - names are all that is wanted

    def read_link(self, path: str) -> str:
        """Return where a symbolic link points."""
        return str(self._path(path).readlink())

    def exists(self, path: str) -> bool:
        """Tell whether there is something at `path`."""
        return self._path(path).exists()

    def lock_budget(self) -> LockBudget:
        """Return how much memory this process may lock.

        Source: drivers/vfio/vfio_iommu_type1.c, vfio_lock_acct: CAP_IPC_LOCK lifts the limit,
        and what counts is `locked_vm` of the process (VmLck).
        """
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        capable = int(fields.get("CapEff", "0"), 16) >> _CAP_IPC_LOCK & 1
        locked = int(fields.get("VmLck", "0 kB").split()[0]) * 1024
        unlimited = capable or soft == resource.RLIM_INFINITY
        return LockBudget(None if unlimited else soft, locked)


LINUX = LinuxKernel()
"""The kernel that this process runs on, with paths as they are."""


def is_direct(kernel: Kernel) -> bool:
    """Whether C may make the ioctls of this kernel itself: they are those of the process."""
    return _ioctl is not None and getattr(kernel, "ioctl", None) is fcntl.ioctl


class UserBuffer:
    """Zeroed memory whose address can stand in a structure, kept alive by this object.

    Args:
        size: bytes, from 1.

    Synchronization: external.
    """

    __slots__ = ("_memory", "address", "size")

    def __init__(self, size: int) -> None:
        self._memory = (ctypes.c_char * size)()
        self.address = ctypes.addressof(self._memory)
        self.size = size

    def content(self) -> bytes:
        """Return a copy of the content."""
        return bytes(self._memory)

    def write(self, data: bytes) -> None:
        """Put `data` at the beginning."""
        ctypes.memmove(self.address, data, len(data))
