# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any position where CPython looks for signals leaves the state whole.

Whole is: the book of a space has what the kernel has mapped; of a call that raised nothing stays
that a caller cannot see; and closing gives everything back. The simulated kernel is the kernel:
there is no position inside of it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmm_iova as vi
from tests.kit import through_c
from tests.kit.interrupts import Interrupter, every_interrupt
from tests.kit.kernels import GPU, HVA, NIC, Space
from vmm_iova import AddrRange, Hva, Iova, IovaAllocator, RangeSet
from vmm_iova.kernel import Ioas, Iommufd, Type1Container, VfioCdev, open_space
from vmm_iova.mapping import DynamicMaps, GuestMemory, Mapped, Piece, map_pieces
from vmm_iova.simulated import SimGroup, SimulatedKernel

pytestmark = pytest.mark.slow

FILES = ("vmm_iova/kernel/", "vmm_iova/mapping/")
GROUPS = [SimGroup(4, (NIC,), tracks_dirty=True), SimGroup(5, (GPU,), tracks_dirty=True)]
PIECES = [Piece(Iova(0x10_0000 * n), 0x2000, Hva(HVA + 0x2000 * n), f"ram{n}") for n in range(3)]

LOST = {
    "Iommufd.alloc_hwpt": "the number of a page table, on its way to `Ioas.attach`",
    "Ioas.attach": "the same",
    "Iommufd.alloc_ioas": "the number of an IOAS, on its way to `Ioas.__init__`",
    "Ioas.__init__": "the same",
}
"""What an interrupt could leave in a file that several IOASes share, by function; it goes when the
file is closed. CPython does not look for signals there, as a function of Python has returned to
one of Python; the trace function cannot tell that from a return of C."""

HOSTS = {
    "type1": lambda: SimulatedKernel(GROUPS, memlock=1 << 40),
    "type1 of 5.10": lambda: SimulatedKernel(GROUPS, memlock=1 << 40, release=(5, 10)),
    "iommufd": lambda: SimulatedKernel(GROUPS, memlock=1 << 40),
}
if through_c.BUILT:
    HOSTS["type1 through C"] = HOSTS["type1"]
    HOSTS["iommufd through C"] = HOSTS["iommufd"]
BRIDGES: list[through_c.ThroughC] = []
"""Who answers C in the tests of a host "through C"."""


class Stage:
    """A host with an open space, and what the actions make of it."""

    def __init__(self, host: str, *, opened: bool = True) -> None:
        self.via = host.partition(" ")[0]
        self.through_c = host.endswith("through C")
        self.sim = HOSTS[host]()
        self.space: Any = self.open() if opened else None
        self.mapped: Mapped | None = None
        self.maps: DynamicMaps | None = None
        self.allocator = IovaAllocator(RangeSet([AddrRange(0, 0xFFF_FFFF)]), granule=0x1000)

    def open(self) -> Space:
        if self.through_c:
            BRIDGES[-1].sim = self.sim
        return open_space([NIC, GPU], kernel=self.sim, via=self.via)  # type: ignore[arg-type]

    def check_book(self, place: str | None) -> None:
        """The book is the kernel's."""
        book = RangeSet(item.range for item in self.space.live)
        assert book == self.sim.mapped(), place
        assert len(self.space.live) == len(list(self.space.live)), place

    def check_close(self, place: str | None) -> None:
        """Nothing stays after a close."""
        if self.space is not None:
            self.space.close()
        self.space = self.mapped = self.maps = None
        gc.collect()
        left = (self.sim.open_files(), len(self.sim.mapped()), self.sim.memory.locked)
        assert left == (0, 0, 0), (place, left)


@pytest.fixture(params=[name for name in HOSTS if not name.endswith("C")])
def plain(request: pytest.FixtureRequest) -> str:
    """A host for calls that C does not make by itself."""
    name: str = request.param
    return name


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name: str = request.param
    if not name.endswith("through C"):
        yield name
        return
    with through_c.answered(monkeypatch) as bridge:
        BRIDGES.append(bridge)
        yield name
        BRIDGES.pop()


