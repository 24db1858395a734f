# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova explain`: why a call failed, from the error line that somebody has."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vmm_iova.cli.options import (
    GENERATOR,
    UNSETTLED,
    add_host_options,
    holes_of,
    host_of,
    usable_of,
)
from vmm_iova.cli.parser import command
from vmm_iova.diagnosis.clues import Clues
from vmm_iova.diagnosis.diagnose import diagnose
from vmm_iova.diagnosis.errnos import NAMES, errno_name
from vmm_iova.diagnosis.error_lines import Report, parse_reports
from vmm_iova.diagnosis.failure import Failure
from vmm_iova.diagnosis.places import clue_host
from vmm_iova.diagnosis.why import Api, Op, Why
from vmm_iova.errors import EvidenceError, HostDataError, HostUnavailableError, RequestError
from vmm_iova.host.facts import Platform
from vmm_iova.host.host import Host
from vmm_iova.host.load import load_facts, read_text
from vmm_iova.report import data, diagnosis
from vmm_iova.report.answer import Answer, answer_data, show_answer
from vmm_iova.units import parse_address, parse_size

if TYPE_CHECKING:
    import argparse

    from vmm_iova.host.usable import Usable


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "explain", run)
    parser.add_argument(
        "line", nargs="*", help="the error line, whole; - or nothing reads standard input"
    )
    parser.add_argument("--file", metavar="FILE", help="read the lines from a file")
    parser.add_argument("--iova", help="first IOVA of the call")
    parser.add_argument("--size", help="its size")
    parser.add_argument("--errno", help="its errno: EINVAL, 22 or -22")
    parser.add_argument("--hva", help="address in the process")
    parser.add_argument(
        "--op", choices=[str(item) for item in Op], default="map", help="the call (default map)"
    )
    parser.add_argument(
        "--api", choices=[str(item) for item in Api], help="a VFIO container (type1) or an iommufd"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="add kernel history and the rarer causes"
    )
    add_host_options(parser, host=False, bytes_=False)
    parser.add_argument(
        "--host", help="facts of the host, as for the other commands; without it, the likely causes"
    )


def run(options: argparse.Namespace) -> int:
    """Do it."""
    pasted = _pasted(options)
    try:
        reports = (_stated(options),) if pasted is None else parse_reports(*pasted)
    except HostDataError:  # no line of it tells of a failed call
        answer = _without_failure(options, pasted[0] if pasted else "")
        if answer is None:
            raise
        return _answered(options, answer)
    if pasted and all(item.sign is Why.GUEST_DRIVER for one in reports for item in one.failures):
        answer = _without_failure(options, pasted[0])
        if answer is not None and answer.word == "LIKELY":
            return _answered(options, answer)
    found = []
    notes: list[str] = []
    for report, (usable, holes, more, platform) in zip(
        reports, _judged(options, reports), strict=True
    ):
        notes += [note for note in (*more, *report.notes) if note not in notes]
        found += [
            diagnose(item, report.clues, usable, holes=holes, platform=platform)
            for item in report.failures
        ]
    settled = all(item.settled or item.harmless for item in found)
    if options.json:
        entries = [diagnosis.diagnosis_data(item) for item in found]
        payload = {"settled": settled, "notes": notes, "failures": entries}
        print(data.dump("vmm-iova-explain", GENERATOR, payload, version=2), end="")
    else:
        shown = (diagnosis.show_diagnosis(item, verbose=options.verbose) for item in found)
        print("\n".join(shown), end="")
        print("".join(f"\nnote: {note}\n" for note in notes), end="")
    return 0 if settled else UNSETTLED


def _without_failure(options: argparse.Namespace, text: str) -> Answer | None:
    """Say what the text is about, on the host that the options name."""
    from vmm_iova.cli.no_failure import answer_without_failure  # loads planner and definitions

    host = _host(options)
    if host is None:
        return answer_without_failure(text, None, None)
    try:
        usable = usable_of(host, options)
    except (EvidenceError, HostUnavailableError):
        usable = None  # its own rules are the VMM's, whatever the host is
    return answer_without_failure(text, usable, host.name)


