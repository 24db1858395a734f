# SPDX-License-Identifier: Apache-2.0
"""Host facts from pasted text: region lines, range lists and kernel log lines, as they come."""

from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.data import FAILED_MAPS
from tests.kit.hosts import (
    CAP_39,
    LAST_48,
    MSI,
    MSI_LINE,
    TOP,
    line,
    note_texts,
    spans,
    warnings_of,
)
from tests.kit.steps import growth
from vmm_iova.errors import EvidenceError, HostDataError
from vmm_iova.host.facts import EmptyRegion, RegionKind, Source
from vmm_iova.host.load import bundled_hosts
from vmm_iova.host.text import parse_text

BUNDLED = files("vmm_iova.host") / "bundled"


def one(text, name="paste", kind=None):
    (found,) = parse_text(text, name, kind)
    return found


def bundled(name):
    return parse_text((BUNDLED / f"{name}.txt").read_text("utf-8"), name)


def group_spans(found):
    return {group.id: spans(region.range for region in group.regions) for group in found.groups}


def listed(found):
    (only,) = found.kernel_ranges
    return spans(only.ranges)


# -- region lines --------------------------------------------------------------------------------


def test_bare_region_lines_make_one_group_without_a_number():
    found = one(MSI_LINE)
    assert group_spans(found) == {"pasted": [(MSI.start, MSI.last)]}
    assert found.groups[0].title == "the pasted text"


def test_grep_prefixes_give_groups_in_number_order():
    text = (
        "/sys/kernel/iommu_groups/10/reserved_regions:"
        + MSI_LINE
        + "/sys/kernel/iommu_groups/2/reserved_regions:"
        + line(0x0, 0xFFFFFF, "direct")
    )
    assert list(group_spans(one(text)).items()) == [
        ("2", [(0x0, 0xFFFFFF)]),
        ("10", [(MSI.start, MSI.last)]),
    ]


def test_head_headers_give_groups_also_an_empty_one():
    text = (
        "==> /sys/kernel/iommu_groups/0/reserved_regions <==\n" + MSI_LINE + "\n"
        "==> /sys/kernel/iommu_groups/1/reserved_regions <==\n\n"
        "==> /sys/kernel/iommu_groups/2/reserved_regions <==\n" + MSI_LINE
    )
    msi = [(MSI.start, MSI.last)]
    assert group_spans(one(text)) == {"0": msi, "1": [], "2": msi}


def test_head_headers_over_nothing_but_empty_files_are_facts():
    # s390 up to 6.1: every file is there, and empty
    text = (
        "==> /sys/kernel/iommu_groups/0/reserved_regions <==\n\n"
        "==> /sys/kernel/iommu_groups/1/reserved_regions <==\n"
    )
    assert group_spans(one(text)) == {"0": [], "1": []}


@pytest.mark.parametrize(
    "text",
    [
        "7/reserved_regions:" + MSI_LINE,  # cd /sys/kernel/iommu_groups; grep . */reserved_regions
        "./7/reserved_regions:" + MSI_LINE,
        "==> 7/reserved_regions <==\n" + MSI_LINE,  # head */reserved_regions
    ],
    ids=["grep", "grep-r", "head"],
)
def test_relative_file_name_gives_its_group(text):
    assert group_spans(one(text)) == {"7": [(MSI.start, MSI.last)]}


def test_region_of_a_group_names_the_line_of_the_paste():
    text = "\n\n/sys/kernel/iommu_groups/3/reserved_regions:" + MSI_LINE
    (region,) = one(text).groups[0].regions
    assert (region.source, region.group) == (Source("paste", 3), "3")


def test_same_line_in_two_groups_is_kept_in_both():
    text = "".join(f"/sys/kernel/iommu_groups/{n}/reserved_regions:{MSI_LINE}" for n in (1, 2))
    assert group_spans(one(text)) == {
        "1": [(MSI.start, MSI.last)],
        "2": [(MSI.start, MSI.last)],
    }


