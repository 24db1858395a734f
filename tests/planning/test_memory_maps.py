# SPDX-License-Identifier: Apache-2.0
"""What the guest is told: e820, device tree, /proc/iomem, and what to leave alone."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.planning.layout import ItemKind
from vmm_iova.planning.memory_maps import iomem, map_data, viommu_lines, write_map
from vmm_iova.ranges import AddrRange, RangeSet


@pytest.fixture
def amd() -> vi.Layout:
    return vi.plan(vi.Guest("q35", "1.5TiB"), vi.load_host("amd-epyc-1tb").usable())


@pytest.fixture
def d05() -> vi.Layout:
    usable = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
    return vi.plan(vi.Guest("virt", nodes=["2G", "2G"]), usable)


def test_e820_has_ram_around_what_is_reserved(amd: vi.Layout) -> None:
    table = [(str(entry.range), entry.name) for entry in vi.e820(amd)]
    assert table[:3] == [
        ("0x0-0x9fbff", "usable"),
        ("0x9fc00-0xfffff", "reserved"),
        ("0x100000-0x7fffffff", "usable"),
    ]
    assert ("0xfd00000000-0xffffffffff", "reserved") in table
    assert ("0xfee00000-0xfeefffff", "reserved") in table
    assert not any("0xc0000000" in span for span, _ in table)  # the guest places BARs there


@pytest.mark.parametrize(
    "name", [n for n in vi.machine_names() if vi.load_machine(n).arch == "x86_64"]
)
def test_e820_of_every_x86_machine_is_disjoint_and_has_all_ram(name: str) -> None:
    layout = vi.plan(vi.Guest(name, "8G"), vi.load_host("amd-epyc-1tb").usable())
    entries = vi.e820(layout)
    assert all(below.range.last < above.range.start for below, above in pairwise(entries))
    assert {entry.type for entry in entries} == {1, 2}
    usable = RangeSet(entry.range for entry in entries if entry.type == 1)
    told = RangeSet(item.range for item in layout.machine.ram_reserved)
    assert usable | told == RangeSet(item.place for item in layout.ram) | told


def test_e820_text_reads_as_the_kernel_logs_it(amd: vi.Layout) -> None:
    first = write_map(amd, "e820").splitlines()[0]
    assert first == "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable"


def test_device_tree_has_a_node_for_each_piece_and_hole(d05: vi.Layout) -> None:
    text = vi.device_tree(d05)
    assert re.findall(r"memory@(\w+)", text) == ["40000000", "c0000000", "c6020000"]
    assert re.findall(r"numa-node-id = <(\d)>", text) == ["0", "1", "1"]
    assert "host-hole@c6010000 {\n\t\treg = <0x0 0xc6010000 0x0 0x10000>;\n\t\tno-map;" in text
    assert text.count("{") == text.count("}")


def test_device_tree_without_a_hole_has_no_reserved_memory() -> None:
    usable = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
    assert "reserved-memory" not in vi.device_tree(vi.plan(vi.Guest("virt", "1G", pci64=0), usable))


def test_iomem_indents_what_lies_inside(amd: vi.Layout) -> None:
    lines = write_map(amd, "iomem").splitlines()
    assert lines[0] == "00000000000-0007fffffff : System RAM"
    assert any(line.endswith(": Reserved") for line in lines)


def test_exclude_lists_the_holes_with_their_causes(amd: vi.Layout) -> None:
    ((span, cause),) = vi.exclude(amd)
    assert span == AddrRange(0xFD_0000_0000, 0xFF_FFFF_FFFF)
    assert "HyperTransport" in cause
    assert write_map(amd, "exclude").startswith("0xfd00000000-0xffffffffff reserved region")


@pytest.mark.parametrize(
    ("machine", "form", "hint"),
    [("virt", "e820", "ask for dts"), ("q35", "dts", "ask for e820"), ("s390x", "e820", None)],
)
def test_form_that_the_guest_does_not_read_is_refused(
    machine: str, form: str, hint: str | None
) -> None:
    usable = vi.Host("made").usable(aperture=40, granule=4096)
    with pytest.raises(vi.RequestError) as caught:
        write_map(vi.plan(vi.Guest(machine, "2G"), usable), form)
    assert caught.value.hint == hint


def test_unknown_form_is_refused(amd: vi.Layout) -> None:
    with pytest.raises(vi.RequestError, match="none of e820, dts, iomem, exclude"):
        write_map(amd, "srat")


def test_data_has_the_forms_that_this_guest_reads(amd: vi.Layout, d05: vi.Layout) -> None:
    x86, arm = map_data(amd), map_data(d05)
    assert x86["e820"][0] == {"start": "0x0", "size": "0x9fc00", "type": 1, "name": "usable"}
    assert x86["device_tree"] is None
    assert arm["e820"] is None
    assert arm["device_tree"].startswith("memory@40000000")


def test_guests_own_iommu_is_told_width_and_holes() -> None:
    usable = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
    told = map_data(vi.plan(vi.Guest("virt", "4G", viommu=True), usable))["viommu"]
    assert told["address_bits"] == 48
    assert {"start": "0xc6010000", "last": "0xc601ffff"} in told["reserved"]


def test_hole_inside_a_fixed_window_is_told_too() -> None:
    region = "0x0000005000000000 0x0000005fffffffff reserved\n"
    host = parse_text(region, "made")[0]
    layout = vi.plan(vi.Guest("firecracker", "4G"), host.usable(aperture=48, granule=4096))
    assert any(item.range.start == 0x50_0000_0000 for item in layout.guest_reserved)


def _arm(text: str) -> vi.Usable:
    (host,) = parse_text(text, "made")
    return host.usable(aperture=48)


def _nodes(layout: vi.Layout) -> list[tuple[str, int, int]]:
    """The reserved-memory nodes: name, start, size."""
    found = re.findall(
        r"\t([\w-]+)@(\w+) \{\n\t\treg = <(\w+) (\w+) (\w+) (\w+)>", vi.device_tree(layout)
    )
    return [
        (name, int(at, 16), (int(high, 16) << 32) + int(low, 16))
        for name, at, _, _, high, low in found
    ]


def test_area_that_the_guest_keeps_free_is_one_node_and_no_hole_of_the_host() -> None:
    kept = vi.FixedItem("fb", "reserved", AddrRange.from_size(0x6000_0000, 1 << 24))
    guest = vi.Guest("virt", "8G", reserved=[kept])
    layout = vi.plan(guest, _arm("0x8000000 0x80fffff msi\n"))
    assert _nodes(layout) == [("reserved", 0x6000_0000, 1 << 24)]
    assert layout.host_holes == ()
    assert "Reserved" not in write_map(layout, "iomem")


def test_regions_that_overlap_are_one_node_with_every_cause() -> None:
    usable = _arm("0xf0000000 0xf00fffff reserved\n0xf0000000 0xf01fffff msi\n")
    kept = vi.FixedItem("fb", "reserved", AddrRange.from_size(0xF010_0000, 1 << 24))
    layout = vi.plan(vi.Guest("virt", "8G", reserved=[kept]), usable)
    assert _nodes(layout) == [
        ("host-hole", 0xF000_0000, 0x20_0000),
        ("reserved", 0xF020_0000, 0xF0_0000),
    ]
    text = vi.device_tree(layout)
    assert "reserved region 0xf0000000" in text
    assert "msi region 0xf0000000" in text


def test_node_of_a_device_tree_has_its_own_number_and_a_name_that_of_its_place() -> None:
    usable = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
    for names, numbers in (
        (("7", "3"), ["7", "3"]),
        (("b", "a"), ["0", "1"]),
        (("²", "1" * 30), ["0", "1"]),
    ):
        nodes = [vi.Node("1G", name=name) for name in names]
        layout = vi.plan(vi.Guest("virt", nodes=nodes), usable)
        found = re.findall(r"numa-node-id = <(\d+)>", vi.device_tree(layout))
        assert list(dict.fromkeys(found)) == numbers


# -- every part, in every form ---------------------------------------------------------------------

SPLIT_ARM = "0x0 - 0xc600ffff\n0xc6020000 - 0xffffffffff\n"
FB = vi.FixedItem("fb", "reserved", AddrRange.from_size(0x5000_0000, 1 << 24))


def _list(text: str) -> vi.Usable:
    return parse_text(text, "list", "iova_ranges")[0].usable()


def test_device_tree_is_this_text() -> None:
    usable = _list(SPLIT_ARM)
    nodes = [vi.Node("1G"), vi.Node("2G", name="far"), vi.Node("1G", name="7")]
    guest = vi.Guest("own-arm", nodes=nodes, reserved=[FB], doorbells=[vi.Doorbell("v2m", "4KiB")])
    text = vi.device_tree(vi.plan(guest, usable, "split"))
    assert re.findall(r"numa-node-id = <(\d+)>", text) == ["0", "0", "1", "1", "7"]
    assert re.findall(r"reg = <(.*)>;\n\tnuma", text) == [
        "0x0 0x40000000 0x0 0x10000000",
        "0x0 0x51000000 0x0 0x30000000",
        "0x0 0x81000000 0x0 0x45010000",
        "0x0 0xc6020000 0x0 0x3aff0000",
        "0x1 0x1010000 0x0 0x40000000",
    ]
    assert re.findall(r"msi-controller@(\w+) \{\t/\* (\w+) \*/\n\tmsi-controller;", text) == [
        (f"{item.place.start:x}", item.name)
        for item in vi.plan(guest, usable, "split").items
        if item.name in ("its", "v2m")
    ]
    tail = text[text.index("\nreserved-memory {") :]
    assert tail.startswith(
        "\nreserved-memory {\n\t#address-cells = <2>;\n\t#size-cells = <2>;\n\tranges;\n\n\t/* "
    )
    assert "/* kept for fb, as asked for */\n" in tail
    assert "/* fb */\n" in tail
    assert "\treserved@50000000 {" in tail
    assert tail.count("no-map") == 1
    assert (
        "host-hole@c6010000 {\n\t\treg = <0x0 0xc6010000 0x0 0x10000>;\n\t\tno-map;\n\t};" in tail
    )
    assert tail.endswith("\n\t};\n};\n")


@pytest.mark.parametrize(
    ("machine", "e820", "tree"),
    [
        ("q35", True, False),
        ("virt", False, True),
        ("riscv-virt", False, True),
        ("s390x", False, False),
    ],
)
def test_guest_reads_the_forms_of_its_architecture(machine: str, e820: bool, tree: bool) -> None:
    layout = vi.plan(vi.Guest(machine, "2G"), vi.Host("h").usable(aperture=48, granule=4096))
    data = map_data(layout)
    assert (data["e820"] is not None, data["device_tree"] is not None) == (e820, tree)
    assert data["viommu"] is None
    for form, reads in (("e820", e820), ("dts", tree)):
        if reads:
            assert write_map(layout, form)  # type: ignore[arg-type]
        else:
            with pytest.raises(vi.RequestError) as caught:
                write_map(layout, form)  # type: ignore[arg-type]
            assert (caught.value.field, caught.value.value) == ("format", form)


def test_iomem_indents_as_deep_as_it_lies_and_pads_to_the_widest() -> None:
    usable = _list("0x0 - 0xfedfffff\n0xfef00000 - 0x17fffffff\n0x200000000 - 0xffffffffff\n")
    layout = vi.plan(vi.Guest("own-x86", "4G"), usable)
    lines = write_map(layout, "iomem").splitlines()
    assert "100000000-17fffffff : System RAM" in lines
    assert "000000000-07fffffff : System RAM" in lines
    assert not any(line.startswith("  100000000") for line in lines)
    small = vi.plan(vi.Guest("own-x86", "1G", pci64=0), usable)
    low = replace(small, items=small.ram, guest_reserved=())
    assert write_map(low, "iomem") == "00000000-3fffffff : System RAM\n"
    inner = replace(small.ram[0], kind=ItemKind.DEVICE, name="in", gpa=AddrRange(0x1000, 0x1FFF))
    beside = replace(inner, name="by", gpa=AddrRange(0x2000, 0x2FFF))
    deep = replace(inner, name="deep", gpa=AddrRange(0x1800, 0x1FFF))
    nested = replace(small, items=(small.ram[0], inner, deep, beside), guest_reserved=())
    assert write_map(nested, "iomem").splitlines() == [
        "00000000-3fffffff : System RAM",
        "  00001000-00001fff : in",
        "    00001800-00001fff : deep",
        "  00002000-00002fff : by",
    ]


@pytest.mark.parametrize(
    ("spans", "machine", "lines"),
    [
        ("0x0 - 0x7fffffffff\n", "own-x86", ["at most 39 address bits, 0x0-0x7fffffffff (", ]),
        ("0x0 - 0x7ffffffffe\n", "own-x86", ["at most 38 address bits, "]),
        ("0x0 - 0xffffffffffff\n", "own-x86", ["at most 48 address bits, 0x0-0xffffffffffff ("]),
        ("0x0 - 0xffffffffffff\n", "own-arm", ["at most 48 address bits, 0x0-0xffffffffffff"]),
        (
            "0x0 - 0xfedfffff\n0xfef00000 - 0x7fffffffff\n", "own-x86",
            ["at most 39 address bits, ", "must not hand out 0xfee00000-0xfeefffff"],
        ),
    ],
)  # fmt: skip
def test_guests_own_iommu_is_told_what_the_host_has(
    spans: str, machine: str, lines: list[str]
) -> None:
    layout = vi.plan(vi.Guest(machine, "1G", viommu=True, pci64=0), _list(spans))
    found = list(viommu_lines(layout))
    assert [text[: len(start)] for text, start in zip(found, lines, strict=True)] == lines
    bits = found[0].split()[2]
    option = found[0].partition(" (")[2]
    wide = {"39": "39", "48": "48"}.get(bits)
    assert (wide is not None and machine == "own-x86") == bool(option)
    assert wide is None or not option or wide in option
    plain = vi.plan(vi.Guest(machine, "1G", pci64=0), _list(spans))
    assert list(viommu_lines(plain)) == []


def test_what_the_guest_leaves_alone_is_told_once_and_in_order() -> None:
    layout = vi.plan(vi.Guest("own-arm", "4G", reserved=[FB]), _list(SPLIT_ARM), "split")
    spans = [span for span, _ in vi.exclude(layout)]
    assert spans == sorted(spans)
    assert map_data(layout)["exclude"] == [
        {"start": f"{span.start:#x}", "last": f"{span.last:#x}", "cause": cause}
        for span, cause in vi.exclude(layout)
    ]
    for (start, last), (_, cause) in zip(
        ((span.start, span.last) for span in spans), vi.exclude(layout), strict=True
    ):
        assert f"{start:#x}-{last:#x} {cause}\n" in write_map(layout, "exclude")


def test_wider_part_stands_before_what_begins_where_it_does() -> None:
    bars = [vi.Bar(name, "4G") for name in "ab"]
    guest = vi.Guest("q35", "2G", bars=bars, firmware="seabios-1.16.3", phys_bits=40)
    lines = iomem(vi.plan(guest, vi.Host("h").usable(aperture=40))).splitlines()
    at = lines.index("100000000-8ffffffff : 64-bit PCI window")
    assert lines[at + 1 : at + 3] == [
        "  100000000-1ffffffff : a",
        "  200000000-2ffffffff : b",
    ]
