# SPDX-License-Identifier: Apache-2.0
"""A fleet's answer for people and as data; its hosts as rows of a table."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
from typing import TYPE_CHECKING, Any, Protocol

from vmm_iova.errors import RequestError
from vmm_iova.fleet import Fleet, HostRow
from vmm_iova.guest.layout import ItemKind
from vmm_iova.report import data, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from vmm_iova.fleet import Blocker, LayoutGroup
    from vmm_iova.guest.layout import Layout

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
    lines = [
        f"hosts   {_count(fleet.hosts)}: "
        + ", ".join(f"{count} {_SAYS[status]}" for status, count in fleet.counts.items()),
        f"answer  {_answer(fleet)}",
    ]
    shown = fleet.groups
    if fleet.layout is not None:
        lines += [
            "",
            f"layout for {_count(fleet.counts.get('fits', 0))}",
            *_map(fleet.layout, bytes_),
        ]
        lines += text.section("cuts", _cuts(fleet.layout))
        shown = () if len(fleet.groups) == 1 else fleet.groups
    for index, group in enumerate(shown, 1):
        lines += ["", f"layout {index} for {_who(group)}", *_map(group.layout, bytes_)]
        lines += (f"  {entry}" for entry in _cuts(group.layout))
    lines += text.section("in the way", _blockers(fleet.blockers))
    lines += text.section("devices", _devices(fleet))
    damaged = fleet.problems.get("damaged", ())
    lines += text.section(
        "damaged, not looked at",
        [
            *(f"{name}: {problem}" for name, problem in damaged[:_PROBLEMS_SHOWN]),
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
    "absent": "have no such device",
    "unsettled": "do not settle it",
    "damaged": "damaged",
}


def _count(hosts: int) -> str:
    return f"{hosts} host" + ("" if hosts == 1 else "s")


def _answer(fleet: Fleet) -> str:
    damaged = fleet.counts.get("damaged", 0)
    aside = f", {damaged} damaged aside" if damaged else ""
    if fleet.layout is not None:
        return f"one layout fits every host{aside}"
    if not fleet.groups:
        return f"no host can have it{aside}"
    able = sum(group.hosts for group in fleet.groups)
    parts = len(fleet.groups)
    against = fleet.hosts - damaged - able
    verb = "stands" if against == 1 else "stand"
    others = f"{_count(against)} {verb} in the way, " if parts == 1 else ""
    share = f"the other {able} share one" if parts == 1 else f"{parts} layouts fit {able}"
    return f"no layout fits every host: {others}{share}{aside}"


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


def _blockers(blockers: Iterable[Blocker]) -> Iterator[str]:
    for item in blockers:
        names = _names(item.names, item.hosts)
        yield f"{_count(item.hosts)}{f' ({names})' if names else ''}: {item.why}"
        yield from (f"  fix: {fix}" for fix in item.fixes)


def _devices(fleet: Fleet) -> Iterator[str]:
    for (code, driver), count in fleet.devices.items():
        name = f"{_class_name(code)}{f', {driver}' if driver else ''}"
        held = count.groups - count.assignable
        blocked = f"; {held} kept by firmware" if held else ""
        if count.blocked:
            blocked += f" ({count.blocked[0]}: {count.blocked[1]})"
        yield (
            f"{name:<28} {count.groups} groups on {_count(count.hosts)}, {count.assignable} can be "
            f"assigned, {count.fits} where the guest fits{blocked}"
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
        "complete": fleet.complete,
        "layout": None if fleet.layout is None else fleet.layout.to_json(),
        "groups": [
            {
                "layout": group.layout.to_json(),
                "digest": group.digest,
                "hosts": group.hosts,
                "names": list(group.names),
                "classes": [item.digest for item in group.classes],
            }
            for group in fleet.groups
        ],
        "blockers": [dataclasses.asdict(item) for item in fleet.blockers],
        "problems": {
            status: [{"name": name, "text": problem} for name, problem in found]
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
                "blocked": None if count.blocked is None else list(count.blocked),
            }
            for (code, driver), count in fleet.devices.items()
        ],
        "classes": [
            {
                "digest": item.digest,
                "hosts": item.hosts,
                "names": list(item.names),
                "granule": f"{item.granule:#x}",
                "ranges": [data.span(span) for span in item.ranges],
                "layout": item.layout,
                "refusal": item.refusal,
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
