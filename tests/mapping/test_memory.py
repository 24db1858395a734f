# SPDX-License-Identifier: Apache-2.0
"""Guest memory and pre-faulting, on this very kernel: neither needs a device."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import threading
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.kernels import NIC, Space
from vmm_iova import AddrRange
from vmm_iova.errors import ClosedError, DmaError, RequestError
from vmm_iova.mapping import GuestMemory, Piece, map_pieces, prefault
from vmm_iova.mapping import memory as module
from vmm_iova.mapping import populate as populating
from vmm_iova.mapping.populate import MADV_POPULATE_WRITE, populate

if TYPE_CHECKING:
    from vmm_iova.simulated import SimulatedKernel

MIB = 1 << 20
SPANS = [
    (AddrRange.from_size(0x10_0000, 4 * MIB), "low"),
    (AddrRange.from_size((1 << 32) + 0x3000, 3 * MIB), "high"),
    (AddrRange.from_size(0, 0x3000), "tiny"),
]


def maps_of_this_process() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
class TestGuestMemory:
    def test_regions_are_congruent_to_their_iova(self, backing: str) -> None:
        with GuestMemory(SPANS, backing=backing, largest_page=2 * MIB) as memory:
            low, high, tiny = memory.pieces

            assert (low.hva - low.iova) % (2 * MIB) == 0
            assert (high.hva - high.iova) % (2 * MIB) == 0
            assert (tiny.hva - tiny.iova) % 0x2000 == 0
            assert (memory.size, low.tag) == (7 * MIB + 0x3000, "low")

    def test_what_is_written_by_iova_is_read_by_view(self, backing: str) -> None:
        with GuestMemory(SPANS, backing=backing) as memory:
            memory.write((1 << 32) + 0x3010, b"boot")

            assert bytes(memory.view(1)[0x10:0x14]) == b"boot"
            assert memory.read((1 << 32) + 0x3010, 4) == b"boot"
            assert memory.read(0x10_0010, 4) == bytes(4)

    @pytest.mark.parametrize("iova", [0x4000, 0x10_0000 + 4 * MIB - 1])
    def test_access_outside_of_a_region_raises(self, backing: str, iova: int) -> None:
        with GuestMemory(SPANS, backing=backing) as memory, pytest.raises(RequestError):
            memory.read(iova, 2)

    def test_close_gives_everything_back(self, backing: str) -> None:
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        regions = maps_of_this_process()

        memory = GuestMemory(SPANS, backing=backing)
        memory.close()
        memory.close()

        assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
        assert maps_of_this_process() <= regions + 1
        with pytest.raises(ClosedError):
            memory.read(0, 1)

    def test_dropped_without_close_warns_with_its_place(self, backing: str) -> None:
        box = [GuestMemory(SPANS[:1], backing=backing)]

        with pytest.warns(ResourceWarning, match=r"test_memory.py:\d+"):
            box.clear()
        gc.collect()

    def test_device_sees_it_at_the_iova(
        self, backing: str, sim: SimulatedKernel, space: Space
    ) -> None:
        with GuestMemory(SPANS, backing=backing) as memory, map_pieces(space, memory.pieces):
            sim.device_write(NIC, 0x10_0000 + 4 * MIB - 4, b"last")

            assert memory.read(0x10_0000 + 4 * MIB - 4, 4) == b"last"


class TestWhatIsNoAccess:
    @pytest.mark.parametrize("size", [-1, -(1 << 63), 1 << 64, True, 1.5, "4", None])
    def test_read_of_no_number_of_bytes_raises(self, size: Any) -> None:
        with GuestMemory(SPANS) as memory, pytest.raises(RequestError):
            memory.read(0x10_0000, size)

    @pytest.mark.parametrize("iova", [-1, -(1 << 64), 1 << 64, 1.5, "0", None])
    @pytest.mark.parametrize("call", ["read", "write"])
    def test_access_at_no_address_raises(self, iova: Any, call: str) -> None:
        with GuestMemory(SPANS) as memory, pytest.raises(RequestError):
            memory.read(iova, 1) if call == "read" else memory.write(iova, b"x")

    def test_no_bytes_are_read_and_written_at_both_ends_of_a_region(self) -> None:
        with GuestMemory(SPANS) as memory:
            for iova in (0x10_0000, 0x10_0000 + 4 * MIB):
                memory.write(iova, b"")
                assert memory.read(iova, 0) == b""

    @pytest.mark.parametrize("data", ["abc", 3, None, ["a"]])
    def test_write_of_what_has_no_buffer_raises(self, data: Any) -> None:
        with GuestMemory(SPANS) as memory:
            memory.write(0x10_0000, b"kept")
            with pytest.raises(RequestError, match="data must have a buffer"):
                memory.write(0x10_0000, data)
            assert memory.read(0x10_0000, 4) == b"kept"

    @pytest.mark.parametrize(
        ("data", "written"),
        [
            (bytearray(b"abc"), b"abc"),
            (memoryview(b"a.b.c.")[::2], b"abc"),
            (array("H", [1, 2]), array("H", [1, 2]).tobytes()),
            ((ctypes.c_uint32 * 2)(7, 8), bytes((ctypes.c_uint32 * 2)(7, 8))),
        ],
        ids=["bytearray", "every other byte", "array", "ctypes"],
    )
    def test_write_takes_the_bytes_of_anything_with_a_buffer(
        self, data: Any, written: bytes
    ) -> None:
        with GuestMemory(SPANS) as memory:
            memory.write(0x10_0000, data)
            assert memory.read(0x10_0000, len(written) + 1) == written + b"\0"

    @pytest.mark.parametrize("index", [3, -4])
    def test_view_of_no_span_raises(self, index: int) -> None:
        with GuestMemory(SPANS) as memory, pytest.raises(RequestError, match="no span"):
            memory.view(index)

    def test_every_access_after_close_raises(self) -> None:
        memory = GuestMemory(SPANS)
        memory.close()
        for access in (
            lambda: memory.read(0x10_0000, 1),
            lambda: memory.write(0x10_0000, b"x"),
            lambda: memory.view(0),
        ):
            with pytest.raises(ClosedError, match=r"test_memory.py:\d+ is closed"):
                access()


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
def test_view_that_outlives_close_keeps_its_memory_and_no_longer(backing: Any) -> None:
    before = maps_of_this_process()
    memory = GuestMemory(SPANS, backing=backing)
    memory.write(0x10_0000, b"boot")
    view, part = memory.view(0), memory.view(0)[2:4]
    memory.close()
    assert (bytes(view[:4]), bytes(part)) == (b"boot", b"ot")
    view.release()
    assert bytes(part) == b"ot"
    part.release()
    del view, part
    assert maps_of_this_process() <= before + 1


def test_memory_of_no_spans_gives_its_file_back_when_it_is_dropped() -> None:
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    box = [GuestMemory([])]
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        box.clear()
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
@pytest.mark.parametrize("last", [(1 << 63) - 1, (1 << 64) - 1])
def test_more_than_a_process_can_have_is_refused_and_never_wraps(backing: Any, last: int) -> None:
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(RequestError, match="more than any process can have"):
        GuestMemory([(AddrRange(0, last), "all")], backing=backing)
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


def test_file_that_cannot_be_so_large_raises_and_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    spans = [(AddrRange(0, (1 << 61) - 1), "x")]
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(DmaError, match="ftruncate failed") as caught:
        GuestMemory(spans)
    assert caught.value.errno == errno.EFBIG
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


def test_memfd_offsets_are_congruent_so_that_it_can_be_mapped_elsewhere() -> None:
    with GuestMemory(SPANS, largest_page=2 * MIB) as memory:
        memory.write(0x10_0000, b"shared")

        with mmap.mmap(memory.fd, 0x1000, offset=memory.offsets[0]) as again:
            assert again[:6] == b"shared"
        assert (memory.offsets[0] - 0x10_0000) % (2 * MIB) == 0


def test_unknown_backing_raises() -> None:
    with pytest.raises(RequestError, match="tape"):
        GuestMemory(SPANS, backing="tape")


def test_part_of_a_huge_page_raises() -> None:
    with pytest.raises(RequestError, match="2 MiB"):
        GuestMemory([(AddrRange.from_size(0, 3 * MIB), "x")], backing="hugetlb-2m")


def test_more_than_there_is_raises_and_leaves_nothing() -> None:
    regions = maps_of_this_process()

    with pytest.raises(DmaError) as caught:
        GuestMemory([(AddrRange(0, (1 << 62) - 1), "x")], backing="anonymous")

    assert caught.value.errno == errno.ENOMEM
    assert maps_of_this_process() <= regions + 1


def free_huge_pages() -> int:
    path = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    return int(path.read_text()) if path.exists() else 0


class RefusingLibc:
    """The C library, in which a mapping at a fixed place is refused once it has unmapped."""

    def __init__(self, real: ctypes.CDLL) -> None:
        self.real = real
        self.gone: list[tuple[int, int]] = []
        self.unmapped: list[tuple[int, int]] = []

    def mmap(self, where: int, size: int, protection: int, flags: int, fd: int, at: int) -> int:
        if flags & module._MAP_FIXED:
            self.real.munmap(where, size)
            self.gone.append((where, size))
            ctypes.set_errno(errno.ENOMEM)
            return -1 & (1 << 64) - 1
        answer: int = self.real.mmap(where, size, protection, flags, fd, at)
        return answer

    def munmap(self, where: int, size: int) -> int:
        self.unmapped.append((where, size))
        return 0


def test_memory_that_a_refused_call_has_unmapped_is_not_unmapped_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libc = RefusingLibc(module._libc)
    monkeypatch.setattr(module, "_libc", libc)

    with pytest.raises(DmaError):
        GuestMemory(SPANS[:1], backing="anonymous")

    gc.collect()
    (where, size), *_ = libc.gone
    assert libc.unmapped, "the ends of the reservation are given back"
    assert all(at + length <= where or where + size <= at for at, length in libc.unmapped)


@pytest.mark.skipif(free_huge_pages() < 2, reason="no free huge pages; the lab's guests have some")
def test_huge_pages_begin_at_their_own_multiple() -> None:
    spans = [(AddrRange.from_size(4 * MIB, 4 * MIB), "ram")]

    with GuestMemory(spans, backing="hugetlb-2m") as memory:
        assert memory.pieces[0].hva % (2 * MIB) == 0


@pytest.mark.skipif(free_huge_pages() >= 1 << 20, reason="this machine has 2 TiB of huge pages")
def test_more_huge_pages_than_there_are_raises_with_the_next_step() -> None:
    spans = [(AddrRange.from_size(0, 1 << 41), "ram")]

    with pytest.raises(DmaError) as caught:
        GuestMemory(spans, backing="hugetlb-2m")

    assert "huge pages" in (caught.value.hint or "") or "HugePages" in (caught.value.hint or "")


class TestPrefault:
    def test_all_pages_are_present_afterwards(self) -> None:
        with GuestMemory(SPANS, backing="anonymous") as memory:
            seen: list[tuple[int, int]] = []

            prefault(
                memory.pieces,
                threads=3,
                chunk=MIB,
                progress=lambda done, total: seen.append((done, total)),
            )

            assert seen[-1] == (memory.size, memory.size)
            assert [done for done, _ in seen] == sorted(done for done, _ in seen)
            assert resident(memory.pieces[0]) == 4 * MIB

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
    def test_interrupt_ends_the_threads_and_leaves_nothing(self, kind: type[BaseException]) -> None:
        before = threading.active_count()

        def progress(done: int, total: int) -> None:
            raise kind

        def body() -> None:
            with GuestMemory(SPANS, backing="anonymous") as memory:
                prefault(memory.pieces, threads=2, chunk=0x10000, progress=progress)

        with pytest.raises(kind):
            body()

        assert threading.active_count() == before

    def test_absent_memory_raises_dma_error(self) -> None:
        # Not memory that was given back: another thread of the tests' own process
        # may have been given the same addresses since. The second page of all is
        # below every place that the kernel chooses (mm/mmap.c, mmap_min_addr).
        absent = Piece(0, 0x1000, 0x1000)

        with pytest.raises(DmaError) as caught:
            prefault([absent], threads=2)

        assert caught.value.errno in (errno.ENOMEM, errno.EFAULT)

    def test_before_5_14_pages_are_touched_and_keep_their_content(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:

        monkeypatch.setattr(populating, "_madvise", lambda hva, size: errno.EINVAL)
        with GuestMemory(SPANS[:1], backing="anonymous") as memory:
            memory.write(0x10_1000, b"kept")

            populate(memory.pieces[0].hva, memory.pieces[0].size)

            assert memory.read(0x10_1000, 4) == b"kept"
            assert resident(memory.pieces[0]) == 4 * MIB

    def test_no_threads_raises(self) -> None:
        with pytest.raises(RequestError):
            prefault([], threads=0)

    def test_advice_is_the_kernels_number(self) -> None:
        assert getattr(mmap, "MADV_POPULATE_WRITE", 23) == MADV_POPULATE_WRITE


def resident(piece: Piece) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    pages = piece.size // 4096
    vector = (ctypes.c_ubyte * pages)()
    assert libc.mincore(ctypes.c_void_p(piece.hva), ctypes.c_size_t(piece.size), vector) == 0
    return sum(byte & 1 for byte in vector) * 4096
