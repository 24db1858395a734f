# SPDX-License-Identifier: Apache-2.0
"""A QEMU command line, as a shell, `ps`, a script or libvirt's log shows it.

Source: qemu-options.hx (-m, -cpu, -device, -machine, -object), QEMU 7.2 to 11.1; libvirt's
src/qemu/qemu_domain.c, which logs one option a line with a backslash behind each.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING

from vmm_iova.errors import IovaError
from vmm_iova.patterns import regex
from vmm_iova.ranges import MIB
from vmm_iova.readers.shell import LONGEST, command_words
from vmm_iova.record import record
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Option = tuple[str, str]
"""Name of an option without its dashes, and its value; empty where it takes none."""

PROGRAM = regex(
    r"(?:^|[\s/\"'])(?P<name>qemu-system-(?P<arch>[a-z0-9_]{2,12})|qemu-kvm|kvm)(?=[\s\"'])",
    re.MULTILINE,
)
"""How the program is called; `kvm` is Proxmox's name for it."""

_OPTION = regex(r"(?:^|\s)--?(?P<name>machine|M|m|cpu|device|object|global)(?:\s+|=)")
_VALUE = regex(r"'([^']{0,4000})'|\"([^\"]{0,4000})\"|(\S{1,4000})")
_MOST = 2000
_FLAGS_WORDS = (
    "nodefaults nographic enable-kvm no-user-config S daemonize snapshot no-reboot no-shutdown "
    "no-hpet no-acpi usb only-migratable win2k-hack no-fd-bootchk preconfig singlestep full-screen "
    "no-quit portrait mem-prealloc async-teardown no-kvm alt-grab ctrl-grab enable-sync-profile "
    "no-kvm-irqchip no-kvm-pit-reinjection semihosting nodefconfig xen-attach s"
)
FLAGS = frozenset(_FLAGS_WORDS.split())
"""Options that take no value (qemu-options.hx: those without HAS_ARG)."""


@record
class QemuCommand:
    """What a command line says that matters to addresses.

    Attributes:
        arch: of the guest, or None where the program's name does not say.
        machine: machine type, or None.
        ram: bytes of RAM, or None.
        maxmem: bytes that it may grow to, or None.
        cpu: the value of -cpu, or None.
        assigned: VFIO devices.
        viommu: the guest's own IOMMU (`intel-iommu`, `virtio-iommu-pci`, `arm-smmuv3`, ...).
        caching_mode: True if it was switched on.
        iommufd: True if the devices go by an iommufd.
    """

    arch: str | None = None
    machine: str | None = None
    ram: int | None = None
    maxmem: int | None = None
    cpu: str | None = None
    assigned: tuple[str, ...] = ()
    viommu: str | None = None
    caching_mode: bool = False
    iommufd: bool = False

    @property
    def containers(self) -> int:
        """How often all RAM is locked: once, or for each device behind the guest's IOMMU."""
        return max(1, len(self.assigned)) if self.viommu else 1


def read_qemu(text: str) -> QemuCommand | None:
    """Read a command line, or options alone, out of a text; None if there are none.

    Complexity: O(size), of at most 200,000 characters.
    """
    words = command_words(text, PROGRAM)
    options = list(_fragments(text[:LONGEST].replace("\\\n", " ")))
    if words is not None:
        whole = options_of(words[1:])
        options = whole if _is_guest(whole) or not _is_guest(options) else options
    if not _is_guest(options) or len(options) < 2:
        return None
    program = PROGRAM.search(text[:LONGEST])
    last = dict(options)
    machine = last.get("machine") or last.get("M")
    memory = keys(last.get("m", ""), "size")
    devices = [device(value) for name, value in options if name == "device"]
    viommu = next((item for item in devices if item.get("driver", "") in VIOMMUS), None)
    of_machine = keys(machine or "").get("iommu") or ""
    kind = viommu["driver"] if viommu else of_machine or None
    return QemuCommand(
        arch=program["arch"] if program else None,
        machine=keys(machine or "").get("type") or None,
        ram=size_of(memory.get("size")),
        maxmem=size_of(memory.get("maxmem")),
        cpu=last.get("cpu"),
        assigned=tuple(
            item.get("host") or item.get("sysfsdev") or item.get("id") or "?"
            for item in devices
            if item.get("driver", "").startswith("vfio-pci")
        ),
        viommu=kind,
        caching_mode=(viommu or {}).get("caching-mode", "") in ("on", "true"),
        iommufd=any("iommufd" in item for item in devices)
        or any(name == "object" and "iommufd" in value for name, value in options),
    )


VIOMMUS = ("intel-iommu", "amd-iommu", "virtio-iommu-pci", "virtio-iommu", "arm-smmuv3")
"""Drivers of the guest's own IOMMU."""


def _is_guest(options: Iterable[Option]) -> bool:
    return any(name in ("machine", "M", "m", "cpu") for name, _ in options)


def options_of(words: Sequence[str]) -> list[Option]:
    """Pair the words of a command with their values.

    A word that begins with no dash and belongs to no option is a disk image, or the rest of a
    value whose quotes `ps` does not print: it is left out.

    Complexity: O(words).
    """
    return [(name, value) for name, value, _ in paired(words)]


def paired(words: Sequence[str]) -> list[tuple[str, str, int | None]]:
    """Pair words as `options_of`, each with which word its value is, where that is one by itself.

    Complexity: O(words).
    """
    found: list[tuple[str, str, int | None]] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if len(word) < 2 or word[0] != "-":
            continue
        name = word.removeprefix("-").removeprefix("-")
        if name in FLAGS:
            found.append((name, "", None))
            continue
        name, equals, value = name.partition("=")  # as few write it, and QEMU takes for --option
        own = None
        if not equals and at < len(words):
            value, own = words[at], at
            at += 1
        found.append((name, value, own))
    return found


def _fragments(text: str) -> Iterator[Option]:
    """Options anywhere in a text that may be no command."""
    for match in islice(_OPTION.finditer(text), _MOST):
        value = _VALUE.match(text, match.end())
        if value is not None:
            yield match["name"], next(part for part in value.groups() if part is not None)


def keys(value: str, first: str = "type") -> dict[str, str]:
    """Cut `first,key=value,...`; the first may lack its key, and `,,` is a comma.

    A key alone is switched on, and off with `no` in front (util/qemu-option.c).
    """
    found: dict[str, str] = {}
    for index, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, text = (item.replace("\0", ",").strip() for item in part.partition("="))
        if equals:
            found[key] = text
        elif index == 0:
            found[first] = key
        elif key:
            found[key] = "on"
    return found


def device(value: str, first: str = "driver") -> dict[str, str]:
    """Cut the value of -device or -object, in either of its two forms.

    Complexity: O(length).
    """
    if not value.startswith("{"):
        return keys(value, first)
    try:
        loaded = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(loaded, dict):
        return {}
    return {str(key): _plain(item) for key, item in loaded.items()}


def _plain(item: object) -> str:
    return ("on" if item else "off") if isinstance(item, bool) else str(item)


def size_of(text: str | None, unit: int = MIB) -> int | None:
    """A size as QEMU reads it: without a unit it is MiB, or what `unit` says; None for none.

    Complexity: O(length), bounded.
    """
    if not text:
        return None
    try:
        return int(text) * unit if text.isdecimal() and len(text) < 20 else parse_size(text)
    except IovaError:
        return None
