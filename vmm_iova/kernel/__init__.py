# SPDX-License-Identifier: Apache-2.0
"""The kernel: VFIO type1 containers and iommufd.

    from vmm_iova.kernel import open_space

    with open_space(["0000:01:00.0"]) as space:
        print(space.facts().ranges)

Planning needs nothing of this; importing it needs Linux.
"""

from vmm_iova.host.facts import SpaceKind
from vmm_iova.kernel.book import LiveMapping, LiveMappings, Mappable
from vmm_iova.kernel.caps import DeviceFacts, Type1Facts, ZpciFacts
from vmm_iova.kernel.device import (
    DeviceSite,
    Via,
    find_device,
    open_space,
)
from vmm_iova.kernel.facts import with_kernel_facts
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import HardwareInfo, Iommufd, VfioCdev
from vmm_iova.kernel.registers import (
    Device,
    Event,
    InterruptKind,
    Order,
    Region,
    Width,
    device_facts,
)
from vmm_iova.kernel.space import AddressSpace, SpaceFacts
from vmm_iova.kernel.syscalls import LINUX, Kernel, LinuxKernel, LockBudget, RegisterWindow
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.kernel.windows import Windows

__all__ = [
    "LINUX",
    "AddressSpace",
    "Device",
    "DeviceFacts",
    "DeviceSite",
    "Event",
    "HardwareInfo",
    "InterruptKind",
    "Ioas",
    "Iommufd",
    "Kernel",
    "LinuxKernel",
    "LiveMapping",
    "LiveMappings",
    "LockBudget",
    "Mappable",
    "Order",
    "Region",
    "RegisterWindow",
    "SpaceFacts",
    "SpaceKind",
    "Type1Container",
    "Type1Facts",
    "VfioCdev",
    "Via",
    "Width",
    "Windows",
    "ZpciFacts",
    "device_facts",
    "find_device",
    "open_space",
    "with_kernel_facts",
]
