# SPDX-License-Identifier: Apache-2.0
"""Objects of a JSON tree from outside, whose every error names the field by its path."""

from __future__ import annotations

import marshal
from typing import TYPE_CHECKING, Any, TypeVar

from vmm_iova.errors import HostDataError
from vmm_iova.host.facts import Source
from vmm_iova.host.regions import region_kind
from vmm_iova.patterns import regex
from vmm_iova.plain import whole_number
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm_iova.host.facts import RegionKind

_HEX = regex(r"0x[0-9a-fA-F]{1,17}")
_T = TypeVar("_T")


_PARTS: dict[object, dict[bytes, Any]] = {}
"""Parts that were read, by who read them, then by what they say: in a fleet, most come again."""
_MOST_PARTS = 1 << 12
_LARGEST_PART = 1 << 11  # bytes


class File:
    """The file of a tree; `in_facts` once it is the source of a fact that has no other."""

    __slots__ = ("in_facts", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.in_facts = False

    def __str__(self) -> str:
        return self.name


class Node:
    """An object of the JSON tree that knows its place, so that every error can name it.

    A snapshot has hundreds, and a fleet thousands of snapshots: what only an error asks for, such
    as the path, is made for the error.

    Args:
        data: the object.
        file: where it is, for messages.
        within: path of the object, or of the list that it is in; empty for the root.
        index: its place in that list.
    """

    __slots__ = ("_index", "_within", "data", "file")

    def __init__(self, data: Any, file: File, within: str = "", index: int | None = None) -> None:
        self.data = data
        self.file = file
        self._within = within
        self._index = index
        if not isinstance(data, dict):
            where = self.path or "the root"
            raise HostDataError(
                f"{file}: {where} should be an object, not {_type(data)}", source=file.name
            )

    @property
    def path(self) -> str:
        """Where the object is, such as `groups[3].reserved_regions[0]`; empty for the root."""
        return self._within if self._index is None else f"{self._within}[{self._index}]"

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def wrong(self, key: str, what: str) -> HostDataError:
        """The error that says what is wrong with a field."""
        path = self._below(key)
        return HostDataError(f"{self.file}: {path} {what}", source=self.file.name, text=path)

    def value(self, key: str) -> Any:
        """What a field holds, whatever it is; it has to be there."""
        if key not in self.data:
            raise self.wrong(key, "is missing")
        return self.data[key]

    def field(self, key: str, kind: type[_T]) -> _T:
        """A field of this type that has to be there."""
        value = self.data.get(key)
        if type(value) is kind:
            return value
        raise self.wrong(key, "is missing") if value is None else self._other(key, kind, value)

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        """A field of this type, or None where there is none."""
        value = self.data.get(key)
        if value is None or type(value) is kind:  # types are as JSON has them; a bool is no int
            return value
        raise self._other(key, kind, value)

    def _other(self, key: str, kind: type, value: object) -> HostDataError:
        return self.wrong(key, f"should be {_NAMES[kind]}, not {_type(value)}")

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
        return Node(self.field(key, dict), self.file, self._below(key))

    def children(self, key: str) -> Iterable[Node]:
        """Objects of a list that has to be there."""
        items = self._sequence(key)
        if items:
            within = self._below(key)
            for index, item in enumerate(items):
                yield Node(item, self.file, within, index)

    def each(self, key: str, read: Callable[[Node], _T]) -> tuple[_T, ...]:
        """Read the objects of a list that has to be there, each once for all that are equal.

        Args:
            key: name of the list.
            read: makes of an object what it says; a function of a module, of the object alone.

        Complexity: O(size); what was read before costs a tenth of reading it.
        """
        known = _PARTS.setdefault(read, {})
        parts = []
        for index, item in enumerate(self._sequence(key)):
            try:
                said = marshal.dumps(item)
            except ValueError:  # what nobody reads may be nested as deep as it can be
                said = b""
            part = known.get(said)
            if part is None:
                self.file.in_facts = False
                part = read(Node(item, self.file, self._below(key), index))
                if said and not self.file.in_facts and len(said) <= _LARGEST_PART:
                    if len(known) >= _MOST_PARTS:
                        known.clear()
                    known[said] = part
            parts.append(part)
        return tuple(parts)

    def number(self, key: str) -> int | None:
        """A number as hex, or None."""
        return None if self.data.get(key) is None else self.address(key)

    def numbers(self, key: str) -> Iterable[int]:
        """Hex numbers of a list; none where there is no list."""
        for index, text in enumerate(self.strings(key) if self.data.get(key) is not None else ()):
            yield Node({"it": text}, self.file, self._below(key), index).address("it")

    def address(self, key: str) -> int:
        """A number as hex that has to be there."""
        text = self.field(key, str)
        if not _HEX.fullmatch(text) or (value := int(text, 16)) > ADDRESS_LAST:
            raise self.wrong(key, f"{shorten(text)!r} is not a hex number up to 2^64-1")
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
        text = self.optional("source", str)
        if not text:
            self.file.in_facts = True
            text = f"{self.file} {self.path}"
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
