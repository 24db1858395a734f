# SPDX-License-Identifier: Apache-2.0
"""Cases from the peers' own test suites and from users' reports: hosts, plans and checks.

The kinds that are pure allocation stand in tests/allocator. The format and its conventions are at
the top of tests/data/cases.json.
"""

from __future__ import annotations

from typing import Any

import pytest

import vmm_iova as vi
from tests.kit.data import all_cases, cases
from vmm_iova.host.facts import Group, RegionKind, ReservedRegion, Source
from vmm_iova.host.host import Host
from vmm_iova.host.regions import parse_reserved_regions
from vmm_iova.host.registers import vtd_width
from vmm_iova.machines.model import Machine
from vmm_iova.machines.parts import FixedItem, Pci64Window, RamWindow
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet

ALLOCATION = {"alloc", "align", "query", "range_math", "complement", "union", "granule"}
ELSEWHERE = {"fleet"}  # tests/fleet
HERE = {
    "plan_vs_host",
    "guest_ram",
    "parse_reserved_regions",
    "vtd_cap",
    "aperture",
    "layout",
    "budget",
    "property",
    "reserved_overlay",
}
NOT_YET = {
    "dma": "needs map calls",
    "attach": "needs map calls",
    "ranges_query": "needs the ioctl",
    "rollback": "needs map calls",
    "iommufd_ops": "needs map calls",
    "register": "needs map calls",
    "parse_caps": "needs the ioctl's structures",
    "abi": "needs the ioctl's structures",
    "msi_window": "choosing the window needs a kernel that offers it",
    "translate": "needs map calls",
}


def _of(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["id"]) for case in cases(kind)]


def _int(text: str) -> int:
    return int(text, 16)


def _span(entry: dict[str, str] | list[str]) -> AddrRange:
    if isinstance(entry, dict):
        return AddrRange(_int(entry["first"]), _int(entry["last"]))
    return AddrRange(_int(entry[0]), _int(entry[1]))


def _usable(case: dict[str, Any]) -> vi.Usable:
    lines = [
        f"{item['first']} {item['last']} {item['type']}" for item in case.get("host_reserved", [])
    ]
    text = "".join(f"{line}\n" for line in lines)
    group = Group("7", regions=parse_reserved_regions(text, "case", "7").regions)
    aperture = case.get("aperture", [["0x0", f"{ADDRESS_LAST:#x}"]])
    return Host("case", groups=(group,)).usable(
        aperture=RangeSet(map(_span, aperture)),
        granule=4096,
        strict=case.get("options", {}).get("honour_relaxable", False),
    )


def test_every_case_is_run_or_has_a_reason() -> None:
    unknown = {case["kind"] for case in all_cases()} - ALLOCATION - HERE - ELSEWHERE - set(NOT_YET)
    assert unknown == set()


@pytest.mark.parametrize("case", _of("plan_vs_host"))
def test_plan_of_a_peer_against_a_host_gives_the_right_verdict(case: dict[str, Any]) -> None:
    usable, expect = _usable(case), case["expect"]
    verdicts = [vi.check(usable, _span(chunk)) for chunk in case["plan"]]
    if expect.get("ok"):
        assert [item.kind for item in verdicts] == ["ok"] * len(verdicts)
        warnings = [text for item in verdicts for text in item.warnings]
        for wanted in expect.get("warnings", []):
            assert any(wanted in text for text in warnings)
        assert bool(warnings) == bool(expect.get("warnings"))
        return
    refused = next(item for item in verdicts if not item.ok)
    assert refused.kind == expect["error"]
    if "chunk" in expect:
        assert refused.range == _span(expect["chunk"])
    if "region" in expect:
        assert refused.causes[0].range == _span(expect["region"])
        assert "group 7" in refused.causes[0].text
    if "usable_prefix_last" in expect:
        assert refused.range.start + refused.room - 1 == _int(expect["usable_prefix_last"])
    if "largest_fit_at_this_base" in expect:
        assert refused.room == _int(expect["largest_fit_at_this_base"])
    if "limit" in expect:
        assert refused.limit == _int(expect["limit"])
    if "bits_needed" in expect:
        assert refused.bits_needed == expect["bits_needed"]
    assert refused.fixes


