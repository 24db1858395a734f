# SPDX-License-Identifier: Apache-2.0
"""What a command costs before it has done anything: CPU time over that of a bare interpreter.

python -m bench.starts [--rounds N]

The least of all rounds counts, user and system time of the process, as the kernel accounts it:
what a busy machine adds in one round is not in another.
"""

from __future__ import annotations

import argparse
import os
import sys

COMMANDS = {
    # milliseconds that it may take
    "--version": 25,
    "show --host amd-epyc-1tb": 40,
    "plan --host amd-epyc-1tb --machine q35 --ram 64G": 60,
    "explain vfio_dma_map(0x1,0x382000000000,0x1000,0x2)=-22": 60,
}


def cpu(arguments: list[str], rounds: int) -> float:
    """Return the least CPU time of a process, ms; what it prints goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, nowhere, number) for number in (1, 2)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    times = []
    for _ in range(rounds):
        process = os.posix_spawn(sys.executable, arguments, environment, file_actions=actions)
        _, _, used = os.wait4(process, 0)
        times.append(used.ru_utime + used.ru_stime)
    os.close(nowhere)
    return min(times) * 1000


def main() -> int:
    """Print a line for each command."""
    parser = argparse.ArgumentParser(prog="python -m bench.starts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    bare = cpu([sys.executable, "-c", "pass"], rounds)
    print(f"a bare interpreter: {bare:.1f} ms of CPU time; over it:")
    for command, goal in COMMANDS.items():
        took = cpu([sys.executable, "-m", "vmm_iova", *command.split(" ")], rounds) - bare
        word = "met" if took <= goal else "MISSED"
        print(f"{command:58} {took:6.1f} ms   <={goal} {word}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
