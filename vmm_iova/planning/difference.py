# SPDX-License-Identifier: Apache-2.0
"""Two hosts or two layouts compared: what differs, and what changes for a guest."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from vmm_iova.errors import IovaError
from vmm_iova.machines.catalogue import load_machine
from vmm_iova.planning.plan import Guest, OnHole, plan
from vmm_iova.ranges import GIB, MIB, TIB
from vmm_iova.record import record
from vmm_iova.units import format_size, show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_iova.host.facts import ReservedRegion
    from vmm_iova.host.host import Host
    from vmm_iova.host.usable import Usable
    from vmm_iova.machines.model import Machine
    from vmm_iova.planning.layout import Layout
    from vmm_iova.ranges import AddrRange

_MOST = 16 * TIB  # RAM up to which a first difference is looked for


def layout_changes(left: dict[str, Any], right: dict[str, Any]) -> tuple[str, ...]:
    """Say what a guest sees change when the second layout takes the place of the first.

    Args:
        left: a layout as `Layout.to_json` has it.
        right: the other one.

    Complexity: O(items).
    """
    return tuple(_layout_changes(left, right))


def _layout_changes(left: dict[str, Any], right: dict[str, Any]) -> Iterator[str]:
    for field, name in (("machine", "machine"), ("ram", "RAM"), ("address_bits", "address bits")):
        if left.get(field) != right.get(field):
            yield f"{name}: {_shown(field, left)} became {_shown(field, right)}"
    for kind, title in (("ram", "RAM piece"), ("window", ""), ("msi", ""), ("doorbell", "")):
        ours, theirs = _parts(left, kind), _parts(right, kind)
        for key in dict.fromkeys((*ours, *theirs)):
            yield from _part(title, key, ours.get(key), theirs.get(key))
    before, after = _reserved(left), _reserved(right)
    for span, cause in after.items():
        if span not in before:
            yield f"the guest must be told that {span} is reserved: {cause}"
    for span in before:
        if span not in after:
            yield f"the guest need no longer be told that {span} is reserved"


def _shown(field: str, layout: dict[str, Any]) -> str:
    value = layout.get(field)
    return show_size(int(value, 16)) if field == "ram" and isinstance(value, str) else str(value)


def _parts(layout: dict[str, Any], kind: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Parts of a kind by name and number: the second piece of high RAM is `("high", 2)`."""
    count: defaultdict[str, int] = defaultdict(int)
    parts = {}
    for item in layout["items"]:
        if item["kind"] == kind:
            count[item["name"]] += 1
            parts[item["name"], count[item["name"]]] = item
    return parts


def _part(
    title: str,
    key: tuple[str, int],
    old: dict[str, Any] | None,
    new: dict[str, Any] | None,
) -> Iterator[str]:
    name, number = key
    called = f"{title} {name}".strip() + (f" {number}" if number > 1 else "")
    if old is None and new is not None:
        why = f": {new['start_cause']}" if new.get("start_cause") else ""
        yield f"{called} is new at {_place(new)}{why}"
    elif new is None and old is not None:
        yield f"{called} at {_place(old)} is gone"
    elif old is not None and new is not None:
        before, after = _span(old), _span(new)
        iova = old["iova"] is not None and new["iova"] is not None and old["iova"] != new["iova"]
        if before[0] != after[0]:
            why = f": {new['start_cause']}" if new.get("start_cause") else ""
            yield f"{called} moved from {_place(old)} to {_place(new)}{why}"
        elif before[1] != after[1]:
            less = before[1] > after[1]
            why = f": {new['last_cause']}" if less and new.get("last_cause") else ""
            verb = "ends earlier" if less else "goes on further"
            yield (
                f"{called} at {before[0]:#x} {verb}, at {after[1]:#x} instead of "
                f"{before[1]:#x}{why}"
            )
        elif iova and old["iova"]["start"] != new["iova"]["start"]:
            yield (
                f"devices see {called} at {new['iova']['start']} instead of {old['iova']['start']}"
            )


def _span(item: dict[str, Any]) -> tuple[int, int]:
    place = item["gpa"] or item["iova"]
    return int(place["start"], 16), int(place["last"], 16)


def _place(item: dict[str, Any]) -> str:
    start, last = _span(item)
    return f"{start:#x}-{last:#x} ({show_size(last - start + 1)})"


def _reserved(layout: dict[str, Any]) -> dict[str, str]:
    return {
        f"{item['start']}-{item['last']}": item.get("cause", "")
        for item in layout["guest_reserved"]
    }


