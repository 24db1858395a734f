# SPDX-License-Identifier: Apache-2.0
"""What the targets share: choices from bytes, good inputs, and what has to hold of every host."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree
from importlib import resources
from typing import TYPE_CHECKING, Any

from vmm_iova import files
from vmm_iova.errors import EvidenceError, IovaError
from vmm_iova.host.load import parse_hosts
from vmm_iova.host.snapshot import dump_snapshot, load_snapshot
from vmm_iova.report import data
from vmm_iova.report.host import show_host
from vmm_iova.report.svg import draw_usable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.host.host import Host

NAMES = ("lab-amd-vi", "lab-vtd-39")
"""Bundled hosts that are judged without further ado."""


class Bytes:
    """Choices, one after the other, from bytes; zeros when they are used up."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        part = self._content[self._at : self._at + size]
        self._at += size
        return part

    def number(self, size: int) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def below(self, limit: int) -> int:
        """A number from 0 to below a limit."""
        return self.number(1 if limit <= 256 else 2) % limit

    @property
    def left(self) -> int:
        """Bytes that were not used."""
        return max(0, len(self._content) - self._at)


def bundled(suffix: str) -> Iterator[bytes]:
    """The bundled hosts of a suffix."""
    folder = resources.files("vmm_iova.host") / "bundled"
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.name.endswith(suffix):
            yield item.read_bytes()


def hosts_of(content: bytes) -> tuple[Host, ...]:
    """Read facts as `load_host` does; nothing where they are refused in one plain sentence."""
    try:
        return parse_hosts(files.decode(content, "fuzz"), "fuzz")
    except IovaError as error:
        check_lines(error.message)
        return ()


def check_lines(shown: str) -> None:
    """Hold an output to what a terminal may get."""
    for line in shown.split("\n"):
        assert line.replace("\t", " ").isprintable(), ascii(line)


def check_host(host: Host, *, drawn: bool = True) -> None:
    """Hold a host to what holds of every one: it saves, comes back, is judged, shown and drawn."""
    saved = dump_snapshot(host, "fuzz")
    assert load_snapshot(saved, "fuzz") == host
    drawn = drawn and len(saved) % 8 == 0  # a picture takes longer than all the rest
    for aperture in (None, 48):
        usable, why = None, None
        try:
            usable = host.usable(aperture=aperture)
        except IovaError as error:
            why = error.message
            check_lines(why)
            if isinstance(error, EvidenceError):
                continue
        check_lines(show_host(host, usable, why, bytes_=False))
        if usable is None:
            continue
        data.usable_data(usable)
        for hole in usable.holes:
            assert not any(span.overlaps(hole) for span in usable.ranges)
            check_lines(usable.hole_causes[hole].text)
        if drawn and len(usable.causes) < 20:
            ElementTree.fromstring(draw_usable(usable, host.name))


_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    48,
    64,
    65,
    10**400,
    1.5,
    float("inf"),
    float("nan"),
    "",
    "0x0",
    "0x1000",
    "0xfee00000",
    "0xffffffffffffffff",
    "0x10000000000000000",
    "0x" + "f" * 5000,
    "1" * 5000,
    "²",
    "a\x1b[2J\n",
    "\ud800",
    "unlimited",
    "direct",
    "msi",
    [],
    {},
    [[]],
    {"start": "0x0", "last": "0xfff"},
)


def edited(document: Any, source: Bytes) -> Any:
    """Change some values of a JSON document, take some out, or put some in twice."""
    made = copy.deepcopy(document)
    for _ in range(1 + source.below(6)):
        places = list(_places(made))
        if not places:
            break
        holder, key = places[source.number(2) % len(places)]
        what = source.below(len(_VALUES) + 8)
        if what < len(_VALUES):
            holder[key] = copy.deepcopy(_VALUES[what])
        elif what == len(_VALUES) and isinstance(holder, dict):
            del holder[key]
        elif what == len(_VALUES) + 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif what == len(_VALUES) + 2:
            holder[key] = f"{source.number(8):#x}"
        elif what == len(_VALUES) + 3:
            holder[key] = source.number(2)
        elif what == len(_VALUES) + 4:
            holder[key] = source.take(source.below(16)).decode("latin-1")
        else:
            other, at = places[source.number(2) % len(places)]
            holder[key] = copy.deepcopy(other[at])
    return made


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])
