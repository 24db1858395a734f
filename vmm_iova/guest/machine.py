# SPDX-License-Identifier: Apache-2.0
"""Machine models: where a VMM's guest may and must have RAM, doorbells and windows.

A model is a TOML file, so that a VMM's author can write one; those of the package name the source
file that each number comes from.
"""

from __future__ import annotations

import difflib
import errno
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm_iova.errors import HostDataError, HostUnavailableError, IovaError, UnknownNameError
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.units import parse_address, parse_size

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

FIXED_KINDS = ("device", "doorbell", "firmware", "window")


@dataclass(frozen=True, slots=True)
class RamWindow:
    """A span of guest addresses that RAM fills from the bottom.

    Attributes:
        name: `low`, `high`, ...
        range: the span.
        whole_below: a guest with less RAM than this many bytes has it all in this window, up to
            that address; None when there is no such rule.
        required: bytes at the start of the span that must be RAM; 0 when none.
        move_to: where all of this window's RAM may go instead, or None.
        movable: it may go anywhere instead.
        movable_note: what to know about that.
    """

    name: str
    range: AddrRange
    whole_below: int | None = None
    required: int = 0
    move_to: int | None = None
    movable: bool = False
    movable_note: str | None = None


@dataclass(frozen=True, slots=True)
class FixedItem:
    """Something of the machine that has its fixed place and is not RAM.

    Attributes:
        name: what it is.
        kind: one of FIXED_KINDS.
        range: guest addresses.
    """

    name: str
    kind: str
    range: AddrRange


