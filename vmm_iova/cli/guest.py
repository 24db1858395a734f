# SPDX-License-Identifier: Apache-2.0
"""The options that say what guest is wanted, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vmm_iova.cli.options import split
from vmm_iova.errors import HostDataError, RequestError
from vmm_iova.host.load import read_text
from vmm_iova.machines.parts import CpuVendor, FixedItem
from vmm_iova.plain import one_line, parse_json
from vmm_iova.planning.assigned import device_bars
from vmm_iova.planning.guest import Bar, Doorbell, Guest, Node, Room
from vmm_iova.planning.layout import OnHole, check_layout
from vmm_iova.planning.request import machine_of
from vmm_iova.record import replace
from vmm_iova.units import parse_range

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from vmm_iova.host.facts import Facts
    from vmm_iova.host.usable import Usable


def add_guest_options(parser: argparse.ArgumentParser, *, ram: str) -> None:
    """Add what a guest is, and what to do when the machine's own place is not free.

    Args:
        parser: of a command.
        ram: help of `--ram`.
    """
    add = parser.add_argument
    add(
        "--vm",
        metavar="[KIND:]FILE",
        help="the VM's definition, - for stdin: libvirt XML, a QEMU command line, Proxmox's conf, "
        "Cloud Hypervisor's command line or JSON, Firecracker's JSON; other options override it",
    )
    add("--ram", help=ram)
    add("--node", action="append", default=[], metavar="SIZE[@PAGE]", help="RAM of a NUMA node")
    add("--page-size", help="pages that back the RAM, like 2MiB or 1GiB")
    add(
        "--machine",
        help="model or a .toml file (default: by the host: q35, virt, riscv-virt or s390x)",
    )
    add(
        "--on-hole",
        default="auto",
        choices=get_args(OnHole),
        help="when the machine's own place is not free (default auto: what the VMM does by itself)",
    )
    add("--pci64", help="size of the 64-bit PCI window; 0 for none")
    add("--align", help="alignment of RAM pieces, like 2MiB, or auto (default: granule)")
    add(
        "--bar",
        action="append",
        default=[],
        metavar="NAME=SIZE[,32][,required][,port=PORT]",
        help="a BAR; required: other devices must reach it; port: of one root port's devices all "
        "stand together; may be repeated",
    )
    add("--room", action="append", default=[], metavar="NAME=SIZE", help="room kept above all")
    add("--reserve", action="append", default=[], metavar="NAME=RANGE", help="area to keep free")
    add("--maxmem", metavar="SIZE", help="RAM and all memory that may be plugged in later")
    add(
        "--slots", type=int, default=0, metavar="N", help="slots for memory modules (with --maxmem)"
    )
    add("--max-ram-below-4g", metavar="SIZE", help="most RAM below 4 GiB (QEMU's option)")
    add(
        "--cpu", choices=get_args(CpuVendor), help="vendor of the guest's CPU (default: the host's)"
    )
    add(
        "--firmware",
        metavar="NAME[-VERSION]",
        help="what gives out BARs: seabios, ovmf-2025.02, none (default: the machine's)",
    )
    add("--ovmf-window", metavar="SIZE", help="size of OVMF's 64-bit window, where it is told one")
    add("--phys-bits", type=int, metavar="BITS", help="guest physical address bits")
    add(
        "--doorbell", action="append", default=[], metavar="NAME=SIZE", help="MSI doorbell to place"
    )
    add("--viommu", action="store_true", help="the guest has an IOMMU of its own")
    add("--viommu-bits", type=int, metavar="BITS", help="its width, where the host's has to match")


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add what a layout has to hold for, and what it should be like."""
    add = parser.add_argument
    add("--also-fit", action="append", metavar="GROUPS", help="hold for these groups, too")
    add("--keep", metavar="FILE", help="keep this saved layout, or name what changes (status 3)")
    add("--prefer", default="lowest", choices=("lowest", "fewest"), help="order, or fewest pieces")


