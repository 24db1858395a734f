# SPDX-License-Identifier: Apache-2.0
"""A copied `/sys` that somebody sent: nothing outside is read, nothing waits or floods."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm_iova import files
from vmm_iova.errors import HostDataError, HostUnavailableError
from vmm_iova.host.snapshot import dump_snapshot
from vmm_iova.host.sysfs import read_sysfs

REGIONS = "0x00000000fee00000 0x00000000feefffff msi\n"
RESOURCE = (
    "0x00000000f0000000 0x00000000f0ffffff 0x0000000000040200\n"
    + "0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 6
)
SECRET = "root:x:0:0:secret"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A tree with one group, one unit and a device; beside it a secret."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    top = tmp_path / "copy"
    group = top / "sys/kernel/iommu_groups/0"
    (group / "devices").mkdir(parents=True)
    (group / "reserved_regions").write_text(REGIONS)
    (group / "devices/0000:01:00.0").symlink_to("../../../../devices/0000:01:00.0")
    (top / "sys/class/iommu/dmar0/intel-iommu").mkdir(parents=True)
    (top / "sys/bus/pci/devices/0000:01:00.0").mkdir(parents=True)
    (top / "sys/bus/pci/devices/0000:01:00.0/resource").write_text(RESOURCE)
    (top / "proc/sys/kernel").mkdir(parents=True)
    return top


FILES = (
    "sys/kernel/iommu_groups/0/type",
    "sys/kernel/iommu_groups/0/name",
    "sys/kernel/iommu_groups/0/reserved_regions",
    "sys/class/iommu/dmar0/intel-iommu/cap",
    "sys/class/iommu/dmar0/amd-iommu/features",
    "sys/bus/pci/devices/0000:01:00.0/dma_mask_bits",
    "sys/bus/pci/devices/0000:01:00.0/class",
    "sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
    "sys/kernel/osrelease",
    "proc/sys/kernel/osrelease",
    "proc/cpuinfo",
    "proc/meminfo",
    "sys/bus/pci/devices/0000:01:00.0/resource",
    "sys/bus/pci/devices/0000:01:00.0/resource0_resize",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "sys/kernel/irq/0/chip_name",
    "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
)


def put(top: Path, path: str) -> Path:
    """Make room for something at a path."""
    file = top / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    return file


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("target", ["absolute", "relative"])
def test_link_out_of_the_tree_is_noted_and_its_content_is_not_in_the_snapshot(
    top: Path, path: str, target: str
) -> None:
    secret = top.parent / "secret"
    file = put(top, path)
    file.symlink_to(secret if target == "absolute" else os.path.relpath(secret, file.parent))
    host = read_sysfs(top)
    assert SECRET not in dump_snapshot(host, "test")
    assert any("a link leads out of the tree" in note.text for note in host.notes)


@pytest.mark.parametrize("folder", ["kernel", "class", "bus", "class/iommu/dmar0", "module"])
def test_folder_that_leads_out_of_the_tree_is_not_entered(top: Path, folder: str) -> None:
    inside = top / "sys" / folder
    outside = top.parent / "outside"
    if inside.exists():
        inside.rename(outside)
    else:
        (outside / "vfio_iommu_type1/parameters").mkdir(parents=True)
        (outside / "vfio_iommu_type1/parameters/dma_entry_limit").write_text("7\n")
    for file in outside.rglob("*"):
        if file.is_file():
            file.write_text("0x7\n" if "cap" in file.name else REGIONS)
    inside.symlink_to(outside)
    host = read_sysfs(top)
    assert host.limits.dma_entries is None
    assert not (folder == "kernel" and host.groups)
    assert all(unit.cap is None for unit in host.units)


def test_sys_or_proc_that_leads_out_of_the_tree_is_none(top: Path) -> None:
    (top / "proc/cpuinfo").write_text("address sizes\t: 46 bits physical, 48 bits virtual\n")
    (top / "proc").rename(top.parent / "proc")
    (top / "proc").symlink_to("../proc")
    assert read_sysfs(top).cpu_bits is None
    (top / "sys").rename(top.parent / "sys")
    (top / "sys").symlink_to("../sys")
    with pytest.raises(HostUnavailableError, match="holds no sysfs tree"):
        read_sysfs(top)


def test_what_stands_beside_a_tree_that_is_not_called_sys_is_not_its(top: Path) -> None:
    (top / "proc/sys/kernel/osrelease").write_text("6.1.0\n")
    assert read_sysfs(top / "sys").release == "6.1.0"
    (top / "sys").rename(top / "tree")
    assert read_sysfs(top / "tree").release is None


def test_links_inside_of_the_tree_are_followed_as_sysfs_has_them(top: Path) -> None:
    real = top / "sys/devices/virtual/iommu/dmar1/intel-iommu"
    real.mkdir(parents=True)
    (real / "cap").write_text("d2008c40660462\n")
    (top / "sys/class/iommu/dmar1").symlink_to("../../devices/virtual/iommu/dmar1")
    units = {unit.name: unit.cap for unit in read_sysfs(top).units}
    assert units["dmar1"] == 0xD2008C40660462


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("kind", ["fifo", "zero", "sparse", "folder", "loop"])
def test_what_is_no_small_file_is_left_out(top: Path, path: str, kind: str) -> None:
    file = put(top, path)
    if kind == "fifo":
        os.mkfifo(file)  # to open it would wait for ever
    elif kind == "zero":
        file.symlink_to("/dev/zero")
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "folder":
        file.mkdir()
    else:
        with file.open("wb") as sparse:
            sparse.truncate(1 << 40)
    host = read_sysfs(top)
    assert [group.id for group in host.groups] == ["0"]
    if kind in ("fifo", "sparse", "zero", "loop"):
        assert any(path.rpartition("/")[2] in note.text for note in host.notes)


@pytest.mark.parametrize("path", [path for path in FILES if "regions" not in path])
def test_file_of_several_lines_is_left_out_where_a_line_is_meant(top: Path, path: str) -> None:
    put(top, path).write_text("48\nsecond line\n")
    host = read_sysfs(top)
    assert "second line" not in dump_snapshot(host, "test")
    if path.endswith("/resource"):
        assert any("/resource has 2 lines" in note.text for note in host.notes)
    elif not path.endswith(("cpuinfo", "meminfo")):
        assert any("is not one line: left out" in note.text for note in host.notes)


def test_names_and_lines_are_printable_wherever_they_stand(top: Path) -> None:
    odd = os.fsdecode(b"\x1b[2J\n\xff")
    (top / "sys/kernel/iommu_groups/0/devices" / odd).touch()
    (top / "sys/class/iommu" / odd).mkdir()
    put(top, "sys/kernel/iommu_groups/0/type").write_text("DMA\x1b[31m\n")
    put(top, "proc/sys/kernel/osrelease").write_bytes(b"6.1\xff\x07\n")
    driver = put(top, "sys/bus/pci/devices/0000:01:00.0/driver")
    driver.symlink_to("/" + odd)
    host = read_sysfs(top)
    (group,) = host.groups
    assert r"\x1b[2J\n\xff" in group.devices
    assert group.type == r"DMA\x1b[31m"
    texts = [host.release, *group.devices, *(unit.name for unit in host.units)]
    texts += [device.driver or "" for device in host.devices]
    assert all(text is not None and text.isprintable() for text in texts)


@pytest.mark.parametrize("name", ["²", "٣", "1" * 200, "-1", "0x1"])
def test_group_that_is_no_number_is_none(top: Path, name: str) -> None:
    (top / "sys/kernel/iommu_groups" / name).mkdir()
    assert [group.id for group in read_sysfs(top).groups] == ["0"]


def test_tree_of_endless_content_is_refused(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 1000)
    for group in range(1, 30):
        folder = top / f"sys/kernel/iommu_groups/{group}"
        folder.mkdir()
        (folder / "reserved_regions").write_text(REGIONS)
    with pytest.raises(HostDataError, match="this is no copy of /sys"):
        read_sysfs(top)
