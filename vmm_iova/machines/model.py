# SPDX-License-Identifier: Apache-2.0
"""Machine models: where a VMM's guest may and must have RAM, doorbells and windows.

A model is a TOML file, so that a VMM's author can write one; those of the package name the source
file that each number comes from.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from vmm_iova.errors import RequestError
from vmm_iova.machines.parts import ABILITIES
from vmm_iova.ranges import ADDRESS_LAST, BASE_PAGE, GIB, AddrRange, RangeSet
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_iova.machines.parts import (
        Ability,
        AboveItem,
        FirmwareKind,
        FixedItem,
        Hotplug,
        OpenDoorbell,
        Pci64Window,
        RamWindow,
    )

    _Spans = Sequence[tuple[str, str, AddrRange]]
    _Fault = tuple[str, str]

_FOUR_GIB = 4 * GIB


@record
class Machine:
    """A machine model.

    Attributes:
        name: short name.
        title: what it is, with versions.
        arch: `x86_64`, `aarch64`, `s390x`, ...
        identity: True if IOVA equals guest physical address.
        source: where its numbers are written.
        ram: windows in the order in which RAM fills them, ascending.
        fixed: what else has a fixed place, ascending.
        pci64: its 64-bit PCI window, or None.
        aliases: other names that it is known by.
        phys_bits: most guest address bits that the VMM gives, whatever the CPU has; None: no limit.
        ram_max: most RAM in bytes, or None.
        ram_reserved: spans inside RAM that the guest must be told are not free.
        options: (name, template) of the VMM's own switches, to name in fixes.
        above: what stands between RAM and the 64-bit PCI window, in order.
        can: what its VMM can do with RAM whose own place is not free.
        hotplug: where memory goes that is plugged in later; None when it has none.
        open_doorbells: doorbells whose place is open.
        firmware: the firmware that gives out its BARs when none is named; None when the place of
            BARs does not depend on it.

    Raises:
        RequestError: two of its parts overlap, or a part makes no sense (`machine_rules`).

    Synchronization: none required (immutable).
    """

    name: str
    title: str
    arch: str
    ram: tuple[RamWindow, ...]
    identity: bool = True
    source: str = ""
    fixed: tuple[FixedItem, ...] = ()
    pci64: Pci64Window | None = None
    aliases: tuple[str, ...] = ()
    phys_bits: int | None = None
    ram_max: int | None = None
    ram_reserved: tuple[FixedItem, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    above: tuple[AboveItem, ...] = ()
    can: tuple[Ability, ...] = ABILITIES
    hotplug: Hotplug | None = None
    firmware: FirmwareKind | None = None
    open_doorbells: tuple[OpenDoorbell, ...] = ()

    def __post_init__(self) -> None:
        check_machine(self)
        object.__setattr__(self, "fixed", tuple(sorted(self.fixed, key=_place)))
        object.__setattr__(self, "ram_reserved", tuple(sorted(self.ram_reserved, key=_place)))

    @property
    def doorbells(self) -> tuple[FixedItem, ...]:
        """Where the guest's own interrupt controller takes MSI writes."""
        return tuple(item for item in self.fixed if item.kind == "doorbell")

    @property
    def pcie(self) -> bool:
        """True if it has a PCIe configuration space, and so root ports."""
        names = [item.name for item in self.fixed] + [item.name for item in self.above]
        return any("configuration" in name for name in names)

    @property
    def gap32(self) -> AddrRange | None:
        """Where below 4 GiB, above the lowest RAM, there is none; None when RAM goes through.

        None as well for a machine whose RAM begins at 4 GiB or above.
        """
        start = self.ram[0].range.start
        if start >= _FOUR_GIB:
            return None
        windows = RangeSet(window.range for window in self.ram)
        return windows.complement(AddrRange(start, _FOUR_GIB - 1)).hull

    @property
    def pci32(self) -> tuple[FixedItem, ...]:
        """Its windows for 32-bit BARs."""
        return tuple(
            item for item in self.fixed if item.kind == "window" and item.range.last < _FOUR_GIB
        )

    @property
    def pci64_placed(self) -> bool:
        """True if the VMM can be told where its 64-bit PCI window begins."""
        return self.option("pci64_start", start="") is not None

    @property
    def pci64_sized(self) -> bool:
        """True if the VMM can be told the size of its 64-bit PCI window."""
        return self.pci64_placed or self.option("pci64", size="", mib=0) is not None

    def option(self, name: str, **values: object) -> str | None:
        """Return the VMM's own switch for something, filled in, or None if it has none."""
        for known, template in self.options:
            if known == name:
                return template.format(**values)
        return None


