# SPDX-License-Identifier: Apache-2.0
"""The judge: facts into usable ranges, every edge with its cause; each rule has its tests."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.data import cases
from tests.kit.examples import examples
from tests.kit.hosts import (
    CAP_39,
    CAP_48,
    HT,
    LAST_39,
    LAST_48,
    LAST_57,
    MSI,
    PAGE,
    PAGE_64K,
    SW_MSI,
    TOP,
    TOP_PAGE,
    Source,
    covered,
    device,
    edge_causes,
    empty_region,
    group,
    host,
    intel,
    kernel_list,
    msi,
    note_texts,
    region,
    spans,
    warnings_of,
    where,
    x86,
)
from tests.kit.steps import growth
from vmm_iova.errors import (
    ApertureError,
    EvidenceError,
    HostDataError,
    HostUnavailableError,
    RequestError,
    ReservedError,
    StraddleError,
    UnknownNameError,
)
from vmm_iova.host.evidence import EvidenceKind
from vmm_iova.host.facts import (
    DmaWindow,
    Group,
    IommuUnit,
    Limits,
    RegionKind,
    ReservedRegion,
    StatedWidth,
)
from vmm_iova.host.load import load_host
from vmm_iova.host.text import parse_text
from vmm_iova.host.usable import CauseKind
from vmm_iova.ranges import AddrRange, RangeSet

APERTURE_CASES = {case["id"]: case for case in cases("aperture")}

BELOW_MSI = (0x0, 0xFEDFFFFF)
ABOVE_MSI_39 = (0xFEF00000, LAST_39)
ABOVE_MSI_48 = (0xFEF00000, LAST_48)


def kinds(usable):
    return [item.kind for item in usable.evidence]


def hole_spans(usable, kind=CauseKind.REGION):
    return spans(cause.range for cause in usable.causes if cause.kind is kind)


# == rule 1: an aperture has evidence ============================================================


def test_no_evidence_is_refused():
    with pytest.raises(EvidenceError) as caught:
        x86(group("1", msi())).usable()
    assert caught.value.exit_code == 9


def test_refusal_says_what_was_looked_at():
    with pytest.raises(EvidenceError) as caught:
        x86(group("1", msi())).usable()
    looked = " / ".join(caught.value.looked_at)
    assert "range list" in looked
    assert "registers" in looked
    assert "reserved_regions" in looked


def test_refusal_says_what_settles_it():
    with pytest.raises(EvidenceError) as caught:
        x86(group("1", msi())).usable()
    settles = " / ".join(caught.value.settles)
    assert "--aperture" in settles
    assert "VFIO" in settles
    assert "a width that you are sure of" in settles
    assert "give one of" in str(caught.value)


def test_refusal_names_the_group_and_the_host():
    with pytest.raises(EvidenceError, match=r"box.*group 7 \(0000:01:00\.0\)"):
        x86(group("7", msi("7"), devices=("0000:01:00.0",))).usable()


@pytest.mark.parametrize("case", APERTURE_CASES.values(), ids=APERTURE_CASES.keys())
def test_peer_guess_without_evidence_is_refused_and_possible_when_stated(case):
    # QEMU falls back to 39 bits or to all 64; the second is wrong on s390. We do not guess.
    facts = host(group("1"), arch="x86_64")
    with pytest.raises(EvidenceError):
        facts.usable()
    (pair,) = case["expect"]
    stated = AddrRange(*(int(text, 16) for text in pair))
    assert facts.usable(aperture=stated).ranges.as_set() <= RangeSet([stated])


def test_s390_with_an_empty_file_is_refused_and_not_64_bits():
    with pytest.raises(EvidenceError):
        host(group("1"), arch="s390x").usable()


@pytest.mark.parametrize(
    "name",
    [
        "amd-epyc-1tb-thread-2021",
        "arm-centos7-server-05-00-0",
        "arm-hisilicon-d05-group3",
        "arm-nxp-lx2160a-fslmc-group0",
        "intel-sunrise-point-lp-group9",
        "s390x-32g",
    ],
)
def test_bundled_host_with_holes_only_is_refused(name):
    # sysfs names holes, never the aperture
    with pytest.raises(EvidenceError):
        load_host(name).usable()


@pytest.mark.parametrize("vendor", ["smmu3.0x64000000", "riscv-iommu@1", "virtio0", "ivhd0"])
def test_unit_that_publishes_no_width_is_no_evidence(vendor):
    with pytest.raises(EvidenceError) as caught:
        host(group("1"), units=(IommuUnit(vendor),)).usable()
    assert vendor in " ".join(caught.value.looked_at)


def test_kernel_list_is_the_strongest_evidence():
    found = intel(
        group("1", msi()),
        cap=CAP_48,
        kernel_ranges=(kernel_list((0x0, 0xFEDFFFFF), (0xFEF00000, LAST_39)),),
        windows=(DmaWindow("dev", AddrRange(0x0, 0xFFFFFFFF), Source("VFIO")),),
    ).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_39]
    assert kinds(found) == [EvidenceKind.KERNEL_LIST]


def test_zpci_window_is_stronger_than_what_the_user_states():
    found = host(
        group("1", devices=("dev",)),
        arch="s390x",
        windows=(DmaWindow("dev", AddrRange(0x100000000, 0x8FFFFFFFF), Source("VFIO")),),
    ).usable(aperture=64)
    assert spans(found.ranges) == [(0x100000000, 0x8FFFFFFFF)]
    assert kinds(found)[0] is EvidenceKind.ZPCI


def test_zpci_window_bounds_at_both_sides_with_causes():
    found = host(
        group("1", devices=("dev",)),
        arch="s390x",
        windows=(DmaWindow("dev", AddrRange(0x100000000, 0x8FFFFFFFF), Source("VFIO dev")),),
    ).usable()
    assert [cause.kind for cause in edge_causes(found)] == [CauseKind.APERTURE] * 2
    assert all("zPCI" in cause.text and "dev" in cause.text for cause in edge_causes(found))


def test_zpci_window_of_another_group_does_not_count():
    both = host(
        group("1", devices=("dev1",)),
        group("2", devices=("dev2",)),
        windows=(DmaWindow("dev2", AddrRange(0x100000000, 0x8FFFFFFFF), Source("VFIO")),),
    )
    assert both.usable(groups=["2"]).ranges
    with pytest.raises(EvidenceError):
        both.usable(groups=["1"])


def test_zpci_windows_of_two_devices_intersect():
    found = host(
        group("1", devices=("a", "b")),
        windows=(
            DmaWindow("a", AddrRange(0x100000000, 0x8FFFFFFFF), Source("VFIO a")),
            DmaWindow("b", AddrRange(0x200000000, 0xFFFFFFFFFF), Source("VFIO b")),
        ),
    ).usable()
    assert spans(found.ranges) == [(0x200000000, 0x8FFFFFFFF)]


def test_registers_are_evidence_and_an_upper_bound():
    found = intel(group("1", msi()), cap=CAP_39).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_39]
    assert (kinds(found), found.evidence[0].bound) == ([EvidenceKind.REGISTERS], True)


def test_registers_of_several_units_give_the_smallest_width():
    units = tuple(IommuUnit(f"dmar{n}", cap=cap) for n, cap in enumerate((CAP_48, CAP_39)))
    assert x86(group("1", msi()), units=units).usable().ranges[-1].last == LAST_39


def test_scalable_mode_with_first_stage_tables_costs_a_bit():
    unit = IommuUnit("dmar0", cap=CAP_48, ecap=1 << 43 | 1 << 47)
    assert x86(group("1", msi()), units=(unit,)).usable().ranges[-1].last == (1 << 47) - 1


def test_scalable_mode_does_not_cap_the_kernels_own_list():
    # the kernel knows which tables it picked
    unit = IommuUnit("dmar0", cap=CAP_48, ecap=1 << 43 | 1 << 47)
    found = x86(
        group("1", msi()),
        units=(unit,),
        kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48),),
    ).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_48]


def test_register_that_makes_no_sense_is_no_evidence():
    with pytest.raises(EvidenceError, match="makes no sense"):
        intel(group("1", msi()), cap=0).usable()


def test_width_printed_by_the_kernel_is_evidence():
    found = x86(group("1", msi()), widths=(StatedWidth(39, Source("dmesg", 3)),)).usable()
    assert found.ranges[-1].last == LAST_39
    assert "dmesg:3" in edge_causes(found)[-1].text


@pytest.mark.parametrize(
    ("aperture", "expected"),
    [
        (48, [BELOW_MSI, ABOVE_MSI_48]),
        ("48", [BELOW_MSI, ABOVE_MSI_48]),
        ("48 bits", [BELOW_MSI, ABOVE_MSI_48]),
        ("0x0-0x7fffffffff", [BELOW_MSI, ABOVE_MSI_39]),
        (AddrRange(0x100000000, LAST_39), [(0x100000000, LAST_39)]),
        (
            RangeSet([AddrRange(0x1000, 0x1FFF), AddrRange(0x100000000, LAST_39)]),
            [(0x1000, 0x1FFF), (0x100000000, LAST_39)],
        ),
    ],
    ids=["int", "text", "bits", "range-text", "range", "ranges"],
)
def test_stated_aperture_counts_where_nothing_is_known(aperture, expected):
    found = x86(group("1", msi())).usable(aperture=aperture)
    assert spans(found.ranges) == expected
    assert kinds(found) == [EvidenceKind.STATED]


@pytest.mark.parametrize("aperture", [0, 65, -1, True, "0", "65", "", "wide", "0x2-0x1", "1e3"])
def test_stated_aperture_that_makes_no_sense_is_refused(aperture):
    with pytest.raises(RequestError) as caught:
        x86(group("1", msi())).usable(aperture=aperture)
    assert (caught.value.field, caught.value.exit_code) == ("aperture", 2)


def test_stated_aperture_narrows_what_is_known():
    found = intel(group("1", msi()), cap=CAP_48).usable(aperture=39)
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_39]
    assert "stated" in edge_causes(found)[-1].text


@pytest.mark.parametrize(
    "facts",
    [
        intel(group("1", msi()), cap=CAP_39),
        x86(group("1", msi()), kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_39),)),
    ],
    ids=["registers", "kernel-list"],
)
def test_stated_aperture_never_widens_and_says_so(facts):
    found = facts.usable(aperture=57)
    assert found.ranges[-1].last == LAST_39
    assert any("stated: 57 bits" in text for text in warnings_of(found))


def test_fresh_ioas_list_is_no_evidence():
    # iommufd before any attach: exactly one range 0..2^64-1, alignment 1
    fresh = kernel_list((0x0, TOP), api="iommufd", granule=1)
    with pytest.raises(EvidenceError) as caught:
        x86(group("1", msi()), kernel_ranges=(fresh,)).usable()
    assert "before any device is attached" in " ".join(caught.value.looked_at)


def test_fresh_ioas_list_says_nothing_about_the_granule():
    fresh = kernel_list((0x0, TOP), api="iommufd", granule=1)
    found = x86(group("1", msi()), kernel_ranges=(fresh,)).usable(aperture=48)
    assert found.granule == PAGE
    assert "kernel's range list" not in found.granule_text


def test_empty_kernel_list_is_no_evidence():
    # IOVA_RANGE is absent for a container with only mdevs
    with pytest.raises(EvidenceError) as caught:
        x86(group("1", msi()), kernel_ranges=(kernel_list(),)).usable()
    assert "empty" in " ".join(caught.value.looked_at)


def test_kernel_list_of_another_group_is_no_evidence():
    facts = x86(
        group("1", msi()),
        group("2", msi("2")),
        kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48, groups=("2",)),),
    )
    assert facts.usable(groups=["2"]).ranges
    with pytest.raises(EvidenceError) as caught:
        facts.usable(groups=["1"])
    assert "read for group 2" in " ".join(caught.value.looked_at)


def test_kernel_list_of_another_group_says_nothing_about_the_granule():
    facts = x86(
        group("1", msi()),
        group("2", msi("2")),
        kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48, groups=("2",), granule=PAGE_64K),),
    )
    found = facts.usable(groups=["1"], aperture=48)
    assert found.granule == PAGE


def test_kernel_list_of_unknown_groups_counts_for_all():
    facts = x86(
        group("1", msi()),
        group("2", msi("2")),
        kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48),),
    )
    assert spans(facts.usable().ranges) == [BELOW_MSI, ABOVE_MSI_48]


def test_two_kernel_lists_of_one_group_intersect():
    facts = x86(
        group("1", msi()),
        kernel_ranges=(
            kernel_list(BELOW_MSI, ABOVE_MSI_48, groups=("1",)),
            kernel_list((0x10000, LAST_39), groups=("1",), api="iommufd"),
        ),
    )
    assert spans(facts.usable().ranges) == [(0x10000, 0xFEDFFFFF), ABOVE_MSI_39]


# -- hardware caps the kernel's list -------------------------------------------------------------


def test_vtd_list_of_linux_5_4_is_capped_by_the_registers():
    # 5.4 lists 57 bits whatever the hardware; a map above its width fails with EFAULT
    found = intel(
        group("1", msi()),
        cap=CAP_39,
        release="5.4.0",
        kernel_ranges=(kernel_list(BELOW_MSI, (0xFEF00000, LAST_57)),),
    ).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_39]
    assert kinds(found) == [EvidenceKind.KERNEL_LIST, EvidenceKind.REGISTERS]


def test_cap_on_a_kernel_list_is_a_warning_that_shows_both_and_the_winner():
    found = intel(
        group("1", msi()),
        cap=CAP_39,
        kernel_ranges=(kernel_list(BELOW_MSI, (0xFEF00000, LAST_57)),),
    ).usable()
    (note,) = warnings_of(found)
    assert "0x1ffffffffffffff" in note
    assert "registers win" in note


def test_cap_that_does_not_bite_is_neither_evidence_nor_note():
    found = intel(
        group("1", msi()), cap=CAP_48, kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_39),)
    ).usable()
    assert kinds(found) == [EvidenceKind.KERNEL_LIST]
    assert found.notes == ()


def test_amd_list_of_64_bits_is_capped_by_the_page_tables():
    # "aperture 2^64-1" of AMD is no evidence that the hardware walks 64 bits
    unit = IommuUnit("ivhd0", features="58f77ef222942de")  # HATS 0: 48 bits
    found = x86(
        group("1", msi()),
        units=(unit,),
        kernel_ranges=(kernel_list(BELOW_MSI, (0xFEF00000, TOP)),),
    ).usable()
    assert found.ranges[-1].last == LAST_48


def test_amd_register_in_doubt_does_not_cap_the_kernels_list():
    unit = IommuUnit("ivhd0", features="400:800")  # which is EFR cannot be told
    found = x86(
        group("1", msi()),
        units=(unit,),
        kernel_ranges=(kernel_list(BELOW_MSI, (0xFEF00000, (1 << 60) - 1)),),
    ).usable()
    assert found.ranges[-1].last == (1 << 60) - 1


def test_amd_register_in_doubt_is_weak_evidence_and_says_so():
    unit = IommuUnit("ivhd0", features="400:800")
    found = x86(group("1", msi()), units=(unit,)).usable()
    assert found.ranges[-1].last == LAST_57
    assert "not certain" in edge_causes(found)[-1].text


# == rule 2: sysfs names holes; disagreement is shown ============================================


def test_region_inside_of_the_kernels_list_is_a_hole_with_a_warning():
    found = x86(
        group("1", msi(), region(0x10000000, 0x1FFFFFFF)),
        kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48),),
    ).usable()
    assert spans(found.ranges) == [(0x0, 0xFFFFFFF), (0x20000000, 0xFEDFFFFF), ABOVE_MSI_48]
    (note,) = warnings_of(found)
    assert "0x10000000-0x1fffffff" in note
    assert "region wins" in note


def test_gap_of_the_kernels_list_that_sysfs_does_not_name_is_noted():
    # show both and say which one won
    found = x86(
        group("1", msi()),
        kernel_ranges=(
            kernel_list(BELOW_MSI, (0xFEF00000, 0xFCFFFFFFFF), (0x10000000000, LAST_48)),
        ),
    ).usable()
    assert "0xfd00000000-0xffffffffff" in note_texts(found)


def test_gap_of_the_kernels_list_is_a_hole_that_names_the_list():
    found = x86(
        group("1"), kernel_ranges=(kernel_list((0x0, 0xFFFF), (0x20000, LAST_48)),)
    ).usable()
    (gap,) = [cause for cause in found.causes if cause.kind is CauseKind.KERNEL_GAP]
    assert (gap.range.start, gap.range.last) == (0x10000, 0x1FFFF)
    assert "VFIO capture" in gap.text


def test_agreement_gives_no_note():
    found = x86(group("1", msi()), kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48),)).usable()
    assert found.notes == ()


def test_empty_file_is_said_to_mean_nothing():
    found = host(group("1"), arch="riscv64").usable(aperture=39)
    assert "empty" in warnings_of(found)[0]


def test_type_of_the_group_says_nothing_about_the_ranges():
    judged = [
        spans(intel(group("1", msi(), type=kind)).usable().ranges)
        for kind in (None, "identity", "DMA", "blocked")
    ]
    assert judged == [[BELOW_MSI, ABOVE_MSI_48]] * 4


def test_dma_mask_of_the_host_driver_does_not_clamp():
    facts = intel(group("1", msi(), devices=("d",)))
    masked = replace(facts, devices=(replace(device("d", "1", "dmar0"), dma_mask_bits=32),))
    assert masked.usable().ranges[-1].last == LAST_48


# == rule 3: every edge has a cause ==============================================================


def test_edge_of_a_region_names_type_range_group_device_and_source():
    found = intel(group("7", msi("7"), devices=("0000:01:00.0",))).usable()
    text = found.edges[0].last_cause.text
    assert "msi" in text
    assert "0xfee00000-0xfeefffff" in text
    assert "group 7 (0000:01:00.0)" in text
    assert str(where("7")) in text
    assert found.edges[0].last_cause.region == msi("7")


def test_edge_of_registers_names_unit_and_source():
    text = intel(group("1", msi()), cap=CAP_39).usable().edges[-1].last_cause.text
    assert "dmar0" in text
    assert "/sys/class/iommu/dmar0" in text
    assert "c0000020e60262" in text


def test_edge_of_a_stated_aperture_names_the_option():
    found = x86(group("1", msi())).usable(aperture=48)
    assert "stated: 48 bits" in found.edges[-1].last_cause.text


def test_edge_at_address_0_is_the_end_of_the_space():
    cause = intel(group("1", msi())).usable().edges[0].start_cause
    assert (cause.kind, cause.range) == (CauseKind.SPACE, AddrRange(0, 0))


def test_several_groups_each_region_names_its_own_group():
    found = intel(
        group("1", region(0x10000, 0x1FFFF, group="1")),
        group("2", region(0x30000, 0x3FFFF, group="2")),
    ).usable()
    assert "group 1" in found.edges[0].last_cause.text
    assert "group 2" in found.edges[1].last_cause.text


def test_seam_of_the_kernels_list_names_the_list():
    found = x86(
        group("1"), kernel_ranges=(kernel_list((0x0, 0xFFFF), (0x10000, LAST_48)),)
    ).usable()
    assert "VFIO capture" in found.edges[0].last_cause.text


def test_seam_of_an_empty_region_names_region_group_and_source():
    found = intel(
        Group("1", regions=(msi(),), empty_regions=(empty_region(0x10000, "reserved"),))
    ).usable()
    assert found.edges[0].last_cause.kind is CauseKind.SEAM
    assert "group 1" in found.edges[0].last_cause.text
    assert str(where("1", 9)) in found.edges[0].last_cause.text


def test_granule_lost_to_a_seam_names_region_group_and_source():
    # an empty region in the middle of a page: no mapping may hold that page
    found = intel(
        Group("1", regions=(msi(),), empty_regions=(empty_region(0x10800, "reserved"),))
    ).usable()
    assert spans(found.ranges)[:2] == [(0x0, 0xFFFF), (0x11000, 0xFEDFFFFF)]
    assert str(where("1", 9)) in found.edges[0].last_cause.text


# -- causes_of, room_at, refusal -----------------------------------------------------------------


@pytest.fixture
def epyc():
    """The AMD host that ships: msi at 4 GiB, HyperTransport below 1 TiB, list up to 2^64-1."""
    return load_host("amd-epyc-1tb").usable()


def test_bundled_epyc_has_the_three_ranges_of_its_list_less_the_last_page(epyc):
    assert spans(epyc.ranges) == [
        (0x0, 0xFEDFFFFF),
        (0xFEF00000, 0xFCFFFFFFFF),
        (0x10000000000, 0xFFFFFFFFFFFFEFFF),
    ]


def test_causes_of_a_usable_window_are_none(epyc):
    assert epyc.causes_of(AddrRange(0x0, 0xFEDFFFFF)) == ()


def test_causes_of_a_window_over_two_holes_are_both_ascending(epyc):
    causes = epyc.causes_of(AddrRange(0x0, 0x10000000000))
    assert [cause.range for cause in causes] == [MSI, HT]


def test_causes_of_one_address_in_a_hole_are_that_hole(epyc):
    (cause,) = epyc.causes_of(AddrRange(0xFD00000000, 0xFD00000000))
    assert (cause.range, cause.kind) == (HT, CauseKind.REGION)


def test_causes_prefer_the_region_to_the_gap_of_the_list(epyc):
    # both are true; the region says which group and file
    assert all(
        cause.kind is not CauseKind.KERNEL_GAP for cause in epyc.causes_of(AddrRange(0, TOP))
    )


def test_causes_of_everything_end_with_the_top_page(epyc):
    assert epyc.causes_of(AddrRange(0, TOP))[-1].kind is CauseKind.TOP_PAGE


@pytest.mark.parametrize(
    ("start", "room"),
    [
        (0x0, 0xFEE00000),
        (0x1000, 0xFEDFF000),
        (0xFEDFFFFF, 0x1),
        (0xFEE00000, 0x0),  # in the hole
        (0xFEF00000, 0xFC01100000),
        (0xFFFFFFFFFFFFF000, 0x0),  # the last page
        (TOP, 0x0),
    ],
)
def test_room_at_an_address_is_what_one_mapping_could_have(epyc, start, room):
    assert epyc.room_at(start) == room


def test_room_at_a_seam_ends_there():
    found = x86(
        group("1"), kernel_ranges=(kernel_list((0x0, 0xFFFF), (0x10000, LAST_48)),)
    ).usable()
    assert (found.room_at(0xF000), found.room_at(0x10000)) == (0x1000, LAST_48 - 0xFFFF)


def test_refusal_of_what_fits_is_none(epyc):
    assert epyc.refusal(AddrRange(0x10000000000, 0x1FFFFFFFFFF)) is None


def test_refusal_in_a_region_is_a_reserved_error_with_its_facts(epyc):
    wanted = AddrRange.from_size(0xFD00000000, 4 << 30)  # the example of the issue
    error = epyc.refusal(wanted)
    assert isinstance(error, ReservedError)
    assert (error.range, error.region, error.exit_code) == (wanted, HT, 3)
    assert "reserved region" in error.cause
    assert "amd-epyc-1tb:4" in error.message


def test_refusal_that_begins_well_says_how_much_would_fit(epyc):
    error = epyc.refusal(AddrRange(0xFED00000, 0xFEFFFFFF))
    assert error.region == MSI
    assert "0x100000 bytes" in error.detail


def test_refusal_over_several_holes_names_the_lowest(epyc):
    assert epyc.refusal(AddrRange(0x0, TOP)).region == MSI


def test_refusal_above_the_aperture_is_an_aperture_error_with_the_limit():
    found = intel(group("1", msi()), cap=CAP_39).usable()
    wanted = AddrRange(0x8000000000, 0x80FFFFFFFF)
    error = found.refusal(wanted)
    assert isinstance(error, ApertureError)
    assert (error.range, error.limit) == (wanted, LAST_39)
    assert "dmar0" in error.message


def test_refusal_below_the_aperture_has_no_limit_below():
    found = host(group("1")).usable(aperture=AddrRange(0x100000000, LAST_39))
    error = found.refusal(AddrRange(0x0, 0xFFF))
    assert isinstance(error, ApertureError)
    assert error.limit is None


def test_refusal_of_the_last_page_is_an_aperture_error(epyc):
    error = epyc.refusal(TOP_PAGE)
    assert isinstance(error, ApertureError)
    assert "6.18" in error.message


def test_refusal_in_a_gap_of_the_kernels_list_is_a_reserved_error():
    found = x86(
        group("1"), kernel_ranges=(kernel_list((0x0, 0xFFFF), (0x20000, LAST_48)),)
    ).usable()
    error = found.refusal(AddrRange(0xF000, 0x1FFFF))
    assert isinstance(error, ReservedError)
    assert error.region == AddrRange(0x10000, 0x1FFFF)
    assert "VFIO capture" in error.cause


def test_refusal_over_a_seam_is_a_straddle_error_with_the_seam():
    found = x86(
        group("1"), kernel_ranges=(kernel_list((0x0, 0xFFFF), (0x10000, LAST_48)),)
    ).usable()
    wanted = AddrRange(0xF000, 0x10FFF)
    error = found.refusal(wanted)
    assert isinstance(error, StraddleError)
    assert (error.range, error.seam) == (wanted, 0x10000)
    assert "0x10000" in error.hint


def test_refusal_over_several_seams_names_the_first_inside():
    found = x86(
        group("1"),
        kernel_ranges=(kernel_list((0x0, 0xFFF), (0x1000, 0x1FFF), (0x2000, 0xFFFF)),),
    ).usable()
    assert found.refusal(AddrRange(0x1000, 0x2FFF)).seam == 0x2000


def test_refusal_over_the_seam_of_an_empty_region_does_not_blame_the_kernels_list():
    # there is no kernel list here
    found = intel(
        Group("1", regions=(msi(),), empty_regions=(empty_region(0x10000, "reserved"),))
    ).usable()
    error = found.refusal(AddrRange(0x0, 0x1FFFF))
    assert isinstance(error, StraddleError)
    assert "kernel's list" not in error.message
    assert str(where("1", 9)) in str(error)


def test_refusal_off_the_granule_names_the_hole_that_the_granule_touches():
    found = intel(group("1", region(0x10800, 0x10BFF))).usable()
    error = found.refusal(AddrRange(0x10000, 0x107FF))  # beside the hole, but on its page
    assert isinstance(error, ReservedError)
    assert error.region == AddrRange(0x10800, 0x10BFF)


# == rule 4: kinds of regions ====================================================================


@pytest.mark.parametrize("word", ["direct", "reserved", "msi", "new-word"])
def test_region_of_that_word_is_a_hole(word):
    found = intel(group("1", msi(), region(0x10000, 0x1FFFF, word))).usable()
    assert spans(found.ranges)[:2] == [(0x0, 0xFFFF), (0x20000, 0xFEDFFFFF)]
    assert word in found.edges[0].last_cause.text


def test_relaxable_region_is_usable_and_listed_for_a_warning():
    relaxed = region(0x10000, 0x1FFFF, "direct-relaxable")
    found = intel(group("1", msi(), relaxed)).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_48]
    assert found.relaxable == (relaxed,)


def test_relaxable_region_is_a_hole_when_strict():
    relaxed = region(0x10000, 0x1FFFF, "direct-relaxable")
    found = intel(group("1", msi(), relaxed)).usable(strict=True)
    assert spans(found.ranges)[:2] == [(0x0, 0xFFFF), (0x20000, 0xFEDFFFFF)]
    assert found.relaxable == ()
    assert "strict" in found.edges[0].last_cause.text


def test_relaxable_region_under_strict_is_not_said_to_fail_at_a_later_attach():
    # kernels leave relaxable regions in their list for good: the option is why it is a hole
    found = x86(
        group("1", msi(), region(0x10000, 0x1FFFF, "direct-relaxable")),
        kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48),),
    ).usable(strict=True)
    assert "later attach" not in note_texts(found)


def test_msi_inside_of_a_relaxable_region_stays_a_hole():
    found = load_host("arm-nxp-lx2160a-fslmc-group0").usable(aperture=48)
    assert spans(found.ranges) == [(0x0, 0x7FFFFFF), (0x8100000, LAST_48)]


def test_msi_inside_of_a_relaxable_region_is_one_hole_when_strict():
    found = load_host("arm-nxp-lx2160a-fslmc-group0").usable(aperture=40, strict=True)
    assert spans(found.ranges) == [
        (0x0, 0xFFFFFF),
        (0x11000000, 0x80BFFFFFF),
        (0x81C000000, 0x1BFFFFFFFF),
        (0x1C00200000, 0x207FFFFFFF),
        (0x20A0000000, 0xFFFFFFFFFF),
    ]


def test_direct_region_makes_its_group_unassignable():
    direct = region(0x0, 0xFFFFFF, "direct")
    found = intel(group("1", direct, msi(), devices=("0000:00:1f.0",))).usable()
    (only,) = found.unassignable
    assert (only.group.id, only.region) == ("1", direct)
    assert "0x0-0xffffff" in only.text
    assert "group 1 (0000:00:1f.0)" in only.text
    assert str(where("1")) in only.text


def test_empty_direct_region_makes_its_group_unassignable_too():
    # require_direct does not look at the length
    found = intel(
        Group("1", regions=(msi(),), empty_regions=(empty_region(0x1000, "direct"),))
    ).usable()
    assert [item.group.id for item in found.unassignable] == ["1"]


def test_empty_direct_region_in_a_paste_makes_it_unassignable_too():
    text = "0x0000000000001000 0x0000000000000fff direct\n0xfee00000 0xfeefffff msi\n"
    (pasted,) = parse_text(text, "paste")
    assert len(pasted.usable(aperture=48).unassignable) == 1


@pytest.mark.parametrize("word", ["direct-relaxable", "reserved", "msi", "new-word"])
def test_other_regions_leave_their_group_assignable(word):
    found = intel(group("1", msi(), region(0x10000, 0x1FFFF, word))).usable()
    assert found.unassignable == ()


def test_only_the_group_with_the_direct_region_is_unassignable():
    found = intel(
        group("1", msi()), group("2", region(0x0, 0xFFF, "direct", "2"), msi("2"))
    ).usable()
    assert [item.group.id for item in found.unassignable] == ["2"]


def test_direct_region_of_a_group_not_selected_is_no_matter():
    facts = intel(group("1", msi()), group("2", region(0x0, 0xFFF, "direct", "2"), msi("2")))
    found = facts.usable(groups=["1"])
    assert found.unassignable == ()
    assert found.ranges[0].start == 0x0


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        ("intel-sunrise-point-lp-group9", True),
        ("arm-hisilicon-rmr-megaraid-group0", True),
        ("arm-nxp-lx2160a-fslmc-group0", False),
        ("amd-epyc-1tb", False),
    ],
)
def test_bundled_host_is_assignable_by_its_regions(name, direct):
    assert bool(load_host(name).usable(aperture=39).unassignable) is direct


# -- what x86 fixes where no source names it -----------------------------------------------------


def test_x86_without_a_regions_file_keeps_the_interrupt_window():
    # pre-4.11 kernels report none; the hole is there
    found = intel(Group("1", regions=None)).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_48]
    assert found.edges[0].last_cause.kind is CauseKind.PLATFORM
    assert "architecture" in found.edges[0].last_cause.text


def test_x86_without_a_regions_file_warns_that_firmware_regions_are_not_known():
    # RMRRs exist there too, and nothing names them
    assert warnings_of(intel(Group("1", regions=None)).usable())


def test_amd_without_a_regions_file_keeps_the_hypertransport_range():
    unit = IommuUnit("ivhd0", features="58f77ef222942de")
    found = x86(Group("1", regions=None), units=(unit,)).usable()
    assert spans(found.ranges) == [
        BELOW_MSI,
        (0xFEF00000, 0xFCFFFFFFFF),
        (0x10000000000, LAST_48),
    ]


def test_amd_with_regions_that_leave_hypertransport_out_may_use_it():
    # 6.17: left out when the hardware can do without it
    unit = IommuUnit("ivhd0", features="58f77ef222942de")
    found = x86(group("1", msi()), units=(unit,)).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_48]


def test_intel_does_not_lose_the_hypertransport_range():
    assert spans(intel(Group("1", regions=None)).usable().ranges)[-1] == ABOVE_MSI_48


def test_arm_without_a_regions_file_is_refused():
    # nothing says where its holes are
    with pytest.raises(EvidenceError, match="reserved_regions"):
        host(Group("1", regions=None), arch="aarch64").usable(aperture=48)


def test_named_interrupt_window_is_not_added_twice():
    found = intel(group("1", msi())).usable()
    assert hole_spans(found, CauseKind.PLATFORM) == []
    assert found.regions == (msi(),)


def test_arm_software_window_is_named():
    found = host(group("1", region(SW_MSI.start, SW_MSI.last, "msi"))).usable(aperture=48)
    assert "Arm" in found.edges[0].last_cause.text


# -- RMRRs of a log ------------------------------------------------------------------------------

RMRR = ReservedRegion(
    AddrRange(0xD8D28000, 0xD8D46FFF), RegionKind.FIRMWARE, "RMRR", Source("dmesg", 10)
)


def test_rmrr_of_a_log_is_no_hole_and_is_noted():
    # USB's and graphics' are skipped, any other makes the device refuse: a hole of no device.
    found = intel(log_regions=(RMRR,)).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_48]
    assert [item.range for item in found.relaxable] == [RMRR.range]
    assert "no holes; if one is the assigned device's" in warnings_of(found)[0]


def test_rmrr_of_a_log_is_a_hole_when_strict():
    found = intel(log_regions=(RMRR,)).usable(strict=True)
    assert spans(found.ranges) == [
        (0x0, 0xD8D27FFF),
        (0xD8D47000, 0xFEDFFFFF),
        ABOVE_MSI_48,
    ]
    assert "dmesg:10" in found.edges[0].last_cause.text
    assert "RMRR" in warnings_of(found)[0]


def test_rmrr_of_a_log_gives_way_to_sysfs_which_names_groups():
    found = intel(group("1", msi()), log_regions=(RMRR,)).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_48]
    assert "1 RMRR" in note_texts(found)


def test_rmrr_of_a_log_gives_way_to_the_kernels_list():
    found = intel(
        log_regions=(RMRR,), kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48),)
    ).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_48]


def test_rmrr_of_a_log_counts_when_a_selected_group_has_no_regions_file():
    # sysfs names the holes of group 1 only
    found = intel(group("1", msi()), Group("2", regions=None), log_regions=(RMRR,)).usable()
    assert RMRR.range in [item.range for item in found.relaxable]


# == rule 5: touching ranges stay two ============================================================


def test_touching_kernel_ranges_stay_two_with_a_seam():
    found = x86(
        group("1"), kernel_ranges=(kernel_list((0x0, 0xFFFF), (0x10000, LAST_48)),)
    ).usable()
    assert spans(found.ranges) == [(0x0, 0xFFFF), (0x10000, LAST_48)]
    assert found.edges[0].last_cause.kind is CauseKind.SEAM
    assert found.edges[1].start_cause.kind is CauseKind.SEAM


def test_seams_of_several_lists_all_stay():
    found = x86(
        group("1"),
        group("2"),
        kernel_ranges=(
            kernel_list((0x0, 0xFFFF), (0x10000, LAST_48), groups=("1",)),
            kernel_list((0x0, 0x1FFFF), (0x20000, LAST_48), groups=("2",)),
        ),
    ).usable()
    assert found.ranges.seams == (0x10000, 0x20000)


@pytest.mark.parametrize("word", ["reserved", "direct", "msi"])
def test_region_of_length_0_makes_a_seam(word):
    found = intel(
        Group("1", regions=(msi(),), empty_regions=(empty_region(0x10000, word),))
    ).usable()
    assert spans(found.ranges) == [(0x0, 0xFFFF), (0x10000, 0xFEDFFFFF), ABOVE_MSI_48]


@pytest.mark.parametrize("start", [0x0, 0xFEE80000, 0xFEF00000, LAST_48 + 1, TOP])
def test_region_of_length_0_outside_or_at_an_edge_makes_no_seam(start):
    found = intel(
        Group("1", regions=(msi(),), empty_regions=(empty_region(start, "reserved"),))
    ).usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_48]


# == rule 6: the granule comes from the host =====================================================


@pytest.mark.parametrize("granule", [PAGE, PAGE_64K, 0x4000])
def test_granule_comes_from_the_kernels_list(granule):
    found = host(group("1"), kernel_ranges=(kernel_list((0x0, LAST_48), granule=granule),)).usable()
    assert (found.granule, found.granule_known) == (granule, True)
    assert "VFIO capture" in found.granule_text


def test_granule_comes_from_the_page_size():
    found = host(group("1"), page_size=PAGE_64K).usable(aperture=48)
    assert (found.granule, found.granule_known) == (PAGE_64K, True)


@pytest.mark.parametrize(
    ("page_size", "granule", "expected"),
    [(PAGE_64K, PAGE, PAGE_64K), (PAGE, PAGE_64K, PAGE_64K), (PAGE, PAGE, PAGE)],
)
def test_granule_is_the_larger_of_page_and_list(page_size, granule, expected):
    # if hardware supports less than a page, the kernel hides that
    found = host(
        group("1"),
        page_size=page_size,
        kernel_ranges=(kernel_list((0x0, LAST_48), granule=granule),),
    ).usable()
    assert found.granule == expected


@pytest.mark.parametrize(
    ("arch", "expected", "known"),
    [
        ("x86_64", PAGE, True),  # there is no other
        ("s390x", PAGE, True),
        ("aarch64", PAGE_64K, False),
        (None, PAGE_64K, False),
    ],
)
def test_granule_not_stated_is_the_safe_one_and_says_so(arch, expected, known):
    found = host(group("1"), arch=arch).usable(aperture=48)
    assert (found.granule, found.granule_known) == (expected, known)
    assert "states none" in found.granule_text


def test_granule_stated_counts_where_none_is_known():
    found = host(group("1")).usable(aperture=48, granule=PAGE)
    assert (found.granule, found.granule_known) == (PAGE, True)
    assert "stated" in found.granule_text


@pytest.mark.parametrize("granule", [PAGE, 2 * PAGE, PAGE_64K])
def test_granule_stated_that_is_known_or_larger_is_taken(granule):
    found = host(group("1"), page_size=PAGE).usable(aperture=48, granule=granule)
    assert (found.granule, found.granule_text) == (granule, "stated by the user")


def test_granule_stated_smaller_than_known_is_refused():
    with pytest.raises(RequestError, match="0x10000") as caught:
        host(group("1"), page_size=PAGE_64K).usable(aperture=48, granule=PAGE)
    assert (caught.value.field, caught.value.value) == ("granule", PAGE)


@pytest.mark.parametrize("granule", [0, -4096, 3, 0x1800, True, 1 << 64])
def test_granule_stated_that_is_no_power_of_two_is_refused(granule):
    with pytest.raises(RequestError) as caught:
        host(group("1")).usable(aperture=48, granule=granule)
    assert caught.value.field == "granule"


@pytest.mark.parametrize(
    ("granule", "expected"),
    [
        (PAGE, [(0x0, 0x100FFF), (0x103000, LAST_48)]),
        (PAGE_64K, [(0x0, 0xFFFFF), (0x110000, LAST_48)]),
        (0x800, [(0x0, 0x1017FF), (0x102800, LAST_48)]),
        (1, [(0x0, 0x101BFF), (0x102400, LAST_48)]),
    ],
)
def test_ranges_are_cut_inward_around_an_unaligned_hole(granule, expected):
    # a broken BIOS: the hole begins and ends in the middle of a page
    found = host(group("1", region(0x101C00, 0x1023FF))).usable(aperture=48, granule=granule)
    assert spans(found.ranges) == expected


def test_edges_of_a_cut_range_still_name_the_unaligned_hole():
    found = host(group("1", region(0x101C00, 0x1023FF))).usable(aperture=48, granule=PAGE_64K)
    hole = AddrRange(0x101C00, 0x1023FF)
    assert (found.edges[0].last_cause.range, found.edges[1].start_cause.range) == (hole, hole)


def test_kernel_range_off_the_granule_is_cut_inward():
    found = x86(group("1"), kernel_ranges=(kernel_list((0x1234, 0xFFFFF), granule=PAGE),)).usable()
    assert spans(found.ranges) == [(0x2000, 0xFFFFF)]


def test_kernel_range_below_a_granule_goes_with_its_cause():
    found = x86(
        group("1"),
        kernel_ranges=(kernel_list((0x0, 0xFFFF), (0x20100, 0x207FF), (0x30000, 0x3FFFF)),),
    ).usable()
    assert spans(found.ranges) == [(0x0, 0xFFFF), (0x30000, 0x3FFFF)]
    assert found.causes_of(AddrRange(0x20000, 0x20FFF))


def test_kernel_list_without_a_whole_granule_is_nothing_with_a_warning():
    found = x86(group("1"), kernel_ranges=(kernel_list((0x10, 0x20)),)).usable()
    assert spans(found.ranges) == []
    assert "nothing is usable" in " ".join(warnings_of(found))


def test_page_sizes_come_from_the_kernels_bitmap():
    found = x86(
        group("1"), kernel_ranges=(kernel_list((0x0, LAST_48), page_sizes=0x201000),)
    ).usable()
    assert found.page_sizes == 0x201000


def test_page_sizes_come_from_the_units_of_the_selection():
    units = (IommuUnit("dmar0", cap=CAP_39), IommuUnit("dmar1", cap=CAP_48))
    facts = x86(
        group("1", msi(), devices=("a",)),
        group("2", msi("2"), devices=("b",)),
        units=units,
        devices=(device("a", "1", "dmar0"), device("b", "2", "dmar1")),
    )
    assert facts.usable(groups=["1"]).page_sizes == 0x1000  # 4 KiB only
    assert facts.usable(groups=["2"]).page_sizes == 0x40201000  # and 2 MiB, 1 GiB
    assert facts.usable().page_sizes == 0x1000


def test_page_sizes_of_no_source_are_not_known():
    assert host(group("1")).usable(aperture=48).page_sizes is None


# == rule 7: both ends of the space ==============================================================


def test_address_0_is_usable():
    assert intel(group("1", msi())).usable().ranges[0].start == 0x0


def test_last_page_below_2_64_is_left_out_with_its_cause():
    found = x86(group("1"), kernel_ranges=(kernel_list((0x1000, TOP)),)).usable()
    assert spans(found.ranges) == [(0x1000, 0xFFFFFFFFFFFFEFFF)]
    cause = found.edges[-1].last_cause
    assert (cause.kind, cause.range) == (CauseKind.TOP_PAGE, TOP_PAGE)
    assert "6.18" in cause.text


def test_last_page_is_one_granule_where_that_is_larger():
    found = host(
        group("1"), kernel_ranges=(kernel_list((0x10000, TOP), granule=PAGE_64K),)
    ).usable()
    assert spans(found.ranges) == [(0x10000, 0xFFFFFFFFFFFEFFFF)]


def test_last_page_is_left_out_of_a_stated_64_bits():
    assert x86(group("1", msi())).usable(aperture=64).ranges[-1].last == 0xFFFFFFFFFFFFEFFF


def test_last_page_that_a_region_holds_is_named_by_the_region():
    found = host(group("1", region(0x1000000000000, TOP))).usable(aperture=64)
    assert found.edges[-1].last_cause.kind is CauseKind.REGION
    assert not [cause for cause in found.causes if cause.kind is CauseKind.TOP_PAGE]


# == selection ===================================================================================

TWO = intel(
    group("3", msi("3"), region(0x10000, 0x1FFFF, group="3"), devices=("0000:01:00.0",)),
    group("13", msi("13"), region(0x30000, 0x3FFFF, group="13"), devices=("0001:02:00.0", "plat")),
    group("1", msi("1")),
    devices=(
        device("0000:01:00.0", "3"),
        device("0001:02:00.0", "13"),
        device("plat", "13"),
        device("lone"),
    ),
)


@pytest.mark.parametrize(
    ("selection", "groups"),
    [
        ({}, ("3", "13", "1")),
        ({"groups": ["3"]}, ("3",)),
        ({"groups": [3]}, ("3",)),
        ({"groups": ["13", 3, "3"]}, ("3", "13")),
        ({"devices": ["0000:01:00.0"]}, ("3",)),
        ({"devices": ["01:00.0"]}, ("3",)),  # as lspci prints it
        ({"devices": ["plat"]}, ("13",)),
        ({"devices": ["0001:02:00.0", "plat"]}, ("13",)),
        ({"groups": ["1"], "devices": ["01:00.0"]}, ("3", "1")),
        ({"groups": iter(["1"])}, ("1",)),
    ],
)
def test_selection_by_group_and_device_gives_the_groups(selection, groups):
    assert TWO.usable(**selection).groups == groups


def test_selection_of_several_groups_intersects_them():
    assert spans(TWO.usable(groups=[3, 13]).ranges) == [
        (0x0, 0xFFFF),
        (0x20000, 0x2FFFF),
        (0x40000, 0xFEDFFFFF),
        ABOVE_MSI_48,
    ]


def test_selection_of_one_group_leaves_the_others_holes_alone():
    assert spans(TWO.usable(groups=[3]).ranges)[:2] == [(0x0, 0xFFFF), (0x20000, 0xFEDFFFFF)]


def test_groups_given_as_one_text_are_not_taken_letter_by_letter():
    # "13" is one group, or an error; groups 1 and 3 it is not
    assert selected_or_refused("13") in (("13",), "groups")


def selected_or_refused(groups):
    try:
        return TWO.usable(groups=groups).groups
    except RequestError as error:
        return error.field


def test_device_of_another_pci_domain_needs_its_domain():
    with pytest.raises(UnknownNameError):
        TWO.usable(devices=["02:00.0"])


@pytest.mark.parametrize(
    ("selection", "kind", "name", "known"),
    [
        ({"groups": [99]}, "group", "99", "13"),
        ({"groups": ["x"]}, "group", "x", "3"),
        ({"devices": ["0000:09:00.0"]}, "device", "0000:09:00.0", "0000:01:00.0"),
        ({"groups": [3], "devices": ["nope"]}, "device", "nope", "plat"),
    ],
)
def test_unknown_name_is_an_error_that_lists_what_there_is(selection, kind, name, known):
    with pytest.raises(UnknownNameError) as caught:
        TWO.usable(**selection)
    assert (caught.value.kind, caught.value.name, caught.value.exit_code) == (kind, name, 4)
    assert known in caught.value.known
    assert known in caught.value.hint


def test_unknown_group_on_a_host_of_many_has_a_short_hint():
    many = intel(*(group(str(n), msi(str(n))) for n in range(200)))
    with pytest.raises(UnknownNameError) as caught:
        many.usable(groups=[999])
    assert len(caught.value.hint) < 100
    assert "192 more" in caught.value.hint


def test_device_in_no_group_is_unavailable():
    with pytest.raises(HostUnavailableError, match="no IOMMU group") as caught:
        TWO.usable(devices=["lone"])
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "selection", [{"groups": []}, {"devices": []}, {"groups": [], "devices": []}]
)
def test_empty_selection_is_refused_and_not_everything(selection):
    with pytest.raises(RequestError):
        TWO.usable(**selection)


def test_host_without_anything_has_no_iommu():
    with pytest.raises(HostUnavailableError, match="no IOMMU groups") as caught:
        host(sysfs=True).usable()
    assert "intel_iommu=on" in caught.value.hint


# == groups whose file is unreadable or damaged ==================================================

BAD = {
    "unreadable": (
        Group("2", regions=None, unreadable="/sys/x: Permission denied"),
        HostUnavailableError,
        6,
    ),
    "damaged": (Group("2", regions=None, damaged="/sys/x:1: cut off"), HostDataError, 5),
}


@pytest.mark.parametrize(("bad", "error", "code"), BAD.values(), ids=BAD.keys())
def test_bad_group_that_is_selected_is_refused(bad, error, code):
    with pytest.raises(error, match="/sys/x") as caught:
        intel(group("1", msi()), bad).usable()
    assert caught.value.exit_code == code
    assert "range list" in caught.value.hint


@pytest.mark.parametrize(("bad", "error", "code"), BAD.values(), ids=BAD.keys())
def test_bad_group_that_is_not_selected_is_no_matter(bad, error, code):
    assert intel(group("1", msi()), bad).usable(groups=["1"]).ranges


@pytest.mark.parametrize("groups", [None, ("1", "2")])
@pytest.mark.parametrize(("bad", "error", "code"), BAD.values(), ids=BAD.keys())
def test_bad_group_is_judged_by_a_kernel_list_that_covers_it(bad, error, code, groups):
    facts = intel(
        group("1", msi()),
        bad,
        kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48, groups=groups),),
    )
    found = facts.usable()
    assert spans(found.ranges) == [BELOW_MSI, ABOVE_MSI_48]
    assert "/sys/x" in note_texts(found)


@pytest.mark.parametrize(("bad", "error", "code"), BAD.values(), ids=BAD.keys())
def test_bad_group_is_refused_where_the_kernel_list_is_of_another_group(bad, error, code):
    # the list of group 1 does not have the holes of group 2
    facts = intel(
        group("1", msi()),
        bad,
        kernel_ranges=(kernel_list(BELOW_MSI, ABOVE_MSI_48, groups=("1",)),),
    )
    with pytest.raises(error):
        facts.usable()


def test_arm_group_without_a_file_is_refused_where_the_kernel_list_is_of_another_group():
    facts = host(
        group("1"),
        Group("2", regions=None),
        arch="aarch64",
        windows=(DmaWindow("any", AddrRange(0x0, LAST_48), Source("VFIO")),),
        kernel_ranges=(kernel_list((0x0, LAST_48), groups=("1",)),),
    )
    with pytest.raises(EvidenceError, match="group 2"):
        facts.usable()


# == the whole ===================================================================================


def test_notes_of_the_sources_come_along():
    text = "hello\n0xfee00000 0xfeefffff msi\n"
    (pasted,) = parse_text(text, "paste")
    assert "hello" in warnings_of(pasted.usable(aperture=48))[0]


def test_limits_come_along():
    limits = Limits(65535, 8 << 20)
    assert intel(group("1", msi()), limits=limits).usable().limits == limits


def test_judgement_is_the_same_each_time():
    assert TWO.usable() == TWO.usable()


def test_bundled_s390_is_bounded_at_both_ends():
    # "64 bits" would be wrong at both ends here
    found = load_host("s390x-32g").usable(aperture=42)
    assert spans(found.ranges) == [(0x100000000, 0x8FFFFFFFF)]


def test_bundled_ivy_bridge_is_39_bits_whatever_is_stated():
    found = load_host("intel-dmar-ivy-bridge-3770").usable(aperture=48)
    assert found.ranges[-1].last == LAST_39


def test_bundled_server_is_48_bits_and_not_its_host_address_width():
    # 46 bits is the width of physical addresses
    assert load_host("intel-dmar-server-oob-pr10").usable().ranges[-1].last == LAST_48


def with_holes(count):
    holes = (region(0x100000 * n, 0x100000 * n + 0xFFFF, line=n) for n in range(1, count + 1))
    return host(group("1", *holes)).usable(aperture=48)


# 10,000 lines of a hostile text may not make `show` hang.


def test_edges_of_4_000_holes_have_their_causes():
    assert len(with_holes(4_000).edges) == 4_001


@pytest.mark.slow
def test_work_for_edges_grows_with_the_holes_and_no_faster():
    usable = {count: with_holes(count) for count in (500, 1000)}
    assert growth(lambda count: usable[count].edges, 500) < 2.2


@pytest.mark.slow
def test_causes_of_everything_over_4_000_holes_are_found():
    assert len(with_holes(4_000).causes_of(AddrRange(0, TOP))) == 4_001


def test_work_for_causes_of_everything_grows_with_the_holes_and_no_faster():
    usable = {count: with_holes(count) for count in (500, 1000)}
    assert growth(lambda count: usable[count].causes_of(AddrRange(0, TOP)), 500) < 2.2


# -- properties ----------------------------------------------------------------------------------

edges = st.integers(0, 0x1FFFF) | st.sampled_from(
    [0, 0xFFF, 0x1000, 0xFEE00000, LAST_48, LAST_48 + 1, TOP - 0x1000, TOP - 1, TOP]
)
pairs = st.tuples(edges, edges).map(lambda pair: (min(pair), max(pair)))
words = st.sampled_from(["direct", "direct-relaxable", "reserved", "msi", "new-word"])
holes = st.lists(st.tuples(pairs, words), max_size=6)
granules = st.sampled_from([1, 0x800, PAGE, PAGE_64K])
empties = st.lists(edges, max_size=2)
apertures = st.sampled_from([12, 32, 48, 64])


def disjoint(found):
    kept = []
    for start, last in sorted(found):
        if not kept or start > kept[-1][1]:
            kept.append((start, last))
    return kept


listings = st.none() | st.lists(pairs, min_size=1, max_size=4).map(disjoint)


def build(found, empty, listing):
    regions = tuple(
        region(*pair, word, line=number) for number, (pair, word) in enumerate(found, 1)
    )
    return host(
        Group(
            "1",
            devices=("d",),
            regions=regions,
            empty_regions=tuple(empty_region(start) for start in empty),
        ),
        kernel_ranges=() if listing is None else (kernel_list(*listing),),
    )


def expected_holes(found, strict):
    return RangeSet(
        AddrRange(*pair) for pair, word in found if strict or word != "direct-relaxable"
    )


@given(holes, empties, listings, apertures, granules, st.booleans())
def test_usable_ranges_never_touch_a_hole(found, empty, listing, aperture, granule, strict):
    usable = build(found, empty, listing).usable(aperture=aperture, granule=granule, strict=strict)
    assert usable.ranges.as_set().isdisjoint(expected_holes(found, strict))


@given(holes, empties, listings, apertures, granules, st.booleans())
def test_usable_ranges_are_whole_granules(found, empty, listing, aperture, granule, strict):
    usable = build(found, empty, listing).usable(aperture=aperture, granule=granule, strict=strict)
    assert usable.ranges == usable.ranges.align_inward(granule)
    assert not any(item.size % granule for item in usable.ranges)


@given(holes, apertures, granules, st.booleans())
def test_usable_ranges_are_all_that_is_left(found, aperture, granule, strict):
    usable = build(found, [], None).usable(aperture=aperture, granule=granule, strict=strict)
    left = RangeSet([AddrRange(0, (1 << aperture) - 1)]) - expected_holes(found, strict)
    top = AddrRange(TOP + 1 - max(granule, PAGE), TOP)
    kept = (left - RangeSet([top])).align_inward(granule)
    whole = left.align_inward(granule)  # a hole at the very top leaves no last page to lose
    assert usable.ranges.as_set() in (kept, whole)
    assert TOP not in usable.ranges


@given(holes, empties, listings, apertures, granules, st.booleans())
def test_usable_and_causes_cover_the_whole_space(found, empty, listing, aperture, granule, strict):
    usable = build(found, empty, listing).usable(aperture=aperture, granule=granule, strict=strict)
    assert covered(usable) == RangeSet.everything()


@given(holes, empties, listings, apertures, granules)
def test_every_edge_has_a_cause_beside_it(found, empty, listing, aperture, granule):
    usable = build(found, empty, listing).usable(aperture=aperture, granule=granule)
    assert all(
        edge.start_cause.text
        and edge.last_cause.text
        and (edge.range.start == 0 or edge.range.start - 1 in widened(edge.start_cause, granule))
        and (edge.range.last == TOP or edge.range.last + 1 in widened(edge.last_cause, granule))
        for edge in usable.edges
    )


def widened(cause, granule):
    """The span of a cause in whole granules; a seam takes nothing out, but stands beside."""
    beside = AddrRange(max(cause.range.start - 1, 0), cause.range.last)
    return beside if cause.kind is CauseKind.SEAM else cause.range.align_outward(granule)


@given(holes, empties, listings, apertures, granules, pairs)
def test_refusal_agrees_with_the_ranges(found, empty, listing, aperture, granule, wanted):
    usable = build(found, empty, listing).usable(aperture=aperture, granule=granule)
    asked = AddrRange(*wanted)
    error = usable.refusal(asked)
    assert (error is None) == (asked in usable.ranges)
    assert (usable.causes_of(asked) == ()) == (RangeSet([asked]) <= usable.ranges.as_set())
    assert (usable.room_at(asked.start) >= asked.size) == (error is None)


@examples(40)
@given(holes, apertures, granules, st.randoms(use_true_random=False))
def test_order_of_lines_does_not_change_the_ranges(found, aperture, granule, shuffler):
    text = [f"0x{pair[0]:016x} 0x{pair[1]:016x} {word}" for pair, word in found]
    text = [*text, "0x0000000000000000 0x0000000000000000 msi"]
    shuffled = text[:]
    shuffler.shuffle(shuffled)
    judged = [
        parse_text("\n".join(lines) + "\n", "p")[0].usable(aperture=aperture, granule=granule)
        for lines in (text, shuffled)
    ]
    assert judged[0].ranges == judged[1].ranges


@given(holes, holes, apertures, granules)
def test_several_groups_together_are_the_intersection(first, second, aperture, granule):
    facts = host(
        *(
            Group(
                number,
                regions=tuple(region(*pair, word, group=number) for pair, word in found),
            )
            for number, found in (("1", first), ("2", second))
        )
    )
    alone = [facts.usable(groups=[n], aperture=aperture, granule=granule).ranges for n in (1, 2)]
    together = facts.usable(aperture=aperture, granule=granule).ranges
    assert together.as_set() == alone[0].as_set() & alone[1].as_set()
