# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the options about hosts, and what is made of them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import vmm_iova
from vmm_iova.errors import EvidenceError, HostUnavailableError, RequestError
from vmm_iova.files import write_text
from vmm_iova.host.load import load_facts, load_host
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm_iova.host.host import Host
    from vmm_iova.host.usable import Usable

GENERATOR = f"vmm-iova {vmm_iova.__version__}"
"""Name and version of this program, for the documents that it writes."""

UNASSIGNABLE, REFUSED, DAMAGED, UNSETTLED = 1, 3, 5, 9
"""Exit statuses of answers (see `errors.EXIT_CODES`)."""


ROOMS = {  # in the order of the help
    "show": "what a host says, and what may be mapped on it",
    "plan": "where a guest goes on a host",
    "check": "may a range be mapped, and if not, why not",
    "explain": "why a call failed, from the error line as it is pasted",
    "machines": "machine models, or one of them",
    "fleet": "one layout for many hosts, or who stands in the way",
    "diff": "two hosts or two layouts",
    "capture": "write what a host says as a snapshot",
}
"""Commands, each with its room of that name in this package, and what it does."""


class Parser(argparse.ArgumentParser):
    """argparse whose complaint looks like every other one of ours."""

    def error(self, message: str) -> NoReturn:
        """Print one sentence and a hint, and exit with status 2."""
        print(f"vmm-iova: error: {message}\n  hint: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a command that prints text or JSON."""
    about = ROOMS[name]
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
    return parser


def add_host_options(parser: argparse.ArgumentParser, *, host: bool = True) -> None:
    """Add the options that say which host, which devices of it, and how to print.

    Args:
        parser: of a command.
        host: False if the command has its own way to name hosts.
    """
    if host:
        parser.add_argument(
            "--host",
            default="LIVE",
            help="LIVE (default: this machine), a file, - for stdin, a directory, a bundled host",
        )
    parser.add_argument("--sysroot", default="/", metavar="DIR", help="for LIVE: where sys/ is")
    parser.add_argument(
        "--facts",
        action="append",
        default=[],
        metavar="FILE",
        help="more facts of the same host, such as the kernel's range list; may be repeated",
    )
    parser.add_argument(
        "-g", "--groups", action="append", help="IOMMU groups, comma separated (default: all)"
    )
    parser.add_argument(
        "-s", "--devices", action="append", metavar="BDF", help="devices, comma separated"
    )
    parser.add_argument(
        "--ask-kernel",
        nargs="?",
        const="auto",
        choices=("auto", "type1", "iommufd"),
        help="attach the devices of -s (bound to vfio-pci) to an empty address space and take the "
        "kernel's own range list; nothing is mapped",
    )
    add_judge_options(parser)
    add_print_options(parser)


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """Add what the user states about a host."""
    parser.add_argument("--aperture", help="width in bits or a range, where no evidence is at hand")
    parser.add_argument("--granule", help="smallest mapping unit, like 4K, if you know it")
    parser.add_argument(
        "--strict", action="store_true", help="treat direct-relaxable regions as holes"
    )


def add_print_options(parser: argparse.ArgumentParser) -> None:
    """Add how to print."""
    parser.add_argument("-J", "--json", action="store_true", help="print JSON")
    parser.add_argument("-b", "--bytes", action="store_true", help="print sizes in bytes")


def split(values: list[str] | None) -> list[str] | None:
    """Cut repeated, comma-separated values into one list; None stays None."""
    if values is None:
        return None
    return [item for value in values for item in value.replace(",", " ").split()]


def host_of(options: argparse.Namespace, spec: str | None = None) -> Host:
    """Load the host that the options name, or `spec`, with the facts that are added to it."""
    host = load_host(options.host if spec is None else spec, sysroot=options.sysroot)
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
    """Judge the selection where nothing says how wide it is: its holes count, its top does not."""
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


def write(name: str, content: str) -> None:
    """Write a text file and say so.

    Raises:
        HostUnavailableError: it could not be written (with errno).
    """
    write_text(name, content)
    print(f"wrote {name}", file=sys.stderr)
