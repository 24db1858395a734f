# SPDX-License-Identifier: Apache-2.0
"""Host facts from pasted text: region lines, range lists and kernel log lines, mixed as they come.

Each line is offered to each reader in turn. A line that begins like a fact but is damaged is an
error, because a hole that is lost lets a guest fail later; a line that is no fact is counted and
reported, never dropped in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vmm_iova.errors import HostDataError
from vmm_iova.host.dumps import is_listed, read_dumps
from vmm_iova.host.facts import (
    PASTED,
    Device,
    EmptyRegion,
    Group,
    IommuUnit,
    KernelRanges,
    Note,
    RegionKind,
    ReservedRegion,
    Source,
    StatedWidth,
)
from vmm_iova.host.host import Host
from vmm_iova.host.paste import (
    MAP_LINE,
    clean,
    header_group,
    heading_of,
    is_labelled,
    looks_like_range,
    looks_like_region,
    ranges_in,
    region_body,
    take_group,
)
from vmm_iova.host.regions import check_truncation, is_region_line, parse_region_line, tidy
from vmm_iova.host.registers import cpu_address_bits
from vmm_iova.patterns import regex
from vmm_iova.plain import by_number, one_line
from vmm_iova.ranges import ADDRESS_LAST, AddrRange, MappableRanges
from vmm_iova.readers.failed_maps import read_failed_map
from vmm_iova.record import collector, field
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable

_DMAR = regex(r"\b(?:DMAR|dmar)(?:-IR)?:\s*(?P<rest>.*)")
_UNIT = regex(
    r"(?P<name>dmar\d+|IOMMU \d+): reg_base_addr (?P<base>[0-9a-f]+) ver \S+ "
    r"cap (?P<cap>[0-9a-f]{1,16}) ecap (?P<ecap>[0-9a-f]{1,16})\b"
)
_RMRR = regex(r"RMRR base: (?P<start>0x[0-9a-f]+) end: (?P<last>0x[0-9a-f]+)")
_HAW = regex(r"Host address width (?P<bits>\d{1,3})\b")
_TOO_NARROW = regex(r"iommu width \((?P<bits>\d{1,2})\) is not sufficient")
_MUST_READ = ("reg_base_addr", "Host address width", "iommu width (")
_EFR = regex(r"AMD-Vi: Extended features \((?P<efr>0x[0-9a-f]+)(?:, (?P<efr2>0x[0-9a-f]+))?\)")
_RELEASE = regex(r"Linux version (?P<release>\d+\.\d+\S*)")
_KIND = regex(r"#.*?\bkind:\s*(?P<kind>.*)")
_ARCH = regex(r"#\s*arch:\s*(?P<arch>\w+)")
_SOURCE = regex(r"#\s*source:\s*(?P<text>.*)")
_LOG_LINE = regex(r"(?:<\d+>)?\[[ \d.]+\]|\[?[A-Z][a-z]{2} .*kernel:|DMAR|ACPI|AMD-Vi|iommu:")

_Region = TypeVar("_Region", ReservedRegion, EmptyRegion)


@collector
class _Reading:
    """What has been read of one host so far."""

    name: str
    regions: list[ReservedRegion] = field(default_factory=list)
    empty: list[EmptyRegion] = field(default_factory=list)
    region_bytes: dict[str, list[str]] = field(default_factory=dict)
    ranges: list[tuple[AddrRange, Source]] = field(default_factory=list)
    units: list[IommuUnit] = field(default_factory=list)
    amd_units: int = 0
    rmrrs: list[ReservedRegion] = field(default_factory=list)
    widths: list[StatedWidth] = field(default_factory=list)
    host_width: int | None = None
    cpu_bits: int | None = None
    cpu_source: str = ""
    release: str | None = None
    arch: str | None = None
    origin: str = ""
    group: str = PASTED
    notes: list[Note] = field(default_factory=list)
    unread: list[tuple[int, str]] = field(default_factory=list)
    failed_maps: int = 0
    map_lines: int = 0
    members: dict[str, str] = field(default_factory=dict)
    empty_regions: bool = False
    facts: int = 0
    log_lines: int = 0
    pairs_are: str | None = None
    bare: list[int] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)


def parse_text(text: str, name: str, kind: str | None = None) -> tuple[Host, ...]:
    """Read the facts of one or more hosts from a text.

    Understood, in any mixture: `reserved_regions` lines (also with the file name in front, as
    `grep .` prints them), IOVA ranges (`START - LAST`, `START..LAST`, `[START, LAST]`) that say
    what they are (a label, a heading such as `usable IOVA ranges`, or `# kind: iova_ranges`),
    listings of `lspci`, `lscpu` and /sys/kernel/iommu_groups, and kernel log lines about DMAR
    units, RMRRs, AMD-Vi features and too narrow widths, with or without time stamps. `#` begins
    a comment; `# source:` and `# arch:` say where and what the host is.

    Args:
        text: the text; a text whose `# kind:` says `collection` holds one host a paragraph.
        name: its name for messages.
        kind: what it is, in the words of a `# kind:` line, where the text does not say.

    Returns:
        The hosts, one unless the text is a collection.

    Raises:
        HostDataError: no facts at all, a damaged line, or a text that is cut off.

    Complexity: O(n log n) in lines.
    """
    lines = [one_line(line) for line in text.splitlines()]
    kind = kind or next((m["kind"] for m in map(_KIND.match, lines) if m), "")
    numbered = list(enumerate(lines, 1))
    if "collection" not in kind:
        return (_host(_read(numbered, name, kind), text),)
    blocks: list[list[tuple[int, str]]] = [[]]
    for number, line in numbered:
        if line.startswith("#"):
            continue
        if line.strip():
            blocks[-1].append((number, line))
        elif blocks[-1]:
            blocks.append([])
    blocks = [block for block in blocks if block]
    origin = next((m["text"] for m in map(_SOURCE.match, lines) if m), "")
    arch = next((m["arch"] for m in map(_ARCH.match, lines) if m), None)
    hosts = []
    for index, block in enumerate(blocks, 1):
        reading = _read(block, name if len(blocks) == 1 else f"{name}#{index}", kind)
        reading.origin, reading.arch = origin, arch
        hosts.append(_host(reading, "\n".join(line for _, line in block)))
    return tuple(hosts)


def _read(lines: list[tuple[int, str]], name: str, kind: str) -> _Reading:
    reading = _Reading(name, pairs_are=heading_of(kind))
    content = False
    for number, line in lines:
        stripped = line.strip()
        if not stripped:
            continue
        if stripped.startswith("#"):
            source, arch = _SOURCE.match(stripped), _ARCH.match(stripped)
            reading.arch = arch["arch"] if arch else reading.arch
            reading.origin = reading.origin or (source["text"] if source else "")
            if not source:
                reading.pairs_are = heading_of(stripped) or reading.pairs_are
            continue
        content = True
        body = clean(line)
        if body:
            _read_line(reading, body, Source(name.partition("#")[0], number))
    reading.empty_regions = not content and ("reserved_regions" in kind or not kind)
    return reading


def _read_line(reading: _Reading, line: str, source: Source) -> None:
    if is_region_line(line):  # most lines of a file of the kernel's; nothing else looks so
        _read_region(reading, line, source, reading.group)
        return
    header = header_group(line)
    if header is not None:
        reading.group = header
        reading.region_bytes.setdefault(header, [])
        reading.facts += 1  # an empty file is a fact, too
        return
    cpu = cpu_address_bits(line)
    if cpu is not None:
        if reading.cpu_bits is None or cpu < reading.cpu_bits:
            reading.cpu_bits, reading.cpu_source = cpu, str(source)
        reading.facts += 1
        return
    named, device, body = take_group(line)
    group = device or named or reading.group
    if device:
        reading.members[device] = device
    if ranges_in(body) is not None:
        reading.facts += _read_pairs(reading, body, source)
        return
    if _read_log(reading, line, source):
        reading.facts += 1
        return
    if is_listed(line):
        return  # `read_dumps` has it
    heading = heading_of(line)
    if heading is not None:
        reading.pairs_are = heading
        return
    if read_failed_map(line) is not None:
        reading.failed_maps += 1
        return
    if not _read_region(reading, region_body(body), source, group):
        _keep_unread(reading, line, source)


def _read_region(reading: _Reading, body: str, source: Source, group: str) -> bool:
    region = parse_region_line(body, source, group)
    if region is None:
        return False
    reading.facts += 1
    reading.region_bytes.setdefault(group, []).append(body)
    if isinstance(region, EmptyRegion):
        reading.empty.append(region)
    else:
        reading.regions.append(region)
    return True


def _keep_unread(reading: _Reading, line: str, source: Source) -> None:
    """Count a line that is no fact; refuse one that is about a region, but cannot be read."""
    if _LOG_LINE.match(line):
        reading.log_lines += 1
    elif MAP_LINE.match(line):
        reading.map_lines += 1
    elif looks_like_region(line):
        raise HostDataError(
            f"{source}: {shorten(line)!r} is about a region, but not in a form that can be read",
            source=source.name,
            line=source.line,
            text=shorten(line),
            hint="a region line reads: 0xSTART 0xLAST type, both in hex and both included",
        )
    else:
        reading.unread.append((source.line or 0, line))


def _read_pairs(reading: _Reading, line: str, source: Source) -> bool:
    """Take pairs of addresses for what the text says that they are; a bare pair is no fact.

    A pair that stood for the kernel's list by itself would make an RMRR the only usable place.
    """
    kind = "ranges" if is_labelled(line) else reading.pairs_are
    for start, last in ranges_in(line) or ():
        if last > ADDRESS_LAST or start > ADDRESS_LAST:
            raise HostDataError(
                f"{source}: IOVA range {shorten(line)!r} reaches beyond 2^64-1",
                source=source.name,
                line=source.line,
                text=shorten(line),
            )
        if last < start:
            raise HostDataError(
                f"{source}: IOVA range last {last:#x} is below its start {start:#x}",
                source=source.name,
                line=source.line,
                text=shorten(line),
                hint="ranges are written START - LAST, both in hex and both included",
            )
        span = AddrRange(start, last)
        if kind == "ranges":
            reading.ranges.append((span, source))
        elif kind == "rmrr":
            _read_rmrr(reading, start, last, source)
        elif kind == "reserved":
            region = ReservedRegion(span, RegionKind.RESERVED, "reserved", source, reading.group)
            reading.region_bytes.setdefault(reading.group, [])
            reading.regions.append(region)
    if kind is None:
        reading.bare.append(source.line or 0)
    return kind is not None


def _read_log(reading: _Reading, line: str, source: Source) -> bool:
    release = _RELEASE.search(line)
    if release:
        reading.release = release["release"]
        return True
    efr = _EFR.search(line)
    if efr is None and "AMD-Vi: Extended features (0x" in line:
        raise HostDataError(
            f"{source}: log line {shorten(line)!r} is cut off", source=source.name, line=source.line
        )
    if efr:
        # The log has always printed EFR first; the order of the sysfs file is another matter.
        reading.units.append(
            IommuUnit(f"ivhd{reading.amd_units}", features=efr["efr"], source=source)
        )
        reading.amd_units += 1
        return True
    dmar = _DMAR.search(line)
    if dmar is None:
        return False
    rest = dmar["rest"]
    unit, rmrr = _UNIT.search(rest), _RMRR.search(rest)
    width, narrow = _HAW.search(rest), _TOO_NARROW.search(rest)
    if unit:
        cap, ecap = int(unit["cap"], 16), int(unit["ecap"], 16)
        name = unit["name"].replace("IOMMU ", "dmar")
        reading.units.append(IommuUnit(name, cap=cap, ecap=ecap, source=source))
    elif rmrr:
        _read_rmrr(reading, int(rmrr["start"], 16), int(rmrr["last"], 16), source)
    elif width:
        reading.host_width = int(width["bits"])
    elif narrow and 1 <= int(narrow["bits"]) <= 64:
        reading.widths.append(StatedWidth(int(narrow["bits"]), source))
    elif "Firmware Bug" in rest:
        reading.notes.append(Note(f"{source}: {shorten(rest, 160)}"))
    elif rest.startswith("RMRR") or any(words in rest for words in _MUST_READ):
        raise HostDataError(
            f"{source}: log line {shorten(rest)!r} is cut off or garbled",
            source=source.name,
            line=source.line,
            text=shorten(rest),
            hint="take the lines again, e.g. with: dmesg | grep -i dmar",
        )
    return True


def _read_rmrr(reading: _Reading, start: int, last: int, source: Source) -> None:
    if last == (start - 1) & ADDRESS_LAST:
        reading.notes.append(Note(f"{source}: RMRR of length 0 at {start:#x} is empty: ignored"))
        return
    if last < start or last > ADDRESS_LAST:
        raise HostDataError(
            f"{source}: RMRR end {last:#x} is below its base {start:#x}",
            source=source.name,
            line=source.line,
        )
    reading.rmrrs.append(
        ReservedRegion(AddrRange(start, last), RegionKind.FIRMWARE, "RMRR", source)
    )


def _host(reading: _Reading, text: str) -> Host:
    name = reading.name
    dumps = read_dumps(text.splitlines(), name)
    if not reading.facts and not reading.empty_regions and not dumps:
        raise _no_facts(reading, text)
    for number, line in reading.unread if reading.ranges else ():
        if looks_like_range(line):
            raise HostDataError(
                f"{name}:{number}: {shorten(line)!r} stands among IOVA ranges, but cannot be read",
                source=name,
                line=number,
                text=shorten(line),
                hint="ranges are written START - LAST, both in hex and both included",
            )
    for group, body in reading.region_bytes.items():
        joined = "".join(f"{line}\n" for line in body)
        check_truncation(
            joined, f"{name} (group {group})" if group != PASTED else name, pasted=True
        )
    regions, notes = tidy(reading.regions, reading.empty, name)
    notes = [*reading.notes, *notes, *_unread_note(reading)]
    rmrrs, more = tidy(reading.rmrrs, [], name)
    notes += more
    if reading.host_width is not None:
        notes.append(
            Note(
                f"{name}: host address width {reading.host_width} of the DMAR table bounds "
                "*physical* DMA addresses (emulated VT-d prints its own width there); it never "
                "limits IOVAs",
                False,
            )
        )
    notes += dumps.notes
    if reading.bare:
        notes.append(Note(f"{name}: {_bare(reading)}; {_BARE_HINT}"))
    groups = [*reading.region_bytes] or ([PASTED] if reading.empty_regions else [])
    groups += [group for group in dumps.groups if group not in groups]
    regions_of = _by_group(regions)
    empty_of = _by_group(reading.empty)
    return Host(
        name=name,
        origin=reading.origin or f"text {name}",
        arch=reading.arch or dumps.arch,
        release=reading.release,
        groups=tuple(
            Group(
                group,
                devices=(group,) if group in reading.members else dumps.groups.get(group, ()),
                regions=_regions_of(reading, group, regions_of),
                empty_regions=tuple(empty_of.get(group, ())),
            )
            for group in sorted(groups, key=by_number)
        ),
        units=tuple(reading.units),
        devices=(
            *(Device(name, group=name) for name in sorted(reading.members)),
            *(item for item in dumps.devices if item.name not in reading.members),
        ),
        kernel_ranges=_kernel_ranges(reading, notes),
        widths=tuple(reading.widths),
        log_regions=rmrrs,
        notes=tuple(notes),
        cpu_bits=reading.cpu_bits or dumps.cpu_bits,
        cpu_source=reading.cpu_source or "/proc/cpuinfo",
        platform=dumps.platform,
    )


def _by_group(items: Iterable[_Region]) -> dict[str | None, list[_Region]]:
    """Sort regions by the group that they were read from: a text may have as many as lines."""
    by_group: dict[str | None, list[_Region]] = {}
    for item in items:
        by_group.setdefault(item.group, []).append(item)
    return by_group


def _regions_of(
    reading: _Reading, group: str, regions: dict[str | None, list[ReservedRegion]]
) -> tuple[ReservedRegion, ...] | None:
    """Regions of a group; None where a listing names it and no list of regions does."""
    known = group in reading.region_bytes or group == PASTED
    return tuple(regions.get(group, ())) if known else None


_BARE_HINT = (
    "put '# kind: iova_ranges' above them if they are the kernel's usable ranges (or give --facts "
    "ranges:FILE), '# kind: rmrr' or '# kind: reserved_regions' if they are those"
)


def _bare(reading: _Reading) -> str:
    first, count = reading.bare[0], len(reading.bare)
    what = f"line {first} is a pair" if count == 1 else f"{count} lines, from {first} on, are pairs"
    return f"{what} of addresses, and nothing says of what"


def _kernel_ranges(reading: _Reading, notes: list[Note]) -> tuple[KernelRanges, ...]:
    """Make one list of the range lines; overlapping ones are cut, so that a piece is inside one."""
    if not reading.ranges:
        return ()
    cut: list[AddrRange] = []
    for item, source in sorted(reading.ranges, key=lambda pair: pair[0]):
        below = cut[-1] if cut else None
        if below is None or item.start > below.last:
            cut.append(item)
        elif item.last <= below.last:
            notes.append(Note(f"{source}: range {item} repeats part of {below}", item != below))
        else:
            notes.append(
                Note(f"{source}: range {item} overlaps {below}: cut at {below.last + 1:#x}")
            )
            cut.append(AddrRange(below.last + 1, item.last))
    return (KernelRanges(MappableRanges(cut), "text", reading.ranges[0][1]),)


def _unread_note(reading: _Reading) -> list[Note]:
    notes = []
    if reading.log_lines:
        passed = f"{reading.log_lines} other kernel log lines were passed over"
        notes.append(Note(f"{reading.name}: {passed}", False))
    if not reading.unread:
        return notes
    number, line = reading.unread[0]
    count = len(reading.unread)
    numbers = ", ".join(str(n) for n, _ in reading.unread[:8]) + (", ..." if count > 8 else "")
    what = f"line {number} was" if count == 1 else f"{count} lines ({numbers}) were"
    said = f"{reading.name}: {what} not understood, the first being {shorten(line)!r}"
    return [*notes, Note(said)]


def _no_facts(reading: _Reading, text: str) -> HostDataError:
    if reading.failed_maps:
        return HostDataError(
            f"{reading.name} lists {reading.failed_maps} failed maps and no host facts",
            source=reading.name,
            hint="give it to check: vmm-iova check --host HOST --maps FILE",
        )
    if reading.map_lines:
        return HostDataError(
            f"{reading.name} is a map in the manner of /proc/iomem, which says nothing about IOVA",
            source=reading.name,
            hint="give what the kernel said: reserved_regions, its range list, or a snapshot",
        )
    if reading.bare:
        return HostDataError(
            f"{reading.name}: {_bare(reading)}", source=reading.name, hint=_BARE_HINT
        )
    lines = text.count("\n") + 1
    return HostDataError(
        f"{reading.name}: none of its {lines} lines is a fact about a host",
        source=reading.name,
        text=shorten(reading.unread[0][1]) if reading.unread else None,
        hint="understood are reserved_regions lines, IOVA ranges, kernel log lines about DMAR and "
        "AMD-Vi, and snapshots written by vmm-iova capture",
    )
