# SPDX-License-Identifier: Apache-2.0
"""A device in the hand, on the kernel of this guest: registers, DMA, interrupts, reset."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path
from typing import Any

import pytest
from vmm_iova import AddrRange, Iova
from vmm_iova.errors import DmaError, RequestError
from vmm_iova.kernel import LINUX, Device, InterruptKind, LinuxKernel, open_space
from vmm_iova.mapping import GuestMemory, map_pieces

X86 = ("vtd", "vtd39", "amd", "iommufd")
BUFFER = 0x40000


@pytest.fixture(params=["type1", "iommufd"])
def via(request: pytest.FixtureRequest, lab: dict[str, Any]) -> str:
    way: str = request.param
    if way == "iommufd" and lab["guest"] != "iommufd":
        pytest.skip("only the guest with the built kernel has iommufd")
    return way


def _edu(lab: dict[str, Any]) -> str:
    return next(each["bdf"] for each in lab["devices"] if each["kind"] == "edu")


@pytest.mark.guests(*X86)
@pytest.mark.proves("registers, DMA both ways and MSI of a device, by the package alone")
def test_device_copies_and_interrupts(lab: dict[str, Any], via: str) -> None:
    with open_space([_edu(lab)], via=via) as space:
        device = space.device(_edu(lab))
        device.enable(memory=True, bus_master=True)
        bar = device.region(0)
        assert bar.read(0) & 0xFFFF == 0x00ED
        bar.write(4, 0x1234_5678)
        assert bar.read(4) == 0xEDCB_A987
        where = AddrRange.from_size(0x10_0000, 0x1000)
        with (
            GuestMemory([(where, "buffer")]) as memory,
            map_pieces(space, memory.pieces),
            device.interrupts("msi") as (event,),
        ):
            memory.write(Iova(0x10_0000), b"moved by the device")
            for source, target, command in (
                (0x10_0000, BUFFER, 1 | 4),
                (BUFFER, 0x10_0800, 1 | 2 | 4),
            ):
                for register, value in (
                    (0x80, source),
                    (0x88, target),
                    (0x90, 19),
                    (0x98, command),
                ):
                    bar.write(register, value, 8)
                assert event.wait(60) >= 1
                bar.write(0x64, bar.read(0x24))
            assert memory.read(Iova(0x10_0800), 19) == b"moved by the device"


@pytest.mark.guests(*X86)
def test_kernel_says_what_the_simulation_says(lab: dict[str, Any], via: str) -> None:
    with open_space([_edu(lab)], via=via) as space:
        device = space.device(_edu(lab))
        device.enable()
        bar = device.region(0)
        assert (bar.size, device.config.size >= 256, device.region(3).size) == (1 << 20, True, 0)
        major, minor = (int(word) for word in lab["release"].split(".")[:2])
        errors = int((major, minor) >= (7, 1))  # of a device that is not PCI Express
        kinds: tuple[InterruptKind, ...] = ("intx", "msi", "msix", "error", "request")
        assert [device.interrupt_count(kind) for kind in kinds] == [1, 1, 0, errors, 1]
        with pytest.raises(DmaError):
            device.region(200)
        with pytest.raises(RequestError):
            bar.read(1 << 20)
        device.enable(memory=False)
        with pytest.raises(DmaError):
            bar.read(0)


class Descriptor(LinuxKernel):
    """Counts accesses through the descriptor, and maps registers only where it is told to."""

    def __init__(self, *, maps: bool) -> None:
        super().__init__()
        self.accesses = 0
        if not maps:
            self.map_registers = self._refuse  # type: ignore[method-assign]

    @staticmethod
    def _refuse(*_: object) -> Any:
        raise OSError(errno.EOPNOTSUPP, "not here")

    def pread(self, fd: int, size: int, offset: int) -> bytes:  # type: ignore[override]
        self.accesses += offset >> 40 != 7
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:  # type: ignore[override]
        self.accesses += offset >> 40 != 7
        return os.pwrite(fd, data, offset)


@pytest.mark.guests(*X86)
@pytest.mark.proves("registers that are mapped: exact widths, no call, nothing left")
def test_mapped_registers_do_what_the_descriptor_does(lab: dict[str, Any], via: str) -> None:
    seen = {}
    for maps in (True, False):
        kernel = Descriptor(maps=maps)
        with open_space([_edu(lab)], kernel=kernel, via=via) as space:
            device = space.device(_edu(lab))
            device.enable()
            bar = device.region(0)
            answers = [bar.read(0)]
            # 8 bytes at 0x80 are one register of the device; 4 below it, and no other width.
            for at, value, width in (
                (0x80, 0x0102_0304_0506_0708, 8),
                (0x88, 0x1112_1314_1516_1718, 8),
                (0x90, 0x2122_2324, 4),
                (0x04, 0xDEAD_BEEF, 4),
            ):
                bar.write(at, value, width)  # type: ignore[arg-type]
                answers += [bar.read(at, width), bar.read(at, 4)]  # type: ignore[arg-type]
            answers += [bar.read(0, 8), bar.read(4, 2), bar.read(4, 1)]
            seen[maps] = (answers, kernel.accesses)
            device.enable(memory=False)  # a load from the mapping would be SIGBUS now
            with pytest.raises(DmaError) as caught:
                bar.read(0)
            assert caught.value.errno == errno.EIO
            device.enable()
            assert bar.read(0) == answers[0]
    assert seen[True][0] == seen[False][0]
    assert (seen[True][1], seen[False][1]) == (0, len(seen[False][0]) + 4)
    assert seen[True][0][1] == 0x0102_0304_0506_0708
    _nothing_is_left(lab, via)


def _nothing_is_left(lab: dict[str, Any], via: str) -> None:
    """No mapping of the process is one of a device, and the device can be opened again."""
    assert "vfio" not in Path("/proc/self/maps").read_text()
    with open_space([_edu(lab)], via=via) as space:
        assert space.device(_edu(lab)).config.read(0, 2) == 0x1234


@pytest.mark.guests(*X86)
@pytest.mark.proves("the table of MSI-X stays the kernel's own")
def test_msix_table_goes_through_the_descriptor(lab: dict[str, Any], via: str) -> None:
    bdf = next(each["bdf"] for each in lab["devices"] if each["kind"] == "nvme")
    with open_space([bdf], via=via) as space:
        device = space.device(bdf)
        device.enable()
        bar = device.region(0)
        table = device.config.read(_capability(device, 0x11) + 4)
        assert table & 7 == 0
        assert all(table & ~7 not in area for area in bar.mappable)
        assert any(0x1000 in area for area in bar.mappable)  # the doorbells
        assert bar.read(table & ~7) == 0xFFFF_FFFF
        assert bar.read(8) >> 16 >= 1  # the version
        assert device.interrupt_count("error") == 1
        with device.interrupts("error") as (event,), device.interrupts("msix", 2):
            device.trigger("error")
            assert event.wait(10) == 1


def _capability(device: Device, number: int) -> int:
    at = device.config.read(0x34, 1)
    while device.config.read(at, 1) != number:
        at = device.config.read(at + 1, 1)
    return at


@pytest.mark.proves("request and error interrupts, and what cannot be mapped, on every machine")
def test_request_interrupt_of_any_device(lab: dict[str, Any], via: str) -> None:
    bdf = lab["devices"][0]["bdf"]
    with open_space([bdf], via=via) as space:
        device = space.device(bdf)
        device.enable()
        assert device.interrupt_count("request") == 1
        with device.interrupts("request") as (event,):
            assert event.take() == 0
            device.trigger("request")
            assert event.wait(10) == 1
        for index in range(6):
            region = device.region(index)
            for area in region.mappable:
                assert area.size % lab["page_size"] == 0
                assert area.last < region.size
        if platform.machine() == "s390x":
            with pytest.raises(OSError, match="instructions"):
                LINUX.map_registers(device.fd, lab["page_size"], 0)


@pytest.mark.guests("arm64", "s390x")
@pytest.mark.proves("registers of a virtio device, little-endian on every machine")
def test_registers_of_virtio_by_mapping_and_by_descriptor(lab: dict[str, Any], via: str) -> None:
    bdf = next(each["bdf"] for each in lab["devices"] if each["kind"] == "blk")
    answers = {}
    for maps in (True, False):
        kernel = Descriptor(maps=maps)
        with open_space([bdf], kernel=kernel, via=via) as space:
            device = space.device(bdf)
            device.enable()
            index, at = _common(device)
            bar = device.region(index)
            # virtio 1.1, 4.1.4.3: device_status, and the number of queues as 16 bits.
            bar.write(at + 20, 0, 1)
            before = bar.read(at + 20, 1)
            bar.write(at + 20, 1 | 2, 1)
            answers[maps] = (before, bar.read(at + 20, 1), bar.read(at + 18, 2), bar.read(at + 4))
            mapped = maps and platform.machine() != "s390x" and bool(bar.mappable)
            assert (kernel.accesses == 0) == mapped
            bar.write(at + 20, 0, 1)
    assert answers[True] == answers[False]
    assert answers[True][:2] == (0, 3)
    assert 1 <= answers[True][2] <= 64


def _common(device: Device) -> tuple[int, int]:
    """Find the common configuration of virtio: its BAR and offset (virtio 1.1, 4.1.4)."""
    at = device.config.read(0x34, 1)
    while at:
        if device.config.read(at, 1) == 9 and device.config.read(at + 3, 1) == 1:
            return device.config.read(at + 4, 1), device.config.read(at + 8)
        at = device.config.read(at + 1, 1)
    raise AssertionError("no virtio device")
