# SPDX-License-Identifier: Apache-2.0
"""The NVMe driver of the examples on the simulated disk; the lab runs it on QEMU's."""

from __future__ import annotations

import errno
import importlib.util
import struct
from pathlib import Path
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.kernel import open_space, uapi
from vmm_iova.kernel import uapi_iommufd as abi
from vmm_iova.mapping import DynamicMaps
from vmm_iova.simulated import SimGroup
from vmm_iova.testing.watched import WatchedKernel

EXAMPLE = Path(__file__).parents[2] / "examples/nvme/nvme.py"
DISK = "0000:01:00.0"
MAPS = {"type1": uapi.IOMMU_MAP_DMA, "iommufd": abi.IOAS_MAP}
SIZE = 1 << 20


@pytest.fixture(scope="module")
def nvme() -> Any:
    spec = importlib.util.spec_from_file_location("nvme", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["iommufd", "type1"])
def kernel(request: pytest.FixtureRequest) -> WatchedKernel:
    groups = [SimGroup(1, (DISK,))]
    return WatchedKernel(groups, kinds={DISK: "nvme"}, iommufd=request.param == "iommufd")


def _left(kernel: WatchedKernel) -> list[str]:
    assert not kernel.mapped()
    return kernel.left()


@pytest.mark.parametrize("interrupts", [False, True], ids=["polling", "MSI-X"])
def test_driver_moves_blocks_and_leaves_nothing(
    nvme: Any, kernel: WatchedKernel, interrupts: bool
) -> None:
    done = nvme.main(DISK, SIZE, interrupts=interrupts, kernel=kernel)

    how = "MSI-X" if interrupts else "polling"
    assert done == f"simulated NVMe: 2048 blocks written, read and the same, by {how}"
    assert _left(kernel) == []


def test_blocks_are_really_on_the_disk(nvme: Any, kernel: WatchedKernel) -> None:
    with open_space([DISK], kernel=kernel) as space:
        usable = vi.load_host(kernel=kernel).usable(devices=[DISK], aperture=48)
        with DynamicMaps(vi.IovaAllocator(usable), space) as maps:
            disk = nvme.Nvme(space.device(DISK), maps)
            with maps.allocate(SIZE) as memory:
                memory.view[:] = bytes(n & 0xFF for n in range(256)) * (SIZE // 256)
                disk.move(nvme.WRITE, memory.iova, 4096, 8192)
                memory.view[:] = bytes(SIZE)
                disk.move(nvme.READ, memory.iova, 4096, 8192)
                assert memory.view[:256] == bytes(range(256))
                disk.move(nvme.READ, memory.iova, 0, 4096)
                assert not any(memory.view[:4096])
            disk.close()
    assert _left(kernel) == []


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINVAL])
def test_fault_at_each_map_leaves_nothing(nvme: Any, kernel: WatchedKernel, number: int) -> None:
    way = "iommufd" if kernel.exists("/dev/iommu") else "type1"
    failed = 0
    for after in range(40):
        kernel.inject(number, request=MAPS[way], after=after)
        try:
            nvme.main(DISK, SIZE, kernel=kernel)
        except vi.DmaError as error:
            failed += error.errno == number
        assert _left(kernel) == []
        if kernel.faults:  # there is no such map any more
            break
    assert failed == after >= 3


def test_fault_at_each_call_leaves_nothing(nvme: Any, kernel: WatchedKernel) -> None:
    failed = 0
    for after in range(400):
        kernel.inject(errno.ENOMEM, after=after)
        try:
            nvme.main(DISK, 64 << 10, interrupts=True, kernel=kernel)
        except vi.IovaError as error:
            failed += isinstance(error, OSError)
        assert _left(kernel) == []
        if kernel.faults:
            break
    assert (after > 15, failed > 10) == (True, True)


def test_range_beyond_the_disk_and_command_that_is_unknown_are_refused(
    nvme: Any, kernel: WatchedKernel
) -> None:
    with pytest.raises(nvme.NvmeError, match="not whole blocks"):
        nvme.main(DISK, 1 << 30, kernel=kernel)
    with open_space([DISK], kernel=kernel) as space:
        usable = vi.load_host(kernel=kernel).usable(devices=[DISK], aperture=48)
        with DynamicMaps(vi.IovaAllocator(usable), space) as maps:
            disk = nvme.Nvme(space.device(DISK), maps)
            for opcode, start, status in ((nvme.READ, 1 << 40, 0x80), (0x7F, 0, 1)):
                with (
                    maps.allocate(4096) as memory,
                    pytest.raises(nvme.NvmeError, match=f"status {status:#x}"),
                ):
                    disk.move(opcode, memory.iova, start, 4096)
            with pytest.raises(nvme.NvmeError, match="status 0x4"):
                disk.move(nvme.WRITE, 0x1234_5000, 0, 4096)  # mapped nowhere
            disk.close()


def test_msix_table_goes_through_the_descriptor(kernel: WatchedKernel) -> None:
    with open_space([DISK], kernel=kernel) as space:
        device = space.device(DISK)
        device.enable()
        bar = device.region(0)

        assert [str(area) for area in bar.mappable] == ["0x0-0x1fff", "0x3000-0x3fff"]
        assert bar.read(0x2000) == 0xFFFF_FFFF  # the kernel's own
        bar.write(0x2000, 0)
        version = struct.pack("<I", bar.read(8))
        assert version == b"\0\4\1\0"
        assert kernel.device(DISK).windows == 1
    assert kernel.device(DISK).windows == 0
