# SPDX-License-Identifier: Apache-2.0
"""A command loads what it uses: its start is what a person waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest

PLAN = ("plan", "--host", "amd-epyc-1tb", "--machine", "q35", "--ram", "64G")

HEAVY = {
    *("urllib.request", "shutil", "tempfile", "xml.sax", "ssl"),
    *("dataclasses", "inspect", "ast", "tokenize"),  # 8 ms, of the 40 that a command may take
}


def loaded(*arguments: str) -> set[str]:
    """Modules that the command brings into memory, ours without the package's name."""
    script = (
        "import sys\nbefore = set(sys.modules)\nfrom vmm_iova.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('loaded', *set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "loaded", done.stderr
    return {name.removeprefix("vmm_iova.") for name in last[1:]}


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (("--version",), ("host", "readers", "planning", "machines", "definitions")),
        (("show", "--host", "amd-epyc-1tb"), ("planning", "machines", "definitions.read", "_fast")),
        (("explain", "VFIO_MAP_DMA failed: Invalid argument"), ("definitions.read", "_fast")),
        (PLAN, ("definitions.read", "definitions.write", "report.svg", "kernel", "simulated")),
    ],
    ids=["--version", "show", "explain", "plan"],
)
def test_command_does_not_load_what_others_use(
    arguments: tuple[str, ...], absent: tuple[str, ...]
) -> None:
    there = loaded(*arguments)

    assert "cli" in there
    assert there.isdisjoint({*absent, *HEAVY})


def test_probe_of_loaded_modules_sees_those_that_are_used() -> None:
    assert {"planning", "machines", "allocator", "host.text", "argparse"} <= loaded(*PLAN)