def test_empty_region_in_a_paste_stays_with_its_group():
    # an empty `direct` keeps the device from user space: it may not be lost
    text = "/sys/kernel/iommu_groups/3/reserved_regions:" + line(0x1000, 0xFFF, "direct") + MSI_LINE
    group = one(text).group("3")
    assert group.empty_regions == (
        EmptyRegion(0x1000, RegionKind.DIRECT, "direct", Source("paste", 1), "3"),
    )


def test_empty_region_in_a_paste_is_a_warning():
    assert "length 0" in warnings_of(one(line(0x1000, 0xFFF, "direct") + MSI_LINE))[0]


def test_paste_that_lost_its_prefixes_is_still_read():
    found = one("00000000fee00000 00000000feefffff msi\n")
    assert group_spans(found) == {"pasted": [(MSI.start, MSI.last)]}


def test_last_line_of_a_paste_needs_no_newline():
    assert group_spans(one(MSI_LINE.rstrip("\n"))) == {"pasted": [(MSI.start, MSI.last)]}


def test_paste_cut_mid_line_is_an_error():
    with pytest.raises(HostDataError, match=r"paste:2: .*cut off") as caught:
        one(MSI_LINE + "0x0000000000001000 0x00000000")
    assert caught.value.exit_code == 5


def test_paste_of_a_full_page_for_one_group_is_cut_off():
    text = "".join(
        "/sys/kernel/iommu_groups/3/reserved_regions:" + line(n << 20, (n << 20) + 0xFFFF, "msi")
        for n in range(97)  # 97 x 42 = 4074 bytes of a page of 4096
    )
    with pytest.raises(HostDataError, match=r"group 3.*cut off"):
        one(text)


def test_paste_of_many_groups_longer_than_a_page_is_whole():
    text = "".join(f"/sys/kernel/iommu_groups/{n}/reserved_regions:{MSI_LINE}" for n in range(96))
    assert len(one(text).groups) == 96


@pytest.mark.parametrize("text", ["", "\n", "# kind: reserved_regions\n", "# just a comment\n"])
def test_empty_text_is_an_empty_file_which_means_nothing(text):
    found = one(text)
    assert group_spans(found) == {"pasted": []}
    with pytest.raises(EvidenceError):
        found.usable()


# -- range lists ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "0x1000 - 0xfedfffff",
        "0x1000-0xfedfffff",
        "0x1000..0xfedfffff",
        "0x1000 .. 0xfedfffff",
        "[0x1000, 0xfedfffff]",
        "[0x1000 - 0xfedfffff]",
        "1000 - fedfffff",
        "1000-fedfffff",
        "1000..fedfffff",
        "[1000, fedfffff]",
        "0000000000001000 - 00000000fedfffff",
        "0X1000 - 0XFEDFFFFF",
        "  0x1000 - 0xfedfffff  ",
        "0x1000 \u2013 0xfedfffff",  # a mail program's en dash
        "[0x1000, 0xfedfffff],",
        "0x1000 - 0xfedfffff\r",
    ],
)
def test_range_in_any_common_form_is_read_as_hex(text):
    assert listed(one(text + "\n", kind="iova_ranges")) == [(0x1000, 0xFEDFFFFF)]


def test_range_list_out_of_order_is_sorted():
    text = "usable ranges:\n0xfef00000 - 0xffffffff\n0x0 - 0xfedfffff\n"
    assert listed(one(text)) == [
        (0x0, 0xFEDFFFFF),
        (0xFEF00000, 0xFFFFFFFF),
    ]


def test_touching_ranges_stay_two():
    found = one("0x0 - 0xffff\n0x10000 - 0xfffff\n", kind="iova_ranges")
    assert listed(found) == [(0x0, 0xFFFF), (0x10000, 0xFFFFF)]
    assert found.kernel_ranges[0].ranges.seams == (0x10000,)