@pytest.fixture(autouse=True)
def _dropped_things_may_warn() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what the other tests have left is not looked through a thousand times
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
    gc.unfreeze()


def test_open_leaves_nothing_open(plain: str) -> None:
    def check(stage: Stage, place: str | None) -> None:
        if place is not None and stage.space is None:
            gc.collect()
            assert stage.sim.open_files() == 0, place
        stage.check_close(place)

    def action(stage: Stage) -> None:
        stage.space = stage.open()

    assert every_interrupt(FILES, lambda: Stage(plain, opened=False), action, check) > 100


def test_close_can_be_called_again(plain: str) -> None:
    def prepare() -> Stage:
        stage = Stage(plain)
        stage.mapped = map_pieces(stage.space, PIECES)
        return stage

    every_interrupt(FILES, prepare, lambda stage: stage.space.close(), Stage.check_close)


@pytest.mark.parametrize("name", ["map", "map_many", "unmap", "unmap_all", "unmap_range"])
def test_call_of_a_space_leaves_its_book_true(host: str, name: str) -> None:
    first = PIECES[0]
    calls = {
        "map": lambda space: space.map(Iova(0x90_0000), Hva(HVA), 0x1000),
        "map_many": lambda space: space.map_many(
            [Piece(Iova(0x90_0000), 0x1000, Hva(HVA)), Piece(Iova(0xA0_0000), 0x1000, Hva(HVA))]
        ),
        "unmap": lambda space: space.unmap(first.iova, first.size),
        "unmap_all": lambda space: space.unmap_all(),
        "unmap_range": lambda space: (
            space.facts() if "iommufd" in host else space.unmap_range(Iova(0xB0_0000), 0x1000)
        ),
    }

    def prepare() -> Stage:
        stage = Stage(host)
        stage.mapped = map_pieces(stage.space, PIECES)
        return stage

    def check(stage: Stage, place: str | None) -> None:
        stage.check_book(place)
        if name.startswith("map") and place is not None:
            # All, or nothing; what was there before is still there.
            assert len(stage.space.live) in (3, 4, 5), place
            assert all(piece.iova in stage.space.live for piece in PIECES), place
        stage.check_close(place)

    count = every_interrupt(FILES, prepare, lambda stage: calls[name](stage.space), check)
    if BRIDGES and name in ("map", "unmap"):
        assert (count, BRIDGES[-1].calls) == (0, 1)  # nowhere in C does CPython look for signals
    else:
        assert count > 3


@pytest.mark.parametrize("where", [0x10_0000, 0x10_1000])
def test_map_over_a_mapping_leaves_that_mapping(host: str, where: int) -> None:
    def action(stage: Stage) -> None:
        with pytest.raises(vi.DmaError):
            stage.space.map(Iova(where), Hva(HVA), 0x1000)

    def prepare() -> Stage:
        stage = Stage(host)
        stage.space.map(Iova(0x10_0000), Hva(HVA), 0x2000)
        return stage

    def check(stage: Stage, place: str | None) -> None:
        assert [item.range.start for item in stage.space.live] == [0x10_0000], place
        stage.check_book(place)
        stage.check_close(place)

    every_interrupt(FILES, prepare, action, check)


@pytest.mark.parametrize("name", ["map_anywhere", "map_file", "copy_from"])
def test_call_that_answers_where_leaves_the_book_true(name: str) -> None:
    def prepare() -> Stage:
        stage = Stage("iommufd")
        stage.space.map(Iova(0x10_0000), Hva(HVA), 0x2000)
        return stage

    calls = {
        "map_anywhere": lambda space: space.map_anywhere(Hva(HVA), 0x1000),
        "map_file": lambda space: space.map_file(3, 0, 0x1000),
        "copy_from": lambda space: space.copy_from(space, Iova(0x10_0000), 0x1000),
    }

    def check(stage: Stage, place: str | None) -> None:
        stage.check_book(place)
        assert 0x10_0000 in stage.space.live, place
        stage.check_close(place)

    every_interrupt(FILES, prepare, lambda stage: calls[name](stage.space), check)


