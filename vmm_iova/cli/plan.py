# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova plan`: where a guest goes on a host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from vmm_iova.cli.definition import (
    asked_of,
    check_faults,
    definition_of,
    each_guest,
    find_devices,
    name_devices,
    newest,
    start_of,
)
from vmm_iova.cli.guest import (
    add_guest_options,
    add_plan_options,
    assigned_guest,
    saved_layout,
)
from vmm_iova.cli.options import (
    GENERATOR,
    REFUSED,
    UNASSIGNABLE,
    add_host_options,
    host_of,
    split,
    status_of,
    usable_of,
)
from vmm_iova.cli.parser import command
from vmm_iova.cli.pictures import add_output, write_picture
from vmm_iova.definitions.definition import CHANGE_FORMS
from vmm_iova.errors import PlanError, RequestError
from vmm_iova.planning.assigned import members, unplaced
from vmm_iova.planning.budget import budget, compare_costs
from vmm_iova.planning.memory_maps import FORMATS, write_map
from vmm_iova.planning.plan import plan
from vmm_iova.planning.start import Via
from vmm_iova.record import replace
from vmm_iova.report import text
from vmm_iova.report.answer import show_answer
from vmm_iova.report.layout import dump_layout, show_layout
from vmm_iova.report.verdicts import layout_answer
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    import argparse

    from vmm_iova.host.facts import SpaceKind
    from vmm_iova.host.host import Host
    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.layout import Layout


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "plan", run)
    add_host_options(parser)
    add_guest_options(parser, ram="size of the RAM, like 64G or 1.5TiB; not with --node")
    add_plan_options(parser)
    _add_more_options(parser)
    add_output(parser, " or the layout (.json)")
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="type1",
        choices=("type1", "iommufd"),
        help="also map the layout on a kernel in memory that has the ranges and limits of the host",
    )


def run(options: argparse.Namespace) -> int:
    """Do it."""
    definition = definition_of(options)
    name_devices(options, definition)
    host = host_of(options)
    find_devices(options, definition, host)
    usable = usable_of(host, options)
    guest = each_guest(
        asked_of(options, definition), lambda one: assigned_guest(one, host, usable, options)
    )
    try:
        check_faults(definition)
        layout = plan(
            guest,
            usable,
            options.on_hole,
            also_fit=_also_fit(host, options),
            keep=saved_layout(options),
            prefer=options.prefer,
        )
        if definition is not None and not layout.starts:
            plan(guest, usable, "refuse")  # says why: its VMM cannot cut RAM
    except PlanError as error:
        if definition is None:
            raise
        from vmm_iova.cli.changes import show_refusal

        return show_refusal(error, definition, guest, usable, options)
    devices = split(options.devices) or ()
    layout = replace(layout, notes=(*layout.notes, *unplaced(host, devices)))
    if definition is not None:
        layout = replace(layout, settings=())  # what must differ is said as a change
    given = members(host, devices)
    cost = budget(layout, chunk=options.chunk)
    compared = (
        compare_costs(newest(guest), usable, prefer=options.prefer) if options.compare else ()
    )
    start = start_of(definition, host, layout, cost, devices, options.via)
    vm = None
    if definition is not None:
        from vmm_iova.cli.changes import change_of
        from vmm_iova.report.definition import definition_data

        vm = definition_data(definition, change_of(definition, guest, layout, cost))
    document = ""
    if options.output or options.json:
        document = dump_layout(layout, cost, GENERATOR, compared, given, start, vm)
    if options.output:
        write_picture(options.output, layout, document)
    if options.dry_run and (options.json or getattr(options, "format", None)):
        raise RequestError(
            "--dry-run prints text, so it does not go with --json or --format",
            field="dry_run",
            value=options.dry_run,
        )
    rehearsed = _rehearse(layout, options.dry_run) if options.dry_run else ""
    if options.format in FORMATS:
        print(write_map(layout, options.format), end="")
    elif options.format:
        from vmm_iova.cli.changes import change_of

        print(change_of(definition, guest, layout, cost, options.format), end="")
    elif options.json:
        print(document, end="")
    else:
        print(show_answer(layout_answer(layout, cost, start)))
        shown = show_layout(
            layout, cost, bytes_=options.bytes, compared=compared, members=given, start=start
        )
        print(shown + rehearsed, end="")
        if definition is not None:
            from vmm_iova.cli.changes import show_change
            from vmm_iova.report.definition import show_definition

            print(show_definition(definition, newest(guest), usable), end="")
            print(show_change(definition, guest, layout, cost, options), end="")
    if layout.changes:
        return REFUSED
    stopped = layout.starts and start.verdict == "does not start"
    return UNASSIGNABLE if stopped else status_of(layout.usable)


def _add_more_options(parser: argparse.ArgumentParser) -> None:
    """Add what is about one host: the cost, and what its guest must be told."""
    add = parser.add_argument
    add(
        "--assigned",
        type=int,
        metavar="N",
        help="number of assigned devices (default: those of -s, or 1)",
    )
    add(
        "--root-ports",
        action="store_true",
        help="each device of -s is behind a root port of its own, as libvirt has it",
    )
    add(
        "--spare-ports",
        type=int,
        metavar="N",
        help="there are so many more PCIe root ports (libvirt makes some for disks and hotplug): "
        "firmware keeps room behind each (default: those of --vm, else not known)",
    )
    add(
        "--via",
        choices=get_args(Via),
        help="how the VMM opens the devices (default: as --vm says, else type1)",
    )
    add("--chunk", help="bytes that the VMM maps with one call, like 2MiB, for the cost")
    add("--compare", action="store_true", help="also show the cost of each policy and page size")
    add(
        "--format",
        choices=(*FORMATS, *CHANGE_FORMS),
        help="print only what the guest must be told, in this form, or what must differ in the "
        "VM's definition",
    )


def _also_fit(host: Host, options: argparse.Namespace) -> list[Usable]:
    groups = split(options.also_fit)
    if not groups:
        return []
    granule = None if options.granule is None else parse_size(options.granule, "granule")
    return [
        host.usable(
            groups=groups, aperture=options.aperture, granule=granule, strict=options.strict
        )
    ]


def _rehearse(layout: Layout, via: SpaceKind) -> str:
    from vmm_iova.mapping import dry_run  # needs Linux

    done = dry_run(layout, via)
    left = "" if done.entries_left is None else f", {done.entries_left} more are allowed"
    calls = [f"map {span} ({name})" for span, name in done.calls]
    title = f"dry run on {via}: {len(calls)} calls taken{left}"
    return "\n".join(text.section(title, calls)) + "\n"