def test_repeated_range_counts_once_and_is_noted():
    found = one("0x0 - 0xffff\n0x0 - 0xffff\n", kind="iova_ranges")
    assert listed(found) == [(0x0, 0xFFFF)]
    assert "repeats" in note_texts(found)


def test_overlapping_ranges_are_cut_with_a_warning():
    found = one("0x0 - 0x1ffff\n0x10000 - 0x2ffff\n", kind="iova_ranges")
    assert listed(found) == [(0x0, 0x1FFFF), (0x20000, 0x2FFFF)]
    assert "overlaps" in warnings_of(found)[0]


def test_range_inside_of_another_is_dropped_with_a_warning():
    found = one("0x0 - 0xfffff\n0x1000 - 0x1fff\n0x2000 - 0x2fff\n", kind="iova_ranges")
    assert listed(found) == [(0x0, 0xFFFFF)]
    assert len(warnings_of(found)) == 2


def test_range_list_up_to_the_last_address_is_read():
    assert listed(one("iova range 0: 0x1000 - 0xffffffffffffffff\n")) == [(0x1000, TOP)]


def test_range_list_remembers_where_it_was_read():
    found = one("# the usable IOVA ranges\n0x0 - 0xffff\n")
    assert (found.kernel_ranges[0].api, found.kernel_ranges[0].source) == (
        "text",
        Source("paste", 2),
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("0x2000 - 0x1fff\n", "below its start"),
        ("0x0 - 0x10000000000000000\n", "beyond 2\\^64-1"),
        ("0x10000000000000000 - 0x10000000000000001\n", "beyond 2\\^64-1"),
    ],
)
def test_impossible_range_is_an_error_that_names_the_line(text, what):
    with pytest.raises(HostDataError, match=rf"paste:2: .*{what}") as caught:
        one("0x0 - 0xfff\n" + text)
    assert (caught.value.line, caught.value.exit_code) == (2, 5)


@pytest.mark.parametrize("text", ["0x1000 -", "0x1000 - 0xzz", "0x1000..", "0x1000 -- 0x2000"])
def test_range_that_breaks_off_is_an_error(text):
    with pytest.raises(HostDataError, match="paste:2"):
        one(f"0x0 - 0xfff\n{text}\n")


def test_bracketed_range_that_breaks_off_is_a_warning_that_names_the_line():
    # losing a range leaves less room, which is safe; losing it in silence is not
    assert "line 2" in warnings_of(one("0x0 - 0xfff\n[0x1000, ]\n", kind="iova_ranges"))[0]


# -- what pairs are ------------------------------------------------------------------------------


def test_bare_pair_is_no_range_list() -> None:
    with pytest.raises(HostDataError, match="nothing says of what") as caught:
        one("0xB5DA5000-0xB5DDDFFF\n")
    assert "--facts ranges:FILE" in str(caught.value.hint)


def test_bare_pair_beside_facts_is_noted_and_does_not_count() -> None:
    found = one(f"{MSI_LINE}0xB5DA5000-0xB5DDDFFF\n")
    assert found.kernel_ranges == ()
    assert "line 2 is a pair of addresses" in warnings_of(found)[0]


@pytest.mark.parametrize(
    "text",
    [
        "# kind: iova_ranges\n0x1000 - 0x1fff\n",
        "Usable IOVA ranges:\n  0x1000 - 0x1fff\n",
        "iova range 0 is [0x1000; 0x1fff]\n",  # libvfn
        "iova_ranges\n0x1000-0x1fff\n",
        "range 0: 0x1000 - 0x1fff\n",
    ],
)
def test_pair_with_a_heading_or_label_is_the_kernels(text: str) -> None:
    assert listed(one(text)) == [(0x1000, 0x1FFF)]


def test_pairs_under_a_heading_of_rmrrs_are_rmrrs() -> None:
    found = one("# kind: rmrr\n0xB5DA5000-0xB5DDDFFF\n")
    assert [item.range.start for item in found.log_regions] == [0xB5DA_5000]
    assert found.kernel_ranges == ()


