# SPDX-License-Identifier: Apache-2.0
"""A hole of a page on each side of each edge of each part, and a host that ends there.

What has to hold is asserted: a hole beside all parts moves nothing, one inside RAM is never mapped.
Whole answers, refusals and their fixes too, are compared with recorded ones, which say that nothing
changed: each line of tests/data/answers/edges.txt is a guest, a policy and a digest for each hole.
`VMM_IOVA_WRITE_ANSWERS=1` with this file writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache

import pytest

import vmm_iova as vi
from tests.kit.data import DATA
from vmm_iova.host.text import parse_text
from vmm_iova.ranges import AddrRange, RangeSet

pytestmark = [pytest.mark.slow, pytest.mark.recorded]

FILE = DATA / "answers" / "edges.txt"
WRITE = os.environ.get("VMM_IOVA_WRITE_ANSWERS") == "1"
PAGE, LAST = 0x1000, (1 << 48) - 1
POLICIES = ("auto", "split", "fewest", "move", "refuse")
GPU = vi.Bar("gpu", "16G", required=True)
NIC = vi.Bar("nic", "32M", bits=32)
NET = vi.Bar("net", "1M", required=True)
KEPT = vi.FixedItem("kept", "reserved", AddrRange(0x5000_0000, 0x500F_FFFF))

GUESTS: dict[str, vi.Guest] = {
    "q35": vi.Guest("q35", "6G", bars=[GPU, NIC], phys_bits=40),
    "q35-maxmem": vi.Guest("q35", "6G", maxmem="8G", slots=1, bars=[NET]),
    "q35-ovmf": vi.Guest("q35", "6G", bars=[GPU, NET], firmware="ovmf", phys_bits=40),
    "q35-amd": vi.Guest("q35", "960G", cpu="amd"),
    "i440fx": vi.Guest("i440fx", "6G", bars=[NET, NIC]),
    "own-x86": vi.Guest("own-x86", "6G", bars=[GPU, NIC], rooms=[vi.Room("dimms", "4G")]),
    "own-x86-nodes": vi.Guest("own-x86", nodes=["3G", vi.Node("3G", "2M")], align="2M"),
    "own-arm": vi.Guest(
        "own-arm", "3G", reserved=[KEPT], doorbells=[vi.Doorbell("d", "64K")]
    ),
    "virt": vi.Guest("virt", "3G", bars=[vi.Bar("gpu", "16G"), NET], maxmem="4G"),
    "kvmtool-arm": vi.Guest("kvmtool-arm", "3G"),
    "cloud-hypervisor": vi.Guest("cloud-hypervisor", "5G", bars=[GPU], phys_bits=40),
    "q35-port": vi.Guest(
        "q35", "5G", firmware="ovmf", ovmf_window="64G", phys_bits=40,
        bars=[vi.Bar("a", "16G", port="p"), vi.Bar("b", "32M", port="p", required=True)],
    ),
    "own-x86-left": vi.Guest("own-x86", "250TiB"),
    "own-x86-bars": vi.Guest(
        "own-x86", "5G", bars=[GPU, NET, vi.Bar("far", "64G", required=True), vi.Bar("few", "3M")],
        rooms=[vi.Room("a", "1G", "1G"), vi.Room("b", 4096)], reserved=[KEPT],
    ),
    "virt-sized": vi.Guest("virt", "3G", pci64="1TiB", align="1G", bars=[vi.Bar("g", "1G")]),
    "s390x-nodes": vi.Guest("s390x", nodes=["1G", "2G"], align="2M"),
    "own-x86-stated": vi.Guest("own-x86", "6G", pci64="24G", bars=[GPU], maxmem="9G"),
    "microvm": vi.Guest("microvm", "5G", phys_bits=39),
    "firecracker": vi.Guest("firecracker", "5G", bars=[vi.Bar("b", "1G")]),
    "s390x": vi.Guest("s390x", "3G"),
    "own-x86-cut": vi.Guest("own-x86", "9G", bars=[GPU]),
    "own-arm-cut": vi.Guest("own-arm", "12G", align="2M", page_size="2M"),
    "s390x-cut": vi.Guest("s390x", nodes=["5G", "3G"]),
    "i440fx-cut": vi.Guest("i440fx", "3.5G", max_ram_below_4g="3G"),
    "riscv-virt-cut": vi.Guest("riscv-virt", "5G"),
    "crosvm-arm-cut": vi.Guest("crosvm-arm", "2G", bars=[NET]),
    # Refused with no hole at all: each other hole changes what is said, or what would help.
    "no-q35-bits": vi.Guest("q35", "28G", phys_bits=35),
    "no-q35-maxmem": vi.Guest("q35", "20G", maxmem="40G", slots=2, phys_bits=36),
    "no-bar": vi.Guest("own-x86", "20G", bars=[vi.Bar("b", "32G", required=True)], phys_bits=36),
    "no-bar32": vi.Guest("own-x86", "2G", bars=[vi.Bar("b", "2G", bits=32, required=True)]),
    "no-stated": vi.Guest("own-x86", "4G", pci64="8G", bars=[GPU], phys_bits=37),
    "no-room": vi.Guest("own-x86", "9G", rooms=[vi.Room("r", "64G", "1G")], phys_bits=36),
    "no-microvm": vi.Guest("microvm", "30G", phys_bits=35),
    "no-s390x": vi.Guest("s390x", "8G", phys_bits=32),
    "no-firecracker": vi.Guest("firecracker-arm", "1023G"),
    "no-bell": vi.Guest("own-arm", "3G", doorbells=[vi.Doorbell("d", "64G")], phys_bits=36),
    "no-viommu": vi.Guest("q35", "4G", viommu=True, viommu_bits=57),
    "no-ovmf": vi.Guest("q35", "4G", bars=[vi.Bar("b", "1T", required=True)], firmware="ovmf"),
    "no-ovmf-bits": vi.Guest(
        "q35", "4G", bars=[vi.Bar("b", "64G", required=True), NET], firmware="ovmf", phys_bits=36
    ),
    "no-crosvm": vi.Guest("crosvm", "4G", bars=[GPU], phys_bits=34),
    "no-align": vi.Guest("own-x86", "9G", align="1G", phys_bits=33),
}  # fmt: skip
CUTS = ((0x1_8000_0000, 0x1_9FFF_FFFF), (0x2_8000_0000, 0x2_BFFF_FFFF), (0xC000_0000, 0xC00F_FFFF))
"""Holes that hosts of guests named `-cut` have besides."""


def usable(hole: AddrRange | None, name: str) -> vi.Usable:
    """What a host with this hole allows, beside its interrupt window."""
    msi = AddrRange(0xFEE0_0000, 0xFEEF_FFFF)
    free = RangeSet([AddrRange(0, LAST)])
    if vi.load_machine(str(GUESTS[name].machine)).arch == "x86_64":
        free -= RangeSet([msi])
    if name.endswith("-cut"):
        free -= RangeSet(AddrRange(*span) for span in CUTS)
    if hole is not None:
        free -= RangeSet([hole])
    return parse_text("".join(f"{s.start:#x} - {s.last:#x}\n" for s in free), "l", "iova_ranges")[
        0
    ].usable(granule=PAGE)


def planned(name: str, hole: AddrRange | None, policy: str) -> vi.Layout:
    """Plan a guest on a host with this hole."""
    on_hole: vi.OnHole = "split" if policy == "fewest" else policy  # type: ignore[assignment]
    prefer = "fewest" if policy == "fewest" else "lowest"
    return vi.plan(GUESTS[name], usable(hole, name), on_hole, prefer=prefer)  # type: ignore[arg-type]


@cache
def parts(name: str, policy: str) -> tuple[tuple[AddrRange, ...], bool]:
    """Where the parts of a guest are without a hole; of one that is refused, what is in the way."""
    try:
        layout = planned(name, None, policy)
    except vi.PlanError as error:
        return tuple(dict.fromkeys(reason.range for reason in error.reasons)), False
    kinds = ("ram", "window", "bar", "room", "doorbell")
    places = (item.place for item in layout.items if item.kind.value in kinds)
    return tuple(dict.fromkeys(places)), True


def holes(name: str, policy: str) -> list[AddrRange]:
    """A page below and above each edge of each part, and all from there on."""
    edges = {edge for part in parts(name, policy)[0] for edge in (part.start, part.last + 1)}
    starts = sorted({edge - off for edge in edges for off in (0, PAGE)} | {LAST + 1 >> 8})
    starts = [at for at in starts if 0 < at <= LAST]
    pages = [AddrRange.from_size(at, PAGE) for at in starts]
    return pages + [AddrRange(at, LAST) for at in starts]


def answer(name: str, hole: AddrRange, policy: str) -> str:
    """All that is said of a guest beside this hole."""
    try:
        layout = planned(name, hole, policy)
    except vi.PlanError as error:
        lines = [error.message, *map(str, error.reasons), *error.fixes, error.detail or ""]
        return "\n".join(lines)
    ram = RangeSet(item.iova for item in layout.ram if item.iova is not None)
    assert ram.isdisjoint(RangeSet([hole]))
    return json.dumps(layout.to_json(), indent=1)


def recorded() -> dict[tuple[str, str], list[str]]:
    lines = (line.split() for line in FILE.read_text().splitlines())
    return {(name, policy): digests for name, policy, *digests in lines}


CASES = [(name, policy) for name in GUESTS for policy in POLICIES]


@pytest.mark.slow
@pytest.mark.recorded
@pytest.mark.parametrize(("name", "policy"), CASES)
def test_hole_at_an_edge_is_answered_as_recorded(name: str, policy: str) -> None:
    answers = [answer(name, hole, policy) for hole in holes(name, policy)]
    digests = [hashlib.sha256(text.encode()).hexdigest()[:6] for text in answers]
    if WRITE:
        lines = dict(recorded()) if FILE.exists() else {}
        lines[name, policy] = digests
        FILE.write_text(
            "".join(f"{' '.join([*key, *lines[key]])}\n" for key in CASES if key in lines)
        )
        return
    known = recorded()[name, policy]
    assert len(digests) == len(known)
    for hole, text, found, expected in zip(
        holes(name, policy), answers, digests, known, strict=True
    ):
        assert found == expected, f"{hole}: {text}"


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_hole_of_a_page_beside_all_parts_moves_nothing(name: str, policy: str) -> None:
    places, fits = parts(name, policy)
    taken = RangeSet(places)
    if not fits or not vi.load_machine(str(GUESTS[name].machine)).identity:
        return
    for hole in holes(name, policy):
        if hole.size == PAGE and taken.isdisjoint(RangeSet([hole])):
            layout = planned(name, hole, policy)
            assert RangeSet(item.place for item in layout.items if item.place in taken) == taken