def test_map_of_pieces_leaves_all_or_nothing(plain: str) -> None:
    def action(stage: Stage) -> None:
        stage.mapped = map_pieces(stage.space, PIECES)

    def check(stage: Stage, place: str | None) -> None:
        stage.check_book(place)
        if stage.mapped is None:
            gc.collect()
            assert len(stage.space.live) in (0, len(PIECES)), place
        stage.check_close(place)

    every_interrupt(FILES, lambda: Stage(plain), action, check)


def test_unmap_of_pieces_can_be_called_again_and_then_nothing_is_left(host: str) -> None:
    def prepare() -> Stage:
        stage = Stage(host)
        stage.mapped = map_pieces(stage.space, PIECES)
        return stage

    def check(stage: Stage, place: str | None) -> None:
        assert stage.mapped is not None
        stage.check_book(place)
        stage.mapped.unmap()
        assert (len(stage.space.live), len(stage.sim.mapped())) == (0, 0), place
        stage.check_close(place)

    every_interrupt(FILES, prepare, lambda stage: stage.mapped.unmap(), check)


def _dynamic(stage: Stage) -> DynamicMaps:
    stage.maps = DynamicMaps(stage.allocator, stage.space)
    return stage.maps


def _three_books(stage: Stage, place: str | None) -> None:
    """Allocator, space and the maps themselves know the same."""
    assert stage.maps is not None
    stage.check_book(place)
    owned = [item.range for item in stage.allocator]
    assert owned == [item.range for item in stage.space.live], place
    assert len(stage.maps) == len(owned), place
    stage.maps.unmap_all()
    assert (list(stage.allocator), len(stage.maps)) == ([], 0), place
    stage.check_close(place)


def test_dynamic_map_leaves_three_books_that_agree(host: str) -> None:
    def prepare() -> Stage:
        stage = Stage(host)
        _dynamic(stage).map_address(Hva(HVA), 0x1000)
        return stage

    def action(stage: Stage) -> None:
        assert stage.maps is not None
        stage.maps.map_address(Hva(HVA + 0x1000), 0x3000)

    assert every_interrupt(FILES, prepare, action, _three_books) > 10


@pytest.mark.parametrize("name", ["unmap", "unmap_all"])
def test_dynamic_unmap_leaves_three_books_that_agree(host: str, name: str) -> None:
    def prepare() -> Stage:
        stage = Stage(host)
        maps = _dynamic(stage)
        maps.map_address(Hva(HVA), 0x1000)
        maps.map_address(Hva(HVA + 0x1000), 0x3000)
        return stage

    def action(stage: Stage) -> None:
        assert stage.maps is not None
        if name == "unmap":
            stage.maps.unmap(Iova(next(iter(stage.allocator)).range.start))
        else:
            stage.maps.unmap_all()

    every_interrupt(FILES, prepare, action, _three_books)


@pytest.mark.parametrize("name", ["add_group", "remove_group", "remove the last", "open_device"])
def test_groups_of_a_container_are_in_it_or_not(name: str) -> None:
    class Container:
        def __init__(self) -> None:
            self.sim = SimulatedKernel(GROUPS, memlock=1 << 40)
            self.space = Type1Container(self.sim)
            self.space.add_group(4)
            self.space.map(Iova(0x10_0000), Hva(HVA), 0x1000)
            if name == "remove_group":
                self.space.add_group(5)

    calls = {
        "add_group": lambda space: space.add_group(5),
        "remove_group": lambda space: space.remove_group(5),
        "remove the last": lambda space: space.remove_group(4),
        "open_device": lambda space: space.open_device(NIC, 4),
    }

    def check(stage: Container, place: str | None) -> None:
        book = RangeSet(item.range for item in stage.space.live)
        assert book == stage.sim.mapped(), place
        gc.collect()
        files = 1 + len(stage.space.groups) + len(stage.space.open_devices)
        assert stage.sim.open_files() == files, place
        stage.space.close()
        assert stage.sim.open_files() == 0, place

    every_interrupt(FILES, Container, lambda stage: calls[name](stage.space), check)


