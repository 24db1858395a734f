# SPDX-License-Identifier: Apache-2.0
"""Lists of maps that a kernel refused, as people report them: one a line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmm_iova.errors import HostDataError, IovaError
from vmm_iova.ranges import AddrRange
from vmm_iova.units import parse_address, parse_size, shorten

_LINE = re.compile(r"(?P<name>\S+)\s+(?P<iova>\S+)\s+(?P<size>\S+)\s*(?P<rest>.*)")


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


def parse_failed_maps(text: str, name: str) -> tuple[FailedMap, ...]:
    """Read lines `NAME IOVA SIZE ERRNO FACTS`; `#` begins a comment.

    Raises:
        HostDataError: a line has no IOVA and size, or there is none at all.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        try:
            if match is None:
                raise HostDataError("no name, IOVA and size", source=name)
            iova = parse_address(match["iova"], "iova")
            span = AddrRange.from_size(iova, parse_size(match["size"]))
        except IovaError as error:
            raise HostDataError(
                f"{name}:{number}: {shorten(stripped)!r}: {error.message}",
                source=name,
                line=number,
                hint="a line reads: NAME 0xIOVA 0xSIZE ERRNO and what is known of the host",
            ) from error
        found.append(FailedMap(match["name"], span, match["rest"].strip()))
    if not found:
        raise HostDataError(f"{name} lists no failed map", source=name)
    return tuple(found)
