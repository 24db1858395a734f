# SPDX-License-Identifier: Apache-2.0
"""The book of what is mapped: its order, its places, and that C and Python keep it alike."""

from __future__ import annotations

import _thread
import ctypes
import errno
import fcntl
import inspect
import os
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmm_iova.errors import (
    ClosedError,
    DmaError,
    NotAllocatedError,
    RangeOverflowError,
    RequestError,
)
from vmm_iova.kernel import book, syscalls, uapi
from vmm_iova.kernel.book import LiveMappings, PlainBook, line_of, plain_spot
from vmm_iova.kernel.syscalls import LINUX
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.mapping import Piece
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, Hva, Iova

FIOCLEX = 0x5451  # ABI: include/uapi/asm-generic/ioctls.h; every file takes it, and nothing changes
BOOKS = list(dict.fromkeys([book.Book, PlainBook]))
PLACE = (compile("", "vmm.py", "exec"), 0)
SPOTS = list(dict.fromkeys([book.spot, plain_spot]))


@pytest.fixture(params=[True, False], ids=["in C", "in Python"])
def in_c(request: Any) -> bool:
    if request.param and book.Book is PlainBook:
        pytest.skip("not compiled")
    return bool(request.param)


@pytest.fixture
def null(in_c: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Type1Container]:
    """A container whose file is /dev/null, which takes every map and unmap."""
    made = Type1Container.__new__(Type1Container)
    made._fds, made._kernel, made.live = [os.open("/dev/null", os.O_RDWR)], LINUX, LiveMappings()
    made._groups, made._devices, made._ready, made.compat = {}, {}, False, False
    if in_c:
        made._ask_directly(made.live.book, made._fds, FIOCLEX, FIOCLEX, False)
    monkeypatch.setattr(uapi, "IOMMU_MAP_DMA", FIOCLEX)
    monkeypatch.setattr(uapi, "IOMMU_UNMAP_DMA", FIOCLEX)
    yield made
    made.live.clear()
    os.close(made._fds.pop())


@pytest.mark.parametrize("kind", BOOKS)
@pytest.mark.parametrize("way", ["anyhow", "ascending", "descending"])
def test_book_after_many_changes_is_that_of_a_dict(kind: Any, way: str) -> None:
    chance = random.Random(way)
    subject, model = kind(), dict[int, Any]()
    starts = [chance.randrange(1 << 64) for _ in range(3000)]
    if way != "anyhow":
        starts.sort(reverse=way == "descending")

    def compare() -> None:
        first, last = sorted(chance.randrange(1 << 64) for _ in range(2))
        expected = sorted(model)
        assert len(subject) == len(model)
        assert subject.span(first, last) == [s for s in expected if first <= s <= last]
        assert subject.below(first) == max((s for s in expected if s <= first), default=-1)
        some = chance.choice([*expected, first])
        assert (subject.get(some), subject.get(some + 1)) == (model.get(some), model.get(some + 1))

    for count, start in enumerate(starts):
        model[start] = (count + 1, start ^ 0xFFF, count % 2 == 0, count % 3 == 0, PLACE)
        subject.put(start, *model[start])
        if count % 50 == 0:
            compare()
    for start in [*starts[:9], *starts[:9]]:  # again, in place of what is there
        model[start] = (7, 7, True, True, PLACE)
        subject.put(start, *model[start])
    assert subject.span(0, ADDRESS_LAST) == sorted(model)

    for count, start in enumerate([*chance.sample(starts, 2000), 5, 5]):
        model.pop(start, None)
        subject.drop(start)
        if count % 50 == 0:
            compare()
    for start in chance.sample(starts, 100):
        model[start] = (1, 2, False, True, PLACE)
        subject.put(start, *model[start])
    compare()
    assert subject.clear() == sum(entry[0] for entry in model.values())
    assert (len(subject), subject.span(0, ADDRESS_LAST), subject.below(ADDRESS_LAST)) == (0, [], -1)
    subject.put(7, 1, 2, True, False, PLACE)
    assert (subject.below(6), subject.below(7), subject.below(8)) == (-1, 7, 7)


@pytest.mark.parametrize("kind", BOOKS)
@pytest.mark.parametrize("start", [-1, 1 << 64, 1.5, "7", None])
def test_nothing_begins_where_no_address_is(kind: Any, start: Any) -> None:
    subject = kind()
    subject.put(0, 1, 2, True, True, PLACE)
    assert subject.get(start) is None


