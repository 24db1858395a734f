# SPDX-License-Identifier: Apache-2.0
"""IOMMUs that are off, devices and their drivers, firmware, interrupts, BARs."""

from __future__ import annotations

from vmm_iova.remedies.wording import LAB, QEMUS, SHELL, Remedy

# -- an IOMMU that is off --------------------------------------------------------------------------

IOMMU_ON = Remedy(
    "switch the IOMMU on in the firmware and, on Intel, boot with intel_iommu=on",
    tried="intel_iommu=on: " + LAB,
)
OR_ANOTHER_HOST = Remedy("or plan for another host with --host", tried="this program")
IOMMU_ON_INTEL = Remedy(
    "switch VT-d on in the firmware and boot with intel_iommu=on", tried="intel_iommu=on: " + LAB
)
IOMMU_ON_AMD = Remedy(
    "switch the IOMMU (AMD-Vi) on in the firmware; the kernel needs no parameter",
    tried="no parameter: " + LAB,
)
IOMMU_ON_ARM = Remedy(
    "the firmware's IORT or device tree has to describe an SMMU in front of the device; on a board "
    "whose PCIe has none, no device of it can be assigned",
    source="drivers/acpi/arm64/iort.c, drivers/iommu/of_iommu.c",
)
IOMMU_IF_ANY = Remedy(
    "if the machine has an IOMMU, switch it on in the firmware and, on Intel, boot with "
    "intel_iommu=on; some have none for PCIe (a Raspberry Pi), and no setting helps there",
    tried="intel_iommu=on: " + LAB,
)
NO_IOMMU_BOARD = Remedy(
    "no setting helps: {board} cannot give a PCI device to a VM; take a machine with an IOMMU for "
    "its PCIe",
    source="raspberrypi/linux#6834",
)
IOMMU_ON_GUEST = Remedy(
    "this machine is itself a VM: start the outer QEMU with -device "
    "intel-iommu,intremap=on,caching-mode=on (and -M q35,kernel-irqchip=split), then boot this one "
    "with intel_iommu=on",
    tried="QEMU 7.2.22, as the lab's machines are started",
)
IOMMU_ON_XEN = Remedy(
    "switch the IOMMU (VT-d, AMD-Vi) on in the firmware, and leave iommu=no out of Xen's command "
    "line: xl dmesg | grep -i 'I/O virtualisation' says whether it is on",
    source="Xen docs/misc/xen-command-line.pandoc; QubesOS/qubes-issues#3217",
)
SEE_GROUP = Remedy(
    "see whether it has a group: ls -l /sys/bus/pci/devices/{bdf}/iommu_group", tried=SHELL
)
READ_IOMMU_LOG = Remedy(
    "see what the kernel found: dmesg | grep -i 'DMAR\\|AMD-Vi\\|smmu'", tried=SHELL
)
LOAD_MODULES = Remedy("load the modules: modprobe vfio-pci vfio_iommu_type1", tried=LAB)
NO_IOMMU_MODE = Remedy(
    "without an IOMMU only unsafe access is left, for DPDK and the like: "
    "echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, then bind again; a VM cannot "
    "use it",
    source="drivers/vfio/group.c, vfio_noiommu_group_alloc; CONFIG_VFIO_NOIOMMU",
)
NO_TRANSLATION = Remedy(
    "the host's own IOMMU driver has to set the device up first: read the lines above in dmesg",
    source="arch/arm64/mm/dma-mapping.c (Linux 4.7 to 4.20)",
)
IOMMU_ON_MEDIATED = Remedy(
    "load the driver that makes the mediated device: modprobe kvmgt vfio_mdev (Intel GVT-g), or "
    "start the vendor's service; then create the device again",
    source="github.com/intel/gvt-linux/issues/74, github.com/DualCoder/vgpu_unlock/issues/47",
)

# -- devices and their drivers ---------------------------------------------------------------------

