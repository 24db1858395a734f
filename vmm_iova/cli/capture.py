# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova capture`: write what a host says as a snapshot."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmm_iova import remedies as say
from vmm_iova.cli.options import GENERATOR, add_host_options, command, host_of, write
from vmm_iova.errors import HostUnavailableError
from vmm_iova.host.snapshot import dump_snapshot

if TYPE_CHECKING:
    import argparse


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "capture", run)
    add_host_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="where to (default: stdout)")
    parser.add_argument("--name", help="what to call the host (default: as it was loaded)")


def run(options: argparse.Namespace) -> int:
    """Do it."""
    host = host_of(options)
    if not (host.groups or host.units or host.kernel_ranges or host.log_regions):
        raise HostUnavailableError(
            f"host {host.name} has nothing to capture: no IOMMU groups and no remapping units",
            source=host.name,
            hint=say.IOMMU_ON,
        )
    if options.name:
        host = replace(host, name=options.name)
    document = dump_snapshot(host, GENERATOR)
    if options.output:
        write(options.output, document)
    else:
        print(document, end="")
    for note in host.notes:
        if note.warning:
            print(f"vmm-iova: note: {note.text}", file=sys.stderr)
    return 0
