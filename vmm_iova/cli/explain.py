# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova explain`: why a call failed, from the error line that somebody has."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vmm_iova.cli.options import (
    GENERATOR,
    UNSETTLED,
    add_host_options,
    command,
    holes_of,
    host_of,
    usable_of,
)
from vmm_iova.diagnosis.causes import APIS, NAMES, OPS, errno_name
from vmm_iova.diagnosis.diagnose import diagnose
from vmm_iova.diagnosis.error_lines import Clues, Failure, Report, parse_reports
from vmm_iova.errors import EvidenceError, RequestError
from vmm_iova.host.load import read_text
from vmm_iova.report import data, diagnosis
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
    parser.add_argument("--op", choices=OPS, default="map", help="the call (default map)")
    parser.add_argument("--api", choices=APIS, help="a VFIO container (type1) or an iommufd")
    add_host_options(parser, host=False)
    parser.add_argument(
        "--host", help="facts of the host, as for the other commands; without it, the likely causes"
    )


def run(options: argparse.Namespace) -> int:
    """Do it."""
    reports = _reports(options)
    usable, holes, notes = _judged(options, reports)
    found = [
        diagnose(item, report.clues, usable, holes=holes)
        for report in reports
        for item in report.failures
    ]
    settled = all(item.settled for item in found)
    if options.json:
        entries = [diagnosis.diagnosis_data(item) for item in found]
        payload = {"settled": settled, "notes": notes, "failures": entries}
        print(data.dump("vmm-iova-explain", GENERATOR, payload), end="")
    else:
        print("".join(f"note: {note}\n" for note in notes), end="")
        print("\n".join(map(diagnosis.show_diagnosis, found)), end="")
    return 0 if settled else UNSETTLED


def _judged(
    options: argparse.Namespace, reports: tuple[Report, ...]
) -> tuple[Usable | None, Usable | None, list[str]]:
    """What may be mapped; or the holes alone, where nothing says how wide the IOVA space is."""
    if options.host is None:
        return None, None, []
    host, notes = host_of(options), []
    named = {device.name for device in host.devices}
    devices = [name for report in reports for name in report.clues.devices if name in named]
    if devices and len(reports) == 1 and options.groups is None and options.devices is None:
        options.devices = devices
        notes.append(f"judged for the devices that the report names: {', '.join(devices)}")
    try:
        return usable_of(host, options), None, notes
    except EvidenceError as error:
        notes.append(f"{error.message}: explained without it (--aperture states a width)")
        return None, holes_of(host, options), notes


def _reports(options: argparse.Namespace) -> tuple[Report, ...]:
    if options.iova or options.size or options.errno or options.hva:
        if options.line or options.file:
            raise RequestError(
                "give the error line, or the numbers of the call, not both",
                field="line",
                value=options.line,
            )
        return (Report((_stated(options),), Clues()),)
    if options.file:
        return parse_reports(*read_text(options.file))
    pasted = " ".join(options.line)
    if pasted and pasted != "-":
        return parse_reports(pasted, "the line")
    if pasted != "-" and sys.stdin.isatty():
        raise RequestError(
            "nothing to explain: give the error line, or --iova, --size and --errno",
            field="line",
            value=None,
            hint="vmm-iova explain 'vfio_dma_map(0x..., 0x382000000000, 0x10000000, 0x...) = -22'",
        )
    return parse_reports(*read_text("-"))


def _stated(options: argparse.Namespace) -> Failure:
    return Failure(
        op=options.op,
        api=options.api,
        errno=None if options.errno is None else _errno(options.errno),
        iova=None if options.iova is None else parse_address(options.iova, "iova"),
        size=None if options.size is None else parse_size(options.size, "size"),
        hva=None if options.hva is None else parse_address(options.hva, "hva"),
    )


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
