# SPDX-License-Identifier: Apache-2.0
"""Lists as tables, with the switches that `lsblk` has: columns, headings, raw, pairs.

`-o` stays the file that is written, so columns are chosen with `--columns` alone.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from vmm_iova.cli.options import split
from vmm_iova.errors import RequestError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

    Row = Mapping[str, str]


def add_table_options(
    parser: argparse.ArgumentParser, columns: Sequence[str], what: str = "the list"
) -> None:
    """Add the switches; `columns` are all that may be named."""
    group = parser.add_argument_group(f"table of {what}")
    group.add_argument(
        "--columns",
        action="append",
        metavar="NAMES",
        help=f"print these columns, comma separated: {', '.join(columns)}",
    )
    group.add_argument("--noheadings", action="store_true", help="print no line of headings")
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--raw",
        action="store_true",
        help="one space between columns; blanks inside, and what is not printable, as \\x20",
    )
    form.add_argument("--pairs", action="store_true", help='print NAME="value" pairs')


def table_wanted(options: argparse.Namespace) -> bool:
    """Whether one of the switches was given.

    Raises:
        RequestError: with JSON, which has every column and no headings.
    """
    given = [name for name in ("columns", "noheadings", "raw", "pairs") if getattr(options, name)]
    if given and options.json:
        raise RequestError(
            f"--{given[0]} is about a table, and -J prints JSON",
            field=given[0],
            value=getattr(options, given[0]),
            hint="leave out one of them",
        )
    return bool(given)


def chosen(options: argparse.Namespace, known: Sequence[str], usual: Sequence[str]) -> list[str]:
    """Return the columns to print: those that were named, else the usual ones.

    Raises:
        RequestError: there is no such column, or none is named.
    """
    if options.columns is None:
        return list(usual)
    names = [name.upper() for name in split(options.columns) or ()]
    wrong = next((name for name in names if name not in known), None)
    if wrong is not None or not names:
        close = difflib.get_close_matches(wrong or "", known, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]}? " if close else ""
        raise RequestError(
            f"there is no column {wrong}" if wrong else "--columns names no column",
            field="columns",
            value=wrong,
            hint=f"{meant}columns: {', '.join(known)}",
        )
    return names


def show_table(columns: Sequence[str], rows: Iterable[Row], options: argparse.Namespace) -> str:
    """Return the table; every line ends with a newline."""
    if options.pairs:
        return "".join(" ".join(_pair(name, row[name]) for name in columns) + "\n" for row in rows)
    lines = [[row[name] for name in columns] for row in rows]
    if not options.noheadings:
        lines.insert(0, list(columns))
    if options.raw:
        return "".join(" ".join(_escape(cell, _BLANK) for cell in line) + "\n" for line in lines)
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    padded = (map(str.ljust, line, widths) for line in lines)
    return "".join("  ".join(line).rstrip() + "\n" for line in padded)


_BLANK = frozenset(" \\")
_QUOTED = frozenset('"\\$`')  # what a shell reads inside of double quotes


def _pair(name: str, value: str) -> str:
    """A column as a variable of a shell, with its value."""
    return f'{name.replace("-", "_")}="{_escape(value, _QUOTED)}"'


def _escape(text: str, special: frozenset[str]) -> str:
    """Write what is special or not printable as its bytes in UTF-8, each an `x` and two digits."""
    return "".join(
        char
        if char.isprintable() and char not in special
        else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
        for char in text
    )
