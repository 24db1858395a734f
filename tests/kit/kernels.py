# SPDX-License-Identifier: Apache-2.0
"""Simulated hosts, and short ways to use them."""

from __future__ import annotations

import pytest

from vmm_iova.errors import DmaError
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import VfioCdev
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.ranges import AddrRange
from vmm_iova.simulated import SimGroup, SimulatedKernel

NIC, GPU = "0000:00:04.0", "0000:00:05.0"
HVA = 0x7F00_0000_0000
MSI = AddrRange(0xFEE0_0000, 0xFEEF_FFFF)
RMRR = AddrRange(0x7B80_0000, 0x7FFF_FFFF)
NARROW = AddrRange(0, (1 << 39) - 1)

NIC_GROUP = SimGroup(4, (NIC,))
NARROW_GPU_GROUP = SimGroup(5, (GPU,), aperture=NARROW)
GPU_GROUP = SimGroup(
    5, (GPU,), aperture=NARROW, reserved=((RMRR, "direct-relaxable"), (MSI, "msi"))
)

Space = Type1Container | Ioas


def attach(space: Ioas, sim: SimulatedKernel, index: int, *, dirty: bool = False) -> VfioCdev:
    """Bind the NIC (0) or the GPU (1), and attach it."""
    device = VfioCdev(sim, f"/dev/vfio/devices/vfio{index}")
    device.bind(space.iommufd)
    space.attach((NIC, GPU)[index], device, dirty=dirty)
    return device


def refusal(number: int) -> pytest.RaisesExc[DmaError]:
    """Expect that the kernel refuses with this errno."""
    return pytest.raises(DmaError, check=lambda error: error.errno == number)
