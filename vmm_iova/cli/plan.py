# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova plan`: where a guest goes on a host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm_iova.cli.layouts import read_layout
from vmm_iova.cli.options import (
    GENERATOR,
    REFUSED,
    add_host_options,
    command,
    host_of,
    split,
    status_of,
    usable_of,
    write,
)
from vmm_iova.errors import HostDataError, RequestError
from vmm_iova.guest.budget import budget, compare_costs
from vmm_iova.guest.machine import FixedItem
from vmm_iova.guest.plan import plan
from vmm_iova.guest.request import Bar, Guest, Node, Room
from vmm_iova.guest.told import FORMATS, told_text
from vmm_iova.host.load import read_text
from vmm_iova.report import data, text
from vmm_iova.units import parse_range, parse_size

if TYPE_CHECKING:
    import argparse

    from vmm_iova.guest.layout import Layout
    from vmm_iova.host.model import Host
    from vmm_iova.host.usable import Usable


_MACHINES = {"aarch64": "virt", "s390x": "s390x"}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "plan", run)
    add_host_options(parser)
    parser.add_argument("--ram", help="size of the RAM, like 64G or 1.5TiB; not with --node")
    add_guest_options(parser)
    _add_more_options(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="also write a picture (.svg) or the layout (.json)"
    )
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const="type1",
        choices=("type1", "iommufd"),
        help="also map the layout on a kernel in memory that has the ranges and limits of the host",
    )


def add_guest_options(
    parser: argparse.ArgumentParser, *, machine: str = "by the host: q35, virt or s390x"
) -> None:
    """Add what a guest is, but for its RAM; `machine` says which it is by default."""
    parser.add_argument("--machine", help=f"model or a .toml file (default: {machine})")
    parser.add_argument(
        "--on-hole",
        default="split",
        choices=("split", "move", "refuse"),
        help="what to do when the machine's own place is not free (default split)",
    )
    parser.add_argument("--pci64", help="size of the 64-bit PCI window; 0 for none")
    parser.add_argument(
        "--align", help="alignment of RAM pieces, like 2MiB, or auto (default: granule)"
    )


def guest_of(options: argparse.Namespace, arch: str | None = None) -> Guest:
    """Return the guest that the options name; the machine by default is one of the host's kind."""
    machine = options.machine or _MACHINES.get(arch or "", "q35")
    return Guest(machine, options.ram, options.pci64, options.align)


def run(options: argparse.Namespace) -> int:
    """Do it."""
    host = host_of(options)
    usable = usable_of(host, options)
    guest = _whole_guest(options, usable.arch)
    layout = plan(
        guest,
        usable,
        options.on_hole,
        also_fit=_also_fit(host, options),
        keep=_saved(options.keep),
        prefer=options.prefer,
    )
    cost = budget(layout, chunk=options.chunk)
    compared = compare_costs(guest, usable, prefer=options.prefer) if options.compare else ()
    document = data.dump_layout(layout, cost, GENERATOR, compared)
    if options.output:
        write(options.output, picture(options.output, layout, document))
    if options.dry_run and (options.json or getattr(options, "format", None)):
        raise RequestError(
            "--dry-run prints text, so it does not go with --json or --format",
            field="dry_run",
            value=options.dry_run,
        )
    rehearsed = _rehearse(layout, options.dry_run) if options.dry_run else ""
    if options.format:
        print(told_text(layout, options.format), end="")
    elif options.json:
        print(document, end="")
    else:
        shown = text.show_layout(layout, cost, bytes_=options.bytes, compared=compared)
        print(shown + rehearsed, end="")
    return REFUSED if layout.changes else status_of(layout.usable)


def _add_more_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan` that say what else is placed, and how."""
    add = parser.add_argument
    add("--node", action="append", default=[], metavar="SIZE[@PAGE]", help="RAM of a NUMA node")
    add("--page-size", help="pages that back the RAM, like 2MiB or 1GiB")
    add(
        "--bar",
        action="append",
        default=[],
        metavar="NAME=SIZE[,32][,required]",
        help="a BAR; required: other devices must reach it; may be repeated",
    )
    add("--room", action="append", default=[], metavar="NAME=SIZE", help="room kept above all")
    add("--reserve", action="append", default=[], metavar="NAME=RANGE", help="area to keep free")
    add("--phys-bits", type=int, metavar="BITS", help="guest physical address bits")
    add("--viommu", action="store_true", help="the guest has an IOMMU of its own")
    add("--assigned", type=int, default=1, metavar="N", help="number of assigned devices")
    add("--also-fit", action="append", metavar="GROUPS", help="hold for these groups, too")
    add("--keep", metavar="FILE", help="keep this saved layout, or name what changes (status 3)")
    add("--prefer", default="lowest", choices=("lowest", "fewest"), help="order, or fewest pieces")
    add("--chunk", help="bytes that the VMM maps with one call, like 2MiB, for the cost")
    add("--compare", action="store_true", help="also show the cost of each policy and page size")
    add("--format", choices=FORMATS, help="print only what the guest must be told, in this form")


def _whole_guest(options: argparse.Namespace, arch: str | None) -> Guest:
    """The guest of `guest_of`, with all else that is placed."""
    nodes = [Node(*item.split("@", 1)) if "@" in item else Node(item) for item in options.node]
    return replace(
        guest_of(options, arch),
        nodes=nodes,
        page_size=options.page_size,
        bars=[_bar(item) for item in options.bar],
        rooms=[Room(*_named(item, "room")) for item in options.room],
        reserved=[
            FixedItem(name, "reserved", parse_range(where))
            for name, where in (_named(item, "reserve") for item in options.reserve)
        ],
        phys_bits=options.phys_bits,
        viommu=options.viommu,
        devices=options.assigned,
    )


def _named(item: str, option: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not (name and equals and value):
        raise RequestError(f"--{option} {item!r} is not NAME=...", field=option, value=item)
    return name, value


def _bar(item: str) -> Bar:
    name, value = _named(item, "bar")
    size, *words = value.split(",")
    unknown = [word for word in words if word not in ("32", "64", "required", "optional")]
    if unknown:
        raise RequestError(
            f"--bar {item!r}: {unknown[0]!r} is none of 32, 64, required, optional",
            field="bar",
            value=item,
        )
    return Bar(name, size, bits=32 if "32" in words else 64, required="required" in words)


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


def _saved(name: str | None) -> dict[str, Any] | None:
    if name is None:
        return None
    found = read_layout(name)
    if found is None:
        read_text(name)  # raises where there is none to read
        raise HostDataError(f"{name} is no saved layout (-o layout.json writes one)", source=name)
    return found


def _rehearse(layout: Layout, via: str) -> str:
    from vmm_iova.mapping import dry_run  # needs Linux

    done = dry_run(layout, via)
    left = "" if done.entries_left is None else f", {done.entries_left} more are allowed"
    calls = [f"map {span} ({name})" for span, name in done.calls]
    title = f"dry run on {via}: {len(calls)} calls taken{left}"
    return "\n".join(text.section(title, calls)) + "\n"


def picture(name: str, layout: Layout, document: str) -> str:
    """Draw a layout, or take its document, as the suffix of a file name says."""
    suffix = Path(name).suffix.lower()
    if suffix == ".json":
        return document
    if suffix != ".svg":
        raise RequestError(f"output {name!r} is neither .svg nor .json", field="output", value=name)
    from vmm_iova.report.svg import draw_layout  # a picture is asked for rarely

    return draw_layout(layout)
