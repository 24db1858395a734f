# SPDX-License-Identifier: Apache-2.0
"""Text for people, in the manner of /proc/iomem: `start-last : name`, indented where inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.registers import least_bits
from vmm_iova.host.usable import CauseKind, Usable
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmm_iova.host.registers import Width

_NAME = 26


def line(
    span: AddrRange, name: str, *, indent: int = 0, bytes_: bool = False, more: str = ""
) -> str:
    """One line of a map."""
    size = f"{span.size:#x}" if bytes_ else show_size(span.size)
    text = f"{' ' * indent}{span.start:016x}-{span.last:016x} : {name:<{_NAME - indent}} {size:>10}"
    return f"{text}  {more}".rstrip()


def section(title: str, entries: Iterable[str]) -> Iterator[str]:
    """A titled list, or nothing when there is nothing in it."""
    listed = list(entries)
    if listed:
        yield ""
        yield title
        yield from (f"  {entry}" for entry in listed)


def usable_map(usable: Usable, *, bytes_: bool) -> Iterator[str]:
    """The whole space as lines: usable ranges, and the cause of everything between."""
    last = -1
    for span in usable.ranges:
        yield from _between(usable, last + 1, span.start - 1, bytes_)
        yield line(span, "usable", bytes_=bytes_)
        for region in sorted(usable.relaxable, key=lambda item: item.range):
            shared = region.range.intersect(span)
            if shared is not None:
                more = f"usable, with a warning; {region.source}"
                yield line(shared, region.word, indent=2, bytes_=bytes_, more=more)
        last = span.last
    yield from _between(usable, last + 1, ADDRESS_LAST, bytes_)


def _between(usable: Usable, start: int, last: int, bytes_: bool) -> Iterator[str]:
    if start > last:
        return
    for cause in usable.causes_of(AddrRange(start, last)):
        shared = cause.range.align_outward(usable.granule).intersect(AddrRange(start, last))
        if shared is not None:
            name = cause.region.word if cause.region else _SHORT.get(cause.kind, "not usable")
            yield line(shared, name, bytes_=bytes_, more=cause.text)


_SHORT = {
    CauseKind.APERTURE: "outside of the aperture",
    CauseKind.KERNEL_GAP: "not in the kernel's list",
    CauseKind.TOP_PAGE: "last page",
    CauseKind.GRANULE: "less than a granule",
}


def evidence(usable: Usable) -> Iterator[str]:
    """What the answer rests on."""
    lines = [f"{' (an upper bound)' * item.bound}: {item.text}" for item in usable.evidence]
    for index, text in enumerate(dict.fromkeys(lines)):  # groups that agree say it once
        yield f"{'aperture' if index == 0 else 'and'}{text}"
    yield f"granule: {show_size(usable.granule)}, {usable.granule_text}"


def width_lines(widths: Sequence[Width]) -> Iterator[str]:
    """Every address width, side by side, the limiting ones marked."""
    least = least_bits(widths)
    for width in widths:
        mark = "  <- limits" if width.counts and width.bits == least else ""
        aside = "" if width.counts else ", says nothing about what may be mapped"
        yield f"{width.bits:>2} bits  {width.what} ({width.source}{aside}){mark}"
