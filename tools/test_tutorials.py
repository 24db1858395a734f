# SPDX-License-Identifier: Apache-2.0
"""Each tutorial, followed by its text alone where nothing else is: `make package` runs this.

A folder with the wheel and what the page offers to download; an environment that the first one
makes. Blocks of `sh` and `console` are typed in their order, programs saved under the names that
the page says. What a console block shows must come out; where the reader would stop, the test does.
What is indented is for hardware of the reader's own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.docs import commands_of, save_programs
from tools.handed_out import ROOT, environment

DOCS = ROOT / "docs"
FIRST = "plan.md"
NEXT = ("explain.md", "definitions.md", "vmm.md", "driver.md", "testing.md")
BLOCK = re.compile(r"^```(sh|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OFFERED = re.compile(r"\]\((definitions/[\w.-]+)\)")


def type_in(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of shell as a user's terminal would, in the environment once there is one."""
    python = Path(sys.executable).resolve().parent
    path = f"{folder / 'try/bin'}:{python}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=folder,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def follow(page: str, folder: Path) -> None:
    """Do what a page says, from top to bottom."""
    text = (DOCS / page).read_text("utf-8")
    for offered in OFFERED.findall(text):
        shutil.copy(DOCS / offered, folder)
    save_programs(text, folder)
    for kind, block in BLOCK.findall(text):
        if kind == "sh":
            done = type_in(block, folder)
            assert done.returncode == 0, f"{page}: {block}\n{done.stdout}{done.stderr}"
            continue
        typed = ""
        for command in commands_of(block):
            done = type_in(command, folder)
            typed += f"$ {command}\n{done.stdout}{done.stderr}"
        assert typed == block, page


@pytest.fixture(scope="session")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first tutorial was followed to its end."""
    folder = tmp_path_factory.mktemp("tutorial")
    shutil.copy(wheel, folder)
    follow(FIRST, folder)
    return folder


def test_first_tutorial_is_followed_to_its_end(place: Path) -> None:
    assert (place / "map.html").exists()


@pytest.mark.parametrize("page", NEXT)
def test_tutorial_is_followed_to_its_end(page: str, place: Path) -> None:
    if page == "testing.md":  # it says that the driver has to be there
        save_programs((DOCS / "driver.md").read_text("utf-8"), place)
    follow(page, place)


def test_site_has_no_tutorial_that_is_not_followed() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    (part,) = re.findall(r"- Tutorials:\n((?: {6}- .*\n)+)", nav)
    assert re.findall(r": (\S+\.md)", part) == [FIRST, *NEXT]