@pytest.mark.parametrize("kind", BOOKS)
def test_book_holds_places_only_as_long_as_their_mappings(kind: Any) -> None:
    place = (PLACE[0], 1 << 40)
    before = sys.getrefcount(place)
    subject = kind()
    for start in range(500):
        subject.put(start, 1, 2, True, True, place)
    for start in range(0, 500, 2):
        subject.drop(start)
        subject.put(start + 1, 1, 2, True, True, place)
    assert sys.getrefcount(place) == before + 250
    subject.clear()
    assert sys.getrefcount(place) == before
    subject.put(0, 1, 2, True, True, place)
    del subject
    assert sys.getrefcount(place) == before


@pytest.mark.parametrize("spot", SPOTS)
def test_spot_is_the_line_that_calls(spot: Any) -> None:
    def called() -> Any:
        return spot(2)

    frame = inspect.currentframe()
    assert frame is not None
    found, line = called(), frame.f_lineno
    assert line_of(found) == f"{__file__}:{line}"


def test_questions_between_changes_see_each_of_them(null: Type1Container) -> None:
    for n in range(200):
        null.map(n * 0x2000, 0x7F00_0000_0000 + n * 0x2000, 0x1000)
    assert len(list(null.live)) == 200
    for n in range(0, 200, 2):
        assert null.unmap(n * 0x2000, 0x1000) == 0x1000
        with pytest.raises(NotAllocatedError, match="nothing is mapped"):
            null.live.translate(n * 0x2000 + 8, 1)
        assert null.live.translate(n * 0x2000 + 0x2008, 64) == (0x7F00_0000_2008 + n * 0x2000, 64)
    null.map(0x1000, 0x1000, 0x1000)
    null.map(0, 0, 0x1000)
    assert null.live.translate(8, 0x4000) == (8, 0x1FF8)
    assert [item.range.start for item in null.live.overlapping(AddrRange(0, 0x2FFF))] == [
        0,
        0x1000,
        0x2000,
    ]


def test_changes_that_nobody_asks_about_are_not_kept() -> None:
    subject = PlainBook()
    subject.put(0, 0x1000, 0, True, True, PLACE)
    assert subject.below(5) == 0
    for _ in range(4000):
        subject.put(0x1000, 0x1000, 0, True, True, PLACE)
        subject.drop(0x1000)

    assert len(subject._late) < 2000
    assert subject.span(0, ADDRESS_LAST) == [0]


@pytest.mark.parametrize("iova", [-1, 1 << 64, 1 << 70])
def test_nothing_is_mapped_where_no_address_is(null: Type1Container, iova: int) -> None:
    null.map(Iova(ADDRESS_LAST - 0xFFF), Hva(0), 0x1000)
    with pytest.raises(NotAllocatedError, match="nothing is mapped"):
        null.live.translate(Iova(iova), 1)


def test_place_of_a_mapping_is_the_line_that_maps(null: Type1Container) -> None:
    frame = inspect.currentframe()
    assert frame is not None
    null.map(0, 0x5000, 0x1000, write=False)
    line = frame.f_lineno - 1
    item = null.live.at(0)
    assert (item.place, item.hva) == (f"{__file__}:{line}", 0x5000)
    assert (item.read, item.write) == (True, False)


def test_place_is_that_of_each_caller(null: Type1Container) -> None:
    def lines() -> list[int]:
        return [int(item.place.rpartition(":")[2]) for item in null.live]

    frame = inspect.currentframe()
    assert frame is not None
    for n in range(0, 4, 2):
        null.map(n, 0, 1)
        null.map(n + 1, 0, 1)
    at = frame.f_lineno - 1
    assert lines() == [at - 1, at] * 2

    # The place of a caller inside of the package is that of its own caller.
    inside: dict[str, Any] = {"__name__": "vmm_iova.inside", "null": null}
    exec("def call(n):\n    null.map(n, 0, 1)", inside)
    for n in range(4, 6):
        inside["call"](n)
        null.map(n + 2, 0, 1)
    at = frame.f_lineno - 1
    assert lines()[4:] == [at - 1, at - 1, at, at]

    # As far in its code as the call inside of the package is in that.
    outside = {**inside, "__name__": "vmm", "call": inside["call"]}
    exec("def run(n):\n    null.map(n, 0, 1)\n    call(n + 1)", outside)
    for n in (8, 10):
        outside["run"](n)
    assert lines()[8:] == [2, 3, 2, 3]


def test_thread_that_has_no_frame_of_its_own_maps(null: Type1Container) -> None:
    _thread.start_new_thread(null.map, (0x1000, 0, 0x1000))
    deadline = time.monotonic() + 30
    while 0x1000 not in null.live and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(null.live) == 1