def _answered(options: argparse.Namespace, answer: Answer) -> int:
    if options.json:
        said = answer_data(answer)
        notes = [said["verdict"], *said["action"], *said["reason"]]
        payload = {"settled": False, "notes": notes, "failures": []}
        print(data.dump("vmm-iova-explain", GENERATOR, payload, version=2), end="")
    else:
        print(show_answer(answer), end="")
    return UNSETTLED


_Judged = tuple["Usable | None", "Usable | None", list[str], Platform]


def _judged(options: argparse.Namespace, reports: tuple[Report, ...]) -> list[_Judged]:
    """What may be mapped, for each report; or the holes alone, where no width is known."""
    stated = options.aperture is not None or options.granule is not None
    host = _host(options)
    if host is None and not stated:
        return [(None, None, [], Platform())] * len(reports)
    if host is None:  # what is stated counts together with what the report states
        hosts = [clue_host(report.clues) or Host("what was stated") for report in reports]
        return [_usable(options, of, []) for of in hosts]
    notes = _named_devices(options, host, reports)
    return [_usable(options, host, notes)] * len(reports)


def _host(options: argparse.Namespace) -> Host | None:
    """The host that the options name, in whichever way."""
    live = options.sysroot != "/" or options.ask_kernel
    if options.host is None and live:
        options.host = "LIVE"
    if options.host is None and options.facts:
        first, *rest = options.facts
        host = load_facts(first)
        for more in rest:
            host = host.with_facts(load_facts(more))
        return host
    if options.host is not None:
        return host_of(options)
    for field, given in (("groups", "-g"), ("devices", "-s"), ("strict", "--strict")):
        if getattr(options, field):
            raise RequestError(
                f"{given} chooses among the facts of a host, and none is given",
                field=field,
                value=getattr(options, field),
                hint="add --host HOST, or --facts FILE",
            )
    return None


def _named_devices(
    options: argparse.Namespace, host: Host, reports: tuple[Report, ...]
) -> list[str]:
    """Judge for the devices that the report names, where none is chosen."""
    named = {device.name for device in host.devices}
    devices = [name for report in reports for name in report.clues.devices if name in named]
    if devices and len(reports) == 1 and options.groups is None and options.devices is None:
        options.devices = devices
        return [f"judged for the devices that the report names: {', '.join(devices)}"]
    return []


def _usable(options: argparse.Namespace, host: Host, notes: list[str]) -> _Judged:
    try:
        return usable_of(host, options), None, notes, host.platform
    except EvidenceError as error:
        more = f"{error.message}: explained without it (--aperture states a width)"
        return None, holes_of(host, options), [*notes, more], host.platform
    except HostUnavailableError as error:  # no IOMMU is in use: that may be just what failed
        return None, None, [*notes, f"{error.message}: explained without it"], host.platform


def _pasted(options: argparse.Namespace) -> tuple[str, str] | None:
    """Return the text, and what to call it; None where the call itself is stated."""
    if options.iova or options.size or options.errno or options.hva:
        if options.line or options.file:
            raise RequestError(
                "give the error line, or the numbers of the call, not both",
                field="line",
                value=options.line,
            )
        return None
    if options.file:
        return read_text(options.file)
    pasted = " ".join(options.line)
    if pasted and pasted != "-":
        return pasted, "the line"
    if pasted != "-" and sys.stdin.isatty():
        raise RequestError(
            "nothing to explain: give the error line, or --iova, --size and --errno",
            field="line",
            value=None,
            hint="vmm-iova explain 'vfio_dma_map(0x..., 0x382000000000, 0x10000000, 0x...) = -22'",
        )
    return read_text("-")


def _stated(options: argparse.Namespace) -> Report:
    failure = Failure(
        op=Op(options.op),
        api=None if options.api is None else Api(options.api),
        errno=None if options.errno is None else _errno(options.errno),
        iova=None if options.iova is None else parse_address(options.iova, "iova"),
        size=None if options.size is None else parse_size(options.size, "size"),
        hva=None if options.hva is None else parse_address(options.hva, "hva"),
    )
    return Report((failure,), Clues())


def _errno(text: str) -> str:
    name = text.strip().upper()
    digits = name.removeprefix("-")
    if digits.isdecimal() and len(digits) < 5:
        name = errno_name(int(digits))
    if name not in NAMES:
        raise RequestError(
            f"errno {text!r} is none that these calls return",
            field="errno",
            value=text,
            hint=f"one of {', '.join(sorted(NAMES))}, or its number",
        )
    return name
