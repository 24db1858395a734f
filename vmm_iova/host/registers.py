# SPDX-License-Identifier: Apache-2.0
"""Address widths from the registers that sysfs and kernel logs show: upper bounds only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.patterns import regex
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmm_iova.host.facts import IommuInfo, IommuUnit


@record
class Width:
    """An address width that some fact states.

    Attributes:
        what: whose: page tables, MGAW, the kernel's list, the CPU, the guest, a device's mask.
        bits: address bits.
        source: where it was read.
        counts: False for what says nothing about what may be mapped, such as the DMA mask that the
            host's driver set.
    """

    what: str
    bits: int
    source: str
    counts: bool = True


def least_bits(widths: Iterable[Width]) -> int | None:
    """Return the bits of the width that limits, or None when nothing is known."""
    return min((width.bits for width in widths if width.counts), default=None)


def width_line(widths: Sequence[Width]) -> str:
    """All widths in one line, the limiting ones marked."""
    least = least_bits(widths)
    return ", ".join(
        f"{width.what} {width.bits}{' (limits)' * (width.counts and width.bits == least)}"
        for width in widths
    )


@record
class VtdWidth:
    """What a VT-d capability register says about width.

    Attributes:
        mgaw_bits: maximum guest address width (bits 21:16, plus one).
        table_bits: widths of the page-table depths that it walks (SAGAW, bits 12:8), ascending.
        usable_bits: width of a second-stage domain; 0 when the register makes no sense.
    """

    mgaw_bits: int
    table_bits: tuple[int, ...]
    usable_bits: int


_SMTS, _FLTS = 1 << 43, 1 << 47


def vtd_width(cap: int) -> VtdWidth:
    """Decode a VT-d capability register.

    Args:
        cap: the 64-bit register (`intel-iommu/cap` in sysfs, `cap` in the kernel log).

    Source: drivers/iommu/intel/iommu.h; rule of compute_vasz_lg2_ss in
        drivers/iommu/intel/iommu.c (Linux 7.3); VT-d specification, 11.4.2.
    """
    mgaw = (cap >> 16 & 0x3F) + 1
    sagaw = cap >> 8 & 0x1F
    tables = tuple(30 + 9 * level for level in (1, 2, 3) if sagaw >> level & 1)
    if mgaw > 48 and sagaw >= 8:
        usable = min(57, mgaw)
    elif mgaw > 39 and sagaw >= 4:
        usable = min(48, mgaw)
    elif mgaw > 30 and sagaw >= 2:
        usable = min(39, mgaw)
    else:
        usable = 0
    return VtdWidth(mgaw, tables, usable)


def vtd_first_stage(cap: int, ecap: int) -> int | None:
    """Return the width where a kernel may pick first-stage tables, or None where it cannot.

    Only the lower half of a first-stage table is usable: 2^56-1 with five levels (cap bit 60), else
    2^47-1. A flag-less allocation prefers it from Linux 6.14 when scalable mode is on.

    Source: drivers/iommu/intel/iommu.h (Linux 7.3): ecap bits 43 (SMTS) and 47 (FLTS).
    """
    if not (ecap & _SMTS and ecap & _FLTS):
        return None
    width = vtd_width(cap)
    return 56 if cap >> 60 & 1 and width.mgaw_bits > 48 else min(47, width.usable_bits - 1)


def vtd_page_sizes(cap: int) -> int:
    """Return the bitmap of page sizes that a VT-d unit walks in second-stage tables.

    Source: cap bits 34 (2 MiB) and 35 (1 GiB) of SLLPS; drivers/iommu/intel/iommu.h.
    """
    return 1 << 12 | (cap >> 34 & 1) << 21 | (cap >> 35 & 1) << 30


_VTD_CAP = (
    (7, "caching mode (an emulated IOMMU)"),
    (34, "2 MiB pages"),
    (35, "1 GiB pages"),
    (56, "1 GiB first-stage pages"),
    (59, "posted interrupts"),
    (60, "5-level first-stage tables"),
)
_VTD_ECAP = (
    (1, "queued invalidation"),
    (2, "device TLBs (ATS)"),
    (3, "interrupt remapping"),
    (6, "pass-through"),
    (7, "snoop control"),
    (26, "nested translation"),
    (29, "page requests (PRI)"),
    (40, "PASID"),
    (43, "scalable mode"),
    (45, "dirty tracking (second stage)"),
    (46, "second-stage tables in scalable mode"),
    (47, "first-stage tables in scalable mode"),
)


def vtd_features(cap: int, ecap: int | None) -> tuple[str, ...]:
    """Return what a VT-d unit can do, in words.

    Nested translation, PASID and dirty tracking are what a VMM asks for that gives its guest an
    IOMMU of its own, or migrates an assigned device.

    Source: drivers/iommu/intel/iommu.h (Linux 7.3), cap_* and ecap_*; VT-d specification, 11.4.
    """
    found = [name for bit, name in _VTD_CAP if cap >> bit & 1]
    found += [name for bit, name in _VTD_ECAP if (ecap or 0) >> bit & 1]
    return tuple(found)


_AMD_EFR = (
    (0, "prefetch"),
    (1, "page requests (PPR)"),
    (2, "x2APIC"),
    (4, "guest translation (nested)"),
    (6, "invalidate all"),
    (7, "guest virtual APIC"),
    (49, "access tracking"),
    (52, "dirty tracking"),
)


def amd_features(features: str, release: str | None) -> tuple[str, ...]:
    """Return what AMD's IOMMU can do, in words; nothing where the register is not certain.

    Source: drivers/iommu/amd/amd_iommu_types.h, FEATURE_* (Linux 7.3).
    """
    efr = _amd_efr(features, release)
    return () if efr is None else _efr_features(efr)


def _efr_features(efr: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _AMD_EFR if efr >> bit & 1)


_SMMU_IDR0 = (
    (12, "16-bit ASIDs"),
    (19, "two-level context descriptor tables"),
)
_CAPABILITIES = (
    (0, "dirty tracking"),
    (1, "PASID with execute permission"),
    (2, "PASID with privileged mode"),
    (3, "no device TLBs (ATS)"),
)


def smmu_features(registers: Mapping[str, int]) -> tuple[str, ...]:
    """Return what an SMMUv3 can do, in words, by those fields that a VMM may rely on.

    Source: struct iommu_hw_info_arm_smmuv3 in include/uapi/linux/iommufd.h, which names them;
    drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.h, IDR0_* to IDR5_* (Linux 6.13 to 7.3).
    """
    idr = [registers.get(f"idr{index}", 0) for index in range(6)]
    found = ["64-bit tables (AArch64)"] if idr[0] >> 2 & 2 else []
    found += [name for bit, name in _SMMU_IDR0 if idr[0] >> bit & 1]
    stall = {1: "stalls never", 2: "stalls always"}.get(idr[0] >> 24 & 3, "stalls if asked")
    found += [stall, f"{idr[1] & 0x3F}-bit stream ids"]
    if idr[1] >> 6 & 0x1F:
        found.append(f"{idr[1] >> 6 & 0x1F}-bit substream ids (PASID)")
    found += ["range invalidation"] if idr[3] >> 10 & 1 else []
    sizes = [size for bit, size in ((4, "4"), (5, "16"), (6, "64")) if idr[5] >> bit & 1]
    found += [f"granules of {', '.join(sizes)} KiB"] if sizes else []
    return (*found, "52-bit addresses (VAX)") if idr[5] >> 10 & 3 == 1 else tuple(found)


def info_features(info: IommuInfo) -> tuple[str, ...]:
    """Return what the kernel says of the IOMMU of a device, in words.

    Source: enum iommufd_hw_capabilities in include/uapi/linux/iommufd.h (Linux 6.7 to 7.2), and
    that of each register.
    """
    registers = dict(info.registers)
    found: tuple[str, ...] = ()
    if info.kind == "intel" and "cap" in registers:
        found = vtd_features(registers["cap"], registers.get("ecap"))
    elif info.kind == "smmuv3" and registers:
        found = smmu_features(registers)
    elif info.kind == "amd" and "efr" in registers:
        found = _efr_features(registers["efr"])
    more = [name for bit, name in _CAPABILITIES if info.capabilities >> bit & 1]
    if info.pasid_bits:
        more.append(f"PASIDs of {info.pasid_bits} bits for the device")
    return (*found, *(name for name in more if name not in found))


def unit_features(unit: IommuUnit, release: str | None) -> tuple[str, ...]:
    """Return what a remapping unit can do, as far as its registers are published."""
    if unit.cap is not None and unit.vendor == "intel":
        return vtd_features(unit.cap, unit.ecap)
    if unit.features is not None and unit.vendor == "amd":
        return amd_features(unit.features, release)
    return ()


def _amd_efr(features: str, release: str | None) -> int | None:
    """The first extended feature register of the `features` file, as `amd_width` takes it."""
    try:
        halves = [int(part, 16) for part in features.strip().split(":")]
    except ValueError:
        return None
    if len(halves) == 1:
        return halves[0]
    version = release_of(release)
    if len(halves) != 2 or version is None or (6, 5) < version < (6, 8):
        return None
    return halves[1] if version <= (6, 5) else halves[0]


@record
class AmdWidth:
    """What AMD's extended feature register says about width.

    Attributes:
        bits: width of the host page table (HATS); 0 when the register makes no sense.
        doubt: why the register could not be told for certain, or None.
    """

    bits: int
    doubt: str | None


_HATS_BITS = {0: 48, 1: 57, 2: 64, 3: 0}


def amd_width(features: str, release: str | None) -> AmdWidth:
    """Decode AMD's `features` file, whose order changed twice.

    Linux up to 5.19 prints `EFR`, 6.1 to 6.5 `EFR2:EFR`, 6.8 and later `EFR:EFR2`. Where the
    release does not settle it, the half with many more bits is taken to be EFR; where that does
    not either, the smaller width counts.

    Args:
        features: content of the file, or the number of a kernel log line.
        release: kernel release, or None.

    Source: drivers/iommu/amd/init.c; EFR bits 11:10 (HATS).
    """
    halves = []
    for part in features.strip().split(":"):
        try:
            halves.append(int(part, 16))
        except ValueError:
            return AmdWidth(0, f"{features.strip()[:40]!r} is not a feature register")
    if len(halves) == 1:
        return AmdWidth(_HATS_BITS[halves[0] >> 10 & 3], None)
    if len(halves) != 2:
        return AmdWidth(0, f"{features.strip()[:40]!r} is not a feature register")
    version = release_of(release)
    if version is not None and version <= (6, 5):
        return AmdWidth(_HATS_BITS[halves[1] >> 10 & 3], None)
    if version is not None and version >= (6, 8):
        return AmdWidth(_HATS_BITS[halves[0] >> 10 & 3], None)
    few, many = sorted(halves, key=int.bit_count)
    if many.bit_count() >= 2 * few.bit_count() and many.bit_count() >= 8:
        return AmdWidth(
            _HATS_BITS[many >> 10 & 3],
            "the kernel release is not known, so the half with more bits was taken for EFR",
        )
    widths = [bits for bits in (_HATS_BITS[half >> 10 & 3] for half in halves) if bits]
    return AmdWidth(
        min(widths, default=0),
        "which half of the file is EFR is not certain, so the smaller width was taken",
    )


def release_of(release: str | None) -> tuple[int, int] | None:
    """Return (major, minor) of a kernel release such as `6.12.48-amd64`, or None."""
    match = re.match(r"(\d+)\.(\d+)", release or "")
    return (int(match[1]), int(match[2])) if match else None


_ADDRESS_SIZES = regex(
    r"^address sizes\s*:\s*(\d{1,3}) bits physical, \d{1,3} bits virtual\s*$", re.MULTILINE
)


def cpu_address_bits(text: str) -> int | None:
    """Return the physical address bits in a `/proc/cpuinfo`, the least of its CPUs; else None.

    Source: arch/x86/kernel/cpu/proc.c, show_cpuinfo().
    """
    widths = [int(bits) for bits in _ADDRESS_SIZES.findall(text)]
    return min((bits for bits in widths if 32 <= bits <= 64), default=None)