BIND_DEVICE = Remedy(
    "driverctl set-override {bdf} vfio-pci, or write vfio-pci to its driver_override, unbind it, "
    "and write its name to drivers_probe",
    tried="driver_override and drivers_probe: " + LAB,
)
BIND_THIS = Remedy(
    "bind {bdf} to vfio-pci: echo vfio-pci > /sys/bus/pci/devices/{bdf}/driver_override; "
    "echo {bdf} > /sys/bus/pci/devices/{bdf}/driver/unbind; echo {bdf} > "
    "/sys/bus/pci/drivers_probe",
    tried=LAB,
)
BIND_GROUP = Remedy(
    "bind all devices of the group to vfio-pci (driverctl set-override BDF vfio-pci), or unbind "
    "those that the guest should not have; bridges (pcieport) may stay",
    tried=LAB + ", a group of two",
)
BIND_THESE = Remedy(
    "bind {devices} to vfio-pci as well, or unbind it: bridges of the group may stay",
    tried=LAB,
)
BIND_AND_LOAD = Remedy(
    "bind the device to vfio-pci, and load vfio-pci and vfio_iommu_type1 or iommufd", tried=LAB
)
BIND_AND_GIVE = Remedy("bind the device to vfio-pci, and give access", tried=LAB)
BIND_ALL_DPDK = Remedy(
    "bind all devices to vfio-pci: one on igb_uio or uio_pci_generic forces physical addresses",
    source="DPDK lib/eal/linux/eal.c, rte_eal_iova_mode",
)
OVERRIDE_FIRST = Remedy(
    "name the driver before you bind: echo vfio-pci > /sys/bus/pci/devices/BDF/driver_override",
    tried=LAB,
)
CLOSE_OTHER = Remedy(
    "close the other user: a group, or its device's node in /dev/vfio/devices, opens once; "
    "fuser -v /dev/vfio/* names it",
    tried=LAB,
)
CLOSE_OTHER_NODE = Remedy("another VMM has it; fuser -v tells which", tried=LAB)
IS_OPEN = Remedy("it, its group, or a device of the group is open elsewhere", tried=LAB)
GIVE_NODE = Remedy("give the VMM's user the node: chown USER {node}", tried=SHELL)
GIVE_CONTAINER = Remedy(
    "let the container or the cgroup have it: --device /dev/vfio/GROUP; libvirt: "
    "cgroup_device_acl in qemu.conf",
    source="docs.docker.com; libvirt's qemu.conf",
)
LOAD_TYPE1 = Remedy("load vfio_iommu_type1", tried=LAB)
LOAD_VFIO = Remedy("is the module vfio loaded, and does /dev come from this kernel?", tried=LAB)
LOAD_IOMMUFD = Remedy("iommufd needs Linux 6.2 with CONFIG_IOMMUFD, and access", tried=LAB)
NO_POWER = Remedy(
    "on POWER only spapr exists, which is not spoken", source="drivers/vfio/vfio_iommu_spapr_tce.c"
)
CDEV = Remedy(
    "that needs Linux 6.6 with CONFIG_VFIO_DEVICE_CDEV; via='type1' needs neither", tried=LAB
)
NODE_OF_DEVICE = Remedy(
    "see whether the host's kernel has the node: ls /sys/bus/pci/devices/BDF/vfio-dev/vfio*/dev",
    tried=LAB,
)
NODE_BY_GROUP = Remedy(
    "go by the group, /dev/vfio/GROUP, which needs no such node, or boot a kernel with "
    "CONFIG_VFIO_DEVICE_CDEV=y and CONFIG_IOMMUFD (Linux 6.6 and later)",
    tried=LAB,
    ways=(
        ("QEMU", Remedy("leave out iommufd=", tried=QEMUS)),
        (
            "libvirt",
            Remedy("leave out <iommufd> of the domain", source="libvirt formatdomain"),
        ),
        (
            "KubeVirt",
            Remedy("switch the IOMMUFD feature gate off", source="kubevirt/kubevirt#18300"),
        ),
    ),
)
NODE_IN_CONTAINER = Remedy(
    "if the host has it, give it to the container: its device plugin has to hand out "
    "/dev/vfio/devices/vfioN and /dev/iommu",
    source="kubevirt/kubevirt#18300, NVIDIA/kubevirt-gpu-device-plugin#136",
)
READ_LOG = Remedy("the kernel's log may say more", tried=SHELL)
RESET_DEVICE = Remedy(
    "a device that runs on after its driver or guest has gone: reset it, or bind it to vfio-pci "
    "before any other driver starts it",
    source="drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_disable",
)
RESET_STRAY = Remedy(
    "if no driver chose the address: the device runs on after its driver or guest has gone, or was "
    "set up wrongly; reset it",
    source="drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_disable",
)
ALL_FUNCTIONS = Remedy(
    "give the guest all functions of the device and bind each to vfio-pci: it may send with the id "
    "of another function (seen with Marvell SATA and with bridges to old PCI)",
    source="drivers/pci/quirks.c, quirk_dma_func1_alias",
)
KERNEL_QUIRK = Remedy(
    "a kernel with a quirk for the device (drivers/pci/quirks.c, quirk_dma_func0_alias)",
    source="drivers/pci/quirks.c",
)
SAME_SPACE = Remedy(
    "put all devices of the group into one guest and one address space: without a guest IOMMU, or "
    "all behind one pcie-to-pci bridge",
    source="hw/vfio/container.c, vfio_get_group; lf-edge/eve#2544",
    ways=(
        (
            "QEMU",
            Remedy(
                "-device pcie-pci-bridge,id=br,bus=pcie.0 and bus=br for each of them",
                source="docs/pcie.txt of QEMU; lf-edge/eve#2544",
            ),
        ),
    ),
)
ONE_OWNER = Remedy(
    "a group has one owner: its devices cannot go to different guests",
    source="drivers/vfio/group.c",
)
SPLIT_GROUP = Remedy(
    "use another slot, whose devices have a group of their own",
    source="drivers/iommu/iommu.c, pci_device_group",
)
RELEASE_BAR = Remedy(
    "keep the host's console off the card: boot with video=efifb:off or "
    "initcall_blacklist=sysfb_init, or make another card the first one in the firmware",
    source="drivers/firmware/sysfb.c; forum.proxmox.com/threads/79000",
)
MEDIATED_DRIVER = Remedy(
    "ask the maker of the device's driver: it was told of this map and refused it; the kernel's "
    "log has its own line",
    source="drivers/vfio/vfio_iommu_type1.c, VFIO_IOMMU_NOTIFY_DMA_MAP (Linux 4.10 to 6.0)",
)
BOUNCE_LARGER = Remedy(
    "boot the host with a larger buffer, swiotlb=65536 (slots of 2 KiB); if it fills again after "
    "hours, the driver leaks: report it with the driver's name",
    source="Documentation/admin-guide/kernel-parameters.txt; lwfinger/rtl8192ee#3",
)
BOUNCE_IOMMU = Remedy(
    "or switch the IOMMU on and leave iommu=pt out, so that the device reaches all memory without "
    "copies",
    source="drivers/iommu/dma-iommu.c",
)
XEN_LOGS = Remedy(
    "read what stands above it: /var/log/xen/ (qemu-dm-*.log, xl-*.log) and xl dmesg",
    source="QubesOS/qubes-issues#7717, #9853",
)
XEN_ASSIGNABLE = Remedy(
    "see that Dom0 has let go of the device: xl pci-assignable-list names it, else "
    "xl pci-assignable-add BDF",
    source="Xen docs/man/xl.1.pod",
)
MEDIATED_SMALLER = Remedy(
    "see how many are left: cat .../mdev_supported_types/TYPE/available_instances; take a smaller "
    "type, remove one, or give the graphics more aperture in the firmware (Intel GVT-g)",
    source="github.com/intel/gvt-linux/issues/172",
)
VFIO_USER_REGIONS = Remedy(
    "let the client unmap the old region before it maps one over it: a server keeps regions that "
    "do not overlap",
    source="nutanix/libvfio-user#463",
)
VIOMMU_MAPS = Remedy(
    "update the VMM and the guest's kernel, or leave the guest's IOMMU out for that device "
    "(iommu=on of Cloud Hypervisor): its driver uses an address that it did not map",
    source="cloud-hypervisor/cloud-hypervisor#6872",
)
MOVED_RAM = Remedy(
    "see whether QEMU moves the guest's RAM: vmm-iova plan --vm FILE --host HOST; on AMD it does "
    "for RAM or maxmem near 1 TiB, and NVIDIA's driver on Windows was seen to fail then",
    tried="this program, " + QEMUS,
)
HIDE_VM = Remedy(
    "NVIDIA's drivers before 465 refuse a GeForce in a VM: update the driver, or hide the VM",
    source="NVIDIA, GeForce GPU Passthrough for Windows Virtual Machine (driver 465)",
    ways=(
        ("QEMU", Remedy("-cpu host,kvm=off", source="docs/system/i386 of QEMU, the flag kvm")),
        (
            "libvirt",
            Remedy(
                "<kvm><hidden state='on'/></kvm> in <features>",
                source="libvirt formatdomain (1.2.8)",
            ),
        ),
    ),
)
OTHER_MAKER = Remedy(
    "it is the device or its reset, not where memory lies: look for the device's name with vfio "
    "and reset",
    source="drivers/vfio/pci/vfio_pci_core.c",
)
ACS_OVERRIDE = Remedy(
    "put the device behind a port that isolates (ACS); only the administrator of the host can let "
    "it pass: relaxed_acs_check=1 in qemu.conf accepts the risk",
    source="libvirt src/util/virpci.c, virPCIDeviceIsAssignable",
)
ADD_VIOMMU = Remedy(
    "start the guest with its own IOMMU, or leave iommu=on off the device: it cannot be added "
    "later",
    source="cloud-hypervisor/cloud-hypervisor#3205",
)
CHECK_HARDWARE = Remedy(
    "update the firmware, and take out or reset the device that was used last: the IOMMU waits for "
    "it in vain",
    source="drivers/iommu/amd/init.c, drivers/iommu/intel/dmar.c",
)

