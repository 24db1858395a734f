# SPDX-License-Identifier: Apache-2.0
"""What `lscpu` and `/proc/cpuinfo` say of a machine's CPU.

Source: util-linux, sys-utils/lscpu.c; arch/x86/kernel/cpu/proc.c, show_cpuinfo().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.patterns import regex
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIELD = regex(r"\s*(?P<key>[A-Za-z][A-Za-z_ ()]{1,30}?)\s*:\s*(?P<value>\S.*)")
_BITS = regex(r"(\d{2}) bits physical, \d{2} bits virtual")
_VENDORS = {
    "GenuineIntel": "intel",
    "AuthenticAMD": "amd",
    "HygonGenuine": "amd",
    "ARM": "arm",
    "IBM/S390": "s390",
}


@record
class Cpu:
    """A CPU, as far as the text says.

    Attributes:
        arch: `x86_64`, `aarch64`, ..., or None.
        vendor: `intel`, `amd`, `arm`, ..., or None.
        model: its name, or None.
        physical_bits: address bits, or None.
        guest: whether the machine is itself a virtual one (the flag `hypervisor` of x86); None
            where no flags are told.
    """

    arch: str | None = None
    vendor: str | None = None
    model: str | None = None
    physical_bits: int | None = None
    guest: bool | None = None


def read_cpu(lines: Iterable[str]) -> Cpu | None:
    """Read a CPU; None if no line is about one.

    Complexity: O(size).
    """
    arch = vendor = model = None
    bits: int | None = None
    guest: bool | None = None
    seen = False
    for line in lines:
        match = _FIELD.match(line[:4000])
        if match is None:
            continue
        key, value = match["key"].strip().lower(), match["value"].strip()
        if key in ("vendor id", "vendor_id"):
            vendor, seen = _VENDORS.get(value, vendor), True
        elif key == "architecture":
            arch, seen = value, True
        elif key == "model name":
            model, seen = value, True
        elif key == "address sizes":
            sizes = _BITS.match(value)
            if sizes is not None:
                bits, seen = min(bits or 64, int(sizes[1])), True
        elif key == "hypervisor vendor":
            guest = seen = True
        elif key == "flags":
            guest, seen = guest or "hypervisor" in value.split(), True
    return Cpu(arch, vendor, model, bits, guest) if seen else None