def _place(item: FixedItem) -> AddrRange:
    return item.range


# What no model may say. Each rule names the part and the key that break it: the `field` of the
# RequestError is the path of the key, such as `ram[1].move_to`, counted as written; the reader of
# files turns it into a line.


def check_machine(machine: Machine) -> None:
    """Refuse a model whose parts make no sense, alone or together.

    Raises:
        RequestError: `field` is the path of the key, `value` is the machine's name.

    Complexity: O(parts^2), and a model has a dozen.
    """
    for field, message in _faults(machine):
        raise RequestError(message, field=field, value=machine.name)


def check_disjoint(spans: Sequence[tuple[str, AddrRange]], field: str) -> None:
    """Refuse two named spans that share an address; name both.

    Raises:
        RequestError: they do.
    """
    for _, message in _overlaps([(field, name, span) for name, span in spans]):
        raise RequestError(message, field=field, value=None)


def _overlaps(spans: _Spans) -> Iterator[_Fault]:
    ordered = sorted(spans, key=lambda entry: entry[2])
    for (_, below, lower), (path, above, upper) in pairwise(ordered):
        if lower.overlaps(upper):
            yield path, f"{below!r} {lower} and {above!r} {upper} overlap"


def _faults(machine: Machine) -> Iterator[_Fault]:
    if not machine.ram:
        yield "ram", f"machine {machine.name} has no RAM window"
        return
    bits = machine.phys_bits
    if bits is not None and (type(bits) is not int or not 32 <= bits <= 64):
        yield "phys_bits", f"phys_bits {bits!r} is not a number of address bits from 32 to 64"
        return
    spans = _placed(machine)
    yield from _name_faults(machine)
    yield from _overlaps(spans)
    for (at, below), (_, above) in pairwise(enumerate(window.range for window in machine.ram)):
        if above.start <= below.last:
            yield f"ram[{at + 1}].start", f"RAM windows {below} and {above} are not ascending"
    for index, window in enumerate(machine.ram):
        yield from _window(machine, f"ram[{index}]", window, spans)
    for path, item in _each("fixed", machine.fixed):
        yield from _beyond(machine, f"{path}.last", item.range.last)
        if item.kind == "window" and item.range.last >= _FOUR_GIB:
            yield (
                f"{path}.last",
                f"{path}.last {item.range.last:#x} is not below {_FOUR_GIB:#x}: a fixed window "
                "is for 32-bit BARs, the one for 64-bit BARs is [pci64]",
            )
    yield from _reserved_faults(machine)
    for index, above_item in enumerate(machine.above):
        for key in ("size", "align"):
            path, value = f"above[{index}].{key}", getattr(above_item, key)
            yield from _power_of_two(path, value)
            yield from _beyond(machine, path, value)
    yield from _ram_max(machine)
    if machine.pci64 is not None:
        yield from _pci64(machine, machine.pci64)
    for index, bell in enumerate(machine.open_doorbells):
        for key in ("size", "align"):
            yield from _power_of_two(f"doorbell[{index}].{key}", getattr(bell, key))
        if bell.range.size < bell.size:
            yield (
                f"doorbell[{index}].last",
                f"doorbell[{index}] {bell.name!r}: {bell.size:#x} bytes do not fit {bell.range}",
            )
    if machine.hotplug is not None:
        yield from _power_of_two("hotplug.align", machine.hotplug.align)
        for key in ("slot", "floor"):
            yield from _pages(f"hotplug.{key}", getattr(machine.hotplug, key))


