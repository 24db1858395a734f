# SPDX-License-Identifier: Apache-2.0
"""A QEMU command line, as a shell, `ps`, a script or libvirt's log shows it.

Source: qemu-options.hx (-m, -cpu, -device, -machine, -object), QEMU 7.2 to 11.1; libvirt's
src/qemu/qemu_domain.c, which logs one option a line with a backslash behind each.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from vmm_iova.errors import IovaError
from vmm_iova.ranges import MIB
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRAM = re.compile(r"qemu-system-(?P<arch>[a-z0-9_]{2,12})|qemu-kvm\b|/kvm\b")
_OPTION = re.compile(r"(?:^|\s)--?(?P<name>machine|M|m|cpu|device|object|global)(?:\s+|=)")
_VALUE = re.compile(r"'([^']{0,4000})'|\"([^\"]{0,4000})\"|(\S{1,4000})")
_LONGEST, _MOST = 200_000, 2000


@dataclass(frozen=True, slots=True)
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
        aw_bits: its width where it is stated.
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
    aw_bits: int | None = None
    caching_mode: bool = False
    iommufd: bool = False

    @property
    def bits_limit(self) -> int | None:
        """Address bits that -cpu gives the guest, where it says so."""
        match = re.search(r"(?:host-phys-bits-limit|phys-bits)=(\d{2})\b", self.cpu or "")
        return int(match[1]) if match else None

    @property
    def containers(self) -> int:
        """How often all RAM is locked: once, or for each device behind the guest's IOMMU."""
        return max(1, len(self.assigned)) if self.viommu else 1


def read_qemu(text: str) -> QemuCommand | None:
    """Read a command line out of a text; None if there is none.

    Complexity: O(size), of at most 200,000 characters.
    """
    options = list(_options(text[:_LONGEST].replace("\\\n", " ")))
    names = [name for name, _ in options]
    if not any(name in names for name in ("machine", "M", "m", "cpu")) or len(options) < 2:
        return None
    program = _PROGRAM.search(text[:_LONGEST])
    last = dict(options)
    machine = last.get("machine") or last.get("M")
    ram, maxmem = _memory(last.get("m"))
    devices = [_device(value) for name, value in options if name == "device"]
    viommu = next((item for item in devices if item.get("driver", "") in _VIOMMUS), None)
    of_machine = _keys(machine or "").get("iommu") or ""
    kind = viommu["driver"] if viommu else of_machine or None
    bits = (viommu or {}).get("aw-bits", "")
    return QemuCommand(
        arch=program["arch"] if program else None,
        machine=_keys(machine or "").get("type") or None,
        ram=ram,
        maxmem=maxmem,
        cpu=last.get("cpu"),
        assigned=tuple(
            item.get("host") or item.get("sysfsdev") or item.get("id") or "?"
            for item in devices
            if item.get("driver", "").startswith("vfio-pci")
        ),
        viommu=kind,
        aw_bits=int(bits) if bits.isdecimal() and len(bits) < 3 else None,
        caching_mode=(viommu or {}).get("caching-mode", "") in ("on", "true"),
        iommufd=any("iommufd" in item for item in devices)
        or any(name == "object" and "iommufd" in value for name, value in options),
    )


_VIOMMUS = ("intel-iommu", "amd-iommu", "virtio-iommu-pci", "virtio-iommu", "arm-smmuv3")


def _options(text: str) -> Iterator[tuple[str, str]]:
    for match in islice(_OPTION.finditer(text), _MOST):
        value = _VALUE.match(text, match.end())
        if value is not None:
            yield match["name"], next(part for part in value.groups() if part is not None)


def _keys(value: str) -> dict[str, str]:
    """Cut `first,key=value,...`; the first may lack its key."""
    found: dict[str, str] = {}
    for index, part in enumerate(value.split(",")):
        key, equals, text = part.partition("=")
        if equals:
            found[key.strip()] = text.strip()
        elif index == 0:
            found["type"] = part.strip()
    return found


def _device(value: str) -> dict[str, str]:
    if value.startswith("{"):
        try:
            loaded = json.loads(value)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(loaded, dict):
            return {}
        return {str(key): str(item).lower() for key, item in loaded.items()}
    keys = _keys(value)
    return {"driver": keys.pop("type", keys.get("driver", "")), **keys}


def _memory(value: str | None) -> tuple[int | None, int | None]:
    if not value:
        return None, None
    keys = _keys(value)
    return _size(keys.get("type") or keys.get("size")), _size(keys.get("maxmem"))


def _size(text: str | None) -> int | None:
    """A size as QEMU reads it: without a unit it is MiB."""
    if not text:
        return None
    try:
        return int(text) * MIB if text.isdecimal() and len(text) < 12 else parse_size(text)
    except IovaError:
        return None
