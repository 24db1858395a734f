# SPDX-License-Identifier: Apache-2.0
"""Reading machine models from TOML: every mistake is named with its line and its key.

The table of the format is in docs/machines.md. `tomllib` gives no positions, so the line of a key
is looked up in the text when there is something to say about it.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from string import Formatter
from typing import TYPE_CHECKING, Any, TypeVar

from vmm_iova.errors import HostDataError, IovaError, RequestError
from vmm_iova.machines.model import Machine
from vmm_iova.machines.parts import (
    ABILITIES,
    CPU_VENDORS,
    FIRMWARE_KINDS,
    FIXED_KINDS,
    AboveItem,
    FixedItem,
    Hotplug,
    OpenDoorbell,
    Pci64Window,
    RamWindow,
)
from vmm_iova.patterns import regex
from vmm_iova.ranges import ADDRESS_LAST, MIB, AddrRange, Gpa
from vmm_iova.record import record
from vmm_iova.units import parse_address, parse_size, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm_iova.machines.parts import Ability, FixedKind, LowCap

_Word = TypeVar("_Word", bound=str)
_CAPS: tuple[LowCap, ...] = ("window", "all")

_ROOT = (
    "name",
    "title",
    "arch",
    "identity",
    "source",
    "aliases",
    "phys_bits",
    "ram_max",
    "ram",
    "fixed",
    "ram_reserved",
    "pci64",
    "options",
    "above",
    "can",
    "hotplug",
    "firmware",
    "base",
    "without",
    "doorbell",
)
_RAM = (
    "name",
    "start",
    "last",
    "whole_below",
    "required",
    "move_to",
    "movable",
    "movable_note",
    "move_past",
    "move_cpu",
    "cap",
)
_PCI64 = (
    "size",
    "align",
    "floor",
    "start",
    "top_free",
    "downward",
    "least",
    "step",
    "must_fit",
    "last_align",
    "hides_ram",
)
ARCHES = ("aarch64", "i686", "loongarch64", "ppc64", "ppc64le", "riscv64", "s390x", "x86_64")
"""Architectures on which Linux has VFIO, as `uname -m` prints them (drivers/vfio/Kconfig)."""
OPTIONS = {
    "phys_bits": ("bits",),
    "least_bits": ("bits",),
    "more_bits": ("bits",),
    "pci64": ("size", "mib"),
    "pci64_start": ("start",),
    "pci64_none": (),
    "low_ram": ("size",),
    "ovmf_window": ("mib",),
}
"""Switches of a VMM that fixes name, and what they may be filled with."""
_BRIDGE_UNIT = MIB
_SYNTAX_LINE = regex(r"\(at line (\d+)")
_HEADER = regex(r"\s*(\[\[|\[)\s*([\w.\"' -]+?)\s*\]")


def parse_machine(text: str, name: str, base: Callable[[str], str] | None = None) -> Machine:
    """Read a machine model.

    Args:
        text: the TOML.
        name: file name for messages.
        base: returns the text of the model that this one is a variant of.

    Raises:
        HostDataError: it is no TOML, or breaks a rule of the format; `line` has the line.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = _SYNTAX_LINE.search(str(error))
        line = int(at[1]) if at else text.count("\n") + 1
        raise HostDataError(f"{name}:{line}: {error}", source=name, line=line) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all measure
        line = _line_too_much(text)
        what = (
            'a number has more digits than can be read: an address is text, like "0xc0000000"'
            if isinstance(error, ValueError)
            else "lists or tables are nested deeper than can be read: a machine has flat ones"
        )
        raise HostDataError(f"{name}:{line}: {what}", source=name, line=line) from error
    table = _Table(data, name, "", text)
    table.only(_ROOT)
    if "base" in data:
        if base is None:
            raise table.wrong("base", "is only for the models of the package")
        data = _variant(table, tomllib.loads(base(table.text("base"))))
        table = _Table(data, name, "", text)
    windows = tuple(_window(item) for item in table.tables("ram"))
    if not windows:
        raise table.wrong("ram", "is missing: a machine has at least one [[ram]] window")
    arch = table.text("arch")
    if arch not in ARCHES:
        raise table.wrong("arch", f"{arch!r} is none of {', '.join(ARCHES)}, as uname -m prints it")
    try:
        return Machine(
            name=table.text("name"),
            title=table.text("title", table.text("name")),
            arch=arch,
            identity=table.flag("identity", default=True),
            source=table.text("source", name),
            ram=windows,
            fixed=tuple(_fixed(item, FIXED_KINDS) for item in table.tables("fixed")),
            pci64=_pci64(table.table("pci64")) if "pci64" in data else None,
            aliases=tuple(table.strings("aliases")),
            phys_bits=data.get("phys_bits"),
            ram_max=table.size("ram_max") if "ram_max" in data else None,
            ram_reserved=tuple(
                _fixed(item, ("reserved",)) for item in table.tables("ram_reserved")
            ),
            options=_options(table.table("options")) if "options" in data else (),
            above=tuple(_above(item) for item in table.tables("above")),
            can=_can(table),
            hotplug=_hotplug(table.table("hotplug")) if "hotplug" in data else None,
            firmware=_one_of(table, "firmware", FIRMWARE_KINDS),
            open_doorbells=tuple(_doorbell(item) for item in table.tables("doorbell")),
        )
    except RequestError as error:  # a rule of machine_rules: the field is the path of a key
        path, _, key = error.field.rpartition(".")
        line = _line_of(text, path, key) or 1
        raise HostDataError(f"{name}:{line}: {error.message}", source=name, line=line) from error


