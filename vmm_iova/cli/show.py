# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova show`: what a host says, and what may be mapped on it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from vmm_iova.cli.options import (
    GENERATOR,
    add_host_options,
    holes_of,
    host_of,
    status_of,
    usable_of,
)
from vmm_iova.cli.parser import command
from vmm_iova.cli.pictures import add_output, write_picture
from vmm_iova.cli.table import add_table_options, chosen, show_table, table_wanted
from vmm_iova.errors import (
    EvidenceError,
    HostDataError,
    HostUnavailableError,
    IovaError,
    RequestError,
)
from vmm_iova.host.load import bundled_hosts, load_host
from vmm_iova.host.registers import info_features, unit_features
from vmm_iova.host.snapshot import snapshot_data
from vmm_iova.report import data
from vmm_iova.report.answer import answer_data, show_answer
from vmm_iova.report.host import show_host
from vmm_iova.report.verdicts import host_answer

if TYPE_CHECKING:
    import argparse


COLUMNS = ["NAME", "ARCH", "RELEASE", "GROUPS", "UNITS"]
"""Columns of `--list`; the name alone is usual."""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "show", run)
    add_host_options(parser)
    parser.add_argument("--list", action="store_true", help="name the bundled hosts and stop")
    add_output(parser)
    add_table_options(parser, COLUMNS, "--list")


def run(options: argparse.Namespace) -> int:
    """Do it."""
    as_table = table_wanted(options)
    if options.list:
        _print_list(options, as_table)
        return 0
    if as_table:
        raise RequestError(
            "columns are those of --list", field="list", value=False, hint="vmm-iova show --list"
        )
    host = host_of(options)
    usable, why_not, holes, looked_at = None, None, None, None
    problem: IovaError | None = None
    try:
        usable = usable_of(host, options)
    except EvidenceError as error:
        why_not, problem = str(error).replace("\n", "\n  "), error
        looked_at = error.detail  # message and hint are what the answer says
        holes = holes_of(host, options)
    except (HostDataError, HostUnavailableError) as error:
        why_not, problem = error.message, error
    answer = host_answer(host, usable, problem, holes)
    if options.output:
        seen = usable or holes
        if seen is None:
            assert problem is not None  # nothing is usable, so it says why
            raise problem
        title = f"{host.name}: what may be mapped"
        if usable is None:
            title = f"{host.name}: holes; the width is unknown"
        write_picture(options.output, seen, title=title)
    if options.json:
        judged = None if usable is None else data.usable_data(usable)
        payload = {
            **answer_data(answer),
            "host": snapshot_data(host),
            "features": {unit.name: list(unit_features(unit, host.release)) for unit in host.units},
            "hardware": {info.device: list(info_features(info)) for info in host.iommu_info},
            "usable": judged,
            "why_not": why_not,
        }
        print(data.dump("vmm-iova-show", GENERATOR, payload, version=2), end="")
    else:
        print(show_answer(answer))
        print(show_host(host, usable, looked_at, bytes_=options.bytes), end="")
    judged_ = usable or holes
    return 0 if judged_ is None else status_of(judged_)


def _print_list(options: argparse.Namespace, as_table: bool) -> None:
    names = bundled_hosts()
    if options.json:
        print(data.dump("vmm-iova-hosts", GENERATOR, {"hosts": list(names)}), end="")
    elif not as_table:
        print("\n".join(names))
    else:
        columns = chosen(options, COLUMNS, COLUMNS[:1])
        print(show_table(columns, (_row(name, columns) for name in names), options), end="")


def _row(name: str, columns: list[str]) -> dict[str, str]:
    """A bundled host; it is read only where more than its name is asked for."""
    row = dict.fromkeys(COLUMNS, "") | {"NAME": name}
    if columns != ["NAME"]:
        with contextlib.suppress(HostDataError):  # a text with several hosts: NAME#1, NAME#2 ...
            host = load_host(name)
            row |= {"ARCH": host.arch or "", "RELEASE": host.release or ""}
            row |= {"GROUPS": str(len(host.groups)), "UNITS": str(len(host.units))}
    return row
