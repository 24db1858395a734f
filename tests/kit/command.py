# SPDX-License-Identifier: Apache-2.0
"""The command, called in this process."""

from __future__ import annotations

import pytest

from vmm_iova import cli

Output = pytest.CaptureFixture[str]


def run(*arguments: str) -> int:
    """Return the exit status."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def error_of(output: Output) -> str:
    """The complaint: one line that begins as ours do, then labelled lines."""
    first, *rest = output.readouterr().err.splitlines()
    for word in ("REFUSED: ", "UNKNOWN: "):  # an answer: verdict, what would do, why
        if first.startswith(word):
            assert all(line.startswith(("Do:  ", "Why:  ", "      ")) for line in rest)
            return first.removeprefix(word)
    assert first.startswith("vmm-iova: error: ")
    assert all(line.startswith(("  hint: ", "  detail: ")) for line in rest)
    return first.removeprefix("vmm-iova: error: ")
