# SPDX-License-Identifier: Apache-2.0
"""What the README prints is run as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ") and "vmm-iova" in line
]
# 3: the example asks for a range that may not be mapped.
STATUS = {"check": 3}


def _run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = f'"{sys.executable}" -m vmm_iova'
    return subprocess.run(
        command.replace(".venv/bin/vmm-iova", program),
        shell=True,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--host" in c and "host.json" not in c])
def test_command_of_the_readme_does_what_it_says(command: str, tmp_path: Path) -> None:
    done = _run(command, tmp_path)
    verb = command.partition("vmm-iova ")[2].split()[0]
    assert done.returncode == STATUS.get(verb, 0), done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr


def test_readme_shows_at_least_five_commands() -> None:
    assert len(COMMANDS) >= 5


def test_own_host_is_shown_captured_and_planned_as_the_readme_says(tmp_path: Path) -> None:
    shown = _run(".venv/bin/vmm-iova show", tmp_path)
    assert shown.returncode in (0, 1), shown.stderr
    captured = _run(".venv/bin/vmm-iova capture -o host.json", tmp_path)
    if captured.returncode == 6:  # a machine without an IOMMU, as the README says
        assert "no IOMMU groups" in captured.stderr
        return
    assert captured.returncode == 0, captured.stderr
    assert (tmp_path / "host.json").exists()


def test_python_of_the_readme_runs_on_a_bundled_host() -> None:
    program, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = program.replace('"LIVE"', '"amd-epyc-1tb"')
    program = re.sub(r'usable\(devices=\["[^"]*"\]\)', "usable()", program)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "0x10000000000-0x1837fffffff" in done.stdout


def test_mapping_of_the_readme_runs_on_the_kernel_in_memory() -> None:
    _, program = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    before = (
        "import vmm_iova as vi\n"
        "from vmm_iova.host.facts import Device, Group\n"
        "from vmm_iova.host.host import Host\n"
        "import vmm_iova.kernel as k\n"
        "from functools import partial\n"
        "from vmm_iova.simulated import SimGroup, SimulatedKernel\n"
        "sim = SimulatedKernel([SimGroup(4, ('0000:01:00.0',))])\n"
        "k.open_space = partial(k.open_space, kernel=sim)\n"
        "k.with_kernel_facts = partial(k.with_kernel_facts, kernel=sim)\n"
        "group = Group('4', ('0000:01:00.0',))\n"
        "nic = Device('0000:01:00.0', '4')\n"
        "vi.load_host = lambda: Host('sim', groups=(group,), devices=(nic,))\n"
        "def run(memory): print(memory.size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", before + program], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, f"{4 << 30}\n"), done.stderr


def test_speed_of_the_readme_is_that_of_the_stored_run_it_names() -> None:
    section = README.partition("## Speed of the allocator\n")[2].partition("\n## ")[0]
    named = re.search(r"bench/results/[\w.-]+\.json", section)
    assert named
    stored = json.loads((ROOT / named[0]).read_text("utf-8"))
    assert all(text in section for text in (stored["versions"]["model name"], "2026-11-24"))
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) > 8
    for name, *cells in rows[1:]:
        for shown, figure in zip(cells, stored["table"][name], strict=True):
            assert shown == (f"{figure:.2f}" if figure < 10 else f"{figure:.0f}"), name
