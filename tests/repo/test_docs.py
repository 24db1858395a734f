# SPDX-License-Identifier: Apache-2.0
"""The output in the documentation is what the commands print. `make docs` writes it anew."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.kit.data import ROOT
from tests.kit.docs import CONSOLE, commands_of, same_as_written, save_programs, shell

DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if CONSOLE.search(path.read_text("utf-8")) and path.parent.name != "reference"  # made elsewhere
)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_output_in_the_documentation_is_what_the_commands_print(page: Path, tmp_path: Path) -> None:
    run = shell(tmp_path, DOCS / "definitions")  # the files of all pages

    save_programs(page.read_text("utf-8"), tmp_path)

    def again(block: re.Match[str]) -> str:
        assert commands_of(block[0]), "a block without a command would be emptied"
        shown = [(command, run(command)) for command in commands_of(block[0])]
        return "".join(f"$ {command}\n{done.stdout}{done.stderr}" for command, done in shown)

    same_as_written(page, CONSOLE.sub(again, page.read_text("utf-8")))


def test_pages_with_output_are_found() -> None:
    assert len(PAGES) >= 15


@pytest.mark.slow
def test_picture_of_the_readme_is_what_make_plan_draws(tmp_path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    command = re.search(r"\$\(BIN\)/(vmm-iova plan .* -o map\.svg)", makefile)
    assert command
    done = shell(tmp_path)(command[1])
    assert done.returncode == 0, done.stderr
    same_as_written(DOCS / "amd-1.5tib.svg", (tmp_path / "map.svg").read_text("utf-8"))


def test_speed_of_the_readme_is_that_of_the_stored_run_it_names() -> None:
    path = ROOT / "README.md"
    text = path.read_text("utf-8")
    stored = re.search(r"bench/results/([\d-]+)\.json", text)
    assert stored
    run = json.loads((ROOT / stored[0]).read_text("utf-8"))
    assert f"taken on {stored[1]}" in text
    assert run["versions"]["model name"] in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 5]
    assert len(rows) > 8
    for row in rows[1:]:
        name = row.strip("| ").split(" | ")[0]
        cells = (
            f"{figure:.2f}" if figure < 10 else f"{figure:.0f}" for figure in run["table"][name]
        )
        text = text.replace(row, f"| {' | '.join((name, *cells))} |")
    same_as_written(path, text)


def test_speed_of_a_fleet_is_that_of_the_stored_run_it_names() -> None:
    path = DOCS / "fleet.md"
    text = path.read_text("utf-8")
    stored = re.search(r"bench/results/[\d-]+-fleet\.txt", text)
    assert stored
    run = re.sub(r"  (answer|\{.*)$", "", (ROOT / stored[0]).read_text("utf-8"), flags=re.MULTILINE)
    shown = re.compile(r"(?<=```\n)date .*?(?=```)", re.DOTALL)
    same_as_written(path, shown.sub(lambda _: run, text))
