# SPDX-License-Identifier: Apache-2.0
"""`vmm-iova check --attach`: would the kernel take one more device, with what is mapped now?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.cli.guest import read_layout
from vmm_iova.cli.options import GENERATOR, REFUSED, host_of, split, usable_of
from vmm_iova.errors import HostDataError, RequestError
from vmm_iova.host.attach import Present
from vmm_iova.host.load import read_text
from vmm_iova.report import attach as report
from vmm_iova.report import data
from vmm_iova.units import parse_range, parse_size

if TYPE_CHECKING:
    import argparse

    from vmm_iova.host.facts import SpaceKind
    from vmm_iova.host.host import Host
    from vmm_iova.ranges import AddrRange, MappableRanges

_WAYS: tuple[SpaceKind, ...] = ("type1", "iommufd")


def run_attach(options: argparse.Namespace) -> int:
    """Answer for each way to the kernel, or the one of --via."""
    if options.maps:
        raise RequestError(
            "--maps is a list of failed maps, and --attach asks about those that are there",
            field="maps",
            value=options.maps,
            hint="name what is mapped with --range, or --layout",
        )
    host = host_of(options)
    names = split(options.attach) or []
    newcomer = host.usable(
        devices=names,
        aperture=options.aperture,
        granule=None if options.granule is None else parse_size(options.granule, "granule"),
        strict=options.strict,
    )
    listed = _attached(host, options)
    mapped = _mapped(options)
    ways = _WAYS if options.via is None else (options.via,)
    found = [report.judged(Present(way, listed, mapped), newcomer, names) for way in ways]
    if options.json:
        payload = {"host": host.name, "attach": names, "verdicts": [item.data() for item in found]}
        print(data.dump("vmm-iova-attach", GENERATOR, payload), end="")
    else:
        print("\n".join(item.shown() for item in found), end="")
    return 0 if all(item.ok for item in found) else REFUSED


def _attached(host: Host, options: argparse.Namespace) -> MappableRanges | None:
    """The kernel's list for what -s and -g say is attached already; None where nothing is."""
    if options.devices is None and options.groups is None:
        return None
    return usable_of(host, options).as_listed()


def _mapped(options: argparse.Namespace) -> list[tuple[AddrRange, str, int]]:
    """What is mapped: ranges, and the RAM of a saved layout."""
    spans = [(parse_range(item), "the mapping") for item in options.range]
    if options.layout:
        saved = read_layout(options.layout)
        if saved is None:
            _, name = read_text(options.layout)
            raise HostDataError(
                f"{name} is no layout",
                source=options.layout,
                hint="vmm-iova plan -o FILE.json writes one",
            )
        spans += [
            (parse_range(f"{item['iova']['start']}-{item['iova']['last']}"), f"RAM {item['name']}")
            for item in saved["items"]
            if item["kind"] == "ram" and item["iova"] is not None
        ]
    return [(span, name, span.start | span.size) for span, name in spans]
