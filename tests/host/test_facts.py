# SPDX-License-Identifier: Apache-2.0
"""A host as a set of facts: names looked up, and facts of several sources put together."""

import pickle

import pytest

from tests.kit.hosts import (
    LAST_48,
    MSI,
    Source,
    device,
    group,
    host,
    intel,
    kernel_list,
    msi,
    spans,
    x86,
)
from vmm_iova.errors import HostDataError, UnknownNameError
from vmm_iova.host.facts import Group, IommuUnit, Limits, Note, StatedWidth
from vmm_iova.host.host import Host


def test_group_is_found_by_number_and_text():
    facts = host(group("3"), group("13"))
    assert (facts.group(3).id, facts.group("13").id) == ("3", "13")


def test_group_that_is_not_there_is_unknown_with_the_choices():
    with pytest.raises(UnknownNameError, match="no group 4") as caught:
        host(group("3")).group(4)
    assert (caught.value.kind, caught.value.known, caught.value.hint) == (
        "group",
        ("3",),
        "groups here: 3",
    )


def test_group_of_a_host_without_groups_is_unknown_with_none_to_choose():
    with pytest.raises(UnknownNameError) as caught:
        host().group(4)
    assert "none" in caught.value.hint


def test_device_is_found_with_and_without_its_domain():
    facts = host(devices=(device("0000:01:00.0", "3"), device("0001:01:00.0", "4")))
    assert facts.device("01:00.0").group == "3"
    assert facts.device("0001:01:00.0").group == "4"


@pytest.mark.parametrize(
    ("devices", "title"),
    [
        ((), "group 3"),
        (("a",), "group 3 (a)"),
        (("a", "b", "c"), "group 3 (a, b, c)"),
        (("a", "b", "c", "d", "e"), "group 3 (a, b, c and 2 more)"),
    ],
)
def test_title_names_group_and_first_devices(devices, title):
    assert Group("3", devices=devices).title == title


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("dmar0", "intel"),
        ("ivhd1", "amd"),
        ("smmu3.0x0000000064000000", "arm"),
        ("smmu.0x2b500000", "arm"),
        ("s390-iommu.00000001", "s390"),
        ("apple-dart.x", "apple"),
        ("riscv-iommu@1", "riscv"),
        ("virtio0", "virtio"),
        ("new", "unknown"),
    ],
)
def test_vendor_follows_the_name_that_the_driver_registers(name, vendor):
    assert IommuUnit(name).vendor == vendor


def test_host_survives_pickling():
    facts = intel(group("1", msi()), kernel_ranges=(kernel_list((0x0, LAST_48)),))
    assert pickle.loads(pickle.dumps(facts)) == facts


# -- facts of several sources --------------------------------------------------------------------


def test_facts_of_two_sources_are_judged_together():
    sysfs = x86(group("1", msi()))
    capture = Host("capture", kernel_ranges=(kernel_list((0x0, LAST_48), groups=("1",)),))
    found = sysfs.with_facts(capture).usable()
    assert spans(found.ranges) == [(0x0, MSI.start - 1), (MSI.last + 1, LAST_48)]


def test_facts_keep_the_name_of_the_first_source_and_all_notes():
    both = host(notes=(Note("one"),)).with_facts(Host("more", notes=(Note("two"),)))
    assert (both.name, [note.text for note in both.notes]) == ("box", ["one", "two"])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (host(group("1")), host(group("1"))),
        (host(units=(IommuUnit("dmar0"),)), host(units=(IommuUnit("dmar0"),))),
    ],
    ids=["group", "unit"],
)
def test_facts_that_describe_the_same_thing_twice_are_refused(ours, theirs):
    with pytest.raises(HostDataError, match="which one counts") as caught:
        ours.with_facts(theirs)
    assert caught.value.exit_code == 5


def test_facts_put_together_keep_groups_ascending_by_number():
    both = host(group("5")).with_facts(host(group("1"), group("10")))
    assert [item.id for item in both.groups] == ["1", "5", "10"]


def test_facts_put_together_keep_limits_that_only_the_second_source_has():
    both = host().with_facts(host(limits=Limits(65535, 1 << 23)))
    assert both.limits == Limits(65535, 1 << 23)


def test_facts_put_together_keep_widths_of_both():
    ours, theirs = StatedWidth(48, Source("a")), StatedWidth(39, Source("b"))
    both = host(widths=(ours,)).with_facts(host(widths=(theirs,)))
    assert both.widths == (ours, theirs)
