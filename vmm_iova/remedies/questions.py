# SPDX-License-Identifier: Apache-2.0
"""What would settle a doubt: questions, not remedies."""

from __future__ import annotations

# -- what would settle a doubt: questions, not remedies --------------------------------------------

SETTLE_HOST = "the host's facts: vmm-iova capture -o host.json there, then add --host host.json"
SETTLE_LIST = (
    "the kernel's own range list is not among it: with a device that is bound to vfio-pci, "
    "vmm-iova capture --ask-kernel -s BDF"
)
SETTLE_DEVICES = "the guest's devices: name them with -s BDF,BDF"
SETTLE_START = (
    "whether it starts is known on the host itself, or from a capture there (vmm-iova capture -o "
    "host.json)"
)
SETTLE_STATE = "run this on the host itself, or capture it there: vmm-iova capture -o host.json"
SETTLE_WIDTH = (
    "the width of the IOMMU: cat /sys/class/iommu/*/intel-iommu/cap (bits 21:16), or "
    "dmesg | grep -i 'iommu width\\|dmar\\|amd-vi'"
)
SETTLE_HOLES = "the holes: grep . /sys/kernel/iommu_groups/*/reserved_regions"
SETTLE_CPU = "the physical address bits of the CPU: grep 'address sizes' /proc/cpuinfo"
SETTLE_DIRECT = (
    "whether firmware claims the device: grep -w direct "
    "/sys/kernel/iommu_groups/*/reserved_regions; dmesg | grep -i '1:1\\|RMRR'"
)
SETTLE_ISOLATION = "the kernel's log: dmesg | grep -i 'remapping\\|unsafe'"
SETTLE_MEMLOCK = "the limit of the VMM: grep -i locked /proc/PID/limits; dmesg | grep MEMLOCK"
SETTLE_ENTRIES = "the limit: cat /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
SETTLE_NUMBERS = "{what}: the VMM's line with the numbers, or strace -e ioctl"
SETTLE_PAGE = "the page size of the host's kernel: getconf PAGE_SIZE"
SETTLE_ORDER = "the order of the calls: strace -e ioctl (VFIO_SET_IOMMU before the first map)"
SETTLE_BAR = "whether the address is a BAR: /proc/PID/maps names vfio there"
SETTLE_GROUPS = "the devices' groups together: vmm-iova show --groups A,B"
SETTLE_GROUP = "whether the device has a group: ls -l /sys/bus/pci/devices/BDF/iommu_group"
SETTLE_OWNER = "whose it is: lspci -k -s {bdf} (vfio-pci: a guest's; else the host's own)"
SETTLE_RAM = "the guest's RAM and devices: paste the QEMU command line with the error"
SETTLE_CALL = "the lines above it, and dmesg: they name the call that failed"
SETTLE_ERRNO = "the errno"
