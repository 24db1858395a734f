# SPDX-License-Identifier: Apache-2.0
"""A change as Cloud Hypervisor's options or JSON, or as Firecracker's JSON."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from vmm_iova.definitions.cloud_hypervisor import PROGRAM, arguments_of
from vmm_iova.definitions.write_qemu import ram_of
from vmm_iova.readers.shell import command_words
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.definitions.change import Change
    from vmm_iova.definitions.definition import Definition


def changed_json(given: Definition, change: Change) -> tuple[str, str]:
    """Return a configuration as it is and as it is to be, both written alike."""
    document: dict[str, Any] = json.loads(given.text)
    indent = len((re.search(r"\n( +)\"", given.text) or ["", "  "])[1])
    before = json.dumps(document, indent=indent, ensure_ascii=False) + "\n"
    if given.kind == "firecracker":
        _firecracker(document, change)
    else:
        _cloud(document, change)
    return before, json.dumps(document, indent=indent, ensure_ascii=False) + "\n"


def _cloud(document: dict[str, Any], change: Change) -> None:
    guest, levers = change.guest, change.levers
    if "phys_bits" in levers and guest.phys_bits is not None:
        document.setdefault("cpus", {})["max_phys_bits"] = guest.phys_bits
    memory = document.setdefault("memory", {})
    if "ram" in levers:
        zones = memory.get("zones") or [memory]
        each = ram_of(guest) // len(zones) >> 20 << 20
        for zone in zones[1:]:
            zone["size"] = each
        zones[0]["size"] = ram_of(guest) - each * (len(zones) - 1)
    if _grows_otherwise(change) and memory.get("zones"):
        for index, zone in enumerate(memory["zones"]):
            zone["hotplug_size"] = None if index else _more(change) or None
    elif _grows_otherwise(change):
        memory["hotplug_size"] = _more(change) or None
    if levers.get("page_size"):
        for place in memory.get("zones") or [memory]:
            place |= {"hugepages": True, "hugepage_size": parse_size(guest.page_size or 0)}


def _grows_otherwise(change: Change) -> bool:
    """Tell whether hotplug_size differs: what comes on top of RAM, up to maxmem."""
    sized = "ram" in change.levers and change.guest.maxmem is not None
    return sized or "maxmem" in change.levers


def _more(change: Change) -> int:
    guest = change.guest
    return 0 if guest.maxmem is None else parse_size(guest.maxmem) - ram_of(guest)


def _firecracker(document: dict[str, Any], change: Change) -> None:
    config = document.setdefault("machine-config", {})
    if "ram" in change.levers:
        config["mem_size_mib"] = ram_of(change.guest) >> 20
    if change.levers.get("page_size"):
        config["huge_pages"] = "2M"


def cloud_options(change: Change, given: Definition | None = None) -> str:
    """Return the options of Cloud Hypervisor that make a change, in place of those of their name.

    Args:
        change: what must differ.
        given: the command line that has them, whose other values stay.
    """
    guest, levers = change.guest, change.levers
    words = None
    if given is not None and given.kind == "cloud-hypervisor":
        words = command_words(given.text, PROGRAM)
    old = arguments_of(words) if words is not None else {}
    lines = []
    if "phys_bits" in levers and guest.phys_bits is not None:
        lines.append(f"--cpus {_with(old.get('cpus', []), max_phys_bits=str(guest.phys_bits))}")
    memory: dict[str, str | None] = {}
    zones = old.get("memory-zone", [])
    if "ram" in levers and not zones:
        memory["size"] = f"{ram_of(guest) >> 20}M"
    if _grows_otherwise(change) and not zones:
        memory["hotplug_size"] = f"{_more(change) >> 20}M" if _more(change) else None
    pages: dict[str, str | None] = {}
    if levers.get("page_size"):
        size = parse_size(guest.page_size or 0)
        pages = {"hugepages": "on", "hugepage_size": f"{size >> 20}M"}
    if zones and (levers.keys() & {"ram", "maxmem"} or pages):
        shown = " ".join(_zones(zones, change, pages))
        lines.append(f"--memory-zone {shown}")
    elif pages:
        memory |= pages
    if memory:
        lines.append(f"--memory {_with(old.get('memory', []), **memory)}")
    return "".join(f"{line}\n" for line in lines)


def _zones(zones: list[str], change: Change, pages: dict[str, str | None]) -> Iterator[str]:
    each = ram_of(change.guest) // len(zones) >> 20
    for index, zone in enumerate(zones):
        mib = each if index else (ram_of(change.guest) >> 20) - each * (len(zones) - 1)
        wanted: dict[str, str | None] = {"size": f"{mib}M"} if "ram" in change.levers else {}
        if _grows_otherwise(change):
            more = 0 if index else _more(change) >> 20
            wanted["hotplug_size"] = f"{more}M" if more else None
        yield _with([zone], **wanted, **pages)


def _with(values: list[str], **wanted: str | None) -> str:
    """Put values into an option's own, which may have lists with commas; None takes one out."""
    text = ",".join(values)
    for name, value in wanted.items():
        found = re.search(rf"(?:^|,){name}=[^,]*", text)
        start, stop = found.span() if found else (len(text), len(text))
        put = "" if value is None else f",{name}={value}"
        text = (text[:start] + put + text[stop:]).lstrip(",")
    return text
