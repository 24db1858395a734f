# SPDX-License-Identifier: Apache-2.0
"""The output in the documentation is what the commands print. `make docs` writes it anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from vmm_iova import cli

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("examples.md", "machines.md")
_BLOCK = re.compile(r"```console\n(\$ [^\n]*)\n(.*?)```", re.DOTALL)


def _output(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    words = command.removeprefix("$ ").split()
    assert words[0] == "vmm-iova"
    cli.main(words[1:])
    shown = capsys.readouterr()
    return shown.out + shown.err


@pytest.mark.parametrize("page", PAGES)
def test_output_in_the_documentation_is_what_the_commands_print(
    page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = DOCS / page
    text = path.read_text("utf-8")
    made = _BLOCK.sub(lambda block: f"```console\n{block[1]}\n{_output(block[1], capsys)}```", text)
    if os.environ.get("VMM_IOVA_WRITE_DOCS") == "1":
        path.write_text(made, "utf-8")
    assert path.read_text("utf-8") == made
    assert _BLOCK.search(made)
