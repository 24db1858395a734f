# SPDX-License-Identifier: Apache-2.0
"""The lab's one table, and the list of guests."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lab.guests import Guest
    from lab.runner import Row

HEAD = ("guest", "kernel", "what was proved", "passed", "failed", "skipped", "seconds")
TEXT = 2


def _cells(row: Row) -> tuple[str, ...]:
    text = f"FAILED: {row.trouble}" if row.trouble else row.proved
    if row.failed and not row.trouble:
        text = f"FAILED: {row.failed} tests"
        if row.proved:
            text += f"; still shown: {row.proved}"
    numbers = (str(row.passed), str(row.failed), str(row.skipped), f"{row.seconds:.1f}")
    return (row.guest, row.kernel, text, *numbers)


def table(rows: Iterable[Row]) -> str:
    """Return the table as text; the long column is wrapped to what the terminal has left."""
    lines = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    others = sum(widths) - widths[TEXT] + 2 * (len(HEAD) - 1)
    room = max(40, shutil.get_terminal_size((140, 24)).columns - others)
    widths[TEXT] = min(widths[TEXT], room)
    printed: list[str] = []
    for number, cells in enumerate(lines):
        wrapped = textwrap.wrap(cells[TEXT], widths[TEXT]) or [""]
        for index, part in enumerate(wrapped):
            shown = [cell if index == 0 else "" for cell in cells]
            shown[TEXT] = part
            padded = (
                cell.rjust(width) if column > TEXT else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(shown, widths, strict=True))
            )
            printed.append("  ".join(padded).rstrip())
        if number == 0:
            printed.append("  ".join("-" * width for width in widths))
    return "\n".join(printed)


def failures(rows: Iterable[Row]) -> str:
    """Return a line for each thing that failed: printed last, for some logs keep only their end."""
    lines = [
        f"FAILED: {row.guest}: {what}\n"
        for row in rows
        if not row.good
        for what in (*([row.trouble] if row.trouble else []), *row.failures)
    ]
    return "".join(lines)


def listing(guests: Iterable[Guest]) -> str:
    """Return the guests, one a line."""
    return "\n".join(f"{guest.name:8} {guest.title}" for guest in guests)
