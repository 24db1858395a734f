# SPDX-License-Identifier: Apache-2.0
"""The calls that C makes itself, on the simulated kernel: its answer, and C's own book-keeping."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest

from vmm_iova.kernel import ioas, space, type1
from vmm_iova.simulated import SimulatedKernel

_FIOCLEX = 0x5451
"""An ioctl that every file takes, with nothing to read or write (fs/ioctl.c, do_vfs_ioctl)."""


class ThroughC:
    """Stands for `kernel._ioctl`: the simulated kernel decides, and then C makes a call that works.

    Between the two is no position where CPython looks for signals in the code that is tested: what
    the kernel has and what C has written down change together, as on Linux.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._file = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.sim: SimulatedKernel | None = None
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def close(self) -> None:
        os.close(self._file)

    def _refused(self, fd: int, request: int, record: bytes) -> int:
        assert self.sim is not None
        try:
            self.sim.ioctl(fd, request, bytearray(record))
        except OSError as error:
            return error.errno or 0
        self.calls += 1
        return 0

    def map_type1(self, fd: int, request: int, book: Any, flags: int, *rest: Any) -> Any:
        iova, hva, size, _ = rest
        record = struct.pack("=IIQQQ", 32, flags, hva, iova, size)
        number = self._refused(fd, request, record)
        return number or self._module.map_type1(self._file, _FIOCLEX, book, flags, *rest)

    def map_ioas(self, fd: int, request: int, book: Any, ioas_id: int, *rest: Any) -> Any:
        flags, iova, hva, size, _ = rest
        record = struct.pack("=IIIIQQQ", 40, flags, ioas_id, 0, hva, size, iova)
        number = self._refused(fd, request, record)
        return number or self._module.map_ioas(self._file, _FIOCLEX, book, ioas_id, *rest)

    def unmap_one(self, fd: int, request: int, book: Any, second: int, iova: int, size: int) -> Any:
        if book.get(iova, (None,))[0] == size:
            number = self._refused(fd, request, struct.pack("=IIQQ", 24, second, iova, size))
            if number:
                return number, 0
        return self._module.unmap_one(self._file, _FIOCLEX, book, second, iova, size)


def is_built() -> bool:
    """Tell whether there is a compiled module."""
    return vars(type1)["_ioctl"] is not None


def install(patch: pytest.MonkeyPatch) -> ThroughC:
    """Put it in the place of the compiled module, for every address space of a simulated kernel."""
    module: Any = vars(type1)["_ioctl"]
    bridge = ThroughC(module)
    for user in (type1, ioas, space):
        patch.setattr(user, "_ioctl", bridge)
    return bridge
