# SPDX-License-Identifier: Apache-2.0
"""The kernel: VFIO type1 containers, iommufd, and one in memory that answers as they do."""
