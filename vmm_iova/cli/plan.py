# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova plan`: where a guest goes on a host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm_iova.cli.options import (
    GENERATOR,
    add_host_options,
    command,
    host_of,
    status_of,
    usable_of,
    write,
)
from vmm_iova.errors import RequestError
from vmm_iova.guest.budget import budget
from vmm_iova.guest.plan import Guest, plan
from vmm_iova.report import data, text

if TYPE_CHECKING:
    import argparse

    from vmm_iova.guest.layout import Layout


_MACHINES = {"aarch64": "virt", "s390x": "s390x"}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "plan", run, "where a guest goes on a host")
    add_host_options(parser)
    parser.add_argument("--ram", required=True, help="size of the RAM, like 64G or 1.5TiB")
    add_guest_options(parser)
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


def add_guest_options(parser: argparse.ArgumentParser) -> None:
    """Add what a guest is, but for its RAM."""
    parser.add_argument(
        "--machine", help="model or a .toml file (default: by the host: q35, virt or s390x)"
    )
    parser.add_argument(
        "--on-hole",
        default="split",
        choices=("split", "move", "refuse"),
        help="what to do when the machine's own place is not free (default split)",
    )
    parser.add_argument("--pci64", help="size of the 64-bit PCI window; 0 for none")
    parser.add_argument("--align", help="alignment of RAM pieces, like 2MiB (default: granule)")


def guest_of(options: argparse.Namespace, arch: str | None = None) -> Guest:
    """Return the guest that the options name; the machine by default is one of the host's kind."""
    machine = options.machine or _MACHINES.get(arch or "", "q35")
    return Guest(machine, options.ram, options.pci64, options.align)


def run(options: argparse.Namespace) -> int:
    """Do it."""
    usable = usable_of(host_of(options), options)
    layout = plan(guest_of(options, usable.arch), usable, options.on_hole)
    cost = budget(layout)
    document = data.dump_layout(layout, cost, GENERATOR)
    if options.output:
        write(options.output, _picture(options.output, layout, document))
    rehearsed = _rehearse(layout, options.dry_run) if options.dry_run else ""
    if options.json:
        print(document, end="")
    else:
        print(text.show_layout(layout, cost, bytes_=options.bytes) + rehearsed, end="")
    return status_of(usable)


def _rehearse(layout: Layout, via: str) -> str:
    from vmm_iova.mapping import dry_run  # needs Linux

    done = dry_run(layout, via)
    left = "" if done.entries_left is None else f", {done.entries_left} more are allowed"
    calls = [f"map {span} ({name})" for span, name in done.calls]
    title = f"dry run on {via}: {len(calls)} calls taken{left}"
    return "\n".join(text.section(title, calls)) + "\n"


def _picture(name: str, layout: Layout, document: str) -> str:
    suffix = Path(name).suffix.lower()
    if suffix == ".json":
        return document
    if suffix != ".svg":
        raise RequestError(f"output {name!r} is neither .svg nor .json", field="output", value=name)
    from vmm_iova.report.svg import draw_layout  # a picture is asked for rarely

    return draw_layout(layout)
