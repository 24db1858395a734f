# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova fleet`: the layout that fits many hosts, or which stand in the way."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm_iova.cli.guest import add_guest_options, add_plan_options, saved_layout
from vmm_iova.cli.options import (
    DAMAGED,
    GENERATOR,
    REFUSED,
    UNSETTLED,
    add_judge_options,
    add_print_options,
    split,
    write,
)
from vmm_iova.cli.parser import command
from vmm_iova.cli.table import add_table_options, chosen, show_table, table_wanted
from vmm_iova.errors import HostUnavailableError, RequestError
from vmm_iova.report import data
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from vmm_iova.fleet import Fleet, FleetRequest, HostRow, Progress
    from vmm_iova.report.fleet import RowWriter


COLUMNS = [
    "NAME",
    "STATUS",
    "MACHINE",
    "LAYOUT",
    "USABLE",
    "PIECES",
    "ADDRESS-BITS",
    "TOP-BITS",
    "GRANULE",
    "GROUPS",
    "BLOCKED-GROUPS",
    "REASON",
    "FIXES",
]
"""Columns of the hosts: the attributes of `HostRow`."""

_USUAL = ["NAME", "STATUS", "MACHINE", "LAYOUT", "REASON"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = command(commands, "fleet", run)
    parser.add_argument(
        "source",
        nargs="+",
        help="folder or archive (tar, zip) of snapshots, snapshot, or bundled host",
    )
    add_guest_options(parser, ram="size of the RAM, like 64G or 1.5TiB; not with --node")
    add_plan_options(parser)
    parser.add_argument(
        "-g", "--groups", action="append", help="IOMMU groups that are needed on each host"
    )
    parser.add_argument(
        "-s", "--devices", action="append", metavar="BDF", help="devices needed on each host"
    )
    parser.add_argument(
        "--class", dest="pci_class", metavar="HEX", help="devices of a PCI class, like 0302 or 02"
    )
    add_judge_options(parser)
    add_print_options(parser)
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="also write a row for each host (.parquet, .csv, .jsonl) or the answer (.json)",
    )
    add_table_options(parser, COLUMNS, "hosts, in place of the answer")


def run(options: argparse.Namespace) -> int:
    """Do it."""
    # Few runs are about fleets: the others start faster without these.
    from vmm_iova.fleet import analyse, read_sources, survey_fleet
    from vmm_iova.report import fleet as report
    from vmm_iova.report.answer import answer_data, show_answer
    from vmm_iova.report.verdicts import fleet_answer

    if not 1 <= options.workers <= 1024:
        raise RequestError(
            f"workers {options.workers} is not 1 to 1024", field="workers", value=options.workers
        )
    as_table = table_wanted(options)
    columns = chosen(options, COLUMNS, _USUAL) if as_table else []
    listed: list[HostRow] = []
    request = _request(options).resolved()
    as_json = options.output is not None and options.output.lower().endswith(".json")
    progress = _Progress(options.source)
    rows = None if as_json else options.output
    try:
        with _rows(rows) as writer, _executor(options) as executor:
            survey = survey_fleet(
                read_sources(options.source),
                request,
                executor=executor,
                in_flight=2 * options.workers,
                progress=progress,
                on_rows=_takers(writer, listed if as_table else None),
            )
    except KeyboardInterrupt:
        held = f"; {rows} has their rows" if rows and progress.hosts else ""
        progress.close()
        print(f"vmm-iova: interrupted after {progress.hosts} hosts{held}", file=sys.stderr)
        return 130
    finally:
        progress.close()
    if not survey.hosts:
        raise HostUnavailableError(
            f"{', '.join(options.source)}: no snapshot in it",
            source=options.source[0],
            hint="of folders and archives the .json and .txt files are read",
        )
    fleet = analyse(survey, request)
    answer = fleet_answer(fleet, report.answer(fleet))
    payload = {**answer_data(answer), **report.fleet_data(fleet)}
    document = data.dump("vmm-iova-fleet", GENERATOR, payload, version=2)
    if as_json:
        write(options.output, document)
    elif options.output:
        print(f"wrote {options.output}", file=sys.stderr)
    if options.json:
        print(document, end="")
    elif as_table:
        print(show_table(columns, map(_cells, listed), options), end="")
    else:
        print(show_answer(answer))
        print(report.show_fleet(fleet, bytes_=options.bytes), end="")
    return _status(fleet)


