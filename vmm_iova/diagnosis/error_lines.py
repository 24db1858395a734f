# SPDX-License-Identifier: Apache-2.0
"""Error lines of VMMs, of other users of VFIO, and of the kernel: what failed, and what they say.

A paste is read line by line, as people paste it: with time stamps, repeated, quoted, wrapped in
the words of a management layer. The same failure told twice becomes one; what the lines state of
the host (a width, a vendor, a limit) is kept as clues.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmm_iova.diagnosis.causes import NAMES, Why, errno_name, errno_of_words
from vmm_iova.diagnosis.forms import FORMS, HEX, Form
from vmm_iova.errors import HostDataError
from vmm_iova.ranges import ADDRESS_LAST, AddrRange
from vmm_iova.readers.failed_maps import is_failed_map, parse_failed_maps
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator


RECOGNISED = (
    "lines in which a map, an unmap, an attach or the setup of a device fails, of QEMU, KVM, "
    "libvirt, Cloud Hypervisor, Firecracker, crosvm, kvmtool, OpenVMM, DPDK, SPDK, libvfn and "
    "strace, and the kernel's own (VFIO, DMAR, AMD-Vi, SMMU, RMRR, RLIMIT_MEMLOCK)"
)
"""What `parse_report` takes, as a clause."""
_PAGE = 4096  # the smallest of any IOMMU
_LONGEST = 4096  # characters of a line; the forms take quadratic time on hostile ones


@dataclass(frozen=True, slots=True)
class Failure:
    """One call that failed.

    Attributes:
        op: what it was: one of `errnos.OPS`.
        api: `type1`, `iommufd`, or None when the line does not tell.
        errno: name of the errno, or None.
        iova: first IOVA, or None.
        size: bytes, or None.
        hva: address in the process, or None.
        program: who said so, or None.
        part: what was to be mapped: `ram`, `bar`, or None when the line does not tell.
        sign: what the words alone settle, or None.
        line: number of the line, from 1.
        text: the line.
        name: what a list of failed maps calls it, or None.
        echo: True if the line only repeats that some call failed.
    """

    op: str
    api: str | None = None
    errno: str | None = None
    iova: int | None = None
    size: int | None = None
    hva: int | None = None
    program: str | None = None
    part: str | None = None
    sign: Why | None = None
    line: int = 1
    text: str = ""
    name: str | None = None
    echo: bool = False

    @property
    def range(self) -> AddrRange | None:
        """The IOVAs, when both ends are known and do not wrap."""
        if self.iova is None or not self.size or self.iova + self.size - 1 > ADDRESS_LAST:
            return None
        return AddrRange.from_size(self.iova, self.size)

    @property
    def place(self) -> AddrRange | None:
        """The IOVAs, or the page at `iova` where the size is not known."""
        if self.iova is None or self.size:
            return self.range
        start = self.iova // _PAGE * _PAGE if self.op == "fault" else self.iova
        return AddrRange(start, min(start + _PAGE - 1, ADDRESS_LAST))


@dataclass(frozen=True, slots=True)
class Clues:
    """What a report states of the host, beside the failure.

    Attributes:
        width: address bits of the IOMMU that the kernel printed.
        vendor: `amd`, `intel` or `arm`, or None.
        cpu_bits: physical address bits that were passed, or None.
        memlock: limit of locked memory in bytes that was passed, or None.
        entries: limit on mappings that was passed, or None.
        client: True if the CPU is an Intel desktop or laptop part, whose IOMMUs have 39 bits.
        signs: causes that the kernel's log named, each with its line.
        devices: PCI devices that were named.
        groups: IOMMU groups that were named.
    """

    width: int | None = None
    vendor: str | None = None
    cpu_bits: int | None = None
    memlock: int | None = None
    entries: int | None = None
    client: bool = False
    signs: tuple[tuple[Why, str], ...] = ()
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a paste says.

    Attributes:
        failures: each once, in the order of the paste.
        clues: what it states of the host.
        passed_over: lines that say nothing about a failure.
    """

    failures: tuple[Failure, ...]
    clues: Clues
    passed_over: int = 0


def _errno_in(text: str) -> str | None:
    for pattern in _ERRNO:
        match = pattern.search(text)
        if match:
            found = match.group(1)
            return found if found in NAMES else errno_name(int(found))
    return errno_of_words(text)


_ERRNO = (
    re.compile(r"\b(" + "|".join(sorted(NAMES)) + r")\b"),  # strace: = -1 EINVAL
    re.compile(r"\(os error (\d+)\)"),
    re.compile(r"\bError\((\d+)\)"),  # {:?} of a Rust errno
    re.compile(r"= -(?!1\b)(\d+)"),  # a plain -1 is what ioctl returned, not the errno
    re.compile(r"\berror:? (\d+)\b"),
    re.compile(r"\berrno[ =:(]+-?(\d+)"),
    re.compile(r"(?:failed|MAP_DMA): -(\d+)\b"),
)