@pytest.mark.parametrize("dirty", [False, True])
@pytest.mark.parametrize("name", ["attach", "detach"])
def test_device_of_an_ioas_is_attached_or_not(name: str, dirty: bool) -> None:
    class Shared:
        def __init__(self) -> None:
            self.sim = SimulatedKernel(GROUPS, memlock=1 << 40)
            self.file = Iommufd(self.sim)
            self.space = Ioas(self.file)
            self.device = VfioCdev(self.sim, "/dev/vfio/devices/vfio0")
            self.device.bind(self.file)
            if name == "detach":
                self.attach()

        def attach(self) -> None:
            self.space.attach(NIC, self.device, dirty=dirty)

    def check(stage: Shared, place: str | None) -> None:
        reserved = len(stage.space.ranges()[0]) > 1  # a device that is attached reserves its MSI
        lost = place is not None and place.partition(":")[0].split(".", 1)[1] in LOST
        assert lost or reserved == bool(stage.space.open_devices), place
        with contextlib.suppress(*((vi.DmaError,) if lost else ())):
            stage.space.close()
        stage.device.close()
        stage.file.close()
        assert stage.sim.open_files() == 0, place

    def action(stage: Shared) -> None:
        if name == "attach":
            stage.attach()
        else:
            stage.space.detach(NIC)

    every_interrupt(FILES, Shared, action, check)


def _regions() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
@pytest.mark.parametrize("name", ["make", "close"])
def test_guest_memory_leaves_neither_a_file_nor_a_region(backing: Any, name: str) -> None:
    spans = [(AddrRange(0x10_0000, 0x4F_FFFF), "low"), (AddrRange(0x100_0000, 0x10F_FFFF), "high")]

    class Memory:
        def __init__(self) -> None:
            gc.collect()
            self.files = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
            self.regions = [
                line for line in Path("/proc/self/maps").read_text().splitlines() if _ours(line)
            ]
            self.memory = None if name == "make" else make()

    def make() -> GuestMemory:
        return GuestMemory(spans, backing=backing, largest_page=2 << 20)

    def action(stage: Memory) -> None:
        if stage.memory is None:
            stage.memory = make()
        else:
            stage.memory.close()

    def check(stage: Memory, place: str | None) -> None:
        if stage.memory is not None:
            stage.memory.close()
        stage.memory = None
        gc.collect()
        assert set(os.listdir("/proc/self/fd")) == stage.files, place  # noqa: PTH208
        left = [line for line in Path("/proc/self/maps").read_text().splitlines() if _ours(line)]
        assert left == stage.regions, place

    assert every_interrupt(FILES, Memory, action, check) > 3


def _ours(line: str) -> bool:
    """Whether a line of /proc/self/maps is guest memory, or a reservation for it."""
    words = line.split()
    return "memfd:guest-ram" in line or (words[1] == "---p" and len(words) == 5)


def test_interrupter_raises_at_each_position_that_it_counts() -> None:
    steps: list[int] = []

    def action() -> None:
        for number in (1, 2):
            steps.append(number)  # noqa: PERF402

    files = (__file__,)
    counter = Interrupter(files)
    assert counter.run(action) is None
    # The lambda or function begins; two calls return; two jumps back.
    assert counter.count == 5
    seen = set()
    for number in range(counter.count):
        steps.clear()
        interrupter = Interrupter(files, number)
        assert isinstance(interrupter.run(action), KeyboardInterrupt)
        seen.add(len(steps))
    assert seen == {0, 1, 2}