def _machine(case: dict[str, Any]) -> Machine:
    if "gaps" in case:
        gaps = RangeSet(map(_span, case["gaps"]))
        room = gaps.complement(AddrRange(_int(case["ram_first"]), ADDRESS_LAST))
        windows = tuple(RamWindow(f"window {n}", item) for n, item in enumerate(room))
    else:
        low = AddrRange(0, _int(case["low_ram_last"]))
        high = AddrRange(1 << 32, ADDRESS_LAST)
        windows = (
            RamWindow("low", low),
            RamWindow("high", high, move_to=1 << 40, movable=True),
        )
    size = _int(case["pci_window64"]) if "pci_window64" in case else 0
    pci64 = Pci64Window(size, 1 << 30, 1 << 32) if size else None
    return Machine("case", "case", case["arch"], windows, pci64=pci64)


def _ram(case: dict[str, Any], policy: str) -> list[AddrRange]:
    on_hole = {"move_all": "move", "split": "split", "refuse": "refuse"}[policy]
    guest = vi.Guest(_machine(case), _int(case["request"]))
    layout = vi.plan(guest, _usable(case), on_hole)  # type: ignore[arg-type]
    return [item.gpa for item in layout.ram if item.gpa is not None]


@pytest.mark.parametrize("case", _of("guest_ram"))
def test_guest_ram_goes_where_the_peer_puts_it(case: dict[str, Any]) -> None:
    expect = case["expect"]
    if isinstance(expect, list):
        assert _ram(case, "refuse") == [_span(item) for item in expect]
        return
    wanted = [_span(item) for item in expect["ranges"]]
    assert _ram(case, expect.get("policy", "refuse")) == wanted
    other = expect.get("alternative")
    if other:
        assert _ram(case, other["policy"]) == [_span(item) for item in other["ranges"]]


@pytest.mark.parametrize("case", _of("parse_reserved_regions"))
def test_reserved_regions_text_is_read_as_it_should(case: dict[str, Any]) -> None:
    expect = case["expect"]
    found = parse_reserved_regions(case["text"], "case")
    records = expect["records"] if isinstance(expect, dict) else expect
    assert [(item.range, item.word) for item in found.regions] == [
        (_span(item), item["type"]) for item in records
    ]
    if isinstance(expect, dict):
        assert list(found.rejected) == expect.get("rejected_lines", [])
        if "holes_at_4k" in expect:
            holes = RangeSet(item.range for item in found.regions).align_outward(4096)
            assert list(holes) == [_span(item) for item in expect["holes_at_4k"]]


@pytest.mark.parametrize("case", _of("vtd_cap"))
def test_vtd_capability_register_is_decoded(case: dict[str, Any]) -> None:
    for vector in case["vectors"]:
        width, expect = vtd_width(_int(vector["cap"])), vector["expect"]
        assert width.mgaw_bits == expect["mgaw_bits"]
        assert list(width.table_bits) == expect["table_bits"]
        assert width.usable_bits == expect["usable_bits"]


@pytest.mark.parametrize("case", _of("aperture"))
def test_peers_fallback_aperture_is_refused_unless_the_user_states_it(case: dict[str, Any]) -> None:
    # These peers take a missing range list for an aperture. That guess is what we never make; who
    # knows better can state it.
    host = Host("case", groups=(Group("7", regions=()),))
    with pytest.raises(vi.errors.EvidenceError):
        host.usable()
    stated = RangeSet(map(_span, case["expect"]))
    top = RangeSet([AddrRange(ADDRESS_LAST - 4095, ADDRESS_LAST)])
    assert host.usable(aperture=stated, granule=4096).ranges.as_set() == stated - top


# -- openvmm's layout builder ----------------------------------------------------------------------

