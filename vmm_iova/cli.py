# SPDX-License-Identifier: Apache-2.0
"""The `vmm-iova` command. It looks and plans; nothing here maps memory or needs root."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import vmm_iova
from vmm_iova.errors import (
    EXIT_CODES,
    EvidenceError,
    HostUnavailableError,
    IovaError,
    RequestError,
)
from vmm_iova.guest.budget import budget
from vmm_iova.guest.explain import Verdict, check
from vmm_iova.guest.failed import parse_failed_maps
from vmm_iova.guest.layout import check_layout
from vmm_iova.guest.plan import Guest, plan
from vmm_iova.host.load import bundled_hosts, load_host, read_text
from vmm_iova.host.snapshot import dump_snapshot, snapshot_data
from vmm_iova.report import compare, data, text
from vmm_iova.units import parse_range, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm_iova.guest.layout import Layout
    from vmm_iova.host.model import Host
    from vmm_iova.host.usable import Usable

GENERATOR = f"vmm-iova {vmm_iova.__version__}"
_REFUSED, _UNASSIGNABLE = 3, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; default `sys.argv`.

    Returns:
        The exit status, one of `errors.EXIT_CODES` (argparse itself exits with 2).
    """
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        status = run(options)
        sys.stdout.flush()
    except IovaError as error:
        return _complain(error)
    except BrokenPipeError:
        # The reader has gone (head, less): what it wanted it has. Keep the interpreter from
        # complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # no traceback reaches the terminal
        print(
            f"vmm-iova: error: {type(error).__name__}: {error}\n"
            "  hint: this is a defect of vmm-iova; please report it with the command and its input",
            file=sys.stderr,
        )
        return 70
    return status


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as our own words; where in our source it arose helps nobody."""
    print(f"vmm-iova: warning: {message}", file=sys.stderr)


def _complain(error: IovaError) -> int:
    print(f"vmm-iova: error: {error.message}", file=sys.stderr)
    for label, more in (("detail", error.detail), ("hint", error.hint)):
        if more:
            print(f"  {label}: {more}", file=sys.stderr)
    return error.exit_code


# -- options --------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint looks like every other one of ours."""

    def error(self, message: str) -> NoReturn:
        print(f"vmm-iova: error: {message}\n  hint: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:<3} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = _Parser(
        prog="vmm-iova",
        description="Where guest memory may go on a host, where it goes, and why not elsewhere.",
        epilog=f"exit status:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    show = _command(commands, "show", _show, "what a host says, and what may be mapped on it")
    show.add_argument("--list", action="store_true", help="name the bundled hosts and stop")

    planner = _command(commands, "plan", _plan, "where a guest goes on a host")
    planner.add_argument("--machine", default="q35", help="model or a .toml file (default q35)")
    planner.add_argument("--ram", required=True, help="size of the RAM, like 64G or 1.5TiB")
    planner.add_argument(
        "--on-hole",
        default="split",
        choices=("split", "move", "refuse"),
        help="what to do when the machine's own place is not free (default split)",
    )
    planner.add_argument("--pci64", help="size of the 64-bit PCI window; 0 for none")
    planner.add_argument("--align", help="alignment of RAM pieces, like 2MiB (default: granule)")
    planner.add_argument(
        "-o", "--output", metavar="FILE", help="also write a picture (.svg) or the layout (.json)"
    )

    checker = _command(commands, "check", _check, "may a range be mapped, and if not, why not")
    checker.add_argument(
        "--range", action="append", default=[], help="START-LAST or START+SIZE; may be repeated"
    )
    checker.add_argument("--maps", metavar="FILE", help="a list of failed maps to check")

    differ = _command(commands, "diff", _diff, "two hosts or two layouts", host=False)
    differ.add_argument("first", help="host (as for --host) or layout file")
    differ.add_argument("second", help="the other one")

    capture = _command(commands, "capture", _capture, "write what a host says as a snapshot")
    capture.add_argument("-o", "--output", metavar="FILE", help="where to (default: stdout)")
    return parser


def _version() -> str:
    return f"vmm-iova {vmm_iova.__version__} ({vmm_iova.engine_name()} engine)"


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    about: str,
    *,
    host: bool = True,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
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
    parser.add_argument("--aperture", help="width in bits or a range, where no evidence is at hand")
    parser.add_argument("--granule", help="smallest mapping unit, like 4K, if you know it")
    parser.add_argument(
        "--strict", action="store_true", help="treat direct-relaxable regions as holes"
    )
    parser.add_argument("-J", "--json", action="store_true", help="print JSON")
    parser.add_argument("-b", "--bytes", action="store_true", help="print sizes in bytes")
    return parser


def _split(values: list[str] | None) -> list[str] | None:
    if values is None:
        return None
    return [item for value in values for item in value.replace(",", " ").split()]


def _host(options: argparse.Namespace, spec: str | None = None) -> Host:
    host = load_host(options.host if spec is None else spec, sysroot=options.sysroot)
    for more in options.facts:
        host = host.with_facts(load_host(more))
    return host


def _usable(host: Host, options: argparse.Namespace) -> Usable:
    granule = None if options.granule is None else parse_size(options.granule, "granule")
    return host.usable(
        groups=_split(options.groups),
        devices=_split(options.devices),
        aperture=options.aperture,
        granule=granule,
        strict=options.strict,
    )


def _status(usable: Usable) -> int:
    return _UNASSIGNABLE if usable.unassignable else 0


# -- commands -------------------------------------------------------------------------------------


def _show(options: argparse.Namespace) -> int:
    if options.list:
        names = bundled_hosts()
        listing = data.dump("vmm-iova-hosts", GENERATOR, {"hosts": list(names)})
        print(listing if options.json else "\n".join(names))
        return 0
    host = _host(options)
    usable, why_not = None, None
    try:
        usable = _usable(host, options)
    except EvidenceError as error:
        why_not = str(error).replace("\n", "\n  ")
    except HostUnavailableError as error:
        why_not = error.message
    if options.json:
        judged = None if usable is None else data.usable_data(usable)
        payload = {"host": snapshot_data(host), "usable": judged, "why_not": why_not}
        print(data.dump("vmm-iova-show", GENERATOR, payload), end="")
    else:
        print(text.show_host(host, usable, why_not, bytes_=options.bytes), end="")
    return 0 if usable is None else _status(usable)


def _plan(options: argparse.Namespace) -> int:
    usable = _usable(_host(options), options)
    guest = Guest(options.machine, options.ram, options.pci64, options.align)
    layout = plan(guest, usable, options.on_hole)
    cost = budget(layout)
    document = data.dump_layout(layout, cost, GENERATOR)
    if options.output:
        _write(options.output, _picture(options.output, layout, document))
    if options.json:
        print(document, end="")
    else:
        print(text.show_layout(layout, cost, bytes_=options.bytes), end="")
    return _status(usable)


def _picture(name: str, layout: Layout, document: str) -> str:
    suffix = Path(name).suffix.lower()
    if suffix == ".json":
        return document
    if suffix != ".svg":
        raise RequestError(f"output {name!r} is neither .svg nor .json", field="output", value=name)
    from vmm_iova.report.svg import draw_layout  # a picture is asked for rarely

    return draw_layout(layout)


def _write(name: str, content: str) -> None:
    try:
        Path(name).write_text(content, "utf-8")
    except OSError as error:
        raise HostUnavailableError(
            f"{name} could not be written: {error.strerror}", source=name, errno=error.errno
        ) from error
    print(f"wrote {name}", file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    asked = [(None, parse_range(item)) for item in options.range]
    named = [
        (f"{item.name} ({item.said})" if item.said else item.name, item.range)
        for item in (parse_failed_maps(*read_text(options.maps)) if options.maps else ())
    ]
    if not asked and not named:
        raise RequestError(
            "nothing to check: give --range or --maps",
            field="range",
            value=None,
            hint="vmm-iova check --host HOST --range 0xfd00000000+4G",
        )
    usable = _usable(_host(options), options)
    verdicts: list[tuple[str | None, Verdict]] = [
        (name, check(usable, wanted)) for name, wanted in [*asked, *named]
    ]
    if options.json:
        entries = [{"name": name, **data.verdict_data(item)} for name, item in verdicts]
        unassignable = [item.text for item in usable.unassignable]
        payload = {"host": usable.host, "unassignable": unassignable, "verdicts": entries}
        print(data.dump("vmm-iova-check", GENERATOR, payload), end="")
    else:
        for entry in usable.unassignable:
            print(f"warning: {entry.text}")
        print("".join(text.show_verdict(item, name) for name, item in verdicts), end="")
    return _status(usable) if all(item.ok for _, item in verdicts) else _REFUSED


def _diff(options: argparse.Namespace) -> int:
    layouts = [_layout(spec) for spec in (options.first, options.second)]
    if layouts[0] is not None and layouts[1] is not None:
        difference = compare.compare_layouts(layouts[0], layouts[1])
    elif layouts[0] is not None or layouts[1] is not None:
        raise RequestError(
            f"{options.first} and {options.second} are a host and a layout: compare two of a kind",
            field="second",
            value=options.second,
        )
    else:
        hosts = [_host(options, spec) for spec in (options.first, options.second)]
        judged = [_usable_or_none(host, options) for host in hosts]
        difference = compare.compare_hosts(hosts[0], hosts[1], judged[0], judged[1])
    if options.json:
        payload = {"same": difference.same, "difference": difference.to_json()}
        print(data.dump("vmm-iova-diff", GENERATOR, payload), end="")
    else:
        print(text.show_difference(difference, options.first, options.second), end="")
    return 0 if difference.same else _REFUSED


def _usable_or_none(host: Host, options: argparse.Namespace) -> Usable | None:
    try:
        return _usable(host, options)
    except (EvidenceError, HostUnavailableError):
        return None


def _layout(spec: str) -> dict[str, Any] | None:
    """Read a layout file; None if it is something else."""
    if not spec.endswith(".json") or not Path(spec).is_file():
        return None
    content, name = read_text(spec)
    try:
        found = json.loads(content)
    except ValueError:
        return None  # the reader of snapshots says what is wrong with it
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, dict) or schema.get("name") != "vmm-iova-layout":
        return None
    return check_layout(found, name)


def _capture(options: argparse.Namespace) -> int:
    host = _host(options)
    if not (host.groups or host.units or host.kernel_ranges or host.log_regions):
        raise HostUnavailableError(
            f"host {host.name} has nothing to capture: no IOMMU groups and no remapping units",
            source=host.name,
            hint="switch the IOMMU on in the firmware and, on Intel, boot with intel_iommu=on",
        )
    document = dump_snapshot(host, GENERATOR)
    if options.output:
        _write(options.output, document)
    else:
        print(document, end="")
    for note in host.notes:
        if note.warning:
            print(f"vmm-iova: note: {note.text}", file=sys.stderr)
    return 0
