# SPDX-License-Identifier: Apache-2.0
"""How wide a text is in a picture, and where it is cut or broken so that it fits."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

from vmm_iova.plain import one_line

# Class of a text -> size in pixels, width factor, CSS: one table for measuring and for drawing.
TYPE = {
    "h1": (18, 1.12, "font-weight:600"),
    "h2": (13, 1.0, ""),
    "head": (13, 1.12, "font-weight:600"),
    "name": (13, 1.0, ""),
    "note": (12, 1.0, ""),
    "addr": (12, 1.0, "font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"),
}
# Widths of characters in parts of the size, of DejaVu Sans: no usual font is wider.
_EMS = (
    (" iIjl.,:;'|!·", 0.34),
    ("frt()[]/-", 0.43),
    ("cksvxyzFJLT", 0.61),
    ("0123456789abdeghnopqu_EKPSZ", 0.66),
    ("ABCRVXYU<>&", 0.78),
    ("mwMW@%—…", 1.04),
)


def width(text: str, css: str) -> float:
    """Estimate the width of a text in pixels, on the safe side for the usual fonts."""
    size, factor, _ = TYPE[css.partition(" ")[0]]
    return sum(_em(char, css[:4]) for char in text) * size * factor


@lru_cache(maxsize=4096)
def _em(char: str, css: str) -> float:
    if unicodedata.east_asian_width(char) in ("W", "F") or ord(char) > 0xFFFF:
        return 1.05
    if css == "addr":
        return 0.62
    return next((em for chars, em in _EMS if char in chars), 0.84)


def fit(text: str, css: str, room: float) -> str:
    """Cut a text to a width, with an ellipsis; nothing is left where nothing fits."""
    widths = list(accumulate(width(char, css) for char in text))
    if not widths or widths[-1] <= room:
        return text
    keep = bisect_right(widths, room - width("…", css))
    return text[:keep].rstrip() + "…" if keep else ""


def wrap(text: str, css: str, room: float, most: int) -> list[str]:
    """Break a text into at most so many lines; the last one is cut."""
    lines = [""]
    for word in one_line(text).split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and len(lines) < most and width(longer, css) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fit(line, css, room) for line in lines]
