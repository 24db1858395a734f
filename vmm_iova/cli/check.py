# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova check`: may a range be mapped, and if not, why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.cli.attach import run_attach
from vmm_iova.cli.options import (
    GENERATOR,
    REFUSED,
    add_host_options,
    holes_of,
    host_of,
    status_of,
    usable_of,
)
from vmm_iova.cli.parser import command
from vmm_iova.diagnosis.check import Verdict, check, check_holes
from vmm_iova.errors import EvidenceError, RequestError
from vmm_iova.host.load import read_text
from vmm_iova.readers.failed_maps import parse_failed_maps
from vmm_iova.report import check as report
from vmm_iova.report import data
from vmm_iova.units import parse_range

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vmm_iova.host.usable import Usable
    from vmm_iova.ranges import AddrRange


def _judged(
    options: argparse.Namespace, wanted: Sequence[tuple[str | None, AddrRange]]
) -> tuple[Usable, list[tuple[str | None, Verdict]]]:
    """Judge the ranges; where is unknown the IOVA space is, a hole may still settle it.

    Raises:
        EvidenceError: for one of them no hole does.
    """
    host = host_of(options)
    try:
        usable = usable_of(host, options)
    except EvidenceError:
        holes = holes_of(host, options)
        if holes is None:
            raise
        found = [(name, check_holes(holes, span)) for name, span in wanted]
        settled = [(name, verdict) for name, verdict in found if verdict is not None]
        if len(settled) < len(found):
            raise
        return holes, settled
    return usable, [(name, check(usable, span)) for name, span in wanted]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "check", run)
    add_host_options(parser, bytes_=False)
    parser.add_argument(
        "--range", action="append", default=[], help="START-LAST or START+SIZE; may be repeated"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="add since when kernels refuse it"
    )
    parser.add_argument("--maps", metavar="FILE", help="a list of failed maps to check")
    group = parser.add_argument_group("one more device")
    group.add_argument(
        "--attach",
        action="append",
        metavar="BDF",
        help="would the kernel take this device beside those of -s, with --range and --layout "
        "mapped?",
    )
    group.add_argument("--layout", metavar="FILE", help="a saved layout, whose RAM is mapped")
    group.add_argument("--via", choices=("type1", "iommufd"), help="one way (default: both)")


def run(options: argparse.Namespace) -> int:
    """Do it."""
    if options.attach:
        return run_attach(options)
    for field in ("layout", "via"):
        if getattr(options, field):
            raise RequestError(
                f"--{field} is about one more device, and none is named",
                field=field,
                value=getattr(options, field),
                hint="name it with --attach BDF",
            )
    asked = [(None, parse_range(item)) for item in options.range]
    named = [
        (f"{item.name} ({item.said})" if item.said else item.name, item.range)
        for item in (parse_failed_maps(*read_text(options.maps)) if options.maps else ())
        if item.range is not None
    ]
    if not asked and not named:
        raise RequestError(
            "nothing to check: give --range or --maps",
            field="range",
            value=None,
            hint="vmm-iova check --host HOST --range 0xfd00000000+4G",
        )
    usable, verdicts = _judged(options, [*asked, *named])
    if options.json:
        entries = [report.check_data(item, usable, name) for name, item in verdicts]
        payload = {
            "host": usable.host,
            "unassignable": [item.text for item in usable.unassignable],
            "notes": [note.text for note in usable.notes],
            "verdicts": entries,
        }
        print(data.dump("vmm-iova-check", GENERATOR, payload, version=2), end="")
    else:
        shown = (
            report.show_verdict(item, usable, name, verbose=options.verbose)
            for name, item in verdicts
        )
        print("\n".join(shown), end="")
        warnings = [f"warning: {entry.text}" for entry in usable.unassignable]
        warnings += [f"note: {note.text}" for note in usable.notes if note.warning]
        print("".join(f"\n{line}\n" for line in warnings), end="")
    return status_of(usable) if all(item.ok for _, item in verdicts) else REFUSED