def _placed(machine: Machine) -> list[tuple[str, str, AddrRange]]:
    """What has its place: the path of its key, its name, its span."""
    spans = [
        (f"ram[{index}].name", window.name, window.range)
        for index, window in enumerate(machine.ram)
    ]
    spans += (
        (f"{path}.name", item.name, item.range) for path, item in _each("fixed", machine.fixed)
    )
    window = machine.pci64
    if window is not None and window.start is not None and window.size is not None:
        last = min(window.start + window.size - 1, ADDRESS_LAST)  # too much is said by _pci64
        spans.append(("pci64.start", "64-bit PCI window", AddrRange(window.start, last)))
    return spans


def _each(key: str, items: Sequence[FixedItem]) -> Iterable[tuple[str, FixedItem]]:
    return ((f"{key}[{index}]", item) for index, item in enumerate(items))


def _name_faults(machine: Machine) -> Iterator[_Fault]:
    named = [(f"ram[{index}]", window.name) for index, window in enumerate(machine.ram)]
    named += [(path, item.name) for path, item in _each("fixed", machine.fixed)]
    named += [(f"above[{index}]", item.name) for index, item in enumerate(machine.above)]
    seen: dict[str, str] = {}
    for path, name in named:
        if name in seen:
            yield f"{path}.name", f"{path}.name {name!r} is the name of {seen[name]} already"
        seen[name] = path
    if len(set(machine.aliases)) < len(machine.aliases) or machine.name in machine.aliases:
        yield "aliases", f"aliases {', '.join(machine.aliases)} repeat a name"


def _pages(path: str, value: int, what: str = "") -> Iterator[_Fault]:
    if value % BASE_PAGE:
        below = value // BASE_PAGE * BASE_PAGE
        better = f"{below:#x} or {below + BASE_PAGE:#x}" if below else f"{BASE_PAGE:#x}"
        yield (
            path,
            f"{path} {value:#x} is not a multiple of {BASE_PAGE:#x}, the smallest page{what}: "
            f"{better} would be",
        )


def _power_of_two(path: str, value: int) -> Iterator[_Fault]:
    if value < BASE_PAGE or value & (value - 1):
        yield path, f"{path} {value:#x} is not a power of two from {BASE_PAGE:#x}"


def _beyond(machine: Machine, path: str, value: int) -> Iterator[_Fault]:
    top = _top(machine)
    if value > top:
        yield (
            path,
            f"{path} {value:#x} is beyond {top:#x}, the last address of the {machine.phys_bits} "
            "bits of phys_bits",
        )


def _top(machine: Machine) -> int:
    return ADDRESS_LAST if machine.phys_bits is None else (1 << machine.phys_bits) - 1


def _window(machine: Machine, path: str, window: RamWindow, spans: _Spans) -> Iterator[_Fault]:
    start, last = window.range.start, window.range.last
    yield from _pages(f"{path}.start", start)
    if (last + 1) % BASE_PAGE:
        below = (last + 1) // BASE_PAGE * BASE_PAGE - 1
        better = f"{below:#x}" if below >= start else f"{below + BASE_PAGE:#x}"
        yield (
            f"{path}.last",
            f"{path}.last {last:#x} is not the last byte of a page of {BASE_PAGE:#x}: {better} "
            "would be (the last address is included)",
        )
    yield from _beyond(machine, f"{path}.start", start)
    if last != ADDRESS_LAST:
        yield from _beyond(machine, f"{path}.last", last)
    yield from _pages(f"{path}.required", window.required)
    most = window.range.size if machine.ram_max is None else min(window.range.size, machine.ram_max)
    if window.required > most:
        why = f"the window {window.range} holds" if most == window.range.size else "ram_max allows"
        yield (
            f"{path}.required",
            f"{path}.required {window.required:#x} is more than {why}: at most {most:#x}",
        )
    if window.whole_below is not None:
        yield from _whole_below(path, window, window.whole_below, spans)
    if window.move_to is not None:
        key = f"{path}.move_to"
        yield from _pages(key, window.move_to)
        yield from _beyond(machine, key, window.move_to)
        for _, name, span in spans:
            if window.move_to in span and span != window.range:
                yield key, f"{key} {window.move_to:#x} lies in {name!r} {span}: RAM cannot go there"
        if window.move_to == start:
            yield key, f"{key} {start:#x} is where the window begins anyway: leave it out"
    if window.move_past is not None:
        key = f"{path}.move_past"
        yield from _pages(key, window.move_past)
        if window.move_to is None or window.move_to <= window.move_past:
            yield key, f"{key} {window.move_past:#x} is not below {path}.move_to"
    if window.move_cpu is not None and window.move_past is None:
        key = f"{path}.move_cpu"
        yield key, f"{key} {window.move_cpu!r} says nothing without {path}.move_past"
    if not window.movable:
        for name in ("move_to", "movable_note"):
            if getattr(window, name) is not None:
                key = f"{path}.{name}"
                yield key, f"{key} is stated, but {path}.movable is false: leave out one of them"


