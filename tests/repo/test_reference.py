# SPDX-License-Identifier: Apache-2.0
"""The reference has every public name, option and exit status. `make docs` writes it anew."""

from __future__ import annotations

import argparse

import pytest

from tests.kit.data import ROOT
from tools import manual, reference
from vmm_iova.cli.parser import make_parser
from vmm_iova.errors import EXIT_CODES

FILES = reference.files()
COMMANDS = manual.commands(make_parser([], whole=True))
DOORS = [door for door in (*reference.DOORS, "vmm_iova.errors") if door != "vmm_iova.testing"]


@pytest.mark.parametrize("name", FILES)
def test_page_of_the_reference_is_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs/reference" / name).read_text("utf-8") == FILES[name], "make docs"


@pytest.mark.parametrize("door", DOORS)
def test_page_has_every_public_name_of_its_place(door: str) -> None:
    page = FILES["errors.md" if door == "vmm_iova.errors" else f"{door}.md"]

    missing = [name for name in reference.public(door) if f"`{name}`" not in page]

    assert reference.public(door)
    assert missing == []


@pytest.mark.parametrize("name", COMMANDS)
def test_page_of_commands_has_every_option_of_a_command(name: str) -> None:
    _, found, rest = FILES["commands.md"].partition(f"## vmm-iova {name}\n")
    part = rest.partition("\n## ")[0]

    assert found
    for action in COMMANDS[name]._actions:
        if action.help != argparse.SUPPRESS:
            assert all(f"`{option}`" in part for option in action.option_strings)


def test_page_of_errors_has_every_exit_status() -> None:
    assert all(
        f"| {int(code)} | {text} |" in FILES["errors.md"] for code, text in EXIT_CODES.items()
    )


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]

    assert [page for page in pages if f": {page}\n" not in navigation] == []