def _takers(
    writer: RowWriter | None, listed: list[HostRow] | None
) -> Callable[[tuple[HostRow, ...]], None] | None:
    """Return who takes the rows: the file, the table, both, or nobody."""
    if listed is None:
        return writer.write if writer else None

    def take(rows: tuple[HostRow, ...]) -> None:
        listed.extend(rows)
        if writer:
            writer.write(rows)

    return take


def _cells(row: HostRow) -> dict[str, str]:
    """A row as text, by column; what is not known is empty."""
    values = {name: getattr(row, name.lower().replace("-", "_")) for name in COLUMNS}
    return {name: "" if value is None else str(value) for name, value in values.items()}


def _request(options: argparse.Namespace) -> FleetRequest:
    from vmm_iova.cli.definition import asked_of, check_faults, definition_of, newest
    from vmm_iova.fleet import FleetRequest
    from vmm_iova.planning.guest import Guest

    def named(values: list[str] | None) -> tuple[str, ...] | None:
        names = split(values)
        return None if names is None else tuple(names)

    definition = definition_of(options)
    check_faults(definition)
    asked = asked_of(options, definition)
    return FleetRequest(
        newest(asked),
        options.on_hole,
        options.prefer,
        saved_layout(options),
        groups=named(options.groups),
        devices=named(options.devices),
        pci_class=options.pci_class,
        also_fit=named(options.also_fit),
        aperture=options.aperture,
        granule=None if options.granule is None else parse_size(options.granule, "granule"),
        strict=options.strict,
        readings=() if definition is None or isinstance(asked, Guest) else asked.readings[:-1],
    )


class _Progress:
    """Counts the hosts that are done, and shows them where somebody looks on."""

    def __init__(self, sources: list[str]) -> None:
        from vmm_iova.fleet.sources import count_sources
        from vmm_iova.progress import TerminalProgress

        self.hosts = 0
        self._display = TerminalProgress(
            "fleet", getattr(sys.stderr, "beneath", None), unit="hosts"
        )
        self._total = count_sources(sources) if self._display.shown else None

    def __call__(self, done: Progress) -> None:
        self.hosts = done.hosts
        self._display(done.hosts, self._total, f"{done.damaged} damaged" if done.damaged else "")

    def close(self) -> None:
        """End the line that is shown."""
        self._display.close()


@contextlib.contextmanager
def _executor(options: argparse.Namespace) -> Iterator[Any]:
    if options.workers == 1:
        yield None
        return
    from concurrent.futures import ProcessPoolExecutor

    class Workers(ProcessPoolExecutor):
        """Ctrl-C reaches the workers too: this process alone says what there is to say."""

        def __init__(self) -> None:
            super().__init__(options.workers, None, signal.signal, (signal.SIGINT, signal.SIG_IGN))

        def submit(self, *call: Any, **named: Any) -> Any:
            # It starts workers: one must not die, or the pool be left half changed, of a signal
            # that comes before the worker ignores it. The mask is inherited.
            if not hasattr(signal, "pthread_sigmask"):
                return super().submit(*call, **named)
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                return super().submit(*call, **named)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    with Workers() as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _rows(output: str | None) -> Iterator[RowWriter | None]:
    if output is None:
        yield None
        return
    from vmm_iova.report.fleet import row_writer

    try:
        writer = row_writer(Path(output))
    except OSError as error:
        raise HostUnavailableError(
            f"{output} could not be written: {error.strerror}", source=output, errno=error.errno
        ) from error
    with contextlib.closing(writer):
        yield writer


def _status(fleet: Fleet) -> int:
    """The gravest first: somebody is in the way, a snapshot is damaged, the facts are too few."""
    unsettled = fleet.counts.get("unsettled", 0)
    damaged = fleet.counts.get("damaged", 0)
    if any(item.status != "unsettled" for item in fleet.blockers):
        return REFUSED
    if damaged:
        return DAMAGED
    return UNSETTLED if unsettled else 0
