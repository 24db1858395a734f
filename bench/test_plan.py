# SPDX-License-Identifier: Apache-2.0
"""Planning a bundled host, and the start of the command. Goals: under 5 ms, under 0.3 s."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import vmm_iova as vi

SEVERAL = ("intel-dmar-collected-client-39bit", "intel-dmar-collected-server-46bit")
HOSTS = [f"{name}#1" if name in SEVERAL else name for name in vi.bundled_hosts()]


@pytest.mark.benchmark(group="plan a bundled host, from text to layout (goal: 5 ms)")
@pytest.mark.parametrize("name", HOSTS)
def test_load_judge_and_plan(benchmark: BenchmarkFixture, name: str) -> None:
    machine = "virt" if name.startswith("arm") else "s390x" if name.startswith("s390") else "q35"
    stated = None if name == "amd-epyc-1tb" else 42

    def work() -> int:
        usable = vi.load_host(name).usable(aperture=stated)
        try:
            return len(vi.plan(vi.Guest(machine, "16G"), usable).ram)
        except vi.PlanError as error:  # a refusal is an answer, and takes its time too
            return len(error.reasons)

    assert benchmark(work) > 0


@pytest.mark.benchmark(group="start of the command (goal: 0.3 s)", min_rounds=7)
@pytest.mark.parametrize(
    "arguments", [["--version"], ["plan", "--host", "amd-epyc-1tb", "--ram", "1.5TiB"]]
)
def test_command_starts(benchmark: BenchmarkFixture, arguments: list[str]) -> None:
    def work() -> int:
        command = [sys.executable, "-m", "vmm_iova", *arguments]
        return subprocess.run(command, capture_output=True, check=True).returncode

    assert benchmark(work) == 0
