# SPDX-License-Identifier: Apache-2.0
"""Reports as people post them, each with the cause that it turned out to have.

The lines are those of public reports (their place stands beside each), shortened; a pointer that
nobody needs is `0x...`, as people shorten it themselves.
"""

from __future__ import annotations

import pytest

import vmm_iova as vi
from tests.kit.data import FAILED_MAPS
from vmm_iova.diagnosis.advice import actions
from vmm_iova.diagnosis.case import Case
from vmm_iova.diagnosis.causes import TABLES, rules_for
from vmm_iova.diagnosis.clues import Clues
from vmm_iova.diagnosis.diagnose import diagnose
from vmm_iova.diagnosis.errnos import NAMES, errno_name
from vmm_iova.diagnosis.error_line_table import FORMS
from vmm_iova.diagnosis.error_lines import parse_report, parse_reports
from vmm_iova.diagnosis.failure import Failure
from vmm_iova.diagnosis.why import FACTS, Why
from vmm_iova.host.facts import Platform
from vmm_iova.host.host import Host

FAILED = FAILED_MAPS.read_text("utf-8")
NOT_HERE = "vfio-pci 0000:01:00.0: Firmware has requested this device have a 1:1 IOMMU mapping, "
NOT_HERE += "rejecting configuring the device without a 1:1 mapping. Contact your platform vendor."


# name, line, cause, certainty, words of the answer
LISTED = [
    ("MicronSSD/unvme#4", Why.WIDTH, "certain", "needs 40 bits"),
    ("gnif/LookingGlass#1184", Why.WIDTH, "likely", "the report names such a CPU"),
    ("bpg/terraform-provider-proxmox#1353", Why.WIDTH, "likely", "needs 46 bits"),
    ("fabriziosalmi/proxmox-vm-autoscale#6", Why.CPU_BITS, "certain", "the CPU has 46"),
    ("harvester/harvester#3135", Why.MEMLOCK, "certain", "limit of locked memory"),
    ("cloud-hypervisor/cloud-hypervisor#8896", Why.HOLE, "certain", "HyperTransport"),
    ("iommu-list-fi-ivb-3770", Why.WIDTH, "certain", "needs 40 bits"),
]


def test_every_line_of_the_list_is_explained() -> None:
    assert [item.failure.name for item in vi.explain(FAILED)] == [name for name, *_ in LISTED]


@pytest.mark.parametrize(("name", "why", "certainty", "words"), LISTED)
def test_failed_map_has_its_cause_or_what_settles_it(
    name: str, why: Why, certainty: str, words: str
) -> None:
    found = next(item for item in vi.explain(FAILED) if item.failure.name == name)
    first = found.findings[0]
    assert (first.why, first.certainty) == (why, certainty)
    assert words in first.text
    assert found.settled == (certainty == "certain" and why is not Why.CPU_BITS)
    assert bool(found.settles) != found.settled
    assert found.fixes


def test_bar_over_the_hole_names_the_largest_that_fits() -> None:
    found = vi.explain(FAILED)[5]
    assert found.verdict is not None
    assert found.verdict.room == 116 << 30
    assert any("0x10000000000" in text for text in found.fixes)


