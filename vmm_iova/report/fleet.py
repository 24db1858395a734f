# SPDX-License-Identifier: Apache-2.0
"""A fleet's answer for people and as data; its hosts as rows of a table."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
from typing import TYPE_CHECKING, Any, Protocol

from vmm_iova.errors import RequestError
from vmm_iova.fleet import Fleet, HostRow, Status
from vmm_iova.planning.layout import ItemKind
from vmm_iova.report import data, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from vmm_iova.fleet import Blocker, LayoutGroup, Problem
    from vmm_iova.planning.layout import Layout

_PROBLEMS_SHOWN = 20
_CLASSES = {
    "01": "storage",
    "02": "network",
    "0300": "VGA",
    "0302": "3D controller",
    "03": "display",
    "04": "multimedia",
    "06": "bridge",
    "0c03": "USB",
    "12": "accelerator",
}


def show_fleet(fleet: Fleet, *, bytes_: bool) -> str:
    """Show the layout of a fleet, who shares it, who stands in the way, and its devices."""
    lines = [f"hosts   {_count(fleet.hosts)}: {_said(fleet.counts)}"]
    several = len(fleet.machines) > 1
    for name, counts in fleet.machines.items():
        hosts = f" for {_count(sum(counts.values()))}: {_said(counts)}" if several else ""
        lines.append(f"machine {name}{hosts}")
    if fleet.machines and fleet.by_host:
        lines.append("        (by the architecture of each host; --machine names another)")
    lines.append(f"answer  {answer(fleet)}")
    number = 0
    for name, counts in fleet.machines.items():
        of = f", machine {name}" if several else ""
        common = fleet.layouts[name]
        if common is not None:
            lines += ["", f"layout for {_count(counts['fits'])}{of}", *_map(common, bytes_)]
            cuts = _cuts(common)
            lines += (f"  {entry}" for entry in cuts) if several else text.section("cuts", cuts)
            continue
        for group in fleet.groups:
            if group.classes[0].machine == name:
                number += 1
                lines += ["", f"layout {number} for {_who(group)}{of}"]
                lines += _map(group.layout, bytes_)
                lines += (f"  {entry}" for entry in _cuts(group.layout))
    against = [item for item in fleet.blockers if item.status != Status.UNSETTLED]
    unsettled = [item for item in fleet.blockers if item.status == Status.UNSETTLED]
    lines += text.section("in the way", _blockers(against, "fix"))
    lines += text.section(
        "unsettled: the facts do not say what may be mapped", _blockers(unsettled, "settles it")
    )
    lines += text.section("devices", _devices(fleet))
    damaged = fleet.problems.get("damaged", ())
    lines += text.section(
        "damaged, not looked at",
        [
            *(_problem(item) for item in damaged[:_PROBLEMS_SHOWN]),
            *_more(fleet.counts.get("damaged", 0) - _PROBLEMS_SHOWN),
        ],
    )
    if fleet.truncated:
        lines += ["", f"note: more than {len(fleet.classes)} kinds of hosts: the groups are those"]
        lines += ["of a sample with exact counts; the counts and a layout for all are exact"]
    return "\n".join(lines) + "\n"


_SAYS = {
    "fits": "can have the guest",
    "refused": "cannot",
    "unassignable": "cannot hand out a device",
    "absent": "without such a device",
    "unsettled": "unsettled",
    "damaged": "damaged",
}


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{counts[status]} {said}" for status, said in _SAYS.items() if counts.get(status)
    )


def _problem(item: Problem) -> str:
    return f"{item.name}: {item.text}" + (f" ({'; '.join(item.fixes)})" if item.fixes else "")


def _count(hosts: int) -> str:
    return f"{hosts} host" + ("" if hosts == 1 else "s")


def answer(fleet: Fleet) -> str:
    """Say in one sentence what holds for the fleet; what is not known is never said to be no."""
    count = fleet.counts.get
    able, unsettled, damaged = count("fits", 0), count("unsettled", 0), count("damaged", 0)
    against = fleet.hosts - able - unsettled - damaged
    aside = f", {damaged} damaged aside" if damaged else ""
    if unsettled:
        aside = f", {unsettled} unsettled{aside}"
    if able:
        return f"{_able(fleet, able, against)}{aside}"
    if against and unsettled:
        return f"no host that the facts settle can have it{aside}"
    if against:
        return f"no host can have it{aside}"
    if unsettled:
        return f"unsettled: no host's facts say what may be mapped{', ' if damaged else ''}" + (
            f"{damaged} damaged aside" if damaged else ""
        )
    return "nothing is known: every snapshot is damaged"


def _able(fleet: Fleet, able: int, against: int) -> str:
    """The answer where some hosts can have the guest."""
    parts, machines = len(fleet.groups), len({group.layout.machine.name for group in fleet.groups})
    whole = not against and all(
        layout is not None
        for name, layout in fleet.layouts.items()
        if fleet.machines[name].get("fits")
    )
    if whole:
        settled = " that the facts settle" if fleet.counts.get("unsettled") else ""
        if machines == 1:
            return f"one layout fits every host{settled}"
        return f"{machines} machines, each with one layout that fits every host of it{settled}"
    verb = "stands" if against == 1 else "stand"
    others = f"{_count(against)} {verb} in the way, " if against else ""
    placed = sum(group.hosts for group in fleet.groups)
    the = "the other " if against else ""
    if parts == 1:
        share = f"{the}{able} {'has' if able == 1 else 'share'} one"
    elif parts == machines:
        share = f"{parts} layouts, one for each machine, fit {the}{placed}"
    else:
        share = f"{parts} layouts fit {the}{placed}"
    return f"no layout fits every host: {others}{share}"


def _who(group: LayoutGroup) -> str:
    return f"{_count(group.hosts)} ({_names(group.names, group.hosts)})"


def _names(names: tuple[str, ...], hosts: int) -> str:
    shown = ", ".join(names[:3])
    more = hosts - min(len(names), 3)
    return f"{shown} and {more} more" if more > 0 and shown else shown


def _map(layout: Layout, bytes_: bool) -> Iterator[str]:
    for item in layout.items:
        if item.kind in (ItemKind.RAM, ItemKind.WINDOW, ItemKind.MSI):
            name = f"RAM {item.name}" if item.kind is ItemKind.RAM else item.name
            differs = item.iova is not None and item.gpa is not None and item.iova != item.gpa
            more = f"IOVA {item.iova.start:016x}-{item.iova.last:016x}" if differs else ""  # type: ignore[union-attr]
            yield text.line(item.place, name, bytes_=bytes_, more=more)


def _cuts(layout: Layout) -> Iterator[str]:
    for item in layout.ram:
        if item.start_cause:
            yield f"RAM begins at {item.place.start:#x}: {item.start_cause}"
        if item.last_cause:
            yield f"RAM ends at {item.place.last:#x}: {item.last_cause}"


def _blockers(blockers: Iterable[Blocker], remedy: str) -> Iterator[str]:
    for item in blockers:
        names = _names(item.names, item.hosts)
        yield f"{_count(item.hosts)}{f' ({names})' if names else ''}: {item.why}"
        yield from (f"  {remedy}: {fix}" for fix in item.fixes)


def _devices(fleet: Fleet) -> Iterator[str]:
    for (code, driver), count in fleet.devices.items():
        name = f"{_class_name(code)}{f', {driver}' if driver else ''}"
        held = count.groups - count.assignable
        blocked = f"; {held} cannot" if held else ""
        if count.blocked:
            blocked += f" ({count.blocked[0]}: {count.blocked[1]})"
        where = f" ({_names(count.names, count.fit_hosts)})" if count.names else ""
        groups = f"{count.groups} group" + ("" if count.groups == 1 else "s")
        yield (
            f"{name:<28} {groups} on {_count(count.hosts)}, {count.assignable} can be assigned, "
            f"{count.fits} where the guest fits{where}{blocked}"
        )


def _class_name(code: str) -> str:
    if not code:
        return "class not stated"
    name = next((_CLASSES[key] for key in (code, code[:2]) if key in _CLASSES), None)
    return f"{code} {name}" if name else code


def _more(count: int) -> list[str]:
    return [f"and {count} more"] if count > 0 else []


def fleet_data(fleet: Fleet) -> dict[str, Any]:
    """Return the answer as plain data."""
    return {
        "hosts": fleet.hosts,
        "counts": dict(fleet.counts),
        "answer": answer(fleet),
        "complete": fleet.complete,
        "layout": None if fleet.layout is None else fleet.layout.to_json(),
        "machines": [
            {
                "name": name,
                "counts": dict(counts),
                "layout": None if (common := fleet.layouts[name]) is None else common.to_json(),
            }
            for name, counts in fleet.machines.items()
        ],
        "groups": [
            {
                "layout": group.layout.to_json(),
                "digest": group.digest,
                "machine": group.layout.machine.name,
                "hosts": group.hosts,
                "names": list(group.names),
                "classes": [item.digest for item in group.classes],
            }
            for group in fleet.groups
        ],
        "blockers": [dataclasses.asdict(item) for item in fleet.blockers],
        "problems": {
            status: [
                {"name": name, "text": problem, "fixes": list(fixes)}
                for name, problem, fixes in found
            ]
            for status, found in fleet.problems.items()
        },
        "devices": [
            {
                "class": code or None,
                "driver": driver or None,
                "groups": count.groups,
                "assignable": count.assignable,
                "fits": count.fits,
                "hosts": count.hosts,
                "fit_hosts": count.fit_hosts,
                "names": list(count.names),
                "blocked": None if count.blocked is None else list(count.blocked),
            }
            for (code, driver), count in fleet.devices.items()
        ],
        "classes": [
            {
                "digest": item.digest,
                "hosts": item.hosts,
                "names": list(item.names),
                "machine": item.machine,
                "granule": f"{item.allowed.granule:#x}",
                "cpu_bits": item.allowed.cpu_bits,
                "ranges": [data.span(span) for span in item.allowed.ranges],
                "layout": item.layout,
                "refusal": item.refusal,
                "fixes": list(item.fixes),
            }
            for item in fleet.classes
        ],
        "truncated": fleet.truncated,
    }


class RowWriter(Protocol):
    """Takes the rows of a fleet as they come."""

    def write(self, rows: tuple[HostRow, ...]) -> None:
        """Write some rows."""

    def close(self) -> None:
        """Finish the file."""


_FIELDS = [field.name for field in dataclasses.fields(HostRow)]
_ROW_GROUP = 10_000


class _Lines:
    """Rows as lines: CSV, or JSON objects."""

    def __init__(self, path: Path, as_csv: bool) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._file) if as_csv else None
        if self._csv is not None:
            self._csv.writerow(_FIELDS)

    def write(self, rows: tuple[HostRow, ...]) -> None:
        for row in rows:
            values = [getattr(row, name) for name in _FIELDS]
            if self._csv is not None:
                self._csv.writerow(values)
            else:
                pairs = dict(zip(_FIELDS, values, strict=True))
                self._file.write(json.dumps(pairs) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """Rows as Parquet, written in groups, so that memory stays bounded."""

    def __init__(self, path: Path) -> None:
        try:
            arrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise RequestError(
                "Parquet needs the package pyarrow, which is not installed",
                field="output",
                value=str(path),
                hint="pip install 'vmm-iova[fleet]', or write .csv or .jsonl",
            ) from error
        kinds = {"int": arrow.int64(), "str": arrow.string(), "str | None": arrow.string()}
        fields = dataclasses.fields(HostRow)
        self._schema = arrow.schema([(item.name, kinds[str(item.type)]) for item in fields])
        self._table = arrow.Table
        self._writer = parquet.ParquetWriter(str(path), self._schema)
        self._held: list[dict[str, Any]] = []

    def write(self, rows: tuple[HostRow, ...]) -> None:
        self._held += ({name: getattr(row, name) for name in _FIELDS} for row in rows)
        if len(self._held) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(self._table.from_pylist(self._held, schema=self._schema))
            self._held = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


def row_writer(path: Path) -> RowWriter:
    """Open a table of hosts, by its suffix: `.parquet`, `.csv` or `.jsonl`.

    Raises:
        RequestError: another suffix, or pyarrow is not installed.
        OSError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _Parquet(path)
    if suffix in (".csv", ".jsonl"):
        return _Lines(path, suffix == ".csv")
    raise RequestError(
        f"output {path.name!r} is none of .parquet, .csv, .jsonl and .json",
        field="output",
        value=str(path),
    )