# Its RAM may be anywhere, its 64-bit BARs from 4 GiB or the top of RAM, whichever is higher.
_BUILDER = Machine(
    "builder",
    "builder",
    "x86_64",
    (RamWindow("ram", AddrRange(0, ADDRESS_LAST)),),
    fixed=(),
    pci64=Pci64Window(1 << 20, 1 << 20, 1 << 32),
    options=(("pci64_start", "builder: {start}"),),
)
# Its worker leaves a gap below 4 GiB, so that 4 GiB of RAM end above 32 bits.
_WORKER = Machine(
    "worker",
    "worker",
    "x86_64",
    (
        RamWindow("low", AddrRange(0, 0xF7FF_FFFF)),
        RamWindow("high", AddrRange(1 << 32, ADDRESS_LAST)),
    ),
)


def _built(case: dict[str, Any]) -> vi.Layout:
    """Read a case as a user would: RAM requests are nodes, mmio is a BAR, post-MMIO is a room."""
    asked = case["requests"]
    of = {
        kind: [item for item in asked if item["kind"] == kind]
        for kind in ("ram", "mmio32", "mmio64", "post_mmio")
    }
    assert sum(map(len, of.values())) == len(asked)
    bars = [
        vi.Bar(item["tag"], _int(item["size"]), bits, align=_int(item["align"]))
        for kind, bits in (("mmio32", 32), ("mmio64", 64))
        for item in of[kind]
    ]
    wide = case.get("address_bits")
    aligns = [_int(item["align"]) for item in of["ram"]]
    guest = vi.Guest(
        _WORKER if wide else _BUILDER,
        None if of["ram"] else "4K",
        pci64=None if of["mmio64"] or wide else 0,
        nodes=[
            # What is aligned to more than a page is backed by pages of that size.
            vi.Node(_int(item["size"]), align if align > 4096 else None, item["tag"])
            for item, align in zip(of["ram"], aligns, strict=True)
        ],
        bars=bars,
        rooms=[
            vi.Room(item["tag"], _int(item["size"]), _int(item["align"]))
            for item in of["post_mmio"]
        ],
        reserved=[FixedItem(item["tag"], "reserved", _span(item)) for item in case["fixed"]],
        phys_bits=wide,
    )
    usable = Host("case", groups=(Group("7", regions=()),)).usable(aperture=48, granule=4096)
    return vi.plan(guest, usable)


@pytest.mark.parametrize("case", _of("layout"))
def test_layout_of_a_peer_comes_out_of_one_plan(case: dict[str, Any]) -> None:
    expect = case["expect"]
    if "error" in expect:
        kind = vi.PlanError if expect["error"] == "address_width" else vi.RequestError
        with pytest.raises(kind) as caught:
            _built(case)
        text = str(caught.value)
        said = {"invalid_size": "size", "invalid_alignment": "alignment", "overlap": "overlap"}
        assert said.get(expect["error"], "address bits") in text
        assert all(f"'{tag}'" in text for tag in expect.get("blames", ()))
        if expect["error"] == "address_width":
            assert "does not fit" in text  # that the layout ends too high
            assert "--phys-bits 33" in text
        return
    items = _built(case).items
    for tag, places in expect["placed"].items():
        found = [item.place for item in items if tag in (item.node, item.name)]
        assert found == [_span(place) for place in places]


# -- budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", _of("budget"))
def test_budget_of_a_peer_is_counted(case: dict[str, Any]) -> None:
    expect = case["expect"]
    usable = Host("case", groups=(Group("7", regions=()),)).usable(aperture=48, granule=4096)
    guest = vi.Guest(
        "q35",
        _int(case["ram"]),
        viommu=case.get("viommu", False),
        devices=case.get("devices", 1),
    )
    layout = vi.plan(guest, usable)
    cost = vi.budget(layout, chunk=_chunk(case), entry_limit=case.get("limit"))
    if "needed_at_least" in expect:
        assert case["container_per_device"]
        assert cost.containers == case["devices"]
        assert cost.locked_bytes >= _int(expect["needed_at_least"])
        return
    assert cost.entries == expect["entries"]
    assert cost.entry_limit == expect["limit"]
    assert cost.fits == expect["fits"]
    assert cost.slot_limit == expect.get("memslot_limit", cost.slot_limit)
    setting = f"dma_entry_limit={expect['entries']} "
    assert any(text.startswith(setting) for text in cost.settings) == (not expect["fits"])


