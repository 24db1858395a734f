# SPDX-License-Identifier: Apache-2.0
"""A device in the hand, on the kernel of this guest: registers, DMA, interrupts, reset."""

from __future__ import annotations

from typing import Any

import pytest
from vmm_iova import AddrRange, Iova
from vmm_iova.errors import DmaError, RequestError
from vmm_iova.kernel import open_space
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
        assert [device.interrupt_count(kind) for kind in ("intx", "msi", "msix")] == [1, 1, 0]
        with pytest.raises(DmaError):
            device.region(200)
        with pytest.raises(RequestError):
            bar.read(1 << 20)
        device.enable(memory=False)
        with pytest.raises(DmaError):
            bar.read(0)
