# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the options about hosts, and what is made of them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import vmm_iova
from vmm_iova.errors import EvidenceError, ExitCode, HostUnavailableError, RequestError
from vmm_iova.files import write_text
from vmm_iova.host.load import load_facts, load_host
from vmm_iova.units import parse_size, shorten

if TYPE_CHECKING:
    from vmm_iova.host.host import Host
    from vmm_iova.host.usable import Usable

GENERATOR = f"vmm-iova {vmm_iova.__version__}"
"""Name and version of this program, for the documents that it writes."""

UNASSIGNABLE, REFUSED = ExitCode.UNASSIGNABLE, ExitCode.REFUSED
DAMAGED, UNSETTLED = ExitCode.DAMAGED, ExitCode.UNSETTLED
"""Exit statuses of answers."""


def add_host_options(
    parser: argparse.ArgumentParser, *, host: bool = True, bytes_: bool = True
) -> None:
    """Add the options that say which host, which devices of it, and how to print.

    Args:
        parser: of a command.
        host: False if the command has its own way to name hosts.
        bytes_: False if the command prints no table of sizes.
    """
    group = parser.add_argument_group("host")
    if host:
        group.add_argument(
            "--host",
            default="LIVE",
            help="LIVE (default: this machine), a file, - for stdin, a directory, a bundled host",
        )
    group.add_argument("--sysroot", default="/", metavar="DIR", help="for LIVE: where sys/ is")
    group.add_argument(
        "--facts",
        action="append",
        default=[],
        metavar="FILE",
        help="more facts of the same host; ranges:FILE for the kernel's range list as bare pairs; "
        "may be repeated",
    )
    group.add_argument(
        "-g", "--groups", action="append", help="IOMMU groups, comma separated (default: all)"
    )
    group.add_argument(
        "-s", "--devices", action="append", metavar="BDF", help="devices, comma separated"
    )
    group.add_argument(
        "--ask-kernel",
        nargs="?",
        const="auto",
        choices=("auto", "type1", "iommufd"),
        help="attach the devices of -s (bound to vfio-pci) to an empty address space and take the "
        "kernel's own range list; nothing is mapped",
    )
    add_judge_options(parser)
    add_print_options(parser, bytes_=bytes_)


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """Add what the user states about a host."""
    group = parser.add_argument_group("what you know of the host")
    group.add_argument("--aperture", help="width in bits or a range, where no evidence is at hand")
    group.add_argument("--granule", help="smallest mapping unit, like 4K, if you know it")
    group.add_argument(
        "--strict",
        action="store_true",
        help="treat direct-relaxable regions, and RMRRs of a log, as holes",
    )


def add_print_options(parser: argparse.ArgumentParser, *, bytes_: bool = True) -> None:
    """Add how to print."""
    group = parser.add_argument_group("output")
    group.add_argument("-J", "--json", action="store_true", help="print JSON")
    if bytes_:
        group.add_argument("-b", "--bytes", action="store_true", help="print sizes in bytes")


def split(values: list[str] | None) -> list[str] | None:
    """Cut repeated, comma-separated values into one list; None stays None."""
    if values is None:
        return None
    return [item for value in values for item in value.replace(",", " ").split()]


def host_of(options: argparse.Namespace, spec: str | None = None) -> Host:
    """Load the host that the options name, or `spec`, with the facts that are added to it."""
    named = options.host if spec is None else spec
    for field, given in (("sysroot", "--sysroot"), ("ask_kernel", "--ask-kernel")):
        if getattr(options, field) not in (None, "/") and named != "LIVE":
            raise RequestError(
                f"{given} is about this machine, and {shorten(named)} is another host",
                field=field,
                value=getattr(options, field),
                hint=f"leave out {given}, or the host",
            )
    host = load_host(named, sysroot=options.sysroot)
    for more in options.facts:
        host = host.with_facts(load_facts(more))
    return _ask_kernel(host, options) if options.ask_kernel else host


def _ask_kernel(host: Host, options: argparse.Namespace) -> Host:
    devices = [host.device(name).name for name in split(options.devices) or ()]
    if not devices:
        raise RequestError(
            "--ask-kernel needs to know which devices to attach",
            field="devices",
            value=None,
            hint="name them with -s, like -s 0000:01:00.0",
        )
    from vmm_iova.kernel import open_space, with_kernel_facts  # needs Linux

    with open_space(devices, via=options.ask_kernel) as space:
        return with_kernel_facts(host, space)


def usable_of(host: Host, options: argparse.Namespace) -> Usable:
    """Judge the selection that the options name."""
    granule = None if options.granule is None else parse_size(options.granule, "granule")
    return host.usable(
        groups=split(options.groups),
        devices=split(options.devices),
        aperture=options.aperture,
        granule=granule,
        strict=options.strict,
    )


def holes_of(host: Host, options: argparse.Namespace) -> Usable | None:
    """Judge the selection where is unknown it is: its holes count, its top does not."""
    stated = argparse.Namespace(**{**vars(options), "aperture": 64})
    return usable_or_none(host, stated)


def usable_or_none(host: Host, options: argparse.Namespace) -> Usable | None:
    """Judge the selection; None where the facts do not settle it."""
    try:
        return usable_of(host, options)
    except (EvidenceError, HostUnavailableError):
        return None


def status_of(usable: Usable) -> int:
    """Return the exit status of an answer that is yes."""
    return UNASSIGNABLE if usable.unassignable else 0


def write(name: str, content: str, *, quiet: bool = False) -> None:
    """Write a text file and, unless the answer does, say so.

    Raises:
        HostUnavailableError: it could not be written (with errno).
    """
    write_text(name, content)
    if not quiet:
        print(f"wrote {name}", file=sys.stderr)
