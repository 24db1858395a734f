# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova machines`: the machine models, or one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.cli.options import GENERATOR, add_print_options, command, write
from vmm_iova.errors import RequestError
from vmm_iova.machines.catalogue import load_machine, machine_names
from vmm_iova.ranges import GIB
from vmm_iova.report import data, text

if TYPE_CHECKING:
    import argparse


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "machines", run)
    parser.add_argument("name", nargs="?", help="model or a .toml file (default: list all)")
    parser.add_argument("--ram", help="RAM of the guest that is drawn (default 8G)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write a picture (.svg)")
    add_print_options(parser)


def run(options: argparse.Namespace) -> int:
    """Do it."""
    names = machine_names() if options.name is None else (options.name,)
    models = [load_machine(name) for name in names]
    if options.output:
        from vmm_iova.cli.plan import picture
        from vmm_iova.planning.guest import Guest
        from vmm_iova.planning.plan import plan
        from vmm_iova.planning.request import bare_usable

        if options.name is None:
            raise RequestError("say which machine to draw", field="name", value=None)
        ram = options.ram or min(8 * GIB, models[0].ram_max or 8 * GIB)
        layout = plan(Guest(models[0], ram), bare_usable(models[0]))
        write(options.output, picture(options.output, layout, ""))
    if options.json:
        payload = {"machines": [data.machine_data(model) for model in models]}
        print(data.dump("vmm-iova-machines", GENERATOR, payload), end="")
    elif options.name is None:
        print(text.list_machines(models), end="")
    else:
        print(text.show_machine(models[0], bytes_=options.bytes), end="")
    return 0
