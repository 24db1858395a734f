# SPDX-License-Identifier: Apache-2.0
"""A change as Cloud Hypervisor's options or JSON, or as Firecracker's JSON."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from vmm_iova.definitions.write_qemu import ram_of
from vmm_iova.units import parse_size

if TYPE_CHECKING:
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
    if "maxmem" in levers or ("ram" in levers and "hotplug_size" in memory):
        memory["hotplug_size"] = _more(change) or None
    if levers.get("page_size"):
        memory |= {"hugepages": True, "hugepage_size": parse_size(guest.page_size or 0)}


def _more(change: Change) -> int:
    guest = change.guest
    return 0 if guest.maxmem is None else parse_size(guest.maxmem) - ram_of(guest)


def _firecracker(document: dict[str, Any], change: Change) -> None:
    config = document.setdefault("machine-config", {})
    if "ram" in change.levers:
        config["mem_size_mib"] = ram_of(change.guest) >> 20
    if change.levers.get("page_size"):
        config["huge_pages"] = "2M"


def cloud_options(change: Change) -> str:
    """Return the options of Cloud Hypervisor that make a change, to go into those of their name."""
    guest, levers = change.guest, change.levers
    lines = []
    if "phys_bits" in levers and guest.phys_bits is not None:
        lines.append(f"--cpus max_phys_bits={guest.phys_bits}")
    memory = []
    if "ram" in levers:
        memory.append(f"size={ram_of(guest) >> 20}M")
    if "maxmem" in levers:
        memory.append(f"hotplug_size={_more(change) >> 20}M")
    if levers.get("page_size"):
        memory += ["hugepages=on", f"hugepage_size={parse_size(guest.page_size or 0) >> 20}M"]
    if memory:
        lines.append(f"--memory {','.join(memory)}")
    return "".join(f"{line}\n" for line in lines)
