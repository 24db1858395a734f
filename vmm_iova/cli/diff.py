# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova diff`: two hosts or two layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.cli.definition import asked_of, definition_of, newest
from vmm_iova.cli.guest import add_guest_options, guest_of, read_layout
from vmm_iova.cli.options import (
    GENERATOR,
    REFUSED,
    add_host_options,
    host_of,
    usable_or_none,
)
from vmm_iova.cli.parser import command
from vmm_iova.errors import RequestError
from vmm_iova.host.evidence import architecture
from vmm_iova.machines.catalogue import usual_machine
from vmm_iova.planning.difference import (
    compare_hosts,
    compare_layouts,
    host_changes,
    layout_changes,
)
from vmm_iova.record import replace
from vmm_iova.report import data
from vmm_iova.report.answer import answer_data, show_answer
from vmm_iova.report.layout import show_difference
from vmm_iova.report.verdicts import difference_answer

if TYPE_CHECKING:
    import argparse


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "diff", run)
    add_host_options(parser, host=False)
    add_guest_options(parser, ram="plan a guest of this size on both hosts; not with --node")
    parser.add_argument("first", help="host (as for --host) or layout file")
    parser.add_argument("second", help="the other one")


def run(options: argparse.Namespace) -> int:
    """Do it."""
    layouts = [read_layout(spec) for spec in (options.first, options.second)]
    if layouts[0] is not None and layouts[1] is not None:
        difference = compare_layouts(layouts[0], layouts[1])
        difference = replace(difference, guest=layout_changes(layouts[0], layouts[1]))
    elif layouts[0] is not None or layouts[1] is not None:
        raise RequestError(
            f"{options.first} and {options.second} are a host and a layout: compare two of a kind",
            field="second",
            value=options.second,
        )
    else:
        left, right = (host_of(options, spec) for spec in (options.first, options.second))
        judged = usable_or_none(left, options), usable_or_none(right, options)
        difference = compare_hosts(left, right, *judged)
        definition, guest = definition_of(options), None
        if definition is not None:
            guest = newest(asked_of(options, definition))
            options.machine = guest.machine
        else:
            # One machine for both, the usual one of the first host: else nothing can be compared.
            options.machine = options.machine or usual_machine(architecture(left, left.groups))
            if options.ram is not None or options.node:
                guest = guest_of(options)
        changes = host_changes(
            left, right, *judged, guest, machine=options.machine, on_hole=options.on_hole
        )
        difference = replace(difference, guest=changes)
    answer = difference_answer(difference, options.first, options.second)
    if options.json:
        payload = {
            **answer_data(answer),
            "same": difference.same,
            "guest": list(difference.guest),
            "difference": difference.to_json(),
        }
        print(data.dump("vmm-iova-diff", GENERATOR, payload, version=2), end="")
    else:
        shown = show_difference(difference, options.first, options.second)
        print("\n".join(filter(None, (show_answer(answer), shown))), end="")
    return 0 if difference.same else REFUSED
