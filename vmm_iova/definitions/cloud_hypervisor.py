# SPDX-License-Identifier: Apache-2.0
"""Cloud Hypervisor's command line and its configuration in JSON.

Source: cloud-hypervisor vmm/src/config.rs, MemoryConfig::parse() and DeviceConfig::parse(), and
vmm/src/vm_config.rs (49.0).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vmm_iova.definitions.definition import AssignedDevice, Definition
from vmm_iova.definitions.qemu import bdf_of
from vmm_iova.errors import HostDataError, IovaError
from vmm_iova.patterns import regex
from vmm_iova.plain import one_line
from vmm_iova.planning.guest import Guest, Reading
from vmm_iova.readers.qemu import keys
from vmm_iova.units import parse_size, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PROGRAM = regex(r"(?:^|[\s/\"'])(?P<name>cloud-hypervisor)(?=[\s\"'])", re.MULTILINE)
"""How the program is called."""

MACHINE = "cloud-hypervisor"
_QUIET_WORDS = (
    "api-socket event-monitor log-file v vv vvv seccomp landlock landlock-rules kernel initramfs "
    "cmdline firmware disk net rng fs pmem serial console debug-console vsock watchdog balloon "
    "gdb pvpanic numa platform tpm rate-limit-group restore igvm host-data generic-vhost-user"
)
_QUIET = frozenset(_QUIET_WORDS.split())
_QUIET_KEYS_WORDS = (
    "payload rate_limit_groups disks net rng balloon fs pmem serial console debug_console vdpa "
    "vsock pvpanic iommu numa watchdog gdb pci_segments platform tpm preserved_fds landlock_enable "
    "landlock_rules ivshmem"
)
_QUIET_KEYS = frozenset(_QUIET_KEYS_WORDS.split())
_READ = ("memory", "memory-zone", "cpus", "device", "user-device", "vdpa")
_DEFAULT_RAM = 512 << 20  # vm_config.rs, DEFAULT_MEMORY_MB


def read_command(words: Sequence[str], text: str, source: str) -> Definition:
    """Read a command line.

    Args:
        words: of the command, the program first.
        text: the whole text.
        source: name for messages.

    Raises:
        HostDataError: a part that matters is malformed.

    Complexity: O(size).
    """
    given = arguments_of(words)
    unread: dict[str, None] = {}
    for option in given:
        if option not in _READ and option not in _QUIET:
            unread[f"--{shorten(one_line(option), 40)}"] = None
    if "user-device" in given:
        unread["--user-device: its memory"] = None
    memory = keys(" ".join(given.get("memory", ["size=512M"])), "size")
    zones = [keys(item, "id") for item in given.get("memory-zone", [])]
    cpus = keys(" ".join(given.get("cpus", [])), "boot")
    devices = [keys(item, "path") for item in given.get("device", [])]
    return _definition(memory, zones, cpus.get("max_phys_bits"), devices, unread, text, source)


def arguments_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each option of a command; an option takes one or more."""
    given: dict[str, list[str]] = {}
    name = ""
    for word in words[1:]:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given.setdefault(name, []).extend([value] if equals else [])
        elif name:
            given[name].append(word)
    return given


def read_json(document: dict[str, Any], text: str, source: str) -> Definition:
    """Read a configuration, as `ch-remote create` takes it.

    Raises:
        HostDataError: a part that matters is malformed.

    Complexity: O(size).
    """
    unread = {
        f"{shorten(key, 40)!r}": None
        for key in document
        if key not in _QUIET_KEYS and key not in ("memory", "cpus", "devices", "user_devices")
    }
    if document.get("user_devices"):
        unread["'user_devices': their memory"] = None
    memory = _texts(document.get("memory") or {}, "memory", source)
    zones = _list(document, "memory", "zones", source)
    devices = [_texts(item, "devices", source) for item in _items(document, "devices", source)]
    cpus = _texts(document.get("cpus") or {}, "cpus", source)
    return _definition(memory, zones, cpus.get("max_phys_bits"), devices, unread, text, source)


def _definition(
    memory: dict[str, str],
    zones: Sequence[dict[str, str]],
    bits: str | None,
    devices: Iterable[dict[str, str]],
    unread: dict[str, None],
    text: str,
    source: str,
) -> Definition:
    sizes = [_size(zone, "size", source) for zone in zones]
    ram = sum(sizes) or _size(memory, "size", source) or _DEFAULT_RAM
    more = _size(memory, "hotplug_size", source)
    more += sum(_size(zone, "hotplug_size", source) for zone in zones)
    pages = {_pages(item, source) for item in (zones or [memory])}
    if len(pages) > 1:
        unread["memory zones of several page sizes"] = None
    given = tuple(_device(item) for item in devices)
    behind = any(item.get("iommu") in ("on", "true", "True") for item in devices)
    guest = Guest(
        MACHINE,
        ram,
        page_size=max(pages, key=lambda page: page or 0),
        phys_bits=_bits(bits, source),
        maxmem=ram + more if more else None,
        viommu=behind,
        devices=max(1, len(given)),
    )
    return Definition(
        "cloud-hypervisor",
        None,
        None,
        (Reading("", guest),),
        given,
        unread=tuple(unread),
        text=text,
        source=source,
    )


def _device(item: dict[str, str]) -> AssignedDevice:
    path = item.get("path", "")
    name = bdf_of(path)
    if name is None:
        return AssignedDevice(shorten(one_line(path or item.get("id", "?")), 60), "other")
    return AssignedDevice(name)


def _bits(text: str | None, source: str) -> int | None:
    if text is None or text == "None":
        return None
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 32 <= int(text) <= 64:
        raise HostDataError(
            f"{source}: max_phys_bits {shorten(one_line(text), 20)!r} is no number of address bits",
            source=source,
            text=text,
        )
    return int(text)


def _size(item: dict[str, str], key: str, source: str) -> int:
    """A size in bytes, with K, M or G behind it where it is written so; 0 where there is none."""
    text = item.get(key)
    if text in (None, "None", "0"):
        return 0
    try:
        return parse_size(str(text), key)
    except IovaError as error:
        raise HostDataError(
            f"{source}: {error.message}", source=source, text=str(text), hint=error.hint
        ) from error


def _pages(item: dict[str, str], source: str) -> int | None:
    if item.get("hugepages") not in ("on", "true", "True"):
        return None
    return _size(item, "hugepage_size", source) or 2 << 20


def _texts(item: object, key: str, source: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise HostDataError(f"{source}: {key!r} is no object", source=source)
    return {name: str(value) for name, value in item.items()}


def _items(document: dict[str, Any], key: str, source: str) -> list[Any]:
    found = document.get(key) or []
    if not isinstance(found, list):
        raise HostDataError(f"{source}: {key!r} is no list", source=source)
    return found


def _list(document: dict[str, Any], key: str, inner: str, source: str) -> list[dict[str, str]]:
    outer = document.get(key) or {}
    return [_texts(item, inner, source) for item in _items(outer, inner, source)]
