# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova machines`: the machine models, or one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.cli.options import GENERATOR, add_print_options
from vmm_iova.cli.parser import command
from vmm_iova.cli.pictures import add_output, write_picture
from vmm_iova.cli.table import add_table_options, chosen, show_table, table_wanted
from vmm_iova.errors import RequestError
from vmm_iova.machines.catalogue import load_machine, machine_names
from vmm_iova.ranges import GIB
from vmm_iova.report import data
from vmm_iova.report.machines import machine_data, machine_row, show_machine

if TYPE_CHECKING:
    import argparse

    from vmm_iova.machines.model import Machine


COLUMNS = ["NAME", "ARCH", "RAM-FROM", "GAP32", "PCI64", "LIMITS", "TITLE", "ALIASES", "SOURCE"]
"""Columns of the list; all but the last two are usual."""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "machines", run)
    parser.add_argument("name", nargs="?", help="model or a .toml file (default: list all)")
    parser.add_argument("--ram", help="RAM of the guest that is drawn (default 8G)")
    parser.add_argument("--phys-bits", type=int, metavar="BITS", help="its guest address bits")
    add_output(parser)
    add_table_options(parser, COLUMNS)
    add_print_options(parser)


def run(options: argparse.Namespace) -> int:
    """Do it."""
    as_table = table_wanted(options)
    names = machine_names() if options.name is None else (options.name,)
    models = [load_machine(name) for name in names]
    if options.output:
        if options.name is None:
            raise RequestError("say which machine to draw", field="name", value=None)
        _draw(models[0], options)
    if options.json:
        payload = {"machines": [machine_data(model) for model in models]}
        print(data.dump("vmm-iova-machines", GENERATOR, payload), end="")
    elif options.name is None or as_table:
        columns = chosen(options, COLUMNS, COLUMNS[:7])
        print(show_table(columns, map(machine_row, models), options), end="")
    else:
        print(show_machine(models[0], bytes_=options.bytes), end="")
    return 0


def _draw(model: Machine, options: argparse.Namespace) -> None:
    from vmm_iova.planning.guest import Guest  # a picture is asked for rarely
    from vmm_iova.planning.plan import plan
    from vmm_iova.planning.request import bare_usable

    ram = options.ram or min(8 * GIB, model.ram_max or 8 * GIB)
    guest = Guest(model, ram, phys_bits=options.phys_bits)
    write_picture(options.output, plan(guest, bare_usable(model, options.phys_bits)))
