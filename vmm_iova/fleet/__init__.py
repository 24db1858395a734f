# SPDX-License-Identifier: Apache-2.0
"""Many hosts at once: the layout that fits all of them, or which stand in the way and why.

    >>> from vmm_iova import Guest, fleet
    >>> request = fleet.FleetRequest(Guest("q35", "64G"), aperture=48)
    >>> sources = fleet.read_sources(["amd-epyc-1tb", "intel-dmar-i7-2600"])
    >>> answer = fleet.analyse(fleet.survey_fleet(sources, request), request)
    >>> answer.counts["fits"], len(answer.groups)
    (2, 1)

`survey_text` judges one snapshot and pickles; `Survey.merge` joins two results in any order, so a
fleet streams through any executor in bounded memory (`survey_fleet`).
"""

from vmm_iova.fleet.analyse import Blocker, Fleet, LayoutGroup, analyse
from vmm_iova.fleet.archives import ArchiveLimits
from vmm_iova.fleet.one import survey_text
from vmm_iova.fleet.outcome import HostRow, Status
from vmm_iova.fleet.request import FleetRequest
from vmm_iova.fleet.run import Progress, SupportsSubmit, survey_chunk, survey_fleet
from vmm_iova.fleet.sources import SourceText, read_sources
from vmm_iova.fleet.survey import (
    Allowed,
    DeviceCount,
    Hole,
    HostClass,
    Problem,
    Share,
    Survey,
    merge_all,
)

__all__ = [
    "Allowed",
    "ArchiveLimits",
    "Blocker",
    "DeviceCount",
    "Fleet",
    "FleetRequest",
    "Hole",
    "HostClass",
    "HostRow",
    "LayoutGroup",
    "Problem",
    "Progress",
    "Share",
    "SourceText",
    "Status",
    "SupportsSubmit",
    "Survey",
    "analyse",
    "merge_all",
    "read_sources",
    "survey_chunk",
    "survey_fleet",
    "survey_text",
]