REPORTS = [
    # 3.1: EINVAL and no reason
    pytest.param(
        "kvm: vfio_dma_map(0x..., 0x382800000000, 0x10000000, 0x...) = -22 (Invalid argument)",
        ("QEMU", "map", "EINVAL", Why.WIDTH, "likely"),
        "host-phys-bits-limit=39",
        id="reddit-VFIO-1qc0or2",
    ),
    pytest.param(
        "Jun 04 07:25:13 pve1 QEMU[3989106]: kvm: vfio_dma_map(0x5e043daea2f0, 0x380010000000, "
        "0x2000000, 0x771a6ce00000) = -22 (Invalid argument)\n"
        "Jun 04 07:25:13 pve1 QEMU[3989106]: kvm: VFIO_MAP_DMA failed: Invalid argument\n"
        "Jun 04 07:25:13 pve1 QEMU[3989106]: kvm: vfio_dma_map(0x5e043daea2f0, 0x380010000000, "
        "0x2000000, 0x771a6ce00000) = -22 (Invalid argument)",
        ("QEMU", "map", "EINVAL", Why.WIDTH, "likely"),
        "qm set VMID --args '-global host-x86_64-cpu.host-phys-bits-limit=39'",
        id="bpg-proxmox-1353",
    ),
    pytest.param(
        "warning: vfio_container_dma_map(0x55fab36ce610, 0x380010000000, 0x108000, "
        "0x7fd336000000) = -22 (Invalid argument)",
        ("QEMU", "map", "EINVAL", Why.WIDTH, "likely"),
        "<maxphysaddr mode='passthrough' limit='39'/>",
        id="qemu-docs-igd",
    ),
    pytest.param(
        "cloud-hypervisor: Error booting VM: VmBoot(DeviceManager(VfioMapRegion(DmaMap("
        "IommuDmaMap(Error(22))))))",
        ("Cloud Hypervisor", "map", "EINVAL", Why.WIDTH, "likely"),
        "max_phys_bits=39",
        id="cloud-hypervisor-7030",
    ),
    pytest.param(
        "DMAR: intel_iommu_map: iommu width (39) is not sufficient for the mapped address "
        "(ffff008000)",
        ("kernel", "map", "EFAULT", Why.WIDTH, "certain"),
        "move it to 0x7ffffff000",
        id="iommu-list-2020-09",
    ),
    pytest.param(
        "Failed to MAP DMA memory: Invalid argument    src/core/vfio/vfio.c",
        ("libevpl", "map", "EINVAL", Why.ORDER, "possible"),
        "kernel's range list",
        id="libevpl-86",
    ),
    pytest.param(
        "EAL:   cannot set up DMA remapping, error 22 (Invalid argument)\n"
        "EAL:   0000:08:00.0 DMA remapping failed, error 22 (Invalid argument)",
        ("DPDK", "map", "EINVAL", Why.WIDTH, "likely"),
        "--iova-mode=pa",
        id="spdk-358",
    ),
    # 3.2: AMD's hole
    pytest.param(
        "qemu-system-x86_64: -device vfio-pci,host=0000:41:10.1: VFIO_MAP_DMA: -22\n"
        "failed to setup container for group 258: memory listener initialization failed: Region "
        "pc.ram: vfio_dma_map(0x55ba53e7a9d0, 0x100000000, 0xff30000000, 0x7ed243e00000) = -22 "
        "(Invalid argument)\n(AMD EPYC)",
        ("QEMU", "map", "EINVAL", Why.HOLE, "certain"),
        "QEMU moves RAM to 1 TiB by itself",
        id="qemu-devel-2021-06",
    ),
    # 3.3: identity maps
    pytest.param(
        "vfio 0000:01:00.0: failed to setup container for group 13: Failed to set group "
        f"container: Invalid argument\n{NOT_HERE}",
        ("QEMU", "attach", "EINVAL", Why.DIRECT, "certain"),
        "pre-boot DMA protection",
        id="boards-with-wide-IVMD",
    ),
    pytest.param(
        "vfio 0000:02:00.0: failed to set iommu for container: Operation not permitted\n"
        "vfio-pci 0000:02:00.0: Device is ineligible for IOMMU domain attach due to platform RMRR "
        "requirement.  Contact your platform vendor.",
        (None, "set-iommu", "EPERM", Why.DIRECT, "certain"),
        "remote management",
        id="harvester-7340",
    ),
    pytest.param(
        "vfio 0000:02:00.0: failed to set iommu for container: Operation not permitted",
        (None, "set-iommu", "EPERM", Why.ISOLATION, "likely"),
        "interrupt remapping",
        id="eperm-without-the-log",
    ),
    # 3.4: the interrupt window
    pytest.param(
        "qemu-system-aarch64: -device vfio-pci,host=01:00.0: vfio 0000:01:00.0: failed to setup "
        "container for group 11: memory listener initialization failed: Region mach-virt.ram: "
        "vfio_dma_map(0x55de3c2a97f0, 0x40000000, 0x100000000, 0x7fb7fbe00000) = -22 (Invalid "
        "argument)",
        ("QEMU", "map", "EINVAL", Why.HOLE, "likely"),
        "plan the layout around it",
        id="launchpad-qemu-1869006",
    ),
    # 3.5: limits
    pytest.param(
        "VmBoot(DeviceManager(VfioDmaMap(IommuDmaMap(Error(12)))))\n"
        "[  379.764947] vfio_pin_pages_remote: RLIMIT_MEMLOCK (8388608) exceeded",
        ("Cloud Hypervisor", "map", "ENOMEM", Why.MEMLOCK, "certain"),
        "LimitMEMLOCK=infinity",
        id="cloud-hypervisor-165",
    ),
    pytest.param(
        "qemu: vfio_dma_map(0x55966269d230, 0x100000, 0xbff00000, 0x7f55b7f00000) = -12 (Cannot "
        "allocate memory)\nvfio_pin_pages_remote: RLIMIT_MEMLOCK (65536) exceeded",
        ("QEMU", "map", "ENOMEM", Why.MEMLOCK, "certain"),
        "all of the guest's RAM plus 1 GiB",
        id="gvt-linux-60",
    ),
    pytest.param(
        "EAL: Cannot set up DMA remapping, error 12 (Cannot allocate memory)",
        ("DPDK", "map", "ENOMEM", Why.MEMLOCK, "likely"),
        "CAP_IPC_LOCK",
        id="dpdk-memlock",
    ),
    pytest.param(
        "memory.c: 801:_vfio_iommu_map_dma: *ERROR*: Cannot set up DMA mapping, error 28",
        ("SPDK", "map", "ENOSPC", Why.ENTRIES, "certain"),
        "dma_entry_limit",
        id="spdk-915",
    ),
    # 3.6: several devices
    pytest.param(
        'level=error msg="failed to hotplug VFIO device" error="BDF:0000:19:00.0 error: 500  '
        'reason: Error from device manager: VfioMapRegion(DmaMap(IommuDmaMap(Error(17))))"',
        ("Cloud Hypervisor", "map", "EEXIST", Why.OVERLAP, "certain"),
        "must not have the same address",
        id="kata-10582",
    ),
    pytest.param(
        "vfio 0000:c6:00.0: group 10 is not viable\nPlease ensure all devices within the "
        "iommu_group are bound to their vfio bus driver.",
        (None, "open", None, Why.NOT_VIABLE, "certain"),
        "vfio-pci",
        id="incus-3422",
    ),
    pytest.param(
        "qemu: vfio 0000:01:00.0: failed to open /dev/vfio/1: Permission denied",
        ("QEMU", "open", "EACCES", Why.PERMISSION, "certain"),
        "chown USER",
        id="open-without-rights",
    ),
    pytest.param(
        "vfio 0000:01:00.0: error getting device from group 1: Invalid argument",
        ("QEMU", "get-device", "EINVAL", Why.ORDER, "certain"),
        "call in order",
        id="device-before-container",
    ),
    pytest.param(
        "qemu-kvm: vfio error: error attach 0000:01:00.0 (12) to id=2: Address already in use",
        ("QEMU", "attach", "EADDRINUSE", Why.LIVE_MAPS, "certain"),
        "attach every device before anything is mapped",
        id="attach-after-mapping",
    ),
    # 3.7: iommufd
    pytest.param(
        "Failed to map VFIO MMIO region: Failed to DMA map: failed to map an IOVA range to the "
        "IOAS: Bad address (os error 14)",
        ("Cloud Hypervisor", "map", "EFAULT", Why.BAR, "certain"),
        "--platform vfio_p2p_dma=off",
        id="cloud-hypervisor-8895",
    ),
    pytest.param(
        "qemu-system-aarch64: warning: IOMMU_IOAS_MAP failed: Bad address, PCI BAR?\n"
        "qemu-system-aarch64: vfio_container_dma_map(0xaaaadd30f110, 0x8000200000, 0x10000, "
        "0xffffb8031000) = -14 (Bad address)",
        ("QEMU", "map", "EFAULT", Why.BAR, "certain"),
        "type1",
        id="nvidia-qemu-26",
    ),
    # the kernel's log alone, and other programs
    pytest.param(
        "vfio_iommu_type1_attach_group: No interrupt remapping support.  Use the module param "
        '"allow_unsafe_interrupts" to enable VFIO IOMMU support on this platform',
        ("kernel", "attach", "EPERM", Why.ISOLATION, "certain"),
        "intremap=off",
        id="no-interrupt-remapping",
    ),
    pytest.param(  # fabriziosalmi/proxmox-vm-autoscale#6
        "kvm: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=10, "
        "start=0x400000000000, size=0x2000000: Invalid argument\n"
        "kvm_set_phys_mem: error registering slot: Invalid argument",
        ("QEMU", "memslot", "EINVAL", Why.CPU_BITS, "likely"),  # the CPU may have 48, or 52
        "limit the guest to 46",
        id="kvm-slot-beyond-the-cpu",
    ),
    pytest.param(  # cloud-hypervisor#5292
        "Error booting VM: VmBoot(DeviceManager(VfioMapRegion(CreateUserMemoryRegion("
        "CreateUserMemory(Invalid argument (os error 22))))))",
        ("Cloud Hypervisor", "memslot", "EINVAL", Why.ALIGNMENT, "possible"),
        "smallest page",
        id="kvm-slot-of-cloud-hypervisor",
    ),
    pytest.param(  # firecracker src/vmm/src/vfio.rs
        "firecracker: Failed to set KVM user memory region: Invalid argument (os error 22)",
        ("Firecracker", "memslot", "EINVAL", Why.CPU_BITS, "possible"),
        "/proc/cpuinfo",
        id="kvm-slot-of-firecracker",
    ),
    pytest.param(  # kata-containers#9553, as containerd wraps it, without spaces
        "failed to create shim task:QMP command failed:vfio 0000:ca:00.0: failed to setup "
        "container for group 51: memory listener initialization failed:Region dimm1:vfio_dma_map("
        "0x55555774cdc0,0x100000000,0x1380000000,0x7f87b3ffe000)=-14(Bad address):unknown",
        ("QEMU", "map", "EFAULT", Why.HVA, "certain"),
        "df /dev/shm",
        id="ram-without-backing",
    ),
    pytest.param(  # kata-containers/tests#2677
        "QMP command failed: vfio 0000:00:03.0: failed to setup container for group 3: memory "
        "listener initialization failed for container: Bad address",
        ("QEMU", "map", "EFAULT", Why.HVA, "likely"),
        "HugePages_Free",
        id="memory-listener-without-numbers",
    ),
    pytest.param(  # cloud-hypervisor#5749, actions/runner-images#9821
        "ApiError(VmBoot(DeviceManager(VfioDmaMap(IommuDmaMap(Error(14))))))",
        ("Cloud Hypervisor", "map", "EFAULT", Why.HVA, "likely"),
        "HugePages_Free",
        id="cloud-hypervisor-ram-without-backing",
    ),
    pytest.param(  # cloud-hypervisor pci/src/vfio.rs, VfioPciError
        "Failed to DMA map: failed to add guest memory map into iommu table: Invalid argument (os "
        "error 22) for device /sys/bus/pci/devices/0000:01:00.0 (guest BDF: 0000:00:05.0)",
        ("Cloud Hypervisor", "map", "EINVAL", Why.WIDTH, "likely"),
        "max_phys_bits=39",
        id="cloud-hypervisor-bar-in-words",
    ),
    pytest.param(  # a Debian report of 2026: the map fails, then the container
        'qemu-system-x86_64: -device {"driver":"vfio-pci","host":"0000:03:00.0"}: VFIO_MAP_DMA '
        "failed: Cannot allocate memory\nqemu-system-x86_64: -device {...}: vfio 0000:03:00.0: "
        "failed to setup container",
        ("QEMU", "map", "ENOMEM", Why.MEMLOCK, "likely"),
        "CAP_IPC_LOCK",
        id="container-fails-behind-the-map",
    ),
    pytest.param(
        "memory listener initialization failed: Cannot allocate memory",
        ("QEMU", "map", "ENOMEM", Why.MEMLOCK, "likely"),
        "raise the locked-memory limit",
        id="memory-listener-alone",
    ),
    pytest.param(  # QEMU util/vfio-helpers.c, its own NVMe driver
        "qemu-system-aarch64: qemu_vfio_dma_map(0xfffda1ffd000, 8589934592) failed: VFIO_MAP_DMA "
        "failed: Cannot allocate memory",
        ("QEMU", "map", "ENOMEM", Why.MEMLOCK, "likely"),
        "raise the locked-memory limit",
        id="qemu-nvme",
    ),
    pytest.param(  # qemu-devel 2023, hw/i386/pc.c
        "qemu-system-i386: Address space limit 0xffffffff < 0x1000fffff phys-bits too low (32)",
        ("QEMU", "start", None, Why.GUEST_BITS, "certain"),
        "host-phys-bits=on",
        id="phys-bits-too-low",
    ),
    pytest.param(  # hw/i386/intel_iommu.c
        "vfio 0000:0b:00.0: Failed to set vIOMMU: aw-bits 48 > host aw-bits 39",
        ("QEMU", "start", None, Why.VIOMMU_WIDTH, "certain"),
        "aw-bits=39",
        id="viommu-too-wide",
    ),
    pytest.param(
        "Error: vfio 0000:3b:00.0: memory listener initialization failed: Region vtd-00.0-dmar: "
        "device 01.00.0 requires caching mode: Operation not supported",
        ("QEMU", "start", None, Why.VIOMMU_NOTIFY, "certain"),
        "caching-mode=on",
        id="viommu-without-caching-mode",
    ),
    pytest.param(  # qemu commit messages of virtio-iommu, 2020 to 2024
        "qemu-kvm: virtio-iommu page mask 0xfffffffffffff000 is incompatible with mask 0x20010000\n"
        "qemu: hardware error: vfio: DMA mapping failed, unable to continue",
        ("QEMU", "start", None, Why.VIOMMU_PAGES, "certain"),
        "granule=host",
        id="viommu-pages",
    ),
    pytest.param(
        "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory",
        ("QEMU", "start", None, Why.BACKING, "certain"),
        "free -g",
        id="no-memory-for-ram",
    ),
    pytest.param(
        "vfio_listener_region_add received unaligned region tpm-crb-cmd iova=0xfed40080 "
        "offset_within_region=0x0 qemu_real_host_page_size=0x1000",
        ("QEMU", "start", None, Why.ALIGNMENT, "certain"),
        "TPM",
        id="unaligned-region",
    ),
    pytest.param(  # kubevirt#15952, #17694
        "virError(Code=38, Domain=0, Message='cannot limit locked memory of process 96 to "
        "5368709120: Operation not permitted')",
        ("libvirt", "start", None, Why.RLIMIT, "certain"),
        "CAP_SYS_RESOURCE",
        id="libvirt-may-not-raise-the-limit",
    ),
    pytest.param(  # BigAnteater/KVM-GPU-Passthrough#19
        "libvirt.libvirtError: unsupported configuration: host doesn't support passthrough of host "
        "PCI devices",
        ("libvirt", "start", None, Why.NO_IOMMU, "certain"),
        "intel_iommu=on",
        id="libvirt-without-iommu",
    ),
    pytest.param(
        "TASK ERROR: cannot prepare PCI pass-through, IOMMU not present",
        (None, "start", None, Why.NO_IOMMU, "certain"),
        "firmware",
        id="proxmox-without-iommu",
    ),
    pytest.param(  # foxlet/macOS-Simple-KVM#579
        "qemu-system-x86_64: -device vfio-pci,host=08:00.0: vfio 0000:08:00.0: no iommu_group "
        "found: No such file or directory",
        ("QEMU", "start", None, Why.NO_IOMMU, "certain"),
        "intel_iommu=on",
        id="qemu-without-iommu",
    ),
    pytest.param(
        "Could not open '/dev/iommu': No such file or directory",
        (None, "open", "ENOENT", Why.ABSENT, "certain"),
        "iommufd",
        id="no-iommufd",
    ),
    pytest.param(  # OpenDataPlane/odp#2340
        "EAL: VFIO support not initialized\nEAL: Couldn't map new region for DMA",
        ("DPDK", "map", None, Why.ORDER, "certain"),
        "VFIO_SET_IOMMU",
        id="dpdk-without-a-device",
    ),
    pytest.param(  # spdk#3193
        "EAL: Unexpected size 0 of DMA remapping cleared instead of 2097152",
        ("DPDK", "unmap", None, Why.NOT_MAPPED, "certain"),
        "unmap exactly what was mapped",
        id="dpdk-unmaps-nothing",
    ),
    pytest.param(  # ndn-dpdk#62
        "EAL:   Expecting 'PA' IOVA mode but current mode is 'VA', not initializing",
        ("DPDK", "start", None, Why.IOVA_MODE, "certain"),
        "--iova-mode=pa",
        id="dpdk-iova-mode",
    ),
    pytest.param(  # dpdk lib/eal/common/eal_common_memory.c
        "EAL: memseg iova 7f5680000000, len 40000000, out of range\n"
        "EAL: \tusing dma mask ffffff8000000000",
        ("DPDK", "map", "EINVAL", Why.WIDTH, "certain"),
        "IOVAs below 2^39",
        id="dpdk-mask",
    ),
    pytest.param(  # spdk#3061
        "memory.c: 801:_vfio_iommu_map_dma: *NOTICE*: Cannot set up DMA mapping, error 17, ignored",
        ("SPDK", "map", "EEXIST", Why.OVERLAP, "certain"),
        "does no harm",
        id="spdk-maps-again",
    ),
    pytest.param(  # intel/gvt-linux#78
        "vfio_pin_page_external: Task qemu-system-x86 (2296) RLIMIT_MEMLOCK (65536) exceeded",
        ("kernel", "map", "ENOMEM", Why.MEMLOCK, "certain"),
        "raise the locked-memory limit",
        id="gvt-linux-78",
    ),
    pytest.param(  # drivers/iommu/intel/dmar.c
        "DMAR: DRHD: handling fault status reg 3\nDMAR: [DMA Read NO_PASID] Request device "
        "[02:00.0] fault addr 0x40000000000 [fault reason 0x04] Access beyond MGAW",
        ("kernel", "fault", None, Why.WIDTH, "certain"),
        "take IOVAs below that width",
        id="fault-beyond-the-width",
    ),
    pytest.param(  # lkml 2013-02, the form before Linux 4.14
        "dmar: DMAR:[DMA Read] Request device [00:02.0] fault addr 1a45aa9000 \n"
        "DMAR:[fault reason 06] PTE Read access is not set",
        ("kernel", "fault", None, Why.UNMAPPED_DMA, "certain"),
        "map the IOVA before",
        id="fault-of-old-kernels",
    ),
    pytest.param(
        "DMAR: [DMA Write NO_PASID] Request device [03:00.1] fault addr 0xfffe0000 [fault reason "
        "0x02] Present bit in context entry is clear",
        ("kernel", "fault", None, Why.REQUESTER, "certain"),
        "all functions of the device",
        id="fault-of-an-unknown-requester",
    ),
    pytest.param(  # drivers/iommu/arm/arm-smmu-v3, before Linux 6.15: the third word
        "arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:\n"
        "arm-smmu-v3 arm-smmu-v3.0.auto:\t0x0000020000000010\n"
        "arm-smmu-v3 arm-smmu-v3.0.auto:\t0x0000020000000000\n"
        "arm-smmu-v3 arm-smmu-v3.0.auto:\t0x0000000008000040\n"
        "arm-smmu-v3 arm-smmu-v3.0.auto:\t0x0000000000000000",
        ("kernel", "fault", None, Why.HOLE, "likely"),
        "tell the guest",
        id="smmuv3-event-in-the-msi-window",
    ),
    pytest.param(  # since Linux 6.15
        "arm-smmu-v3 2b400000.smmu: event: F_TRANSLATION client: 0000:01:00.0 sid: 0x100 ssid: 0x0 "
        "iova: 0xfffff000 ipa: 0x0",
        ("kernel", "fault", None, Why.UNMAPPED_DMA, "certain"),
        "map the IOVA before",
        id="smmuv3-event-in-words",
    ),
    pytest.param(
        "arm-smmu 15000000.iommu: Unhandled context fault: fsr=0x402, iova=0xd65504710, "
        "fsynr=0x100011, cbfrsynra=0x0, cb=6",
        ("kernel", "fault", None, Why.UNMAPPED_DMA, "certain"),
        "map the IOVA before",
        id="smmuv2-fault",
    ),
    pytest.param(  # drivers/iommu/riscv/iommu.c
        "riscv-iommu 3010000.iommu: Fault 13 devid: 0x8 iotval: 28000000 iotval2: 0",
        ("kernel", "fault", None, Why.UNMAPPED_DMA, "certain"),
        "map the IOVA before",
        id="riscv-fault",
    ),
    pytest.param(
        "vfio 0000:01:00.0: failed to setup container",
        ("QEMU", "setup", None, Why.DIRECT, None),
        "",
        id="container-alone",
    ),
    pytest.param(
        "  Error: Failed to map 0x80000000 -> 0x7f2a40000000 (1073741824) for DMA",
        ("kvmtool", "map", None, Why.HOLE, "possible"),
        "plan",
        id="kvmtool-map",
    ),
    pytest.param(
        "  Error: RESERVED region [8000000-80fffff] would overlap RAM region [0-3fffffff]",
        ("kvmtool", "map", "EINVAL", Why.HOLE, "certain"),
        "plan the layout around it",
        id="kvmtool-overlap",
    ),
    pytest.param(
        "Failed to map guest memory [0x100000000, 0xfe00000000] for DMA: Invalid argument "
        "(os error 22)",
        ("Firecracker", "map", "EINVAL", Why.WIDTH, "likely"),
        "less RAM, so that it ends below 2^39",
        id="firecracker-ram",
    ),
    pytest.param(
        "[ERROR] crosvm: failed to add guest memory map into iommu table: File exists "
        "(os error 17)",
        ("crosvm", "map", "EEXIST", Why.OVERLAP, "certain"),
        "unmap what is there first",
        id="crosvm-overlap",
    ),
    pytest.param(
        "iommufd IOAS DMA map failed: iova=0x8000000 user_va=0x7f0000000000 length=0x200000 "
        "ioas_id=1: Invalid argument (os error 22)",
        ("OpenVMM", "map", "EINVAL", Why.HOLE, "possible"),
        "plan",
        id="openvmm-msi",
    ),
    pytest.param(
        "ioctl(12, VFIO_IOMMU_MAP_DMA, {argsz=32, flags=READ|WRITE, vaddr=0x7f0000000000, "
        "iova=0xfee00000, size=4096}) = -1 EINVAL (Invalid argument)",
        (None, "map", "EINVAL", Why.HOLE, "likely"),
        "plan",
        id="strace",
    ),
    pytest.param(
        "ioctl(12, VFIO_IOMMU_MAP_DMA, {argsz=32, flags=READ|WRITE, vaddr=0x7f0000000200, "
        "iova=0x100000, size=4096}) = -1 EINVAL (Invalid argument)",
        (None, "map", "EINVAL", Why.ALIGNMENT, "certain"),
        "multiples of the IOMMU's smallest page",
        id="ragged-address",
    ),
    pytest.param(
        "AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e address=0xfd00000000 flags=0x0020]",
        ("kernel", "fault", None, Why.HOLE, "certain"),
        "tell the guest",
        id="page-fault-in-the-hole-of-amd",
    ),
]


