# SPDX-License-Identifier: Apache-2.0
"""A remedy with its numbers: what is said, and what to type in the language of each program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmm_iova.remedies import Remedy

NOT_TRIED = " (not tried)"
"""Behind what rests on a source alone."""


@record
class Advice:
    """One thing to do.

    Attributes:
        text: what.
        ways: how, (program, what to type), where programs differ.
    """

    text: str
    ways: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        ways = "; ".join(f"{program}: {command}" for program, command in self.ways)
        return f"{self.text} ({ways})" if ways else self.text


def fill(
    remedy: Remedy,
    program: str | None = None,
    *,
    only: Collection[str] | None = None,
    **numbers: object,
) -> Advice:
    """Put the numbers into a remedy; a way that was not tried is marked.

    Args:
        remedy: what to say.
        program: that failed; None, or one that has no way of its own, leaves all ways.
        only: leave the ways of these programs alone.
        numbers: for the places of the text and of the ways.
    """
    left = [item for item in remedy.ways if only is None or item[0] in only]
    ways = [item for item in left if item[0] == program] or left
    idle = remedy.startswith(("nothing", "no setting"))  # which nobody has to try
    mark = "" if remedy.tried or ways or idle else NOT_TRIED
    return Advice(
        remedy.format(**numbers) + mark,
        tuple(
            (name, way.format(**numbers) + ("" if way.tried else NOT_TRIED)) for name, way in ways
        ),
    )
