# SPDX-License-Identifier: Apache-2.0
"""What makes a refused plan fit: options of this program, each planned with before it is said."""

from __future__ import annotations

from vmm_iova.remedies.wording import LAB, Remedy

_PLANNED = "this program plans with it before it says so"

ANOTHER_MACHINE = Remedy("another machine", tried=_PLANNED)
ANOTHER_OR_DEVICE = Remedy(
    "another machine, or a device behind another IOMMU", tried="this program's judge"
)
ANOTHER_OR_FEWER_BARS = Remedy("another machine, or fewer BARs", tried=_PLANNED)
MACHINE_OF_ARCH = Remedy("a machine for {arch}: vmm-iova machines lists them", tried="this program")
MACHINE_BITS = Remedy("another machine: {machine} has {bits} address bits at most", tried=_PLANNED)
HOLELESS_DEVICE = Remedy(
    "a device whose group does not have this hole, or a VMM whose memory can lie elsewhere",
    tried="this program's judge",
)
ROOMIER_DEVICE = Remedy("a device behind an IOMMU with {better}", tried="this program's judge")
BITS_DEVICE = Remedy(
    "a device behind an IOMMU of {bits} address bits", tried="this program's judge"
)
BITS_CPU = Remedy(
    "a host whose CPU has {bits} physical address bits",
    source="arch/x86/kvm/mmu.h, kvm_mmu_max_gfn",
)
WIDER_APERTURE = Remedy("a wider --aperture, if the host really has it", tried="this program")

ON_HOLE_PUTS = Remedy("--on-hole {policy} puts RAM at {places}", tried=_PLANNED)
ON_HOLE_ROOM = Remedy("--on-hole {policy} has room", tried=_PLANNED)
SPLIT_FITS = Remedy("with --on-hole split, --ram {mib}MiB fits", tried=_PLANNED)
ALIGN_ROOM = Remedy("--align {size} has room", tried=_PLANNED)

RAM_BELOW = Remedy("{ram} stays below it", tried=_PLANNED)
RAM_FITS = Remedy("{ram} fits", tried=_PLANNED)
RAM_LEAVES = Remedy("--ram {size} leaves room", tried=_PLANNED)
RAM_MOST = Remedy("--ram {size} is the most", tried=_PLANNED)
RAM_NOT_ENOUGH = Remedy("less RAM is not enough: with --ram {mib}MiB, {message}", tried=_PLANNED)
RAM_LESS = Remedy("less RAM", tried=_PLANNED)
ROOM_FITS = Remedy("--room {name}={size} fits", tried=_PLANNED)
MAXMEM_LESS = Remedy("less --maxmem, or fewer --slots", tried=_PLANNED)
MAXMEM_NONE = Remedy("without --maxmem it fits", tried=_PLANNED)

PCI64_GROWS = Remedy("without --pci64 the window grows for the BARs", tried=_PLANNED)
PCI64_SMALLER = Remedy("a smaller --pci64, or --pci64 0 for none", tried=_PLANNED)
PCI64_NONE = Remedy("--pci64 0{option} starts", tried=_PLANNED)
BAR_BELOW_4G = Remedy("--bar {name}={size},32 has room", tried=_PLANNED)
BAR_OPTIONAL = Remedy("mark it optional: only peer-to-peer between devices is lost", tried=_PLANNED)
BAR_SMALLER = Remedy("a BAR of {size} has room (resizable BAR on the device)", tried=_PLANNED)
DOORBELL_SMALLER = Remedy("a doorbell of {size} or less", tried=_PLANNED)
FEWER_PIECES = Remedy("fewer pieces: KVM takes {slots} memory slots", tried=LAB)

PHYS_BITS = Remedy("--phys-bits {bits}{option}", tried=_PLANNED)
VIOMMU_NARROW = Remedy("--viommu-bits {bits} ({option})", tried=_PLANNED)
OVMF_WINDOW = Remedy("--ovmf-window {mib}MiB ({option})", tried=_PLANNED)
FIRMWARE_RELEASE = Remedy("--firmware {name}, if the VMM has that release", tried=_PLANNED)
