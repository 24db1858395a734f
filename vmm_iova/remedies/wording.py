# SPDX-License-Identifier: Apache-2.0
"""What a remedy is, and where remedies were tried."""

from __future__ import annotations


class Remedy(str):
    """One thing to do: text, with places for values, and what it rests on.

    Attributes:
        tried: where it was done and helped; empty if it was not.
        source: what it rests on where it was not tried.
        ways: the same in the language of each program, where programs differ.

    Synchronization: none required (immutable).
    """

    tried: str
    source: str
    ways: tuple[tuple[str, Remedy], ...]

    __slots__ = ("source", "tried", "ways")

    def __new__(
        cls,
        text: str,
        *,
        tried: str = "",
        source: str = "",
        ways: tuple[tuple[str, Remedy], ...] = (),
    ) -> Remedy:
        """Make one; it has been tried, or it names its source, or its ways do."""
        made = super().__new__(cls, text)
        made.tried, made.source, made.ways = tried, source, ways
        return made


LAB = "Linux 6.12 and 7.2 in the lab (lab/README.md)"
QEMUS = "QEMU 7.2.22, 10.0.13 and 11.1.3"
SHELL = "Linux, bash and systemd"
