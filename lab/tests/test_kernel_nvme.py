# SPDX-License-Identifier: Apache-2.0
"""The NVMe driver of the examples moves real blocks on the kernel of this guest."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from vmm_iova.errors import DmaError
from vmm_iova.kernel import LINUX, LinuxKernel, uapi
from vmm_iova.kernel import uapi_iommufd as abi

EXAMPLE = Path(__file__).parents[2] / "examples/nvme/nvme.py"


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("nvme", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.guests("vtd", "vtd39", "amd", "iommufd")
@pytest.mark.proves("a user-space NVMe driver writes 64 MiB, reads it back, every block the same")
@pytest.mark.parametrize("interrupts", [False, True], ids=["polling", "MSI-X"])
def test_nvme_driver_moves_blocks(lab: dict[str, Any], interrupts: bool) -> None:
    bdf = next(each["bdf"] for each in lab["devices"] if each["kind"] == "nvme")

    done = _example().main(bdf, 64 << 20, interrupts=interrupts)

    assert done.endswith(f"the same, by {'MSI-X' if interrupts else 'polling'}")
    assert "131072 blocks" in done


class Faulty(LinuxKernel):
    """Refuses the n-th map call."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def ioctl(self, fd: int, request: int, arg: int | bytes | bytearray = 0) -> int:  # type: ignore[override]
        if request in (uapi.IOMMU_MAP_DMA, abi.IOAS_MAP):
            self.after -= 1
            if self.after == -1:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return fcntl.ioctl(fd, request, arg)


@pytest.mark.guests("vtd", "amd", "iommufd")
@pytest.mark.proves("a fault at each map of the NVMe driver leaves nothing")
def test_fault_at_each_map_leaves_nothing(lab: dict[str, Any]) -> None:
    bdf = next(each["bdf"] for each in lab["devices"] if each["kind"] == "nvme")
    before = (LINUX.lock_budget(), sorted(os.listdir("/proc/self/fd")))  # noqa: PTH208
    failed = 0
    for after in range(20):
        kernel = Faulty(after)
        try:
            _example().main(bdf, 1 << 20, kernel=kernel)
        except DmaError as error:
            failed += error.errno == errno.ENOMEM
        assert (LINUX.lock_budget(), sorted(os.listdir("/proc/self/fd"))) == before  # noqa: PTH208
        assert "vfio" not in Path("/proc/self/maps").read_text()
        if kernel.after >= 0:  # there is no such map any more
            break
    assert failed == after >= 3
    assert _example().main(bdf, 1 << 20).endswith("the same, by polling")