# -- regions that firmware demands -----------------------------------------------------------------

FIRMWARE_REGION = Remedy(
    "in the firmware's setup, switch off what claims the device, or assign another device",
    source="HPE support document c04781229; harvester/harvester#7340",
)
FIRMWARE_CLAIMS = Remedy(
    "elsewhere look for pre-boot DMA protection, legacy USB, the integrated graphics, and remote "
    "management",
    source="harvester/harvester#7340; drivers/iommu/intel/iommu.c, device_rmrr_is_relaxable",
)
FIRMWARE_HPE = Remedy(
    "HPE ProLiant: exclude the slot from iLO's shared memory (HP Shared Memory Features) with "
    "conrep or ilorest: RMRDS_SlotN=Endpoints_Excluded",
    source="HPE advisory c04781229 (Configuring HPE ProLiant servers for PCI pass-through)",
)
FREE_DEVICE = Remedy(
    "assign a device that no direct region binds: vmm-iova show names the groups that it does",
    tried="this program",
)
FIRMWARE_UPDATE = Remedy(
    "update the firmware: several boards list whole bus ranges by mistake (AMD B650, X870E)",
    source="sercanarga/PCILeechGen#28 and reports on linux-iommu, 2024 to 2026",
)
NO_PARAMETER = Remedy(
    "a firmware setting may drop the region; no kernel parameter does",
    source="drivers/iommu/iommu.c, require_direct (Linux 6.8)",
)
WITHOUT_STRICT = Remedy(
    "without --strict the direct-relaxable region may be used", tried="this program"
)
OR_DIRECT = Remedy(
    "or firmware demands a direct region", source="drivers/iommu/iommu.c, require_direct"
)
GRAPHICS_OFF = Remedy(
    "leave the graphics untranslated: on Linux intel_iommu=on,igfx_off, on Xen iommu=no-igfx; or "
    "switch the integrated graphics off in the firmware",
    source="Documentation/admin-guide/kernel-parameters.txt; Xen's xen-command-line",
)