@pytest.mark.skipif(book.Book is PlainBook, reason="not compiled")
def test_other_threads_run_while_the_kernel_maps(tmp_path: Path) -> None:
    # In the place of the ioctl stands flock(file, LOCK_EX), which waits for whoever has the lock.
    held, wanted = (tmp_path / "file").open("w"), (tmp_path / "file").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    made = Type1Container.__new__(Type1Container)
    made._fds, made.live = [wanted.fileno()], LiveMappings()
    made._ask_directly(made.live.book, made._fds, fcntl.LOCK_EX, fcntl.LOCK_UN, False)
    syscalls._ioctl.answer_with(ctypes.cast(ctypes.CDLL(None).flock, ctypes.c_void_p).value or 0)
    try:
        thread = threading.Thread(target=made.map, args=(0x1000, 0, 0x1000))
        thread.start()
        waits = re.compile(rf"-> FLOCK .* {os.getpid()} ")
        while not waits.search(Path("/proc/locks").read_text("ascii")):
            assert thread.is_alive()
        fcntl.flock(held, fcntl.LOCK_UN)
        thread.join(30)
    finally:
        syscalls._ioctl.answer_with(0)
    assert (thread.is_alive(), made.live.clear()) == (False, 0x1000)
    made._fds.clear()
    held.close()
    wanted.close()


def test_batch_is_read_before_a_call(null: Type1Container) -> None:
    null.live.add_many([Piece(Iova(0x1000), 0x1000, Hva(0))], PLACE)
    null.map(Iova(0x3000), Hva(0), 0x1000)
    assert (null.unmap(Iova(0x1000), 0x1000), len(null.live)) == (0x1000, 1)


def test_upper_half_of_the_addresses_is_mapped_as_the_lower(null: Type1Container) -> None:
    null.map(Iova(ADDRESS_LAST - 0xFFF), Hva(ADDRESS_LAST - 0xFFF), 0x1000)
    assert [str(item.range) for item in null.live] == ["0xfffffffffffff000-0xffffffffffffffff"]
    assert null.unmap(Iova(ADDRESS_LAST - 0xFFF), 0x1000) == 0x1000
    assert len(null.live) == 0


def test_closed_file_says_so(null: Type1Container) -> None:
    null.map(Iova(0x1000), Hva(0), 0x1000)
    null._what, null._place = "container", "vmm.py:1"
    file = null._fds.pop()
    try:
        with pytest.raises(ClosedError, match=r"opened at vmm\.py:1 is closed"):
            null.map(Iova(0x3000), Hva(0), 0x1000)
        with pytest.raises(ClosedError, match=r"opened at vmm\.py:1 is closed"):
            null.unmap(Iova(0x1000), 0x1000)
    finally:
        null._fds.append(file)
    assert len(null.live) == 1


def test_refusal_of_the_kernel_says_what_and_where(
    null: Type1Container, in_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    null.map(0x1000, 0x5000, 0x1000)
    monkeypatch.undo()  # /dev/null knows none of the real calls
    if in_c:
        calls = uapi.IOMMU_MAP_DMA, uapi.IOMMU_UNMAP_DMA
        null._ask_directly(null.live.book, null._fds, *calls, False)

    with pytest.raises(DmaError) as mapped:
        null.map(0x3000, 0x5000, 0x1000)
    with pytest.raises(DmaError) as unmapped:
        null.unmap(0x1000, 0x1000)

    assert str(mapped.value).startswith(
        "the kernel does not map 0x1000 bytes at 0x5000 to 0x3000: Inappropriate ioctl"
    )
    assert str(unmapped.value).startswith(
        "the kernel does not unmap 0x1000 bytes at 0x1000: Inappropriate ioctl"
    )
    for error in (mapped.value, unmapped.value):
        assert error.errno == errno.ENOTTY
        assert isinstance(error.__cause__, OSError)
    assert (mapped.value.hva, unmapped.value.iova) == (0x5000, 0x1000)
    assert [item.range.start for item in null.live] == [0x1000]


def test_size_that_is_not_mapped_is_refused_before_the_call(null: Type1Container) -> None:
    null.map(0x1000, 0x5000, 0x1000)
    with pytest.raises(NotAllocatedError, match="no mapping is exactly 0x2000 bytes at 0x1000"):
        null.unmap(0x1000, 0x2000)
    assert 0x1000 in null.live


@pytest.mark.parametrize(
    ("iova", "error"),
    [(1 << 64, RangeOverflowError), (-1, RangeOverflowError), (1.5, RequestError)],
)
def test_number_that_no_field_takes_is_named(
    null: Type1Container, iova: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        null.map(iova, 0x5000, 0x1000)
    assert getattr(caught.value, "field", None) == "iova"
    assert len(null.live) == 0
