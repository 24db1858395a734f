# SPDX-License-Identifier: Apache-2.0
"""Address bits and vendor of the CPU that QEMU gives an x86 guest.

Source: target/i386/cpu.c, x86_cpu_realizefn(); target/i386/host-cpu.c, host_cpu_adjust_phys_bits()
and host_cpu_instance_init(); tried on QEMU 7.2.22, 10.0.13 and 11.1.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.readers.qemu import keys
from vmm_iova.record import record

if TYPE_CHECKING:
    from vmm_iova.definitions.options import Options
    from vmm_iova.machines.parts import CpuVendor

_MODEL_BITS = 40  # TCG_PHYS_ADDR_BITS, also with KVM unless the CPU is `host` or `max`
_OLD_BITS = 36  # models without long mode: PSE-36
_OLD = ("qemu32", "kvm32", "486", "pentium", "pentium2", "pentium3", "coreduo", "n270")
_AMD = ("epyc", "opteron", "athlon", "phenom", "qemu64", "amd")
_OTHER = ("dhyana", "yongfeng")
_VENDORS: dict[str, CpuVendor] = {
    "AuthenticAMD": "amd",
    "GenuineIntel": "intel",
    "HygonGenuine": "other",
}


@record
class Cpu:
    """A guest's CPU.

    Attributes:
        bits: physical address bits; None for those of the host.
        vendor: None for that of the host.
    """

    bits: int | None
    vendor: CpuVendor | None


def cpu_of(options: Options) -> Cpu:
    """Return the CPU of an x86 guest; of others it says nothing of use."""
    given = keys(options.cpu or "qemu64", "model")
    model = given.get("model", "qemu64")
    set_by_global = {
        name: value
        for driver, name, value in options.globals
        if driver in ("cpu", "x86_64-cpu", f"{model}-x86_64-cpu") or driver.endswith("-x86_64-cpu")
        if driver in ("cpu", "x86_64-cpu") or driver.startswith(f"{model}-")
    }
    given = {**set_by_global, **given}
    return Cpu(_bits(model, given, options), _vendor(model, given, options))


def _bits(model: str, given: dict[str, str], options: Options) -> int | None:
    hosts = options.kvm and (model in ("host", "max") or _by_machine(options))
    use_host = _on(given.get("host-phys-bits"), default=hosts)
    limit = _number(given.get("host-phys-bits-limit"))
    if use_host and options.kvm:
        return limit or None
    stated = _number(given.get("phys-bits"))
    return stated or (_OLD_BITS if model in _OLD else _MODEL_BITS)


def _by_machine(options: Options) -> bool:
    """Red Hat's machine types, and Ubuntu's with -hpb, have the host's bits for every model."""
    machine = options.machine.get("type", "")
    return "rhel" in machine or machine.endswith("-hpb")


def _vendor(model: str, given: dict[str, str], options: Options) -> CpuVendor | None:
    named = given.get("vendor")
    if named is not None:
        return _VENDORS.get(named, "other")
    if options.kvm:
        return None  # host_cpu_instance_init(): whatever the model is, the vendor is the host's
    lower = model.lower()
    if lower.startswith(_AMD):
        return "amd"
    return "other" if lower.startswith(_OTHER) else "intel"


def _on(text: str | None, *, default: bool) -> bool:
    return default if text is None else text in ("on", "yes", "true", "y")


def _number(text: str | None) -> int:
    """A number of bits, as QEMU reads it; 0 for none."""
    if text is None or not text.isascii() or not text.isalnum() or len(text) > 4:
        return 0
    try:
        return int(text, 0)
    except ValueError:
        return 0
