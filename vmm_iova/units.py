# SPDX-License-Identifier: Apache-2.0
"""Sizes, addresses and ranges as text, in the forms that people paste.

Sizes are bytes and their units binary (`K`, `KiB`, ... `E`, `EiB`). A decimal unit such as `GB` is
refused, because some read it as 10^9 and others as 2^30. What these functions print, they read.
"""

from __future__ import annotations

import re

from vmm_iova.errors import RangeOverflowError, RequestError
from vmm_iova.patterns import regex
from vmm_iova.ranges import ADDRESS_LAST, AddrRange

_UNITS = ("", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_LETTERS = "KMGTPE"
_NUMBER = regex(
    r"""(?P<number> 0[xX][0-9a-fA-F]+ (?:_[0-9a-fA-F]+)* | [0-9]+ (?:_[0-9]+)* (?:\.[0-9]+)? )
        \s* (?P<unit> [A-Za-z]* )""",
    re.VERBOSE,
)
_SHORT = 5  # digits, as in 1004.5
_MAX_TEXT = 64  # no size or address needs more; keeps a megabyte of digits out of int()


def _bytes(text: str, field: str) -> int:
    """Read a number with an optional binary unit; the result may be anything from 0 up."""
    stripped = text.strip()
    match = _NUMBER.fullmatch(stripped) if len(stripped) <= _MAX_TEXT else None
    if match is None:
        raise RequestError(
            f"{field} {shorten(text)!r} is not a number of bytes",
            field=field,
            value=text,
            hint="write it like 64G, 1.5TiB, 4096 or 0xfd00000000",
        )
    number, unit = match["number"].replace("_", ""), match["unit"]
    factor = _factor(unit, text, field)
    if number[:2] in ("0x", "0X"):
        return int(number, 16) * factor
    whole, _, behind = number.partition(".")
    value, left = divmod(int(whole + behind) * factor, int(10 ** len(behind)))
    if left:
        raise RequestError(
            f"{field} {shorten(text)!r} is not a whole number of bytes", field=field, value=text
        )
    return value


def _factor(unit: str, text: str, field: str) -> int:
    upper = unit.upper()
    if upper in ("", "B"):
        return 1
    if upper[0] in _LETTERS and upper[1:] in ("", "IB"):
        return int(1 << 10 * (1 + _LETTERS.index(upper[0])))
    if upper[0] in _LETTERS and upper[1:] == "B":
        binary = f"{upper[0]}iB"
        raise RequestError(
            f"{field} {shorten(text)!r}: {unit} is 1000-based to some and 1024-based to others",
            field=field,
            value=text,
            hint=f"write {binary} for the 1024-based unit",
        )
    raise RequestError(
        f"{field} {shorten(text)!r} has the unknown unit {unit!r}",
        field=field,
        value=text,
        hint="units are B, K, M, G, T, P, E and KiB ... EiB",
    )


def parse_size(text: str | int, field: str = "size") -> int:
    """Read a size.

    Args:
        text: `64G`, `1.5TiB`, `4096`, `0x1000`, or an int that is taken as bytes.
        field: name to use in the error.

    Returns:
        Bytes, 1 to 2^64.

    Raises:
        RequestError: not a size, zero, or more than 2^64.

    Complexity: O(length), bounded.
    Synchronization: none required.
    """
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise RequestError(
            f"{field} must be text or a whole number of bytes, not {type(text).__name__}",
            field=field,
            value=text,
        )
    size = text if isinstance(text, int) else _bytes(text, field)
    if not 1 <= size <= ADDRESS_LAST + 1:
        raise RequestError(
            f"{field} {shorten(str(text))} is out of the range 1 byte to 16 EiB (2^64 bytes)",
            field=field,
            value=text,
        )
    return size


def parse_address(text: str | int, field: str = "address") -> int:
    """Read an address.

    Args:
        text: `0xfd00000000`, `4G`, `1073741824`, or an int.
        field: name to use in the error.

    Returns:
        The address, 0 to 2^64-1.

    Raises:
        RequestError: not an address.
        RangeOverflowError: beyond 2^64-1.

    Complexity: O(length), bounded.
    Synchronization: none required.
    """
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise RequestError(
            f"{field} must be text or a whole number, not {type(text).__name__}",
            field=field,
            value=text,
        )
    address = text if isinstance(text, int) else _bytes(text, field)
    if not 0 <= address <= ADDRESS_LAST:
        raise RangeOverflowError(
            f"{field} {shorten(str(text))} is outside of 0 to 2^64-1", field=field, value=text
        )
    return address


def parse_range(text: str, field: str = "range") -> AddrRange:
    """Read a range.

    Args:
        text: `START-LAST` or `START..LAST` with an inclusive last address, or `START+SIZE`.
        field: name to use in the error.

    Returns:
        The range.

    Raises:
        RequestError: not a range, or last below start.
        RangeOverflowError: reaches beyond 2^64-1.

    Complexity: O(length), bounded.
    Synchronization: none required.
    """
    for separator in ("..", "-", "+"):
        left, found, right = text.partition(separator)
        if found and left.strip() and right.strip():
            start = parse_address(left, f"start of {field}")
            if separator == "+":
                return AddrRange.from_size(start, parse_size(right, f"size of {field}"))
            last = parse_address(right, f"last of {field}")
            if last < start:
                raise RequestError(
                    f"{field} {shorten(text)!r}: last {last:#x} is below its start {start:#x}",
                    field=field,
                    value=text,
                    hint="START-LAST has the last address, included; START+SIZE has a size",
                )
            return AddrRange(start, last)
    raise RequestError(
        f"{field} {shorten(text)!r} is not a range",
        field=field,
        value=text,
        hint="write START-LAST (last address included) or START+SIZE, "
        "like 0xfd00000000-0xffffffffff or 0xfd00000000+12G",
    )


def format_size(size: int) -> str:
    """Return a size as text, exactly, in the largest binary unit that stays short: `1.5 TiB`.

    What no unit shows in six digits is written as bytes in hex, so `parse_size` reads it back.
    """
    for power in range(len(_UNITS) - 1, 0, -1):
        unit = 1 << 10 * power
        whole, rest = divmod(size, unit)
        if rest == 0 and 0 < whole < 1_000_000:
            return f"{whole} {_UNITS[power]}"
        if rest * 2 == unit and 0 < whole < 1_000_000:
            return f"{whole}.5 {_UNITS[power]}"
    return f"{size} B" if size < 1_000_000 else f"{size:#x} B"


def show_size(size: int) -> str:
    """Print a size for people: exactly where that is short, else to a tenth: `~90.1 GiB`."""
    exact = format_size(size)
    if not exact.startswith("0x") and len(exact.partition(" ")[0]) <= _SHORT:
        return exact
    power = min((size.bit_length() - 1) // 10, len(_UNITS) - 1)
    return f"~{size / (1 << 10 * power):.1f} {_UNITS[power]}"


def shorten(text: str, limit: int = 60) -> str:
    """Cut a text that came from outside so that it fits into one sentence."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