def _chunk(case: dict[str, Any]) -> int | None:
    return _int(case["mapping_size"]) if "mapping_size" in case else None


# -- properties ------------------------------------------------------------------------------------

PROPERTIES = {
    "iommufd-auto-iova-alignment": "test_iova_of_a_length_is_aligned_to_its_lowest_bit, here",
    "iommufd-auto-iova-avoids-reserved": "test_ten_buffers_avoid_a_reserved_region, here",
    "fc-props-arm": "test_firecracker_arm_keeps_its_own_proofs, tests/planning/test_properties.py",
    "large-page-congruence": "test_offset_of_a_page_leaves_no_large_leaf, here",
}


def test_every_property_is_a_test() -> None:
    assert {case["id"] for case in cases("property")} == set(PROPERTIES)


@pytest.mark.parametrize("pages", range(1, 11))
def test_iova_of_a_length_is_aligned_to_its_lowest_bit(
    make: type[vi.IovaAllocator], pages: int
) -> None:
    # iommufd aligns what it chooses to the lowest set bit of the length; ours does when asked to.
    usable = Host("case", groups=(Group("7", regions=()),)).usable(aperture=40, granule=4096)
    allocator, size = make(usable), pages * 4096
    lowest = size & -size
    assert [allocator.allocate(size, align=lowest) % lowest for _ in range(5)] == [0] * 5


def test_ten_buffers_avoid_a_reserved_region(make: type[vi.IovaAllocator]) -> None:
    (case,) = [case for case in all_cases() if case["id"] == "iommufd-auto-iova-avoids-reserved"]
    hole = _span(case["reserved"][0])
    region = ReservedRegion(hole, RegionKind.RESERVED, "reserved", Source("case"), "7")
    host = Host("case", groups=(Group("7", regions=(region,)),))
    allocator = make(host.usable(aperture=40, granule=4096))
    for pages in range(1, 11):
        start = allocator.allocate(pages * 4096)
        assert not hole.overlaps(AddrRange.from_size(start, pages * 4096))


def test_offset_of_a_page_leaves_no_large_leaf() -> None:
    # Congruent backing gives 1 GiB leaves; a piece that begins a page later has 4 KiB leaves up to
    # the next multiple and before the last one.
    from vmm_iova.planning.page_tables import ALL_LEAVES, page_tables

    flush = page_tables([AddrRange.from_size(4 << 30, 2 << 30)], ALL_LEAVES)
    shifted = page_tables([AddrRange.from_size((4 << 30) + 4096, 2 << 30)], ALL_LEAVES)
    assert dict(flush.leaves) == {1 << 30: 2, 1 << 21: 0, 1 << 12: 0}
    assert dict(shifted.leaves) == {1 << 30: 1, 1 << 21: 511, 1 << 12: 512}


# -- overlays --------------------------------------------------------------------------------------

# QEMU's list of reserved regions of a virtio-iommu: what is inserted later wins. The judge has the
# same need the other way round: of several causes the first, the more telling one, wins.


@pytest.mark.parametrize("case", _of("reserved_overlay"))
def test_overlay_of_typed_regions_cuts_as_qemu_does(case: dict[str, Any]) -> None:
    from vmm_iova.host.usable import cut_holes

    inserted: list[vi.Cause] = []
    for op in case["ops"]:
        assert op["op"] == "insert"
        inserted.insert(0, vi.Cause(vi.CauseKind.REGION, _span(op), op["type"]))
        parts: list[tuple[AddrRange, vi.Cause]] = []
        for span, cause in cut_holes(inserted).items():
            below = parts[-1] if parts else None
            if below and below[1] is cause and below[0].last + 1 == span.start:
                parts[-1] = (AddrRange(below[0].start, span.last), cause)
            else:
                parts.append((span, cause))
        wanted = [(_span(item), item["type"]) for item in op["expect_list"]]
        assert [(span, cause.text) for span, cause in parts] == wanted
