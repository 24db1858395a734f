# SPDX-License-Identifier: Apache-2.0
"""What the README prints is run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.data import ROOT
from tests.kit.docs import CONSOLE, commands_of, shell

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    command.replace(".venv/bin/vmm-iova", "vmm-iova")
    for block in CONSOLE.findall(README)
    for command in commands_of(block)
]
MAKE = [command for command in COMMANDS if command.startswith("make ")]
LIVE = [c for c in COMMANDS if c in ("vmm-iova show", "vmm-iova capture -o host.json")]
CAPTURED = [c for c in COMMANDS if "--host host.json" in c]
ANYWHERE = [c for c in COMMANDS if c not in (*MAKE, *LIVE, *CAPTURED)]
# 3: the example asks for a range that may not be mapped.
STATUS = {"check": 3}


PRINTED = re.findall(r"^\$ (.*vmm-iova .*)\n((?:(?!\$ |```).*\n)+)", README, re.MULTILINE)
"""Commands whose output the README shows, with its first lines."""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), PRINTED)
def test_output_that_the_readme_shows_is_how_the_answer_begins(
    command: str, shown: str, tmp_path: Path
) -> None:
    done = shell(tmp_path)(command)

    assert (done.stdout + done.stderr).startswith(shown)


def test_readme_shows_two_answers_on_its_first_screen() -> None:
    assert [command.split()[1] for command, _ in PRINTED] == ["plan", "explain"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ANYWHERE)
def test_command_of_the_readme_does_what_it_says(command: str, tmp_path: Path) -> None:
    done = shell(tmp_path)(command)
    verb = command.partition("vmm-iova ")[2].split()[0]
    refused = 3 if "--ram 600G" in command else 0
    assert done.returncode == STATUS.get(verb, refused), done.stderr
    assert done.stdout + done.stderr


def test_commands_of_the_readme_are_all_run_by_a_test() -> None:
    assert (len(MAKE), len(LIVE), len(CAPTURED)) == (1, 2, 3)
    assert len(ANYWHERE) >= 8
    assert all("vmm-iova" in command for command in (*LIVE, *CAPTURED, *ANYWHERE))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?\$? ?make ([a-z]+)`?", README))))
def test_target_of_make_that_the_readme_names_is_there(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", CAPTURED)
def test_command_about_a_captured_host_does_what_it_says(command: str, tmp_path: Path) -> None:
    run = shell(tmp_path, ROOT / "docs/definitions")  # a desktop, and its VM as virsh prints it
    captured = run("vmm-iova capture --host desktop.txt -o host.json")
    assert captured.returncode == 0, captured.stderr

    done = run(command.replace("virsh dumpxml win11", "cat win11.xml"))

    refused = 3 if "virsh" in command else 0  # docs/definitions.md says why, and what to change
    assert done.returncode == refused, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_own_host_is_shown_captured_and_planned_as_the_readme_says(tmp_path: Path) -> None:
    run = shell(tmp_path)
    shown = run("vmm-iova show")
    assert shown.returncode in (0, 1), shown.stderr
    captured = run("vmm-iova capture -o host.json")
    if captured.returncode == 6:  # a machine without an IOMMU, as the README says
        assert "no IOMMU groups" in captured.stderr
        return
    assert captured.returncode == 0, captured.stderr
    assert (tmp_path / "host.json").exists()


@pytest.mark.slow
def test_python_of_the_readme_runs_on_a_bundled_host() -> None:
    program, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    program = program.replace('"LIVE"', '"amd-epyc-1tb"')
    program = re.sub(r'usable\(devices=\["[^"]*"\]\)', "usable()", program)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "0x10000000000-0x1837fffffff" in done.stdout


@pytest.mark.slow
def test_mapping_of_the_readme_runs_on_the_kernel_in_memory() -> None:
    _, program = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    before = (
        "import vmm_iova as vi\n"
        "import vmm_iova.kernel as k\n"
        "from functools import partial\n"
        "from vmm_iova.simulated import SimGroup, SimulatedKernel\n"
        "sim = SimulatedKernel([SimGroup(4, ('0000:01:00.0',))])\n"
        "k.open_space = partial(k.open_space, kernel=sim)\n"
        "vi.load_host = partial(vi.load_host, kernel=sim)\n"
        "def run(memory): print(memory.size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", before + program], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, f"{4 << 30}\n"), done.stderr
