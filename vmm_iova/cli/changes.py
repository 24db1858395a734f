# SPDX-License-Identifier: Apache-2.0
"""What must differ from the VM's definition: printed behind an answer, or alone (`--format`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmm_iova.cli.definition import newest
from vmm_iova.definitions.change import change_between, mended, most_in_place
from vmm_iova.definitions.definition import CHANGE_FORMS
from vmm_iova.definitions.write import write_change
from vmm_iova.errors import PlanError
from vmm_iova.planning.budget import budget
from vmm_iova.planning.guest import Guest
from vmm_iova.planning.plan import plan
from vmm_iova.record import replace
from vmm_iova.report.answer import show_answer
from vmm_iova.report.definition import definition_data, show_definition
from vmm_iova.report.errors import error_document
from vmm_iova.report.verdicts import refusal_answer

if TYPE_CHECKING:
    import argparse

    from vmm_iova.definitions.definition import Definition, Kind
    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.budget import Budget
    from vmm_iova.planning.layout import Layout


_NOT_FOR_A_DEFINITION = ("mark it optional", "--bar ")
"""Remedies about BARs that `--bar` names: those of a definition are what they are."""


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
    if isinstance(asked, Guest):
        return ""
    text = change_of(definition, asked, layout, cost)
    shown = f"\nchange ({definition.kind})\n{text}" if text else "\nchange: none\n"
    if layout.policy == "move" and asked.guest.maxmem is not None:
        most = most_in_place(asked, layout.usable, options.on_hole)
        if most is not None:
            wanted = replace(asked.guest, maxmem=most)
            diff = write_change(definition, change_between(definition, wanted, cost.locked_bytes))
            shown += f"\nchange ({definition.kind}), with which RAM stays where it is\n{diff}"
    return shown


def fitting_change(
    definition: Definition,
    asked: Definition,
    usable: Usable,
    options: argparse.Namespace,
    form: Kind | None = None,
) -> str | None:
    """Return the least that must differ so that it fits; None where nothing was found."""
    changed = mended(asked, usable, options.on_hole)
    if changed is None:
        return None
    layout = plan(changed, usable, options.on_hole)
    return change_of(definition, changed, layout, budget(layout, chunk=options.chunk), form)


def _with_which_it_fits(definition: Definition, text: str | None) -> str:
    if text is None:
        return "\nchange: none was found with which it fits\n"
    return f"\nchange ({definition.kind}), with which it fits\n{text}"


def show_refusal(
    error: PlanError,
    definition: Definition,
    asked: Guest | Definition,
    usable: Usable,
    options: argparse.Namespace,
) -> int:
    """Print why a definition does not fit, and the change with which it does; return the status."""
    form = options.format if options.format in CHANGE_FORMS else None
    alone = options.format or options.json  # then standard output is for a program
    text = None
    if not isinstance(asked, Guest):
        text = fitting_change(definition, asked, usable, options, form)
    fixes = [fix for fix in error.fixes if not fix.startswith(_NOT_FOR_A_DEFINITION)]
    if text is not None and (form or not alone):  # in place of options, which it is in own words
        others = (fix for fix in fixes if not fix.startswith("--"))
        where = "on standard output" if form else "below"
        fixes = [f"the change {where}, with which it fits", *others]
    told = PlanError(error.message, reasons=error.reasons, fixes=fixes, detail=error.detail)
    if options.json and not form:
        print(error_document(told, definition_data(definition, text or "")), end="")
        return error.exit_code
    print(show_answer(refusal_answer(told)), end="", file=sys.stderr if alone else sys.stdout)
    if form:
        print(text or "", end="")
    elif not alone:
        print(show_definition(definition, newest(asked), usable), end="")
        print(_with_which_it_fits(definition, text), end="")
    return error.exit_code
