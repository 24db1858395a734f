# SPDX-License-Identifier: Apache-2.0
"""Listings of /sys/kernel/iommu_groups: of `find`, `ls`, `tree`, or a loop over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.patterns import regex

if TYPE_CHECKING:
    from collections.abc import Iterable

_PATH = regex(r"iommu_groups/(?P<group>\d{1,9})/devices/(?P<device>[^\s/'\"]{1,64})")
_LINK = regex(
    r"(?:devices|drivers)/\S{0,80}?(?P<device>[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7])/iommu_group"
    r" -> \S{0,80}iommu_groups/(?P<group>\d{1,9})"
)


def read_iommu_groups(lines: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return (device, group) of each entry of a listing, in its order.

    Complexity: O(size).
    """
    found: dict[str, str] = {}
    for raw in lines:
        line = raw[:400]
        for match in (*_PATH.finditer(line), *_LINK.finditer(line)):
            found.setdefault(match["device"], match["group"])
    return tuple(found.items())
