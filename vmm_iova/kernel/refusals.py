# SPDX-License-Identifier: Apache-2.0
"""Next steps by errno: what a refusal of attach or map may mean on this kernel."""

from __future__ import annotations

import errno
import os

from vmm_iova.errors import DmaError


def map_refusal(
    name: str, hints: dict[int, str], iova: int | None, hva: int, size: int, number: int
) -> DmaError:
    """Make the error of a map call that was refused; no IOVA is "anywhere"."""
    where = "anywhere" if iova is None else f"to {iova:#x}"
    return DmaError(
        f"the kernel does not map {size:#x} bytes at {hva:#x} {where}: {os.strerror(number)}",
        errno=number,
        ioctl=name,
        iova=iova,
        length=size,
        hva=hva,
        hint=hints.get(number),
    )


ATTACH_HINTS = {
    errno.EPERM: "the host has no interrupt remapping for it; vfio_iommu_type1's parameter "
    "allow_unsafe_interrupts=1 accepts the risk",
    errno.EINVAL: "a live mapping lies where this group cannot translate (rehearse_attach tells "
    "which), or firmware demands a direct region",
    errno.EBUSY: "the group, or a device of it, is open elsewhere",
    errno.ENODEV: "load vfio_iommu_type1",
}

TYPE1_MAP_HINTS = {
    errno.EEXIST: "an IOVA is mapped once: unmap first",
    errno.ENOSPC: "every map call takes one of vfio_iommu_type1's dma_entry_limit entries: map "
    "larger pieces, or raise it before the container is made",
    errno.ENOMEM: "raise RLIMIT_MEMLOCK (ulimit -l) or give CAP_IPC_LOCK",
    errno.EFAULT: "the memory is not there or not writable, or the address is beyond the IOMMU",
    errno.EINVAL: "not a multiple of the granule, or not inside one range of facts().ranges",
}

IOMMUFD_MAP_HINTS = {
    errno.EEXIST: "an IOVA is mapped once: unmap first",
    errno.ENOMEM: "raise RLIMIT_MEMLOCK (ulimit -l) or give CAP_IPC_LOCK",
    errno.EFAULT: "the memory is not there or not writable; BARs go through map_file (6.19)",
    errno.EINVAL: "not a multiple of the alignment, or it touches what facts().ranges leaves out",
    errno.ENOSPC: "no free place of that size and alignment",
}
