# SPDX-License-Identifier: Apache-2.0
"""What an open address space says, as facts of the host model with their evidence.

    host = with_kernel_facts(load_host(), space)
    layout = plan(Guest(machine="q35", ram="64GiB"), host.usable(devices=["0000:01:00.0"]))

A list that the kernel gives for an attached device is the strongest evidence there is; the zPCI
capability is the only one that an s390 kernel before 5.4 offers.
"""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

from vmm_iova.errors import DmaError, RequestError
from vmm_iova.host.facts import DmaWindow, IommuInfo, KernelRanges, Limits, Source
from vmm_iova.kernel import uapi_iommufd
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.registers import device_facts

if TYPE_CHECKING:
    from vmm_iova.host.facts import InfoKind
    from vmm_iova.host.host import Host
    from vmm_iova.kernel.type1 import Type1Container


def kernel_ranges(space: Type1Container | Ioas, groups: tuple[str, ...]) -> KernelRanges | None:
    """Return the kernel's list as a fact, or None when it gives none or it is not final.

    Args:
        space: after all devices are attached.
        groups: ids of the groups that are attached.

    Raises:
        DmaError: the kernel does not answer.
    """
    facts = space.facts()
    if facts.ranges is None or not facts.final:
        return None
    return KernelRanges(
        facts.ranges,
        space.kind,
        Source(facts.source),
        groups,
        facts.granule,
        facts.page_sizes or None,
    )


_KINDS: dict[int, InfoKind] = {
    uapi_iommufd.HW_INFO_NONE: "none",
    uapi_iommufd.HW_INFO_INTEL_VTD: "intel",
    uapi_iommufd.HW_INFO_ARM_SMMUV3: "smmuv3",
    uapi_iommufd.HW_INFO_AMD: "amd",
}


def hardware_facts(space: Type1Container | Ioas) -> tuple[IommuInfo, ...]:
    """Return what iommufd says of the IOMMU of each attached device.

    Nothing for a container, and for a kernel before 6.6, which has no such call.

    Raises:
        DmaError: the kernel refuses it for another reason.
    """
    found: list[IommuInfo] = []
    if not isinstance(space, Ioas):
        return ()
    for bdf, device in space.devices.items():
        try:
            info = space.iommufd.hw_info(device.device_id)
        except DmaError as error:
            if error.errno != errno.ENOTTY:
                raise
            break
        found.append(
            IommuInfo(
                bdf,
                _KINDS.get(info.type, "unknown"),
                tuple(info.registers().items()),
                info.capabilities,
                info.pasid_bits,
            )
        )
    return tuple(found)


def with_kernel_facts(host: Host, space: Type1Container | Ioas) -> Host:
    """Return the host with what an open address space adds to it.

    The list takes the place of one that was read before for the same groups.

    Args:
        host: from `vmm_iova.load_host`, for the groups of the devices.
        space: from `open_space`; the kernel that it belongs to is asked.

    Raises:
        DmaError: the kernel, or a device, does not answer.
        CapabilityError: an answer contradicts itself.

    Complexity: one query, and one a device.
    Synchronization: external.
    """
    bdfs = space.open_devices
    groups = tuple(
        sorted({group.id for group in host.groups if any(name in bdfs for name in group.devices)})
    )
    if bdfs and not groups:
        raise RequestError(
            f"host {host.name} knows none of the devices that are attached: {', '.join(bdfs)}",
            field="host",
            value=host.name,
            hint="load the facts of this machine: with_kernel_facts(load_host(), space)",
        )
    listed = kernel_ranges(space, groups)
    kept = tuple(item for item in host.kernel_ranges if item.groups != groups)
    windows = [item for item in host.windows if item.device not in bdfs]
    for bdf in bdfs:
        zpci = device_facts(space.device_fd(bdf), space.kernel).zpci
        if zpci is not None:
            source = Source(f"VFIO_DEVICE_GET_INFO of {bdf}, zPCI base capability")
            windows.append(DmaWindow(bdf, zpci.dma, source))
    asked = set(bdfs)
    infos = [item for item in host.iommu_info if item.device not in asked]
    infos += hardware_facts(space)
    budget = space.lock_budget()
    entries = space.facts().entries_left
    limits = Limits(
        host.limits.dma_entries if entries is None else entries + len(space.live),
        -1 if budget.limit is None else budget.limit,
    )
    return dataclasses.replace(
        host,
        kernel_ranges=(*kept, listed) if listed is not None else kept,
        windows=tuple(windows),
        limits=limits,
        iommu_info=tuple(infos),
    )