# -- interrupts ------------------------------------------------------------------------------------

REMAP_INTERRUPTS = Remedy(
    "switch interrupt remapping on: in the firmware (VT-d with x2APIC, or AMD's IOMMU), and boot "
    "without intremap=off",
    tried="intremap of the lab's machines (lab/guests.py)",
)
UNSAFE_INTERRUPTS = Remedy(
    "as the last resort, for guests that you trust: modprobe vfio_iommu_type1 "
    "allow_unsafe_interrupts=1 (iommufd has the same parameter)",
    tried=LAB,
)
REMAP_OR_UNSAFE = Remedy(
    "the host has no interrupt remapping for it: turn it on, or accept the risk: "
    "{module}.allow_unsafe_interrupts=1",
    tried=LAB,
)

# -- BARs that found no place ----------------------------------------------------------------------

WINDOW_LARGER = Remedy(
    "give the guest a larger 64-bit PCI window: {window} or more",
    ways=(
        (
            "OVMF",
            Remedy(
                "-fw_cfg name=opt/ovmf/X-PciMmio64Mb,string={mib}",
                tried="OVMF 2025.02 and 2026.08 on QEMU 10.0.13 and 11.1.3",
            ),
        ),
        (
            "libvirt",
            Remedy(
                "<qemu:commandline> with that option",
                source="libvirt drvqemu, pass-through of arguments",
            ),
        ),
    ),
)
WINDOW_BITS = Remedy(
    "or give the guest the host's address bits: the firmware's window is an eighth of them",
    ways=(
        ("QEMU", Remedy("-cpu host,host-phys-bits=on", tried=QEMUS)),
        (
            "libvirt",
            Remedy(
                "<cpu mode='host-passthrough'><maxphysaddr mode='passthrough'/></cpu>",
                source="libvirt formatdomain (8.7.0)",
            ),
        ),
    ),
)
RESIZE_BAR = Remedy(
    "a BAR of {size} has room: on the host, with no driver bound, echo {bit} > {file}",
    source="Documentation/ABI/testing/sysfs-bus-pci, resource<N>_resize (Linux 6.1)",
)
WINDOW_HOST = Remedy(
    "on the host itself: switch on Above 4G Decoding (and Resizable BAR) in the firmware, or boot "
    "with pci=realloc",
    source="Documentation/admin-guide/kernel-parameters.txt, pci=realloc",
)
BAR_BY_GUEST = Remedy(
    "nothing, if the guest's device works",
    source="pci/src/bus.rs of Cloud Hypervisor: the error is logged, and the guest goes on",
)
BAR_FIRMWARE = Remedy(
    "if it does not, another firmware in the guest: rust-hypervisor-firmware leaves BARs where "
    "they are; or QEMU",
    source="cloud-hypervisor/cloud-hypervisor#6147",
)

