# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows, beside what it ought to show; `make docs` writes it anew."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.kit.data import ROOT

CONSOLE = re.compile(r"(?<=```console\n).*?(?=```)", re.DOTALL)
"""What stands in a console block."""


def same_as_written(path: Path, text: str) -> None:
    """Assert that the file holds this text, or with `make docs` write it."""
    if os.environ.get("VMM_IOVA_WRITE_DOCS") == "1":
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8") == text, f"{path.name} is out of date: make docs writes it anew"


PROGRAM = re.compile(r"[Ss]ave (?:it|them) as `(\w+\.py)`.*?```python\n(.*?)```", re.DOTALL)
"""A program, and the name by which the reader is told to save it."""


def save_programs(page: str, folder: Path) -> None:
    """Do what a page tells its reader: save its programs."""
    for name, program in PROGRAM.findall(page):
        (folder / name).write_text(program, "utf-8")


def shell(
    folder: Path, files: Path | None = None
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Return what runs a line of shell in this folder, with `vmm-iova` on the PATH.

    Args:
        folder: an empty one.
        files: a folder whose files stand there, too.
    """
    for path in sorted(files.iterdir()) if files is not None and files.is_dir() else ():
        shutil.copy(path, folder)
    tool = folder / ".bin/vmm-iova"
    tool.parent.mkdir()
    for program, words in ((tool, " -m vmm_iova"), (tool.with_name("python"), "")):
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{words} "$@"\n')
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "VMM_IOVA_ENGINE": "pure",  # both give the same; this one says nothing of the other
    }

    def run(command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, shell=True, cwd=folder, capture_output=True, text=True, env=environment
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def commands_of(block: str) -> list[str]:
    """The commands of a console block, without the output below them."""
    return re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.MULTILINE)
