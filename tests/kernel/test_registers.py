# SPDX-License-Identifier: Apache-2.0
"""A device in the hand, on the simulated kernel: registers, configuration, interrupts, DMA."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.kernels import GPU, NIC, NIC_GROUP, Space, refusal
from vmm_iova import AddrRange, Iova
from vmm_iova.errors import ClosedError, DmaError, RequestError, UnknownNameError
from vmm_iova.kernel import Device, open_space, uapi
from vmm_iova.mapping import GuestMemory, map_pieces
from vmm_iova.simulated import SimulatedKernel

PAGE = 0x1000
BUFFER = 0x40000


@pytest.fixture
def sim() -> SimulatedKernel:
    return SimulatedKernel([NIC_GROUP])


@pytest.fixture(params=["type1", "iommufd"])
def space(request: pytest.FixtureRequest, sim: SimulatedKernel) -> Iterator[Space]:
    with open_space([NIC], kernel=sim, via=request.param) as opened:
        yield opened


@pytest.fixture
def device(space: Space) -> Device:
    device = space.device(NIC)
    device.enable()
    return device


class TestRegisters:
    def test_read_and_write_have_their_width_and_order(self, device: Device) -> None:
        bar = device.region(0)
        bar.write(BUFFER, 0x0102_0304_0506_0708, 8)
        assert [bar.read(BUFFER + n, 1) for n in range(8)] == [8, 7, 6, 5, 4, 3, 2, 1]
        assert bar.read(BUFFER + 2, 2) == 0x0506
        assert bar.read(BUFFER + 4, 4) == 0x0102_0304
        assert bar.read(BUFFER, 8) == 0x0102_0304_0506_0708
        native = int.from_bytes(bytes([8, 7, 6, 5]), sys.byteorder)
        assert bar.read(BUFFER, 4, "native") == native

    def test_device_answers_as_edu_does(self, device: Device) -> None:
        bar = device.region(0)
        assert bar.read(0) == 0x0100_00ED
        bar.write(4, 0x1234_5678)
        assert bar.read(4) == 0xEDCB_A987
        bar.write(8, 5)
        assert bar.read(8) == 120

    @pytest.mark.parametrize(
        ("offset", "width", "field"),
        [
            (-4, 4, "offset"),
            (1 << 20, 4, "offset"),
            ((1 << 20) - 4, 8, "offset"),
            (2, 4, "offset"),
            (1, 2, "offset"),
            ("0", 4, "offset"),
            (0, 3, "width"),
            (0, 0, "width"),
        ],
    )
    def test_access_outside_or_across_is_refused_before_the_kernel(
        self, device: Device, offset: Any, width: Any, field: str
    ) -> None:
        bar = device.region(0)
        for access in (lambda: bar.read(offset, width), lambda: bar.write(offset, 0, width)):
            with pytest.raises(RequestError) as caught:
                access()
            assert caught.value.field == field

    def test_last_register_of_a_region_can_be_read(self, device: Device) -> None:
        assert device.region(0).read((1 << 20) - 8, 8) == 0

    @pytest.mark.parametrize("value", [-1, 1 << 32, "1", 1.0])
    def test_value_that_does_not_fit_is_refused(self, device: Device, value: Any) -> None:
        with pytest.raises(RequestError, match="does not fit a register of 4 bytes"):
            device.region(0).write(0, value)

    def test_bar_of_a_device_that_is_not_enabled_says_so(self, device: Device) -> None:
        device.enable(memory=False, bus_master=False)
        bar = device.region(0)
        for access in (lambda: bar.read(0), lambda: bar.write(0, 1)):
            with pytest.raises(DmaError, match="enable") as caught:
                access()
            assert caught.value.errno == errno.EIO

    def test_region_that_is_not_there_raises_and_an_empty_one_has_no_bytes(
        self, device: Device
    ) -> None:
        with refusal(errno.EINVAL):
            device.region(9)
        assert device.region(3).size == 0
        with pytest.raises(RequestError, match="not inside region 3"):
            device.region(3).read(0)

    def test_configuration_space_names_the_device(self, device: Device) -> None:
        assert (device.config.read(0, 2), device.config.read(2, 2)) == (0x1234, 0x11E8)
        assert device.config.read(4, 2) & 6 == 6
        device.enable(bus_master=False)
        assert device.config.read(4, 2) & 6 == 2

    def test_reset_brings_the_registers_back(self, device: Device) -> None:
        device.region(0).write(4, 1)
        device.reset()
        assert device.config.read(4, 2) == 0
        device.enable()
        assert device.region(0).read(4) == 0


class TestClosed:
    def test_device_of_a_closed_space_says_that_it_is_closed(self, space: Space) -> None:
        device = space.device(NIC)
        space.close()
        with pytest.raises(ClosedError):
            device.region(0)
        with pytest.raises(ClosedError):
            device.reset()

    def test_device_that_is_not_attached_raises(self, space: Space) -> None:
        with pytest.raises(UnknownNameError):
            space.device(GPU)

    def test_refused_calls_carry_their_errno(self, device: Device, sim: SimulatedKernel) -> None:
        for request, call in (
            (uapi.DEVICE_RESET, device.reset),
            (uapi.DEVICE_GET_IRQ_INFO, lambda: device.interrupt_count("msi")),
            (uapi.DEVICE_SET_IRQS, lambda: device.trigger("msi")),
            (uapi.DEVICE_GET_REGION_INFO, lambda: device.region(0)),
        ):
            sim.inject(errno.ENOTTY, request=request)
            with refusal(errno.ENOTTY):
                call()


def _copy(device: Device, source: int, target: int, count: int, command: int) -> None:
    bar = device.region(0)
    for register, value in ((0x80, source), (0x88, target), (0x90, count), (0x98, command)):
        bar.write(register, value, 8)


class TestDma:
    def test_device_copies_both_ways_where_it_is_mapped(self, device: Device, space: Space) -> None:
        where = AddrRange.from_size(0x10_0000, PAGE)
        with GuestMemory([(where, "buffer")]) as memory, map_pieces(space, memory.pieces):
            memory.write(Iova(0x10_0000), b"to there")
            _copy(device, 0x10_0000, BUFFER, 8, 1)
            _copy(device, BUFFER, 0x10_0010, 8, 3)
            assert memory.read(Iova(0x10_0010), 8) == b"to there"

    def test_end_of_a_copy_raises_an_interrupt_when_it_was_asked_for(
        self, device: Device, space: Space
    ) -> None:
        where = AddrRange.from_size(0x10_0000, PAGE)
        with (
            GuestMemory([(where, "buffer")]) as memory,
            map_pieces(space, memory.pieces),
            device.interrupts("msi") as (event,),
        ):
            _copy(device, 0x10_0000, BUFFER, 8, 1)
            assert event.take() == 0
            _copy(device, 0x10_0000, BUFFER, 8, 1 | 4)
            assert event.wait(10) == 1
            assert device.region(0).read(0x24) == 0x100

    def test_device_without_a_mapping_or_without_bus_master_moves_nothing(
        self, device: Device
    ) -> None:
        _copy(device, 0x5000, BUFFER, 8, 1)
        assert device.region(0).read(BUFFER, 8) == 0
        assert not device.region(0).read(0x98, 8) & 1


class TestInterrupts:
    @pytest.mark.parametrize("kind", ["msi", "intx"])
    def test_interrupt_is_seen_by_wait_take_and_threads(self, device: Device, kind: Any) -> None:
        bar = device.region(0)
        with device.interrupts(kind) as (event,):
            assert event.take() == 0
            assert event.wait(0) == 0
            raiser = threading.Thread(target=lambda: bar.write(0x60, 1))
            raiser.start()
            assert event.wait(10) == 1
            raiser.join()
            assert bar.read(0x24) == 1
            bar.write(0x64, 1)
            assert bar.read(0x24) == 0

    def test_asyncio_waits_for_an_interrupt(self, device: Device) -> None:
        async def wait() -> int:
            loop = asyncio.get_running_loop()
            raised = loop.create_future()
            with device.interrupts("msi") as (event,):
                loop.add_reader(event.fileno(), lambda: raised.set_result(event.take()))
                device.region(0).write(0x60, 1)
                count: int = await asyncio.wait_for(raised, 10)
                loop.remove_reader(event.fileno())
            return count

        assert asyncio.run(wait()) == 1

    def test_intx_is_masked_when_it_was_raised_until_it_is_unmasked(self, device: Device) -> None:
        bar = device.region(0)
        with device.interrupts("intx") as (event,):
            bar.write(0x60, 1)
            bar.write(0x60, 2)
            assert event.take() == 1
            device.unmask("intx")
            assert event.take() == 1
            bar.write(0x64, 3)
            device.mask("intx")
            device.unmask("intx")
            assert event.take() == 0

    def test_interrupt_can_be_raised_from_here(self, device: Device) -> None:
        with device.interrupts("msi") as (event,):
            device.trigger("msi")
            assert event.wait(10) == 1

    def test_counts_say_what_there_is(self, device: Device) -> None:
        kinds = ("intx", "msi", "msix", "error", "request")
        assert [device.interrupt_count(kind) for kind in kinds] == [1, 1, 0, 0, 0]

    @pytest.mark.parametrize(("kind", "count"), [("msi", 2), ("msi", 0), ("msix", 1), ("smi", 1)])
    def test_more_than_there_are_is_refused(self, device: Device, kind: Any, count: int) -> None:
        with pytest.raises(RequestError), device.interrupts(kind, count):
            pytest.fail("they were given out")

    def test_two_kinds_at_once_are_refused_and_descriptors_are_given_back(
        self, device: Device
    ) -> None:
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with device.interrupts("msi"), refusal(errno.EINVAL), device.interrupts("intx"):
            pytest.fail("they were given out")
        assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208

    def test_after_the_end_nothing_is_raised_also_when_the_space_is_closed_within(
        self, device: Device, space: Space
    ) -> None:
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        with device.interrupts("msi") as (event,):
            device.region(0).write(0x60, 1)
            assert event.take() == 1
        device.region(0).write(0x60, 1)
        with device.interrupts("msi"):
            space.close()
        assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
