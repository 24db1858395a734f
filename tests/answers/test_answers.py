# SPDX-License-Identifier: Apache-2.0
"""Recorded answers: some hundred requests, each with its status and a digest of what it prints.

They say that nothing changed, not that it is right: the tests of the rooms do that. Each line of
tests/data/answers/requests.txt is `STATUS DIGEST COMMAND`; a file that one line writes is there for
the next. After a change that is meant, `VMM_IOVA_WRITE_ANSWERS=1` with this file writes the lines
anew, and the difference of that file shows which requests it touched.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import vmm_iova
from tests.kit.command import Output, run
from tests.kit.data import DATA

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = DATA / "answers" / "requests.txt"
BLOCK = 10
WRITE = os.environ.get("VMM_IOVA_WRITE_ANSWERS") == "1"


class Line(NamedTuple):
    """A request and what was recorded of its answer."""

    status: str
    digest: str
    command: str


def lines() -> list[Line]:
    return [Line(*line.split(" ", 2)) for line in FILE.read_text().splitlines()]


def blocks() -> Iterator[list[Line]]:
    """The requests, ten at a time; one that needs the file of another is in its block."""
    block: list[Line] = []
    for line in lines():
        if len(block) >= BLOCK and ".json" not in line.command.partition(" -o ")[0]:
            yield block
            block = []
        block.append(line)
    yield block


def answer(command: str, folder: Path, output: Output) -> tuple[Line, str]:
    """Ask, and return the line as it would be recorded, with what was printed and written."""
    parts = command.split()
    status = run(*parts)
    out, err = output.readouterr()
    written = ""
    if "-o" in parts and (path := folder / parts[parts.index("-o") + 1]).exists():
        written = path.read_text()
    said = "\n".join((out, err, written)).replace(vmm_iova.__version__, "VERSION")
    digest = hashlib.sha256(said.encode()).hexdigest()[:8]
    return Line(str(status), digest, command), said


@pytest.mark.slow
@pytest.mark.recorded
@pytest.mark.parametrize("block", [pytest.param(b, id=str(n)) for n, b in enumerate(blocks())])
def test_recorded_requests_are_answered_as_recorded(
    block: list[Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    answers = [answer(line.command, tmp_path, capsys) for line in block]
    if WRITE:
        text = FILE.read_text()
        for old, (new, _) in zip(block, answers, strict=True):
            text = text.replace(" ".join(old) + "\n", " ".join(new) + "\n")
        FILE.write_text(text)
        return

    for old, (new, said) in zip(block, answers, strict=True):
        assert new == old, said
