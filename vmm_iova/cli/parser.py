# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: the program's own options, and one parser for each command."""

from __future__ import annotations

import argparse
import os
import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import vmm_iova
from vmm_iova.errors import EXIT_CODES, RequestError
from vmm_iova.patterns import regex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


ROOMS = {  # in the order of the help
    "show": "what a host says, and what may be mapped on it",
    "plan": "where a guest goes on a host",
    "check": "may a range be mapped, and if not, why not",
    "explain": "why a call failed, from the error line as it is pasted",
    "machines": "machine models, or one of them",
    "fleet": "one layout for many hosts, or who stands in the way",
    "diff": "two hosts or two layouts",
    "capture": "write what a host says as a snapshot",
}
"""Commands, each with its room of that name in this package, and what it does."""


EXAMPLES = {
    "show": (
        "vmm-iova show                              this machine",
        "vmm-iova show --host dmesg.txt -g 12       from a log; group 12 alone",
        "vmm-iova show --host amd-epyc-1tb -J       a bundled host, as JSON",
    ),
    "plan": (
        "vmm-iova plan --machine q35 --ram 64G",
        "vmm-iova plan --ram 64G -s 01:00.0   with its BARs: will it start?",
        "vmm-iova plan --host host.json --machine q35 --ram 1.5TiB -o map.svg",
        "vmm-iova plan --ram 64G --bar gpu=128G,required --dry-run",
    ),
    "check": (
        "vmm-iova check --range 0xfd00000000+4G",
        "vmm-iova check --host host.json --range 0x380000000000-0x38000fffffff",
        "vmm-iova check -s 01:00.0 --attach 02:00.0 --layout guest.json",
    ),
    "explain": (
        "vmm-iova explain 'vfio_dma_map(0x1, 0x382000000000, 0x1000, 0x2) = -22'",
        "dmesg | vmm-iova explain -",
        "vmm-iova explain --file qemu.log --host host.json -v",
    ),
    "machines": ("vmm-iova machines", "vmm-iova machines q35"),
    "fleet": (
        "vmm-iova fleet captures/ --ram 64G",
        "vmm-iova fleet hosts.tar.gz --machine q35 --ram 1TiB -o rows.csv",
    ),
    "diff": (
        "vmm-iova diff before.json after.json",
        "vmm-iova diff amd-epyc-1tb intel-dmar-i7-2600 --ram 16G",
    ),
    "capture": (
        "vmm-iova capture -o host.json",
        "vmm-iova capture --ask-kernel -s 0000:01:00.0 -o host.json",
    ),
}
"""A few ways to call each command."""

_CHOICE = regex(r"invalid choice: '(?P<given>[^']{1,60})' \(choose from (?P<known>.*)\)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """argparse's own, without shutil and its compressors: one is made for each option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


@cache
def _columns() -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size().columns or 80
    except OSError:
        return 80


class Parser(argparse.ArgumentParser):
    """argparse whose complaint looks like every other one of ours."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help, **options})

    def error(self, message: str) -> NoReturn:
        """Refuse with one sentence and a hint.

        Raises:
            RequestError: always.
        """
        import difflib

        hint = f"{self.prog} --help"
        choice = _CHOICE.search(message)
        if choice is not None:
            known = [item.strip(" '") for item in choice["known"].split(",")]
            close = difflib.get_close_matches(choice["given"], known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? {hint}" if close else hint
        raise RequestError(message, field="arguments", value=None, hint=hint)


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a command that prints text or JSON."""
    about = ROOMS[name]
    shown = "\n".join(f"  {line}" for line in EXAMPLES[name])
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"examples:\n{shown}",
    )
    parser.set_defaults(run=run)
    return parser


def make_parser(
    arguments: Sequence[str] | None = None, *, whole: bool = False
) -> argparse.ArgumentParser:
    """Make the parser; the parsed options have the command to call as `run`.

    Only the room of the command that is called is loaded: the command starts for every use anew.

    Args:
        arguments: what will be parsed; default `sys.argv`.
        whole: load every room, for the manual and completion.
    """
    given = sys.argv[1:] if arguments is None else arguments
    called = next((item for item in given if item in ROOMS), None)
    codes = "\n".join(f"  {code:<3} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = Parser(
        prog="vmm-iova",
        description="Where guest memory may go on a host, where it goes, and why not elsewhere.",
        epilog=f"exit status:\n{codes}",
    )
    parser.add_argument("--version", action=_Version, help="show program's version number and exit")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for name, about in ROOMS.items():
        if whole or name == called:
            import_module(f"vmm_iova.cli.{name}").add(commands)
        else:
            commands.add_parser(name, help=about, description=about)
    return parser


class _Version(argparse._VersionAction):
    """Prints the version, with the engine, which is loaded for nothing else here."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        print(f"vmm-iova {vmm_iova.__version__} ({vmm_iova.engine_name()} engine)")
        parser.exit()