def test_pairs_under_a_heading_of_reserved_regions_are_reserved() -> None:
    found = one("reserved regions\n0x1000-0x1fff\n")
    assert group_spans(found) == {"pasted": [(0x1000, 0x1FFF)]}


def test_each_heading_counts_for_the_pairs_behind_it() -> None:
    found = one("usable IOVA ranges\n0x0-0xfedfffff\nRMRRs:\n0x1000-0x1fff\n")
    assert listed(found) == [(0x0, 0xFEDFFFFF)]
    assert len(found.log_regions) == 1


# -- kernel log ----------------------------------------------------------------------------------

UNIT = "dmar0: reg_base_addr fed90000 ver 1:0 cap c0000020e60262 ecap f0101a"
RMRR = "RMRR base: 0x000000d8d28000 end: 0x000000d8d46fff"

STAMPS = [
    "",
    "[    0.184288] ",
    "[  209.526605] ",
    "[12345.678901] ",
    "<6>[    0.184288] ",
    "<6>",
    "Nov 24 06:05:01 box kernel: ",
    "Nov 24 06:05:01 box kernel: [    0.184288] ",
    "2025-11-24T06:05:01.123456+0000 box kernel: ",
    "2025-11-24T06:05:01+0100 box.example.org kernel: [    0.184288] ",
    "[Mon Nov 24 06:05:01 2025] ",
    "kern  :info  : [    0.184288] ",
]


@pytest.mark.parametrize("stamp", STAMPS)
def test_unit_line_is_read_behind_any_time_stamp(stamp):
    (unit,) = one(f"{stamp}DMAR: {UNIT}\n").units
    assert (unit.name, unit.cap, unit.ecap) == ("dmar0", CAP_39, 0xF0101A)


@pytest.mark.parametrize("stamp", STAMPS)
def test_rmrr_line_is_read_behind_any_time_stamp(stamp):
    (rmrr,) = one(f"{stamp}DMAR: {RMRR}\n").log_regions
    assert (rmrr.range.start, rmrr.range.last) == (0xD8D28000, 0xD8D46FFF)
    assert (rmrr.kind, rmrr.word, rmrr.source) == (
        RegionKind.FIRMWARE,
        "RMRR",
        Source("paste", 1),
    )


def test_log_of_a_kernel_before_4_2_is_read():
    # drivers/iommu/dmar.c wrote "dmar: " and "IOMMU 0: " then
    found = one(
        "[    0.028431] dmar: Host address width 36\n"
        "[    0.028434] dmar: IOMMU 0: reg_base_addr fed90000 ver 1:0 cap c0000020e60262 "
        "ecap f0101a\n"
        f"[    0.028440] dmar: {RMRR}\n"
    )
    assert [(u.name, u.cap) for u in found.units] == [("dmar0", CAP_39)]
    assert spans(r.range for r in found.log_regions) == [(0xD8D28000, 0xD8D46FFF)]


def test_rmrr_lines_come_out_ascending_and_once():
    low = "DMAR: RMRR base: 0x00000000001000 end: 0x00000000001fff\n"
    found = one(f"DMAR: {RMRR}\n{low}DMAR: {RMRR}\n")
    assert [r.range.start for r in found.log_regions] == [0x1000, 0xD8D28000]
    assert "repeated" in note_texts(found)


@pytest.mark.parametrize(
    "text",
    [
        "DMAR: RMRR base: 0x000000d8d28000 end:",
        "DMAR: RMRR base: 0x000000d8d28000",
        "DMAR: RMRR base:",
        "DMAR: RMRR",
        "DMAR: RMRR base: d8d28000 end: d8d46fff",
        "DMAR: RMRR base: 0x000000d8d28000 end: 0x0000",  # cut off in the last number
        "DMAR: RMRR base: 0x000000d8d28000 end: 0x000000d8d26fff",  # last below start
        "DMAR: RMRR base: 0x000000d8d28000 end: 0x1ffffffffffffffff",  # beyond 64 bits
        "DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap c0000020e60262 ecap",
        "DMAR: dmar0: reg_base_addr fed90000",
    ],
)
def test_damaged_log_fact_is_an_error_that_names_the_line(text):
    with pytest.raises(HostDataError, match="paste:2") as caught:
        one(f"{MSI_LINE}{text}\n")
    assert caught.value.line == 2


