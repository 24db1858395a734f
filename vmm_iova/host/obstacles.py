# SPDX-License-Identifier: Apache-2.0
"""What keeps a group from user space as its host is set up now: drivers, and interrupts.

Source: iommu_device_use_default_domain, iommu_group_claim_dma_owner (drivers/iommu/iommu.c, Linux
5.19), vfio_dev_viable before; vfio_iommu_type1_attach_group and iommufd_device_bind for interrupts.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.host.facts import Facts, Group, Platform, SpaceKind
    from vmm_iova.remedies import Remedy

_SAFE_DRIVERS = ("pci-stub", "pcieport")  # they leave DMA to whoever owns the group
_MODULE: dict[SpaceKind, str] = {"type1": "vfio_iommu_type1", "iommufd": "iommufd"}

_NOT_VIABLE: tuple[tuple[SpaceKind, int], ...]
_NOT_VIABLE = (("type1", errno.EINVAL), ("iommufd", errno.EPERM))
_NO_NODE: tuple[tuple[SpaceKind, int], ...]
_NO_NODE = (("type1", errno.ENOENT), ("iommufd", errno.ENOENT))


def iommu_hint(platform: Platform, arch: str | None = None) -> Remedy:
    """Return how the IOMMU is switched on, on a machine of this sort."""
    if platform.guest:
        return say.IOMMU_ON_GUEST
    vendor = platform.vendor or ("arm" if (arch or "").startswith(("aarch64", "arm")) else None)
    ways = {"amd": say.IOMMU_ON_AMD, "arm": say.IOMMU_ON_ARM, "intel": say.IOMMU_ON_INTEL}
    return ways.get(vendor or "", say.IOMMU_ON)


@record
class Obstacle:
    """What keeps a group from user space as its host is set up now, and can be changed there.

    Attributes:
        errno: what the interfaces that refuse answer.
        text: one clause.
        hint: what helps.
    """

    errno: tuple[tuple[SpaceKind, int], ...]
    text: str
    hint: str

    def refuses(self, way: SpaceKind) -> int | None:
        """Return the errno of an interface, or None: it takes the group all the same."""
        return dict(self.errno).get(way)


def hinders(driver: str | None) -> bool:
    """Tell whether a device with this driver keeps its group from user space."""
    return bool(driver and "vfio" not in driver and driver not in _SAFE_DRIVERS)


def find_obstacles(host: Facts, groups: Iterable[Group]) -> Iterable[Obstacle]:
    """Name what keeps each group from user space, as far as the facts say."""
    drivers = {device.name: device.driver or "" for device in host.devices}
    foreign = {name: driver for name, driver in drivers.items() if hinders(driver)}
    ready = {name for name, driver in drivers.items() if "vfio" in driver}
    for group in groups:
        held = [f"{name} has driver {foreign[name]}" for name in group.devices if name in foreign]
        if held:
            text = f"group {group.id} is not viable: {', '.join(held)}"
            yield Obstacle(_NOT_VIABLE, text, say.BIND_GROUP)
        elif host.sysfs and group.devices and ready.isdisjoint(group.devices):
            text = f"no device of {group.title} is bound to vfio-pci, so it has no node"
            yield Obstacle(_NO_NODE, text, say.BIND_GROUP)
    state = host.state
    if state.remaps_interrupts is False:
        told = {"type1": state.unsafe_interrupts, "iommufd": state.unsafe_iommufd}
        for way, module in _MODULE.items():
            if not told[way]:
                text = (
                    "the host does not remap its interrupts, and "
                    f"{module}.allow_unsafe_interrupts is not Y"
                )
                hint = say.REMAP_OR_UNSAFE.format(module=module)
                yield Obstacle(((way, errno.EPERM),), text, hint)
