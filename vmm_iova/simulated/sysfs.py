# SPDX-License-Identifier: Apache-2.0
"""The files and nodes of the simulated host: what `device` reads before it opens anything."""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING

from vmm_iova.simulated.model import SimGroup, refuse

if TYPE_CHECKING:
    from collections.abc import Iterable

_PCI = "/sys/bus/pci/devices"
_GROUPS = "/sys/kernel/iommu_groups"


class NodeKind(enum.Enum):
    """A node that is there once."""

    CONTAINER = "/dev/vfio/vfio"
    IOMMUFD = "/dev/iommu"


Node = NodeKind | SimGroup | tuple[str, SimGroup]


class SimSysfs:
    """Files, links and device nodes by path.

    Args:
        groups: what there is; more come with `plug`.
        has_iommufd: whether /dev/iommu exists.
        has_cdev: whether devices have nodes of their own.
    """

    def __init__(self, groups: Iterable[SimGroup], *, has_iommufd: bool, has_cdev: bool) -> None:
        self.groups: dict[int, SimGroup] = {}
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.forbidden: dict[str, int] = {}
        """Paths that cannot be opened, and the errno."""
        self.foreign_drivers: dict[str, str] = {}
        """Devices of a group that a host driver holds, so that the group is not viable."""
        self._has_cdev = has_cdev
        kinds = NodeKind if has_iommufd else (NodeKind.CONTAINER,)
        self._nodes: dict[str, Node] = {kind.value: kind for kind in kinds}
        self._cdevs = 0
        for group in groups:
            self.plug(group)

    def plug(self, group: SimGroup) -> None:
        """Put a group in, with its devices, links and nodes."""
        self.groups[group.number] = group
        base = f"{_GROUPS}/{group.number}"
        self.files[f"{base}/reserved_regions"] = "".join(
            f"0x{where.start:016x} 0x{where.last:016x} {kind}\n" for where, kind in group.reserved
        )
        for bdf in group.devices:
            device = f"{_PCI}/{bdf}"
            self.files[f"{device}/vendor"] = "0x1234\n"
            self.links[f"{base}/devices/{bdf}"] = f"../../../../devices/pci0000:00/{bdf}"
            self.links[f"{device}/iommu_group"] = f"../../../kernel/iommu_groups/{group.number}"
            driver = self.foreign_drivers.get(bdf, group.driver)
            if driver:
                self.links[f"{device}/driver"] = f"../../../bus/pci/drivers/{driver}"
            if driver == "vfio-pci":
                self._nodes[f"/dev/vfio/{group.number}"] = group
                if self._has_cdev:
                    name = f"vfio{self._cdevs}"
                    self.files[f"{device}/vfio-dev/{name}/dev"] = f"511:{self._cdevs}\n"
                    self._nodes[f"/dev/vfio/devices/{name}"] = (bdf, group)
                    self._cdevs += 1

    def bind_foreign(self, bdf: str, driver: str) -> None:
        """Let a host driver hold a device that is there."""
        self.foreign_drivers[bdf] = driver
        self.links[f"{_PCI}/{bdf}/driver"] = f"../../../bus/pci/drivers/{driver}"

    def viable(self, group: SimGroup) -> bool:
        """Whether no device of a group has a host driver."""
        return not any(bdf in self.foreign_drivers for bdf in group.devices)

    def node(self, path: str) -> Node:
        """Return what a node is: one of a kind, a group, or a device with its group.

        Raises:
            OSError: `ENOENT`, or what `forbidden` says.
        """
        if path in self.forbidden:
            raise refuse(self.forbidden[path])
        if path not in self._nodes:
            raise refuse(errno.ENOENT)
        return self._nodes[path]

    def read_text(self, path: str) -> str:
        """Return the content of a file."""
        if path not in self.files:
            raise refuse(errno.ENOENT)
        return self.files[path]

    def list_dir(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        prefix = path.rstrip("/") + "/"
        known = [*self.files, *self.links, *self._nodes]
        names = {item[len(prefix) :].split("/")[0] for item in known if item.startswith(prefix)}
        if not names:
            raise refuse(errno.ENOENT)
        return sorted(names)

    def read_link(self, path: str) -> str:
        """Return where a link points."""
        if path not in self.links:
            raise refuse(errno.ENOENT if not self.exists(path) else errno.EINVAL)
        return self.links[path]

    def exists(self, path: str) -> bool:
        """Tell whether there is something at `path`."""
        known = [*self.files, *self.links, *self._nodes]
        return any(item == path or item.startswith(path.rstrip("/") + "/") for item in known)
