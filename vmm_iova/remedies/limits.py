# SPDX-License-Identifier: Apache-2.0
"""Limits of locked memory and of map calls."""

from __future__ import annotations

from vmm_iova.remedies.wording import LAB, Remedy

# -- limits ----------------------------------------------------------------------------------------

LOCK_RAM = Remedy(
    "raise the locked-memory limit to {size} ({how})",
    tried=LAB,
    ways=(
        ("shell", Remedy("ulimit -l {kib}", tried=LAB)),
        ("systemd", Remedy("LimitMEMLOCK={bytes}", source="systemd.exec(5)")),
        (
            "libvirt",
            Remedy(
                "<memtune><hard_limit unit='KiB'>{kib}</hard_limit></memtune>",
                source="libvirt formatdomain; qemuDomainGetMemLockLimitBytes",
            ),
        ),
        ("containers", Remedy("--ulimit memlock={bytes}", source="docs.docker.com")),
    ),
)
LOCK_SOMETHING = Remedy(
    "raise the locked-memory limit to all of the guest's RAM plus 1 GiB, and with an IOMMU in the "
    "guest (-device intel-iommu) once for each assigned device",
    tried=LAB,
    ways=(
        ("shell", Remedy("ulimit -l KIB", tried=LAB)),
        ("systemd", Remedy("LimitMEMLOCK=infinity", source="systemd.exec(5)")),
        (
            "libvirt",
            Remedy("<memtune><hard_limit>", source="libvirt formatdomain"),
        ),
        ("containers", Remedy("--ulimit memlock=-1", source="docs.docker.com")),
    ),
)
LOCK_RAISE = Remedy("raise RLIMIT_MEMLOCK (ulimit -l) or give CAP_IPC_LOCK", tried=LAB)
LOCK_NUMBER = Remedy(
    "ulimit -l {kib} (KiB), LimitMEMLOCK={size} in a unit of systemd, or CAP_IPC_LOCK", tried=LAB
)
LOCK_CAPABILITY = Remedy(
    "give the VMM CAP_IPC_LOCK (type1 and iommufd count nothing then)", tried=LAB
)
LOCK_ONE_CONTAINER = Remedy(
    "put all devices into one container or IOAS: each container counts the RAM again", tried=LAB
)
LOCK_NO_VIOMMU = Remedy(
    "or leave the guest's own IOMMU out (-device {viommu}): then all devices share one container",
    source="hw/vfio/container.c of QEMU; kubevirt/kubevirt#17805",
)
LOCK_PLAN = Remedy(
    "vmm-iova plan prints the locked memory of a guest before anything is mapped",
    tried="this program",
)
LOCK_LIBVIRT_ITSELF = Remedy(
    "raise the limit of libvirt itself{need}: LimitMEMLOCK=infinity in the unit of libvirtd or "
    "virtqemud, --ulimit memlock=-1 for a container",
    source="systemd.exec(5); kubevirt/kubevirt#17805",
)
LOCK_MAY_RAISE = Remedy(
    "give libvirt CAP_SYS_RESOURCE, with which it may raise the limit of QEMU",
    source="prlimit(2); kubevirt/kubevirt#15952",
)
ENTRIES_LARGER = Remedy(
    "map in larger pieces: one map call takes one entry, whatever its size (hugepages, larger "
    "virtio-mem blocks)",
    tried=LAB,
)
ENTRIES_RAISE = Remedy(
    "raise the limit before the container is set up: echo 4194304 > "
    "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
    tried=LAB,
)
ENTRIES_NUMBER = Remedy(
    "dma_entry_limit={entries} (options vfio_iommu_type1 in /etc/modprobe.d; it is read when the "
    "container is made), larger pieces, or iommufd, which has no such limit",
    tried=LAB,
)
ENTRIES_IOMMUFD = Remedy("use iommufd, which has no such limit", tried=LAB)
ENTRIES_HINT = Remedy(
    "every map call takes one of vfio_iommu_type1's dma_entry_limit entries: map larger pieces, or "
    "raise it before the container is made",
    tried=LAB,
)
ENTRIES_WAIT = Remedy(
    "nothing, while the guest runs: it is a warning before the limit is reached",
    source="hw/vfio/listener.c of QEMU, vfio_ram_discard_register_listener",
)
