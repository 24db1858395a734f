# SPDX-License-Identifier: Apache-2.0
"""Usable ranges at their edges, joined with others, and the words of what was found for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.kit.hosts import (
    CAP_39,
    CAP_48,
    HT,
    MSI,
    PAGE,
    SW_MSI,
    TOP,
    Source,
    device,
    group,
    host,
    intel,
    kernel_list,
    msi,
    note_texts,
    region,
    spans,
    warnings_of,
    x86,
)
from vmm_iova.errors import ApertureError, EvidenceError, RequestError, ReservedError, StraddleError
from vmm_iova.host.evidence import architecture, is_x86, stated_evidence
from vmm_iova.host.facts import DmaWindow, Group, IommuUnit, StatedWidth
from vmm_iova.host.usable import Cause, CauseKind, Usable, cut_holes
from vmm_iova.ranges import AddrRange


def listed(*pairs: tuple[int, int], granule: int = PAGE, **fields: Any) -> Usable:
    """What is usable where the kernel lists these ranges."""
    return host(kernel_ranges=(kernel_list(*pairs),), **fields).usable(granule=granule)


BYTES = [(1, 1), (4, 9), (10, 12), (20, TOP - PAGE)]


# -- edges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "kind", "span"),
    [
        (1, CauseKind.APERTURE, (0, 0)),
        (4, CauseKind.KERNEL_GAP, (2, 3)),
        (10, CauseKind.SEAM, (10, 10)),
        (20, CauseKind.KERNEL_GAP, (13, 19)),
    ],
)
def test_lower_edge_has_the_cause_of_the_address_below(
    start: int, kind: CauseKind, span: tuple[int, int]
) -> None:
    usable = listed(*BYTES, granule=1)
    cause = usable.edge_below(start)
    assert (cause.kind, cause.range) == (kind, AddrRange(*span))
    assert {item.range.start: item.start_cause for item in usable.edges}[start] == cause


@pytest.mark.parametrize(
    ("last", "kind", "span"),
    [
        (1, CauseKind.KERNEL_GAP, (2, 3)),
        (9, CauseKind.SEAM, (10, 10)),
        (12, CauseKind.KERNEL_GAP, (13, 19)),
        (TOP - PAGE, CauseKind.TOP_PAGE, (TOP - PAGE + 1, TOP)),
    ],
)
def test_upper_edge_has_the_cause_of_the_address_above(
    last: int, kind: CauseKind, span: tuple[int, int]
) -> None:
    cause = listed((1, 1), (4, 9), (10, 12), (20, TOP), granule=1).edge_above(last)
    assert (cause.kind, cause.range) == (kind, AddrRange(*span))


def test_space_ends_at_both_ends() -> None:
    usable = listed((0, 1 << 40))
    below, above = usable.edge_below(0), usable.edge_above(TOP)
    assert (below.kind, below.range) == (CauseKind.SPACE, AddrRange(0, 0))
    assert (above.kind, above.range) == (CauseKind.SPACE, AddrRange(TOP, TOP))
    assert (below.text, above.text) == ("bottom of the 64-bit space", "top of the 64-bit space")


@pytest.mark.parametrize(
    ("start", "last", "kind", "told"),
    [
        (4, 9, None, None),
        (4, 10, StraddleError, 10),
        (9, 12, StraddleError, 10),
        (10, 12, None, None),
        (0, 0, ApertureError, None),
        (0, 1, ApertureError, None),
        (1, 2, ReservedError, AddrRange(2, 3)),
        (3, 4, ReservedError, AddrRange(2, 3)),
        (12, 20, ReservedError, AddrRange(13, 19)),
        (1, 20, ReservedError, AddrRange(2, 3)),
        (30, 31, ApertureError, 29),
    ],
)
def test_refusal_is_of_the_first_that_is_in_the_way(
    start: int, last: int, kind: type[Exception] | None, told: object
) -> None:
    usable = listed((1, 1), (4, 9), (10, 12), (20, 29), granule=1)
    found = usable.refusal(AddrRange(start, last))
    assert type(found) is (type(None) if kind is None else kind)
    if found is not None:
        names = ("seam", "region", "limit")
        assert next((getattr(found, n) for n in names if hasattr(found, n)), None) == told
        room = usable.room_at(start)
        if room and kind is not StraddleError:
            assert found.detail == f"at {start:#x} at most {room:#x} bytes fit"
        elif told == 29:
            assert found.detail == "the last usable address below is 0x1d"


@pytest.mark.parametrize(
    ("at", "room"), [(0, 0), (1, 1), (3, 0), (4, 6), (9, 1), (10, 3), (13, 0), (TOP, 0)]
)
def test_room_at_an_address_ends_where_its_range_does(at: int, room: int) -> None:
    assert listed(*BYTES, granule=1).room_at(at) == room


@pytest.mark.parametrize(
    ("window", "causes"),
    [
        ((4, 12), []),
        ((2, 3), [(2, 3)]),
        ((3, 4), [(2, 3)]),
        ((1, 2), [(2, 3)]),
        ((12, 13), [(13, 19)]),
        ((19, 20), [(13, 19)]),
        ((0, 20), [(0, 0), (2, 3), (13, 19)]),
    ],
)
def test_causes_of_a_window_are_those_of_what_it_lacks(
    window: tuple[int, int], causes: list[tuple[int, int]]
) -> None:
    found = listed(*BYTES, granule=1).causes_of(AddrRange(*window))
    assert [(cause.range.start, cause.range.last) for cause in found] == causes


SMALL = [(0, 0), (0, 2), (2, 3), (3, 5), (1, 4), (5, 5)]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_holes_are_cut_so_that_each_byte_has_the_first_cause_that_covers_it(count: int) -> None:
    from itertools import permutations

    for chosen in permutations(SMALL, count):
        causes = [
            Cause(CauseKind.REGION, AddrRange(*span), str(n)) for n, span in enumerate(chosen)
        ]
        parts = cut_holes(causes)
        for byte in range(7):
            first = next((cause for cause in causes if byte in cause.range), None)
            assert [cause for part, cause in parts.items() if byte in part] == (
                [] if first is None else [first]
            )
        assert list(parts) == sorted(parts)


def test_what_a_kernel_lists_has_what_is_left_out_by_choice() -> None:
    usable = listed((0, 0xFFF), (0x1000, 0x2800), (0x8000, TOP))
    assert spans(usable.ranges) == [(0, 0xFFF), (0x1000, 0x1FFF), (0x8000, TOP - PAGE)]
    assert spans(usable.as_listed()) == [(0, 0xFFF), (0x1000, 0x2800), (0x8000, TOP)]


# -- two selections --------------------------------------------------------------------------------


def test_joined_ranges_are_those_that_both_have() -> None:
    ours = listed((0, 0x3FFF), (0x8000, 0xFFFF))
    theirs = replace(listed((0x2000, 0x9FFF)), groups=("7",), host="other")
    both = ours.joined(theirs)
    assert spans(both.ranges) == [(0x2000, 0x3FFF), (0x8000, 0x9FFF)]
    assert both.later == ("7",)
    assert ours.joined(replace(theirs, groups=())).later == ()
    assert replace(ours, groups=("7",)).joined(theirs).later == ()
    own = {cause.text for cause in ours.causes}
    assert own <= {cause.text for cause in both.causes}
    added = [cause.text for cause in both.causes if cause.text not in own]
    assert added
    assert all(text.endswith("(to also fit 7)") for text in added)
    nameless = ours.joined(replace(theirs, groups=()))
    assert any(cause.text.endswith("(to also fit other)") for cause in nameless.causes)
    assert [c.text for c in ours.joined(ours).causes] == [c.text for c in ours.causes]


@pytest.mark.parametrize(
    ("ours", "theirs", "both"),
    [
        ((0x1000, True, None), (0x1000, True, None), (0x1000, "a", True, None)),
        ((0x1000, True, 0x1000), (0x2000, True, None), (0x2000, "b", True, 0x1000)),
        ((0x2000, True, None), (0x1000, False, 0x1000), (0x2000, "a", False, 0x1000)),
        ((0x1000, False, 0x3000), (0x1000, True, 0x1000), (0x1000, "a", False, 0x1000)),
        ((0x1000, False, 0x1000), (0x1000, False, 0x3000), (0x1000, "a", False, 0x1000)),
    ],
)
def test_joined_granule_is_the_coarser_and_known_if_both_are(
    ours: Any, theirs: Any, both: Any
) -> None:
    names = ("granule", "granule_known", "page_sizes")
    a, b = (
        replace(listed((0, 0xFFFF)), granule_text=text, **dict(zip(names, values, strict=True)))
        for text, values in (("a", ours), ("b", theirs))
    )
    found = a.joined(b)
    assert (found.granule, found.granule_text, found.granule_known, found.page_sizes) == both


def test_seam_of_one_selection_inside_a_granule_of_the_other_costs_that_granule() -> None:
    fine = listed((0, 0x17FF), (0x1800, 0xFFFF), granule=0x800)
    coarse = listed((0, 0xFFFF), granule=0x1000)
    both = fine.joined(coarse)
    assert spans(both.ranges) == [(0, 0xFFF), (0x2000, 0xFFFF)]
    (cause,) = both.causes_of(AddrRange(0x1000, 0x1FFF))
    assert cause.text.startswith("granules of 0x1000 bytes that a seam cuts: two ranges of a list")
    whole = listed((0, 0xFFF), (0x1000, 0xFFFF)).joined(coarse)
    assert spans(whole.ranges) == [(0, 0xFFF), (0x1000, 0xFFFF)]


# -- what is stated, and what is found -------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "last"),
    [
        (1, 1),
        (64, TOP),
        ("1", 1),
        ("064", TOP),
        ("48 bits", (1 << 48) - 1),
        ("48-bit", (1 << 48) - 1),
    ],
)
def test_stated_width_is_from_1_to_64_bits(stated: Any, last: int) -> None:
    assert spans(stated_evidence(stated).ranges) == [(0, last)]


@pytest.mark.parametrize("stated", [0, 65, -1, True, 1.0, "0", "65", "0048", None])
def test_width_beyond_its_limits_is_refused(stated: Any) -> None:
    with pytest.raises(RequestError):
        stated_evidence(stated)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6])
def test_ranges_are_shown_up_to_four(count: int) -> None:
    pairs = [(0x10000 * n, 0x10000 * n + 0xFFF) for n in range(count)]
    shown = ", ".join(f"{a:#x}-{b:#x}" for a, b in pairs[:4]) + (", ..." if count > 4 else "")
    stated = stated_evidence(kernel_list(*pairs).ranges)
    assert stated.text == f"stated: {shown or 'nothing'}"
    if count:
        (found,) = listed(*pairs).evidence
        assert found.text == f"kernel range list (type1), VFIO capture: {shown}"


@pytest.mark.parametrize(
    ("groups", "of", "names"),
    [((), None, [None]), ((), ("1",), [None]), (("1",), None, [None]), (("1",), ("1",), ["1"])],
)
def test_list_is_of_the_group_that_the_kernel_was_asked_about(
    groups: tuple[str, ...], of: tuple[str, ...] | None, names: list[str | None]
) -> None:
    facts = x86(
        *(group(name, msi(name)) for name in groups),
        kernel_ranges=(kernel_list((0, 0xFFFF_FFFF), groups=of),),
    )
    assert [item.group for item in facts.usable().evidence] == names


@pytest.mark.parametrize(
    ("devices", "counts"), [((), True), (("0001:00:00.0",), True), (("0002:00:00.0",), False)]
)
def test_zpci_window_is_of_the_group_of_its_device(devices: tuple[str, ...], counts: bool) -> None:
    window = DmaWindow("0001:00:00.0", AddrRange(1 << 32, (1 << 33) - 1), Source("zpci"))
    facts = host(group("1", region(0, 0xFFF), devices=devices), arch="s390x", windows=(window,))
    kinds = [item.kind.value for item in facts.usable(aperture=40).evidence]
    assert ("zPCI base capability" in kinds) is counts


MSI_GROUP = group("1", msi())
BELOW = (0, MSI.start - 1)


@pytest.mark.parametrize(
    ("facts", "known", "arch"),
    [
        (host(arch="x86_64"), True, "x86_64"),
        (host(arch="i686"), True, "i686"),
        (host(arch="aarch64"), False, "aarch64"),
        (host(), False, None),
        (host(log_regions=(region(0, 1),)), True, "x86_64"),
        (host(units=(IommuUnit("dmar0", cap=CAP_48),)), True, "x86_64"),
        (host(MSI_GROUP), True, "x86_64"),
        (host(group("1", region(MSI.start, MSI.last))), False, None),
        (host(group("1", region(MSI.start, MSI.last + 1, "msi"))), False, None),
        (host(kernel_ranges=(kernel_list(BELOW, (MSI.last + 1, TOP)),)), True, "x86_64"),
        (host(kernel_ranges=(kernel_list((0, MSI.start - 2), (MSI.last + 1, TOP)),)), False, None),
        (host(kernel_ranges=(kernel_list((0, MSI.last), (MSI.last + 1, TOP)),)), False, None),
        (host(kernel_ranges=(kernel_list((0, 0xFFFF)),)), False, None),
        (host(group("1", region(SW_MSI.start, SW_MSI.last, "msi"))), False, "aarch64"),
    ],
)
def test_architecture_is_what_only_it_has(facts: Any, known: bool, arch: str | None) -> None:
    assert is_x86(facts) is known
    assert architecture(facts, facts.groups) == arch


MASK = "dma_mask_bits in sysfs"


def test_unit_that_publishes_nothing_has_no_width() -> None:
    units = (IommuUnit("ivhd0"), IommuUnit("dmar0"))
    facts = x86(group("1", msi()), units=units)
    found = facts.usable(aperture=40)
    assert [(item.what, item.bits) for item in found.widths] == [("aperture as stated", 40)]
    with pytest.raises(EvidenceError) as caught:
        facts.usable()
    said = {"ivhd0: publishes no width", "dmar0: publishes no width"}
    assert said <= set(caught.value.looked_at)
    pair = tuple(IommuUnit(f"dmar{n}", cap=CAP_48) for n in range(2))
    widths = x86(group("1", msi()), units=pair).usable().widths
    assert [item.what for item in widths] == [
        "MGAW of dmar0 and 1 alike",
        "deepest page table of dmar0 and 1 alike",
    ]


def test_widths_are_listed_with_how_many_are_alike() -> None:
    units = tuple(
        IommuUnit(
            f"dmar{n}", cap=CAP_39 if n == 3 else CAP_48, ecap=0xF020DE, source=Source(f"u{n}")
        )
        for n in range(4)
    )
    names = [f"0000:00:0{n}.0" for n in range(4)]
    bits = [64, 32, 32, None]
    facts = replace(
        x86(group("1", msi(), devices=tuple(names[:3])), units=units),
        devices=tuple(
            replace(device(n, "1"), dma_mask_bits=b) for n, b in zip(names, bits, strict=True)
        ),
        cpu_bits=46,
        cpu_source="cpuinfo",
        widths=(StatedWidth(44, Source("log")),),
    )
    widths = [(item.what, item.bits, item.source, item.counts) for item in facts.usable().widths]
    assert widths == [
        ("MGAW of dmar0 and 2 alike", 48, "u0", True),
        ("deepest page table of dmar0 and 2 alike", 48, "u0", True),
        ("MGAW of dmar3", 39, "u3", True),
        ("deepest page table of dmar3", 39, "u3", True),
        ("IOMMU as the kernel printed it", 44, "log", True),
        ("CPU, physical", 46, "cpuinfo", True),
        ("DMA mask of the host's driver, 0000:00:01.0 and 1 more", 32, MASK, False),
        ("DMA mask of the host's driver, 0000:00:00.0", 64, MASK, False),
    ]  # fmt: skip


# -- the words of holes ----------------------------------------------------------------------------

FAR = (0x10_0000, 0x1F_FFFF)


@pytest.mark.parametrize(
    ("count", "owners", "more"),
    [
        (1, " of group 1, ", ""),
        (2, " of groups 1, 2, ", " and 1 more"),
        (8, " of groups 1, 2, 3, 4, 5, 6, 7, 8, ", " and 7 more"),
        (9, " of groups 1, 2, 3, 4, 5, 6, 7, 8 and 1 more, ", " and 8 more"),
        (10, " of groups 1, 2, 3, 4, 5, 6, 7, 8 and 2 more, ", " and 9 more"),
    ],
)
def test_region_of_several_groups_names_up_to_eight(count: int, owners: str, more: str) -> None:
    names = [str(n) for n in range(1, count + 1)]
    facts = intel(*(group(name, region(*FAR, group=name), msi(name)) for name in names))
    (cause,) = facts.usable().causes_of(AddrRange(*FAR))
    where = "/sys/kernel/iommu_groups/1/reserved_regions:1"
    assert cause.text == f"reserved region 0x100000-0x1fffff{owners}{where}{more}"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_rmrrs_of_a_log_are_named_up_to_three(count: int) -> None:
    log = tuple(region(FAR[0] * (n + 1), FAR[0] * (n + 1) + 0xFFF, "rmrr") for n in range(count))
    loose = intel(log_regions=log).usable()
    shown = ", ".join(str(item.range) for item in log[:3]) + (", ..." if count > 3 else "")
    assert f"whose devices it does not name ({shown}): no holes" in note_texts(loose)
    strict = intel(log_regions=log).usable(strict=True)
    assert f"({shown}): taken as holes (strict)" in note_texts(strict)
    known = intel(group("1", msi()), log_regions=log).usable()
    assert f"{count} RMRR lines of the log were not used: sysfs, which names" in note_texts(known)
    assert not any("RMRR" in text for text in warnings_of(known))
    lists = (kernel_list((0, 0xFFFF_FFFF)),)
    better = intel(Group("1"), log_regions=log, kernel_ranges=lists).usable()
    assert "not used: the kernel's range list is better" in note_texts(better)


def test_hyper_transport_is_kept_where_no_region_of_amds_host_is_known() -> None:
    unit = IommuUnit("ivhd0", features="0x206d73ef22254ade", source=Source("ivhd0"))
    bare = x86(units=(unit,)).usable(aperture=48)
    assert HT in [cause.range for cause in bare.causes]
    assert MSI in [cause.range for cause in bare.causes]
    named = x86(group("1", msi()), units=(unit,)).usable(aperture=48)
    assert HT not in [cause.range for cause in named.causes]
    assert [c.range for c in named.causes].count(MSI) == 1
    assert HT not in [cause.range for cause in intel().usable().causes]


@pytest.mark.parametrize(
    ("gap", "regions", "said"),
    [
        (FAR, [], False),  # nothing is named at all, so nothing disagrees
        (FAR, [FAR], False),
        (FAR, [(FAR[0], FAR[1] + 0x1000)], True),  # the region reaches further than the gap
        (FAR, [(FAR[0] + 0x1000, FAR[1])], True),  # the gap reaches further than the region
        (FAR, [(FAR[0], FAR[0] + 0xFFF), (FAR[0] + 0x1000, FAR[1])], False),
    ],
)
def test_list_and_regions_that_disagree_are_said(
    gap: tuple[int, int], regions: list[tuple[int, int]], said: bool
) -> None:
    facts = host(
        group("1", *(region(*span) for span in regions)),
        kernel_ranges=(kernel_list((0, gap[0] - 1), (gap[1] + 1, 0xFFFF_FFFF)),),
    )
    text = note_texts(facts.usable(granule=PAGE))
    assert ("leaves out" in text or "leaves it usable" in text) is said