# -- peer-to-peer ----------------------------------------------------------------------------------

PEER_IDLE = Remedy(
    "nothing, if the guest runs and needs no peer-to-peer DMA between devices",
    source="hw/vfio/listener.c of QEMU: a failed map of a RAM device region is no error",
)
PEER_IDLE_UNSURE = Remedy(
    "if it is a BAR and nothing needs peer-to-peer DMA, leave it: the guest runs without this map",
    source="hw/vfio/listener.c of QEMU",
    ways=(
        ("QEMU", Remedy("it only warns", source="hw/vfio/listener.c")),
        (
            "Cloud Hypervisor",
            Remedy("--platform vfio_p2p_dma=off", source="cloud-hypervisor docs/vfio.md"),
        ),
    ),
)
BAR_OFF = Remedy(
    "turn peer-to-peer off: --platform vfio_p2p_dma=off",
    source="cloud-hypervisor docs/vfio.md; cloud-hypervisor/cloud-hypervisor#8895",
)
BAR_DMA_BUF = Remedy(
    "to have peer-to-peer: Linux 6.19 or later and a VMM that maps BARs as dma-bufs (QEMU 11), "
    "or a VFIO container (type1) instead of iommufd, on any kernel",
    ways=(
        (
            "QEMU",
            Remedy(
                "version 11 or later; for type1 leave out iommufd=",
                source="hw/vfio/region.c of QEMU 11, drivers/vfio/pci/vfio_pci_dmabuf.c of Linux "
                "6.19; type1: " + LAB,
            ),
        ),
        (
            "libvirt",
            Remedy(
                "the same QEMU; for type1 leave out <iommufd> of the domain",
                source="libvirt formatdomain",
            ),
        ),
        (
            "Cloud Hypervisor",
            Remedy(
                "for type1 leave iommufd=on out of --platform",
                source="cloud-hypervisor/cloud-hypervisor#8895",
            ),
        ),
    ),
)
BAR_MEMORY = Remedy(
    "type1 maps a BAR while the device decodes memory: see that it does, lspci -vv -s {bdf} "
    "(Control: Mem+, and Status: D0)",
    source="drivers/vfio/pci/vfio_pci_core.c, __vfio_pci_memory_enabled",
)

# -- a guest's own IOMMU ---------------------------------------------------------------------------

CACHING_MODE = Remedy(
    "let the guest's IOMMU tell what it maps",
    ways=(
        ("QEMU", Remedy("-device intel-iommu,caching-mode=on", tried="QEMU 7.2.22, in the lab")),
        ("libvirt", Remedy("<driver caching_mode='on'/>", source="libvirt formatdomain")),
    ),
)
ARM_NOTIFY = Remedy(
    "on Arm, virtio-iommu, or an SMMUv3 with accel=on (QEMU 11): the emulated one tells nothing",
    source="hw/arm/smmuv3.c, smmuv3_notify_flag_changed",
)
IOMMU_FIRST = Remedy(
    "put the intel-iommu before the vfio-pci devices on the command line",
    source="hw/i386/intel_iommu.c, vtd_machine_done_notify_one",
)
HOST_GRANULE = Remedy(
    "-device virtio-iommu-pci,granule=host (QEMU 9.0 and later), or granule=64k on a host with "
    "64 KiB pages",
    tried="granule=host: QEMU 10.0.13 and 11.1.3",
)
SMALL_PAGES = Remedy("a host kernel with 4 KiB pages", source="hw/virtio/virtio-iommu.c")

FIRMWARE_TABLE = Remedy(
    "update the firmware: its tables (IVRS) describe the device or the interrupt controller "
    "wrongly; no guest is concerned",
    source="pcengines/apu2-documentation#240; AMD I/O virtualization specification, 2.5.8",
)
