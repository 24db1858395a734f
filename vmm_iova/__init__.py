# SPDX-License-Identifier: Apache-2.0
"""Where guest memory may go on this host, and why not elsewhere."""

from vmm_iova.ranges import AddrRange, MappableRanges, RangeSet

__all__ = ["AddrRange", "MappableRanges", "RangeSet"]
