# SPDX-License-Identifier: Apache-2.0
"""The command: `python -m lab.vmm [--seed N] [--maps N] ...`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from lab.say import LabError, say
from lab.vmm.binaries import SUITES, Qemu, system, unpacked
from lab.vmm.compare import differences, start
from lab.vmm.matrix import Config, configs

SEED = 20261127
_OLD_OVMF_BITS = 42


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.vmm", description=__doc__)
    add = parser.add_argument
    add("--seed", type=int, default=SEED, help=f"of the draw (default {SEED})")
    add("--maps", type=int, default=1100, metavar="N", help="starts without firmware")
    add("--hotplug", type=int, default=200, metavar="N", help="starts with maxmem")
    add("--firmware", type=int, default=300, metavar="N", help="boots of firmware with BARs")
    add("--ovmf", type=int, default=60, metavar="N", help="how many of these are OVMF's")
    add("--suite", default=SUITES[0], choices=SUITES, help="Debian of the newer QEMU")
    add("--jobs", type=int, default=2, metavar="N", help="QEMUs at the same time")
    add("--seconds", type=float, help="begin no start after so many seconds")
    return parser


def main() -> int:
    """Compare; 1 where anything differs."""
    options = _parser().parse_args()
    qemus = [system(), unpacked(options.suite)]
    for qemu in qemus:
        say(qemu.title)
    say(f"seed {options.seed}")
    drawn = list(
        configs(options.seed, options.maps, options.firmware, options.ovmf, options.hotplug)
    )
    until = time.monotonic() + options.seconds if options.seconds else float("inf")
    count: Counter[str] = Counter()

    def one(index: int, config: Config) -> list[str] | None:
        if time.monotonic() > until:
            return None
        qemu = _choose(config, index, qemus)
        try:
            observed = start(config, qemu)
        except LabError as error:
            return [f"{qemu.name}: {config}: {error}"]
        count[config.kind] += 1
        count["refused"] += observed.refused is not None
        return [f"{qemu.name}: {config}: {text}" for text in differences(config, qemu, observed)]

    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(one, range(len(drawn)), drawn))
    wrong = [text for result in results if result for text in result]
    print("\n".join(wrong))
    done = sum(result is not None for result in results)
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(count.items()))
    say(f"{done} of {len(drawn)} configurations compared ({kinds}): {len(wrong)} differences")
    return 1 if wrong else 0


def _choose(config: Config, index: int, qemus: list[Qemu]) -> Qemu:
    """Alternate; what only the newer one has is started with it.

    OVMF of 2022 makes page tables for all addresses, which takes minutes from 44 bits on.
    """
    newer = config.machine == "s390x" and config.more
    newer |= config.firmware == "ovmf" and config.bits > _OLD_OVMF_BITS
    return qemus[1] if newer else qemus[index % 2]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        say(str(error))
        sys.exit(2)
