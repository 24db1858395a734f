# SPDX-License-Identifier: Apache-2.0
"""Lists of maps that a kernel refused, as people report them: `NAME IOVA SIZE ERRNO FACTS`.

`-` stands for what is not stated; `#` begins a comment.
"""

from __future__ import annotations

from vmm_iova.errors import HostDataError, IovaError
from vmm_iova.patterns import regex
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.record import record
from vmm_iova.units import parse_address, parse_size, shorten

_ERRNO = regex(r"E[A-Z0-9]{1,15}|kernel-log")
_HEX = regex(r"0x[0-9a-fA-F]{1,16}")


@record
class FailedMap:
    """One map that failed.

    Attributes:
        name: where it was reported.
        iova: first IOVA, or None.
        size: bytes, or None.
        said: what the kernel said and what is known of the host, as it was written.
    """

    name: str
    iova: int | None
    size: int | None
    said: str

    @property
    def range(self) -> AddrRange | None:
        """The IOVAs, when both numbers are known and do not wrap."""
        if self.iova is None or not self.size or self.iova + self.size - 1 > ADDRESS_LAST:
            return None
        return AddrRange.from_size(self.iova, self.size)


def read_failed_map(line: str) -> FailedMap | None:
    """Read one row, or return None if the line is none: it has no errno, or other numbers.

    Complexity: O(length).
    """
    fields = line.split(None, 3)
    if len(fields) < 4 or not _ERRNO.fullmatch(fields[3].split(None, 1)[0]):
        return None
    if not all(field == "-" or _HEX.fullmatch(field) for field in fields[1:3]):
        return None
    iova, size = (None if field == "-" else int(field, 16) for field in fields[1:3])
    return FailedMap(fields[0], iova, size, fields[3].strip())


def parse_failed_maps(text: str, name: str) -> tuple[FailedMap, ...]:
    """Read a list of maps that can be checked.

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
            iova, size = parse_address(fields[1], "iova"), parse_size(fields[2])
            AddrRange.from_size(iova, size)
        except IovaError as error:
            raise HostDataError(
                f"{name}:{number}: {shorten(stripped)!r}: {error.message}",
                source=name,
                line=number,
                hint="a line reads: NAME 0xIOVA 0xSIZE ERRNO and what is known of the host",
            ) from error
        found.append(FailedMap(fields[0], iova, size, fields[3].strip()))
    if not found:
        raise HostDataError(f"{name} lists no failed map", source=name)
    return tuple(found)
