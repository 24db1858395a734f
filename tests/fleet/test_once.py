# SPDX-License-Identifier: Apache-2.0
"""What is equal is judged once, and hosts that differ in what places depend on are planned anew."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kit.snapshots import GIB, MSI, snapshot
from tests.kit.steps import growth
from vmm_iova import Guest, fleet
from vmm_iova.fleet import one, outcome
from vmm_iova.fleet.request import FleetRequest
from vmm_iova.host.facts import Device, Group, IommuUnit, RegionKind, ReservedRegion, Source
from vmm_iova.host.host import Host
from vmm_iova.host.judge import judge
from vmm_iova.ranges import AddrRange

REQUEST = fleet.FleetRequest(Guest("q35", "16G"))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was planned, with nothing known from before."""
    monkeypatch.setattr(outcome, "_PLACES", {})
    one._CACHE.clear()
    seen: list[object] = []
    plan = FleetRequest.plan

    def counted(request: FleetRequest, usable: Any) -> Any:
        if usable.host != "any host":  # on which a request is tried before the first one
            seen.append(usable)
        return plan(request, usable)

    monkeypatch.setattr(FleetRequest, "plan", counted)
    return seen


def host(name: str, mask: int = 64, **of: Any) -> fleet.SourceText:
    data = json.loads(snapshot(name, **of))
    data["devices"][0]["dma_mask_bits"] = mask
    return fleet.SourceText(name, json.dumps(data).encode())


def test_hosts_with_facts_that_no_place_depends_on_are_planned_once(planned: list[object]) -> None:
    survey = fleet.survey_fleet([host(f"h{bits}", bits) for bits in range(32, 64)], REQUEST)

    assert survey.counts == {"fits": 32}
    assert len(planned) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"bits": 39},
        {"regions": (MSI, (32 * GIB, 33 * GIB - 1, "reserved"))},
        {"regions": ((*MSI[:2], "reserved"),)},
        {"cpu_bits": 46},
        {"granule": 0x10000},
        {"ranges": [(0, 48 * GIB - 1), (48 * GIB, 1 << 40)]},
    ],
    ids=str,
)
def test_host_that_differs_in_what_places_depend_on_is_planned_anew(
    planned: list[object], other: dict[str, Any]
) -> None:
    fleet.survey_fleet([host("a"), host("b", **other)], REQUEST)

    assert len(planned) == 2


def test_host_of_another_architecture_is_planned_anew(planned: list[object]) -> None:
    request = fleet.FleetRequest(Guest(None, "16G"))

    fleet.survey_fleet([host("a"), host("b", arch="aarch64")], request)

    assert len(planned) == 2


def test_another_request_is_planned_anew(planned: list[object]) -> None:
    for ram in ("16G", "17G"):
        fleet.survey_fleet([host("a")], fleet.FleetRequest(Guest("q35", ram)))

    assert len(planned) == 2


def test_refused_hosts_have_words_of_their_own(planned: list[object]) -> None:
    request = fleet.FleetRequest(Guest("q35", "1.5TiB"))

    found = [
        fleet.survey_text(host(name, mask, bits=39).content, name, request.resolved())
        for name, mask in (("a", 40), ("b", 41))
    ]

    assert [rows[0].status for _, rows in found] == ["refused", "refused"]
    assert len(planned) == 2


def test_places_that_are_kept_are_bounded(
    planned: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "_MOST_PLACES", 2)

    fleet.survey_fleet([host(f"h{bits}", bits=bits) for bits in range(40, 48)], REQUEST)

    assert len(planned) == 8
    assert 0 < len(outcome._PLACES) <= 2


def test_survey_of_kept_places_is_that_of_planned_ones(planned: list[object]) -> None:
    sources = [host("a", 40), host("b", 41), host("c", 42, bits=39)]
    kept = fleet.survey_fleet(sources, REQUEST)
    apart = fleet.Survey()
    for source in sources:
        outcome._PLACES.clear()
        one._CACHE.clear()
        apart = apart.merge(fleet.survey_fleet([source], REQUEST))

    assert len(planned) == 5  # two before, then three
    assert kept == apart


def many_groups(count: int) -> Host:
    """A host with groups of one device each, behind two units, asked for by name."""
    span = AddrRange(0xFEE0_0000, 0xFEEF_FFFF)
    return Host(
        "many",
        arch="x86_64",
        groups=tuple(
            Group(
                str(n),
                (f"d{n}",),
                (ReservedRegion(span, RegionKind.MSI, "msi", Source("regions", n), str(n)),),
            )
            for n in range(count)
        ),
        devices=tuple(Device(f"d{n}", str(n), f"dmar{n % 2}", driver="nvme") for n in range(count)),
        units=tuple(IommuUnit(f"dmar{n}", 0xD2078C106F0466, 0xF020DF) for n in range(2)),
        sysfs=True,
    )


def test_judging_twice_the_groups_by_name_takes_about_twice_the_steps() -> None:
    hosts = {count: many_groups(count) for count in (200, 400)}
    names = {count: [group.id for group in host.groups] for count, host in hosts.items()}

    times = growth(lambda count: judge(hosts[count], groups=names[count], beside=False), 200)

    assert times < 2.2