def host_changes(
    left: Host,
    right: Host,
    left_usable: Usable | None,
    right_usable: Usable | None,
    guest: Guest | None = None,
    machine: str = "q35",
    on_hole: OnHole = "auto",
) -> tuple[str, ...]:
    """Say what a guest sees change when it goes from the first host to the second.

    Args:
        left: a host.
        right: the other one.
        left_usable: what may be mapped there; None where the facts do not settle it.
        right_usable: the same of the other one.
        guest: the guest to plan on both; None to look for the smallest that sees a difference.
        machine: its machine, when `guest` is None.
        on_hole: as in `vmm_iova.plan`.

    Raises:
        RequestError: the guest makes no sense.

    Complexity: O(log RAM) plans.
    """
    changes = list(_assignment(left, right, left_usable, right_usable))
    unknown = [
        host.name for host, usable in ((left, left_usable), (right, right_usable)) if usable is None
    ]
    if left_usable is None or right_usable is None:
        names = " and of ".join(dict.fromkeys(unknown))
        changes.append(
            f"what else changes is not known: the facts of {names} do not say what may be mapped "
            "(--aperture states a width)"
        )
        return tuple(changes)
    if left_usable.granule != right_usable.granule:
        changes.append(
            f"RAM must be whole multiples of {show_size(right_usable.granule)} instead of "
            f"{show_size(left_usable.granule)}"
        )
    if guest is not None:
        changes += _planned(guest, left_usable, right_usable, on_hole)
    else:
        changes += _first_difference(machine, left_usable, right_usable, on_hole)
    return tuple(changes)


def _assignment(
    left: Host, right: Host, left_usable: Usable | None, right_usable: Usable | None
) -> Iterator[str]:
    ours = {item.group.id: item for item in left_usable.unassignable} if left_usable else {}
    theirs = {item.group.id: item for item in right_usable.unassignable} if right_usable else {}
    before = {group.id: group for group in left.groups}
    after = {group.id: group for group in right.groups}
    for name, item in theirs.items():
        if name not in ours:
            verb = "can no longer be assigned" if name in before else "cannot be assigned"
            yield f"{item.group.title} {verb}: direct region, {item.region.source}"
    for name in ours:
        if name not in theirs and name in after:
            yield f"{after[name].title} can be assigned now"
    gone = [group.title for name, group in before.items() if name not in after]
    if gone and after:
        yield f"not there any more: {', '.join(gone[:8])}" + (", ..." if len(gone) > 8 else "")


def _planned(guest: Guest, left: Usable, right: Usable, on_hole: OnHole) -> Iterator[str]:
    layouts: list[Layout | IovaError] = []
    for usable in (left, right):
        try:
            layouts.append(plan(guest, usable, on_hole))
        except IovaError as error:
            if error.exit_code != 3:
                raise
            layouts.append(error)
    old, new = layouts
    if isinstance(old, IovaError) and isinstance(new, IovaError):
        yield f"the guest fits on neither: {new.message}"
    elif isinstance(new, IovaError):
        yield f"the guest no longer fits: {new.message}"
    elif isinstance(old, IovaError):
        yield f"the guest fits now; before, {old.message}"
    else:
        yield from _layout_changes(old.to_json(), new.to_json())


def _first_difference(name: str, left: Usable, right: Usable, on_hole: OnHole) -> Iterator[str]:
    """Find the largest guest that is laid out alike on both, and say what a larger one sees."""
    machine = load_machine(name)

    def both(ram: int) -> tuple[Layout | None, Layout | None]:
        return _try(machine, ram, left, on_hole), _try(machine, ram, right, on_hole)

    def alike(ram: int) -> bool:
        old, new = both(ram)
        return old is not None and new is not None and _ram(old) == _ram(new)

    if alike(_MOST):
        return
    below, above = 0, _MOST
    for step in (GIB, MIB):
        while above - below > step:
            middle = (below + above) // 2 // step * step
            if alike(middle):
                below = middle
            else:
                above = middle
    old, new = both(below + GIB)
    if old is None and new is None:
        old, new = both(above)
    if old is None and new is None:
        return  # both end at the same size
    which = (
        f"a {machine.name} guest with more than {format_size(below)} of RAM"
        if below
        else f"a {machine.name} guest of any size"
    )
    if new is None:
        yield f"{which} no longer fits"
    elif old is None:
        yield f"{which} fits now"
    else:
        sentence = next(_layout_changes(_places(old), _places(new)), "is laid out differently")
        verb = "moves" if "move" in (old.policy, new.policy) else "is laid out differently"
        yield f"{which} {verb}: {sentence}"


