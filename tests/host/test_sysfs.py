# SPDX-License-Identifier: Apache-2.0
"""Host facts from `/sys`, live or a copy of it."""

import errno
import os
from pathlib import Path

import pytest

from tests.kit.hosts import (
    HT,
    LAST_39,
    LAST_48,
    MSI,
    MSI_LINE,
    line,
    note_texts,
    spans,
    warnings_of,
)
from vmm_iova.errors import EvidenceError, HostDataError, HostUnavailableError
from vmm_iova.host.sysfs import read_sysfs


class Tree:
    """A copy of `/sys`, put together file by file."""

    def __init__(self, top):
        self.top = top
        self.sys = top / "sys"
        (self.sys / "kernel").mkdir(parents=True)

    def write(self, path, text):
        file = self.sys / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
        return file

    def link(self, path, target):
        file = self.sys / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(target)

    def group(self, number, regions=MSI_LINE, devices=(), kind="DMA\n"):
        """A group; `regions` None leaves the file out, as before Linux 4.11."""
        where = f"kernel/iommu_groups/{number}"
        (self.sys / where / "devices").mkdir(parents=True)
        for name in devices:
            # the link dangles, as in a copy that does not follow it: its name is enough
            self.link(f"{where}/devices/{name}", f"../../../../devices/pci0000:00/{name}")
        if kind is not None:
            self.write(f"{where}/type", kind)
        if regions is not None:
            self.write(f"{where}/reserved_regions", regions)
        return self

    def intel_unit(self, name, cap, ecap="f020de\n"):
        self.write(f"class/iommu/{name}/intel-iommu/cap", cap)
        self.write(f"class/iommu/{name}/intel-iommu/ecap", ecap)
        return self

    def amd_unit(self, name, features):
        self.write(f"class/iommu/{name}/amd-iommu/cap", "1f\n")
        self.write(f"class/iommu/{name}/amd-iommu/features", features)
        return self

    def read(self):
        return read_sysfs(self.top)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "box")


def refuse(monkeypatch, name, number=errno.EACCES):
    """Let no file of that name be read; chmod does not stop root."""
    opens = os.open

    def guarded(path, *args, **kwargs):
        if Path(path).name == name:
            raise OSError(number, os.strerror(number), path)
        return opens(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", guarded)


# -- groups --------------------------------------------------------------------------------------


def test_groups_come_in_number_order(tree):
    tree.group(10).group(9).group(0)
    assert [group.id for group in tree.read().groups] == ["0", "9", "10"]


def test_group_has_regions_type_and_devices(tree):
    tree.group(3, devices=("0000:01:00.1", "0000:01:00.0"), kind="DMA-FQ\n")
    (group,) = tree.read().groups
    assert (group.devices, group.type) == (("0000:01:00.0", "0000:01:00.1"), "DMA-FQ")
    assert spans(region.range for region in group.regions) == [(MSI.start, MSI.last)]


def test_region_names_the_file_and_line_and_group(tree):
    tree.group(3, regions=line(0x0, 0xFFFFFF, "direct-relaxable") + MSI_LINE)
    region = tree.read().groups[0].regions[1]
    assert str(region.source) == "/sys/kernel/iommu_groups/3/reserved_regions:2"
    assert region.group == "3"


def test_devices_as_plain_directories_are_found(tree):
    # `cp -rL` follows the links
    tree.group(3)
    tree.write("kernel/iommu_groups/3/devices/0000:01:00.0/vendor", "0x8086\n")
    assert tree.read().groups[0].devices == ("0000:01:00.0",)


def test_group_without_devices_directory_has_none(tree):
    tree.write("kernel/iommu_groups/3/reserved_regions", MSI_LINE)
    assert tree.read().groups[0].devices == ()


def test_group_without_type_file_has_no_type(tree):
    assert tree.group(3, kind=None).read().groups[0].type is None


def test_missing_reserved_regions_is_none_and_not_empty(tree):
    assert tree.group(3, regions=None).read().groups[0].regions is None


def test_empty_reserved_regions_is_empty_and_not_none(tree):
    group = tree.group(3, regions="").read().groups[0]
    assert (group.regions, group.damaged, group.unreadable) == ((), None, None)


def test_empty_region_is_kept_with_its_group(tree):
    tree.group(3, regions=line(0x1000, 0xFFF, "direct") + MSI_LINE)
    (empty,) = tree.read().groups[0].empty_regions
    assert (empty.start, empty.word, empty.group) == (0x1000, "direct", "3")


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EACCES, "Permission denied"), (errno.EIO, "Input/output error")],
)
def test_unreadable_reserved_regions_is_noted_and_the_host_still_loads(
    tree, monkeypatch, number, words
):
    tree.group(3).group(4)
    refuse(monkeypatch, "reserved_regions", number)
    found = tree.read()
    assert [group.regions for group in found.groups] == [None, None]
    assert all(words in group.unreadable for group in found.groups)
    assert len([text for text in warnings_of(found) if words in text]) == 2


