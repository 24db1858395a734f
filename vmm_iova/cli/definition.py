# SPDX-License-Identifier: Apache-2.0
"""`--vm`: the VM as somebody has written it down, for every command that plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm_iova.cli.guest import guest_of
from vmm_iova.errors import PlanError, RequestError, UnknownNameError
from vmm_iova.host.load import read_text
from vmm_iova.patterns import regex
from vmm_iova.planning.guest import Guest, Reading
from vmm_iova.planning.start import will_start
from vmm_iova.record import names, replace

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from vmm_iova.definitions.definition import AssignedDevice, Definition, Kind
    from vmm_iova.host.host import Host
    from vmm_iova.planning.budget import Budget
    from vmm_iova.planning.layout import Layout
    from vmm_iova.planning.start import Manager, Start, Via

_SLOT = regex(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}")


def definition_of(options: argparse.Namespace) -> Definition | None:
    """Read the definition that `--vm` names, as it stands; None where there is no `--vm`.

    Raises:
        HostUnavailableError: there is no such file.
        HostDataError: it is no definition, or malformed.
        RequestError: it has what no model here expresses.
    """
    spec = options.vm
    if spec is None:
        return None
    if spec == "-" and getattr(options, "host", None) == "-":
        raise RequestError("--vm - and --host - both read standard input", field="vm", value=spec)
    from vmm_iova.definitions.definition import KINDS
    from vmm_iova.definitions.read import read_vm

    kind: Kind | None = None
    for known in KINDS:
        if spec.startswith(f"{known}:"):
            kind, spec = known, spec.removeprefix(f"{known}:")
    text, name = read_text(spec)
    return read_vm(text, kind, source=name)


def asked_of(options: argparse.Namespace, definition: Definition | None) -> Guest | Definition:
    """Return what is asked for: the definition, with what the options say in its place.

    Raises:
        RequestError: an option is not of its form.
    """
    stated = guest_of(options)
    if definition is None:
        return stated
    readings = (
        Reading(item.text, _overridden(item.guest, stated, options)) for item in definition.readings
    )
    asked = definition.with_guests(readings)
    if asked.guest.ram is None and not asked.guest.nodes:
        unread = next((text for text in definition.unread if text.startswith("-m ")), "none of it")
        raise RequestError(
            f"{definition.source}: does not say how much RAM ({unread})",
            field="ram",
            value=None,
            hint="--ram says it",
        )
    return asked


def _overridden(guest: Guest, stated: Guest, options: argparse.Namespace) -> Guest:
    """Return a guest with every value that was stated beside the definition."""
    given = {name: getattr(stated, name) for name in names(Guest)}
    changes: dict[str, Any] = {
        name: value for name, value in given.items() if value and name != "devices"
    }
    for name in ("bars", "rooms", "reserved", "doorbells"):
        if name in changes:
            changes[name] = (*getattr(guest, name), *changes[name])
    if "ram" in changes and "nodes" not in changes:
        changes["nodes"] = ()
    if "nodes" in changes and "ram" not in changes:
        changes["ram"] = None
    if "page_size" in changes:
        nodes = changes.get("nodes", guest.nodes)
        changes["nodes"] = tuple(
            item if isinstance(item, (str, int)) else replace(item, page_size=None)
            for item in nodes
        )
    pc = str(options.machine or "q35").startswith(("q35", "i440fx", "pc"))
    if not pc and "firmware" not in changes:
        changes |= {"firmware": None, "ovmf_window": None}
    return replace(guest, **changes)


def each_guest(asked: Guest | Definition, change: Callable[[Guest], Guest]) -> Guest | Definition:
    """Return the same with every guest changed."""
    if isinstance(asked, Guest):
        return change(asked)
    return asked.with_guests(Reading(item.text, change(item.guest)) for item in asked.readings)


def newest(asked: Guest | Definition) -> Guest:
    """Return the guest of the newest release that may be meant."""
    return asked if isinstance(asked, Guest) else asked.guest


def check_faults(definition: Definition | None) -> None:
    """Refuse what no host would start.

    Raises:
        PlanError: the definition lacks something.
    """
    for fault in definition.faults if definition is not None else ():
        raise PlanError(f"it does not start: {fault.text}", fixes=[fault.fix])


def start_of(
    definition: Definition | None,
    host: Host,
    layout: Layout,
    cost: Budget,
    devices: Sequence[str],
    via: Via | None,
) -> Start:
    """Say whether the guest starts, with what its definition says of devices and limits."""
    if definition is None:
        return will_start(host, layout, cost, devices, via=via or "type1")
    manager: Manager | None = None
    if definition.kind == "libvirt" or definition.kind == "proxmox":
        manager = definition.kind
    return will_start(
        host,
        layout,
        cost,
        devices,
        via=via or ("iommufd" if definition.iommufd else "type1"),
        manager=manager,
        managed=_named_by(definition, devices, lambda item: item.managed),
        hard_limit=definition.hard_limit,
    )


def _named_by(
    definition: Definition, devices: Sequence[str], wanted: Callable[[AssignedDevice], bool]
) -> list[str]:
    """Return those of the devices whose entry in the definition is such a one.

    A device that -s gives in the place of the definition's is what all of those are.
    """
    entries = {item.name.removeprefix("0000:"): wanted(item) for item in definition.devices}
    others = bool(entries) and all(entries.values())

    def counts(name: str) -> bool:
        slots = (slot for slot in entries if name.removeprefix("0000:").startswith(slot))
        return entries[slot] if (slot := next(slots, None)) is not None else others

    return [name for name in devices if counts(name)]


def name_devices(options: argparse.Namespace, definition: Definition | None) -> None:
    """Take the definition's devices for those of `-s`, where neither -s nor -g names any."""
    if definition is None or options.devices or options.groups:
        return
    named = [item.name for item in definition.devices if item.kind == "pci"]
    options.devices = named or None


def find_devices(options: argparse.Namespace, definition: Definition | None, host: Host) -> None:
    """Name the functions that a definition means, as the host has them.

    Raises:
        UnknownNameError: the host has no such device.
    """
    if definition is None:
        return
    options.root_ports |= definition.root_ports
    given = options.devices
    if not given:
        return
    if not host.devices:
        options.devices = None  # facts without devices: every group of them counts
        return
    found: list[str] = []
    for name in given:
        known = [item.name for item in host.devices if item.name.startswith(f"{name}.")]
        if _SLOT.fullmatch(name) and known:
            found += known
        elif any(name in (item.name, item.name.removeprefix("0000:")) for item in host.devices):
            found.append(name)
        elif name in {item.name for item in definition.devices}:
            raise UnknownNameError(
                f"host {host.name} has no device {name}, which {definition.source} gives the VM",
                kind="device",
                name=name,
                known=[item.name for item in host.devices],
                hint="-s names the device that it is to have here, -g its group",
            )
        else:
            found.append(name)
    options.devices = list(dict.fromkeys(found))
    options.without_rom = _named_by(definition, options.devices, lambda item: not item.rom)
    if all(_stands_for([item.name for item in definition.devices], name) for name in found):
        options.ports = [
            [name for name in options.devices if _stands_for(port, name)]
            for port in definition.ports
        ]


def _stands_for(entries: Sequence[str], name: str) -> bool:
    """Tell whether a device, or its slot, is among these."""
    plain = name.removeprefix("0000:")
    return any(
        plain == entry or plain.startswith(f"{entry}.")
        for entry in (entry.removeprefix("0000:") for entry in entries)
    )
