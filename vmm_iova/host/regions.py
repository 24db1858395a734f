# SPDX-License-Identifier: Apache-2.0
"""The `reserved_regions` file of a group, strictly: its format is ABI, its content is not tidy."""

from __future__ import annotations

from vmm_iova.errors import HostDataError
from vmm_iova.host.facts import EmptyRegion, Note, RegionKind, ReservedRegion, Source
from vmm_iova.patterns import regex
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.record import record
from vmm_iova.units import shorten

_HEX = regex(r"0[xX][0-9a-fA-F]+")
_WORDS = {
    kind.value: kind
    for kind in (
        RegionKind.DIRECT,
        RegionKind.DIRECT_RELAXABLE,
        RegionKind.RESERVED,
        RegionKind.MSI,
    )
}
_LINE = regex(
    r"0[xX][0-9a-fA-F]{1,16} 0[xX][0-9a-fA-F]{1,16} (?:direct|direct-relaxable|reserved|msi)"
)
_LONGEST_LINE = len("0x0000000000000000 0x0000000000000000 direct-relaxable\n")
_PAGE_SIZES = (4096, 16384, 65536)


@record
class RegionsText:
    """What a `reserved_regions` text says.

    Attributes:
        regions: ascending by start, then last, then word; duplicates once.
        empty_regions: regions of length 0.
        notes: what was odd.
        rejected: numbers of the lines that are no region lines at all, ascending.
    """

    regions: tuple[ReservedRegion, ...]
    empty_regions: tuple[EmptyRegion, ...]
    notes: tuple[Note, ...]
    rejected: tuple[int, ...]


def is_region_line(text: str) -> bool:
    """Tell whether a line is as the kernel prints it, and thus nothing else."""
    return _LINE.fullmatch(text) is not None


def parse_region_line(
    text: str, source: Source, group: str | None = None
) -> ReservedRegion | EmptyRegion | None:
    """Read one line `0xSTART 0xLAST type`, last inclusive.

    Returns:
        The region, or the empty region; None when the line does not begin like a region line, for
        the caller to report.

    Raises:
        HostDataError: it begins like a region line but is cut off or contradicts itself.

    Source: iommu_group_show_resv_regions, drivers/iommu/iommu.c. A region of length 0, which
        broken firmware produces, prints last = start - 1 modulo 2^64.
    """
    tokens = text.split(None, 2)
    if not tokens or not tokens[0].lower().startswith("0x"):
        return None
    if len(tokens) < 3 or not _HEX.fullmatch(tokens[0]) or not _HEX.fullmatch(tokens[1]):
        raise HostDataError(
            f"{source}: region line {shorten(text.strip())!r} is cut off or garbled",
            source=source.name,
            line=source.line,
            text=shorten(text.strip()),
            hint="a region line reads: 0xSTART 0xLAST type; take the text again",
        )
    start, last = int(tokens[0], 16), int(tokens[1], 16)
    if start > ADDRESS_LAST or last > ADDRESS_LAST:
        raise HostDataError(
            f"{source}: region {tokens[0]} {tokens[1]} reaches beyond 2^64-1",
            source=source.name,
            line=source.line,
            text=shorten(text.strip()),
        )
    kind, word = region_kind(tokens[2].strip())
    # A region of length 0 at 0 prints like the whole space: what cannot be told apart is kept.
    if last == (start - 1) & ADDRESS_LAST and start:
        return EmptyRegion(start, kind, word, source, group)
    if last < start:
        raise HostDataError(
            f"{source}: region last {last:#x} is below its start {start:#x}",
            source=source.name,
            line=source.line,
            text=shorten(text.strip()),
            hint="the text is damaged: take it again",
        )
    return ReservedRegion(AddrRange(start, last), kind, word, source, group)


def region_kind(word: str) -> tuple[RegionKind, str]:
    """Return the type that a word of sysfs means, and the word to keep."""
    first = word.split()[0] if word.strip() else word
    known = _WORDS.get(first)
    if known is not None:
        return known, first  # what people write behind the type is not part of it
    return RegionKind.UNKNOWN, shorten(word, 32)


def parse_reserved_regions(text: str, name: str, group: str | None = None) -> RegionsText:
    """Read a whole `reserved_regions` text.

    Lines may be in any order, repeat, and overlap with other types: all are kept, sorted, and
    identical ones once (with a note). A line that is no region line at all is reported by number.

    Args:
        text: the content.
        name: file name for messages.
        group: group that it belongs to.

    Raises:
        HostDataError: cut off (a page full, or no newline after an incomplete last line), or a
            region line that contradicts itself.

    Complexity: O(n log n).
    """
    check_truncation(text, name)
    regions: list[ReservedRegion] = []
    empty: list[EmptyRegion] = []
    rejected: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        item = parse_region_line(line, Source(name, number), group)
        if item is None:
            rejected.append(number)
        elif isinstance(item, EmptyRegion):
            empty.append(item)
        else:
            regions.append(item)
    kept, notes = tidy(regions, empty, name)
    return RegionsText(kept, tuple(empty), tuple(notes), tuple(rejected))


def tidy(
    regions: list[ReservedRegion], empty: list[EmptyRegion], name: str
) -> tuple[tuple[ReservedRegion, ...], list[Note]]:
    """Sort, keep identical lines of one group once, and note what was odd."""
    notes = [
        Note(f"{item.source}: {item.word} region of length 0 at {item.start:#x}: broken firmware")
        for item in empty
    ]
    seen: dict[tuple[AddrRange, str, str | None], ReservedRegion] = {}
    for region in regions:
        seen.setdefault((region.range, region.word, region.group), region)
    if len(seen) < len(regions):
        notes.append(
            Note(f"{name}: {len(regions) - len(seen)} repeated region lines count once", False)
        )
    unknown = [region for region in seen.values() if region.kind is RegionKind.UNKNOWN]
    if unknown:
        first = unknown[0]
        more = f" (and {len(unknown) - 1} more such lines)" if len(unknown) > 1 else ""
        notes.append(
            Note(
                f"{first.source}: {first.range} has the unknown type {first.word!r}{more}: "
                "taken as not mappable"
            )
        )
    ordered = sorted(seen.values(), key=lambda r: (r.range.start, r.range.last, r.word))
    return tuple(ordered), notes


def check_truncation(text: str, name: str, *, pasted: bool = False) -> None:
    """Refuse a text that the kernel or a paste has cut off.

    The kernel writes at most a page less one byte and drops the rest in silence (sysfs_emit_at,
    Linux 6.5), so a file within one line of a page size cannot be trusted to be whole.

    Args:
        text: region lines only.
        name: for the message.
        pasted: the text is not a file of sysfs, so that a missing newline alone says nothing.

    Raises:
        HostDataError: it is, or may be, cut off.
    """
    if not text:
        return
    length = len(text)
    page = next((p for p in _PAGE_SIZES if p - _LONGEST_LINE <= length <= p), None)
    ragged = not text.endswith("\n") and not pasted
    if page is None and not ragged:
        return
    line = text.count("\n") + (0 if text.endswith("\n") else 1)
    why = (
        f"its {length} bytes fill a page of {page}, so the kernel may have dropped lines"
        if page is not None
        else "its last line has no newline"
    )
    raise HostDataError(
        f"{name}:{line}: the list of reserved regions is cut off: {why}",
        source=name,
        line=line,
        text=shorten(text.splitlines()[-1]),
        hint="take the kernel's own range list instead (VFIO or iommufd), "
        "or use --devices/--groups with fewer members",
    )
