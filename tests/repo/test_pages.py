# SPDX-License-Identifier: Apache-2.0
"""The programs of the three pages for embedders run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.simulated import SimGroup, SimulatedKernel

DOCS = Path(__file__).parents[2] / "docs"


def _program(page: str) -> str:
    (program,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    return str(program)


def _run(page: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": page}
    exec(compile(_program(page), page, "exec"), names)
    return names


@pytest.mark.parametrize("page", ["driver.md", "vmm.md"])
def test_program_has_about_sixty_lines(page: str) -> None:
    lines = [line for line in _program(page).splitlines() if line.strip()]
    assert len(lines) <= 60


@pytest.mark.parametrize(
    "kernel",
    [
        lambda: SimulatedKernel([SimGroup(1, ("0000:01:00.0",))]),
        lambda: SimulatedKernel([SimGroup(1, ("0000:01:00.0",))], release=(5, 10)),
        lambda: SimulatedKernel.from_host(vi.load_host("amd-epyc-1tb")),
    ],
    ids=["iommufd", "type1", "a host"],
)
def test_driver_moves_bytes_there_and_back(kernel: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sim = kernel()
    _run("driver.md")["main"](sim.devices()[0], kernel=sim)
    assert capsys.readouterr().out == "there and back\n"
    assert (sim.open_files(), len(sim.mapped())) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [((), "usage: python driver.py"), (("0000:7f:00.0",), "there is no PCI device 0000:7f:00.0")],
)
def test_driver_of_the_page_says_what_is_wrong_without_a_traceback(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    (tmp_path / "driver.py").write_text(_program("driver.md"), "utf-8")
    done = subprocess.run(
        [sys.executable, "driver.py", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert told in done.stderr


def test_vmm_plans_and_maps_its_guest(capsys: pytest.CaptureFixture[str]) -> None:
    sim = SimulatedKernel.from_host(vi.load_host("amd-epyc-1tb"))
    _run("vmm.md")["main"](list(sim.devices()), "8GiB", kernel=sim)
    shown = capsys.readouterr().out
    assert "guest memory: 2 pieces, 8 GiB" in shown
    assert "kernel: b'bzImag'" in shown
    assert (sim.open_files(), len(sim.mapped())) == (0, 0)


@pytest.mark.slow
def test_tests_of_the_page_pass_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(_program("driver.md"), "utf-8")
    (tmp_path / "test_driver.py").write_text(_program("testing.md"), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "45 passed" in done.stdout
