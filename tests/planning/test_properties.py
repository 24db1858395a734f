# SPDX-License-Identifier: Apache-2.0
"""What holds for every plan: all machines on all bundled hosts, and small spaces searched whole.

In the spirit of Firecracker's proofs of its memory regions: pieces never overlap, lie in usable
ranges, sum to the RAM that was asked for, respect the alignment and are in order; and no plan is
refused that a slow search of every place can find.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, pairwise, product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import vmm_iova as vi
from tests.kit.examples import examples
from vmm_iova.host.facts import Group, RegionKind, ReservedRegion, Source
from vmm_iova.host.host import Host
from vmm_iova.machines.model import Machine
from vmm_iova.machines.parts import Pci64Window, RamWindow
from vmm_iova.planning.bars import Packing, WantedBar
from vmm_iova.planning.page_tables import cost_of
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, RangeSet

GIB, TIB = 1 << 30, 1 << 40
SEVERAL = ("intel-dmar-collected-client-39bit", "intel-dmar-collected-server-46bit")
BARS = (vi.Bar("gpu", 16 * GIB, required=True), vi.Bar("nic", "32M"), vi.Bar("old", "1M", bits=32))


EVERY = "VMM_IOVA_STEPS" in os.environ  # `make long`
GUESTS = [
    # Node 0 is backed by the pages named, node 1 by small ones; BARs with each alignment.
    (ram, align, pages, policy)
    for policy, pages, align, ram in product(
        ("refuse", "split", "move", "fewest"),
        (None, "2MiB", "1GiB"),
        (None, "2MiB", "1GiB"),
        (24 * GIB, 2 * GIB, 3 * TIB // 2),
    )
    if not (policy == "fewest" and align is not None)
]


@lru_cache
def _usable(name: str) -> vi.Usable:
    return vi.load_host(f"{name}#1" if name in SEVERAL else name).usable(aperture=42)


def _everywhere() -> list[object]:
    """Each machine on each host; one host for each machine is enough for a first look."""
    hosts = vi.bundled_hosts()
    return [
        pytest.param(
            name, host, marks=() if host == hosts[2 * n % len(hosts)] else pytest.mark.slow
        )
        for n, name in enumerate(vi.machine_names())
        for host in hosts
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "host"), _everywhere())
def test_every_plan_of_every_machine_on_every_host_is_sound(name: str, host: str) -> None:
    machine, usable = vi.load_machine(name), _usable(host)
    made, explained = 0, list[bool]()
    # Each machine has a sixth of the guests on each host, every guest on a sixth of the hosts.
    part = (vi.machine_names().index(name) + vi.bundled_hosts().index(host)) % 6
    own = {guest for at, guest in enumerate(GUESTS) if EVERY or (at + at // 6) % 6 == part}
    own.add((2 * GIB, None, None, "fewest"))  # which each host takes that takes any
    for ram, align, pages, policy in sorted(own, key=GUESTS.index):
        on_hole, prefer = ("split", policy) if policy == "fewest" else (policy, "lowest")
        nodes = [vi.Node(ram // 2, pages), vi.Node(ram // 2)]
        bars = BARS if machine.identity and policy != "fewest" else ()
        guest = vi.Guest(machine, nodes=nodes, align=align, bars=bars, phys_bits=46)
        try:
            layout = vi.plan(guest, usable, on_hole, prefer=prefer)  # type: ignore[arg-type]
        except vi.PlanError as error:
            explained.append(bool(error.reasons and error.fixes))
            continue
        made += 1
        _check(layout, guest, ram)
    assert all(explained)
    # The first 16 MiB of the one, the first 4 GiB of the others are reserved.
    if host != "intel-sunrise-point-lp-group9" and "s390x" not in host:
        assert made


def _check(layout: vi.Layout, guest: vi.Guest, ram: int) -> None:
    """All that holds for a layout."""
    usable, machine = layout.usable, layout.machine
    pieces = list(layout.ram)
    guest_side = [item.gpa for item in pieces if item.gpa is not None]
    devices = [item.iova for item in pieces if item.iova is not None]
    assert sum(span.size for span in guest_side) == ram
    assert sum(span.size for span in devices) == ram
    assert all(below.last < above.start for below, above in pairwise(guest_side))
    assert all(span in usable.ranges for span in devices)
    assert all(span.size > 0 and span.start % usable.granule == 0 for span in devices)
    if guest.align:
        align = {"2MiB": 1 << 21, "1GiB": 1 << 30}[str(guest.align)]
        assert all(span.start % align == 0 for span in devices)
    backed = layout.page_sizes[0][2] or usable.granule
    whole = [item.iova for item in pieces if item.node == "0" and item.iova is not None]
    assert all((span.start | span.size) % backed == 0 for span in whole)
    nodes = [item.node for item in pieces]
    assert nodes == sorted(nodes, key=str)  # a later node is never below an earlier one
    assert layout.address_bits <= 46 or machine.ram[-1].range.start.bit_length() > 46
    if not machine.identity:
        return
    assert guest_side == devices
    windows = RangeSet(r.range for r in usable.regions if r.kind is RegionKind.MSI)
    assert windows.isdisjoint(RangeSet(devices))
    shown = {item.iova for item in layout.items if item.kind is vi.ItemKind.MSI}
    assert {item for item in windows if item in usable.holes} <= shown
    low = machine.ram[0]
    spans = [window.range for window in machine.ram]
    if low.whole_below is not None and ram < low.whole_below:
        spans[0] = AddrRange(low.range.start, low.whole_below - 1)
    assert all(any(s in span for span in spans) for s in guest_side)
    kinds = (vi.ItemKind.RAM, vi.ItemKind.BAR)
    placed = sorted(item.place for item in layout.items if item.kind in kinds)
    assert all(below.last < above.start for below, above in pairwise(placed))
    fixed = RangeSet(item.range for item in machine.fixed if item.kind != "window")
    assert fixed.isdisjoint(RangeSet(placed))
    bars = {item.name: item for item in layout.items if item.kind is vi.ItemKind.BAR}
    assert set(bars) == {bar.name for bar in guest.bars}
    for bar in guest.bars:
        found = bars[bar.name]
        assert found.place.start % found.place.size == 0
        assert found.iova is not None or not bar.required
        assert found.iova is None or found.iova in usable.ranges
        assert bar.bits == 64 or found.place.last < 1 << 32
    told = RangeSet(item.range for item in layout.guest_reserved)
    assert told.isdisjoint(RangeSet(guest_side))


@given(ram=st.integers(1, 1022 << 18))
def test_firecracker_arm_keeps_its_own_proofs(ram: int) -> None:
    # firecracker src/vmm/src/arch/aarch64/mod.rs, its proof harness for arch_memory_regions().
    usable = Host("case", groups=(Group("7", regions=()),)).usable(aperture=48, granule=4096)
    layout = vi.plan(vi.Guest("firecracker-arm", ram * 4096), usable)
    regions = [item.place for item in layout.ram]
    gap = AddrRange(256 * GIB, 512 * GIB - 1)
    assert len(regions) in (1, 2)
    assert sum(span.size for span in regions) == ram * 4096 <= 1022 * GIB
    assert all(not span.overlaps(gap) for span in regions)
    assert all(span.start >= 2 * GIB for span in regions)
    if len(regions) == 2:
        assert regions[0].last + 1 == gap.start
        assert regions[1].start == gap.last + 1


def test_firecracker_arm_refuses_what_firecracker_would_cut() -> None:
    usable = Host("case", groups=(Group("7", regions=()),)).usable(aperture=48, granule=4096)
    with pytest.raises(vi.PlanError, match="1023 GiB is more than Firecracker") as caught:
        vi.plan(vi.Guest("firecracker-arm", "1023G"), usable)
    assert caught.value.fixes[0] == "--ram 1022GiB is the most"


# -- small spaces, searched whole ------------------------------------------------------------------

_PAGE = 4096
_PAGES = 18
_SMALL = Machine(
    "small",
    "small",
    "x",
    (
        RamWindow("low", AddrRange(0, 6 * _PAGE - 1)),
        RamWindow("high", AddrRange(7 * _PAGE, ADDRESS_LAST)),
    ),
    pci64=Pci64Window(_PAGE, _PAGE, 0),
    options=(("pci64", "--window-size {size}"),),
)
# A VMM that can be told where its window begins; the other one has it right above RAM.
_PLACED = replace(_SMALL, options=(*_SMALL.options, ("pci64_start", "--window {start}")))


def _small_host(holes: frozenset[int], unit: int = _PAGE) -> vi.Usable:
    regions = tuple(
        ReservedRegion(
            AddrRange.from_size(page * unit, unit),
            RegionKind.RESERVED,
            "reserved",
            Source("made", page),
            "5",
        )
        for page in sorted(holes)
    )
    host = Host("made", groups=(Group("5", regions=regions),))
    return host.usable(aperture=RangeSet([AddrRange(0, _PAGES * unit - 1)]), granule=_PAGE)


def _blocks(free: set[int], unit: int, above: int) -> list[int]:
    """Starts of usable blocks of `unit` pages, aligned, inside one window, above a page."""
    windows = (range(6), range(7, _PAGES))
    return [
        start
        for start in range(0, _PAGES, unit)
        if start > above
        and set(range(start, start + unit)) <= free
        and any(start in window and start + unit - 1 in window for window in windows)
    ]


def _tops(free: set[int], nodes: list[tuple[int, int]]) -> set[int]:
    """Every page at which all RAM can end: node after node, each choice of blocks."""
    tops = {-1}
    for units, unit in nodes:
        after = set()
        for top in tops:
            for chosen in combinations(_blocks(free, unit, top), units):
                after.add(chosen[-1] + unit - 1)
        tops = after
    return tops


def _has_room(free: set[int], bars: list[int], top: int) -> bool:
    """Try every aligned place of every BAR above a page."""
    if not bars:
        return True
    size = bars[0]
    for start in range(0, _PAGES, size):
        block = set(range(start, start + size))
        if start > top and block <= free and _has_room(free - block, bars[1:], top):
            return True
    return False


@examples(500)
@example(frozenset({5, 6, 7, 12, 14, 15, 16, 17}), [(1, 1)], [1, 4], "lowest", _SMALL)
@example(frozenset({8, 11, 16, 17}), [(6, 1)], [1, 2, 4], "fewest", _PLACED)
@given(
    holes=st.frozensets(st.integers(0, _PAGES - 1), max_size=12),
    nodes=st.lists(
        st.tuples(st.integers(1, 5), st.sampled_from([1, 1, 2])), min_size=1, max_size=2
    ),
    bars=st.lists(st.sampled_from([1, 2, 4]), max_size=4),
    prefer=st.sampled_from(["lowest", "fewest"]),
    machine=st.sampled_from([_SMALL, _PLACED]),
)
def test_no_split_is_refused_that_a_search_of_every_place_finds(
    holes: frozenset[int],
    nodes: list[tuple[int, int]],
    bars: list[int],
    prefer: str,
    machine: Machine,
) -> None:
    free = set(range(_PAGES)) - holes
    guest = vi.Guest(
        machine,
        nodes=[vi.Node(units * unit * _PAGE, unit * _PAGE) for units, unit in nodes],
        bars=[vi.Bar(f"b{n}", size * _PAGE, required=True) for n, size in enumerate(bars)],
    )
    possible = any(_has_room(free, bars, top) for top in _tops(free, nodes))

    try:
        layout = vi.plan(guest, _small_host(holes), prefer=prefer)  # type: ignore[arg-type]
    except vi.PlanError:
        assert not possible
        return
    assert possible
    taken = [item.place for item in layout.items if item.kind in (vi.ItemKind.RAM, vi.ItemKind.BAR)]
    assert all(below.last < above.start for below, above in pairwise(sorted(taken)))
    assert all(place in layout.usable.ranges for place in taken)
    top = max(item.place.last for item in layout.ram)
    assert all(i.place.start > top for i in layout.items if i.kind is vi.ItemKind.BAR)


@given(
    free=st.frozensets(st.integers(0, _PAGES - 1)),
    bars=st.lists(st.sampled_from([1, 1, 2, 4, 8]), min_size=1, max_size=5),
    downward=st.booleans(),
)
def test_packing_finds_a_place_for_all_bars_whenever_a_search_does(
    free: frozenset[int], bars: list[int], downward: bool
) -> None:
    wanted = [WantedBar(f"b{n}", size, size, 64, True) for n, size in enumerate(bars)]
    spans = list(RangeSet(AddrRange(page, page) for page in free))
    packing = Packing(wanted, spans, (), downward)
    assert packing.all_reached == _has_room(set(free), bars, -1)
    places = [packing.places[n] for n in range(len(bars))] if packing.all_reached else []
    assert all(place.size == size for place, size in zip(places, bars, strict=False))
    assert all(place.start % place.size == 0 for place in places)
    assert all(below.last < above.start for below, above in pairwise(sorted(places)))


# The other policies, in GiB, for RAM is moved by whole GiB.
_MOVABLE = Machine(
    "movable",
    "movable",
    "x",
    (
        RamWindow("low", AddrRange(0, 6 * GIB - 1)),
        RamWindow("high", AddrRange(7 * GIB, ADDRESS_LAST), movable=True),
    ),
)


@examples(300)
@given(
    holes=st.frozensets(st.integers(0, _PAGES - 1), max_size=8),
    size=st.integers(1, 14),
    policy=st.sampled_from(["refuse", "move"]),
)
def test_refuse_and_move_find_a_place_whenever_a_search_does(
    holes: frozenset[int], size: int, policy: str
) -> None:
    free = set(range(_PAGES)) - holes
    low, high = min(size, 6), max(size - 6, 0)
    own = [*range(low), *range(7, 7 + high)]
    starts = [7] if policy == "refuse" or not high else range(7, _PAGES)
    possible = set(range(low)) <= free and any(
        set(range(start, start + high)) <= free for start in starts
    )
    try:
        layout = vi.plan(vi.Guest(_MOVABLE, size * GIB), _small_host(holes, GIB), policy)  # type: ignore[arg-type]
    except vi.PlanError:
        assert not possible
        return
    assert possible
    taken = [page for item in layout.ram for page in _pages(item.place, GIB)]
    assert len(taken) == size
    assert set(taken) <= free
    assert (layout.policy == "as is") == (taken == own)


def _pages(span: AddrRange, page: int) -> range:
    return range(span.start // page, (span.last + 1) // page)


@examples(200)
@given(
    holes=st.frozensets(st.integers(0, _PAGES - 1), max_size=8),
    pages=st.integers(1, 12),
    bar=st.sampled_from([0, 1, 2, 4]),
)
def test_optional_bar_never_costs_a_plan_and_is_reached_where_it_can_be(
    holes: frozenset[int], pages: int, bar: int
) -> None:
    free = set(range(_PAGES)) - holes
    bars = [vi.Bar("b", bar * _PAGE)] if bar else []
    tops = _tops(free, [(pages, 1)])
    try:
        layout = vi.plan(vi.Guest(_SMALL, pages * _PAGE, bars=bars), _small_host(holes))
    except vi.PlanError:
        assert not tops
        return
    reached = [item.iova is not None for item in layout.items if item.kind is vi.ItemKind.BAR]
    assert reached == ([_has_room(free, [bar], min(tops))] if bar else [])


# Bytes around the ends of two windows: what is one off by a byte is another answer.
_BYTES = Machine(
    "bytes",
    "bytes",
    "x",
    (
        RamWindow("low", AddrRange(0, _PAGE - 1)),
        RamWindow("high", AddrRange(2 * _PAGE, ADDRESS_LAST)),
    ),
)
_NEAR = (*range(_PAGE - 6, _PAGE), *range(2 * _PAGE, 2 * _PAGE + 12))


@examples(25)
@given(
    holes=st.frozensets(st.sampled_from(_NEAR), max_size=9),
    nodes=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    rooms=st.lists(st.integers(1, 3), max_size=2),
)
def test_split_takes_the_lowest_bytes_and_rooms_the_next_that_hold_them(
    holes: frozenset[int], nodes: list[int], rooms: list[int]
) -> None:
    free = [at for at in _NEAR if at not in holes]
    usable = Host("made").usable(aperture=RangeSet(AddrRange(at, at) for at in free), granule=1)
    guest = vi.Guest(
        _BYTES, nodes=nodes, rooms=[vi.Room(str(n), size) for n, size in enumerate(rooms)]
    )
    ram, cursor, places = free[: sum(nodes)], 0, list[int]()
    for size in rooms:
        above = [at for at in free if at > max([*ram, cursor - 1])]
        fits = [at for at in above if set(range(at, at + size)) <= set(above)]
        places += fits[:1]
        cursor = fits[0] + size if fits else ADDRESS_LAST
    try:
        layout = vi.plan(guest, usable, "split")
    except vi.PlanError:
        assert len(ram) < sum(nodes) or len(places) < len(rooms)
        return
    assert [at for item in layout.ram for at in _pages(item.place, 1)] == ram
    assert [item.node for item in layout.ram for _ in _pages(item.place, 1)] == [
        str(n) for n, size in enumerate(nodes) for _ in range(size)
    ]
    cut = sum(above != below + 1 for below, above in pairwise(ram))
    assert len(layout.ram) - cut in range(1, len(nodes) + 1)
    found = [item.place for item in layout.items if item.kind is vi.ItemKind.ROOM]
    assert found == [AddrRange.from_size(at, size) for at, size in zip(places, rooms, strict=True)]


def _runs(pages: tuple[int, ...]) -> int:
    return sum(1 for n, page in enumerate(pages) if n == 0 or pages[n - 1] != page - 1)


@examples(200)
@given(holes=st.frozensets(st.integers(0, _PAGES - 1), max_size=7), pages=st.integers(1, 9))
def test_fewest_has_no_more_pieces_than_the_best_of_all_choices(
    holes: frozenset[int], pages: int
) -> None:
    free = set(range(_PAGES)) - holes
    choices = list(combinations(_blocks(free, 1, -1), pages))
    guest = vi.Guest(_SMALL, pages * _PAGE, pci64=0)
    if not choices:
        with pytest.raises(vi.PlanError):
            vi.plan(guest, _small_host(holes), prefer="fewest")
        return
    layout = vi.plan(guest, _small_host(holes), prefer="fewest")
    assert len(layout.ram) == min(map(_runs, choices))


@examples(100)
@given(
    holes=st.frozensets(st.integers(0, 13), max_size=5),
    size=st.integers(1, 7),
)
@example(frozenset({4}), 6)
def test_fewest_in_one_piece_takes_the_fewest_entries_and_tables_of_all_places(
    holes: frozenset[int], size: int
) -> None:
    mib = 1 << 20
    usable = _small_host(holes | frozenset(range(14, _PAGES)), mib)
    machine = Machine("any", "any", "x", (RamWindow("ram", AddrRange(0, ADDRESS_LAST)),))
    costs = [
        cost_of([AddrRange.from_size(start * mib, size * mib)], usable)
        for start in range(14 - size + 1)
        if holes.isdisjoint(range(start, start + size))
    ]
    if not costs:
        return
    layout = vi.plan(vi.Guest(machine, size * mib), usable, prefer="fewest")
    assert cost_of([item.place for item in layout.ram], usable) == min(costs)


# -- fixes are tried -------------------------------------------------------------------------------

_REGION = st.tuples(
    st.integers(0, (1 << 40) // (1 << 20)), st.sampled_from([1, 16, 1024, 12 * 1024])
)


@examples(150)
@given(
    name=st.sampled_from([n for n in vi.machine_names() if vi.load_machine(n).identity]),
    regions=st.lists(_REGION, max_size=4),
    ram=st.sampled_from([1, 3, 16, 200, 600, 1011, 1500]),
    align=st.sampled_from([None, "2MiB", "1GiB"]),
    policy=st.sampled_from(["split", "move", "refuse"]),
    bits=st.sampled_from([None, 36, 39, 40, 46]),
    bar=st.sampled_from([None, "16G", "128G"]),
    aperture=st.sampled_from([39, 41, 48]),
)
@example(  # 40 bits are asked for, and 39 would do for what SeaBIOS makes of them
    name="i440fx", regions=[(0x60000, 1)], ram=200, align=None, policy="split", bits=36,
    bar="128G", aperture=39,
)  # fmt: skip
@example(  # QEMU says of a window beyond the guest's own addresses
    name="q35", regions=[], ram=1, align=None, policy="split", bits=46, bar="16G", aperture=39
)
def test_every_fix_with_an_option_works(
    name: str,
    regions: list[tuple[int, int]],
    ram: int,
    align: str | None,
    policy: str,
    bits: int | None,
    bar: str | None,
    aperture: int,
) -> None:
    holes = tuple(
        ReservedRegion(
            AddrRange.from_size(at << 20, size << 20),
            RegionKind.RESERVED,
            "reserved",
            Source("made", line),
            "5",
        )
        for line, (at, size) in enumerate(regions)
    )
    host = Host("made", groups=(Group("5", regions=holes),))
    usable = host.usable(aperture=aperture, granule=_PAGE)
    bars = [] if bar is None else [vi.Bar("gpu", bar, required=True)]
    guest = vi.Guest(name, ram * GIB, align=align, phys_bits=bits, bars=bars)
    try:
        layout = vi.plan(guest, usable, policy)  # type: ignore[arg-type]
    except vi.PlanError as error:
        fixes = error.fixes
    else:
        _sound(layout, ram * GIB)
        return
    assert fixes
    for fix in fixes:
        if found := re.match(r"--align (\S+) has room", fix):
            vi.plan(replace(guest, align=found[1]), usable, policy)  # type: ignore[arg-type]
        elif found := re.match(r"--on-hole (\w+) (has room|puts)", fix):
            vi.plan(guest, usable, found[1])  # type: ignore[arg-type]
        elif found := re.match(r"with --on-hole split, --ram (\S+) fits", fix):
            vi.plan(replace(guest, ram=found[1]), usable, "split")
        elif found := re.match(r"--ram (\S+) ", fix):
            vi.plan(replace(guest, ram=found[1]), usable, policy)  # type: ignore[arg-type]
        elif found := re.match(r"a BAR of (.*) has room", fix):
            smaller = vi.Bar("gpu", found[1].replace(" ", ""), required=True)
            vi.plan(replace(guest, bars=[smaller]), usable, policy)  # type: ignore[arg-type]
        elif found := re.match(r"--phys-bits (\d+)", fix):
            # More of them cure the width, fewer keep BARs below that of the IOMMU; the host may
            # have something else to say. SeaBIOS goes by them: a BAR that it puts to the top of 39
            # bits lies beside RAM with 40, where 39 would be enough.
            with contextlib.suppress(vi.PlanError):
                other = replace(guest, phys_bits=int(found[1]))
                assert vi.plan(other, usable, policy).address_bits <= int(found[1])  # type: ignore[arg-type]
                assert int(found[1]) != bits


def _sound(layout: vi.Layout, ram: int) -> None:
    pieces = sorted(item.place for item in layout.ram)
    assert sum(piece.size for piece in pieces) == ram
    assert all(piece in layout.usable.ranges for piece in pieces)
    kinds = (vi.ItemKind.RAM, vi.ItemKind.BAR, vi.ItemKind.DEVICE, vi.ItemKind.FIRMWARE)
    placed = sorted(item.place for item in layout.items if item.kind in kinds)
    assert all(below.last < above.start for below, above in pairwise(placed))
