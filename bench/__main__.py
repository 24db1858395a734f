# SPDX-License-Identifier: Apache-2.0
"""Print one table of ratios with the goals beside them, and draw how each allocator grows.

python -m bench [--quick] [--rounds N] [--with module:Class] [--ten-million] [-o growth.svg]
                [--json result.json]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from bench import workloads
from bench.chart import draw
from bench.rivals import RIVALS, SortedLookup, ours

_Key = TypeVar("_Key", int, str)

SIZES = (1_000, 100_000, 1_000_000)

GOALS = {
    # row: (goal at 1e3, 1e5, 1e6), and whether more is better
    "against sortedcontainers best fit": ((24, 28, 14), True),
    "against tinygrad TLSF": ((45, 33, 45), True),
    "pair, single calls, in empty calls": ((3.0, 4.2, 13), False),
    "pair, batches of 64 or 1024, in empty calls": ((2.6, 4.5, 9), False),
    "queue of one size, size_cache, batches": ((1.0, 1.2, 1.5), False),
    "best fit against first fit": ((1.7, 1.6, 1.4), False),
    "aligned worst case (W4b) against W1": ((1.2, 1.2, 1.2), False),
    "scan (W3) against itself at 1e3 gaps": ((None, None, 1.5), False),
    "window worst case against W1": ((1.5, 1.5, 1.5), False),
    "p99.9 of one allocation, in empty calls": ((6, 12, 22), False),
    "bytes per live range": ((None, 12, 12), False),
    "lookup in batches against a SortedDict": ((None, 100, 100), True),
}


def unit() -> float:
    """Return ns of an empty Cython call with two ints in and one out."""
    empty = ours("fast")._floor
    now = time.thread_time_ns
    results = []
    for _ in range(60):
        begin = now()
        for _ in range(500):
            empty(0x1_2345_0000, 0x5000)
        both = now() - begin
        begin = now()
        for _ in range(500):
            pass
        results.append((both - (now() - begin)) / 500)
    return workloads.quartile(results)


def sorted_lookup(churn: workloads.Churn) -> float:
    """Return ns of one address through a SortedDict of the same allocations."""
    starts, lasts, _ = churn.subject._snapshot()
    yardstick = SortedLookup(list(starts), list(lasts))
    chance = random.Random(7)
    results = []
    for _ in range(10):
        asked = [starts[chance.randrange(len(starts))] for _ in range(2000)]
        begin = time.thread_time_ns()
        for address in asked:
            yardstick.find(address)
        results.append((time.thread_time_ns() - begin) / len(asked))
    return workloads.quartile(results)


def warming(live: int, quick: bool) -> int:
    """Return the steps of W1 before the clock starts: the same for all allocators."""
    return min(4 * live, 40_000) if quick else 4 * live


class Column:
    """Our own engine at one number of live ranges: made once, timed in every round."""

    def __init__(self, live: int, quick: bool) -> None:
        self.live, self.quick = live, quick
        warm = warming(live, quick)
        self.first = workloads.Churn(ours("fast"), live, warm)
        self.best = workloads.Churn(ours("fast"), live, warm, "best")
        self.scan = workloads.scan(ours("fast"), live)
        self.align = workloads.align(ours("fast"), live)
        self.window = workloads.window(ours("fast"), live)
        self.queue = workloads.SizeQueue(ours("fast", size_cache=True), live)

    def time(self) -> dict[str, float]:
        """Return every figure of one column, ns."""
        stretches, length = (20, 2000) if self.quick else (60, 5000)
        count = 20_000 if self.quick else 100_000
        return {
            "unit": unit(),
            "first": self.first.pair(stretches, length),
            "tail": self.first.tail(count),
            "clock tail": workloads.clock_tail(count),
            # A batch of the size of all live ranges would empty the allocator and fill it again.
            "batch": self.first.batch(4 * stretches, 64 if self.live <= 1_000 else 1024),
            "queue": self.queue.batch(4 * stretches, 64 if self.live <= 1_000 else 1024),
            "bytes": self.first.subject._bytes() / self.live,
            "lookup": self.first.lookups(stretches, 4096),
            "sorted lookup": sorted_lookup(self.first),
            "best": self.best.pair(stretches, length),
            "scan": self.scan.pair(),
            "align": self.align.pair(),
            "window": self.window.pair(),
        }


def least(old: dict[_Key, float], new: dict[_Key, float]) -> dict[_Key, float]:
    """Return the least of each figure: what the machine added in one round is not in another."""
    return {name: min(value, old.get(name, value)) for name, value in new.items()}


def rivals_made(
    made: dict[str, Any], live: tuple[int, ...], quick: bool
) -> dict[str, dict[int, workloads.Churn]]:
    """Return each rival that is installed, at every number of live ranges that it can take."""
    found: dict[str, dict[int, workloads.Churn]] = {}
    for name, one in made.items():
        found[name] = {}
        for count in (100, 1_000, 10_000, *live[1:]):
            if count > getattr(one, "limit", 100_000):
                continue
            note(f"{name}, {count:,} live ranges")
            try:
                found[name][count] = workloads.Churn(one(), count, warming(count, quick))
            except ImportError as error:
                note(f"left out: {error}")
                break
    return found


def row(
    name: str, columns: dict[int, dict[str, float]], rivals: dict[str, dict[int, float]]
) -> Any:
    """Return the figures of one row of the table, None where there is none."""
    first = columns[SIZES[0]]
    figures = {
        "against sortedcontainers best fit": lambda n, c: ratio(
            rivals["sortedcontainers best fit"].get(n), c["first"]
        ),
        "against tinygrad TLSF": lambda n, c: ratio(
            rivals.get("tinygrad TLSF", {}).get(n), c["first"]
        ),
        "pair, single calls, in empty calls": lambda n, c: c["first"] / c["unit"],
        "pair, batches of 64 or 1024, in empty calls": lambda n, c: c["batch"] / c["unit"],
        "queue of one size, size_cache, batches": lambda n, c: c["queue"] / c["unit"],
        "best fit against first fit": lambda n, c: c["best"] / c["first"],
        "aligned worst case (W4b) against W1": lambda n, c: c["align"] / c["first"],
        "scan (W3) against itself at 1e3 gaps": lambda n, c: c["scan"] / first["scan"],
        "window worst case against W1": lambda n, c: c["window"] / c["first"],
        "p99.9 of one allocation, in empty calls": lambda n, c: c["tail"] / c["unit"],
        "bytes per live range": lambda n, c: c["bytes"],
        "lookup in batches against a SortedDict": lambda n, c: c["sorted lookup"] / c["lookup"],
    }
    return [figures[name](n, columns[n]) if n in columns else None for n in SIZES]


def ten_million(million: float, rounds: int) -> str:
    """Return how a pair beside ten million live ranges compares with one beside a million."""
    note("10,000,000 live ranges")
    churn = workloads.Churn(ours("fast"), 10_000_000, 1_000_000)
    figure = min(churn.pair(60, 5000) for _ in range(rounds)) / million
    met = verdict(figure, 1.6, False)
    return f"\n{'pair at 1e7 against 1e6':42}{figure:>9.2f} {'<=1.6':>6} {met:>7}"


def ratio(theirs: float | None, own: float) -> float | None:
    return None if theirs is None else theirs / own


def verdict(figure: float | None, goal: float | None, more: bool) -> str:
    if figure is None or goal is None:
        return ""
    return "met" if (figure >= goal if more else figure <= goal) else "MISSED"


def note(text: str) -> None:
    print(f"# {text}", file=sys.stderr, flush=True)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    if hasattr(os, "getloadavg"):
        found["load"] = f"{os.getloadavg()[1]:.1f} on {os.cpu_count()} CPUs"
    for name in ("vmm-iova", "sortedcontainers", "tinygrad", "intervaltree", "portion"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        for line in cpu.read_text("utf-8", "replace").splitlines():
            if line.startswith(("model name", "model\t", "cpu family")):
                found.setdefault(line.split(":")[0].strip(), line.split(":")[1].strip())
    return found


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1e3 and 1e5 only, shorter")
    parser.add_argument("--rounds", type=int, default=5, help="times that all is timed, in turns")
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="MODULE:CLASS")
    parser.add_argument("-o", "--output", type=Path, help="draw the growth curves as SVG")
    parser.add_argument("--json", type=Path, help="store every figure")
    parser.add_argument(
        "--ten-million", action="store_true", help="also a pair beside 1e7 ranges; 3 GB of memory"
    )
    options = parser.parse_args()
    made = dict(RIVALS)
    for spec in options.extra:
        module, _, name = spec.partition(":")
        made[name] = getattr(import_module(module), name)
    live = SIZES[:2] if options.quick else SIZES
    own: dict[int, Column] = {}
    for count in live:
        note(f"{count:,} live ranges")
        own[count] = Column(count, options.quick)
    made["pure engine, first fit"] = lambda: ours("pure")
    others = rivals_made(made, live, options.quick)
    columns: dict[int, dict[str, float]] = {count: {} for count in live}
    rivals: dict[str, dict[int, float]] = {name: {} for name in others}
    for number in range(options.rounds):
        note(f"round {number + 1} of {options.rounds}")
        for count, column in own.items():
            columns[count] = least(columns[count], column.time())
        for name, churns in others.items():
            figures = {n: c.pair(10, 500 if options.quick else 1000) for n, c in churns.items()}
            rivals[name] = least(rivals[name], figures)
    curves: dict[str, dict[int, float]] = {"fast, first fit": {}, "fast, best fit": {}}
    for count, column in columns.items():
        curves["fast, first fit"][count] = column["first"]
        curves["fast, best fit"][count] = column["best"]
    curves |= rivals
    facts = versions()
    print(
        f"{datetime.date.today().isoformat()}  " + "  ".join(f"{k} {v}" for k, v in facts.items())
    )
    print(
        f"CPU time, first quartile, least of {options.rounds} rounds, net of the loop; "
        "one empty call is the unit"
    )
    head = "".join(f"{f'{count:.0e} live':>24}" for count in SIZES)
    print(f"\n{'':42}{head}")
    table = {}
    for name, (goals, more) in GOALS.items():
        figures = row(name, columns, rivals)
        table[name] = figures
        cells = []
        for figure, goal in zip(figures, goals, strict=True):
            shown = "-" if figure is None else f"{figure:.2f}" if figure < 10 else f"{figure:.0f}"
            sign = ">=" if more else "<="
            wanted = "" if goal is None else f"{sign}{goal:g}"
            cells.append(f"{shown:>9} {wanted:>6} {verdict(figure, goal, more):>7}")
        print(f"{name:42}" + "".join(cells))
    print("\nour own figures, ns (bytes: bytes per live range)")
    for count, column in columns.items():
        print(f"  {count:>9,}: " + ", ".join(f"{k} {v:.1f}" for k, v in column.items()))
    print("\nrivals, ns per pair in W1")
    for name, points in rivals.items():
        semantics = getattr(made[name], "semantics", "first fit, exact, alignment, window")
        shown = ", ".join(f"{count:,}: {value:,.0f}" for count, value in points.items())
        print(
            f"  {name:28} {shown}  ({semantics}; up to {getattr(made[name], 'limit', 100_000):,})"
        )
    if options.ten_million:
        print(ten_million(columns[SIZES[2]]["first"], options.rounds))
    if options.output:
        draw(curves, options.output)
    if options.json:
        stored = {"versions": facts, "ns": columns, "rivals": rivals, "table": table}
        options.json.write_text(json.dumps(stored, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
