# SPDX-License-Identifier: Apache-2.0
"""What nobody has: a name that is not there and a space that is closed are told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vmm_iova import Hva, Iova
from vmm_iova.errors import ClosedError, DmaError, NotAllocatedError, RequestError, UnknownNameError
from vmm_iova.kernel import Ioas, Iommufd, Type1Container, VfioCdev, open_space
from vmm_iova.mapping import Piece
from vmm_iova.simulated import SimGroup, SimulatedKernel

NIC, GPU = "0000:00:04.0", "0000:00:05.0"
Space = Type1Container | Ioas


@pytest.fixture
def sim() -> SimulatedKernel:
    return SimulatedKernel([SimGroup(4, (NIC,)), SimGroup(5, (GPU,))])


@pytest.fixture(params=["type1", "iommufd"])
def via(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_descriptor_of_an_unknown_device_raises_with_the_known_ones(
    sim: SimulatedKernel, via: str
) -> None:
    with open_space([NIC], kernel=sim, via=via) as space:
        with pytest.raises(UnknownNameError) as caught:
            space.device_fd(GPU)
        assert (caught.value.kind, caught.value.name, caught.value.known) == ("device", GPU, (NIC,))


CALLS: dict[str, Callable[[Space], object]] = {
    "device_fd": lambda space: space.device_fd(NIC),
    "facts": lambda space: space.facts(),
    "map": lambda space: space.map(Iova(0), Hva(0), 0x1000),
    "map_many": lambda space: space.map_many([]),
    "unmap_range": lambda space: space.unmap_range(Iova(0), 0x1000),
    "unmap_all": lambda space: space.unmap_all(),
    "read_dirty": lambda space: space.read_dirty(Iova(0), 0x1000),
}


@pytest.mark.parametrize("name", CALLS)
def test_call_on_a_closed_space_says_that_it_is_closed(
    sim: SimulatedKernel, via: str, name: str
) -> None:
    space = open_space([NIC], kernel=sim, via=via)
    space.close()
    if (name, via) == ("read_dirty", "iommufd"):
        with pytest.raises(DmaError, match="no device has dirty tracking"):
            CALLS[name](space)
        return
    with pytest.raises(ClosedError, match=r"test_names.py:\d+ is closed"):
        CALLS[name](space)


def test_call_on_a_closed_ioas_of_an_open_file_says_that_it_is_closed(
    sim: SimulatedKernel,
) -> None:
    with Iommufd(sim) as file:
        space = Ioas(file)
        space.close()
        space.close()
        assert space.closed
        for call in (lambda: space.facts(), lambda: space.device_fd(NIC), lambda: space.id):
            with pytest.raises(ClosedError, match="the IOAS made at"):
                call()


def test_name_of_a_group_that_is_not_attached_raises(sim: SimulatedKernel) -> None:
    with Type1Container(sim) as container:
        container.add_group(4)
        for call in (lambda: container.remove_group(5), lambda: container.open_device(GPU, 5)):
            with pytest.raises(UnknownNameError, match="group 5 is not attached") as caught:
                call()
            assert caught.value.known == ("4",)


def test_device_that_is_detached_already_raises(sim: SimulatedKernel) -> None:
    with open_space([NIC], kernel=sim, via="iommufd") as space:
        assert isinstance(space, Ioas)
        space.detach(NIC)
        with pytest.raises(UnknownNameError, match=f"{NIC} is not attached"):
            space.detach(NIC)


def test_device_that_is_open_is_given_again_and_opened_once(sim: SimulatedKernel) -> None:
    with Type1Container(sim) as container:
        container.add_group(4)
        first = container.open_device(NIC, 4)
        assert container.open_device(NIC, 4) == first
        assert sim.open_files() == 3
    assert sim.open_files() == 0


def test_second_device_of_a_name_is_refused_and_the_first_stays(sim: SimulatedKernel) -> None:
    with open_space([NIC], kernel=sim, via="iommufd") as space:
        assert isinstance(space, Ioas)
        with VfioCdev(sim, "/dev/vfio/devices/vfio1") as other:
            other.bind(space.iommufd)
            with pytest.raises(DmaError, match=f"{NIC} is attached already"):
                space.attach(NIC, other)
        assert space.open_devices == (NIC,)


def test_mapping_that_does_not_begin_there_raises(sim: SimulatedKernel, via: str) -> None:
    with open_space([NIC], kernel=sim, via=via) as space, pytest.raises(NotAllocatedError):
        space.live.at(0x1000)


@pytest.mark.parametrize(
    ("iova", "hva", "size", "field"),
    [
        (-1, 0, 0x1000, "iova"),
        (1 << 64, 0, 0x1000, "iova"),
        (0, -0x1000, 0x1000, "hva"),
        (0, 0, -1, "size"),
        (0, 0, 1 << 64, "size"),
        (0, 0, "4096", "size"),
        (1.5, 0, 0x1000, "iova"),
        (0, None, 0x1000, "hva"),
    ],
)
@pytest.mark.parametrize("name", ["map", "map_many", "unmap_range"])
def test_number_that_no_64_bits_hold_is_refused_by_its_name(
    sim: SimulatedKernel, via: str, name: str, iova: Any, hva: Any, size: Any, field: str
) -> None:
    with open_space([NIC], kernel=sim, via=via) as space:
        calls: dict[str, Callable[[], object]] = {
            "map": lambda: space.map(iova, hva, size),
            "map_many": lambda: space.map_many(
                [Piece(Iova(0), 0x1000, Hva(0)), Piece(iova, size, hva)]
            ),
            "unmap_range": lambda: space.unmap_range(iova, size),
        }
        if (name, field) == ("unmap_range", "hva"):
            return
        with pytest.raises(RequestError) as caught:
            calls[name]()
        assert caught.value.field == field
        assert (len(space.live), len(sim.mapped())) == (0, 0)