def _whole_below(path: str, window: RamWindow, limit: int, spans: _Spans) -> Iterator[_Fault]:
    key = f"{path}.whole_below"
    if path != "ram[0]":
        yield key, f"{key} {limit:#x} counts in the first window only: leave it out"
        return
    yield from _pages(key, limit)
    if limit <= window.range.last + 1:
        yield (
            key,
            f"{key} {limit:#x} is not above {window.range.last + 1:#x}, where the window ends "
            "anyway: leave it out, or say how far all RAM of a small guest reaches",
        )
        return
    whole = AddrRange(window.range.start, limit - 1)
    for _, name, span in sorted(spans, key=lambda entry: entry[2]):
        if span.overlaps(whole) and span != window.range:
            yield (
                key,
                f"{key} {limit:#x} lets RAM run into {name!r} {span}: {span.start:#x} is the most",
            )


def _reserved_faults(machine: Machine) -> Iterator[_Fault]:
    windows = [window.range for window in machine.ram]
    first = machine.ram[0]
    if first.whole_below is not None:
        windows.append(AddrRange(first.range.start, first.whole_below - 1))
    spans = [
        (f"{path}.start", i.name, i.range)
        for path, i in _each("ram_reserved", machine.ram_reserved)
    ]
    for path, name, span in spans:
        if not any(span in window for window in windows):
            yield path, f"{path} of {name!r}: {span} does not lie in a RAM window"
    yield from _overlaps(spans)


def _ram_max(machine: Machine) -> Iterator[_Fault]:
    most = machine.ram_max
    if most is None:
        return
    yield from _pages("ram_max", most)
    top = _top(machine)
    room = sum(min(window.range.last, top) - window.range.start + 1 for window in machine.ram)
    if most > room:
        yield "ram_max", f"ram_max {most:#x} is more than the RAM windows hold: at most {room:#x}"


def _pci64(machine: Machine, window: Pci64Window) -> Iterator[_Fault]:
    top = _top(machine)
    if window.size is not None:
        yield from _pages("pci64.size", window.size)
        if window.size > top:
            yield (
                "pci64.size",
                f"pci64.size {window.size:#x} is all of the guest's addresses, up to {top:#x}, so "
                "no RAM is left",
            )
        for key in ("top_free", "step"):
            value = getattr(window, key)
            if value:
                yield (
                    f"pci64.{key}",
                    f"pci64.{key} {value:#x} counts only where the size is the rest or a part of "
                    "the addresses: leave it out",
                )
    yield from _power_of_two("pci64.align", window.align)
    yield from _pages("pci64.top_free", window.top_free)
    yield from _pages("pci64.step", window.step)
    for key in ("align", "floor", "top_free", "step"):
        yield from _beyond(machine, f"pci64.{key}", getattr(window, key))
    if window.start is None or window.size is None:
        return
    yield from _beyond(machine, "pci64.start", window.start)
    if window.start + window.size - 1 > top:
        yield (
            "pci64.size",
            f"pci64.size {window.size:#x} from {window.start:#x} reaches beyond {top:#x}: at most "
            f"{top + 1 - window.start:#x}",
        )
    if window.align and window.start % window.align:
        yield (
            "pci64.start",
            f"pci64.start {window.start:#x} is not a multiple of pci64.align {window.align:#x}: "
            f"{window.start // window.align * window.align:#x} would be",
        )
    if window.floor:
        yield (
            "pci64.floor",
            f"pci64.floor {window.floor:#x} says nothing beside pci64.start {window.start:#x}: "
            "leave it out",
        )
