# SPDX-License-Identifier: Apache-2.0
"""A capture holds what SECURITY.md says, and nothing that tells whose machine it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmm_iova import cli

ROOT = Path(__file__).parents[2]
PRIVATE = {
    "HOSTNAME-web01": (
        "proc/sys/kernel/hostname",
        "etc/hostname",
        "sys/kernel/hostname",
        "proc/sys/kernel/domainname",
    ),
    "SERIAL-9XK0042": (
        "sys/class/dmi/id/product_serial",
        "sys/class/dmi/id/board_serial",
        "sys/class/dmi/id/chassis_asset_tag",
        "sys/bus/pci/devices/0000:01:00.0/serial",
        "sys/bus/pci/devices/0000:01:00.0/vpd",
        "sys/firmware/dmi/tables/DMI",
    ),
    "MAC-52:54:00:ab:cd:ef": (
        "sys/class/net/eth0/address",
        "sys/bus/pci/devices/0000:01:00.0/net/eth0/address",
        "sys/bus/pci/devices/0000:01:00.0/infiniband/mlx5_0/node_guid",
    ),
    "UUID-4c4c4544": (
        "sys/class/dmi/id/product_uuid",
        "proc/sys/kernel/random/boot_id",
        "etc/machine-id",
        "sys/bus/pci/devices/0000:01:00.0/nvme/nvme0/subsysnqn",
    ),
    "LABEL-rack7": (
        "sys/bus/pci/devices/0000:01:00.0/label",
        "sys/bus/pci/devices/0000:01:00.0/driver_override",
        "sys/bus/pci/devices/0000:01:00.0/uevent",
        "sys/kernel/iommu_groups/0/label",
        "sys/class/iommu/dmar0/intel-iommu/address",
    ),
    "CMDLINE-root=UUID=77": ("proc/cmdline", "proc/version", "proc/mounts", "proc/self/environ"),
}

# Where a BAR is on the host is no plan's concern, and so it is not in a capture.
BAR_AT = "0x0000380abcde0000"
BAR = f"{BAR_AT} 0x0000380abcdeffff 0x000000000014220c\n"
NONE = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A machine with an Intel IOMMU and a network card, and all that would tell whose it is."""
    top = tmp_path / "copy"
    files = {
        "sys/kernel/iommu_groups/0/reserved_regions": "0x00000000fee00000 0x00000000feefffff msi\n",
        "sys/kernel/iommu_groups/0/type": "DMA-FQ\n",
        "sys/class/iommu/dmar0/intel-iommu/cap": "d2008c40660462\n",
        "sys/class/iommu/dmar0/intel-iommu/ecap": "f050da\n",
        "sys/bus/pci/devices/0000:01:00.0/class": "0x020000\n",
        "sys/bus/pci/devices/0000:01:00.0/dma_mask_bits": "64\n",
        "sys/bus/pci/devices/0000:01:00.0/resource": BAR + NONE * 6,
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "16\n",
        "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "9\n",
        "proc/meminfo": "MemTotal:  16384000 kB\nMemAvailable:  8192000 kB\n",
        "proc/sys/kernel/osrelease": "6.12.48-amd64\n",
        "proc/cpuinfo": "model name\t: SERIAL-9XK0042\n"
        "address sizes\t: 46 bits physical, 48 bits virtual\n",
    }
    for private, paths in PRIVATE.items():
        files |= dict.fromkeys(paths, f"{private}\n")
    for path, text in files.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    (top / "sys/kernel/iommu_groups/0/devices").mkdir()
    (top / "sys/kernel/iommu_groups/0/devices/0000:01:00.0").symlink_to("x")
    (top / "sys/bus/pci/devices/0000:01:00.0/driver").symlink_to("../../../../bus/drivers/ixgbe")
    return top


def test_capture_of_a_tree_with_names_serials_and_macs_has_none_of_them(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tree.parent / "snapshot.json"
    assert cli.main(["capture", "--sysroot", str(tree), "-o", str(out)]) == 0
    shown = capsys.readouterr()
    assert cli.main(["show", "--host", str(out)]) == 0
    shown_again = capsys.readouterr()
    text = "".join((out.read_text(), *shown, *shown_again))
    for private in PRIVATE:
        assert private not in text
        assert private.partition("-")[2] not in text
    found = json.loads(out.read_text())  # and it is no empty one
    assert found["release"] == "6.12.48-amd64"
    assert found["cpu"]["address_bits"] == 46
    assert found["devices"][0]["driver"] == "ixgbe"
    assert found["devices"][0]["bars"][0]["size"] == "0x10000"
    assert "380abcde0000" not in text
    assert found["iommus"][0]["cap"] == "0xd2008c40660462"


def test_capture_has_no_field_that_the_policy_does_not_name(tree: Path) -> None:
    out = tree.parent / "snapshot.json"
    assert cli.main(["capture", "--sysroot", str(tree), "--name", "box", "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found) == {
        "schema", "generator", "name", "origin", "arch", "release", "page_size", "groups",
        "devices", "iommus", "iova_ranges", "dma_windows", "widths", "log_regions", "limits",
        "cpu", "platform", "iommu_info", "sysfs", "notes", "state",
    }  # fmt: skip
    assert set(found["devices"][0]) == {
        "name", "group", "iommu", "dma_mask_bits", "driver", "class", "bars",
    }  # fmt: skip
    assert set(found["platform"]) == {"vendor", "guest"}
    assert set(found["devices"][0]["bars"][0]) == {
        "kind", "index", "size", "bits", "prefetchable", "assigned", "sizes",
    }  # fmt: skip
    assert set(found["state"]) == {
        "memory", "huge_pages", "nodes", "remaps_interrupts", "unsafe_interrupts",
        "unsafe_iommufd", "may_lock",
    }  # fmt: skip
    assert set(found["state"]["memory"]) == {"total", "available"}
    assert set(found["state"]["huge_pages"][0]) == {"page_size", "total", "free"}
    assert found["name"] == "box"
    assert str(tree) not in out.read_text()
    policy = (ROOT / "SECURITY.md").read_text("utf-8")
    for limit in ("8 MiB", "1 MiB", "32 MiB", "96 MiB", "512 MiB", "16 GiB", "4 million"):
        assert limit in policy
