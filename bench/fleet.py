# SPDX-License-Identifier: Apache-2.0
"""How fast a fleet is surveyed, in how much memory, and that the cost of a host does not grow.

    python bench/fleet.py                     # 10,000 and 100,000 hosts, 1 and 2 workers; minutes
    python bench/fleet.py --hosts 500 --hosts 5000 --distinct 100
    python bench/fleet.py --json result.json  # store every figure

The snapshots are generated from a seed as they are needed, as members of an archive would go by:
servers of a number of hardware models, some with AMD's hole or a firmware region of their own, and
a given share of hosts whose facts no other host has, which no cache can help with. Each run is a
process of its own, so that its peak memory is its own. The processor time of a host, which says
more than the clock on a shared machine, includes generating its snapshot.

That the cost of a host does not grow shows twice: in each run, as the rate in its first and in its
last tenth, and over the runs, as the processor time of a host and the peak memory in the largest
fleet beside those in the smallest, which has a tenth of the hosts unless told otherwise.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vmm_iova
from vmm_iova import Guest, fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 20261124
_MSI = {"start": "0xfee00000", "last": "0xfeefffff", "type": "msi"}
_HT = {"start": "0xfd00000000", "last": "0xffffffffff", "type": "reserved"}
_CAPS = {39: "0x1c0000c40660462", 46: "0xd2078c106f0466", 57: "0x19ed008c40780c66"}


def model(number: int, groups: int) -> dict[str, Any]:
    """Return the facts of a hardware model: a server with `groups` IOMMU groups."""
    rng = random.Random(SEED * 1000 + number)
    amd = number % 3 == 0
    unit = "ivhd0" if amd else "dmar0"
    bits = rng.choice([46, 46, 57])
    firmware = 0x6000_0000 + rng.randrange(0, 0x1000) * 0x10_0000 // 16
    found = []
    for group in range(groups):
        regions = [_MSI, _HT] if amd else [_MSI]
        if not amd and group % 23 == 5:
            span = {"start": f"{firmware:#x}", "last": f"{firmware + 0xFFFFF:#x}"}
            word = "reserved" if number % 2 else "direct-relaxable"
            regions = [{**span, "type": word}, *regions]
        if group == 11 and number % 7 == 0:
            span = {"start": "0x7b800000", "last": "0x7b8fffff"}
            regions = [{**span, "type": "direct"}, *regions]
        of = [
            {**region, "source": f"/sys/kernel/iommu_groups/{group}/reserved_regions:{line}"}
            for line, region in enumerate(regions, 1)
        ]
        found.append(
            {
                "id": str(group),
                "type": "DMA-FQ",
                "devices": [f"0000:{group:02x}:00.0"],
                "reserved_regions": of,
                "empty_regions": [],
                "unreadable": None,
                "damaged": None,
            }
        )
    kinds = [
        ("0x030200", "vfio-pci"),
        ("0x020000", "mlx5_core"),
        ("0x010802", "nvme"),
        ("0x060400", "pcieport"),
    ]
    devices = []
    for group in range(groups):
        code, driver = kinds[group % len(kinds)]
        devices.append(
            {
                "name": f"0000:{group:02x}:00.0",
                "group": str(group),
                "iommu": unit,
                "dma_mask_bits": 64,
                "driver": driver,
                "class": code,
            }
        )
    register = (
        {"cap": None, "ecap": None, "features": "25bf732fa2295afe:1d"}
        if amd
        else {"cap": _CAPS[bits], "ecap": "0xf020df", "features": None}
    )
    return {
        "schema": {"name": "vmm-iova-host", "version": 1},
        "generator": "bench",
        "name": f"model{number}",
        "origin": "bench",
        "arch": "x86_64",
        "release": "6.12.0",
        "page_size": "0x1000",
        "groups": found,
        "devices": devices,
        "iommus": [{"name": unit, **register, "source": f"/sys/class/iommu/{unit}"}],
        "iova_ranges": [],
        "dma_windows": [],
        "widths": [],
        "log_regions": [],
        "limits": {"dma_entries": 65535, "memlock": None},
        "sysfs": True,
        "notes": [],
    }


def generate(
    hosts: int, models: int, distinct: int, groups: int, holes: int
) -> Iterator[fleet.SourceText]:
    """Yield snapshots; percentages of them have facts, or holes, that no other host has."""
    texts = [json.dumps(model(number, groups)) for number in range(models)]
    rng = random.Random(SEED)
    for number in range(hosts):
        text = texts[rng.randrange(models)].replace('"name": "model', f'"name": "h{number}-', 1)
        own = rng.randrange(100)
        if own < distinct:
            # Another width of the driver's mask: facts that differ, the same answer.
            text = text.replace('"dma_mask_bits": 64', f'"dma_mask_bits": {1000 + number}', 1)
        if own < holes:
            # A hole that no other host has: classes and the common holes grow with the fleet.
            start = 0x10_0000_0000 + number * 0x10_0000
            span = f'"start": "{start:#x}", "last": "{start + 0xFFFF:#x}", "type": "reserved"'
            text = text.replace('"reserved_regions": [', f'"reserved_regions": [{{{span}}}, ', 1)
        if number % 5000 == 4999:
            text = text[:1000]  # damaged, as one in so many is
        yield fleet.SourceText(f"host-{number:06}.json", text.encode())


def once(options: argparse.Namespace) -> dict[str, Any]:
    """Survey one generated fleet in this process and return what it took."""
    request = fleet.FleetRequest(Guest("q35", "1.5TiB"))
    sources = generate(
        options.hosts, options.models, options.distinct, options.groups, options.holes
    )
    seen: list[tuple[int, float]] = []  # hosts that were done, and when
    begun = time.perf_counter()

    def progress(done: fleet.Progress) -> None:
        seen.append((done.hosts, time.perf_counter() - begun))

    if options.workers == 1:
        survey = fleet.survey_fleet(sources, request, progress=progress)
    else:
        with ProcessPoolExecutor(options.workers) as executor:
            survey = fleet.survey_fleet(
                sources,
                request,
                executor=executor,
                in_flight=2 * options.workers,
                progress=progress,
            )
    surveyed = time.perf_counter()
    tenths = _tenths(seen, options.hosts)
    answer = fleet.analyse(survey, request)
    done = time.perf_counter()
    own = resource.getrusage(resource.RUSAGE_SELF)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime
    return {
        "hosts": options.hosts,
        "workers": options.workers,
        "seconds": round(surveyed - begun, 2),
        "hosts_per_second": round(options.hosts / (surveyed - begun)),
        "hosts_per_second_by_tenth": tenths,
        "cpu_ms_per_host": round(cpu * 1000 / options.hosts, 3),
        "analyse_seconds": round(done - surveyed, 2),
        "peak_mib": own.ru_maxrss // 1024,
        "peak_worker_mib": workers.ru_maxrss // 1024 if options.workers > 1 else 0,
        "counts": dict(answer.counts),
        "classes": len(answer.classes),
        "groups": [group.hosts for group in answer.groups],
    }


def _tenths(seen: list[tuple[int, float]], hosts: int) -> list[int | None]:
    """Return the rate in each tenth of a run; None for one that no chunk of hosts ends in."""
    edges = [
        (0, 0.0),
        *(next(at for at in seen if at[0] * 10 >= hosts * part) for part in range(1, 11)),
    ]
    return [
        round((last[0] - first[0]) / (last[1] - first[1])) if last[0] > first[0] else None
        for first, last in pairwise(edges)
    ]


def main() -> None:
    """Run the table, each line in a process of its own."""
    parser = argparse.ArgumentParser(description="rate and peak memory of fleets")
    parser.add_argument("--hosts", type=int, action="append")
    parser.add_argument("--workers", type=int, action="append")
    parser.add_argument("--models", type=int, default=48)
    parser.add_argument("--groups", type=int, default=40, help="IOMMU groups of a host")
    parser.add_argument(
        "--distinct", type=int, default=10, help="percent of hosts whose facts no other has"
    )
    parser.add_argument(
        "--holes", type=int, default=0, help="percent of hosts with a hole that no other has"
    )
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="store every figure")
    options = parser.parse_args()
    if options.once:
        options.hosts, options.workers = options.hosts[0], options.workers[0]
        print(json.dumps(once(options)))
        return
    found = []
    for hosts in options.hosts or [10_000, 100_000]:
        for workers in options.workers or [1, 2]:
            shared = ("models", "groups", "distinct", "holes")
            more = [f"--{name}={getattr(options, name)}" for name in shared]
            command = [sys.executable, __file__, "--once", f"--hosts={hosts}", *more]
            done = subprocess.run(
                [*command, f"--workers={workers}"], check=True, capture_output=True, text=True
            )
            found.append(json.loads(done.stdout))
            if len(found) == 1:
                facts = _facts(options)
                print("  ".join(f"{key} {value}" for key, value in facts.items()))
                print(_HEAD)
            _line(found[-1])
    for workers in options.workers or [1, 2]:
        _growth([run for run in found if run["workers"] == workers])
    if options.json:
        options.json.write_text(json.dumps({"facts": facts, "runs": found}, indent=1), "utf-8")


def _facts(options: argparse.Namespace) -> dict[str, str]:
    return {
        "date": datetime.date.today().isoformat(),
        "vmm-iova": vmm_iova.__version__,
        "python": platform.python_version(),
        "CPUs": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "models": str(options.models),
        "groups a host": str(options.groups),
        "% with facts of their own": str(options.distinct),
        "% with holes of their own": str(options.holes),
    }


_HEAD = (
    "   hosts workers  seconds  hosts/s  first 1/10   last 1/10  CPU ms/host  peak MiB  worker MiB"
    "  answer"
)


def _line(run: dict[str, Any]) -> None:
    tenths = run["hosts_per_second_by_tenth"]
    print(
        f"{run['hosts']:>8} {run['workers']:>7} {run['seconds']:>8} {run['hosts_per_second']:>8} "
        f"{tenths[0] or '-':>11} {tenths[-1] or '-':>11} "
        f"{run['cpu_ms_per_host']:>12} {run['peak_mib']:>9} {run['peak_worker_mib']:>11}  "
        f"{run['counts']}, {run['classes']} classes, answered in {run['analyse_seconds']} s",
        flush=True,
    )


def _growth(runs: list[dict[str, Any]]) -> None:
    """Set the largest fleet beside the smallest."""
    small, large = min(runs, key=_hosts), max(runs, key=_hosts)
    if small is large:
        return
    times = large["cpu_ms_per_host"] / small["cpu_ms_per_host"]
    print(
        f"{large['hosts'] / small['hosts']:g} times the hosts, {large['workers']} worker(s): "
        f"{times:.2f} times the CPU time of a host, peak memory {small['peak_mib']} MiB, then "
        f"{large['peak_mib']} MiB"
    )


def _hosts(run: dict[str, Any]) -> int:
    return int(run["hosts"])


if __name__ == "__main__":
    main()
