# SPDX-License-Identifier: Apache-2.0
"""Error lines of VMMs, of other users of VFIO, and of the kernel: what failed, and what they say.

A paste is read line by line (`error_line_table` has what is known), as people paste it: with time
stamps, repeated, quoted, wrapped in the words of a management layer. The same failure told twice
becomes one; what the lines state of the host (a width, a limit, a listing) is kept as clues.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.diagnosis.clues import HEX, WIDTH, ClueReader, Clues
from vmm_iova.diagnosis.errnos import NAMES, errno_name, errno_of_words
from vmm_iova.diagnosis.error_line_matcher import fold
from vmm_iova.diagnosis.error_line_table import ANY_VFIO, Form, read_line
from vmm_iova.diagnosis.failure import MOST_FAILURES, Failure, each_once
from vmm_iova.diagnosis.why import Api, Op, Part, Why
from vmm_iova.errors import HostDataError
from vmm_iova.patterns import regex
from vmm_iova.ranges import ADDRESS_LAST, BASE_PAGE
from vmm_iova.readers.failed_maps import FailedMap, read_failed_map
from vmm_iova.record import record, replace
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmm_iova.diagnosis.error_line_matcher import Match

RECOGNISED = (
    "lines in which a map, an unmap, an attach or the setup of a device fails, of QEMU, KVM, "
    "libvirt, Cloud Hypervisor, Firecracker, crosvm, kvmtool, OpenVMM, DPDK, SPDK, libvfn and "
    "strace, and the kernel's own (VFIO, DMAR, AMD-Vi, SMMU, RMRR, RLIMIT_MEMLOCK, PCI BARs)"
)
"""What `parse_report` takes, as a clause."""
MOST_LINES, MOST_CHARACTERS = 20_000, 4096
"""Lines of a paste that are read, and characters of each."""


@record
class Report:
    """What a paste says.

    Attributes:
        failures: each once, in the order of the paste.
        clues: what it states of the host.
        passed_over: lines that say nothing about a failure.
        notes: what was not read, and why.
    """

    failures: tuple[Failure, ...]
    clues: Clues
    passed_over: int = 0
    notes: tuple[str, ...] = ()


_ERRNO = (
    regex(r"\b(" + "|".join(sorted(NAMES)) + r")\b"),  # strace: = -1 EINVAL
    regex(r"\(os error (\d{1,5})\)"),
    regex(r"\bError\((\d{1,5})\)"),  # {:?} of a Rust errno
    regex(r"= ?-(?!1\b)(\d{1,5})"),  # a plain -1 is what ioctl returned, not the errno
    regex(r"\berror:? -?(\d{1,5})\b"),
    regex(r"\berrno[ =:(]{1,4}-?(\d{1,5})"),
    regex(r"(?:failed|MAP_DMA): -(\d{1,5})\b"),
    regex(r"\bret -(\d{1,5})\b"),
)


def errno_in(text: str) -> str | None:
    """Return the errno that a text names, by name, number or words."""
    for pattern in _ERRNO:
        match = pattern.search(text)
        if match:
            found = match.group(1)
            return found if found in NAMES else errno_name(int(found))
    return errno_of_words(text)


_KEYS = {
    "iova": regex(rf"\b(?:iova|IOVA|gpa)(?:=| = |: ?| )\[?(?P<n>{HEX})"),
    "size": regex(rf"\b(?:size|length|len)(?:=| = |: ?| )(?P<n>{HEX}|\d{{1,20}})\b"),
    "hva": regex(rf"\b(?:user_va|vaddr|hva|va)(?:=| = |: ?| )(?P<n>{HEX})"),
}
_SPAN = regex(rf"\b(?:iova|IOVA|gpa)(?:=| = |: ?| )\[(?P<iova>{HEX}), ?(?P<stop>{HEX})\)")
_PROGRAMS = (
    (regex(r"\bqemu|\bkvm: |QEMU\["), "QEMU"),
    (
        regex(r"cloud-hypervisor|VmBoot\(|VfioDmaMap|VfioMapRegion|VFIO MMIO region|guest BDF"),
        "Cloud Hypervisor",
    ),
    (regex(r"\bcrosvm\b"), "crosvm"),
    (regex(r"\b[Ff]irecracker\b"), "Firecracker"),
    (regex(r"\blkvm\b|\bkvmtool\b"), "kvmtool"),
    (regex(r"\bSPDK\b|spdk|_vfio_iommu_map_dma|vtophys_iommu_map_dma"), "SPDK"),
    (regex(r"\bEAL\b|\bDPDK\b"), "DPDK"),
    (regex(r"\bunvme\b"), "unvme"),
    (regex(r"\blibvirt\b|\bvirError\b|\bLibvirtError\b"), "libvirt"),
)
_RAM = regex(
    r"[Rr]egion (?:\S{0,40}ram\b|dimm|mem|ram-node|/objects/)|\bpc\.ram\b|mach-virt\.ram|"
    r"guest RAM|guest memory(?! map)|VfioDmaMap\("
)
_BAR = regex(
    r"\bBAR\b(?!\?)|MMIO region|VfioMapRegion|to DMA map: .{0,200}guest BDF|mmaps\[|p2p|"
    r"peer-to-peer",
    re.IGNORECASE,
)
_RAM_BASES = (0x0, 0xC_0000, 0xE_0000, 0x10_0000, 0x4000_0000, 0x8000_0000, 1 << 32, 1 << 40)
_NO_GUEST = ("DPDK", "SPDK", "libvfn", "libevpl", "unvme")
_MMIO_FLOOR = 1 << 36  # RAM of a VMM begins lower, or at 1 TiB
_DEVICE = regex(
    r"(?:Request device|device=|client:|devid:|vfio(?: error:)?|vfio-pci|pci|EAL:)\s{0,2}\[?(?:0x)?"
    r"(?P<dev>(?:[0-9a-f]{4}:)?(?:0x)?[0-9a-f]{2}:(?:0x)?[01][0-9a-f]\.[0-7])"
)
_HOLDER = regex(
    r"(?P<driver>[a-z][\w-]{1,30}) (?P<dev>[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]): "
    r"(?:AMD-Vi|iommu|DMAR)"
)
_SMMU_EVENT = regex(r"arm-smmu-v3.{0,200}: event 0x1[0-3] received")
_WORD = regex(r"(0x[0-9a-f]{16})\s*$")


def parse_reports(text: str, name: str = "the report") -> tuple[Report, ...]:
    """Read a paste; each row of a list of failed maps (`NAME IOVA SIZE ERRNO FACTS`) by itself.

    Raises:
        HostDataError: no line of it tells of a failed call.
    """
    rows, others = [], []
    for number, line in enumerate(text.splitlines()[:MOST_LINES], 1):
        stripped = line.strip()
        row = None if stripped.startswith("#") else read_failed_map(stripped[:MOST_CHARACTERS])
        if row is None:
            others.append(line)
        else:
            rows.append((number, stripped, row))
    if not rows:
        return (parse_report(text, name),)
    # Each row is of another host: what one states is no clue to the next.
    reports = [_row_report(number, line, row) for number, line, row in rows]
    try:
        return (*reports, parse_report("\n".join(others), name))
    except HostDataError:
        return tuple(reports)


def _row_report(number: int, line: str, row: FailedMap) -> Report:
    reading = ClueReader()
    reading.read(line, [])
    errno = errno_in(row.said) or ("EFAULT" if WIDTH.search(row.said) else None)
    failure = Failure(
        op=Op.MAP,
        errno=errno,
        iova=row.iova,
        size=row.size or None,
        program=_program(line),
        part=_part(line, row.iova, _program(line)),
        line=number,
        text=line,
        name=row.name,
    )
    return Report((failure,), reading.done())


def parse_report(text: str, name: str = "the report") -> Report:
    """Read a paste as one report.

    Args:
        text: one line or many.
        name: what to call it in messages.

    Raises:
        HostDataError: no line of it tells of a failed call.

    Complexity: O(size x forms), for at most 20,000 lines of 4096 characters.
    Synchronization: none required.
    """
    every = text.splitlines()
    lines = [raw[:MOST_CHARACTERS] for raw in every[:MOST_LINES]]
    found: list[Failure] = []
    reading = ClueReader()
    passed_over = 0
    for number, raw in enumerate(_joined(lines), 1):
        line = raw.strip().strip("\"'`> ")
        if not line or line.startswith("#"):
            continue
        failures, signs = _failures(line, number)
        reading.read(line, signs)
        found += failures
        passed_over += not failures
    if not found:
        raise HostDataError(
            f"{name}: none of its {max(len(every), 1)} lines tells of a failed call",
            source=name,
            text=shorten(text.strip()),
            hint=f"{RECOGNISED} are recognised: paste the line whole, or state the call: "
            "vmm-iova explain --iova 0x382000000000 --size 256M --errno EINVAL",
        )
    clues = reading.done(lines)
    kept = [_by_clues(item, clues) for item in each_once(found)]
    notes = []
    if len(every) > MOST_LINES:
        notes.append(f"only the first {MOST_LINES} of {len(every)} lines were read")
    if len(kept) > MOST_FAILURES:
        notes.append(f"only the first {MOST_FAILURES} failures are told")
    return Report(tuple(kept[:MOST_FAILURES]), clues, passed_over, tuple(notes))


def _by_clues(failure: Failure, clues: Clues) -> Failure:
    """Give a map whose own line is the same on both interfaces the one that the rest tells of."""
    if failure.api is not None or failure.op not in (Op.MAP, Op.UNMAP):
        return failure
    return replace(failure, api=clues.api)


def _joined(lines: Sequence[str]) -> Iterator[str]:
    """Put the address of an SMMUv3 event, the third of the words that follow it, into its line."""
    for index, line in enumerate(lines):
        words = []
        if _SMMU_EVENT.search(line):
            words = [
                word[1] for more in lines[index + 1 : index + 5] if (word := _WORD.search(more))
            ]
        yield f"{line} iova: {words[2]}" if len(words) > 2 else line


def _failures(line: str, number: int) -> tuple[list[Failure], list[Why]]:
    """Read what one line tells; management layers put several errors into one."""
    folded = fold(line)
    first, signs = read_line(folded)
    if first is None:
        if not _about_vfio(folded) or errno_in(line) is None:
            return [], signs  # too little said for a failure
        return [_failure(ANY_VFIO, None, line, folded, number)], signs
    form, template, match = first
    found: list[Failure] = []
    again: Match | None = match
    while again is not None and len(found) < MOST_FAILURES:
        found.append(_failure(form, again, line, folded, number))
        again = template.search(folded, again.stop)
    return found, signs


def _about_vfio(folded: str) -> bool:
    """Tell whether a line that no form knows is one of a program that failed with VFIO."""
    return any(word in folded for word in ANY_VFIO.templates) and any(
        word in folded for word in _FAILED
    )


_FAILED = ("fail", "error", "cannot", "can't", "could not", "couldn't", "unable")


def _failure(form: Form, match: Match | None, line: str, folded: str, number: int) -> Failure:
    got = match.values if match is not None else {}
    rest = folded[match.start :] if match is not None else folded
    shown = line[match.start :] if match is not None and len(line) == len(folded) else line
    iova, size = _place_of(form, got, shown)
    program = _program(line)
    errno = form.errno if form.sign else None
    if errno is None and got.get("errno_"):
        errno = errno_name(int(got["errno_"][:5]))
    if errno is None and form.sign not in (Why.HOLE,):
        errno = errno_in(shown) or errno_in(line) or form.errno
    if errno is None and WIDTH.search(rest):
        errno = "EFAULT"  # what intel_iommu_map returns beside that line
    if form.op in (Op.START, Op.BAR, Op.FAULT):
        errno = form.errno  # it is not the errno of a call
    holder = _HOLDER.search(line)
    program = form.program if form.program == "kernel" else (program or form.program)
    api = form.api
    # QEMU returns errno after it has printed a message, which may change it: type1 has no ENOENT.
    unwound = (program, form.op, errno) == ("QEMU", Op.MAP, "ENOENT") and api != Api.IOMMUFD
    return Failure(
        op=form.op,
        api=api,
        errno=None if unwound else errno,
        iova=iova,
        size=size or None,
        hva=_number(got.get("hva")) if got.get("hva") else _key("hva", shown),
        program=program,
        # Of a line of the kernel alone nobody knows whose address it is.
        part=form.part
        or _part(line, iova if form.op is Op.MAP and program != "kernel" else None, program),
        sign=form.sign,
        line=number,
        text=line,
        echo=form.echo,
        warning=form.warning,
        device=_device_of(got.get("dev"), line, holder),
        driver=holder["driver"] if holder else None,
        group=got.get("group"),
        node=_node(got.get("node"), form),
        unwound=unwound,
        likely=form.likely,
    )


def _place_of(form: Form, got: dict[str, str], shown: str) -> tuple[int | None, int | None]:
    """Where it should go: from the form's places, else from keys of the line."""
    address = got.get("addr")
    if address is not None:
        return int(address, 16) & ADDRESS_LAST, None
    if "bits" in got:
        return _hex(got.get("iova")), BASE_PAGE  # the line names the last page of the map
    bare = form.api is not None and not (got.get("iova") or "0x").startswith("0x")
    iova = _hex(got.get("iova")) if bare else _number(got.get("iova"))
    size = _hex(got.get("size")) if bare else _number(got.get("size"))
    last = _hex(got.get("last"))
    if last is not None and iova is not None and last >= iova:
        # Some print the address behind the last byte: no last byte is a multiple of 4 KiB.
        size = last - iova + (last % BASE_PAGE != 0)
    span = _SPAN.search(shown)
    if iova is None and span is not None:
        iova = _number(span["iova"])
        size = max(int(span["stop"], 16) - int(span["iova"], 16), 0)
    if form.op in (Op.START, Op.BAR):
        return iova, size
    return (
        _key("iova", shown) if iova is None else iova,
        _key("size", shown) if size is None else size,
    )