def _number(text: str | None) -> int | None:
    if not text or not re.fullmatch(r"(?:0x)?[0-9a-fA-F]+", text):
        return None
    value = int(text, 16) if text[:2] == "0x" else int(text, 10) if text.isdecimal() else None
    return value if value is not None and value <= ADDRESS_LAST else None


_KEYS = {
    "iova": re.compile(rf"\b(?:iova|IOVA|gpa)(?:=| = |: ?| )\[?(?P<n>{HEX})"),
    "size": re.compile(rf"\b(?:size|length|len)(?:=| = |: ?| )(?P<n>{HEX}|\d+)\b"),
    "hva": re.compile(rf"\b(?:user_va|vaddr|hva|va)(?:=| = |: ?| )(?P<n>{HEX})"),
}
_SPAN = re.compile(rf"\b(?:iova|IOVA|gpa)(?:=| = |: ?| )\[(?P<iova>{HEX}), ?(?P<stop>{HEX})\)")

_PROGRAMS = (
    (re.compile(r"\bqemu|\bkvm: |QEMU\["), "QEMU"),
    (
        re.compile(
            r"cloud-hypervisor|VmBoot\(|VfioDmaMap|VfioMapRegion|VFIO MMIO region|guest BDF"
        ),
        "Cloud Hypervisor",
    ),
    (re.compile(r"\bcrosvm\b"), "crosvm"),
    (re.compile(r"\b[Ff]irecracker\b"), "Firecracker"),
    (re.compile(r"\blkvm\b|\bkvmtool\b"), "kvmtool"),
    (re.compile(r"\bSPDK\b|spdk|_vfio_iommu_map_dma"), "SPDK"),
    (re.compile(r"\bEAL\b|\bDPDK\b"), "DPDK"),
    (re.compile(r"\bunvme\b"), "unvme"),
    (re.compile(r"\blibvirt\b|\bvirError\b"), "libvirt"),
)
_RAM = re.compile(
    r"[Rr]egion (?:\S*ram\b|dimm|mem|ram-node|/objects/)|\bpc\.ram\b|mach-virt\.ram|"
    r"guest RAM|guest memory(?! map)|VfioDmaMap\("
)
_BAR = re.compile(
    r"\bBAR\b(?!\?)|MMIO region|VfioMapRegion|to DMA map: .*guest BDF|mmaps\[|p2p|peer-to-peer",
    re.IGNORECASE,
)
_BDF = re.compile(r"(?<!guest BDF: )\b(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]\b")
_GROUP = re.compile(r"\bgroup (\d{1,9})\b|/dev/vfio/(\d{1,9})\b")
_SMMU_EVENT = re.compile(r"arm-smmu-v3.*: event 0x1[0-3] received")
_WORD = re.compile(r"(0x[0-9a-f]{16})\s*$")
_WIDTH = re.compile(r"iommu width \((\d{1,2})\)")
_AMD = re.compile(r"\bAMD\b|\bEPYC\b|\bRyzen\b|AMD-Vi|\bThreadripper\b")
_INTEL = re.compile(r"\bIntel\b|\bXeon\b|\bDMAR\b|\bLake\b|\bi[3579]-\d{3,5}")
# Not the guest's architecture: an arm64 guest may run on an x86 host.
_ARM = re.compile(r"\bSMMU|\barm-smmu")
_CLIENT = re.compile(
    r"\b(?:Alder|Raptor|Meteor|Arrow|Lunar|Tiger|Rocket|Comet|Coffee|Kaby) ?Lake\b|"
    r"\bCore (?:Ultra|i[3579])|\bi[3579]-\d{3,5}"
)
_MASK = re.compile(r"using dma mask ([0-9a-f]*[1-9a-f][0-9a-f]*)\b")
_HOST_BITS = re.compile(r"> host aw-bits (0x[0-9a-f]{1,2}|[1-9]\d?)\b")
_PAST = re.compile(r"past 2\^(\d{2})|KVM memslot refused")
_MEMLOCK_WORDS = re.compile(r"memlock|RLIMIT_MEMLOCK|locked memory", re.IGNORECASE)
_LIMIT = re.compile(r"RLIMIT_MEMLOCK \((\d+)\)")
_ENTRY_LIMIT = re.compile(
    r"dma_entry_limit\D{0,4}(\d+)|Maximum (?:possible|number of) DMA map\w*: (\d+)"
)


