# SPDX-License-Identifier: Apache-2.0
"""How much slower the engine is where no vector unit beyond the architecture's own may be used.

python -m bench.baseline [--live 1000 100000]

A wheel carries both and takes by the CPU it runs on. This builds a second copy of the extension
with VMM_IOVA_BASELINE=1 in a temporary folder and times the same workloads in both, in turns.
Needs a C compiler, Cython and setuptools.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import workloads
from bench.rivals import ours

GOAL = 2.2
ROUNDS = 3
_ROOT = Path(__file__).resolve().parent.parent


def figures(live: int) -> dict[str, float]:
    """Return ns of each operation, with the engine that this process imports."""
    churn = workloads.Churn(ours("fast"), live, 4 * live)
    best = workloads.Churn(ours("fast"), live, 4 * live, "best")
    return {
        "pair, first fit": churn.pair(40, 2000),
        "pair, first fit, batches": churn.batch(60, 64 if live <= 1_000 else 1024),
        "pair, best fit": best.pair(40, 2000),
        "aligned worst case (W4b)": workloads.align(ours("fast"), live).pair(),
        "scan (W3)": workloads.scan(ours("fast"), live).pair(),
        "lookup in batches": churn.lookups(40, 4096),
    }


def build(folder: Path) -> None:
    """Build the package with the baseline extension in a folder."""
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(_ROOT / name, folder)
    for licence in _ROOT.glob("LICENSE*"):
        if licence.is_file():
            shutil.copy(licence, folder)
    for name in ("vmm_iova", "bench"):
        shutil.copytree(
            _ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "-i"],
        cwd=folder,
        env={**os.environ, "VMM_IOVA_BASELINE": "1", "VMM_IOVA_REQUIRE_EXT": "1"},
        check=True,
    )


def ask(folder: Path, live: int) -> dict[str, float]:
    """Return the figures of the package in a folder, from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.baseline", "--figures", str(live)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.baseline", description=__doc__)
    parser.add_argument("--live", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--figures", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.figures:
        print(json.dumps(figures(options.figures)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        print(f"{'':28}{'live':>9}{'as built':>11}{'baseline':>11}{'ratio':>8}   goal <= {GOAL}")
        for live in options.live:
            rounds = [(ask(_ROOT, live), ask(folder, live)) for _ in range(ROUNDS)]
            for row in rounds[0][0]:
                own = min(mine[row] for mine, _ in rounds)
                plain = min(theirs[row] for _, theirs in rounds)
                ratio = plain / own
                verdict = "met" if ratio <= GOAL else "MISSED"
                print(f"{row:28}{live:>9,}{own:>8.1f} ns{plain:>8.1f} ns{ratio:>8.2f}   {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
