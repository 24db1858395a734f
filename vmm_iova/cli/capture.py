# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova capture`: write what a host says as a snapshot."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vmm_iova.cli.options import GENERATOR, add_host_options, host_of, write
from vmm_iova.cli.parser import command
from vmm_iova.errors import HostUnavailableError, RequestError
from vmm_iova.host.obstacles import iommu_hint
from vmm_iova.host.snapshot import dump_snapshot
from vmm_iova.record import replace
from vmm_iova.report import data
from vmm_iova.report.answer import answer_data, show_answer
from vmm_iova.report.verdicts import capture_answer

if TYPE_CHECKING:
    import argparse


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "capture", run)
    add_host_options(parser, bytes_=False)
    parser.add_argument("-o", "--output", metavar="FILE", help="where to (default: stdout)")
    parser.add_argument("--name", help="what to call the host (default: as it was loaded)")


def run(options: argparse.Namespace) -> int:
    """Do it: the snapshot goes to the file or to stdout, what is said of it beside it."""
    if options.json and not options.output:
        raise RequestError(
            "a snapshot is JSON already, and goes to stdout",
            field="json",
            value=True,
            hint="leave out -J, or name a file with -o",
        )
    host = host_of(options)
    if not (host.groups or host.units or host.kernel_ranges or host.log_regions):
        raise HostUnavailableError(
            f"host {host.name} has nothing to capture: no IOMMU groups and no remapping units",
            source=host.name,
            hint=iommu_hint(host.platform, host.arch),
        )
    if options.name:
        host = replace(host, name=options.name)
    document = dump_snapshot(host, GENERATOR)
    answer = capture_answer(host, options.output)
    if options.output:
        write(options.output, document, quiet=True)
    else:
        print(document, end="")
    if options.json:
        print(data.dump("vmm-iova-capture", GENERATOR, answer_data(answer)), end="")
    else:
        print(show_answer(answer), end="", file=None if options.output else sys.stderr)
    return 0