def _variant(table: _Table, base: dict[str, Any]) -> dict[str, Any]:
    """Return a base with what its variant has instead: whole keys, whole arrays of tables."""
    gone = (*table.strings("without"), "aliases", "without")
    kept = {key: value for key, value in base.items() if key not in gone}
    own = {key: value for key, value in table.data.items() if key not in ("base", "without")}
    return {**kept, **own}


def _line_too_much(text: str) -> int:
    """Find the line that the parser gives up on: it has no position for that error."""
    lines = text.splitlines(keepends=True)

    def gives_up(count: int) -> bool:
        try:
            tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            return False  # cut off in the midst of something
        except (ValueError, RecursionError):
            return True
        return False

    return bisect_left(range(len(lines)), True, key=gives_up)


def _window(table: _Table) -> RamWindow:
    table.only(_RAM)
    move_to = table.address("move_to")
    return RamWindow(
        table.text("name"),
        table.span(end=Gpa(ADDRESS_LAST)),
        table.size("whole_below") if "whole_below" in table.data else None,
        table.size("required") if "required" in table.data else 0,
        move_to,
        table.flag("movable", default=move_to is not None),
        table.text("movable_note", "") or None,
        table.address("move_past"),
        _one_of(table, "move_cpu", CPU_VENDORS),
        _one_of(table, "cap", _CAPS),
    )


def _one_of(table: _Table, key: str, known: Sequence[_Word]) -> _Word | None:
    """Return the word of a key out of a closed set; None where the key is not there."""
    if key not in table.data:
        return None
    text = table.text(key)
    for word in known:
        if text == word:
            return word
    raise table.wrong(key, f"{text!r} is none of {', '.join(known)}")


def _can(table: _Table) -> tuple[Ability, ...]:
    if "can" not in table.data:
        return ABILITIES
    words = table.strings("can")
    unknown = [word for word in words if word not in ABILITIES]
    if unknown:
        raise table.wrong("can", f"{unknown[0]!r} is none of {', '.join(ABILITIES)}")
    return tuple(word for word in ABILITIES if word in words)


def _hotplug(table: _Table) -> Hotplug:
    table.only(("align", "slot", "floor", "size_align"))
    return Hotplug(
        table.power_of_two("align"),
        table.size("slot") if "slot" in table.data else 0,
        table.address("floor") or Gpa(0),
        table.power_of_two("size_align") if "size_align" in table.data else 1,
    )


def _kind(table: _Table, kinds: Sequence[FixedKind]) -> FixedKind:
    kind = _one_of(table, "kind", kinds)
    if kind is None and len(kinds) > 1:
        raise table.wrong("kind", "is missing")
    return kinds[0] if kind is None else kind


def _fixed(table: _Table, kinds: Sequence[FixedKind]) -> FixedItem:
    table.only(("name", "kind", "start", "last"))
    return FixedItem(table.text("name"), _kind(table, kinds), table.span())


def _above(table: _Table) -> AboveItem:
    table.only(("name", "kind", "size", "align"))
    size = table.power_of_two("size")
    align = table.power_of_two("align") if "align" in table.data else size
    return AboveItem(table.text("name"), _kind(table, FIXED_KINDS), size, align)


def _doorbell(table: _Table) -> OpenDoorbell:
    table.only(("name", "size", "align", "start", "last"))
    size = table.power_of_two("size")
    align = table.power_of_two("align") if "align" in table.data else size
    within = table.span(Gpa(0), Gpa(ADDRESS_LAST))
    return OpenDoorbell(table.text("name"), size, align, within)


