# SPDX-License-Identifier: Apache-2.0
"""Runs inside a guest, before the tests: hand the devices to VFIO and write down what was done.

    python -m lab.guest_setup FOLDER

reads FOLDER/guest.json and writes FOLDER/setup.json (for tests, which find it through the variable
VMM_IOVA_LAB) and FOLDER/facts.json (for the bundled hosts).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lab import facts, raw

BUS = Path("/sys/bus/pci")
HUGE_PAGES = 16
KINDS = {
    ("0x1234", "0x11e8"): "edu",
    ("0x1af4", "0x1044"): "rng",
    ("0x1af4", "0x1042"): "blk",
    ("0x1b36", "0x0010"): "nvme",
}
UNSAFE = {
    "type1": Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"),
    "iommufd": Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts"),
}


class SetupError(Exception):
    """A guest that is not as the lab's table says it is."""


def _link_name(path: Path) -> str | None:
    return path.readlink().name if path.is_symlink() else None


def bind(bdf: str) -> dict[str, Any]:
    """Hand one device to vfio-pci and return what the tests need to know about it."""
    folder = BUS / "devices" / bdf
    if not folder.exists():
        raise SetupError(f"the guest has no device {bdf}")
    group = _link_name(folder / "iommu_group")
    if group is None:
        raise SetupError(f"device {bdf} is behind no IOMMU")
    before = _link_name(folder / "driver")
    if before is not None:
        (folder / "driver" / "unbind").write_text(bdf)
    (folder / "driver_override").write_text("vfio-pci")
    (BUS / "drivers_probe").write_text(bdf)
    if _link_name(folder / "driver") != "vfio-pci":
        raise SetupError(f"vfio-pci did not take device {bdf}")
    node = Path(f"/dev/vfio/{group}")
    _appears(node)
    cdevs = sorted(entry.name for entry in (folder / "vfio-dev").glob("*"))
    cdev = f"/dev/vfio/devices/{cdevs[0]}" if cdevs else None
    vendor = (folder / "vendor").read_text().strip()
    device = (folder / "device").read_text().strip()
    return {
        "bdf": bdf,
        "group": int(group),
        "group_node": str(node),
        "cdev": cdev if cdev and Path(cdev).exists() else None,
        "vendor": vendor,
        "device": device,
        "kind": KINDS.get((vendor, device), "other"),
        "driver_before": before,
    }


def _appears(node: Path) -> None:
    """Wait a moment for a node that devtmpfs makes."""
    for _ in range(100):
        if node.exists():
            return
        time.sleep(0.02)
    raise SetupError(f"{node} did not appear after vfio-pci was bound")


def unsafe_interrupts(group: int) -> dict[str, Any]:
    """Try a container; where it is refused for want of interrupt remapping, allow that."""
    try:
        with raw.type1(group):
            refused = 0
    except OSError as error:
        refused = error.errno or errno.EIO
    result: dict[str, Any] = {"set_iommu_errno": refused, "parameters": {}}
    for name, path in UNSAFE.items():
        if not path.exists():
            continue
        before = path.read_text().strip()
        if refused == errno.EPERM:
            path.write_text("Y")
        after = path.read_text().strip()
        result["parameters"][name] = {"path": str(path), "before": before, "after": after}
    return result


def huge_pages() -> int:
    """Ask for a few huge pages, and return how many there are."""
    path = Path("/proc/sys/vm/nr_hugepages")
    try:
        path.write_text(str(HUGE_PAGES))
        return int(path.read_text())
    except OSError:
        return 0


def main(folder: Path) -> int:
    """Set the guest up and write what was found."""
    plan = json.loads((folder / "guest.json").read_text())
    before = facts.sysfs()
    devices = [bind(bdf) for bdf in plan["devices"]]
    bound = facts.sysfs()
    unsafe = unsafe_interrupts(devices[0]["group"])
    kernel: dict[str, Any] = {
        "type1": {each["bdf"]: facts.type1(each["bdf"], each["group"]) for each in devices}
    }
    nodes = [each["cdev"] for each in devices if each["cdev"]]
    if nodes and Path("/dev/iommu").exists():
        kernel["iommufd"] = facts.iommufd(nodes)
    setup = {
        "guest": plan["guest"],
        **facts.machine(),
        "byteorder": sys.byteorder,
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "huge_pages": huge_pages(),
        "devices": devices,
        "unsafe_interrupts": unsafe,
    }
    (folder / "setup.json").write_text(json.dumps(setup, indent=1))
    gathered = {
        "format": 1,
        "guest": plan["guest"],
        "title": plan["title"],
        "machine": facts.machine(),
        "sysfs": before,
        "sysfs_after_vfio": facts.changes(before, bound),
        "devices": devices,
        "unsafe_interrupts": unsafe,
        "kernel": kernel,
        "dmesg": facts.dmesg(folder / "dmesg.txt"),
    }
    (folder / "facts.json").write_text(json.dumps(gathered, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except SetupError as error:
        print(f"lab: setting the guest up failed: {error}", flush=True)
        sys.exit(1)
