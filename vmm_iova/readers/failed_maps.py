# SPDX-License-Identifier: Apache-2.0
"""Lists of maps that a kernel refused, as people report them: `NAME IOVA SIZE ERRNO FACTS`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmm_iova.errors import HostDataError, IovaError
from vmm_iova.ranges import AddrRange
from vmm_iova.units import parse_address, parse_size, shorten

_ERRNO = re.compile(r"E[A-Z]+|kernel-log")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}")


@dataclass(frozen=True, slots=True)
class FailedMap:
    """One map that failed.

    Attributes:
        name: where it was reported.
        range: IOVAs of the map.
        said: what the kernel said and what is known of the host, as it was written.
    """

    name: str
    range: AddrRange
    said: str


def is_failed_map(line: str) -> bool:
    """Tell whether a line, among others, is a row of such a list: both numbers and an errno."""
    fields = line.split(None, 4)
    return (
        len(fields) > 3
        and all(_HEX.fullmatch(field) for field in fields[1:3])
        and _ERRNO.fullmatch(fields[3]) is not None
    )


def parse_failed_maps(text: str, name: str) -> tuple[FailedMap, ...]:
    """Read a list; `#` begins a comment.

    Raises:
        HostDataError: a line has no IOVA and size, or there is none at all.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        fields = [*stripped.split(None, 3), ""]
        try:
            if len(fields) < 4:
                raise HostDataError("no name, IOVA and size", source=name)
            iova = parse_address(fields[1], "iova")
            span = AddrRange.from_size(iova, parse_size(fields[2]))
        except IovaError as error:
            raise HostDataError(
                f"{name}:{number}: {shorten(stripped)!r}: {error.message}",
                source=name,
                line=number,
                hint="a line reads: NAME 0xIOVA 0xSIZE ERRNO and what is known of the host",
            ) from error
        found.append(FailedMap(fields[0], span, fields[3].strip()))
    if not found:
        raise HostDataError(f"{name} lists no failed map", source=name)
    return tuple(found)
