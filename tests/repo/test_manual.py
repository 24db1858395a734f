# SPDX-License-Identifier: Apache-2.0
"""Manual pages and completion are what the parser says. `make docs` writes them anew."""

from __future__ import annotations

import argparse
import re

import pytest

from tests.kit.data import ROOT
from tools import manual
from vmm_iova.cli.parser import ROOMS, make_parser

FILES = manual.files()
COMMANDS = manual.commands(make_parser([], whole=True))


@pytest.mark.parametrize("name", FILES)
def test_file_of_share_is_what_the_parser_says(name: str) -> None:
    assert (ROOT / "share" / name).read_text("utf-8") == FILES[name], "make docs writes it anew"


def test_share_holds_nothing_else() -> None:
    share = ROOT / "share"
    there = {str(path.relative_to(share)) for path in share.rglob("*") if path.is_file()}

    assert there == set(FILES)


@pytest.mark.parametrize("name", ROOMS)
def test_page_of_a_command_has_each_of_its_options_with_its_help(name: str) -> None:
    page = FILES[f"man/man1/vmm-iova-{name}.1"]

    for action in COMMANDS[name]._actions:
        if action.help == argparse.SUPPRESS:
            continue
        assert action.help, f"{action.dest} says what it is"
        assert manual.escaped(action.help) in page
        for option in action.option_strings:
            assert f"\\fB{manual.escaped(option)}\\fR" in page


def test_no_line_of_a_page_is_taken_for_a_request_that_is_none() -> None:
    known = {".TH", ".SH", ".B", ".TP", ".PP", ".nf", ".fi"}

    for name, page in FILES.items():
        if name.endswith(".1"):
            assert set(re.findall(r"^[.'].*?(?=\s|$)", page, re.MULTILINE)) <= known


@pytest.mark.parametrize("text", [".dot", "'quote", "back\\slash", "a-b"])
def test_text_that_means_something_to_groff_is_escaped(text: str) -> None:
    shown = manual.escaped(text)

    assert not shown.startswith((".", "'"))
    assert (
        shown.replace("\\&", "").replace("\\(aq", "'").replace("\\e", "\\").replace("\\-", "-")
        == text
    )
