# SPDX-License-Identifier: Apache-2.0
"""Memory that the kernel cannot have, at every allocation of a call: nothing may stay behind.

/proc/thread-self/fail-nth lets the n-th allocation of a thread's next calls fail (failslab); n
goes up until a call comes through untouched. Source: Documentation/fault-injection.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lab import raw
from lab.child import in_child
from vmm_iova.errors import DmaError, MappingError
from vmm_iova.kernel import uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.kernel.device import open_space
from vmm_iova.kernel.syscalls import LINUX, LinuxKernel, ioctl_one_by_one
from vmm_iova.mapping import Piece, map_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.guests("iommufd")

DEBUG = Path("/sys/kernel/debug")
MAPS = (uapi.IOMMU_MAP_DMA, abi.IOAS_MAP)
PAGE = 4096
MOST = 12  # allocations that are struck in one call; resets make each opening slow


class StarvedKernel(LinuxKernel):
    """Lets the n-th allocation of one chosen ioctl fail."""

    def __init__(self) -> None:
        super().__init__()
        self.file = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
        self.nth = 0
        self.skip = 0
        self.requests: tuple[int, ...] | None = None
        self.struck = False

    def aim(self, nth: int, skip: int, requests: tuple[int, ...] | None = None) -> None:
        """Strike the `nth` allocation of the call after `skip` others."""
        self.nth, self.skip, self.requests, self.struck = nth, skip, requests, False

    def ioctl(self, fd: int, request: int, arg: int | bytes | bytearray = 0) -> int:
        if not self.nth or (self.requests is not None and request not in self.requests):
            return super().ioctl(fd, request, arg)
        if self.skip:
            self.skip -= 1
            return super().ioctl(fd, request, arg)
        nth, self.nth = str(self.nth).encode(), 0
        buffer = bytearray(arg) if isinstance(arg, bytes) else arg
        call, write, refused, answer = fcntl.ioctl, os.pwrite, None, 0
        # As little as can be between the two: every allocation of this thread counts.
        write(self.file, nth, 0)
        try:
            answer = call(fd, request, buffer)
        except OSError as error:
            refused = error
        left = os.pread(self.file, 20, 0)
        write(self.file, b"0", 0)
        self.struck = int(left.split(b"\0")[0]) == 0
        if refused is not None:
            raise refused
        return answer

    def ioctl_many(self, fd: int, request: int, records: bytearray, stride: int) -> tuple[int, int]:
        """One by one, so that one of them can be struck."""
        return ioctl_one_by_one(self, fd, request, records, stride)


@pytest.fixture
def starved() -> Iterator[StarvedKernel]:
    # Not fail_page_alloc: Python itself faults pages in, and dies of it.
    (DEBUG / "failslab/ignore-gfp-wait").write_text("N")
    with contextlib.suppress(OSError):
        (DEBUG / "failslab/verbose").write_text("0")
    kernel = StarvedKernel()
    yield kernel
    os.close(kernel.file)


@pytest.mark.proves("failslab at every allocation of a map: nothing stays")
@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_map_that_gets_no_memory_leaves_nothing(
    lab: dict[str, Any], starved: StarvedKernel, via: str
) -> None:
    memory = raw.buffer(8 * PAGE)
    hva = raw.address(memory)
    pieces = [Piece(0x10_0000 + n * 2 * PAGE, PAGE, hva + n * PAGE, n) for n in range(8)]
    failed = 0
    with open_space([lab["devices"][0]["bdf"]], kernel=starved, via=via) as space:
        before = (space.facts(), LINUX.lock_budget())
        for step in (0, 1, 5, 7):
            for nth in range(1, 400):
                starved.aim(nth, step, MAPS)
                try:
                    with map_pieces(space, pieces):
                        pass
                except MappingError as error:
                    told = (starved.struck, error.index, error.left)
                    failed += told == (True, step, ())
                assert (space.facts(), LINUX.lock_budget()) == before
                assert space.unmap_all() == 0
                if not starved.struck:
                    break
            else:
                pytest.fail("a map call made 400 allocations")
    assert failed >= 4


@pytest.mark.proves("failslab at the allocations of opening and attaching: nothing stays")
@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_attach_that_gets_no_memory_leaves_nothing(
    lab: dict[str, Any],
    starved: StarvedKernel,
    via: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bdf = lab["devices"][0]["bdf"]

    # How far the child of a step came: allocation, refusals. Shared, so that it outlives the child.
    shared = mmap.mmap(-1, PAGE)
    progress = (ctypes.c_long * 2).from_buffer(shared)

    def work(step: int) -> bool:
        """Strike one allocation after the other of one call; False when there is no such call."""
        kernel = StarvedKernel()
        while progress[0] < MOST:
            progress[0] += 1
            kernel.aim(progress[0], step)
            try:
                open_space([bdf], kernel=kernel, via=via).close()
            except DmaError:
                progress[1] += 1
            if kernel.nth or not kernel.struck:
                return not kernel.nth
        return True

    steps = refusals = died = 0
    for step in range(30):
        progress[0] = progress[1] = 0
        # In a child, because Python's own page faults allocate as well: it may die of it, and the
        # kernel has to clean up after that, too; the next goes on where it was.
        while (reached := in_child(functools.partial(work, step))) is None:
            died += 1
        assert isinstance(reached, bool), reached
        refusals += progress[1]
        if not reached:
            break
        steps += 1
    with capsys.disabled():
        print(f"\n{via}: {steps} calls, {refusals} refusals, {died} children died")
    # With iommufd: the IOAS, the bind, the attach and the two questions for the ranges; the file
    # that is closed takes all of it along.
    assert (steps >= 5, refusals > 10) == (True, True)
    memory = raw.buffer(PAGE)
    with open_space([bdf], via=via) as space:
        space.map(0x10_0000, raw.address(memory), PAGE)
        space.unmap_all()
