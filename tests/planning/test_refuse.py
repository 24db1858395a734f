# SPDX-License-Identifier: Apache-2.0
"""Misfits in words, and fixes that were tried: with an attempt of one's own they can be counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import vmm_iova as vi
from vmm_iova.host.text import parse_text
from vmm_iova.planning.attempt import attempt
from vmm_iova.planning.describe import describe
from vmm_iova.planning.layout import Layout
from vmm_iova.planning.misfit import Misfit
from vmm_iova.planning.refuse import explain
from vmm_iova.planning.request import resolve
from vmm_iova.planning.site import HolePolicy, Policy, Site, site_of
from vmm_iova.planning.trials import Trials

GIB = 1 << 30
HOLE = "0x0 - 0xfedfffff\n0xfef00000 - 0x17fffffff\n0x200000000 - 0xffffffffff\n"
AUTO, SPLIT, MOVE, REFUSE = map(Policy, HolePolicy)


def _site(guest: vi.Guest, ranges: str = HOLE) -> Site:
    usable = parse_text(ranges, "list", "iova_ranges")[0].usable()
    return site_of(resolve(guest, usable), usable)


def _misfit(site: Site, policy: Policy) -> Misfit:
    with pytest.raises(Misfit) as caught:
        attempt(site, policy)
    return caught.value


def _never(site: Site, policy: Policy) -> Layout:
    raise Misfit("ram", site.usable.ranges[0])


GUESTS: list[tuple[vi.Guest, str, Policy]] = [
    (vi.Guest("q35", "8G"), HOLE, REFUSE),
    (vi.Guest("q35", "8G"), "0x0 - 0x7fffffff\n", SPLIT),
    (vi.Guest("q35", "8G", bars=[vi.Bar("gpu", "1TiB", required=True)]), HOLE, SPLIT),
    (vi.Guest("q35", "8G", rooms=[vi.Room("dimms", "2TiB")]), HOLE, SPLIT),
    (vi.Guest("s390x", "8G", phys_bits=32), HOLE, SPLIT),
    (vi.Guest("microvm", "8G", bars=[vi.Bar("gpu", "1G")]), HOLE, SPLIT),
]


@pytest.mark.parametrize(("guest", "ranges", "policy"), GUESTS)
def test_description_tries_nothing_and_is_what_the_error_says(
    guest: vi.Guest, ranges: str, policy: Policy
) -> None:
    site = _site(guest, ranges)
    misfit = _misfit(site, policy)
    message, reasons = describe(misfit, site)
    error = explain(misfit, site, policy, attempt)
    assert error.message == message
    assert error.reasons == tuple(reasons)
    assert reasons


@pytest.mark.parametrize(("guest", "ranges", "policy"), GUESTS)
def test_no_fix_of_a_number_or_policy_is_named_when_nothing_works(
    guest: vi.Guest, ranges: str, policy: Policy
) -> None:
    site = _site(guest, ranges)
    error = explain(_misfit(site, policy), site, policy, _never)
    tried = ("--ram", "--on-hole", "--align", "--bar", "--phys-bits 3", "mark it", "with --on-hole")
    assert [fix for fix in error.fixes if fix.startswith(tried)] == []


def test_fix_of_ram_is_the_most_that_an_attempt_has_a_place_for() -> None:
    site = _site(vi.Guest("q35", "8G"), "0x0 - 0x7fffffff\n")

    def at_most(most: int) -> Callable[[Site, Policy], Layout]:
        def attempt_(site: Site, policy: Policy) -> Layout:
            if site.wanted.ram > most:
                raise Misfit("ram", site.usable.ranges[0])
            return attempt(_site(vi.Guest("q35", "1G")), policy)

        return attempt_

    misfit = _misfit(site, SPLIT)
    assert explain(misfit, site, SPLIT, at_most(2 * GIB)).fixes[0] == "--ram 2GiB fits"
    assert explain(misfit, site, SPLIT, at_most(GIB + 12345)).fixes[0] == "--ram 1024MiB fits"


def test_refusal_offers_the_policies_that_work_with_their_places() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    site = site_of(resolve(vi.Guest("own-x86", "1.5TiB"), usable), usable)
    error = explain(_misfit(site, REFUSE), site, REFUSE, attempt)
    assert error.fixes[:2] == (
        "--on-hole split puts RAM at 0x0-0x7fffffff, 0x100000000-0xfcffffffff, "
        "0x10000000000-0x1837fffffff",
        "--on-hole move puts RAM at 0x0-0x7fffffff, 0x10000000000-0x27f7fffffff",
    )


def test_trials_of_more_bits_stop_at_the_first_that_works() -> None:
    site, seen = _site(vi.Guest("q35", "64G", phys_bits=35), "0x0 - 0xffffffffff\n"), list[int]()

    def counted(site: Site, policy: Policy) -> Layout:
        seen.append(site.wanted.limits[0].bits)
        return attempt(site, policy)

    assert Trials(site, SPLIT, counted).more_bits() == 37
    assert seen == [36, 37]


def test_trials_leave_what_is_wanted_as_it_is() -> None:
    site = _site(vi.Guest("q35", "8G"))
    before = site.wanted
    explain(_misfit(site, REFUSE), site, REFUSE, attempt)
    assert site.wanted == before