@dataclass(frozen=True, slots=True)
class AboveItem:
    """Something that the machine puts right above RAM, in order, each aligned to its size.

    Attributes:
        name: what it is.
        kind: one of FIXED_KINDS.
        size: bytes, a power of two.
    """

    name: str
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class Pci64Window:
    """The 64-bit PCI window: above all RAM, so its place depends on the layout.

    Attributes:
        size: bytes by default.
        align: bytes.
        floor: lowest address.
    """

    size: int
    align: int
    floor: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine model.

    Attributes:
        name: short name.
        title: what it is, with versions.
        arch: `x86_64`, `aarch64`, `s390x`, ...
        identity: True if IOVA equals guest physical address.
        source: where its numbers are written.
        ram: windows in the order in which RAM fills them.
        fixed: what else has a fixed place, ascending.
        above: what stands between RAM and the 64-bit PCI window, in order.
        pci64: its 64-bit PCI window, or None.
        split_note: what to know when its RAM is cut or shifted, or None.
        aliases: other names that it is known by.

    Synchronization: none required (immutable).
    """

    name: str
    title: str
    arch: str
    ram: tuple[RamWindow, ...]
    identity: bool = True
    source: str = ""
    fixed: tuple[FixedItem, ...] = ()
    above: tuple[AboveItem, ...] = ()
    pci64: Pci64Window | None = None
    split_note: str | None = None
    aliases: tuple[str, ...] = ()


def _names() -> Iterator[str]:
    for item in (resources.files("vmm_iova.guest") / "machines").iterdir():
        if item.name.endswith(".toml"):
            yield item.name.removesuffix(".toml")


def machine_names() -> tuple[str, ...]:
    """Return the names of the machine models that ship with the package, sorted."""
    return tuple(sorted(_names()))


@lru_cache
def _bundled(name: str) -> Machine:
    path = resources.files("vmm_iova.guest") / "machines" / f"{name}.toml"
    return _parse(path.read_text("utf-8"), f"{name}.toml")


def load_machine(name: str | os.PathLike[str]) -> Machine:
    """Return a machine model by name, or read one from a TOML file.

    Args:
        name: a bundled name (see `machine_names`), or a path that ends in `.toml`.

    Raises:
        UnknownNameError: there is no such model.
        HostUnavailableError: there is no such file, or it may not be read (with errno).
        HostDataError: the file is malformed; the message names the key.

    Complexity: O(size) once, then cached for bundled models.
    Synchronization: none required.
    """
    text = str(name)
    if text in machine_names():
        return _bundled(text)
    if text.endswith(".toml"):
        path = Path(text)
        if not path.exists():
            raise HostUnavailableError(f"{path} does not exist", source=text, errno=errno.ENOENT)
        try:
            return _parse(path.read_text("utf-8"), path.name)
        except OSError as error:
            raise HostUnavailableError(
                f"{path}: {error.strerror}", source=text, errno=error.errno
            ) from error
        except UnicodeDecodeError as error:
            raise HostDataError(f"{path} is not text", source=text) from error
    known = machine_names()
    for model in map(_bundled, known):
        if text in model.aliases:
            return model
    close = difflib.get_close_matches(text, known, n=1, cutoff=0.4)
    raise UnknownNameError(
        f"there is no machine model {text!r}",
        kind="machine",
        name=text,
        known=known,
        hint=(f"did you mean {close[0]}? " if close else "")
        + f"models: {', '.join(known)}; or a path that ends in .toml",
    )


def _parse(text: str, name: str) -> Machine:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HostDataError(f"{name}: {error}", source=name) from error
    table = _Table(data, name, "")
    table.only(
        (
            "name",
            "title",
            "arch",
            "identity",
            "source",
            "aliases",
            "ram",
            "fixed",
            "above",
            "pci64",
            "split_note",
        )
    )
    windows = tuple(_window(item) for item in table.tables("ram"))
    if not windows:
        raise table.wrong("ram", "is missing: a machine has at least one [[ram]] window")
    fixed = tuple(sorted((_fixed(item) for item in table.tables("fixed")), key=lambda f: f.range))
    machine = Machine(
        name=table.text("name"),
        title=table.text("title", table.text("name")),
        arch=table.text("arch"),
        identity=table.flag("identity", default=True),
        source=table.text("source", name),
        ram=windows,
        fixed=fixed,
        above=tuple(_above(item) for item in table.tables("above")),
        pci64=_pci64(table.table("pci64")) if "pci64" in data else None,
        split_note=table.text("split_note", "") or None,
        aliases=tuple(table.strings("aliases")),
    )
    spans = [*((w.name, w.range) for w in windows), *((f.name, f.range) for f in fixed)]
    spans.sort(key=lambda pair: pair[1])
    for (below, lower), (above, upper) in pairwise(spans):
        if lower.overlaps(upper):
            raise HostDataError(
                f"{name}: {below!r} {lower} and {above!r} {upper} overlap", source=name
            )
    return machine


def _window(table: _Table) -> RamWindow:
    table.only(
        ("name", "start", "last", "whole_below", "required", "move_to", "movable", "movable_note")
    )
    move_to = table.address("move_to", None)
    return RamWindow(
        table.text("name"),
        table.span(ADDRESS_LAST),
        table.size("whole_below") if "whole_below" in table.data else None,
        table.size("required") if "required" in table.data else 0,
        move_to,
        table.flag("movable", default=False) or move_to is not None,
        table.text("movable_note", "") or None,
    )


def _kind(table: _Table) -> str:
    kind = table.text("kind")
    if kind not in FIXED_KINDS:
        raise table.wrong("kind", f"{kind!r} is none of {', '.join(FIXED_KINDS)}")
    return kind


def _fixed(table: _Table) -> FixedItem:
    table.only(("name", "kind", "start", "last"))
    return FixedItem(table.text("name"), _kind(table), table.span(None))


def _above(table: _Table) -> AboveItem:
    table.only(("name", "kind", "size"))
    return AboveItem(table.text("name"), _kind(table), table.power_of_two("size"))


def _pci64(table: _Table) -> Pci64Window:
    table.only(("size", "align", "floor"))
    floor = table.address("floor", 0)
    return Pci64Window(table.size("size"), table.power_of_two("align"), floor or 0)


@dataclass(frozen=True, slots=True)
class _Table:
    """A TOML table that knows its path, so that every error can name the key."""

    data: dict[str, Any]
    file: str
    path: str

    def wrong(self, key: str, what: str) -> HostDataError:
        where = f"{self.path}.{key}".lstrip(".")
        return HostDataError(f"{self.file}: {where} {what}", source=self.file, text=where)

    def only(self, known: tuple[str, ...]) -> None:
        for key in self.data:
            if key not in known:
                raise self.wrong(key, f"is not a key here; known are {', '.join(known)}")

    def text(self, key: str, default: str | None = None) -> str:
        found = self.data.get(key, default)
        if not isinstance(found, str) or (not found and default is None):
            raise self.wrong(key, "is missing" if found is None else "should be text")
        return found

    def flag(self, key: str, *, default: bool) -> bool:
        found = self.data.get(key, default)
        if not isinstance(found, bool):
            raise self.wrong(key, "should be true or false")
        return found

    def table(self, key: str) -> _Table:
        found = self.data.get(key)
        if not isinstance(found, dict):
            raise self.wrong(key, "should be a table")
        return _Table(found, self.file, f"{self.path}.{key}".lstrip("."))

    def tables(self, key: str) -> Iterator[_Table]:
        found = self.data.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self.wrong(key, f"should be written as [[{key}]] tables")
        for index, item in enumerate(found):
            yield _Table(item, self.file, f"{key}[{index}]")

    def strings(self, key: str) -> list[str]:
        found = self.data.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise self.wrong(key, "should be a list of texts")
        return found

    def address(self, key: str, default: int | None) -> int | None:
        if key not in self.data:
            return default
        try:
            return parse_address(self.data[key], key)
        except IovaError as error:
            raise self.wrong(key, f"is wrong: {error.message}") from error

    def size(self, key: str) -> int:
        try:
            return parse_size(self.data.get(key, ""), key)
        except IovaError as error:
            raise self.wrong(key, f"is wrong: {error.message}") from error

    def power_of_two(self, key: str) -> int:
        size = self.size(key)
        if size & (size - 1):
            raise self.wrong(key, f"{size:#x} is not a power of two")
        return size

    def span(self, last_default: int | None) -> AddrRange:
        start, last = self.address("start", None), self.address("last", last_default)
        if start is None or last is None:
            raise self.wrong("start" if start is None else "last", "is missing")
        if last < start:
            raise self.wrong("last", f"{last:#x} is below start {start:#x}")
        return AddrRange(start, last)
