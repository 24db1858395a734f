# SPDX-License-Identifier: Apache-2.0
"""The lab proves itself: every guest is the host that the table claims, by raw ioctls alone."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lab import raw, virtio

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
MSI = (0xFEE00000, 0xFEEFFFFF)
TOP = (1 << 64) - 1
WIDTH48, WIDTH39 = (1 << 48) - 1, (1 << 39) - 1
TYPE1_RANGES: dict[str, raw.Ranges] = {
    "vtd": [(0, MSI[0] - 1), (MSI[1] + 1, WIDTH48)],
    "vtd39": [(0, MSI[0] - 1), (MSI[1] + 1, WIDTH39)],
    "amd": [(0, MSI[0] - 1), (MSI[1] + 1, 0xFCFFFFFFFF), (0x10000000000, TOP)],
    "iommufd": [(0, MSI[0] - 1), (MSI[1] + 1, WIDTH48)],
    "arm64": [(0, 0x7FFFFFF), (0x8100000, WIDTH48)],
    "s390x": [(0x100000000, 0x13FFFFFFF)],
}
# An address in the middle of a hole, and one in a range, of each guest.
HOLE = {"arm64": 0x8000000, "s390x": 0x1000}
INSIDE = {"s390x": 0x100000000}
MSI_LINE = "0x00000000fee00000 0x00000000feefffff msi"
MOCK = ("kernel/debug/iommufd_test", "bus/iommufd_mock")
RESERVED = {
    "vtd": MSI_LINE,
    "vtd39": MSI_LINE,
    "amd": f"{MSI_LINE}\n0x000000fd00000000 0x000000ffffffffff reserved",
    "iommufd": MSI_LINE,
    "arm64": "0x0000000008000000 0x00000000080fffff msi",
    "s390x": "0x0000000000000000 0x00000000ffffffff reserved\n"
    "0x0000000140000000 0x000003ffffffffff reserved",
}


def _group(lab: dict[str, Any], index: int = 0) -> int:
    return int(lab["devices"][index]["group"])


@contextlib.contextmanager
def _held(lab: dict[str, Any], kind: str, which: int = 0) -> Iterator[tuple[raw.Type1, int]]:
    """Hold a container and a device of a kind.

    The device is opened before anything is mapped, because that resets it, and QEMU's zPCI forgets
    all translations at a reset (the machine itself would not).
    """
    device = [each for each in lab["devices"] if each["kind"] == kind][which]
    with raw.type1(int(device["group"])) as container:
        handle = container.device(device["bdf"])
        try:
            yield container, handle
        finally:
            os.close(handle)


def test_reserved_regions(lab: dict[str, Any], facts: dict[str, Any]) -> None:
    for device in lab["devices"]:
        path = f"sys/kernel/iommu_groups/{device['group']}/reserved_regions"
        assert facts["sysfs"]["files"][path].strip() == RESERVED[lab["guest"]]


def test_groups_are_apart(lab: dict[str, Any]) -> None:
    groups = {device["group"] for device in lab["devices"]}
    assert len(groups) == len(lab["devices"]) >= 2


@pytest.mark.guests("vtd", "vtd39")
def test_isa_bridge_is_relaxable(facts: dict[str, Any]) -> None:
    # Announced for the floppy drive's sake, so only by kernels with its driver: not the built one.
    texts = [t for p, t in facts["sysfs"]["files"].items() if p.endswith("reserved_regions")]
    line = "0x0000000000000000 0x0000000000ffffff direct-relaxable"
    assert any(line in text for text in texts)


@pytest.mark.proves("type1 ranges as known")
def test_type1_ranges(lab: dict[str, Any]) -> None:
    for device in lab["devices"]:
        with raw.type1(int(device["group"])) as container:
            assert container.ranges() == TYPE1_RANGES[lab["guest"]]
            assert container.info()[1] & PAGE
            assert container.available() == 65535


@pytest.mark.proves("map, unmap and their refusals")
def test_type1_map_and_unmap(lab: dict[str, Any]) -> None:
    inside = INSIDE.get(lab["guest"], 0x100000)
    hole = HOLE.get(lab["guest"], MSI[0])
    memory = raw.buffer(4 * PAGE)
    with raw.type1(_group(lab)) as container:
        assert container.map(inside, memory) == 0
        assert container.available() == 65534
        assert container.map(inside, memory) == errno.EEXIST
        assert container.map(hole, memory) == errno.EINVAL
        last = container.ranges()[-1][1]
        if last < TOP:
            assert container.map(last + 1, memory) == errno.EINVAL
        assert container.map(inside + 8 * PAGE + 1, memory) == errno.EINVAL
        assert container.unmap(inside, 4 * PAGE) == 4 * PAGE
        assert container.unmap(inside, 4 * PAGE) == 0
        assert container.available() == 65535


@pytest.mark.guests("amd")
@pytest.mark.proves("without interrupt remapping SET_IOMMU is EPERM until it is allowed")
def test_interrupt_remapping_is_missed(lab: dict[str, Any]) -> None:
    assert lab["unsafe_interrupts"]["set_iommu_errno"] == errno.EPERM
    assert lab["unsafe_interrupts"]["parameters"]["type1"]["before"] == "N"
    assert lab["unsafe_interrupts"]["parameters"]["type1"]["after"] == "Y"


@pytest.mark.guests("vtd", "vtd39", "iommufd", "arm64", "s390x")
def test_interrupts_are_isolated(lab: dict[str, Any]) -> None:
    assert lab["unsafe_interrupts"]["set_iommu_errno"] == 0


@pytest.mark.guests("vtd", "vtd39", "amd", "iommufd")
@pytest.mark.proves("edu DMA both ways, at 1 MiB and above 2^38")
@pytest.mark.parametrize("iova", [0x100000, (1 << 38) + 0x200000])
@pytest.mark.parametrize("which", [0, 1])
def test_edu_moves_bytes(lab: dict[str, Any], iova: int, which: int) -> None:
    sent = os.urandom(1024)
    memory = raw.buffer(2 * PAGE)
    memory[: len(sent)] = sent
    with _held(lab, "edu", which) as (container, handle):
        assert container.map(iova, memory) == 0
        raw.enable(handle)
        raw.edu_copy(handle, iova, len(sent), to_device=True)
        raw.edu_copy(handle, iova + PAGE, len(sent), to_device=False)
        assert memory[PAGE : PAGE + len(sent)] == sent
        assert container.unmap(iova, 2 * PAGE) == 2 * PAGE


@pytest.mark.guests("vtd", "vtd39", "amd", "iommufd")
def test_edu_cannot_reach_what_is_not_mapped(lab: dict[str, Any]) -> None:
    memory = raw.buffer(2 * PAGE)
    memory[:PAGE] = b"\xaa" * PAGE
    with _held(lab, "edu") as (container, handle):
        assert container.map(0x100000, memory) == 0
        raw.enable(handle)
        raw.edu_copy(handle, 0x100000, 512, to_device=True)
        assert container.unmap(0x100000, 2 * PAGE) == 2 * PAGE
        raw.edu_copy(handle, 0x100000 + PAGE, 512, to_device=False)
    assert memory[PAGE:] == bytes(PAGE)


@pytest.mark.guests("iommufd")
@pytest.mark.proves("iommufd ranges before and after attach, fixed and automatic placement")
def test_iommufd(lab: dict[str, Any]) -> None:
    nodes = [device["cdev"] for device in lab["devices"]]
    memory = raw.buffer(4 * PAGE)
    with raw.opened("/dev/iommu") as handle, raw.opened(nodes[0]) as device:
        ioas = raw.Ioas(handle)
        assert ioas.ranges() == ([(0, TOP)], 1)
        ioas.attach(device)
        assert ioas.ranges() == (TYPE1_RANGES["iommufd"], PAGE)
        assert ioas.map(memory, MSI[0])[0] == errno.EINVAL
        assert ioas.map(memory, 0x100000) == (0, 0x100000)
        assert ioas.map(memory, 0x100000)[0] == errno.EEXIST
        code, placed = ioas.map(memory, None)
        assert code == 0
        assert placed % PAGE == 0
        assert placed != 0x100000
        assert ioas.unmap(placed, 4 * PAGE) == 4 * PAGE
        assert ioas.unmap(0x100000, 4 * PAGE) == 4 * PAGE
        with pytest.raises(OSError, match="No such file") as caught:
            ioas.unmap(0x100000, 4 * PAGE)
        assert caught.value.errno == errno.ENOENT


@pytest.mark.guests("iommufd")
@pytest.mark.proves("KVM makes a VM")
def test_kvm_smoke() -> None:
    get_version, create_vm = 0xAE00, 0xAE01
    with raw.opened("/dev/kvm") as kvm:
        assert raw.call(kvm, get_version, 0) == 12
        machine = raw.call(kvm, create_vm, 0)
        os.close(machine)


@pytest.mark.guests("iommufd")
@pytest.mark.proves("the kernel's mock IOMMU and failslab are there")
def test_fault_tools() -> None:
    assert Path("/sys/kernel/debug/failslab").is_dir()
    assert Path("/proc/self/fail-nth").exists()
    assert any(Path(f"/sys/{name}").is_dir() for name in MOCK)


@pytest.mark.guests("s390x")
@pytest.mark.proves("zPCI capability, sysfs and IOVA range agree; big-endian")
def test_zpci_capability(lab: dict[str, Any]) -> None:
    assert lab["byteorder"] == "big"
    for each in lab["devices"]:
        with raw.type1(int(each["group"])) as container:
            handle = container.device(each["bdf"])
            try:
                payload = raw.device_capabilities(handle).payloads[1]
            finally:
                os.close(handle)
            assert [struct.unpack_from("=QQ", payload, 8)] == container.ranges()


@pytest.mark.proves("DMA by a virtio disk both ways, byte for byte")
def test_virtio_disk_moves_bytes(lab: dict[str, Any]) -> None:
    iova = INSIDE.get(lab["guest"], 0x100000)
    memory, apart = raw.buffer(virtio.SIZE), raw.buffer(2 * PAGE)
    with _held(lab, "blk") as (container, handle):
        high = container.ranges()[-1][1] + 1 - 4 * PAGE
        assert container.map(iova, memory) == 0
        assert container.map(high, apart) == 0
        disk = virtio.Disk(handle, memory, iova)
        assert disk.read(3, 2 * virtio.SECTOR) == 0
        got = memory[virtio.DATA : virtio.DATA + 2 * virtio.SECTOR]
        assert got == b"\x03" * virtio.SECTOR + b"\x04" * virtio.SECTOR
        apart[:PAGE] = os.urandom(PAGE)
        assert disk.write(16, PAGE, high) == 0
        assert disk.read(16, PAGE, high + PAGE) == 0
        assert apart[PAGE:] == apart[:PAGE]


@pytest.mark.guests("arm64", "s390x")
def test_virtio_disk_cannot_reach_what_is_not_mapped(lab: dict[str, Any]) -> None:
    iova = INSIDE.get(lab["guest"], 0x100000)
    memory, apart = raw.buffer(virtio.SIZE), raw.buffer(PAGE)
    with _held(lab, "blk") as (container, handle):
        assert container.map(iova, memory) == 0
        assert container.map(iova + virtio.SIZE, apart) == 0
        assert container.unmap(iova + virtio.SIZE, PAGE) == PAGE
        disk = virtio.Disk(handle, memory, iova)
        # Whether the disk answers or gives up is its own affair; memory is what counts.
        with contextlib.suppress(TimeoutError):
            disk.read(3, virtio.SECTOR, iova + virtio.SIZE)
    assert apart[:] == bytes(PAGE)
