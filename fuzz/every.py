# SPDX-License-Identifier: Apache-2.0
"""Run targets, two at a time, and print a table: `python -m fuzz.every [SECONDS [TARGET ...]]`.

The exit status is the number of targets that found something; inputs are in `fuzz/findings`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fuzz.names import target_names

HERE = Path(__file__).parent
AT_ONCE = 2
_COVERAGE = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
_RUNS = re.compile(r"number_of_executed_units: (\d+)")
_MEMORY = re.compile(r"peak_rss_mb: +(\d+)")


class Figures(NamedTuple):
    """What a run came to."""

    target: str
    executions: int
    edges: int
    features: int
    corpus: int
    memory: int
    findings: int

    def row(self) -> str:
        """As a row of the table in README.md."""
        return "| " + " | ".join(map(str, self)) + " |"


def run(name: str, seconds: int) -> Figures:
    """Run one target."""
    before = set((HERE / "findings").glob(f"{name}-*"))
    done = subprocess.run(
        ["nice", sys.executable, "-m", "fuzz.run", name, str(seconds)],
        capture_output=True,
        text=True,
        errors="replace",
        cwd=HERE.parent,
    )
    new = set((HERE / "findings").glob(f"{name}-*")) - before
    if new or done.returncode:
        sys.stderr.write(done.stderr[-4000:])
    last = (_COVERAGE.findall(done.stderr) or [("0", "0", "0")])[-1]
    runs, memory = _RUNS.search(done.stderr), _MEMORY.search(done.stderr)
    figures = Figures(
        name,
        int(runs[1]) if runs else 0,
        *map(int, last),
        int(memory[1]) if memory else 0,
        len(new) or int(done.returncode != 0),
    )
    print(figures.row(), flush=True)
    return figures


def main() -> int:
    """Run them and return how many found something."""
    seconds, *names = (*sys.argv[1:], *("120",) * (len(sys.argv) == 1))
    print("| target | executions | edges | features | corpus | MB | findings |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        every = list(pool.map(lambda name: run(name, int(seconds)), names or target_names()))
    return sum(figures.findings > 0 for figures in every)


if __name__ == "__main__":
    sys.exit(main())
