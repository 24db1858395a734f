# SPDX-License-Identifier: Apache-2.0
"""How people paste: quoted, numbered, in tables, with file names in front. Read what is meant.

A pair of numbers must say that it is hex: one of them by `0x`, or by eight digits and more with a
leading zero or a letter. What could be decimal is not read as hex.
"""

from __future__ import annotations

import re

from vmm_iova.patterns import regex

_QUOTE = regex(r"(?:>\s*)+")
_BULLET = regex(r"(?:[-*\u2022]|\d{1,4}[.)])\s+(?=\S)")
_FENCE = regex(r"(?:```|~~~)\w*")
# `grep . /sys/kernel/iommu_groups/*/reserved_regions`, also with -n, -H, or from inside.
_GROUP_FILE = regex(r"(?:\S*/)?(?P<group>\d{1,9})/reserved_regions:(?:\d+:)?\s*(?P<rest>.*)")
_DEVICE_FILE = regex(
    r"\S*/devices/(?P<device>[^/\s]+)/iommu_group/reserved_regions:(?:\d+:)?\s*(?P<rest>.*)"
)
_ANY_FILE = regex(r"(?:\S*[^/\d\s]/)?reserved_regions:(?:\d+:)?\s*(?P<rest>.*)")
_GROUP_HEADER = regex(r"==>\s*(?:\S*/)?(?P<group>\d{1,9})/reserved_regions\s*<==")

_NUMBER = r"(?:0[xX])?[0-9a-fA-F]+"
_COUNT = regex(
    r"(?:(?:(?:valid|usable|iova|iommu)\s+)*(?:ranges?|iova)\s*)?"
    r"(?:\[\d{1,4}\]|#?\d{1,4}(?=\s*[:)])|\d{1,4}\s+is\b)?\s*[:)=]?\s*",
    re.IGNORECASE,
)
_PAIR = regex(
    rf"[\[{{(]?\s*({_NUMBER})\s*(?:-|\u2013|\.\.\.?|,|;|\bto\b)\s*({_NUMBER})\s*[\]}})]?\s*[,;]?\s*"
)
_BRACKETED = regex(rf"[\[{{(]\s*({_NUMBER})\s*(?:-|\.\.|,|;)\s*({_NUMBER})\s*[\]}})]\s*[,;]?\s*")
_TWO_NUMBERS = regex(rf"\b{_NUMBER}\b\W+{_NUMBER}\b")
_FIRST_HEX = regex(r"0[xX][0-9a-fA-F]+\b")
_NEXT_HEX = regex(r"\b0[xX][0-9a-fA-F]")
_REGION_WORD = regex(r"\b(?:direct|direct-relaxable|reserved|msi)\b", re.IGNORECASE)
_BARE = regex(r"([0-9a-fA-F]{8,16})\s+([0-9a-fA-F]{8,16})\s+([A-Za-z]\S*)(.*)")
MAP_LINE = regex(r"\s*[0-9a-fA-F]{8,16}-[0-9a-fA-F]{8,16} : ")
"""A line in the manner of /proc/iomem: physical addresses, or our own output; no IOVA fact."""


def clean(line: str) -> str:
    """Take off what mail, markdown and tables put around a line."""
    text = line.replace("\u00a0", " ").strip()
    text = text[match.end() :] if (match := _QUOTE.match(text)) else text
    text = text[match.end() :] if (match := _BULLET.match(text)) else text
    if text.startswith("|") or text.endswith("|"):
        text = " ".join(text.replace("|", " ").split())
    text = text.strip().strip("`").strip()
    return "" if _FENCE.fullmatch(line.strip()) else text


def header_group(line: str) -> str | None:
    """Return the group that a `head` header names."""
    match = _GROUP_HEADER.fullmatch(line)
    return match["group"] if match else None


def take_group(line: str) -> tuple[str | None, str | None, str]:
    """Take a file name off a line.

    Returns:
        The group that it names, the device that it names, and the rest of the line.
    """
    if match := _DEVICE_FILE.fullmatch(line):
        return None, match["device"], match["rest"]
    if match := _GROUP_FILE.fullmatch(line):
        return match["group"], None, match["rest"]
    if match := _ANY_FILE.fullmatch(line):
        return None, None, match["rest"]
    return None, None, line


def region_body(line: str) -> str:
    """Give a region line that lost its `0x` its form back, where its numbers are surely hex."""
    match = _BARE.fullmatch(line)
    if match and _surely_hex(match[1], match[2]):
        return f"0x{match[1]} 0x{match[2]} {match[3]}{match[4]}"
    return line


def ranges_in(line: str) -> list[tuple[int, int]] | None:
    """Return the ranges of a line that is nothing but ranges; None if it is something else."""
    body = line[_COUNT.match(line).end() :]  # type: ignore[union-attr]  # it matches nothing, too
    for pattern in (_PAIR, _BRACKETED):
        pairs, at = [], 0
        while match := pattern.match(body, at):
            pairs.append((match[1], match[2]))
            at = match.end()
        once = pattern is _PAIR and len(pairs) == 1
        if pairs and at == len(body) and (once or pattern is _BRACKETED):
            if not all(_surely_hex(start, last) for start, last in pairs):
                return None
            return [(int(start, 16), int(last, 16)) for start, last in pairs]
    return None


def is_labelled(line: str) -> bool:
    """Tell whether a line of ranges says itself that it is one: `usable IOVA range 0: ...`."""
    label = _COUNT.match(line)
    return label is not None and any(char.isalpha() for char in label[0])


_HEADINGS = (
    ("rmrr", regex(r"\brmrrs?\b", re.IGNORECASE)),
    (
        "ranges",
        regex(
            r"\b(?:usable|valid|mappable|allowed)\s+(?:iova|ranges?)|\biova[_ ]ranges?\b|"
            r"\brange list\b",
            re.IGNORECASE,
        ),
    ),
    ("reserved", regex(r"\breserved[_ ]?(?:regions?|memory)\b", re.IGNORECASE)),
)


def heading_of(line: str) -> str | None:
    """Return what a line says that the pairs of addresses behind it are.

    Returns:
        `ranges` (what the kernel lets be mapped), `rmrr`, `reserved`, or None.
    """
    if looks_like_range(line):
        return None
    return next((kind for kind, pattern in _HEADINGS if pattern.search(line)), None)


def _surely_hex(start: str, last: str) -> bool:
    """Tell whether at least one number of a pair says that it is hex: then both are."""
    return any(
        text[:2] in ("0x", "0X") or (len(text) >= 8 and (text[0] == "0" or not text.isdecimal()))
        for text in (start, last)
    )


def looks_like_region(line: str) -> bool:
    """Tell whether a line that no reader took is still about a region: two numbers and a type."""
    return bool(_REGION_WORD.search(line) and _TWO_NUMBERS.search(line))


def looks_like_range(line: str) -> bool:
    """Tell whether a line that no reader took is still about a range: two hex numbers."""
    first = _FIRST_HEX.search(line)  # two searches: one pattern for both would be quadratic
    return first is not None and _NEXT_HEX.search(line, first.end()) is not None