@pytest.mark.parametrize(("text", "expect", "fix"), REPORTS)
def test_report_is_explained_with_its_cause(
    text: str, expect: tuple[str | None, str, str | None, Why, str | None], fix: str
) -> None:
    (found,) = vi.explain(text)
    call = found.failure
    of_cause = {item.why: item.certainty for item in found.findings}
    assert (call.program, call.op, call.errno) == expect[:3]
    assert of_cause.get(expect[3]) == expect[4]
    assert any(fix in line for line in found.fixes or [""])
    assert bool(found.settles) != found.settled


def test_arm_guest_on_x86_is_told_how_much_fits_below_the_window() -> None:
    # Launchpad qemu 1869006: the reporter found by trial that 3054 MiB are the most.
    text = "vfio_dma_map(0x..., 0x40000000, 0x100000000, 0x...) = -22 (Invalid argument)"
    (found,) = vi.explain(text)
    hole = next(item for item in found.findings if item.why is Why.HOLE)
    assert "3054 MiB fit below it" in hole.text


class TestWithHost:
    def test_hole_is_named_with_its_region_and_what_fits(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        text = "vfio_dma_map(0x..., 0x100000000, 0xff30000000, 0x...) = -22 (Invalid argument)"
        (found,) = vi.explain(text, usable)
        (cause,) = found.findings
        assert (cause.why, cause.certainty) == (Why.HOLE, "certain")
        assert "reserved region 0xfd00000000-0xffffffffff" in cause.text
        assert found.verdict is not None
        assert found.verdict.room == 0xFD_0000_0000 - 0x1_0000_0000
        assert found.settles == ()

    def test_width_is_that_of_the_host(self) -> None:
        usable = vi.load_host("intel-dmar-i7-2600").usable()
        text = "vfio_dma_map(0x..., 0x382000000000, 0x10000000, 0x...) = -22 (Invalid argument)"
        (found,) = vi.explain(text, usable)
        assert [item.why for item in found.findings] == [Why.WIDTH]
        assert "needs no peer-to-peer" in found.fixes[0]
        assert "host-phys-bits-limit=39" in found.fixes[1]

    def test_region_at_zero_of_the_sunrise_point_group_is_found(self) -> None:
        usable = vi.load_host("intel-sunrise-point-lp-group9").usable(aperture=39, strict=True)
        text = "Region pc.ram: vfio_dma_map(0x..., 0x0, 0xa0000, 0x...) = -22 (Invalid argument)"
        (found,) = vi.explain(text, usable)
        assert found.findings[0].why is Why.HOLE
        assert "direct region 0x0-0xffffff" in found.findings[0].text

    def test_range_that_the_facts_allow_is_said_to_have_another_cause(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        text = "vfio_dma_map(0x..., 0x100000000, 0x40000000, 0x...) = -22 (Invalid argument)"
        (found,) = vi.explain(text, usable)
        assert not found.settled
        assert {Why.HOLE, Why.WIDTH}.isdisjoint(item.why for item in found.findings)
        assert any("may be mapped: the cause is another" in note for note in found.notes)

    def test_large_kernel_pages_make_a_small_map_ragged(self) -> None:
        # cloud-hypervisor#5292: a host with 64 KiB pages.
        usable = Host("altra", page_size=65536).usable(aperture=48)
        call = Failure("map", "type1", "EINVAL", 0x1_0000_1000, 0x1000)
        found = diagnose(call, Clues(), usable)
        assert [item.why for item in found.findings] == [Why.ALIGNMENT]
        assert "0x10000" in found.findings[0].text

    def test_group_with_a_direct_region_is_why_an_attach_fails(self) -> None:
        usable = vi.load_host("arm-hisilicon-rmr-megaraid-group0").usable(aperture=48)
        (found,) = vi.explain("Failed to set group container: Invalid argument", usable)
        assert [item.why for item in found.findings] == [Why.DIRECT]
        assert found.settled

    def test_group_without_a_direct_region_has_another_cause(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        (found,) = vi.explain("Failed to set group container: Invalid argument", usable)
        assert Why.DIRECT not in {item.why for item in found.findings}
        assert any("firmware does not forbid it" in note for note in found.notes)

    def test_locked_memory_is_compared_with_the_host_limit(self) -> None:
        host = Host("low", limits=vi.load_host("amd-epyc-1tb").limits)
        usable = host.usable(aperture=48, granule=4096)
        call = Failure("map", "type1", "ENOMEM", 0, 1 << 30)
        assert diagnose(call, Clues(), usable).findings[0].certainty == "likely"
        assert diagnose(call, Clues(memlock=65536), usable).findings[0].certainty == "certain"


class TestWithoutSize:
    def test_first_page_in_a_hole_is_the_cause(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        found = diagnose(Failure("map", None, "EINVAL", 0xFD_0000_0000), Clues(), usable)
        assert [item.why for item in found.findings] == [Why.HOLE]
        assert found.settled
        assert any("0x10000000000, the nearest usable address" in text for text in found.fixes)

    def test_usable_first_page_says_what_fits_and_asks_for_the_size(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        found = diagnose(Failure("map", None, "EINVAL", 1 << 32), Clues(), usable)
        assert (found.findings[0].why, found.findings[0].certainty) == (Why.HOLE, "likely")
        assert (
            "1008 GiB fit at 0x100000000, more overlaps reserved region" in found.findings[0].text
        )
        assert any("its size" in text for text in found.settles)

    def test_width_is_likely_from_the_address_alone(self) -> None:
        found = diagnose(Failure("map", None, "EINVAL", 0x3800_0000_0000), Clues())
        assert found.findings[0].why is Why.WIDTH
        assert "needs 46 bits" in found.findings[0].text


class TestFaults:
    FAULT = "AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e address={:#x} flags=0x0020]"

    def test_address_in_a_hole_of_the_host_names_the_region(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        (found,) = vi.explain(self.FAULT.format(0xFD_0000_0123), usable)
        assert [item.why for item in found.findings] == [Why.HOLE]
        assert "reserved region 0xfd00000000-0xffffffffff" in found.findings[0].text
        assert not any("another base" in text for text in found.fixes)

    def test_interrupt_window_of_an_intel_host_is_named(self) -> None:
        usable = vi.load_host("intel-dmar-i7-2600").usable()
        text = "DMAR: [DMA Read NO_PASID] Request device [01:00.0] fault addr 0xfee00000 [fault "
        (found,) = vi.explain(text + "reason 0x06] PTE Read access is not set", usable)
        assert "x86 interrupt window" in found.findings[0].text

    def test_usable_address_was_not_mapped(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        (found,) = vi.explain(self.FAULT.format(0x1D_0000_0123), usable)
        assert [item.why for item in found.findings] == [Why.UNMAPPED_DMA]
        assert any("may be mapped: nothing was" in note for note in found.notes)

    def test_fault_of_a_device_that_vfio_holds_is_a_guest_s(self) -> None:
        (found,) = vi.explain(f"vfio-pci 0000:11:00.0: {self.FAULT.format(0x1D_A414_0000)}")
        assert found.failure.device == "0000:11:00.0"
        assert "a guest's" in found.notes[-1]
        assert not any("host's own" in text for text in found.fixes)

    def test_fault_of_a_device_that_a_host_driver_holds_is_the_host_s(self) -> None:
        (found,) = vi.explain(f"amdgpu 0000:11:00.0: {self.FAULT.format(0x1D_A414_0000)}")
        assert "the host's own" in found.notes[-1]
        assert "its driver's fault" in found.fixes[0]

    def test_same_fault_of_many_addresses_is_told_once(self) -> None:
        line = "DMAR: [DMA Write] Request device [00:12.0] fault addr {} [fault reason 05] PTE"
        (found,) = vi.explain("\n".join(line.format(n) for n in range(9)))
        assert found.failure.times == 9


class TestCpu:
    def test_slot_beyond_the_bits_of_the_host_is_certain(self) -> None:
        usable = Host("desktop", cpu_bits=39).usable(aperture=48, granule=4096)
        call = Failure("memslot", None, "EINVAL", 1 << 40, 1 << 21, program="QEMU")
        found = diagnose(call, Clues(), usable)
        assert [item.why for item in found.findings] == [Why.CPU_BITS]
        assert "the CPU has 39" in found.findings[0].text
        assert "host-phys-bits-limit=39" in found.fixes[0]
        assert found.settled

    def test_slot_within_the_bits_of_the_host_has_another_cause(self) -> None:
        usable = Host("server", cpu_bits=46).usable(aperture=48, granule=4096)
        found = diagnose(Failure("memslot", None, "EINVAL", 1 << 40, 1 << 21), Clues(), usable)
        assert Why.CPU_BITS not in {item.why for item in found.findings}
        assert any("46 address bits are enough" in note for note in found.notes)


class TestOneAdvice:
    """`check` and `explain` say the same about the same range of the same host."""

    @pytest.mark.parametrize(
        ("host", "iova", "size"),
        [
            ("intel-dmar-i7-2600", 0x3800_0000_0000, 1 << 28),
            ("intel-dmar-i7-2600", 0x7F_F000_0000, 1 << 29),
            ("amd-epyc-1tb", 0xFD_0000_0000, 1 << 32),
            ("amd-epyc-1tb", 0xE0_0000_0000, 1 << 37),
            ("amd-epyc-1tb", 0x1_0000_0800, 4096),
        ],
    )
    def test_fixes_of_check_are_among_those_of_explain(
        self, host: str, iova: int, size: int
    ) -> None:
        usable = vi.load_host(host).usable()
        fixes = vi.check(usable, vi.AddrRange.from_size(iova, size)).fixes
        found = diagnose(Failure("map", None, "EINVAL", iova, size), Clues(), usable)
        assert fixes
        assert [text for text in found.fixes if text in fixes] == list(fixes)

    def test_vmm_without_such_an_option_is_not_told_to_use_one(self) -> None:
        text = "crosvm: failed to add guest memory map into iommu table: Invalid argument"
        (found,) = vi.explain(text)
        assert not any("physical address bits" in fix for fix in found.fixes)
        assert any("--machine crosvm" in fix for fix in found.fixes)


class TestNumbers:
    def test_wrap_is_certain(self) -> None:
        call = Failure("map", "type1", "EINVAL", (1 << 64) - 4096, 8192)
        found = diagnose(call, Clues())
        assert [item.why for item in found.findings] == [Why.WRAP]

    def test_48_bits_are_likely_above_what_39_explains(self) -> None:
        call = Failure("map", "type1", "EINVAL", 1 << 48, 1 << 21)
        found = diagnose(call, Clues())
        assert found.findings[0].why is Why.WIDTH
        assert "limit the guest to 48" in "".join(found.fixes)

    def test_no_errno_leaves_all_causes(self) -> None:
        found = diagnose(Failure("map"), Clues())
        assert "the line names no errno" in found.meaning
        assert any(text == "the errno" for text in found.settles)


class TestParser:
    def test_same_failure_told_twice_is_one(self) -> None:
        text = (
            "kvm: VFIO_MAP_DMA failed: Invalid argument\n"
            "kvm: vfio_dma_map(0x1, 0x380010000000, 0x2000000, 0x2000) = -22 (Invalid argument)\n"
            "kvm: VFIO_MAP_DMA failed: Invalid argument\n"
            "kvm: vfio_dma_map(0x1, 0x380000000000, 0x10000000, 0x3000) = -22 (Invalid argument)\n"
        )
        report = parse_report(text)
        assert [item.iova for item in report.failures] == [0x3800_1000_0000, 0x3800_0000_0000]
        assert {item.api for item in report.failures} == {"type1"}

    def test_several_failures_in_one_line_are_read(self) -> None:
        text = "Region a: vfio_dma_map(0x1, 0x0, 0x1000, 0x2000) = -22; " * 2
        assert len(parse_report(text).failures) == 1
        text += "vfio_dma_map(0x1, 0x5000, 0x1000, 0x2000) = -22"
        assert len(parse_report(text).failures) == 2

    def test_text_without_a_failure_says_what_to_paste(self) -> None:
        with pytest.raises(vi.errors.HostDataError, match="none of its 2 lines") as caught:
            parse_report("hello\nworld: Cannot allocate memory")
        assert "explain --iova" in str(caught.value)
        assert "QEMU, KVM, libvirt, Cloud Hypervisor" in str(caught.value)

    def test_long_log_with_the_failure_in_its_midst_is_read(self) -> None:
        noise = [f"[{n}.0] usb 1-{n}: new high-speed USB device" for n in range(300)]
        line = "kvm: vfio_dma_map(0x1, 0x380000000000, 0x10000000, 0x3000) = -22 (Invalid argument)"
        report = parse_report("\n".join([*noise, line, *noise]))
        assert [item.line for item in report.failures] == [301]
        assert report.passed_over == 600

    def test_ioctl_that_returned_minus_one_is_read_by_its_words(self) -> None:
        text = "VFIO_MAP_DMA failed: ret = -1 (Invalid argument)"
        assert parse_report(text).failures[0].errno == "EINVAL"

    def test_device_of_the_guest_is_no_clue_to_the_host(self) -> None:
        text = "Failed to DMA map: IommuDmaMap(Error(22)) for device 01:00.0 (guest BDF: 00:05.0)"
        assert parse_report(text).clues.devices == ("0000:01:00.0",)

    def test_vfio_line_that_names_no_call_keeps_what_its_errno_can_mean(self) -> None:
        (found,) = vi.explain("vfio: some other failure: Device or resource busy")
        assert {item.why for item in found.findings} == {Why.BUSY, Why.NOT_VIABLE}

    def test_hostile_text_is_read_or_refused_in_time(self) -> None:
        for text in ("0x" * 50_000, "DMAR: [" * 20_000, "vfio_dma_map(0x" + "f" * 100_000):
            with pytest.raises(vi.errors.HostDataError):
                parse_report(text)

    def test_number_beyond_64_bits_is_not_taken(self) -> None:
        text = f"vfio_dma_map(0x1, 0x{'f' * 40}, 0x1000, 0x2000) = -22"
        assert parse_report(text).failures[0].iova is None

    def test_devices_and_groups_are_clues(self) -> None:
        clues = parse_report("vfio 0000:c6:00.0: group 10 is not viable").clues
        assert (clues.devices, clues.groups) == (("0000:c6:00.0",), ("10",))

    def test_list_of_failed_maps_is_one_report_a_line(self) -> None:
        assert len(parse_reports(FAILED)) == 7
        assert len(parse_reports("a\nvfio_dma_map(0x1, 0x0, 0x1000, 0x2) = -22\n")) == 1


class TestTables:
    def test_every_cause_has_a_fact_and_something_to_do(self) -> None:
        assert set(FACTS) == set(Why)
        for why in Why:
            assert actions([why], Case(Failure("map"), Clues(), None, None, Platform())), why

    def test_every_errno_has_a_name_that_is_known(self) -> None:
        for table in TABLES.values():
            assert set(table) <= NAMES | {""}

    def test_every_form_has_a_call_with_rules(self) -> None:
        for form in FORMS:
            assert rules_for(form.op, form.api, None)

    @pytest.mark.parametrize(
        ("number", "name"), [(-22, "EINVAL"), (22, "EINVAL"), (98, "EADDRINUSE"), (9999, "9999")]
    )
    def test_numbers_are_those_of_linux(self, number: int, name: str) -> None:
        assert errno_name(number) == name


def test_call_below_the_least_width_is_not_told_of_fewer_address_bits() -> None:
    call = Failure(op="map", errno="EINVAL", iova=1 << 32, size=1 << 30)
    found = diagnose(call, Clues())
    assert Why.WIDTH in [item.why for item in found.findings]
    assert not any("physical address bits" in text or "aw-bits" in text for text in found.fixes)


def test_misaligned_call_is_not_told_that_nothing_fits() -> None:
    from vmm_iova.report.diagnosis import show_diagnosis

    call = Failure(op="map", errno="EINVAL", iova=0x9000, size=1000)
    found = diagnose(call, Clues(), vi.load_host("amd-epyc-1tb").usable())
    assert "fits:" not in show_diagnosis(found)
    assert "0x9000-0x9fff holds all of it" in " ".join(found.fixes)


@pytest.mark.parametrize(
    ("size", "certainty"),
    [(0x7FF_FFFF_F000, None), (8 << 40, "certain"), (0x8FF_4000_0000, "certain")],
)
def test_memory_slot_of_8_tib_is_too_large(size: int, certainty: str | None) -> None:
    call = Failure(op="memslot", errno="EINVAL", iova=1 << 32, size=size)
    found = diagnose(call, Clues(cpu_bits=52))
    of_cause = {item.why: item.certainty for item in found.findings}
    assert of_cause.get(Why.SLOT_SIZE) == certainty
    assert (certainty is None) or any("several slots" in fix for fix in found.fixes)


def test_memory_slot_beyond_an_unknown_cpu_names_what_would_settle_it_and_the_bits_to_have() -> (
    None
):
    call = Failure(op="memslot", errno="EINVAL", iova=0x3820_0000_0000, size=1 << 28)
    found = diagnose(call, Clues())
    assert not found.settled
    assert any("/proc/cpuinfo" in text for text in found.settles)
    assert "CPU has 46 physical address bits or more" in found.fixes[-1]
    known = diagnose(call, Clues(cpu_bits=39))
    assert known.settled
    assert "46 physical address bits instead of 39" in known.fixes[-1]


@pytest.mark.parametrize(
    ("program", "machine"), [("", "virt"), ("qemu-system-x86_64: ", "q35"), ("crosvm: ", "crosvm")]
)
def test_plan_that_is_advised_is_for_the_program_or_else_for_the_host(
    program: str, machine: str
) -> None:
    arm = vi.load_host("arm-hisilicon-d05-group3").usable(aperture=48)
    line = f"{program}vfio_dma_map(0x1, 0x8000000, 0x1000, 0x2) = -22 (Invalid argument)"
    if program.startswith("crosvm"):
        arm = vi.load_host("amd-epyc-1tb").usable()
        line = "crosvm: VFIO_IOMMU_MAP_DMA failed: EINVAL iova=0xfd00000000 size=0x1000"
    (found,) = vi.explain(line, arm)

    advised = [str(item) for item in found.fixes if "vmm-iova plan" in str(item)]
    assert all(f"--machine {machine} " in item for item in advised)
    assert advised or machine == "crosvm"