@pytest.mark.parametrize(
    ("regions", "what"),
    [
        (MSI_LINE.rstrip("\n"), "cut off"),
        ("junk\n", "not a region line"),
        (line(0x2000, 0x1000, "reserved"), "below its start"),
        ("0x0 0x10000000000000000 msi\n", "beyond"),
        ("\x00\x01\x02\n", "not"),
    ],
    ids=["no-newline", "junk", "last-below-start", "beyond", "binary"],
)
def test_damaged_reserved_regions_is_noted_and_the_host_still_loads(tree, regions, what):
    found = tree.group(3, regions=regions).group(4).read()
    assert what in found.groups[0].damaged
    assert found.groups[0].regions is None
    assert found.groups[1].regions is not None
    assert any(what in text for text in warnings_of(found))


def test_reserved_regions_that_is_not_ascii_is_damaged_and_noted(tree):
    tree.group(3)
    (tree.sys / "kernel/iommu_groups/3/reserved_regions").write_bytes(b"\xff\xfe\x00")
    found = tree.read()
    assert found.groups[0].damaged
    assert any("reserved_regions" in text for text in warnings_of(found))


def test_reserved_regions_that_is_a_directory_is_unreadable(tree):
    tree.group(3, regions=None)
    (tree.sys / "kernel/iommu_groups/3/reserved_regions").mkdir()
    assert tree.read().groups[0].unreadable


def test_damaged_group_does_not_stop_a_judgement_of_another(tree):
    tree.group(3, regions="junk\n").group(4).intel_unit("dmar0", "d2078c106f0466\n")
    found = tree.read()
    assert found.usable(groups=[4]).ranges
    with pytest.raises(HostDataError):
        found.usable(groups=[3])


def test_no_iommu_group_of_vfio_is_pointed_out(tree):
    # drivers/vfio/group.c: such a group translates nothing, IOVA is physical
    tree.group(7, regions="")
    tree.write("kernel/iommu_groups/7/name", "vfio-noiommu\n")
    assert "noiommu" in " ".join(warnings_of(tree.read()))


def test_entry_that_is_no_group_number_is_passed_over(tree):
    tree.group(3)
    tree.write("kernel/iommu_groups/readme/x", "")
    assert [group.id for group in tree.read().groups] == ["3"]


# -- units ---------------------------------------------------------------------------------------


def test_intel_registers_are_read_as_hex_without_prefix(tree):
    tree.group(3).intel_unit("dmar0", "c0000020e60262\n", "f0101a\n")
    (unit,) = tree.read().units
    assert (unit.vendor, unit.cap, unit.ecap) == ("intel", 0xC0000020E60262, 0xF0101A)
    assert str(unit.source) == "/sys/class/iommu/dmar0"


def test_damaged_register_is_left_out_with_a_warning(tree):
    found = tree.group(3).intel_unit("dmar0", "not hex\n").read()
    assert found.units[0].cap is None
    assert "cap" in warnings_of(found)[0]


def test_unit_without_attributes_has_no_registers(tree):
    tree.group(3)
    (tree.sys / "class/iommu/smmu3.0x0000000064000000").mkdir(parents=True)
    (unit,) = tree.read().units
    assert (unit.vendor, unit.cap, unit.ecap, unit.features) == ("arm", None, None, None)