def _hex(text: str | None) -> int | None:
    value = int(text, 16) if text else None
    return value if value is not None and value <= ADDRESS_LAST else None


def _number(text: str | None) -> int | None:
    """A number as C prints it: hex with 0x, else decimal."""
    if not text:
        return None
    if text[:2] == "0x":
        return _hex(text) if re.fullmatch(r"0x[0-9a-fA-F]{1,64}", text) else None
    value = int(text) if text.isdecimal() and text.isascii() and len(text) < 21 else None
    return value if value is not None and value <= ADDRESS_LAST else None


def _key(name: str, text: str) -> int | None:
    match = _KEYS[name].search(text)
    return _number(match["n"]) if match else None


def _program(line: str) -> str | None:
    return next((name for pattern, name in _PROGRAMS if pattern.search(line)), None)


def _part(line: str, iova: int | None, program: str | None) -> Part | None:
    """What was to be mapped: by the words, else by where VMMs put RAM and firmware puts BARs."""
    if _BAR.search(line):
        return Part.BAR
    if _RAM.search(line):
        return Part.RAM
    if iova is None or program in _NO_GUEST:
        return None
    if iova in _RAM_BASES:
        return Part.RAM
    return Part.BAR if iova >= _MMIO_FLOOR else None


def _device_of(named: str | None, line: str, holder: re.Match[str] | None) -> str | None:
    text = holder["dev"] if holder else named
    if text is None:
        match = _DEVICE.search(line)
        text = match["dev"] if match else None
    if text is None:
        return None
    bdf = text.strip("[]:").replace("0x", "")
    if not re.fullmatch(r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", bdf):
        return None
    return bdf if bdf.count(":") == 2 else f"0000:{bdf}"


def _node(rest: str | None, form: Form) -> str | None:
    if rest is not None:
        return f"/dev/vfio/{rest.strip(':.')}"
    if form.node is not None:
        return form.node
    return (
        "/dev/iommu" if form.op is Op.OPEN and any("iommu" in t for t in form.templates) else None
    )
