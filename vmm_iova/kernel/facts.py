# SPDX-License-Identifier: Apache-2.0
"""What an open address space says, as facts of the host model with their evidence.

    host = with_kernel_facts(load_host(), space)
    layout = plan(Guest(machine="q35", ram="64GiB"), host.usable(devices=["0000:01:00.0"]))

A list that the kernel gives for an attached device is the strongest evidence there is; the zPCI
capability is the only one that an s390 kernel before 5.4 offers.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vmm_iova.errors import RequestError
from vmm_iova.host.facts import DmaWindow, KernelRanges, Limits, Source
from vmm_iova.kernel.registers import device_facts

if TYPE_CHECKING:
    from vmm_iova.host.host import Host
    from vmm_iova.kernel.ioas import Ioas
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
    )
