# SPDX-License-Identifier: Apache-2.0
"""Compare two hosts or two layouts: what changes for a guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmm_iova.host.facts import Host, ReservedRegion
    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange


@dataclass(frozen=True, slots=True)
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
    told = "guest_reserved"
    facts = ("machine", "ram", "policy", "address_bits", "granule")
    return Difference(
        (
            _section("parts", _parts(left), _parts(right)),
            _section(
                "told to the guest",
                (f"{item['start']}-{item['last']}" for item in left[told]),
                (f"{item['start']}-{item['last']}" for item in right[told]),
            ),
            _section(
                "facts",
                (f"{name} {left.get(name)}" for name in facts),
                (f"{name} {right.get(name)}" for name in facts),
            ),
        )
    )


def _parts(layout: dict[str, Any]) -> Iterator[str]:
    for item in layout["items"]:
        places = [
            f"{key} {item[key]['start']}-{item[key]['last']}"
            for key in ("gpa", "iova")
            if item[key] is not None
        ]
        yield f"{item['kind']} {item['name']}: {', '.join(places)}"
