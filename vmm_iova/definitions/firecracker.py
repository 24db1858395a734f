# SPDX-License-Identifier: Apache-2.0
"""Firecracker's configuration in JSON (--config-file).

Source: firecracker src/vmm/src/resources.rs, VmmConfig, and docs/hugepages.md (1.13). It gives a
guest no device of the host.
"""

from __future__ import annotations

from typing import Any

from vmm_iova.definitions.definition import Definition
from vmm_iova.errors import HostDataError
from vmm_iova.planning.guest import Guest, Reading
from vmm_iova.units import shorten

MACHINE = "firecracker"
_KNOWN_WORDS = (
    "boot-source drives machine-config cpu-config balloon network-interfaces vsock logger metrics "
    "mmds-config entropy serial pmem memory-hotplug"
)
_KNOWN = frozenset(_KNOWN_WORDS.split())
_DEFAULT_MIB = 128


def read_firecracker(document: dict[str, Any], text: str, source: str) -> Definition:
    """Read a configuration.

    Raises:
        HostDataError: the size of its memory is none.

    Complexity: O(size).
    """
    config = document.get("machine-config") or {}
    if not isinstance(config, dict):
        raise HostDataError(f"{source}: 'machine-config' is no object", source=source)
    mib = config.get("mem_size_mib", _DEFAULT_MIB)
    if type(mib) is not int or not 0 < mib < 1 << 32:
        raise HostDataError(
            f"{source}: mem_size_mib {shorten(repr(mib), 40)} is no number of MiB",
            source=source,
            text=str(mib),
        )
    unread = [f"{shorten(key, 40)!r}" for key in document if key not in _KNOWN]
    if document.get("memory-hotplug"):
        unread.append("'memory-hotplug': where its memory lies")
    pages = {"2M": 2 << 20}.get(str(config.get("huge_pages", "None")))
    guest = Guest(MACHINE, mib << 20, page_size=pages)
    return Definition(
        "firecracker",
        None,
        None,
        (Reading("", guest),),
        unread=tuple(unread),
        text=text,
        source=source,
    )
