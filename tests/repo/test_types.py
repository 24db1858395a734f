# SPDX-License-Identifier: Apache-2.0
"""What a type checker tells a user: which mistakes it finds, and what it lets through."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="the type checker is not installed: pip install -e '.[lint]'")

ROOT = Path(__file__).parents[2]
PROGRAM = """
from typing import assert_type

import vmm_iova as vi
from vmm_iova.kernel import AddressSpace, open_space
from vmm_iova.mapping import DynamicMaps, GuestMemory, Piece

usable = vi.load_host("amd-epyc-1tb").usable()
assert_type(vi.plan(vi.Guest("q35", "8G"), usable, on_hole="move"), vi.Layout)
vi.plan(vi.Guest("q35", "8G"), usable, on_hole="jump")  # refused: arg-type
iova, hva = vi.Iova(0x1000), vi.Hva(0x2000)


def use(space: AddressSpace, maps: DynamicMaps, memory: GuestMemory) -> None:
    space.map(iova, hva, 0x1000)
    space.map(hva, iova, 0x1000)  # refused: arg-type
    space.map(0x1000, hva, 0x1000)  # refused: arg-type
    space.unmap(hva, 0x1000)  # refused: arg-type
    Piece(iova, 0x1000, hva)
    Piece(hva, 0x1000, iova)  # refused: arg-type
    assert_type(maps.map_address(hva, 0x1000), vi.Iova)
    maps.map_address(iova, 0x1000)  # refused: arg-type
    maps.unmap(iova)
    memory.read(hva, 8)  # refused: arg-type
    memory.write(iova, b"data")
    GuestMemory([], backing="paper")  # refused: arg-type


open_space(["0000:01:00.0"], via="type1")
open_space(["0000:01:00.0"], via="type3")  # refused: arg-type
try:
    vi.plan(vi.Guest("q35", "8G"), usable)
except vi.PlanError as error:
    assert_type(error.hint, str | None)
    assert_type(error.exit_code, vi.errors.ExitCode)
vi.RequestError("no", field="size", value=1, hint="more")
vi.RequestError("no", field="size")  # refused: call-arg
vi.RequestError("no", "size", 1)  # refused: call-arg misc
vi.RequestError("no", field=1, value=1)  # refused: arg-type
vi.errors.DmaError("no", errno=22, ioctl="map", iova=iova, hva=hva)
vi.errors.DmaError("no", errno=22, ioctl="map", iova=hva)  # refused: arg-type
vi.errors.SizeMismatchError("no", value=1, range=vi.AddrRange(0, 1))
vi.errors.MissingError  # refused: attr-defined
vi.missing  # refused: attr-defined
"""


@pytest.mark.slow
def test_type_checker_refuses_swapped_addresses_words_outside_the_set_and_wrong_facts(
    tmp_path: Path,
) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, "ascii")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-error-summary",
            "--show-error-codes",
            file,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    shown: dict[int, set[str]] = {}
    for line, code in re.findall(r"program\.py:(\d+): error: .*\[([a-z-]+)\]", done.stdout):
        shown.setdefault(int(line), set()).add(code)
    expected = {
        number: set(line.partition("# refused: ")[2].split())
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if "# refused: " in line
    }
    assert shown.keys() == expected.keys(), done.stdout + done.stderr
    assert all(shown[number] & codes for number, codes in expected.items()), done.stdout
