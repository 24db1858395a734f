# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: the program's own options, and one parser for each command."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import vmm_iova
from vmm_iova.cli.options import ROOMS, Parser
from vmm_iova.errors import EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for name, about in ROOMS.items():
        if whole or name == called:
            import_module(f"vmm_iova.cli.{name}").add(commands)
        else:
            commands.add_parser(name, help=about, description=about)
    return parser


def _version() -> str:
    return f"vmm-iova {vmm_iova.__version__} ({vmm_iova.engine_name()} engine)"
