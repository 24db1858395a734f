# SPDX-License-Identifier: Apache-2.0
"""The command line of the kernel lab; see lab/README.md."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from lab import fetch, guests, report, runner
from lab.boot import boot, keep
from lab.kernels import Kernel
from lab.say import LabError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description="real kernels, no hardware")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="boot guests, run the tests inside, print one table")
    run.add_argument("guests", nargs="*", metavar="GUEST")
    run.add_argument(
        "--tests",
        action="append",
        metavar="PATH",
        help="run these test files or folders instead of lab/tests (may be given several times)",
    )
    run.add_argument("-k", dest="keyword", help="pytest's -k: only tests whose name matches")
    run.add_argument("--jobs", type=int, default=1, help="guests at the same time (default: 1)")
    run.add_argument("--seconds", type=float, help="time-out of a guest instead of its own")
    run.add_argument("--save-facts", action="store_true", help="write lab/facts/GUEST.json anew")
    get = commands.add_parser("fetch", help="fetch and build what the guests need")
    get.add_argument("guests", nargs="*", metavar="GUEST")
    get.add_argument("--renew", action="store_true", help="ask the index for newer versions")
    one = commands.add_parser("boot", help="run any command in a guest: boot GUEST -- COMMAND...")
    one.add_argument("guest", metavar="GUEST")
    one.add_argument("--seconds", type=float, help="time-out instead of the guest's own")
    one.add_argument("--bare", action="store_true", help="without handing devices to VFIO first")
    one.add_argument("words", nargs="+", metavar="COMMAND")
    for each in (run, one):
        each.add_argument(
            "--kernel", type=Path, metavar="IMAGE", help="boot this kernel, all drivers built in"
        )
    commands.add_parser("list", help="name the guests")
    return parser


def _stated(options: argparse.Namespace) -> Kernel | None:
    """Return the kernel that the caller named instead of the guest's own."""
    if options.kernel is None:
        return None
    if not options.kernel.is_file():
        raise LabError(f"there is no kernel {options.kernel}")
    return Kernel(options.kernel, options.kernel.name, None)


def _boot(options: argparse.Namespace) -> int:
    guest = guests.named([options.guest])[0]
    kernel = _stated(options) or fetch.fetch([guest])[guest.name]
    outcome = boot(guest, kernel, options.words, not options.bare, options.seconds)
    words = runner.last_words(outcome)
    output = outcome.folder / "output.txt"
    if output.exists():
        sys.stdout.write(output.read_text(errors="replace"))
        sys.stdout.flush()
    folder = keep(guest, outcome)
    if outcome.code is None:
        print(words, file=sys.stderr)
        raise LabError(f"{guest.name}: {outcome.trouble}; the logs are in {folder}")
    print(f"lab: exit code {outcome.code} after {outcome.seconds:.1f} s", file=sys.stderr)
    return outcome.code


def _end(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a LabError is one sentence and exit code 2."""
    options = _parser().parse_args(arguments)
    # Whoever ends the lab politely must not leave emulators behind.
    signal.signal(signal.SIGTERM, _end)
    try:
        if options.command == "list":
            print(report.listing(guests.GUESTS))
            return 0
        if options.command == "boot":
            return _boot(options)
        chosen = guests.named(options.guests)
        if options.command == "fetch":
            fetch.fetch(chosen, options.renew)
            return 0
        return runner.run(
            chosen,
            tests=options.tests,
            keyword=options.keyword,
            jobs=options.jobs,
            seconds=options.seconds,
            save_facts=options.save_facts,
            stated=_stated(options),
        )
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lab: interrupted; the guests are ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