def test_rmrr_of_length_0_is_empty_with_a_warning():
    found = one(f"DMAR: {UNIT}\nDMAR: RMRR base: 0x000000d8d28000 end: 0x000000d8d27fff\n")
    assert found.log_regions == ()
    assert "length 0" in warnings_of(found)[0]


def test_too_narrow_line_gives_a_width():
    found = one(
        "[  209.526605] DMAR: intel_iommu_map: iommu width (39) is not sufficient for the mapped "
        "address (ffff008000)\n"
    )
    assert [(w.bits, w.source) for w in found.widths] == [(39, Source("paste", 1))]


@pytest.mark.parametrize("bits", ["0", "65", "128", "9" * 5000], ids=["0", "65", "128", "huge"])
def test_too_narrow_line_with_an_impossible_width_is_an_error(bits):
    with pytest.raises(HostDataError, match="paste:1"):
        one(f"DMAR: intel_iommu_map: iommu width ({bits}) is not sufficient for the address\n")


def test_host_address_width_is_no_width_of_iova():
    found = one(f"DMAR: Host address width 36\nDMAR: {UNIT}\n")
    assert found.widths == ()
    assert "physical" in note_texts(found)


@pytest.mark.parametrize("text", ["DMAR: Host address width 39\n", "DMAR: IOMMU enabled\n"])
def test_log_that_shows_an_iommu_but_no_width_is_no_host_without_one(text):
    # saying "no IOMMU is in use" would be untrue: the log shows one
    with pytest.raises((EvidenceError, HostDataError)):
        one(text).usable()


def test_host_address_width_of_5000_digits_is_an_error():
    with pytest.raises(HostDataError):
        one(f"DMAR: Host address width {'9' * 5000}\n")


def test_group_number_of_5000_digits_is_an_error():
    text = f"/sys/kernel/iommu_groups/{'9' * 5000}/reserved_regions:{MSI_LINE}"
    with pytest.raises(HostDataError):
        one(text)


def test_firmware_bug_line_is_shown_as_a_warning():
    found = one(f"DMAR: {UNIT}\nDMAR: [Firmware Bug]: Your BIOS is broken; bad RMRR [0x9d-0x9f]\n")
    assert "BIOS is broken" in warnings_of(found)[0]


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("pci 0000:00:00.2: AMD-Vi: Extended features (0xf77ef22294ada):", "0xf77ef22294ada"),
        ("AMD-Vi: Extended features (0x58f77ef22294a5a): PPR X2APIC NX", "0x58f77ef22294a5a"),
        # 6.1 and later: the log prints EFR first in every release, unlike sysfs
        ("AMD-Vi: Extended features (0x58f77ef22294a5a, 0x0): PPR", "0x58f77ef22294a5a"),
    ],
)
def test_amd_features_line_gives_the_first_register(text, features):
    (unit,) = one(f"[    0.9] {text}\n").units
    assert (unit.vendor, unit.features) == ("amd", features)


def test_linux_version_line_gives_the_release():
    found = one(f"[    0.0] Linux version 6.8.0-41-generic (buildd@x) #1\nDMAR: {UNIT}\n")
    assert found.release == "6.8.0-41-generic"


def test_other_log_lines_are_counted_but_no_warning():
    found = one(f"DMAR: {UNIT}\n[    1.0] usb 1-1: new device\n[    1.1] eth0: link up\n")
    assert "2 other kernel log lines" in note_texts(found)
    assert warnings_of(found) == []


# -- collections, mixtures -----------------------------------------------------------------------

