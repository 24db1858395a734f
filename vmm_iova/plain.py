# SPDX-License-Identifier: Apache-2.0
"""Text from outside made plain: what a name, a file or a paste may do to a line, and no more.

Facts come as one printable line (`one_line`), so that no name forges a line of a list, no escape
sequence reaches a terminal, and every text can stand in XML and in any encoding. `for_terminal` is
the same for whole outputs. Nothing is dropped: what cannot be shown is shown as its escape.
"""

from __future__ import annotations

import json
from typing import Any

from vmm_iova.errors import HostDataError
from vmm_iova.patterns import regex

_SPACES = regex(r"[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LAYOUT = {ord(blank): " " for blank in "\n\r\t"}  # between the parts of JSON; in a text they fail
_NUMBER = regex(r"[0-9]{1,18}")


def one_line(text: str) -> str:
    r"""Return a text as one line of printable characters.

    Blanks of any width become spaces. Line ends, controls, marks that turn the direction of
    writing and halves of surrogate pairs become escapes such as `\n` and `\x1b`.

    Complexity: O(length).
    """
    if text.isprintable():
        return text
    spaced = _SPACES.sub(" ", text)
    return "".join(char if char.isprintable() else _escape(char) for char in spaced)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return ascii(char)[1:-1]


MARKS: dict[str, str] = {
    "\ue000": "\x1b[1;32m",
    "\ue001": "\x1b[1;31m",
    "\ue002": "\x1b[1;33m",
    "\ue003": "\x1b[0m",
}
"""Stand-ins for colours (good, bad, unsure, back): an escape from outside reaches no terminal."""


def for_terminal(text: str, encoding: str | None = None) -> str:
    """Return an output without what a terminal would obey, and fit for its encoding.

    Line ends and tabs stay; every other character that does not print becomes its escape.

    Args:
        text: whole lines, or parts of them.
        encoding: what the stream encodes with; None where it takes any text.

    Complexity: O(length).
    """
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() or char in "\n\t" else _escape(char) for char in text
        )
    if encoding is None or text.isascii():
        return text
    return text.encode(encoding, "backslashreplace").decode(encoding)


def whole_number(text: str) -> int | None:
    """Return a number of up to 18 ASCII digits, or None for any other text.

    `str.isdigit` also takes digits that `int` refuses, and `int` refuses 5000 of them.
    """
    return int(text) if _NUMBER.fullmatch(text) else None


def by_number(name: str) -> tuple[bool, int, str]:
    """Sort key: names that are numbers first, ascending, then the others."""
    number = whole_number(name)
    return number is None, number or 0, name


def parse_json(text: str, name: str) -> Any:
    """Read JSON from outside; each text in it comes as one line (`one_line`).

    Args:
        text: the document.
        name: file name for messages.

    Raises:
        HostDataError: it is not JSON, or nested deeper than can be read.

    Complexity: O(size).
    """
    # Where every character prints and none is escaped, so does every text of it. Of ASCII only DEL
    # has to be looked for: json refuses other controls in a text.
    prints = "\x7f" not in text if text.isascii() else text.translate(_LAYOUT).isprintable()
    plain = prints and "\\" not in text
    try:
        return json.loads(text, object_hook=None if plain else _plain_object)
    except RecursionError as error:
        raise HostDataError(
            f"{name}: is nested deeper than can be read: no document of ours is", source=name
        ) from error
    except ValueError as error:  # also a number of more digits than int() takes
        line = getattr(error, "lineno", None)
        where = f"{name}:{line}" if line else name
        raise HostDataError(
            f"{where}: is not JSON: {getattr(error, 'msg', None) or error}",
            source=name,
            line=line,
        ) from error


def _plain_object(item: dict[str, Any]) -> dict[str, Any]:
    """Make the texts of an object plain; the objects inside have been through here already."""
    return {one_line(key): _plain_value(value) for key, value in item.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value)
    return [_plain_value(item) for item in value] if isinstance(value, list) else value