@pytest.mark.parametrize(
    ("features", "release"),
    [
        ("58f77ef22294ade\n", "5.15.0-91-generic"),
        ("810:58f77ef222942de\n", "6.1.0-13-amd64"),  # EFR2:EFR
        ("58f77ef222942de:810\n", "6.8.0-41-generic"),  # EFR:EFR2
    ],
)
def test_amd_features_with_a_known_release_bound_the_aperture(tree, features, release):
    # EFR2 of these has bit 11, which would read as 64 bits in the wrong order; HATS here is 0
    features = features.replace("94ade", "942de")
    tree.group(3, regions=MSI_LINE + line(HT.start, HT.last, "reserved")).amd_unit(
        "ivhd0", features
    )
    tree.write("kernel/osrelease", release + "\n")
    usable = tree.read().usable()
    assert usable.ranges[-1].last == LAST_48
    assert usable.evidence[0].bound


def test_release_of_a_copy_is_read_without_the_newline(tree):
    tree.group(3).write("kernel/osrelease", "6.8.0-41-generic\n")
    assert tree.read().release == "6.8.0-41-generic"


def test_copy_without_a_release_has_none_and_not_that_of_this_machine(tree):
    found = tree.group(3).read()
    assert (found.release, found.arch, found.page_size) == (None, None, None)
    assert found.limits.memlock is None


def test_device_knows_its_unit_from_the_units_links(tree):
    tree.group(3, devices=("0000:01:00.0",)).intel_unit("dmar1", "c0000020e60262\n")
    tree.link("class/iommu/dmar1/devices/0000:01:00.0", "../../../../devices/x")
    assert tree.read().device("0000:01:00.0").iommu == "dmar1"


def test_device_knows_its_unit_from_its_own_link(tree):
    tree.group(3, devices=("0000:01:00.0",))
    tree.link("bus/pci/devices/0000:01:00.0/iommu", "../../../virtual/iommu/dmar1")
    assert tree.read().device("0000:01:00.0").iommu == "dmar1"


def test_group_is_judged_by_the_unit_in_front_of_it(tree):
    tree.group(1, devices=("0000:00:02.0",)).group(2, devices=("0000:01:00.0",))
    tree.intel_unit("dmar0", "c0000020e60262\n").intel_unit("dmar1", "d2078c106f0466\n")
    tree.link("class/iommu/dmar0/devices/0000:00:02.0", "x")
    tree.link("class/iommu/dmar1/devices/0000:01:00.0", "x")
    found = tree.read()
    assert found.usable(groups=[1]).ranges[-1].last == LAST_39
    assert found.usable(groups=[2]).ranges[-1].last == LAST_48
    assert found.usable().ranges[-1].last == LAST_39  # together: the smaller


# -- devices, limits -----------------------------------------------------------------------------


def test_device_has_mask_driver_and_class(tree):
    tree.group(3, devices=("0000:01:00.0",))
    tree.write("bus/pci/devices/0000:01:00.0/dma_mask_bits", "64\n")
    tree.write("bus/pci/devices/0000:01:00.0/class", "0x020000\n")
    tree.link("bus/pci/devices/0000:01:00.0/driver", "../../../bus/pci/drivers/vfio-pci")
    found = tree.read().device("0000:01:00.0")
    assert (found.group, found.dma_mask_bits, found.driver, found.pci_class) == (
        "3",
        64,
        "vfio-pci",
        0x20000,
    )


def test_device_without_attributes_has_none(tree):
    tree.group(3, devices=("fsl-mc-1",))
    found = tree.read().device("fsl-mc-1")
    assert (found.dma_mask_bits, found.driver, found.pci_class, found.iommu) == (None,) * 4


def test_entry_limit_is_read(tree):
    tree.group(3).write("module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n")
    assert tree.read().limits.dma_entries == 65535


@pytest.mark.parametrize("text", ["", "many\n", "-1\n", "0x10\n", "9" * 5000])
def test_damaged_entry_limit_is_left_out_with_a_warning(tree, text):
    tree.group(3).write("module/vfio_iommu_type1/parameters/dma_entry_limit", text)
    found = tree.read()
    assert found.limits.dma_entries is None
    assert "dma_entry_limit" in warnings_of(found)[0]


@pytest.mark.parametrize("name", ["cap", "type", "dma_mask_bits", "dma_entry_limit"])
def test_unreadable_small_file_is_noted_and_the_host_still_loads(tree, monkeypatch, name):
    tree.group(3, devices=("0000:01:00.0",)).intel_unit("dmar0", "c0000020e60262\n")
    tree.write("bus/pci/devices/0000:01:00.0/dma_mask_bits", "64\n")
    tree.write("module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n")
    refuse(monkeypatch, name)
    found = tree.read()
    assert len(found.groups) == 1
    assert f"{name}: Permission denied" in note_texts(found)