COLLECTION = (
    "# source: somewhere\n# arch: x86_64\n# kind: dmar_dmesg (collection)\n"
    "DMAR: RMRR base: 0x00000000001000 end: 0x00000000001fff\n"
    "\n\n"
    "DMAR: RMRR base: 0x00000000003000 end: 0x00000000003fff\n"
    "DMAR: RMRR base: 0x00000000005000 end: 0x00000000005fff\n"
)


def test_collection_holds_one_host_a_paragraph():
    hosts = parse_text(COLLECTION, "many")
    assert [h.name for h in hosts] == ["many#1", "many#2"]
    assert [len(h.log_regions) for h in hosts] == [1, 2]


def test_collection_names_lines_of_the_whole_text():
    hosts = parse_text(COLLECTION, "many")
    assert [r.source for r in hosts[1].log_regions] == [Source("many", 7), Source("many", 8)]


def test_collection_gives_source_and_arch_to_each_host():
    hosts = parse_text(COLLECTION, "many")
    assert [(h.origin, h.arch) for h in hosts] == [("somewhere", "x86_64")] * 2


def test_blank_lines_outside_of_a_collection_part_nothing():
    assert len(one(MSI_LINE + "\n\n" + line(0x0, 0xFFF, "direct")).groups[0].regions) == 2


def test_mixture_of_everything_gives_every_fact():
    found = one(
        "# source: a chat\n# arch: x86_64\nhello, my host says:\nusable IOVA ranges\n"
        f"{MSI_LINE}[0x0, 0xfedfffff]\n[0xfef00000, 0xffffffffffff]\n"
        f"[    0.1] DMAR: {UNIT}\nDMAR: {RMRR}\n"
    )
    assert group_spans(found) == {"pasted": [(MSI.start, MSI.last)]}
    assert listed(found) == [(0x0, 0xFEDFFFFF), (0xFEF00000, LAST_48)]
    assert (len(found.units), len(found.log_regions)) == (1, 1)
    assert (found.origin, found.arch) == ("a chat", "x86_64")


def test_line_not_understood_is_reported_by_number_as_a_warning():
    found = one(f"hello\n{MSI_LINE}see you\n")
    (note,) = warnings_of(found)
    assert "1, 3" in note
    assert "hello" in note


def test_text_without_any_fact_is_an_error_that_says_what_is_understood():
    with pytest.raises(HostDataError, match="none of its") as caught:
        one("Dear all,\nplease find attached nothing.\n")
    assert caught.value.exit_code == 5
    assert "reserved_regions" in caught.value.hint


def test_failed_maps_are_no_host_and_the_hint_names_check():
    with pytest.raises(HostDataError, match="failed maps and no host facts") as caught:
        parse_text(FAILED_MAPS.read_text("utf-8"), "failed")
    assert "check" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "\x01\x02\x7f\x80\xff" * 2000,
        "%PDF-1.7\n%\xe2\xe3\n1 0 obj",
        "\x1b[31mred\x1b[0m",
        "\ufffd" * 99,
    ],
    ids=["junk", "pdf", "escape", "replacement"],
)
def test_binary_junk_is_an_error_in_one_short_sentence(text):
    with pytest.raises(HostDataError) as caught:
        one(text)
    assert len(str(caught.value)) < 600


def hostile(count):
    return "".join(
        line(0x1000 * n, 0x1000 * n + 0x4FFF, ("direct", "msi", "odd")[n % 3]) + "junk [1, 2\n"
        for n in range(count)
    )


@pytest.mark.slow
def test_10_000_hostile_lines_are_read():
    found = one(hostile(10_000))
    assert len(found.groups[0].regions) == 10_000
    assert len(found.notes) < 10


def test_work_grows_with_the_hostile_lines_and_no_faster():
    assert growth(lambda count: one(hostile(count)), 500) < 2.2


@given(st.text(max_size=300))
def test_any_text_gives_hosts_or_one_sentence(text):
    assert outcome(text)