def parse_reports(text: str, name: str = "the report") -> tuple[Report, ...]:
    """Read a paste, or a list of failed maps (`NAME IOVA SIZE ERRNO FACTS`), one report a line.

    Raises:
        HostDataError: no line of it tells of a failed call.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) > 1 and all(map(is_failed_map, lines)):
        return tuple(parse_report(line, name) for line in lines)  # each of another host
    return (parse_report(text, name),)


def parse_report(text: str, name: str = "the report") -> Report:
    """Read a paste.

    Args:
        text: one line or many.
        name: what to call it in messages.

    Raises:
        HostDataError: no line of it tells of a failed call.

    Complexity: O(size x forms).
    Synchronization: none required.
    """
    found: list[Failure] = []
    reading = _Clues()
    passed_over = 0
    for number, raw in enumerate(_joined(text.splitlines()), 1):
        line = raw[:_LONGEST].strip().strip("\"'`> ")
        if not line or line.startswith("#"):
            continue
        reading.read(line)
        failures = list(_failures(line, number))
        found += failures
        passed_over += not failures
    if not found:
        raise HostDataError(
            f"{name}: none of its {max(len(text.splitlines()), 1)} lines tells of a failed call",
            source=name,
            text=shorten(text.strip()),
            hint=f"{RECOGNISED} are recognised: paste the line whole, or state the call: "
            "vmm-iova explain --iova 0x382000000000 --size 256M --errno EINVAL",
        )
    return Report(tuple(_once(found)), reading.done(), passed_over)


def _joined(lines: list[str]) -> Iterator[str]:
    """Put the address of an SMMUv3 event, the third of the words that follow it, into its line."""
    for index, line in enumerate(lines):
        words = []
        if _SMMU_EVENT.search(line):
            words = [
                word[1] for more in lines[index + 1 : index + 5] if (word := _WORD.search(more))
            ]
        yield f"{line} iova: {words[2]}" if len(words) > 2 else line


def _failures(line: str, number: int) -> Iterator[Failure]:
    """Read what one line tells; management layers put several errors into one."""
    if is_failed_map(line):
        yield _listed(line, number)
        return
    form, match = next(
        ((item, m) for item in FORMS if (m := item.pattern.search(line))), (None, None)
    )
    if form is None or match is None:
        return
    if form is FORMS[-1] and _errno_in(line) is None:
        return  # too little said for a failure
    for again in form.pattern.finditer(line):
        yield _failure(form, again, line, number)


def _listed(line: str, number: int) -> Failure:
    """Read a row of a list of failed maps."""
    (row,) = parse_failed_maps(line, "the list")
    return Failure(
        op="map",
        errno=_errno_in(row.said) or ("EFAULT" if _WIDTH.search(row.said) else None),
        iova=row.range.start,
        size=row.range.size,
        program=_program(line),
        part=_part(line),
        line=number,
        text=line,
        name=row.name,
    )


def _program(line: str) -> str | None:
    return next((name for pattern, name in _PROGRAMS if pattern.search(line)), None)


def _part(line: str) -> str | None:
    return "bar" if _BAR.search(line) else "ram" if _RAM.search(line) else None


def _failure(form: Form, match: re.Match[str], line: str, number: int) -> Failure:
    got = match.groupdict()
    rest = line[match.start() :]
    iova = _number(got.get("iova")) if "bits" not in got else int(got["iova"], 16)
    if got.get("iova_hex"):
        iova = int(got["iova_hex"], 16) & ADDRESS_LAST
    size = _number(got.get("size")) or int(got.get("size_hex") or "0", 16) or None
    last = got.get("last") or got.get("last_hex")
    if last and iova is not None and int(last, 16) >= iova:
        # Some print the address behind the last byte: no last byte is a multiple of 4 KiB.
        size = int(last, 16) - iova + (int(last, 16) % 4096 != 0)
    if "bits" in got:
        size = _PAGE  # the line names the last page of the map
    span = _SPAN.search(rest)
    if iova is None and span is not None:
        iova = _number(span["iova"])
        size = int(span["stop"], 16) - int(span["iova"], 16)
    iova = _key("iova", rest) if iova is None else iova
    size = _key("size", rest) if size is None else size
    hva = _number(got.get("hva"))
    program = _program(line)
    part = form.part or _part(line)
    errno = form.errno if form.sign else (_errno_in(rest) or _errno_in(line) or form.errno)
    if errno is None and _WIDTH.search(rest):
        errno = "EFAULT"  # what intel_iommu_map returns beside that line
    op = got.get("op") or form.op
    api = form.api
    return Failure(
        op=op,
        api=api,
        errno=errno,
        iova=iova,
        size=size if size else None,
        hva=_key("hva", rest) if hva is None else hva,
        program=form.program if form.program == "kernel" else (program or form.program),
        part=part,
        sign=form.sign,
        line=number,
        text=line,
        echo=form.echo,
    )


def _key(name: str, text: str) -> int | None:
    match = _KEYS[name].search(text)
    return _number(match["n"]) if match else None


def _once(found: list[Failure]) -> Iterator[Failure]:
    """Leave out what is told again, with fewer facts or with the same.

    QEMU prints the ioctl's failure and then the call's; the kernel logs the cause beside it.
    """
    kept: list[Failure] = []
    for item in [item for item in found if not item.echo] or found:
        twin = next((index for index, old in enumerate(kept) if _same(old, item)), None)
        if twin is None:
            kept.append(item)
        else:
            kept[twin] = _join(kept[twin], item)
    whole = [item for item in kept if not (item.program == "kernel" and item.iova is None)]
    # A cause that the kernel logged beside a VMM's own line is a clue to that line.
    told = {item.api for item in kept if item.api}
    for item in whole or kept:
        one = item.api is None and item.op in ("map", "unmap") and len(told) == 1
        yield replace(item, api=next(iter(told))) if one else item


def _same(old: Failure, new: Failure) -> bool:
    if old.op != new.op or (old.errno and new.errno and old.errno != new.errno):
        return False
    if old.sign is not new.sign and old.sign and new.sign:
        return False
    if old.iova is None or new.iova is None:
        return "kernel" not in (old.program, new.program) or old.program == new.program
    return (old.iova, old.size) == (new.iova, new.size)


def _join(old: Failure, new: Failure) -> Failure:
    known, more = (new, old) if old.iova is None and new.iova is not None else (old, new)
    return replace(
        known,
        api=known.api or more.api,
        errno=known.errno or more.errno,
        program=known.program or more.program,
        part=known.part or more.part,
        sign=known.sign or more.sign,
    )


@dataclass(slots=True)
class _Clues:
    """Clues as they are collected."""

    width: int | None = None
    vendors: set[str] = field(default_factory=set)
    cpu_bits: int | None = None
    memlock: int | None = None
    entries: int | None = None
    client: bool = False
    signs: dict[Why, str] = field(default_factory=dict)
    devices: dict[str, None] = field(default_factory=dict)
    groups: dict[str, None] = field(default_factory=dict)

    def read(self, line: str) -> None:
        """Collect what a line states."""
        width = _WIDTH.search(line)
        if width and 1 <= int(width[1]) <= 64:
            self.width = min(self.width or 64, int(width[1]))
            self.signs.setdefault(Why.WIDTH, line)
        mask = _MASK.search(line)
        if mask:  # DPDK prints the bits that an IOVA may not have
            self.width = min(
                self.width or 64, (int(mask[1], 16) & -int(mask[1], 16)).bit_length() - 1
            )
        host = _HOST_BITS.search(line)
        if host:
            self.width = min(self.width or 64, int(host[1], 0))
        if "Access beyond MGAW" in line:
            self.signs.setdefault(Why.WIDTH, line)
        for pattern, vendor in ((_AMD, "amd"), (_INTEL, "intel"), (_ARM, "arm")):
            if pattern.search(line):
                self.vendors.add(vendor)
        self.client = self.client or bool(_CLIENT.search(line))
        past = _PAST.search(line)
        if past and past[1]:
            self.cpu_bits = int(past[1])
        limit = _LIMIT.search(line)
        if limit:
            self.memlock = int(limit[1])
        if _MEMLOCK_WORDS.search(line):
            self.signs.setdefault(Why.MEMLOCK, line)
        entries = _ENTRY_LIMIT.search(line)
        if entries:
            self.entries = int(entries[1] or entries[2])
        for form in FORMS:
            if form.sign and form.sign is not Why.WIDTH and form.pattern.search(line):
                self.signs.setdefault(form.sign, line)
        named = (found if len(found) > 7 else f"0000:{found}" for found in _BDF.findall(line))
        self.devices.update(dict.fromkeys(named))
        self.groups.update((a or b, None) for a, b in _GROUP.findall(line))

    def done(self) -> Clues:
        """Return them."""
        (vendor,) = self.vendors if len(self.vendors) == 1 else (None,)
        return Clues(
            width=self.width,
            vendor=vendor,
            cpu_bits=self.cpu_bits,
            memlock=self.memlock,
            entries=self.entries,
            client=self.client,
            signs=tuple(self.signs.items()),
            devices=tuple(self.devices),
            groups=tuple(self.groups),
        )
