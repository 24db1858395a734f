# SPDX-License-Identifier: Apache-2.0
"""What must differ from the VM's definition: printed behind an answer, or alone (`--format`)."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from vmm_iova.cli.definition import newest
from vmm_iova.definitions.change import change_between, mended, most_in_place
from vmm_iova.definitions.write import CHANGE_FORMS, write_change
from vmm_iova.planning.budget import budget
from vmm_iova.planning.guest import Guest
from vmm_iova.planning.plan import plan
from vmm_iova.report.answer import show_answer
from vmm_iova.report.definition import show_definition
from vmm_iova.report.verdicts import refusal_answer
from vmm_iova.units import format_size

if TYPE_CHECKING:
    import argparse

    from vmm_iova.definitions.definition import Definition, Kind
    from vmm_iova.errors import PlanError
    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.budget import Budget
    from vmm_iova.planning.layout import Layout


def change_of(
    definition: Definition | None,
    asked: Guest | Definition,
    layout: Layout,
    cost: Budget,
    form: Kind | None = None,
) -> str:
    """Return what must differ so that this layout is real."""
    wanted = newest(asked)
    if wanted.machine is None:
        wanted = replace(wanted, machine=layout.machine.name)
    change = change_between(definition, wanted, cost.locked_bytes)
    return write_change(definition, change, form)


def show_change(
    definition: Definition,
    asked: Guest | Definition,
    layout: Layout,
    cost: Budget,
    options: argparse.Namespace,
) -> str:
    """Return the part behind a layout: what must differ from the definition."""
    text = change_of(definition, asked, layout, cost)
    lines = [f"\nchange ({definition.kind})\n", text] if text else []
    guest = newest(asked)
    if layout.policy == "move" and guest.maxmem is not None and not isinstance(asked, Guest):
        most = most_in_place(asked, layout.usable, options.on_hole)
        if most is not None:
            size = format_size(most).replace(" ", "")
            lines.append(
                f"\nRAM above 4 GiB moves because what may be plugged in reaches the hole; "
                f"--maxmem {size} keeps it in its place\n"
            )
    return "".join(lines) or "\nchange: none\n"


def show_refusal(
    error: PlanError,
    definition: Definition,
    asked: Guest | Definition,
    usable: Usable,
    options: argparse.Namespace,
) -> int:
    """Print why a definition does not fit, and the change with which it does; return the status."""
    form = options.format if options.format in CHANGE_FORMS else None
    changed = None if isinstance(asked, Guest) else mended(asked, usable, options.on_hole)
    print(show_answer(refusal_answer(error)), end="", file=sys.stderr)
    sys.stderr.flush()
    if changed is None:
        if not options.format and not options.json:
            print(show_definition(definition, newest(asked), usable), end="")
            print("\nchange: none was found with which it fits")
        return error.exit_code
    layout = plan(changed, usable, options.on_hole)
    cost = budget(layout, chunk=options.chunk)
    text = change_of(definition, changed, layout, cost, form)
    if form:
        print(text, end="")
    elif not options.format and not options.json:
        print(show_definition(definition, newest(asked), usable), end="")
        print(f"\nchange ({definition.kind}), with which it fits\n{text}", end="")
    return error.exit_code
