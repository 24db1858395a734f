# SPDX-License-Identifier: Apache-2.0
"""Numbers and structures of iommufd, as `include/uapi/linux/iommufd.h` has them (6.2 to 7.3).

Every structure begins with its own size. What an errno means is the same for all commands:
EINVAL a size below the minimum or a wrong value; E2BIG a tail that this kernel does not know and
that is not zero; EOPNOTSUPP a flag or a reserved field that it does not know; ENOTTY an unknown
command; ENOENT an unknown or wrong object; EBUSY an object in use; EOVERFLOW beyond 2^64.
"""

from __future__ import annotations

from vmm_iova.kernel.uapi import Record, request

# ABI: include/uapi/linux/iommufd.h; numbers are 0x80 upwards from IOMMUFD_CMD_BASE.
DESTROY = request(0x80)
IOAS_ALLOC = request(0x81)
IOAS_ALLOW_IOVAS = request(0x82)
IOAS_COPY = request(0x83)
IOAS_IOVA_RANGES = request(0x84)
IOAS_MAP = request(0x85)
IOAS_UNMAP = request(0x86)
OPTION = request(0x87)
VFIO_IOAS = request(0x88)
HWPT_ALLOC = request(0x89)
"""Linux 6.6, as GET_HW_INFO."""
GET_HW_INFO = request(0x8A)
HWPT_SET_DIRTY_TRACKING = request(0x8B)
"""Linux 6.7, as the next."""
HWPT_GET_DIRTY_BITMAP = request(0x8C)
IOAS_MAP_FILE = request(0x8F)
"""Linux 6.13, as the next."""
IOAS_CHANGE_PROCESS = request(0x92)

MAP_FIXED_IOVA = 1
MAP_WRITEABLE = 2
"""The kernel's own spelling; the device may write."""
MAP_READABLE = 4
HWPT_ALLOC_NEST_PARENT = 1
HWPT_ALLOC_DIRTY_TRACKING = 2
DIRTY_TRACKING_ENABLE = 1
DIRTY_NO_CLEAR = 1

OPTION_RLIMIT_MODE = 0
"""Of the whole file: 0 accounts locked memory to the user, 1 to the process."""
OPTION_HUGE_PAGES = 1
"""Of one IOAS: 0 keeps to PAGE_SIZE."""
OPTION_OP_SET = 0
OPTION_OP_GET = 1
VFIO_IOAS_GET = 0
VFIO_IOAS_SET = 1
VFIO_IOAS_CLEAR = 2

HW_INFO_NONE = 0
HW_INFO_INTEL_VTD = 1
HW_INFO_ARM_SMMUV3 = 2
HW_INFO_AMD = 4
HW_CAP_DIRTY_TRACKING = 1
"""Linux 6.7; PCI_PASID_EXEC 2 and PCI_PASID_PRIV 4 since 6.15, ATS_NOT_SUPPORTED 8 since 7.2."""

DESTROY_ARG = Record("iommu_destroy", "size:I id:I")
IOAS_ALLOC_ARG = Record("iommu_ioas_alloc", "size:I flags:I out_ioas_id:I")
ALLOW_ARG = Record(
    "iommu_ioas_allow_iovas", "size:I ioas_id:I num_iovas:I _reserved:I allowed_iovas:Q"
)
COPY_ARG = Record(
    "iommu_ioas_copy",
    "size:I flags:I dst_ioas_id:I src_ioas_id:I length:Q dst_iova:Q src_iova:Q",
)
RANGES_ARG = Record(
    "iommu_ioas_iova_ranges",
    "size:I ioas_id:I num_iovas:I _reserved:I allowed_iovas:Q out_iova_alignment:Q",
)
MAP_ARG = Record("iommu_ioas_map", "size:I flags:I ioas_id:I _reserved:I user_va:Q length:Q iova:Q")
UNMAP_ARG = Record("iommu_ioas_unmap", "size:I ioas_id:I iova:Q length:Q")
OPTION_ARG = Record("iommu_option", "size:I option_id:I op:H _reserved:H object_id:I val64:Q")
VFIO_IOAS_ARG = Record("iommu_vfio_ioas", "size:I ioas_id:I op:H _reserved:H")
HWPT_ALLOC_ARG = Record(
    "iommu_hwpt_alloc",
    "size:I flags:I dev_id:I pt_id:I out_hwpt_id:I _reserved:I data_type:I data_len:I "
    "data_uptr:Q fault_id:I _reserved2:I",
    minimum=24,
)
HW_INFO_ARG = Record(
    "iommu_hw_info",
    "size:I flags:I dev_id:I data_len:I data_uptr:Q out_data_type:I out_max_pasid_log2:B "
    "_res0:B _res1:H out_capabilities:Q",
    minimum=32,
)
SET_DIRTY_ARG = Record("iommu_hwpt_set_dirty_tracking", "size:I flags:I hwpt_id:I _reserved:I")
GET_DIRTY_ARG = Record(
    "iommu_hwpt_get_dirty_bitmap",
    "size:I hwpt_id:I flags:I _reserved:I iova:Q length:Q page_size:Q data:Q",
)
MAP_FILE_ARG = Record(
    "iommu_ioas_map_file", "size:I flags:I ioas_id:I fd:i start:Q length:Q iova:Q"
)
CHANGE_PROCESS_ARG = Record("iommu_ioas_change_process", "size:I _reserved:I")
IOVA_RANGE_ITEM = Record("iommu_iova_range", "start:Q last:Q")
VTD_INFO = Record("iommu_hw_info_vtd", "flags:I _reserved:I cap_reg:Q ecap_reg:Q")
SMMU_INFO = Record(
    "iommu_hw_info_arm_smmuv3",
    "flags:I _reserved:I idr0:I idr1:I idr2:I idr3:I idr4:I idr5:I iidr:I aidr:I",
)
AMD_INFO = Record("iommu_hw_info_amd", "efr:Q efr2:Q")

COMMANDS: dict[int, Record] = {
    DESTROY: DESTROY_ARG,
    IOAS_ALLOC: IOAS_ALLOC_ARG,
    IOAS_ALLOW_IOVAS: ALLOW_ARG,
    IOAS_COPY: COPY_ARG,
    IOAS_IOVA_RANGES: RANGES_ARG,
    IOAS_MAP: MAP_ARG,
    IOAS_UNMAP: UNMAP_ARG,
    OPTION: OPTION_ARG,
    VFIO_IOAS: VFIO_IOAS_ARG,
    HWPT_ALLOC: HWPT_ALLOC_ARG,
    GET_HW_INFO: HW_INFO_ARG,
    HWPT_SET_DIRTY_TRACKING: SET_DIRTY_ARG,
    HWPT_GET_DIRTY_BITMAP: GET_DIRTY_ARG,
    IOAS_MAP_FILE: MAP_FILE_ARG,
    IOAS_CHANGE_PROCESS: CHANGE_PROCESS_ARG,
}
"""Which structure goes with which command."""
