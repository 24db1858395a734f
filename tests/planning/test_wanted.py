# SPDX-License-Identifier: Apache-2.0
"""What a guest asks for, at the limits of each number: the last taken, the first refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.planning.bars import WantedBar
from vmm_iova.planning.ram import _in_one, _of_nodes
from vmm_iova.planning.request import Wanted, WantedNode, bare_usable, resolve
from vmm_iova.planning.site import Site, site_of
from vmm_iova.ranges import ADDRESS_LAST, GIB, KIB, MIB, TIB, AddrRange

ALL = parse_text("0x0 - 0xfedfffff\n0xfef00000 - 0xffffffffffff\n", "list", "iova_ranges")[
    0
].usable()
KEPT = vi.FixedItem("kept", "reserved", AddrRange(0, 0xFFF))


def wanted(machine: str, usable: vi.Usable = ALL, **how: Any) -> Wanted:
    return resolve(vi.Guest(machine, **{"ram": "8G", **how}), usable)


def site(machine: str, usable: vi.Usable = ALL, **how: Any) -> Site:
    return site_of(wanted(machine, usable, **how), usable)


Case = tuple[str, dict[str, Any]]
TAKEN: list[Case] = [
    ("q35", {"ram": 4096}),
    ("q35", {"slots": 256, "maxmem": "8G"}),
    ("q35", {"slots": 0}),
    ("q35", {"maxmem": 8 * GIB}),
    ("q35", {"maxmem": 8 * GIB + 4096}),
    ("q35", {"max_ram_below_4g": MIB}),
    ("q35", {"max_ram_below_4g": 4 * GIB}),
    ("q35", {"max_ram_below_4g": GIB + 4096}),
    ("q35", {"ovmf_window": MIB, "firmware": "ovmf"}),
    ("q35", {"ovmf_window": 16 * TIB, "firmware": "ovmf"}),
    ("q35", {"phys_bits": 32}),
    ("q35", {"phys_bits": 64}),
    ("q35", {"devices": 1}),
    ("q35", {"cpu": "amd"}),
    ("q35", {"viommu_bits": 39}),
    ("q35", {"viommu_bits": 57}),
    ("q35", {"align": 1 << 63}),
    ("q35", {"bars": [vi.Bar("b", 4096)]}),
    ("q35", {"bars": [vi.Bar("b", 4096, align=4096)]}),
    ("q35", {"bars": [vi.Bar("b", 4096, required=True)]}),
    ("q35", {"bars": [vi.Bar("b", "1M", port="p")]}),
    ("own-arm", {"doorbells": [vi.Doorbell("d", 4096)]}),
    ("own-arm", {"doorbells": [vi.Doorbell("d", 8192, 4096)]}),
    ("own-arm", {"doorbells": [vi.Doorbell("d", 4096, 8192)]}),
    ("s390x", {}),
    ("own-x86", {"pci64": GIB + 4096}),
    ("own-x86", {"pci64": 4096}),
    ("virt", {"pci64": 512 * GIB}),
    ("virt", {"pci64": 1024 * GIB}),
    ("firecracker", {"pci64": 256 * GIB}),
    ("firecracker", {"pci64": "0"}),
    ("cloud-hypervisor", {"pci64": 0}),
    ("q35", {"ram": "3G", "nodes": ["1G", "2G"]}),
    ("q35", {"ram": "2M", "page_size": "2M"}),
]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("q35", {"ram": 4095}, "ram"),
    ("q35", {"ram": None}, "ram"),
    ("q35", {"slots": 257, "maxmem": "8G"}, "slots"),
    ("q35", {"slots": -1, "maxmem": "8G"}, "slots"),
    ("q35", {"slots": True, "maxmem": "8G"}, "slots"),
    ("q35", {"slots": 1}, "slots"),
    ("microvm", {"maxmem": "8G"}, "maxmem"),
    ("q35", {"maxmem": 8 * GIB - 4096}, "maxmem"),
    ("q35", {"maxmem": 8 * GIB + 2048}, "maxmem"),
    ("q35", {"max_ram_below_4g": MIB - 4096}, "max_ram_below_4g"),
    ("q35", {"max_ram_below_4g": 4 * GIB + 4096}, "max_ram_below_4g"),
    ("q35", {"max_ram_below_4g": GIB + 2048}, "max_ram_below_4g"),
    ("virt", {"max_ram_below_4g": GIB}, "max_ram_below_4g"),
    ("q35", {"ovmf_window": 0, "firmware": "ovmf"}, "ovmf_window"),
    ("q35", {"ovmf_window": MIB + 4096, "firmware": "ovmf"}, "ovmf_window"),
    ("q35", {"ovmf_window": 16 * TIB + MIB, "firmware": "ovmf"}, "ovmf_window"),
    ("q35", {"ovmf_window": MIB, "firmware": "seabios"}, "ovmf_window"),
    ("q35", {"phys_bits": 31}, "phys_bits"),
    ("q35", {"phys_bits": 65}, "phys_bits"),
    ("q35", {"phys_bits": True}, "phys_bits"),
    ("q35", {"devices": 0}, "devices"),
    ("q35", {"devices": True}, "devices"),
    ("q35", {"cpu": "via"}, "cpu"),
    ("q35", {"viommu_bits": 40}, "viommu_bits"),
    ("q35", {"align": 3}, "align"),
    ("q35", {"page_size": 3}, "page_size"),
    ("q35", {"bars": [vi.Bar("b", 4096 + 2048, align=4096)]}, "size"),
    ("q35", {"bars": [vi.Bar("b", 4096, align=2048)]}, "align"),
    ("q35", {"bars": [vi.Bar("b", 2048)]}, "size"),
    ("q35", {"bars": [vi.Bar("b", 4096, bits=33)]}, "bits"),
    ("q35", {"bars": [vi.Bar("b", 4096, required=True, emulated=True)]}, "bars"),
    ("i440fx", {"bars": [vi.Bar("b", "1M", port="p")]}, "bars"),
    ("s390x", {"bars": [vi.Bar("b", 4096)]}, "bars"),
    ("s390x", {"rooms": [vi.Room("r", 4096)]}, "bars"),
    ("s390x", {"reserved": [KEPT]}, "bars"),
    ("s390x", {"doorbells": [vi.Doorbell("d", 4096)]}, "doorbells"),
    ("own-arm", {"doorbells": [vi.Doorbell("d", 2048)]}, "doorbells"),
    ("own-arm", {"doorbells": [vi.Doorbell("d", 4096, 2048)]}, "doorbells"),
    ("own-arm", {"doorbells": [vi.Doorbell("d", 4096)] * 2}, "doorbells"),
    ("q35", {"doorbells": [vi.Doorbell("MSI doorbell", 4096)]}, "doorbells"),
    ("q35", {"pci64": 4095}, "pci64"),
    ("kvmtool", {"pci64": GIB}, "pci64"),
    ("firecracker", {"pci64": 256 * GIB + GIB}, "pci64"),
    ("firecracker", {"pci64": 255 * GIB}, "pci64"),
    ("cloud-hypervisor", {"pci64": 4 * GIB}, "pci64"),
    ("virt", {"pci64": 256 * GIB}, "pci64"),
    ("virt", {"pci64": 768 * GIB}, "pci64"),
    ("q35", {"ram": "3G", "nodes": ["1G", "1G"]}, "ram"),
    ("q35", {"ram": None, "nodes": [vi.Node("1G", name="1"), "1G"]}, "nodes"),
]


@pytest.mark.parametrize(("machine", "how"), TAKEN)
def test_number_at_its_limit_is_taken(machine: str, how: dict[str, Any]) -> None:
    assert wanted(machine, **how).ram


@pytest.mark.parametrize(("machine", "how", "field"), REFUSED)
def test_number_beyond_its_limit_is_refused_by_its_name(
    machine: str, how: dict[str, Any], field: str
) -> None:
    with pytest.raises(vi.RequestError) as caught:
        wanted(machine, **how)
    assert caught.value.field == field


AMD = vi.load_host("amd-epyc-1tb").usable()


def test_numbers_of_a_guest_are_those_that_were_asked_for() -> None:
    asked = wanted("q35", maxmem="12G", phys_bits=40, viommu=True, devices=3, cpu="intel")
    assert (asked.maxmem, asked.phys_bits, asked.devices, asked.cpu) == (12 * GIB, 40, 3, "intel")
    assert (asked.viommu, asked.pci64_stated, asked.firmware_open) == (True, False, True)
    plain = wanted("q35", pci64="64G", firmware="ovmf")
    assert (plain.maxmem, plain.viommu, plain.devices, plain.hotplug) == (0, False, 1, 0)
    assert (plain.pci64_stated, plain.firmware_open) == (True, False)
    assert (wanted("q35").cpu, wanted("q35", AMD).cpu) == ("intel", "amd")
    (room,) = wanted("own-x86", rooms=[vi.Room("r", 5000)]).rooms
    assert room == WantedBar("r", 8192, 4096, 64, True)
    assert wanted("virt", pci64="1T").pci64 == replace(
        wanted("virt").pci64,
        size=TIB,
        align=TIB,
        share=None,  # type: ignore[type-var]
    )


@pytest.mark.parametrize(
    ("machine", "maxmem", "slots", "size"),
    [
        ("q35", None, 0, 0),
        ("q35", "8G", 4, 0),
        ("q35", "9G", 0, GIB),
        ("q35", "9G", 2, 3 * GIB),
        ("q35", 8 * GIB + 4096, 0, 4096),
        ("q35", 8 * GIB + 4096, 1, GIB + 4096),
        ("virt", "9G", 1, 2 * GIB),
    ],
)
def test_area_for_plugged_memory_counts_its_slots(
    machine: str, maxmem: str | int | None, slots: int, size: int
) -> None:
    asked = wanted(machine, maxmem=maxmem, slots=slots)
    unit = asked.machine.hotplug.size_align  # type: ignore[union-attr]
    assert asked.hotplug == -(-size // unit) * unit


def test_widths_are_the_narrowest_first() -> None:
    machine = replace(vi.load_machine("own-x86"), phys_bits=44)
    usable = replace(ALL, cpu_bits=42)
    asked = wanted(machine, usable, phys_bits=43)  # type: ignore[arg-type]
    assert [(item.bits, item.text.split(":")[0]) for item in asked.limits] == [
        (42, "physical address bits of the host's CPU"),
        (43, "guest physical address bits"),
        (44, "guest physical address bits"),
    ]
    assert asked.address_last == (1 << 42) - 1
    assert replace(asked, limits=()).address_last == ADDRESS_LAST


@pytest.mark.parametrize(("bits", "own", "last"), [(None, None, 48), (None, 40, 40), (36, 40, 36)])
def test_machine_by_itself_has_the_addresses_that_it_may_have(
    bits: int | None, own: int | None, last: int
) -> None:
    machine = replace(vi.load_machine("own-x86"), phys_bits=own)
    usable = bare_usable(machine, bits)
    assert usable.ranges.hull == AddrRange(0, (1 << last) - 1)
    assert usable.granule == 4 * KIB


# -- where the machine has it ----------------------------------------------------------------------

Q35_WHOLE = 0xB000_0000


@pytest.mark.parametrize(
    ("ram", "low", "windows"),
    [
        (Q35_WHOLE - 4096, None, [(0, Q35_WHOLE - 1)]),
        (Q35_WHOLE, None, [(0, 0x7FFF_FFFF), (4 * GIB, None)]),
        (Q35_WHOLE - 4096, GIB, [(0, GIB - 1), (4 * GIB, None)]),
        (GIB, GIB, [(0, GIB - 1)]),
        (GIB + 4096, GIB, [(0, GIB - 1), (4 * GIB, None)]),
        (GIB - 4096, GIB, [(0, GIB - 1)]),
        (8 * GIB, 2 * GIB, [(0, 2 * GIB - 1), (4 * GIB, None)]),
        (8 * GIB, 2 * GIB + 4096, [(0, 2 * GIB - 1), (4 * GIB, None)]),
        (8 * GIB, 3 * GIB, [(0, 2 * GIB - 1), (4 * GIB, None)]),
        (Q35_WHOLE - 4096, 3 * GIB, [(0, Q35_WHOLE - 1)]),
    ],
)
def test_windows_of_ram_go_by_its_size(
    ram: int, low: int | None, windows: list[tuple[int, int | None]]
) -> None:
    here = site("q35", ram=ram, max_ram_below_4g=low)
    found = [(item.range.start, item.range.last) for item in here.windows]
    assert found == [(a, b if b is not None else found[-1][1]) for a, b in windows]
    assert len(here.spill) == 2 - len(windows)
    assert (here.windows[0].whole_below is None) is (len(windows) == 2)


def test_end_of_all_ram_may_be_ragged_where_it_is_whole_below_the_gap() -> None:
    """Aligned to 1 GiB, and not a multiple of it: the rest stays behind the last whole one."""
    for low in (None, 5 * GIB // 2):
        pieces, over = site("q35", ram="2.5G", align="1G", max_ram_below_4g=low).around_holes()
        assert [str(piece.span) for piece in pieces] == ["0x0-0x9fffffff"]
        assert over == 0


@pytest.mark.parametrize(
    ("last", "area"),
    [
        (0x7FFF_FFFF, (4 * GIB, 2 * GIB)),
        (5 * GIB - 1, (5 * GIB, 2 * GIB)),
        (5 * GIB, (6 * GIB, 2 * GIB)),
        (ADDRESS_LAST - 2 * GIB, (ADDRESS_LAST + 1 - 2 * GIB, 2 * GIB)),
        (ADDRESS_LAST - GIB, (ADDRESS_LAST + 1 - GIB, GIB)),
    ],
)
def test_area_for_plugged_memory_begins_at_the_next_gib(last: int, area: tuple[int, int]) -> None:
    here = site("q35", maxmem="10G")
    assert here.hotplug_area(last) == AddrRange.from_size(*area)
    assert here.top(last) == sum(area) - 1
    assert site("q35").hotplug_area(last) is None
    assert site("q35").top(last) == last


@pytest.mark.parametrize(
    ("cpu", "machine", "last", "moves"),
    [
        # The window of 32 GiB behind it ends right below 0xfd00000000, or a byte later.
        ("amd", "q35", 0xFD_0000_0000 - 32 * GIB - 1, False),
        ("amd", "q35", 0xFD_0000_0000 - 32 * GIB, True),
        ("intel", "q35", 0xFD_0000_0000, False),
        ("amd", "q35-7.0", 0xFD_0000_0000, False),
        ("amd", "virt", 0xFD_0000_0000, False),
    ],
)
def test_vmm_moves_ram_from_the_first_byte_that_reaches_amds_hole(
    cpu: str, machine: str, last: int, moves: bool
) -> None:
    asked: dict[str, Any] = {"cpu": cpu} if machine != "virt" else {}
    assert (site(machine, AMD, **asked).moves(last) is not None) is moves


@pytest.mark.parametrize(
    ("how", "last", "reach"),
    [
        ({}, 8 * GIB - 1, 40 * GIB - 1),
        ({}, 8 * GIB, 41 * GIB - 1),
        ({"pci64": "64G"}, 8 * GIB - 1, 72 * GIB - 1),
        ({"pci64": 0}, 8 * GIB - 1, 8 * GIB - 1),
        ({"pci64": 0}, 8 * GIB, 9 * GIB - 1),
        ({"maxmem": "9G"}, 8 * GIB - 1, 41 * GIB - 1),
    ],
)
def test_vmm_reaches_as_far_as_its_window(how: dict[str, Any], last: int, reach: int) -> None:
    assert site("q35", **how).reach(last) == reach


@pytest.mark.parametrize(
    ("cpu", "bits", "high", "reserved"),
    [
        ("amd", 40, 5 * GIB, True),
        ("amd", 39, 5 * GIB, False),
        ("amd", 39, 0xFD_0000_0000, False),
        ("amd", 39, 0xFD_0000_0001, True),
        ("intel", 40, 0xFD_0000_0001, False),
    ],
)
def test_firmware_finds_amds_hole_reserved_from_40_bits_on(
    cpu: str, bits: int, high: int, reserved: bool
) -> None:
    low = AddrRange(0, 0x7FFF_FFFF)
    board = site("q35", phys_bits=bits, cpu=cpu).board([low, AddrRange(4 * GIB, high - 1)])
    assert board.reserved == ((AddrRange(0xFD_0000_0000, 0xFF_FFFF_FFFF),) if reserved else ())


@pytest.mark.parametrize(
    ("spans", "how", "ends"),
    [
        ([(0, GIB - 1)], {}, (GIB, 4 * GIB, 0, 0)),
        ([(0, 4 * GIB - 1)], {}, (4 * GIB, 4 * GIB, 0, 0)),
        ([(0, GIB - 1), (4 * GIB, 6 * GIB - 1)], {"maxmem": "9G"}, (GIB, 6 * GIB, 7 * GIB, 0)),
        ([(0, GIB - 1), (2 * GIB, 3 * GIB - 1)], {"phys_bits": 40}, (3 * GIB, 4 * GIB, 0, 40)),
        ([(4 * GIB, 6 * GIB - 1)], {}, (0, 6 * GIB, 0, 0)),
        ([(4 * GIB, 4 * GIB)], {"maxmem": "9G"}, (0, 4 * GIB + 1, 6 * GIB, 0)),
    ],
)
def test_firmware_finds_ram_below_and_above_4_gib(
    spans: list[tuple[int, int]], how: dict[str, Any], ends: tuple[int, ...]
) -> None:
    board = site("q35", **how).board([AddrRange(*span) for span in spans])
    assert (board.low_end, board.high_end, board.reserved_end, board.bits) == ends
    assert board.q35
    assert not site("i440fx").board([AddrRange(*spans[0])]).q35


# -- RAM in pieces ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ram", "must"),
    [
        (MIB // 2, [(0, MIB // 2 - 1)]),
        (MIB, [(0, MIB - 1)]),
        (8 * GIB, [(0, MIB - 1)]),
        (4096, [(0, 4095)]),
    ],
)
def test_ram_that_a_machine_needs_is_no_more_than_there_is(
    ram: int, must: list[tuple[int, int]]
) -> None:
    found = [(span.start, span.last) for _, span in site("q35", ram=ram).required()]
    assert found == must


@pytest.mark.parametrize(("low", "high"), [(2 * GIB, 4096), (GIB, GIB), (GIB, 1)])
def test_each_window_needs_its_own_part_of_what_is_left(low: int, high: int) -> None:
    machine = vi.load_machine("own-x86")
    first, second = machine.ram
    both = (replace(first, whole_below=None, required=MIB), replace(second, required=GIB))
    here = site(replace(machine, ram=both), ram=8 * GIB)  # type: ignore[arg-type]
    size = here.windows[0].range.size
    some = replace(here, wanted=replace(here.wanted, ram=size + high))
    spans = [(span.start, span.last) for _, span in some.required()]
    assert spans == [(0, MIB - 1), (4 * GIB, 4 * GIB + min(high, GIB) - 1)]
    alone = replace(here, wanted=replace(here.wanted, ram=size))
    assert [span.start for _, span in alone.required()] == [0]


@pytest.mark.parametrize(
    ("nodes", "span", "offset", "parts"),
    [
        ([4, 4], (100, 107), 0, [(100, 103, 0), (104, 107, 1)]),
        ([4, 4], (100, 103), 0, [(100, 103, 0)]),
        ([4, 4], (100, 103), 4, [(100, 103, 1)]),
        ([4, 4], (100, 102), 3, [(100, 100, 0), (101, 102, 1)]),
        ([4, 1, 4], (100, 108), 0, [(100, 103, 0), (104, 104, 1), (105, 108, 2)]),
        ([1, 8], (100, 100), 0, [(100, 100, 0)]),
        ([1, 8], (100, 100), 1, [(100, 100, 1)]),
    ],
)
def test_span_is_cut_where_a_node_ends(
    nodes: list[int], span: tuple[int, int], offset: int, parts: list[tuple[int, int, int]]
) -> None:
    here = site("s390x")
    all_ = tuple(WantedNode(str(n), size, 1, None) for n, size in enumerate(nodes))
    here = replace(here, wanted=replace(here.wanted, nodes=all_))
    found = [
        (at.start, at.last, int(node or 0))
        for at, node in _of_nodes(here, AddrRange(*span), offset)
    ]
    assert found == parts


@pytest.mark.parametrize(
    ("ram", "align", "start"),
    [
        (GIB, 4096, GIB),
        (GIB - 4096, 4096, 2 * MIB),
        (2 * MIB, 4096, 2 * MIB),
        (2 * MIB - 4096, 4096, 4096),
        (GIB, GIB, GIB),
        (GIB, 2 * GIB, 2 * GIB),
        (2 * MIB, 2 * MIB, 2 * MIB),
    ],
)
def test_iovas_of_ram_in_one_piece_suit_the_largest_page_that_it_fills(
    ram: int, align: int, start: int
) -> None:
    allocator = vi.IovaAllocator(vi.RangeSet([AddrRange(0, (1 << 40) - 1)]), granule=4096)
    assert _in_one(allocator, ram, align) == start
    tight = vi.IovaAllocator(vi.RangeSet([AddrRange(0x5000, 0x5000 + 4 * MIB - 1)]), granule=4096)
    assert _in_one(tight, 4 * MIB, 4096) == 0x5000


CUT = parse_text(
    "0x0 - 0xffffffff\n0x140000000 - 0x17fffffff\n0x1c0000000 - 0xffffffffff\n", "l", "iova_ranges"
)[0].usable(granule=4096)


@pytest.mark.parametrize(
    ("gib", "policy", "starts"),
    [
        # RAM of own-arm begins at 1 GiB; a move is to the lowest whole GiB where all of it fits.
        (3, "move", [1]),
        (4, "move", [7]),
        (4, "split", [1, 5]),
        (5, "split", [1, 5, 7]),
        (249, "move", [7]),
    ],
)
def test_ram_is_moved_to_the_lowest_gib_where_all_of_it_fits(
    gib: int, policy: Any, starts: list[int]
) -> None:
    layout = vi.plan(vi.Guest("own-arm", f"{gib}G", pci64=0), CUT, policy)
    assert [item.place.start // GIB for item in layout.ram] == starts


def test_ram_that_fits_nowhere_is_not_moved() -> None:
    top = 1024 - 7
    guest = vi.Guest("own-arm", f"{top}G", pci64=0)
    assert vi.plan(guest, CUT, "move").ram[0].place.last == (1 << 40) - 1
    with pytest.raises(vi.PlanError):
        vi.plan(replace(guest, ram=top * GIB + 4096), CUT, "move")
    assert len(vi.plan(replace(guest, ram=(top + 4) * GIB), CUT, "split").ram) == 3
    with pytest.raises(vi.PlanError, match="4 KiB too much"):
        vi.plan(replace(guest, ram=(top + 4) * GIB + 4096), CUT, "split")


@pytest.mark.parametrize(("start", "fits"), [(0, True), (1, False)])
def test_ram_of_chosen_iovas_ends_at_the_guests_last_address(start: int, fits: bool) -> None:
    machine = vi.load_machine("s390x")
    (window,) = machine.ram
    moved = replace(window, range=AddrRange(start * GIB, window.range.last))
    guest = vi.Guest(replace(machine, ram=(moved,)), 4 * GIB, phys_bits=32)
    if fits:
        assert vi.plan(guest, ALL).ram[0].gpa == AddrRange(0, 4 * GIB - 1)
        return
    with pytest.raises(vi.PlanError, match="ends beyond guest physical") as caught:
        vi.plan(guest, ALL)
    assert caught.value.reasons[0].fits == 3 * GIB


MANY = [(4 + 2 * n, 5 + 2 * n) for n in range(14)]  # of 1 GiB each, in GiB


@pytest.mark.parametrize(
    ("ranges", "ram", "pieces"),
    [
        # A large range behind many small ones holds all that is not low.
        ([(0, 2), *MANY, (40, 60)], "10G", [(0, 2), (40, 48)]),
        # The two largest, in order; of equal cost the lower.
        ([(0, 2), (4, 5), (6, 10), (12, 13), (14, 18)], "10G", [(0, 2), (6, 10), (14, 18)]),
        ([(0, 2), (4, 8), (9, 13)], "5G", [(0, 2), (4, 7)]),
        # A guest that would be whole below the gap spills over it, past the small ranges.
        ([(0, 1), (1.125, 1.25), (1.5, 1.75), (4, 8)], "2.5G", [(0, 1), (4, 5.5)]),
        # What the machine needs stays, also where it is small.
        ([(0, 0.25), (4, 8)], "3G", [(0, 0.25), (4, 6.75)]),
    ],
)
def test_fewest_pieces_are_in_the_largest_ranges(
    ranges: list[tuple[float, float]], ram: str, pieces: list[tuple[float, float]]
) -> None:
    text = "".join(f"{int(a * GIB):#x} - {int(b * GIB) - 1:#x}\n" for a, b in ranges)
    usable = parse_text(text, "l", "iova_ranges")[0].usable(granule=4096)
    layout = vi.plan(vi.Guest("own-x86", ram, pci64=0), usable, "split", prefer="fewest")
    found = [(item.place.start / GIB, (item.place.last + 1) / GIB) for item in layout.ram]
    assert found == pieces


FIRST = (0, 0x3FFF_FFFF)


@pytest.mark.parametrize(
    ("free", "room"),
    [
        # The window of less RAM than 0xb0000000 ends there, and RAM is aligned to 1 GiB.
        ([(0, 0xFFFF_FFFF)], [(0, 0xAFFF_FFFF)]),
        ([(0, 0x7FFF_FFFF), (0x9000_0000, 0xFFFF_FFFF)], [(0, 0x7FFF_FFFF)]),
        ([FIRST, (0x5000_0000, 0xFFFF_FFFF)], [FIRST, (0x8000_0000, 0xAFFF_FFFF)]),
        ([FIRST, (0x8000_0000, 0xAFFF_FFFF)], [FIRST, (0x8000_0000, 0xAFFF_FFFF)]),
        ([FIRST, (0x8000_0000, 0xAFFF_EFFF)], [FIRST]),
        ([(0x1000, 0x3FFF_FFFF)], []),
    ],
)  # fmt: skip
def test_room_ends_raggedly_only_where_its_window_ends(
    free: list[tuple[int, int]], room: list[tuple[int, int]]
) -> None:
    text = "".join(f"{start:#x} - {last:#x}\n" for start, last in free)
    usable = parse_text(text, "l", "iova_ranges")[0].usable(granule=4096)
    here = site("q35", usable, ram="2G", align="1G")
    found = list(here.room(here.windows[0], GIB))
    assert [(span.start, last) for span, last in found] == room