@given(
    st.lists(
        st.sampled_from(
            [
                MSI_LINE.strip(),
                "0x0 - 0xfedfffff",
                f"DMAR: {UNIT}",
                f"DMAR: {RMRR}",
                "AMD-Vi: Extended features (0x58f77ef22294a5a, 0x0)",
                "junk",
                "",
            ]
        ),
        min_size=1,
    ),
    st.integers(0, 60),
)
def test_any_cut_of_a_real_text_gives_hosts_or_one_sentence(lines, cut):
    text = "\n".join(lines)
    assert outcome(text[: max(len(text) - cut, 0)])


def outcome(text):
    """Hosts, or the message: an empty one and any other exception are failures."""
    try:
        return parse_text(text, "paste")
    except HostDataError as error:
        return error.message


# -- the hosts that ship with the package, numbers read by eye -------------------------------------

#        name: (groups' regions, list ranges, units, RMRRs) of each host in the file
BY_EYE = {
    "amd-epyc-1tb": [(2, 3, 0, 0)],
    "amd-epyc-1tb-thread-2021": [(2, 0, 0, 0)],
    "amd-epyc-1tb-thread-2021-allowed": [(0, 3, 0, 0)],
    "arm-centos7-server-05-00-0": [(3, 0, 0, 0)],
    "arm-hisilicon-d05-group3": [(2, 0, 0, 0)],
    "arm-hisilicon-rmr-megaraid-group0": [(3, 0, 0, 0)],
    "arm-multisocket-2021": [(1, 0, 0, 0)],
    "arm-nvidia-0015-01-00-0": [(1, 0, 0, 0)],
    "arm-nxp-lx2160a-fslmc-group0": [(5, 0, 0, 0)],
    "arm-smmu-64000000-before": [(1, 0, 0, 0)],  # four times the same line
    "intel-dmar-8thread-laptop": [(0, 0, 2, 2)],
    "intel-dmar-collected-client-39bit": [
        (0, 0, 0, 1), (0, 0, 0, 1), (0, 0, 0, 1), (0, 0, 0, 2),
        (0, 0, 0, 2), (0, 0, 0, 2), (0, 0, 0, 2),
    ],
    "intel-dmar-collected-sandybridge-36bit": [(0, 0, 0, 2)],
    "intel-dmar-collected-server-46bit": [(0, 0, 0, 1)] * 5,
    "intel-dmar-edk2-minipc": [(0, 0, 2, 1)],
    "intel-dmar-i7-2600": [(0, 0, 1, 1)],
    "intel-dmar-ivy-bridge-3770": [(0, 0, 2, 2)],
    "intel-dmar-server-oob-pr10": [(0, 0, 1, 1)],
    "intel-dmar-thinkpad-t450s": [(0, 0, 2, 2)],
    "intel-sunrise-point-lp-group9": [(2, 0, 0, 0)],
    "qemu-vtd-notifier-ranges": [(0, 2, 0, 0)],
    "s390x-32g": [(2, 0, 0, 0)],
}  # fmt: skip


def counts(found):
    return (
        sum(len(group.regions) for group in found.groups),
        sum(len(item.ranges) for item in found.kernel_ranges),
        len(found.units),
        len(found.log_regions),
    )


def test_every_bundled_host_is_in_the_table_read_by_eye():
    texts = [name for name in bundled_hosts() if (BUNDLED / f"{name}.txt").is_file()]
    assert sorted(BY_EYE) == texts


@pytest.mark.parametrize(("name", "expected"), BY_EYE.items(), ids=BY_EYE.keys())
def test_bundled_host_loads_with_the_facts_read_by_eye(name, expected):
    assert [counts(found) for found in bundled(name)] == expected


