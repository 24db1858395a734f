# SPDX-License-Identifier: Apache-2.0
"""A kernel in memory that answers VFIO and iommufd ioctl by ioctl, as Linux does.

    from vmm_iova.kernel import open_space
    from vmm_iova.simulated import SimGroup, SimulatedKernel

The lab runs the same random calls on it and on booted kernels; where they differ, it is wrong.
"""

from vmm_iova.simulated.devices import DeviceKind
from vmm_iova.simulated.kernel import SimulatedKernel
from vmm_iova.simulated.model import RegionWord, SimGroup
from vmm_iova.simulated.pci import SimPci

__all__ = ["DeviceKind", "RegionWord", "SimGroup", "SimPci", "SimulatedKernel"]
