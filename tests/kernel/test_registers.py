# SPDX-License-Identifier: Apache-2.0
"""A device in the hand, on the simulated kernel: registers, configuration, interrupts, DMA."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.kernels import GPU, NIC, NIC_GROUP, Space, refusal
from vmm_iova import AddrRange, Iova
from vmm_iova.errors import ClosedError, DmaError, RequestError, UnknownNameError
from vmm_iova.kernel import LINUX, Device, Type1Container, open_space, uapi
from vmm_iova.mapping import GuestMemory, map_pieces
from vmm_iova.simulated import SimGroup, SimulatedKernel

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
        assert device.region(0).read((1 << 20) - 8, 8) == (1 << 64) - 1

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
        assert device.config.read(4, 2) == 6  # the kernel keeps the configuration space
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
        assert [device.interrupt_count(kind) for kind in kinds] == [1, 1, 0, 1, 1]

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

    def test_request_interrupt_is_beside_the_others(
        self, device: Device, sim: SimulatedKernel
    ) -> None:
        with device.interrupts("msi") as (done,), device.interrupts("request") as (asked,):
            sim.device(NIC).signal_request()  # somebody unbinds the device
            assert (asked.wait(10), done.take()) == (1, 0)
            device.trigger("request")
            assert asked.wait(10) == 1
        sim.device(NIC).signal_request()

    def test_device_that_is_not_pci_express_has_no_error_interrupt_on_older_kernels(self) -> None:
        old = SimulatedKernel([NIC_GROUP], release=(6, 12))
        with open_space([NIC], kernel=old) as space:
            device = space.device(NIC)
            assert device.interrupt_count("error") == 0
            with (
                pytest.raises(RequestError, match="0 interrupts of error"),
                device.interrupts("error"),
            ):
                pytest.fail("it was given out")

    @pytest.mark.parametrize("kind", ["msi", "msix", "error", "request"])
    def test_only_intx_can_be_masked(self, disk: Device, kind: Any) -> None:
        if kind == "msi":
            with pytest.raises(DmaError):
                disk.mask("msi")
            return
        with disk.interrupts(kind):
            for call in (disk.mask, disk.unmask):
                with refusal(errno.ENOTTY):
                    call(kind)

    def test_error_interrupt_of_pci_express(self, disk: Device, disk_sim: SimulatedKernel) -> None:
        with disk.interrupts("error") as (error,):
            disk_sim.device(DISK).signal_error()
            assert error.wait(10) == 1

    def test_event_that_its_owner_closed_lives_on_in_the_kernel(
        self, device: Device, sim: SimulatedKernel, space: Space
    ) -> None:
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        fd = os.eventfd(0)
        arg = uapi.IRQ_SET.pack(24, argsz=24, flags=0x24, index=1, count=1)
        arg[20:] = fd.to_bytes(4, sys.byteorder)
        sim.ioctl(device.fd, uapi.DEVICE_SET_IRQS, arg)
        os.close(fd)
        device.region(0).write(0x60, 1)
        space.close()
        assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208

    @pytest.mark.parametrize(("fd", "number"), [(999_999, errno.EBADF), (0, errno.EINVAL)])
    def test_descriptor_that_is_no_eventfd_is_refused(
        self, device: Device, sim: SimulatedKernel, fd: int, number: int
    ) -> None:
        arg = uapi.IRQ_SET.pack(24, argsz=24, flags=0x24, index=1, count=1)
        arg[20:] = fd.to_bytes(4, sys.byteorder)
        with pytest.raises(OSError, match=rf"Errno {number}\b"):
            sim.ioctl(device.fd, uapi.DEVICE_SET_IRQS, arg)


DISK = "0000:01:00.0"


@pytest.fixture
def disk_sim() -> SimulatedKernel:
    return SimulatedKernel([SimGroup(1, (DISK,))], kinds={DISK: "nvme"})


@pytest.fixture
def disk(disk_sim: SimulatedKernel) -> Iterator[Device]:
    with open_space([DISK], kernel=disk_sim) as space:
        device = space.device(DISK)
        device.enable()
        yield device


class _Descriptor:
    """Counts the accesses through the descriptor, and can forbid mappings."""

    def __init__(self, sim: SimulatedKernel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bar = 0
        pread, pwrite = sim.pread, sim.pwrite

        def read(fd: int, size: int, offset: int) -> bytes:
            self.bar += offset >> 40 == 0
            return pread(fd, size, offset)

        def write(fd: int, data: bytes, offset: int) -> int:
            self.bar += offset >> 40 == 0
            return pwrite(fd, data, offset)

        monkeypatch.setattr(sim, "pread", read)
        monkeypatch.setattr(sim, "pwrite", write)


class TestMapped:
    def test_registers_are_reached_without_a_call(
        self, device: Device, sim: SimulatedKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = _Descriptor(sim, monkeypatch)
        bar = device.region(0)
        assert [str(area) for area in bar.mappable] == ["0x0-0xfffff"]
        for width in (1, 2, 4, 8):
            bar.write(BUFFER, 0x0102_0304_0506_0708 >> 8 * (8 - width), width)
            assert bar.read(BUFFER, width) == 0x0102_0304_0506_0708 >> 8 * (8 - width)
        assert calls.bar == 0

    @pytest.mark.parametrize("order", ["little", "native"])
    def test_mapped_and_descriptor_agree_in_every_width_and_order(
        self, device: Device, sim: SimulatedKernel, monkeypatch: pytest.MonkeyPatch, order: Any
    ) -> None:
        mapped = device.region(0)
        plain = device.region(0)
        monkeypatch.setattr(plain, "_mappable", ())
        for width in (1, 2, 4, 8):
            value = 0x8182_8384_8586_8788 & (1 << 8 * width) - 1
            for one, other in ((mapped, plain), (plain, mapped)):
                one.write(BUFFER, value, width, order)
                assert other.read(BUFFER, width, order) == value
                one.write(BUFFER, 0, width)

    def test_big_endian_machine_turns_what_is_mapped_around(
        self, device: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bar = device.region(0)
        bar.write(BUFFER, 0x0102_0304)
        monkeypatch.setattr(sys, "byteorder", "big")
        assert bar.read(BUFFER) == 0x0102_0304
        assert bar.read(BUFFER, 4, "native") == 0x0403_0201
        bar.write(BUFFER, 0x0A0B, 2)
        bar.write(BUFFER + 2, 0x0C0D, 2, "native")
        monkeypatch.undo()
        assert bar.read(BUFFER) == 0x0D0C_0A0B

    def test_device_that_does_not_answer_is_not_touched(
        self, device: Device, sim: SimulatedKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A load from the mapping would end the process with SIGBUS: here, with RuntimeError.
        bar = device.region(0)
        bar.read(0)
        device.config.write(4, 0, 2)
        for access in (lambda: bar.read(0), lambda: bar.write(4, 1)):
            with refusal(errno.EIO):
                access()
        device.enable()
        calls = _Descriptor(sim, monkeypatch)
        assert bar.read(0) == 0x0100_00ED
        assert calls.bar == 0

    def test_sleeping_device_is_not_touched(self, disk: Device) -> None:
        bar = disk.region(0)
        assert bar.read(8) == 0x0001_0400
        disk.config.write(0x44, 3, 2)  # D3hot
        with refusal(errno.EIO):
            bar.read(8)
        disk.config.write(0x44, 0, 2)
        assert bar.read(8) == 0x0001_0400

    def test_sparse_areas_are_mapped_and_the_rest_goes_through_the_descriptor(
        self, disk: Device, disk_sim: SimulatedKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk_sim.device(DISK).sparse = ((0x1000, 0x1800), (0x2800, 0x1800))
        bar = disk.region(0)
        assert [str(area) for area in bar.mappable] == ["0x1000-0x1fff", "0x3000-0x3fff"]
        calls = _Descriptor(disk_sim, monkeypatch)
        for at, by_descriptor in ((0, 1), (0x1000, 0), (0x1FFC, 0), (0x2FF8, 1), (0x3000, 0)):
            before = calls.bar
            bar.read(at)
            assert calls.bar - before == by_descriptor, hex(at)

    def test_kernel_that_does_not_map_is_asked_by_the_descriptor(
        self, device: Device, sim: SimulatedKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(*_: object) -> None:
            raise OSError(errno.ENOMEM, "no memory")

        monkeypatch.setattr(sim, "map_registers", refused)
        calls = _Descriptor(sim, monkeypatch)
        bar = device.region(0)
        bar.write(4, 1)
        assert (bar.read(4), calls.bar) == (0xFFFF_FFFE, 2)

    def test_windows_are_shared_and_closed_with_the_device(
        self, device: Device, space: Space, sim: SimulatedKernel
    ) -> None:
        other = space.device(NIC)
        for each in (device, other):
            each.region(0).read(0)
            each.region(0).read(0)
        assert sim.device(NIC).windows == 1
        bar = device.region(0)
        space.close()
        assert sim.device(NIC).windows == 0
        with pytest.raises(ClosedError):
            bar.read(0)

    def test_device_that_was_opened_again_is_asked_for_anew(self, sim: SimulatedKernel) -> None:
        with open_space([NIC], kernel=sim, via="type1") as space:
            assert isinstance(space, Type1Container)
            old = space.device(NIC)
            old.enable()
            bar = old.region(0)
            bar.read(0)
            space.close_device(NIC)
            space.open_device(NIC, NIC_GROUP.number)
            for access in (lambda: bar.read(0), old.reset):
                with pytest.raises(ClosedError, match="anew"):
                    access()
            assert space.device(NIC).region(0).read(0) == 0x0100_00ED

    def test_interrupted_circle_of_capabilities_ends(
        self, disk_sim: SimulatedKernel, disk: Device
    ) -> None:
        disk_sim.device(DISK).config[0x71] = 0x40  # the last names the first
        with open_space([DISK], kernel=SimulatedKernel([SimGroup(1, (DISK,))])):
            assert disk.region(0).read(8) == 0x0001_0400


class TestOnLinux:
    """Mapped memory of this process's kernel: a file in place of a device."""

    def test_loads_and_stores_have_their_width(self, tmp_path: Path) -> None:
        file = tmp_path / "registers"
        file.write_bytes(bytes(range(256)) * (3 * PAGE // 256))
        fd = os.open(file, os.O_RDWR)
        try:
            window = LINUX.map_registers(fd, 2 * PAGE, PAGE)
            for width in (1, 2, 4, 8):
                data = bytes(range(0x10, 0x10 + width))
                assert window.load(0x10, width) == int.from_bytes(data, sys.byteorder)
                window.store(0x18, width, int.from_bytes(bytes(range(width)), sys.byteorder))
                assert os.pread(fd, width, PAGE + 0x18) == bytes(range(width))
                assert os.pread(fd, 1, PAGE + 0x18 + width) == bytes([0x18 + width])
                os.pwrite(fd, bytes(range(0x18, 0x20)), PAGE + 0x18)
            window.close()
            window.close()
            with pytest.raises(ValueError, match="released"):
                window.load(0, 4)
        finally:
            os.close(fd)

    def test_s390_has_no_loads_of_registers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "s390x")
        with pytest.raises(OSError, match="instructions of their own"):
            LINUX.map_registers(0, PAGE, 0)
