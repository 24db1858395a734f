# SPDX-License-Identifier: Apache-2.0
"""A matcher for the lines that programs print, whose time is linear in the line whatever is in it.

A template is written as the program writes the line, in lower case:

    vfio_dma_map ({ptr}, {iova}, {size}, {hva}) = -{errno_}

A space stands for any white space or none; `{name}` for a value, whose kind follows the name after
a colon (`{addr:x}` hex with or without 0x, `{n:d}` decimal, `{who:w}` a word; without a kind, a
number as C prints it); ` ... ` for anything. Each part between two gaps is looked for from where
the one before ended, and never looked for again: a part that is not in the rest of the line is in
no later rest either. So no text makes it slow, which a regular expression with two gaps cannot say.
"""

from __future__ import annotations

import re
import string
from typing import NamedTuple

from vmm_iova.patterns import regex

_KINDS = {
    "": r"0x[0-9a-f]{1,64}|[0-9]{1,64}",
    "x": r"(?:0x)?[0-9a-f]{1,64}(?![0-9a-z_])",  # ffxxxxxx is one that somebody masked
    "d": r"[0-9]{1,64}",
    "w": r"[^\s,;)\]'\"]{1,256}",
    "b": r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]",
    "p": r"0x[0-9a-f.\u2026]{0,64}",  # people shorten pointers: 0x...
}
_NAMES = {"ptr": "p", "hva": "p", "dev": "b", "node": "w"}
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_TOKEN = regex(r" \.\.\. |\{(?P<name>\w+)(?::(?P<kind>\w))?\}| |[^ {]+")
_BLANKS = regex(r"\s+")
_GAP = " ... "


class Match(NamedTuple):
    """Where a template was found, and what stood in its places."""

    start: int
    stop: int
    values: dict[str, str]


class _Field(NamedTuple):
    name: str
    pattern: re.Pattern[str]


class Tally:
    """Counts the characters that a search looks at, for the test of the promise above."""

    __slots__ = ("characters",)

    def __init__(self) -> None:
        self.characters = 0


def fold(line: str) -> str:
    """Return a line as templates want it: one space for any blanks, ASCII letters in lower case.

    Complexity: O(length).
    """
    return _BLANKS.sub(" ", line).translate(_LOWER)


class Template:
    """A line of a program, with places for its values."""

    __slots__ = ("parts",)

    def __init__(self, text: str) -> None:
        self.parts: list[list[str | _Field | None]] = [[]]
        for token in _TOKEN.finditer(text):
            word = token[0]
            if word == _GAP:
                self.parts.append([])
            elif word == " ":
                self.parts[-1].append(None)
            elif token["name"]:
                kind = token["kind"] or _NAMES.get(token["name"], "")
                pattern = re.compile(_KINDS[kind])
                self.parts[-1].append(_Field(token["name"], pattern))
            else:
                self.parts[-1].append(word)
        if not all(part and isinstance(part[0], str) for part in self.parts):
            raise ValueError(f"each part of {text!r} has to begin with a word")

    @property
    def head(self) -> str:
        """The word that it begins with: a line without it does not have the template."""
        head = self.parts[0][0]
        assert isinstance(head, str)
        return head

    def search(self, line: str, start: int = 0, tally: Tally | None = None) -> Match | None:
        """Find the template in a line of `fold`, from `start` on.

        Complexity: O(length x parts); each attempt is bounded by the lengths of its own values.
        """
        first: int | None = None
        values: dict[str, str] = {}
        at = start
        for part in self.parts:
            found = _find(part, line, at, tally)
            if found is None:
                return None
            first = found.start if first is None else first
            values.update(found.values)
            at = found.stop
        assert first is not None
        return Match(first, at, values)


def _find(
    part: list[str | _Field | None], line: str, start: int, tally: Tally | None
) -> Match | None:
    head = part[0]
    assert isinstance(head, str)
    while True:
        found = line.find(head, start)
        if tally is not None:
            tally.characters += (len(line) if found < 0 else found + len(head)) - start
        if found < 0:
            return None
        match = _follow(part, line, found, found + len(head))
        if match is not None:
            return match
        if tally is not None:
            tally.characters += min(_LONGEST, len(line) - found)
        start = found + 1


_LONGEST = 512
"""Characters that an attempt looks at, at most: no template has more than its words and values."""


def _follow(part: list[str | _Field | None], line: str, start: int, at: int) -> Match | None:
    values: dict[str, str] = {}
    for token in part[1:]:
        if token is None:
            at += line.startswith(" ", at)
        elif isinstance(token, str):
            if not line.startswith(token, at):
                return None
            at += len(token)
        else:
            value = token.pattern.match(line, at)
            if value is None:
                return None
            values[token.name] = value[0]
            at = value.end()
    return Match(start, at, values)
