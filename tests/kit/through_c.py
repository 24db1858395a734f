# SPDX-License-Identifier: Apache-2.0
"""The calls that C makes itself, answered by the simulated kernel."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import pytest

from vmm_iova.kernel import ioas, type1
from vmm_iova.kernel.syscalls import _ioctl
from vmm_iova.simulated import SimulatedKernel

BUILT = _ioctl is not None

_Answer = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, use_errno=True
)


class ThroughC:
    """Takes the place of the system call in `kernel._ioctl`.

    Attributes:
        sim: who answers; of its address spaces C makes the calls, and of no others.
        calls: those that were granted.
        record: what the last of them was made with.
    """

    def __init__(self) -> None:
        self.sim: SimulatedKernel | None = None
        self.calls = 0
        self.record = b""
        self.function = _Answer(self._answer)

    def _answer(self, fd: int, request: int, address: int) -> int:
        assert self.sim is not None
        # Every structure of both interfaces begins with its size.
        size = ctypes.c_uint32.from_address(address).value
        self.record = ctypes.string_at(address, size)
        record = bytearray(self.record)
        try:
            self.sim.ioctl(fd, request, record)
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1
        ctypes.memmove(address, bytes(record), size)
        self.calls += 1
        return 0


@contextlib.contextmanager
def answered(patch: pytest.MonkeyPatch) -> Iterator[ThroughC]:
    """Let C make the calls of address spaces that are opened meanwhile."""
    bridge = ThroughC()
    for module in (type1, ioas):
        patch.setattr(module, "is_direct", lambda kernel: kernel is bridge.sim)
    _ioctl.answer_with(ctypes.cast(bridge.function, ctypes.c_void_p).value or 0)
    try:
        yield bridge
    finally:
        _ioctl.answer_with(0)