def _places(layout: Layout) -> dict[str, Any]:
    """The RAM of a layout alone: what else differs follows from it."""
    document = layout.to_json()
    return {
        "items": [item for item in document["items"] if item["kind"] == "ram"],
        "guest_reserved": [],
    }


def _try(machine: Machine, ram: int, usable: Usable, on_hole: OnHole) -> Layout | None:
    try:
        return plan(Guest(machine, ram), usable, on_hole)
    except IovaError:
        return None


def _ram(layout: Layout) -> list[object]:
    return [(item.gpa, item.iova) for item in layout.ram]


@record
class Difference:
    """What two things do not share.

    Attributes:
        sections: titles, each with what only the first and what only the second has.
        guest: what changes for a guest, in sentences.
    """

    sections: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
    guest: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        return not self.guest and not any(left or right for _, left, right in self.sections)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            title: {"only_first": list(left), "only_second": list(right)}
            for title, left, right in self.sections
        }


def _section(
    title: str, left: Iterable[str], right: Iterable[str]
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    ours, theirs = dict.fromkeys(left), dict.fromkeys(right)
    return (
        title,
        tuple(item for item in ours if item not in theirs),
        tuple(item for item in theirs if item not in ours),
    )


def compare_hosts(
    left: Host, right: Host, left_usable: Usable | None, right_usable: Usable | None
) -> Difference:
    """Compare what two hosts allow; without aperture evidence, the regions they name."""
    sections = []
    if left_usable is not None and right_usable is not None:
        ours, theirs = left_usable.ranges.as_set(), right_usable.ranges.as_set()
        sections.append(
            (
                "usable on one alone",
                tuple(_with_cause(item, right_usable) for item in ours - theirs),
                tuple(_with_cause(item, left_usable) for item in theirs - ours),
            )
        )
        sections.append(
            _section(
                "granule",
                [show_size(left_usable.granule)],
                [show_size(right_usable.granule)],
            )
        )
        sections.append(
            _section(
                "cannot be assigned",
                [entry.text for entry in left_usable.unassignable],
                [entry.text for entry in right_usable.unassignable],
            )
        )
    else:
        sections.append(
            _section(
                "aperture known",
                ["yes" if left_usable else "no"],
                ["yes" if right_usable else "no"],
            )
        )
    sections.append(
        _section("reserved regions", _regions(left, left_usable), _regions(right, right_usable))
    )
    sections.append(_section("limits", _limits(left), _limits(right)))
    return Difference(tuple(sections))


def _with_cause(item: AddrRange, other: Usable) -> str:
    causes = "; ".join(cause.text for cause in other.causes_of(item)[:2])
    return f"{item} ({show_size(item.size)}); the other: {causes}"


def _regions(host: Host, usable: Usable | None) -> list[str]:
    """The regions that count: those of the selection, and what the architecture adds."""
    if usable is not None:
        regions: Iterable[ReservedRegion] = usable.regions
    else:
        listed = (region for group in host.groups for region in group.regions or ())
        regions = (*listed, *host.log_regions)
    ordered = sorted({(item.range, item.word) for item in regions})
    return [f"{span} {word}" for span, word in ordered]


def _limits(host: Host) -> list[str]:
    limits = host.limits
    return [
        f"{name} {value}"
        for name, value in (("map calls", limits.dma_entries), ("memlock", limits.memlock))
        if value is not None
    ]


def compare_layouts(left: dict[str, Any], right: dict[str, Any]) -> Difference:
    """Compare two layouts, as their JSON has them: moved parts, and what the guest is told."""
    facts = ("machine", "ram", "policy", "address_bits", "granule")
    return Difference(
        (
            _section("parts", _part_lines(left), _part_lines(right)),
            _section(
                "told to the guest",
                (f"{item['start']}-{item['last']}" for item in left["guest_reserved"]),
                (f"{item['start']}-{item['last']}" for item in right["guest_reserved"]),
            ),
            _section(
                "facts",
                (f"{name} {left.get(name)}" for name in facts),
                (f"{name} {right.get(name)}" for name in facts),
            ),
        )
    )


def _part_lines(layout: dict[str, Any]) -> Iterator[str]:
    for item in layout["items"]:
        places = [
            f"{key} {item[key]['start']}-{item[key]['last']}"
            for key in ("gpa", "iova")
            if item[key] is not None
        ]
        yield f"{item['kind']} {item['name']}: {', '.join(places)}"
