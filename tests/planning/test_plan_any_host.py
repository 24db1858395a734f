# SPDX-License-Identifier: Apache-2.0
"""Plans on random hosts: what holds for all, and every fix that is printed is tried."""

from __future__ import annotations

import re
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.planning.plan import OnHole
from vmm_iova.ranges import AddrRange, RangeSet

GIB = 1 << 30
WINDOW = {"q35": "0x00000000fee00000 0x00000000feefffff msi\n", "virt": "0x8000000 0x80fffff msi\n"}
# Places where machines have their edges, and where real hosts have their regions.
BASES = st.one_of(
    st.sampled_from([0, 0x9F000, 0x27B0_0000, 0x4000_0000, 0x7B80_0000, 0x8000_0000, 0xC000_0000]),
    st.sampled_from([0xDB00_0000, 1 << 32, 0xFD_0000_0000, 0x80_0000_0000, 1 << 40]),
    st.integers(0, (1 << 41) // 65536).map(lambda page: page * 65536),
)
SIZES = st.sampled_from([0x1000, 0x10000, 0x100000, 0x480_0000, 12 * GIB])
WORDS = st.sampled_from(["reserved", "direct-relaxable", "direct", "msi", "odd"])
REGIONS = st.lists(st.tuples(BASES, SIZES, WORDS), max_size=3)
RAM = st.one_of(
    st.integers(1, 1 << 16).map(lambda n: n * 65536),
    st.integers(1, 1 << 25).map(lambda n: n * 65536),
    st.sampled_from([0x8000_0000, 0xB000_0000 - 65536, 0xB000_0000, 511 * GIB, 1010 * GIB]),
)


def _text(machine: str, regions: list[tuple[int, int, str]]) -> str:
    lines = (f"{base:#018x} {base + size - 1:#018x} {word}\n" for base, size, word in regions)
    return WINDOW[machine] + "".join(lines)


def _usable(text: str, aperture: int, *, strict: bool) -> vi.Usable:
    return parse_text(text, "t")[0].usable(aperture=aperture, strict=strict)


def _own_places(machine: str, ram: int) -> list[tuple[int, int]]:
    if machine == "virt":
        return [(GIB, ram)]
    low = ram if ram < 0xB000_0000 else 0x8000_0000
    return [(0, low)] + ([(1 << 32, ram - low)] if ram > low else [])


@given(
    machine=st.sampled_from(["q35", "virt"]),
    regions=REGIONS,
    ram=RAM,
    aperture=st.sampled_from([36, 39, 40, 41, 46, 48, 52, 57]),
    strict=st.booleans(),
    on_hole=st.sampled_from(["split", "move", "refuse"]),
)
def test_plan_is_right_or_its_refusal_has_fixes_that_work(
    machine: str,
    regions: list[tuple[int, int, str]],
    ram: int,
    aperture: int,
    strict: bool,
    on_hole: OnHole,
) -> None:
    text = _text(machine, regions)
    usable = _usable(text, aperture, strict=strict)
    guest = vi.Guest(machine, ram)
    try:
        layout = vi.plan(guest, usable, on_hole)
    except vi.PlanError as error:
        _try_fixes(error, text, guest, usable, on_hole, aperture)
        return
    holes = RangeSet(
        AddrRange(base, base + size - 1)
        for base, size, word in regions
        if strict or word != "direct-relaxable"
    )
    pieces = layout.ram
    assert sum(item.place.size for item in pieces) == ram
    assert RangeSet(item.place for item in pieces).isdisjoint(holes)
    assert all(item.place.last < 1 << aperture for item in pieces)
    placed = [item for item in layout.items if item.kind.value in ("ram", "window")]
    assert not any(a.place.overlaps(b.place) for a, b in combinations(placed, 2))
    told = RangeSet(item.range for item in layout.guest_reserved)
    within = RangeSet([AddrRange(0, (1 << aperture) - 1)])
    assert all(RangeSet([item.place]) & holes & within <= told for item in placed)
    got = [(item.place.start, item.place.size) for item in pieces]
    assert (layout.policy == "as is") == (got == _own_places(machine, ram))


def _try_fixes(
    error: vi.PlanError,
    text: str,
    guest: vi.Guest,
    usable: vi.Usable,
    on_hole: OnHole,
    aperture: int,
) -> None:
    assert error.fixes
    for fix in error.fixes:
        if size := re.match(r"--ram (\S+) ", fix):
            vi.plan(vi.Guest(guest.machine, size[1]), usable, on_hole)
        elif policy := re.match(r"--on-hole (\w+) ", fix):
            vi.plan(guest, usable, policy[1])  # type: ignore[arg-type]
        elif "without --strict" in fix:
            # It cures this obstacle; there may be others, which then are named instead.
            relaxed = _usable(text, aperture, strict=False)
            assert _refusal(guest, relaxed, on_hole) != str(error)


def _refusal(guest: vi.Guest, usable: vi.Usable, on_hole: OnHole) -> str | None:
    try:
        vi.plan(guest, usable, on_hole)
    except vi.PlanError as error:
        return str(error)
    return None


@given(machine=st.sampled_from(["q35", "virt"]), regions=REGIONS, ram=RAM, more=RAM)
def test_split_that_is_refused_is_refused_for_larger_guests_too(
    machine: str, regions: list[tuple[int, int, str]], ram: int, more: int
) -> None:
    usable = _usable(_text(machine, regions), 39, strict=True)

    def fits(size: int) -> bool:
        try:
            return bool(vi.plan(vi.Guest(machine, size, pci64=0), usable).ram)
        except vi.PlanError:
            return False

    assert fits(ram) or not fits(ram + more)