# -- where the tree is ---------------------------------------------------------------------------


def test_root_may_be_the_parent_or_sys_itself(tree):
    tree.group(3, devices=("0000:01:00.0",))
    parent, itself = read_sysfs(tree.top, "box"), read_sysfs(tree.sys, "box")
    assert parent.groups == itself.groups
    assert parent.devices == itself.devices


def test_root_is_named_after_its_directory_and_by_argument(tree):
    assert tree.group(3).read().name == "box"
    assert read_sysfs(tree.top, "mine").name == "mine"


def test_missing_root_is_unavailable(tmp_path):
    with pytest.raises(HostUnavailableError, match="does not exist") as caught:
        read_sysfs(tmp_path / "nowhere")
    assert (caught.value.errno, caught.value.exit_code) == (errno.ENOENT, 6)


def test_directory_that_is_no_sysfs_is_unavailable(tmp_path):
    (tmp_path / "etc").mkdir()
    with pytest.raises(HostUnavailableError, match="no sysfs") as caught:
        read_sysfs(tmp_path)
    assert caught.value.hint


def test_directory_with_a_kernel_of_its_own_is_no_sysfs(tmp_path):
    # a Linux source tree, or /etc: saying "no IOMMU is in use on this host" would be untrue
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "Makefile").write_text("obj-y = fork.o\n", "utf-8")
    with pytest.raises(HostUnavailableError, match="no sysfs"):
        read_sysfs(tmp_path)


def test_root_that_is_a_file_is_unavailable(tmp_path):
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(HostUnavailableError):
        read_sysfs(tmp_path / "file")


def test_tree_without_groups_is_a_host_with_a_note_and_no_judgement(tree):
    found = tree.read()
    assert found.groups == ()
    assert "no IOMMU" in warnings_of(found)[0]
    with pytest.raises(HostUnavailableError, match="no IOMMU") as caught:
        found.usable()
    assert "intel_iommu=on" in caught.value.hint


def test_groups_without_any_width_are_refused(tree):
    with pytest.raises(EvidenceError):
        tree.group(3).read().usable()


def test_this_machine_gives_a_host_or_says_why_not():
    found = live_or_error()
    assert found.exit_code == 6 if isinstance(found, HostUnavailableError) else found.page_size


def live_or_error():
    try:
        return read_sysfs()
    except HostUnavailableError as error:  # no Linux, or a container without /sys
        return error


# -- the machine around them -----------------------------------------------------------------------

CPUINFO = (
    "processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu vme {more}lahf_lm\n\nprocessor\t: 1\n"
)


@pytest.mark.parametrize(
    ("vendor", "more", "told", "hint"),
    [
        ("GenuineIntel", "hypervisor ", ("intel", True), "this machine is itself a VM"),
        ("AuthenticAMD", "hypervisor ", ("amd", True), "this machine is itself a VM"),
        ("GenuineIntel", "", ("intel", False), "switch VT-d on in the firmware"),
        ("AuthenticAMD", "", ("amd", False), "(AMD-Vi) on in the firmware"),
    ],
)
def test_cpu_says_whose_it_is_and_whether_the_machine_is_virtual(tree, vendor, more, told, hint):
    (tree.top / "proc").mkdir()
    (tree.top / "proc/cpuinfo").write_text(CPUINFO.format(vendor=vendor, more=more))
    host = tree.read()
    assert (host.platform.vendor, host.platform.guest) == told
    assert hint in note_texts(host)
    with pytest.raises(HostUnavailableError) as caught:
        host.usable()
    assert hint in caught.value.hint


def test_machine_without_cpuinfo_is_not_known(tree):
    platform = tree.group(1).read().platform
    assert (platform.vendor, platform.guest) == (None, None)


def test_tree_that_does_not_exist_says_what_to_give(tmp_path):
    with pytest.raises(HostUnavailableError, match="does not exist") as caught:
        read_sysfs(tmp_path / "nowhere")
    assert "the directory that has it as sys/" in caught.value.hint
