# SPDX-License-Identifier: Apache-2.0
"""What a guest's kernel says about its IOMMUs, gathered inside the guest as plain JSON."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from lab import raw

# What of a device speaks about addresses, identity and ownership; the rest is noise.
DEVICE_FILES = (
    *("vendor", "device", "class", "revision", "subsystem_vendor", "subsystem_device"),
    *("resource", "dma_mask_bits", "consistent_dma_mask_bits", "numa_node", "driver_override"),
    *("function_id", "function_handle", "pchid", "pfgid", "vfn", "pft", "port", "fidparm"),
    *("uid", "uid_is_unique", "mio_enabled"),
)
IOMMU_FILES = (
    *("address", "version", "cap", "ecap", "domains_supported", "domains_used", "features"),
)
DMESG = re.compile(r"DMAR|AMD-Vi|iommu|smmu|IVRS|IORT|vfio|zpci", re.IGNORECASE)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


class Tree:
    """A copy of the parts of `/sys` that matter: texts and links, keyed by path."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}

    def take(self, path: Path) -> None:
        """Take one file or link; what cannot be read is left out."""
        key = str(path).lstrip("/")
        if path.is_symlink():
            self.links[key] = str(path.readlink())
        elif path.is_file():
            text = _text(path)
            if text is not None:
                self.files[key] = text

    def device(self, folder: Path) -> None:
        """Take one PCI device, through its link in the bus folder."""
        for name in sorted((*DEVICE_FILES, "driver", "iommu", "iommu_group")):
            if (folder / name).is_symlink() or (folder / name).exists():
                self.take(folder / name)
        for node in _names(folder / "vfio-dev"):
            self.take(folder / "vfio-dev" / node / "dev")

    def group(self, folder: Path) -> None:
        """Take one IOMMU group."""
        for name in ("reserved_regions", "type", "name"):
            self.take(folder / name)
        for member in _names(folder / "devices"):
            self.take(folder / "devices" / member)

    def iommu(self, entry: Path) -> None:
        """Take one IOMMU of the class folder."""
        self.take(entry)
        for part in ("intel-iommu", "amd-iommu"):
            for name in _names(entry / part):
                if name in IOMMU_FILES:
                    self.take(entry / part / name)
        for member in _names(entry / "devices"):
            self.take(entry / "devices" / member)


def sysfs() -> dict[str, dict[str, str]]:
    """Return the part of `/sys` that a host model is made from."""
    tree = Tree()
    root = Path("/sys")
    for name in _names(root / "kernel/iommu_groups"):
        tree.group(root / "kernel/iommu_groups" / name)
    for name in _names(root / "class/iommu"):
        tree.iommu(root / "class/iommu" / name)
    for name in _names(root / "bus/pci/devices"):
        tree.take(root / "bus/pci/devices" / name)
        tree.device(root / "bus/pci/devices" / name)
    for module in ("vfio_iommu_type1", "iommufd", "vfio"):
        for name in _names(root / "module" / module / "parameters"):
            tree.take(root / "module" / module / "parameters" / name)
    return {"files": tree.files, "links": tree.links}


def changes(
    before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]
) -> dict[str, dict[str, str | None]]:
    """Return what differs in the second tree; an entry that went away is None."""
    result: dict[str, dict[str, str | None]] = {}
    for part in ("files", "links"):
        old, new = before[part], after[part]
        result[part] = {
            key: new.get(key) for key in sorted({*old, *new}) if old.get(key) != new.get(key)
        }
    return result


def _hex(ranges: raw.Ranges) -> list[list[str]]:
    return [[hex(start), hex(last)] for start, last in ranges]


def type1(bdf: str, group: int) -> dict[str, Any]:
    """Return what a type1 container says with this device's group in it."""
    with raw.type1(group) as container:
        flags, sizes, capabilities = container.info()
        device = container.device(bdf)
        try:
            own = raw.device_capabilities(device)
        finally:
            os.close(device)
        group_folder = Path(f"/sys/kernel/iommu_groups/{group}")
        return {
            "flags": flags,
            "iova_pgsizes": hex(sizes),
            "ranges": _hex(container.ranges()),
            "dma_avail": container.available(),
            "capability_ids": sorted(capabilities.payloads),
            "device_capabilities": {
                str(kind): payload[:64].hex() for kind, payload in own.payloads.items()
            },
            "reserved_regions_while_attached": _text(group_folder / "reserved_regions"),
        }


def iommufd(nodes: list[str]) -> dict[str, Any]:
    """Return what one IOAS says before and after each of the devices is attached."""
    steps: list[dict[str, Any]] = []
    with raw.opened("/dev/iommu") as handle:
        ioas = raw.Ioas(handle)
        opened: list[int] = []
        try:
            for node in (None, *nodes):
                if node is not None:
                    opened.append(os.open(node, os.O_RDWR | os.O_CLOEXEC))
                    ioas.attach(opened[-1])
                ranges, alignment = ioas.ranges()
                steps.append(
                    {"attached": node, "ranges": _hex(ranges), "iova_alignment": alignment}
                )
        finally:
            for device in opened:
                os.close(device)
    return {"steps": steps}


def machine() -> dict[str, str]:
    """Return which kernel and machine this is."""
    names = platform.uname()
    return {"release": names.release, "machine": names.machine, "version": names.version}


def dmesg(log: Path) -> list[str]:
    """Return the lines of the boot log that speak of IOMMUs."""
    return [line for line in (_text(log) or "").splitlines() if DMESG.search(line)]
