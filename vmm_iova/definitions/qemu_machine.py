# SPDX-License-Identifier: Apache-2.0
"""The machine model of a QEMU machine type, for each release of QEMU that may be meant.

Two things depend on the age: whether RAM moves past AMD's hole (hw/i386/pc_q35.c,
pc_q35_machine_7_0_options(): not before 7.1), and the width of intel-iommu (hw/i386/pc.c,
pc_compat_9_1: 39 bits, 48 from 9.2).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.errors import HostDataError
from vmm_iova.machines.catalogue import load_machine
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.definitions.options import Options

_MOVES, _WIDE = (7, 1), (9, 2)
_UBUNTU = {
    "trusty": (2, 0),
    "xenial": (2, 5),
    "bionic": (2, 11),
    "disco": (3, 1),
    "eoan": (4, 0),
    "focal": (4, 2),
    "groovy": (5, 0),
    "hirsute": (5, 2),
    "impish": (6, 0),
    "jammy": (6, 2),
    "kinetic": (7, 0),
    "lunar": (7, 2),
    "mantic": (8, 0),
    "noble": (8, 2),
    "oracular": (9, 0),
    "plucky": (9, 2),
    "questing": (10, 1),
}
"""Releases of Ubuntu, whose names stand in its machine types, and the QEMU of each."""

_RHEL = {7: (2, 12), 8: (6, 2), 9: (7, 2), 10: (9, 1)}
"""Releases of Red Hat, and a QEMU whose machine type is like theirs; rhel9.0 is like 7.0."""

_PROPERTIES = ("cxl", "sgx-epc", "nvdimm", "confidential-guest-support", "memory-encryption")


@record
class MachineReading:
    """A machine as one span of releases has it.

    Attributes:
        name: of the model.
        arch: of the guest.
        text: which releases; empty where it does not matter.
        default_viommu_bits: of intel-iommu.
    """

    name: str
    arch: str
    text: str = ""
    default_viommu_bits: int | None = None


def machines_of(options: Options, source: str) -> tuple[MachineReading, ...]:
    """Return the models that a machine type may mean, the oldest release first.

    Raises:
        HostDataError: no model here is of that type.
        RequestError: it has a property that moves memory, and that no model expresses.
    """
    given = options.machine.get("type") or _default(options.arch)
    kind = given.partition("+")[0]  # Proxmox: pc-q35-8.1+pve0
    _refuse_properties(kind, options)
    if kind.startswith(("pc-q35", "q35")) or kind == "ubuntu-q35":
        return tuple(_by_age("q35", kind, options))
    if kind.startswith(("pc-i440fx", "pc-0", "pc-1")) or kind in ("pc", "ubuntu"):
        return tuple(_by_age("i440fx", kind, options))
    if kind.startswith("s390-ccw-virtio"):
        return (MachineReading("s390x", "s390x"),)
    if kind == "microvm":
        return (MachineReading("microvm", "x86_64"),)
    if re.match(r"virt(-|$)", kind):
        if options.arch == "riscv64":
            return (MachineReading("riscv-virt", "riscv64"),)
        if options.arch in (None, "aarch64", "arm"):
            return (MachineReading(_virt(options), "aarch64"),)
    raise HostDataError(
        f"{source}: no machine model here is like {kind!r}"
        + (f" of {options.arch}" if options.arch else ""),
        source=source,
        text=given,
        hint="vmm-iova machines lists them; plan --machine FILE --ram SIZE takes one of your own",
    )


def _default(arch: str | None) -> str:
    """QEMU's own default; arm has none, and all that people give devices to is virt."""
    return {"aarch64": "virt", "riscv64": "virt", "s390x": "s390-ccw-virtio"}.get(arch or "", "pc")


def _virt(options: Options) -> str:
    if options.machine.get("highmem") == "off":
        return "virt-lowmem"
    return "virt-gicv2" if options.machine.get("gic-version") == "2" else "virt"


def _by_age(model: str, kind: str, options: Options) -> Iterator[MachineReading]:
    age = age_of(kind)
    if age is not None:
        bits = 48 if age >= _WIDE else 39
        yield MachineReading(model if age >= _MOVES else f"{model}-7.0", "x86_64", "", bits)
        return
    least, most = options.releases
    spans = [((0, 0), (7, 0), f"{model}-7.0", 39), (_MOVES, (9, 1), model, 39)]
    if any(item.get("driver") == "intel-iommu" for item in options.devices):
        spans.append((_WIDE, (99, 0), model, 48))
    else:
        spans[-1] = (_MOVES, (99, 0), model, 39)
    for first, last, name, bits in spans:
        if (least is not None and last < least) or (most is not None and first > most):
            continue
        below = f"QEMU {last[0]}.{last[1]} and older"
        between = f"QEMU {first[0]}.{first[1]} to {last[0]}.{last[1]}"
        above = f"QEMU {first[0]}.{first[1]} and later"
        text = below if first == (0, 0) else above if last == (99, 0) else between
        yield MachineReading(name, "x86_64", text, bits)


def age_of(kind: str) -> tuple[int, int] | None:
    """Return the release of QEMU that a machine type is of; None where its name does not say."""
    rhel = re.search(r"-rhel(\d{1,2})\.(\d{1,2})", kind)
    if rhel:
        if (int(rhel[1]), int(rhel[2])) == (9, 0):
            return (7, 0)
        return _RHEL.get(int(rhel[1]), (99, 0) if int(rhel[1]) > 10 else (2, 0))
    number = re.search(r"-(\d{1,2})\.(\d{1,2})(?:$|[.+-])", kind)
    if number:
        return int(number[1]), int(number[2])
    return next((age for name, age in _UBUNTU.items() if name in kind), None)


def _refuse_properties(kind: str, options: Options) -> None:
    for name, value in options.machine.items():
        if name.startswith(_PROPERTIES) and value not in ("off", ""):
            load_machine(f"{kind},{name}={value}")  # says why it is not planned