@pytest.mark.parametrize("name", sorted(BY_EYE))
def test_bundled_host_loads_without_a_line_not_understood(name):
    assert "not understood" not in "".join(map(note_texts, bundled(name)))


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("amd-epyc-1tb-thread-2021", (0xFD00000000, 0xFFFFFFFFFF, "reserved")),
        ("arm-centos7-server-05-00-0", (0x80000000000, 0x82FFFFFFFFF, "reserved")),
        ("arm-hisilicon-d05-group3", (0xC6010000, 0xC601FFFF, "msi")),
        ("arm-hisilicon-rmr-megaraid-group0", (0x27B00000, 0x286FFFFF, "direct")),
        ("arm-nxp-lx2160a-fslmc-group0", (0x1000000, 0x10FFFFFF, "direct-relaxable")),
        ("intel-sunrise-point-lp-group9", (0x0, 0xFFFFFF, "direct")),
        ("s390x-32g", (0x900000000, 0x3FFFFFFFFFF, "reserved")),
    ],
)
def test_bundled_host_has_the_region_read_by_eye(name, region):
    (found,) = bundled(name)
    regions = [(r.range.start, r.range.last, r.word) for r in found.groups[0].regions]
    assert region in regions


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "amd-epyc-1tb",
            [(0x0, 0xFEDFFFFF), (0xFEF00000, 0xFCFFFFFFFF), (0x10000000000, TOP)],
        ),
        ("qemu-vtd-notifier-ranges", [(0x0, 0xFEDFFFFF), (0xFEF00000, TOP)]),
    ],
)
def test_bundled_host_has_the_list_read_by_eye(name, expected):
    (found,) = bundled(name)
    assert listed(found) == expected


@pytest.mark.parametrize(
    ("name", "caps"),
    [
        ("intel-dmar-8thread-laptop", [0x1C0000C40660462, 0xD2008C40660462]),
        ("intel-dmar-edk2-minipc", [0x1C0000C40660462, 0xD2008C40660462]),
        ("intel-dmar-i7-2600", [0xC9008020660262]),
        ("intel-dmar-ivy-bridge-3770", [0xC0000020E60262, 0xC9008020660262]),
        ("intel-dmar-server-oob-pr10", [0x8D2078C106F0466]),
        ("intel-dmar-thinkpad-t450s", [0x1C0000C40660462, 0xD2008C20660462]),
    ],
)
def test_bundled_log_has_the_registers_read_by_eye(name, caps):
    (found,) = bundled(name)
    assert [unit.cap for unit in found.units] == caps


def test_bundled_ivy_bridge_has_the_width_that_the_kernel_printed():
    (found,) = bundled("intel-dmar-ivy-bridge-3770")
    assert [width.bits for width in found.widths] == [39]


def test_bundled_thinkpad_shows_its_firmware_bugs():
    (found,) = bundled("intel-dmar-thinkpad-t450s")
    assert len([text for text in warnings_of(found) if "Firmware Bug" in text]) == 2


@pytest.mark.parametrize("name", sorted(BY_EYE))
def test_bundled_host_says_where_it_comes_from(name):
    assert all(not found.origin.startswith("text ") for found in bundled(name))


@pytest.mark.parametrize("register", ["cap", "ecap"])
def test_register_of_more_than_64_bits_is_a_garbled_line(register):
    values = {"cap": "d2008c20660462", "ecap": "f050da"} | {register: "1" * 17}
    line = (
        f"DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap {values['cap']} ecap {values['ecap']}\n"
    )
    with pytest.raises(HostDataError, match="cut off or garbled"):
        parse_text(line, "p")


def test_text_of_many_groups_takes_steps_in_proportion():
    def read_and_judge(size):
        text = "".join(f"==> {group}/reserved_regions <==\n" for group in range(size))
        parse_text(text, "p")[0].usable(aperture=48)

    assert growth(read_and_judge, 200) < 2.5


def test_text_of_many_units_takes_steps_in_proportion():
    def read(size):
        parse_text("AMD-Vi: Extended features (0x58f77ef22294a5a, 0x0): PPR\n" * size, "p")

    assert growth(read, 200) < 2.5