def _pci64(table: _Table) -> Pci64Window:
    table.only(_PCI64)
    size, share = None, None
    text = table.data.get("size", "")
    part = re.fullmatch(r"1/(\d{1,2})", text) if isinstance(text, str) else None
    if part:
        share = int(part[1])
        if share < 2 or share & (share - 1):
            raise table.wrong("size", f"{text!r} of the address space: the part is a power of two")
    elif text != "rest":
        size = table.size("size")
        if size % _BRIDGE_UNIT:
            # PCI-to-PCI Bridge Architecture 1.2, 3.2.5.9: prefetchable base and limit.
            raise table.wrong(
                "size",
                f"{size:#x} is not a multiple of {_BRIDGE_UNIT:#x}, the unit of a bridge's "
                f"window: {-(-size // _BRIDGE_UNIT) * _BRIDGE_UNIT:#x} would be",
            )
    start = table.address("start")
    if start is not None and size is None:
        raise table.wrong("start", "is only for a window of a stated size")
    own = table.data.get("align") == "size"
    if own and (size is None or size & (size - 1)):
        raise table.wrong("align", "size needs a size that is a power of two")
    return Pci64Window(
        size,
        size if own and size is not None else table.power_of_two("align"),
        table.address("floor") or Gpa(0),
        start,
        share,
        table.size("top_free") if "top_free" in table.data else 0,
        table.flag("downward", default=False),
        own,
        table.size("least") if "least" in table.data else 0,
        table.size("step") if "step" in table.data else 0,
        table.flag("must_fit", default=False),
        table.power_of_two("last_align") if "last_align" in table.data else 1,
        table.flag("hides_ram", default=False),
    )


def _options(table: _Table) -> tuple[tuple[str, str], ...]:
    table.only(tuple(OPTIONS))
    options = []
    for key in table.data:
        template = table.text(key)
        known = ", ".join(f"{{{name}}}" for name in OPTIONS[key])
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise table.wrong(key, f"{template!r}: {error}; it may hold {known}") from error
        for _, name, form, conversion in parts:
            if name is not None and (name not in OPTIONS[key] or form or conversion):
                raise table.wrong(key, f"{template!r} may hold {known} and nothing else in braces")
        options.append((key, template))
    return tuple(options)


def _line_of(text: str, path: str, key: str) -> int | None:
    """Find the line of a key; of its table when the key is not there; None when that is not."""
    match = re.fullmatch(r"(?P<name>.*?)(?:\[(?P<index>\d+)\])?", path)
    wanted, index = (match["name"], int(match["index"] or 0)) if match else (path, 0)
    pattern = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]")
    inside, seen, head = wanted == "", -1, None
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            name = header[2].strip("\"' ")
            seen += name == wanted
            inside = bool(wanted) and name == wanted and seen == index
            head = number if inside else head
            if not wanted and name == key:
                return number
        elif inside and pattern.match(line):
            return number
        elif wanted and re.match(rf"\s*{re.escape(wanted)}\s*=", line):
            head = head or number  # written inline
    return head


@record
class _Table:
    """A TOML table that knows its path, so that every error can name line and key."""

    data: dict[str, Any]
    file: str
    path: str
    source: str

    def wrong(self, key: str, what: str) -> HostDataError:
        where = f"{self.path}.{key}".lstrip(".")
        line = _line_of(self.source, self.path, key) or (None if self.path else 1)
        at = f"{self.file}:{line}" if line else self.file
        return HostDataError(f"{at}: {where} {what}", source=self.file, line=line, text=where)

    def only(self, known: tuple[str, ...]) -> None:
        for key in self.data:
            if key not in known:
                raise self.wrong(key, f"is not a key here; known are {', '.join(known)}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.data.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "is missing" if value is None else "should be text")
        if not value and default is None:
            raise self.wrong(key, "is empty")
        if not value.isprintable():
            raise self.wrong(key, f"{shorten(value)!r} should be one line of text")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "should be true or false")
        return value

    def table(self, key: str) -> _Table:
        value = self.data.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "should be a table")
        return _Table(value, self.file, f"{self.path}.{key}".lstrip("."), self.source)

    def tables(self, key: str) -> Iterator[_Table]:
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(key, f"should be written as [[{key}]] tables")
        for index, item in enumerate(value):
            yield _Table(item, self.file, f"{key}[{index}]", self.source)

    def strings(self, key: str) -> list[str]:
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "should be a list of texts")
        if not all(map(str.isprintable, value)):
            raise self.wrong(key, "should be a list of texts of one line each")
        return value

    def address(self, key: str, default: Gpa | None = None) -> Gpa | None:
        if key not in self.data:
            return default
        try:
            return Gpa(parse_address(self.data[key], key))
        except IovaError as error:
            raise self.wrong(key, f"is wrong: {error.message}") from error

    def size(self, key: str) -> int:
        if key not in self.data:
            raise self.wrong(key, "is missing")
        try:
            return parse_size(self.data[key], key)
        except IovaError as error:
            raise self.wrong(key, f"is wrong: {error.message}") from error

    def power_of_two(self, key: str) -> int:
        size = self.size(key)
        if size & (size - 1):
            better = 1 << size.bit_length()
            raise self.wrong(
                key, f"{size:#x} is not a power of two: {better >> 1:#x} or {better:#x} would be"
            )
        return size

    def span(self, first: Gpa | None = None, end: Gpa | None = None) -> AddrRange:
        """What `start` and `last` say; `first` and `end` where they say nothing."""
        start = self.address("start", first)
        last = self.address("last", end)
        if start is None or last is None:
            raise self.wrong("start" if start is None else "last", "is missing")
        if last < start:
            raise self.wrong("last", f"{last:#x} is below start {start:#x}")
        return AddrRange(start, last)
