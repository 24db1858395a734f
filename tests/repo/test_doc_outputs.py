# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is what the command prints.

`VMM_IOVA_REWRITE=1 python -m pytest tests/repo/test_doc_outputs.py` writes the outputs anew.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "docs" / name for name in ("explain.md", "fleet.md")]
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def _split(block: str) -> list[tuple[str, str]]:
    """Cut a block into commands, each with the output that stands below it."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, output = found[-1]
            if command.endswith("\\"):
                found[-1] = (f"{command}\n{line}", output)
            else:
                found[-1] = (command, f"{output}{line}\n")
    return found


def _run(command: str, cwd: Path) -> str:
    tools = cwd / ".bin"
    if not tools.exists():
        tools.mkdir()
        tool = tools / "vmm-iova"
        tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vmm_iova "$@"\n')
        tool.chmod(0o755)
    done = subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
    )
    assert "Traceback" not in done.stderr
    assert not done.stderr.startswith("vmm-iova: error"), done.stderr
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_outputs_of_the_documentation_are_what_is_printed(path: Path, tmp_path: Path) -> None:
    text = path.read_text("utf-8")
    blocks = [_split(block) for block in _BLOCK.findall(text)]
    real = [[(command, _run(command, tmp_path)) for command, _ in block] for block in blocks]
    if os.environ.get("VMM_IOVA_REWRITE") == "1":
        pending = iter(real)
        path.write_text(
            _BLOCK.sub(
                lambda _: (
                    "```console\n"
                    + "".join(f"$ {command}\n{output}" for command, output in next(pending))
                    + "```"
                ),
                text,
            ),
            "utf-8",
        )
    assert blocks == real
    assert len(blocks) >= 3