def guest_of(options: argparse.Namespace) -> Guest:
    """Return the guest that the options name.

    Raises:
        RequestError: an option is not of its form.
    """
    return Guest(
        options.machine,
        options.ram,
        options.pci64,
        options.align,
        nodes=[Node(*item.split("@", 1)) if "@" in item else Node(item) for item in options.node],
        page_size=options.page_size,
        bars=[_bar(item) for item in options.bar],
        rooms=[Room(*_named(item, "room")) for item in options.room],
        reserved=[
            FixedItem(name, "reserved", parse_range(where))
            for name, where in (_named(item, "reserve") for item in options.reserve)
        ],
        phys_bits=options.phys_bits,
        viommu=options.viommu,
        viommu_bits=options.viommu_bits,
        maxmem=options.maxmem,
        slots=options.slots,
        max_ram_below_4g=options.max_ram_below_4g,
        cpu=options.cpu,
        firmware=options.firmware,
        ovmf_window=options.ovmf_window,
        doorbells=[Doorbell(*_named(item, "doorbell")) for item in options.doorbell],
    )


def assigned_guest(guest: Guest, host: Facts, usable: Usable, options: argparse.Namespace) -> Guest:
    """Return the guest with the devices of `-s`: how many, and the BARs that come with them.

    Raises:
        RequestError: `--spare-ports` is no such number.
        UnknownNameError: the host has no such device, or there is no such machine.
    """
    names = split(options.devices) or []
    without_rom = getattr(options, "without_rom", ())  # as a definition says
    behind, ports = _root_ports(options)
    bars = device_bars(host, names, root_ports=behind, without_rom=without_rom)
    if not machine_of(guest, usable.arch).identity:
        bars = ()  # a BAR is no address of the guest there
    if options.spare_ports is not None:
        named = (bar.port for bar in (*guest.bars, *bars) if bar.port is not None)
        ports = [*dict.fromkeys(named), *ports]
    count = options.assigned
    if count is None:
        count = max(len({host.device(name).name for name in names}), guest.devices)
    return replace(guest, bars=(*guest.bars, *bars), devices=count, ports=ports)


def _root_ports(options: argparse.Namespace) -> tuple[bool | Mapping[str, str], list[str]]:
    """Return the root port of each device, and all that are known to be there."""
    spare = options.spare_ports
    if spare is not None:
        if not 0 <= spare <= _MOST_PORTS:
            raise RequestError(
                f"--spare-ports {spare} is not a number from 0 to {_MOST_PORTS}",
                field="ports",
                value=spare,
            )
        return options.root_ports, [f"spare port {n}" for n in range(spare)]
    stated: Sequence[Sequence[str]] = getattr(options, "ports", ())  # as a definition says
    if not stated:
        return options.root_ports, []
    behind = {name: f"port {n}" for n, given in enumerate(stated) for name in given}
    return behind, [f"port {n}" for n in range(len(stated))]


_MOST_PORTS = 240  # 30 slots of the root bus that are free, with eight functions each


_BAR_WORDS = ("32", "64", "required", "optional")


def _named(item: str, option: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not (name and equals and value):
        raise RequestError(f"--{option} {item!r} is not NAME=...", field=option, value=item)
    return one_line(name), value


def _bar(item: str) -> Bar:
    name, value = _named(item, "bar")
    size, *words = value.split(",")
    ports = [one_line(word.removeprefix("port=")) for word in words if word.startswith("port=")]
    unknown = [word for word in words if word not in _BAR_WORDS and not word.startswith("port=")]
    if unknown or not all(ports) or len(ports) > 1:
        raise RequestError(
            f"--bar {item!r}: {unknown[0] if unknown else 'port='!r} is none of "
            f"{', '.join(_BAR_WORDS)}, port=PORT",
            field="bar",
            value=item,
        )
    return Bar(
        name,
        size,
        bits=32 if "32" in words else 64,
        required="required" in words,
        port=ports[0] if ports else None,
    )


def saved_layout(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the layout that `--keep` names, or None.

    Raises:
        HostUnavailableError: there is no such file.
        HostDataError: it is no saved layout.
    """
    name = options.keep
    if name is None:
        return None
    layout = read_layout(name)
    if layout is None:
        read_text(name)  # raises where there is none to read
        raise HostDataError(f"{name} is no saved layout (-o layout.json writes one)", source=name)
    return layout


def read_layout(spec: str) -> dict[str, Any] | None:
    """Read a layout file; None if it is something else."""
    if not spec.endswith(".json") or not Path(spec).is_file():
        return None
    content, name = read_text(spec)
    try:
        document = parse_json(content, name)
    except HostDataError:
        return None  # the reader of snapshots says what is wrong with it
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, dict) or schema.get("name") != "vmm-iova-layout":
        return None
    return check_layout(document, name)
