# SPDX-License-Identifier: Apache-2.0
"""The words of a command, as a shell, `ps`, a script or libvirt's log shows them.

Nothing is run. Quotes, backslashes, comments and plain variables of the script are read as bash
reads them; JSON that stands bare, as `ps` prints it, is one word.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from vmm_iova.patterns import regex
from vmm_iova.record import collector, field

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 200_000
"""Characters of a text that are looked at, and of what its variables expand to."""

_DEPTH = 8
_PART = regex(
    r"""(?P<gap>(?:[ \t\r]|\\\r?\n)+) | (?P<stop>[\n;|&<>]) | (?P<note>\#[^\n]*)
      | '(?P<single>[^']*)' | "(?P<double>(?:[^"\\]|\\.)*)" | \\(?P<escaped>.)
      | (?P<variable>\$(?:\{[^}\n]*\}|[A-Za-z_]\w*)) | (?P<plain>[^\s'"\\;|&<>\#$]+)
      | (?P<odd>.)""",
    re.VERBOSE | re.DOTALL,
)
_SET = regex(
    r"""^[ \t]*(?:export[ ]|local[ ]|readonly[ ]|declare[ ](?:-\w+[ ])*)?(?P<name>[A-Za-z_]\w*)
        (?P<more>\+?)=(?:(?P<list>\()|(?P<value>(?:'[^'\n]*+'|"(?:[^"\\\n]|\\.)*+"|[^\s'";]++)*+)
        [ \t]*+;?[ \t]*+(?:\#[^\n]*+)?$)""",
    re.VERBOSE | re.MULTILINE,
)
_VALUE_OF = regex(r"\s--?(?:accel|name|machine|M|cpu)[ \t]+\Z")
_USE = regex(r"\$(?:\{(\w+)(?:\[[@*]\])?(?::?-([^}]*))?\}|([A-Za-z_]\w*))")


@collector
class _Reader:
    """Words of a text, with the variables that the text sets."""

    text: str
    values: dict[str, list[str]] = field(default_factory=dict)
    left: int = LONGEST

    def words(self, start: int, *, stop: bool, depth: int = 0) -> Iterator[str]:
        """Yield words from a position; up to the end of the command where `stop`."""
        word: str | None = None
        at, text = start, self.text
        while at < len(text):
            if word is None and text[at] == "{":
                end = _json(text, at)
                if end is not None:
                    word, at = text[at:end], end
                    continue
            part = _PART.match(text, at)
            if part is None:  # a quote without its partner: the rest is no word
                break
            at = part.end()
            if part["gap"] or part["stop"] or (part["note"] and word is None):
                if word is not None:
                    yield word
                    word = None
                if stop and part["stop"] == "\n" and _continues(text, at):
                    continue
                if stop and part["stop"]:
                    return
                continue
            more = self._expand(part, word is None, depth)
            if len(more) > 1 or (not more and word is None):
                yield from filter(None, (word, *more))
                word = None
                continue
            word = (word or "") + "".join(more)
        if word is not None:
            yield word

    def _expand(self, part: re.Match[str], alone: bool, depth: int) -> list[str]:
        if part["single"] is not None:
            return [part["single"]]
        if part["double"] is not None:
            text = re.sub(r"\\\r?\n", "", part["double"])
            whole = _USE.fullmatch(text)
            if whole and "[" in text:
                return self._value(whole, depth)
            text = _USE.sub(lambda use: " ".join(self._value(use, depth)), text)
            return [re.sub(r'\\(["\\$`])', r"\1", text)]
        if part["variable"]:
            use = _USE.fullmatch(part["variable"])
            if use is None:
                return [part["variable"]]
            found = self._value(use, depth)
            return [word for item in found for word in item.split()] if alone else found
        return [part["escaped"] or part["plain"] or part["odd"] or part["note"]]

    def _value(self, use: re.Match[str], depth: int) -> list[str]:
        """Values of a variable; the name itself where the text does not set it."""
        found = self.values.get(use[1] or use[3])
        if found is None:
            return [use[2]] if use[2] is not None else [use[0]]
        out = [_USE.sub(lambda inner: " ".join(self._deeper(inner, depth)), item) for item in found]
        self.left -= sum(map(len, out))
        return out if self.left > 0 else [use[0]]

    def _deeper(self, use: re.Match[str], depth: int) -> list[str]:
        return self._value(use, depth + 1) if depth < _DEPTH and self.left > 0 else [use[0]]


def _json(text: str, at: int) -> int | None:
    """Where the JSON object that begins here ends; None where there is none."""
    if text[at + 1 : at + 2] not in ('"', "}"):
        return None
    try:
        return json.JSONDecoder().raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None


def _continues(text: str, at: int) -> bool:
    """Tell whether the next line goes on with options, as where a pasted line was wrapped."""
    return re.compile(r"[ \t]*--?[A-Za-z]").match(text, at) is not None


def command_words(text: str, program: re.Pattern[str]) -> list[str] | None:
    """Return the words of the last command of a text, the program's name first.

    Args:
        text: of which at most 200,000 characters are looked at.
        program: matches the name of the program.

    Returns:
        The words; None where the text runs no such program.

    Complexity: O(size).
    """
    reader = _Reader(text[:LONGEST])
    _variables(reader)
    best: list[str] | None = None
    for value in reader.values.values():  # a script may collect its command in a variable
        words = split_words(" ".join(value), reader) if program.match(" ".join(value)) else []
        if any(len(word) > 1 and word[0] == "-" for word in words[1:]):
            best = words
    left = 2 * LONGEST  # characters of commands that are looked at, from the last one back
    for match in reversed(list(program.finditer(reader.text))):
        start = match.start("name")
        if _VALUE_OF.search(reader.text, max(0, start - 40), start):
            continue  # as in -accel kvm
        before = re.search(r"[\"']?[^\s'\"]*\Z", reader.text[max(0, start - 200) : start])
        words = list(reader.words(start - (len(before[0]) if before else 0), stop=True))
        if any(len(word) > 1 and word[0] == "-" for word in words[1:]):
            return words  # a log has every start, the last one counts
        left -= sum(map(len, words)) + len(words)
        if left < 0:
            break
    return best


def split_words(text: str, of: _Reader | None = None) -> list[str]:
    """Return the words of options alone, without a program in front.

    Args:
        text: of which at most 200,000 characters are looked at.
        of: a script whose variables count.

    Complexity: O(size).
    """
    reader = _Reader(text[:LONGEST], of.values if of else {}, of.left if of else LONGEST)
    if of is None:
        _variables(reader)
    return list(reader.words(0, stop=False))


def _variables(reader: _Reader) -> None:
    for match in _SET.finditer(reader.text):
        if match["list"]:
            values = list(_Reader(_until_closed(reader.text, match.end())).words(0, stop=False))
        else:
            values = list(_Reader(match["value"]).words(0, stop=False))[:1] or [""]
        old = reader.values.get(match["name"], []) if match["more"] else []
        if old and not match["list"]:
            values = [old[-1] + values[0]]
            old = old[:-1]
        reader.values[match["name"]] = [*old, *values]


def _until_closed(text: str, at: int) -> str:
    """What stands before the parenthesis that ends a list."""
    start = at
    while at < len(text):
        part = _PART.match(text, at)
        if part is None:
            break
        plain = part["plain"] or part["odd"] or ""
        if ")" in plain:
            return text[start : at + plain.index(")")]
        at = part.end()
    return text[start:]
