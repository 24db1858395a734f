# SPDX-License-Identifier: Apache-2.0
"""Machine models: the ones that ship, and what a user's own file may get wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import vmm_iova as vi
from vmm_iova.machines.parts import RamWindow
from vmm_iova.ranges import AddrRange

MONITORS = ("QEMU", "cloud-hypervisor", "firecracker", "crosvm", "kvmtool")
GOOD = """
name = "mine"
arch = "x86_64"
[[ram]]
name = "low"
start = "0x0"
last = "0xbfffffff"
[[ram]]
name = "high"
start = "4G"
[[fixed]]
name = "doorbell"
kind = "doorbell"
start = "0xfee00000"
last = "0xfeefffff"
"""


def _load(tmp_path: Path, text: str) -> vi.Machine:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return vi.load_machine(path)


@pytest.mark.parametrize("name", vi.machine_names())
def test_bundled_machine_names_its_source(name: str) -> None:
    machine = vi.load_machine(name)
    assert machine.name == name
    assert machine.source.partition(" ")[0] in MONITORS


def test_own_machine_is_read_and_planned(tmp_path: Path) -> None:
    machine = _load(tmp_path, GOOD)
    usable = vi.load_host("amd-epyc-1tb").usable()
    layout = vi.plan(vi.Guest(machine, "4G"), usable)
    assert [item.gpa for item in layout.ram] == [
        AddrRange(0, 0xBFFF_FFFF),
        AddrRange(1 << 32, (5 << 30) - 1),
    ]


def test_alias_finds_the_machine() -> None:
    assert vi.load_machine("arm64-virt") is vi.load_machine("virt")


def test_misspelt_machine_says_what_was_meant() -> None:
    with pytest.raises(vi.errors.UnknownNameError, match="no machine model 'q53'") as caught:
        vi.load_machine("q53")
    assert "did you mean q35?" in (caught.value.hint or "")


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(vi.errors.HostUnavailableError, match="does not exist"):
        vi.load_machine(tmp_path / "none.toml")


def test_directory_as_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "dir.toml").mkdir()
    with pytest.raises(vi.errors.HostUnavailableError, match="Is a directory"):
        vi.load_machine(tmp_path / "dir.toml")


def test_binary_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "junk.toml"
    path.write_bytes(b"\xff\xfe\x00junk")
    with pytest.raises(vi.errors.HostDataError, match="is not text"):
        vi.load_machine(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("name = ", "nmae = "), r"nmae is not a key here"),
        (('kind = "doorbell"', 'kind = "bell"'), r"fixed\[0\].kind 'bell' is none of"),
        (('start = "0x0"', 'start = "zero"'), r"ram\[0\].start is wrong"),
        (('last = "0xbfffffff"', 'last = "0x1ffffffff"'), r"'low' .* and 'doorbell' .* overlap"),
        (('start = "0x0"', 'start = "0xc0000000"'), r"ram\[0\].last 0xbfffffff is below start"),
        (('last = "0xfeefffff"', ""), r"fixed\[0\].last is missing"),
        (("[[ram]]", "[ram]", 1), r"Cannot overwrite"),
        (('arch = "x86_64"', ""), r"arch is missing"),
        (('arch = "x86_64"', "arch = 64"), r"arch should be text"),
        (('arch = "x86_64"', 'arch = "x86_64"\nidentity = 1'), r"identity should be true or false"),
        (('arch = "x86_64"', 'arch = "x86_64"\naliases = "a"'), r"aliases should be a list"),
        (("[[ram]]", '[pci64]\nsize="3G"\nalign="3G"\n[[ram]]', 1), r"pci64.align .* power of two"),
        (("[[ram]]", "pci64 = 5\n[[ram]]", 1), r"pci64 should be a table"),
    ],
)
def test_mistake_in_a_file_names_the_key(tmp_path: Path, change: tuple, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(vi.errors.HostDataError, match=said) as caught:
        _load(tmp_path, GOOD.replace(*change))
    assert caught.value.message.startswith(f"mine.toml:{caught.value.line}: ")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("name = ", "nmae = "), 2),
        (('kind = "doorbell"', 'kind = "bell"'), 13),
        (('start = "4G"', 'start = "4GB"'), 10),
        (('last = "0xfeefffff"', ""), 11),  # the line of its table
        (('last = "0xbfffffff"', 'last = "0xffffffff"'), 12),  # what it overlaps
        (('arch = "x86_64"', "arch = x86_64"), 3),  # no TOML at all
        (('arch = "x86_64"', 'arch = "x86_64"\nphys_bits = 20'), 4),
        (('arch = "x86_64"', 'arch = "x86_64"\noptions = {phys_bits = "{a}"}'), 4),
        (("[[ram]]", '[pci64]\nsize="1/3"\nalign="1G"\n[[ram]]', 1), 5),
        (("[[ram]]", '[pci64]\nsize="rest"\nalign="1G"\nstart="8G"\n[[ram]]', 1), 7),
    ],
)
def test_mistake_in_a_file_names_the_line(tmp_path: Path, change: tuple, line: int) -> None:  # type: ignore[type-arg]
    with pytest.raises(vi.errors.HostDataError) as caught:
        _load(tmp_path, GOOD.replace(*change))
    assert caught.value.line == line
    assert caught.value.message.startswith(f"mine.toml:{line}: ")


FULL = """name = "mine"
arch = "x86_64"
phys_bits = 46
ram_max = "1TiB"
[[ram]]
name = "low"
start = "0x0"
last = "0xbfffffff"
required = "1MiB"
whole_below = "0xe0000000"
[[ram]]
name = "high"
start = "4G"
move_to = "1TiB"
[[fixed]]
name = "doorbell"
kind = "doorbell"
start = "0xfee00000"
last = "0xfeefffff"
[[ram_reserved]]
name = "hole"
start = "0xa0000"
last = "0xfffff"
[[above]]
name = "ecam"
kind = "device"
size = "256MiB"
[pci64]
size = "32GiB"
align = "1GiB"
floor = "4GiB"
[options]
phys_bits = "x {bits}"
"""


def test_file_with_every_table_is_read(tmp_path: Path) -> None:
    assert _load(tmp_path, FULL).option("phys_bits", bits=39) == "x 39"


def test_order_of_fixed_parts_in_a_file_does_not_matter(tmp_path: Path) -> None:
    low = '[[fixed]]\nname = "rom"\nkind = "firmware"\nstart = "0xc0000000"\nlast = "0xc0ffffff"\n'
    machine = _load(tmp_path, f"{GOOD}{low}")
    assert [item.name for item in machine.fixed] == ["rom", "doorbell"]


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('arch = "x86_64"', 'arch = "amd64"', 2, "'amd64' is none of aarch64, .* x86_64, as uname"),
        ('name = "mine"', 'name = ""', 1, "name is empty"),
        ('name = "mine"', 'name = "a\\nb"', 1, "should be one line"),
        ("phys_bits = 46", "phys_bits = 0", 3, "phys_bits 0 is not a number .* 32 to 64"),
        ("phys_bits = 46", "phys_bits = 70", 3, "phys_bits 70 is not"),
        ("phys_bits = 46", "phys_bits = 46.0", 3, "phys_bits 46.0 is not"),
        ("phys_bits = 46", "phys_bits = true", 3, "phys_bits True is not"),
        ("phys_bits = 46", "phys_bits = 32", 13, "start 0x100000000 is beyond 0xffffffff,"),
        ("1TiB", "1000", 9, "required 0x100000 is more than ram_max allows: at most 0x3e8"),
        ("1TiB", "0x100001", 4, "0x100001 is not a multiple of 0x1000, .* 0x100000 or 0x101000"),
        ("1TiB", "1PiB", 4, "0x4000000000000 is more than the RAM windows hold: .* 0x3fffc0000000"),
        ('start = "0x0"', 'start = "0x123"', 7, "0x123 is not a multiple of 0x1000, .*: 0x1000"),
        ('start = "0x0"', "start = -4096", 7, "-4096 is outside"),
        ('start = "0x0"', "start = 1.5", 7, "not float"),
        ("0xbfffffff", "0xc0000000", 8, "0xc0000000 is not the last byte of a page .*: 0xbfffffff"),
        ("0xbfffffff", "0xfff", 9, "required 0x100000 is more than the window 0x0-0xfff holds"),
        ('"1MiB"', '"4GiB"', 9, "0x100000000 is more than the window .*: at most 0xc0000000"),
        ('"0xe0000000"', '"0xff000000"', 10, "into 'doorbell' .*: 0xfee00000 is the most"),
        ('"0xe0000000"', '"0xc0000000"', 10, "0xc0000000 is not above 0xc0000000"),
        ("move_to", 'whole_below = "8G"\nmove_to', 14, "counts in the first window only"),
        ('to = "1TiB"', 'to = "0x10000000001"', 14, "0x10000000001 is not a multiple of 0x1000"),
        ('to = "1TiB"', 'to = "0xfee00000"', 14, "0xfee00000 lies in 'doorbell'"),
        ('to = "1TiB"', 'to = "4G"', 14, "is where the window begins anyway"),
        ('to = "1TiB"', 'to = "1PiB"', 14, "0x4000000000000 is beyond 0x3fffffffffff"),
        ("move_to", "movable = false\nmove_to", 15, r"but ram\[1\].movable is false"),
        ('move_to = "1TiB"', 'movable_note = "x"', 14, r"but ram\[1\].movable is false"),
        ('start = "4G"', 'start = "2G"', 12, "'low' .* and 'high' .* overlap"),
        ('name = "high"', 'name = "low"', 12, r"'low' is the name of ram\[0\] already"),
        ('name = "ecam"', 'name = "doorbell"', 25, r"is the name of fixed\[0\] already"),
        ('last = "0xfeefffff"', 'last = "0xfedfffff"', 19, "is below start 0xfee00000"),
        (
            'doorbell"\nstart = "0xfee00000"\nlast = "0xfeefffff"',
            'doorbell"\nstart = "0x1000"\nlast = "0x1fff"',
            16,
            "'low' 0x0-0xbfffffff and 'doorbell' 0x1000-0x1fff overlap",
        ),
        ('"0xa0000"\nlast = "0xf', '"0xfe000000"\nlast = "0xfe0f', 22, "not lie in a RAM window"),
        (
            "[[above]]",
            '[[ram_reserved]]\nname = "h"\nstart = "0xb0000"\nlast = "0xb0fff"\n[[above]]',
            26,
            "'hole' .* and 'h' .* overlap",
        ),
        ('"256MiB"', '"3MiB"', 27, "0x300000 is not a power of two: 0x200000 or 0x400000"),
        ('"256MiB"', '"1"', 27, "0x1 is not a power of two from 0x1000"),
        ('"256MiB"', '"64TiB"', 27, r"above\[0\].size 0x400000000000 is beyond 0x3f"),
        ('"256MiB"', '"8M"\nalign="3M"', 28, "align 0x300000 is not a .*: 0x200000 or 0x400000"),
        ('"256MiB"', '"8M"\nalign="512"', 28, "align 0x200 is not a power of two from 0x1000"),
        ('"256MiB"', '"8M"\nalign="0"', 28, r"above\[0\].align is wrong: align 0 is out of"),
        ('"256MiB"', '"8M"\nalign=4096.0', 28, r"above\[0\].align is wrong: .*not float"),
        ('"256MiB"', '"8M"\nalign="64T"', 28, r"above\[0\].align 0x400000000000 is beyond"),
        ('"32GiB"', '"4KiB"', 29, "0x1000 is not a multiple of 0x100000, .*: 0x100000 would"),
        ('"32GiB"', '"1PiB"', 29, "0x4000000000000 is all of the guest's addresses"),
        ('size = "32GiB"', "", 28, "pci64.size is missing"),
        ('align = "1GiB"', 'align = "1"', 30, "pci64.align 0x1 is not a power of two from 0x1000"),
        ('floor = "4GiB"', 'floor = "1PiB"', 31, "pci64.floor 0x4000000000000 is beyond"),
        ('floor = "4GiB"', 'start = "8GiB"', 31, "'high' .* and '64-bit PCI window' .* overlap"),
        ('floor = "4GiB"', 'top_free = "64KiB"', 31, "top_free 0x10000 counts only where"),
        ('floor = "4GiB"', 'step = "4GiB"', 31, "step 0x100000000 counts only where"),
        ('"32GiB"', '"rest"\nstep = "100"', 30, "step 0x64 is not a multiple of 0x1000"),
        ('"32GiB"', '"rest"\nstep = "64TiB"', 30, "step 0x400000000000 is beyond 0x3f"),
        ('{bits}"', '{mib}"', 33, r"may hold \{bits\} and nothing else"),
        ('{bits}"', '{bits.real}"', 33, r"may hold \{bits\} and nothing else"),
        ('{bits}"', '{bits:>99}"', 33, r"may hold \{bits\} and nothing else"),
        ('{bits}"', '{"', 33, r"it may hold \{bits\}"),
        ("phys_bits = 46", 'aliases = ["mine"]', 3, "aliases mine repeat a name"),
    ],
)
def test_nonsense_in_a_file_is_one_sentence_with_the_line_and_what_would_be_right(
    tmp_path: Path, old: str, new: str, line: int, said: str
) -> None:
    assert old in FULL
    with pytest.raises(vi.errors.HostDataError, match=said) as caught:
        _load(tmp_path, FULL.replace(old, new, 1))
    assert caught.value.line == line
    assert caught.value.message.startswith(f"mine.toml:{line}: ")


SPLIT = GOOD + '[pci64]\nsize = "1G"\nalign = "1G"\nstart = "8G"\n'


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("8G", "0x200100000", 19, "0x200100000 is not a multiple of .* 0x40000000: 0x200000000"),
        ("8G", '8G"\nfloor = "4G', 20, "floor 0x100000000 says nothing beside pci64.start"),
        ("8G", "0xffffffffc0000000", None, None),
        ("8G", '0xffffffffc0000000"\n#', None, None),
        ('"1G"\nalign', '"2G"\nalign', None, None),
    ],
)
def test_fixed_window_for_64_bit_bars_is_checked(
    tmp_path: Path, old: str, new: str, line: int | None, said: str | None
) -> None:
    text = SPLIT.replace('start = "4G"', 'start = "4G"\nlast = "0x1ffffffff"').replace(old, new, 1)
    if said is None:
        assert _load(tmp_path, text).pci64 is not None
        return
    with pytest.raises(vi.errors.HostDataError, match=said) as caught:
        _load(tmp_path, text)
    assert caught.value.line == (line or 0) + 1  # the line that was put in


def test_fixed_window_beyond_the_top_says_how_large_it_may_be(tmp_path: Path) -> None:
    text = SPLIT.replace('start = "4G"', 'start = "4G"\nlast = "0x1ffffffff"')
    text = text.replace('"1G"\nalign', '"2G"\nalign').replace('"8G"', '"0xffffffffc0000000"')
    beyond = r"reaches beyond 0xf{16}: at most 0x40000000"
    with pytest.raises(vi.errors.HostDataError, match=beyond):
        _load(tmp_path, text)


def test_fixed_window_above_4_gib_is_not_for_32_bit_bars(tmp_path: Path) -> None:
    text = GOOD.replace('kind = "doorbell"', 'kind = "window"')
    text = text.replace('"0xfee00000"', '"0xf0000000"').replace('"0xfeefffff"', '"0x10fffffff"')
    text = text.replace('start = "4G"', 'start = "8G"')
    with pytest.raises(vi.errors.HostDataError, match=r"0x10fffffff is not below 0x100000000"):
        _load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        pytest.param(f"x = {'9' * 5000}", 1, "more digits", id="number-alone"),
        pytest.param(
            f"{GOOD}\nx = {'9' * 5000}\ny = {'9' * 5000}\n", 17, "more digits", id="number"
        ),
        pytest.param(f"x = {'[' * 100_000}", 1, "nested deeper", id="nesting-alone"),
        pytest.param(f"{GOOD}y = [\n1, {'[' * 100_000}\n]\n", 17, "nested deeper", id="nesting"),
    ],
)
def test_toml_beyond_all_measure_is_one_sentence_with_its_line(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    beyond = rf"^mine\.toml:{line}: [a-z ]+ {what} than can be read: .{{10,60}}$"
    with pytest.raises(vi.errors.HostDataError, match=beyond) as caught:
        _load(tmp_path, text)
    assert caught.value.line == line


@pytest.mark.parametrize("name", vi.machine_names())
def test_every_number_of_a_bundled_machine_has_its_source_beside_it(name: str) -> None:
    from importlib import resources

    text = (resources.files("vmm_iova.machines") / f"{name}.toml").read_text("utf-8")
    assert "# Source: " in text.partition("name =")[0]
    above, start = "", ""  # a comment may stand over its line; that of a start counts for the last
    for line in text.splitlines():
        key, _, value = line.partition(" = ")
        start = line if key == "start" else start
        if re.match(r'"?(0x)?\d', value) and not line.startswith("name"):
            beside = line if key != "last" else line + start
            assert "#" in beside or above.startswith("#"), line
        above = line


@pytest.mark.parametrize(
    ("name", "gap", "doorbells"),
    [
        ("q35", "0x80000000-0xffffffff", 1),
        ("firecracker", "0xc0000000-0xffffffff", 1),
        ("crosvm", "0xd0000000-0xffffffff", 1),
        ("cloud-hypervisor-arm", "0xfc000000-0xffffffff", 1),
        ("crosvm-arm", "None", 1),
        ("virt", "None", 2),
        ("riscv-virt", "None", 2),
        ("s390x", "None", 0),
    ],
)
def test_machine_says_its_32_bit_gap_and_doorbells(name: str, gap: str, doorbells: int) -> None:
    machine = vi.load_machine(name)
    assert str(machine.gap32) == gap
    assert len(machine.doorbells) == doorbells


@pytest.mark.parametrize(
    ("name", "ram", "bits", "window"),
    [
        # QEMU 7.2, "info mtree".
        ("microvm", "8G", 39, "0x6000000000-0x7fffffffff"),
        ("riscv-virt", "4G", 48, "0x400000000-0x7ffffffff"),
        ("virt", "8G", 48, "0x8000000000-0xffffffffff"),
        # /proc/iomem of a guest with 39 bits and less than 3 GiB, cloud-hypervisor#3890.
        ("cloud-hypervisor", "2G", 39, "0x100000000-0x7effffffff"),
        # start_addr(), then whole 4 GiB up to 0x110000 below the top; where RAM ends a page later
        # than such steps allow, there is one less.
        ("cloud-hypervisor", "8G", 36, "0x240000000-0xf3fffffff"),
        ("cloud-hypervisor", "0x1bfef0000", 40, "0x1ffef0000-0xffffeeffff"),
        ("cloud-hypervisor", "0x1bfef1000", 40, "0x1ffef1000-0xfeffef0fff"),
        ("cloud-hypervisor-arm", "8G", 36, "0x244000000-0xf43ffffff"),
        # RAM up to 0x3ffffffff, then get_pcie_vcfg_mmio_range(), then get_high_mmio_range().
        ("crosvm", "0x3d0000000", 46, "0x408000000-0x3fffffffffff"),
        # RAM up to 0x27fffffff, then AARCH64_PLATFORM_MMIO_SIZE, then high_mmio.
        ("crosvm-arm", "8G", 40, "0x280800000-0xffffffffff"),
    ],
)
def test_window_is_where_its_vmm_has_it(name: str, ram: str, bits: int, window: str) -> None:
    usable = vi.Host("open").usable(aperture=48, granule=4096)
    layout = vi.plan(vi.Guest(name, ram, phys_bits=bits), usable)
    item = next(item for item in layout.items if item.name == "64-bit PCI window")
    assert str(item.place) == window


def test_window_of_less_than_one_step_is_left_out() -> None:
    usable = vi.Host("open").usable(aperture=48, granule=4096)
    for ram, there in (("10G", True), ("12G", False)):  # of 16 GiB, less the gap and the top
        layout = vi.plan(vi.Guest("cloud-hypervisor", ram, phys_bits=34), usable)
        assert any(item.name == "64-bit PCI window" for item in layout.items) == there
        assert any("window is left out" in note.text for note in layout.notes) != there


@pytest.mark.parametrize(
    ("ram", "start"), [("16G", 512), ("510G", 512), ("511G", 1024), ("0x7fd0000000", 1024)]
)
def test_window_of_virt_leaves_room_for_the_rest_of_the_high_memory_map(
    ram: str, start: int
) -> None:
    # RAM that ends at 512 GiB, or within the GiB below, has redistributors and ECAM at 512 GiB.
    usable = vi.Host("open").usable(aperture=48, granule=4096)
    layout = vi.plan(vi.Guest("virt", ram), usable)
    window = next(item for item in layout.items if item.name == "64-bit PCI window")
    assert window.place.start == start << 30


@pytest.mark.parametrize(
    ("name", "ram", "places"),
    [
        # virt_set_memmap(), virt_set_high_memmap(): a GiB, then each size, not below 256 GiB.
        ("virt", "8G", ["0x4000000000-0x4003ffffff", "0x4010000000-0x401fffffff"]),
        ("virt", "299.5GiB", ["0x4b40000000-0x4b43ffffff", "0x4b50000000-0x4b5fffffff"]),
        # ram_end_round_2mb of get_pcie_vcfg_mmio_range(), not below 4 GiB.
        ("crosvm", "2G", ["0x100000000-0x107ffffff"]),
        ("crosvm", "8G", ["0x230000000-0x237ffffff"]),
        ("crosvm", "8193MiB", ["0x230200000-0x2381fffff"]),
        ("crosvm", "8194MiB", ["0x230200000-0x2381fffff"]),
        # plat_mmio_base of get_system_allocator_config(): end_addr() of RAM as it is.
        ("crosvm-arm", "1G", ["0xc0000000-0xc07fffff"]),
        ("crosvm-arm", "8193MiB", ["0x280100000-0x2808fffff"]),
    ],
)
def test_what_lies_above_ram_is_where_its_vmm_has_it(
    name: str, ram: str, places: list[str]
) -> None:
    usable = vi.Host("open").usable(aperture=48, granule=4096)
    layout = vi.plan(vi.Guest(name, ram), usable)
    above = [item.name for item in vi.load_machine(name).above]
    found = {item.name: str(item.place) for item in layout.items}
    assert [found[item] for item in above] == places


@pytest.mark.parametrize(
    ("align", "start"),
    [("", 0x150000000), ('align = "4KiB"', 0x140001000), ('align = "1GiB"', 0x180000000)],
)
def test_area_above_ram_begins_at_its_align_or_else_its_size(
    tmp_path: Path, align: str, start: int
) -> None:
    text = FULL.replace('size = "256MiB"', f'size = "256MiB"\n{align}')
    (tmp_path / "mine.toml").write_text(text, "utf-8")
    usable = vi.Host("open").usable(aperture=46, granule=4096)
    guest = vi.Guest(vi.load_machine(tmp_path / "mine.toml"), (1 << 32) + 0x1000)
    item = next(item for item in vi.plan(guest, usable).items if item.name == "ecam")
    assert item.place.start == start


def test_machine_made_in_a_program_is_checked_too() -> None:
    low = RamWindow("low", AddrRange(0, 0xFFFF))
    with pytest.raises(vi.RequestError, match="'low' 0x0-0xffff and 'rom' 0x8000-0x8fff overlap"):
        vi.Machine(
            "m", "m", "x", (low,), fixed=(vi.FixedItem("rom", "device", AddrRange(0x8000, 0x8FFF)),)
        )
    with pytest.raises(vi.RequestError, match="no RAM window"):
        vi.Machine("m", "m", "x", ())
    with pytest.raises(vi.RequestError, match="not ascending"):
        vi.Machine("m", "m", "x", (RamWindow("b", AddrRange(1 << 20, 1 << 21)), low))
    q35 = vi.load_machine("q35")
    assert q35.pci64 is not None
    with pytest.raises(vi.RequestError, match=r"pci64\.align 0x0 is not a power of two"):
        replace(q35, pci64=replace(q35.pci64, align=0))


def test_file_without_ram_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vi.errors.HostDataError, match="at least one"):
        _load(tmp_path, 'name = "m"\narch = "x"\n')


@pytest.mark.parametrize(
    "name",
    [
        "q35,cxl=on",
        "q35,cxl-fmw.0.size=4G",
        "q35,sgx-epc.0.memdev=m",
        "virt,nvdimm=on",
        "q35,confidential-guest-support=sev0",
    ],
)
def test_property_that_no_model_expresses_is_refused_by_name(name: str) -> None:
    with pytest.raises(vi.RequestError, match=f"with {name.partition(',')[2]} is not planned: "):
        vi.load_machine(name)


def test_property_that_has_an_option_names_it() -> None:
    with pytest.raises(vi.RequestError) as caught:
        vi.load_machine("q35,max-ram-below-4g=1G")
    assert caught.value.hint == "--machine q35 --max-ram-below-4g 1G"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("virt,highmem=off", "virt-lowmem"),
        ("virt,gic-version=2", "virt-gicv2"),
        ("pc-q35-7.0", "q35-7.0"),
        ("pc-i440fx-7.0", "i440fx-7.0"),
    ],
)
def test_variant_is_known_as_qemu_names_it(name: str, model: str) -> None:
    assert vi.load_machine(name).name == model


def test_variant_has_what_its_base_has_but_for_its_own_keys() -> None:
    base, variant = vi.load_machine("q35"), vi.load_machine("q35-7.0")
    assert variant.fixed == base.fixed
    assert variant.pci64 == base.pci64
    assert [window.move_to for window in variant.ram] == [None, None]


def test_variant_of_a_users_own_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "q35"\nname = "mine"\n')
    with pytest.raises(vi.errors.HostDataError, match="base is only for the models of the package"):
        vi.load_machine(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ('can = ["jump"]', "can 'jump' is none of split, move"),
        ('firmware = "bios"', "firmware 'bios' is none of seabios, ovmf, none"),
        ('[hotplug]\nalign = "3MiB"', "hotplug.align .*power of two"),
        ('[[doorbell]]\nname = "its"\nsize = "3KiB"', "size .*power of two"),
        ('[[doorbell]]\nname = "its"\nsize = "8KiB"\nlast = "0xfff"', "do not fit"),
    ],
)
def test_key_of_what_a_vmm_does_is_checked(change: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    ram = '[[ram]]\nname = "ram"\nstart = "0x0"\n'
    top, tables = (change, "") if not change.startswith("[") else ("", change)
    path.write_text(f'name = "mine"\narch = "x86_64"\n{top}\n{ram}{tables}\n')
    with pytest.raises(vi.errors.HostDataError, match=text):
        vi.load_machine(path)
