# SPDX-License-Identifier: Apache-2.0
"""Machine models: the ones that ship, and what a user's own file may get wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmm_iova as vi
from vmm_iova.ranges import AddrRange

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
    assert "hw/" in machine.source


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
    with pytest.raises(vi.UnknownNameError, match="no machine model 'q53'") as caught:
        vi.load_machine("q53")
    assert "did you mean q35?" in (caught.value.hint or "")


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(vi.HostUnavailableError, match="does not exist"):
        vi.load_machine(tmp_path / "none.toml")


def test_directory_as_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "dir.toml").mkdir()
    with pytest.raises(vi.HostUnavailableError, match="Is a directory"):
        vi.load_machine(tmp_path / "dir.toml")


def test_binary_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "junk.toml"
    path.write_bytes(b"\xff\xfe\x00junk")
    with pytest.raises(vi.HostDataError, match="is not text"):
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
    with pytest.raises(vi.HostDataError, match=said) as caught:
        _load(tmp_path, GOOD.replace(*change))
    assert caught.value.message.startswith("mine.toml: ")


def test_file_without_ram_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vi.HostDataError, match="at least one"):
        _load(tmp_path, 'name = "m"\narch = "x"\n')
