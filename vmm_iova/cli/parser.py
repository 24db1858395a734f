# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: the program's own options, and one parser for each command."""

from __future__ import annotations

import argparse

import vmm_iova
from vmm_iova.cli import capture, check, diff, explain, fleet, machines, plan, show
from vmm_iova.cli.options import Parser
from vmm_iova.errors import EXIT_CODES

_ROOMS = (show, plan, check, explain, machines, fleet, diff, capture)  # in the order of the help


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; the parsed options have the command to call as `run`."""
    codes = "\n".join(f"  {code:<3} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = Parser(
        prog="vmm-iova",
        description="Where guest memory may go on a host, where it goes, and why not elsewhere.",
        epilog=f"exit status:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for room in _ROOMS:
        room.add(commands)
    return parser


def _version() -> str:
    return f"vmm-iova {vmm_iova.__version__} ({vmm_iova.engine_name()} engine)"
