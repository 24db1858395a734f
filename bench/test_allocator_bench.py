# SPDX-License-Identifier: Apache-2.0
"""The workloads under pytest-benchmark: `pytest bench --benchmark-only`."""

import pytest

from bench import workloads
from bench.rivals import RIVALS, ours

SUBJECTS = {
    "fast": lambda: ours("fast"),
    "fast, size cache": lambda: ours("fast", size_cache=True),
    "pure": lambda: ours("pure"),
}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("workload", workloads.VMM)
def test_vmm_workload(benchmark, workload, subject):
    benchmark.group = workload
    allocator = SUBJECTS[subject]()
    benchmark.pedantic(workloads.VMM[workload], args=(allocator,), rounds=3, iterations=1)


@pytest.mark.parametrize("live", [100, 1_000])
@pytest.mark.parametrize("name", ["fast", *RIVALS])
def test_churn(benchmark, name, live):
    benchmark.group = f"W1 churn, {live} live"
    made = RIVALS.get(name, SUBJECTS["fast"])
    if live > getattr(made, "limit", live):
        pytest.skip(f"declared limit: {made.limit} live ranges")
    churn = workloads.Churn(made(), live, live)
    steps = churn._steps(200)

    def run():
        for place, size in steps:
            churn.subject.release(churn.held[place])
            churn.held[place] = churn.subject.allocate(size)

    benchmark.pedantic(run, rounds=5, iterations=1)
