# SPDX-License-Identifier: Apache-2.0
"""The command: `python -m lab.vmm [--seed N] [--maps N] ...`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from lab.needs import QEMU, Need, install
from lab.say import LabError, say
from lab.vmm.binaries import SUITES, Qemu, system, unpacked
from lab.vmm.compare import differences, start
from lab.vmm.matrix import Config, configs
from lab.vmm.planted import MACHINES, look
from lab.vmm.promises import broken_fixes, broken_promises, printed, untried

SEED = 20261127
FIRMWARE = (
    Need("/usr/share/seabios/bios-256k.bin", ("seabios",)),
    Need("/usr/share/OVMF/OVMF_CODE_4M.fd", ("ovmf",)),
    Need("qemu-system-riscv64", ("qemu-system-riscv", "qemu-system-misc")),
)
"""What is compared beside the emulators of the lab's guests."""
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
    add(
        "--planted",
        nargs="*",
        metavar="MACHINE",
        help="change each number of these machine files (default all) and see that it is found",
    )
    add("--promises", action="store_true", help="start each option that is printed for QEMU")
    return parser


def main() -> int:
    """Compare; 1 where anything differs."""
    options = _parser().parse_args()
    install([*QEMU.values(), *FIRMWARE])
    qemus = [system(), unpacked(options.suite)]
    for qemu in qemus:
        say(qemu.title)
    say(f"seed {options.seed}")
    if options.planted is not None:
        return _planted(options.planted or list(MACHINES), options.seed, qemus)
    if options.promises:
        return _promises(options.seed, qemus)
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
            print(line := f"{qemu.name}: {config}: {error}", flush=True)
            return [line]
        count[config.kind] += 1
        count["refused"] += observed.refused is not None
        found = [f"{qemu.name}: {config}: {text}" for text in differences(config, qemu, observed)]
        for line in found:
            print(line, flush=True)
        return found

    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(one, range(len(drawn)), drawn))
    wrong = [text for result in results if result for text in result]
    done = sum(result is not None for result in results)
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(count.items()))
    say(f"{done} of {len(drawn)} configurations compared ({kinds}): {len(wrong)} differences")
    return 1 if wrong else 0


def _planted(machines: list[str], seed: int, qemus: list[Qemu]) -> int:
    """Plant wrong numbers; 1 where one is not found."""
    failed = 0
    for machine in machines:
        seen = look(machine, qemus[1], seed)
        blind = [change for change in seen.missed if change.unread is None]
        print("\n".join([*seen.wrong, *(f"{machine}: {c.key} is not found" for c in blind)]))
        untold = len(seen.missed) - len(blind)
        say(
            f"{machine}: {len(seen.found)} wrong numbers found, {len(blind)} missed; "
            f"{untold} that QEMU does not tell, {len(seen.barred)} of which no other is possible; "
            f"{len(seen.wrong)} differences without any"
        )
        failed += len(blind) + len(seen.wrong)
    return 1 if failed else 0


def _promises(seed: int, qemus: list[Qemu]) -> int:
    """Start what is printed for QEMU; 1 where it has not the effect promised."""
    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    tried = [text for qemu in qemus for text in broken_promises(qemu, kvm=kvm)]
    drawn = [c for c in configs(seed, 300, 12, 6, 80) if c.machine.startswith(("q35", "i440fx"))]
    fixes = [text for config in drawn for text in broken_fixes(config, _choose(config, 1, qemus))]
    broken = [text for text in (*tried, *fixes) if text is not None]
    broken += [f"{option} ({where}) is tried nowhere" for option, where in untried().items()]
    print("\n".join(broken))
    say(
        f"{len(printed())} options are printed; {len(tried)} starts on {len(qemus)} QEMUs, and "
        f"{len(fixes)} with a fix of a refusal"
        f"{'' if kvm else ', without those that need KVM'}: {len(broken)} broken promises"
    )
    return 1 if broken else 0


def _choose(config: Config, index: int, qemus: list[Qemu]) -> Qemu:
    """Alternate; what only the newer one has is started with it.

    OVMF of 2022 makes page tables for all addresses, which takes minutes from 44 bits on.
    """
    newer = config.machine == "s390x" and config.more > 0
    newer |= config.machine == "virt" and config.pci64 is not None
    newer |= config.firmware == "ovmf" and config.bits > _OLD_OVMF_BITS
    return qemus[1] if newer else qemus[index % 2]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        say(str(error))
        sys.exit(2)
