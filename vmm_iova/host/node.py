# SPDX-License-Identifier: Apache-2.0
"""Objects of a JSON tree from outside, whose every error names the field by its path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from vmm_iova.errors import HostDataError
from vmm_iova.host.facts import Source
from vmm_iova.host.regions import region_kind
from vmm_iova.patterns import regex
from vmm_iova.plain import whole_number
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.record import record
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.host.facts import RegionKind

_HEX = regex(r"0x[0-9a-fA-F]{1,17}")
_T = TypeVar("_T")


@record
class Node:
    """An object of the JSON tree that knows its path, so that every error can name it."""

    data: Any
    file: str
    path: str

    def __post_init__(self) -> None:
        if not isinstance(self.data, dict):
            where = self.path or "the root"
            raise HostDataError(
                f"{self.file}: {where} should be an object, not {_type(self.data)}",
                source=self.file,
            )

    def wrong(self, key: str, what: str) -> HostDataError:
        """The error that says what is wrong with a field."""
        path = f"{self.path}.{key}" if self.path else key
        return HostDataError(f"{self.file}: {path} {what}", source=self.file, text=path)

    def value(self, key: str) -> Any:
        """What a field holds, whatever it is; it has to be there."""
        if key not in self.data:
            raise self.wrong(key, "is missing")
        return self.data[key]

    def field(self, key: str, kind: type[_T]) -> _T:
        """A field of this type that has to be there."""
        value = self.optional(key, kind)
        if value is None:
            raise self.wrong(key, "is missing")
        return value

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        """A field of this type, or None where there is none."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(key, f"should be {_NAMES[kind]}, not {_type(value)}")
        return value

    def _sequence(self, key: str) -> list[Any]:
        self.value(key)  # a list that is not there is not an empty one
        return self.optional(key, list) or []

    def count(self, key: str) -> int:
        """A whole number from 0."""
        value = self.field(key, int)
        if value < 0:
            raise self.wrong(key, f"{value} is below 0")
        return value

    def strings(self, key: str) -> Iterable[str]:
        """Texts of a list that has to be there."""
        for index, item in enumerate(self._sequence(key)):
            if not isinstance(item, str):
                raise self.wrong(f"{key}[{index}]", f"should be text, not {_type(item)}")
            yield item

    def child(self, key: str) -> Node:
        """An object in this one that has to be there."""
        return Node(self.field(key, dict), self.file, f"{self.path}.{key}".lstrip("."))

    def children(self, key: str) -> Iterable[Node]:
        """Objects of a list that has to be there."""
        prefix = f"{self.path}.{key}".lstrip(".")
        for index, item in enumerate(self._sequence(key)):
            yield Node(item, self.file, f"{prefix}[{index}]")

    def number(self, key: str) -> int | None:
        """A number as hex, or None."""
        text = self.optional(key, str)
        if text is None:
            return None
        if not _HEX.fullmatch(text) or int(text, 16) > ADDRESS_LAST:
            raise self.wrong(key, f"{shorten(text)!r} is not a hex number up to 2^64-1")
        return int(text, 16)

    def numbers(self, key: str) -> Iterable[int]:
        """Hex numbers of a list; none where there is no list."""
        for index, text in enumerate(self.strings(key) if self.data.get(key) is not None else ()):
            yield Node({"it": text}, self.file, f"{self.path}.{key}[{index}]").address("it")

    def address(self, key: str) -> int:
        """A number as hex that has to be there."""
        value = self.number(key)
        if value is None:
            raise self.wrong(key, "is missing")
        return value

    def power_of_two(self, key: str) -> int | None:
        """A power of two as hex, or None."""
        value = self.number(key)
        if value is not None and (value == 0 or value & (value - 1)):
            raise self.wrong(key, f"{value:#x} is not a power of two")
        return value

    def kind(self) -> tuple[RegionKind, str]:
        """The type of a region: its kind, and its word."""
        word = self.field("type", str)
        if not word.strip():
            raise self.wrong("type", "is empty")
        return region_kind(word)

    def word(self, key: str, known: tuple[Any, ...]) -> Any:
        """One of these words."""
        value = self.field(key, str)
        if value not in known:
            raise self.wrong(key, f"{shorten(value)!r} is none of {', '.join(known)}")
        return value

    def bits(self, key: str) -> int:
        """A number of address bits."""
        value = self.field(key, int)
        if not 1 <= value <= 64:
            raise self.wrong(key, f"{value} is not a width from 1 to 64 bits")
        return value

    def span(self) -> AddrRange:
        """What lies from `start` to `last`."""
        start, last = self.address("start"), self.address("last")
        if last < start:
            raise self.wrong("last", f"{last:#x} is below start {start:#x}")
        return AddrRange(start, last)

    def source(self) -> Source:
        """Where a fact was read; else the path of this object."""
        text = self.optional("source", str) or f"{self.file} {self.path}"
        name, colon, line = text.rpartition(":")
        number = whole_number(line) if colon else None
        return Source(name, number) if number is not None and str(number) == line else Source(text)


_NAMES: dict[type, str] = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _type(value: object) -> str:
    return _NAMES.get(type(value), "null" if value is None else type(value).__name__)
