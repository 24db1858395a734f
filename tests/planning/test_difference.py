# SPDX-License-Identifier: Apache-2.0
"""What changes for a guest, in sentences that a person can act on."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmm_iova as vi
from vmm_iova import cli
from vmm_iova.host.facts import Group, RegionKind, ReservedRegion, Source
from vmm_iova.host.host import Host
from vmm_iova.planning.difference import compare_hosts, host_changes, layout_changes
from vmm_iova.ranges import AddrRange

Output = pytest.CaptureFixture[str]


def changes(left: str, right: str, **of: object) -> tuple[str, ...]:
    ours, theirs = vi.load_host(left), vi.load_host(right)
    return host_changes(ours, theirs, ours.usable(), theirs.usable(), **of)  # type: ignore[arg-type]


def test_same_host_changes_nothing() -> None:
    assert changes("amd-epyc-1tb", "amd-epyc-1tb") == ()


def test_amd_hole_moves_a_q35_guest_above_978_gib() -> None:
    (sentence,) = changes("qemu-vtd-notifier-ranges", "amd-epyc-1tb")
    assert sentence.startswith("a q35 guest with more than 978 GiB of RAM moves")
    assert "to 0x10000000000-" in sentence
    assert "HyperTransport" in sentence


def test_policy_move_moves_and_its_window_counts() -> None:
    (sentence,) = changes("qemu-vtd-notifier-ranges", "amd-epyc-1tb", on_hole="move")
    assert sentence.startswith("a q35 guest with more than 978 GiB of RAM moves: RAM piece high ")
    assert "to 0x10000000000-" in sentence


def test_narrower_host_ends_what_fits() -> None:
    sentences = changes("amd-epyc-1tb", "intel-dmar-i7-2600")
    assert sentences == ("a q35 guest with more than 510 GiB of RAM no longer fits",)
    back = changes("intel-dmar-i7-2600", "amd-epyc-1tb")
    assert back == ("a q35 guest with more than 510 GiB of RAM fits now",)


def test_guest_that_is_given_is_planned_on_both() -> None:
    guest = vi.Guest("own-x86", "1.5TiB")
    sentences = changes("qemu-vtd-notifier-ranges", "amd-epyc-1tb", guest=guest)
    assert any(text.startswith("RAM piece high at 0x100000000 ends earlier") for text in sentences)
    assert any("RAM piece high 2 is new at 0x10000000000-" in text for text in sentences)
    assert any("64-bit PCI window moved from" in text for text in sentences)
    assert any("must be told that 0xfd00000000-0xffffffffff is reserved" in t for t in sentences)


def test_guest_that_no_longer_fits_is_said_with_the_reason() -> None:
    (sentence,) = changes("amd-epyc-1tb", "intel-dmar-i7-2600", guest=vi.Guest("q35", "1T"))
    assert sentence.startswith("the guest no longer fits: 1 TiB of RAM does not fit")
    (sentence,) = changes("intel-dmar-i7-2600", "amd-epyc-1tb", guest=vi.Guest("q35", "1T"))
    assert sentence.startswith("the guest fits now; before, 1 TiB of RAM does not fit")
    (sentence,) = changes("intel-dmar-i7-2600", "intel-dmar-i7-2600", guest=vi.Guest("q35", "1T"))
    assert sentence.startswith("the guest fits on neither")


def _host(direct: bool) -> Host:
    regions = ()
    if direct:
        span = AddrRange(0x7B80_0000, 0x7BFF_FFFF)
        source = Source("rmrr", 1)
        regions = (ReservedRegion(span, RegionKind.DIRECT, "direct", source, "9"),)
    group = Group("9", ("0000:09:00.0",), regions)
    return Host("h", arch="x86_64", page_size=4096, groups=(group,))


def test_group_that_firmware_takes_can_no_longer_be_assigned() -> None:
    free, held = _host(False), _host(True)
    judged = free.usable(aperture=48), held.usable(aperture=48)
    sentences = host_changes(free, held, *judged)
    assert sentences[0] == "group 9 (0000:09:00.0) can no longer be assigned: direct region, rmrr:1"
    assert (
        host_changes(held, free, *judged[::-1])[0] == "group 9 (0000:09:00.0) can be assigned now"
    )


def test_hosts_without_evidence_are_compared_as_far_as_it_goes() -> None:
    free, held = _host(False), _host(True)
    assert host_changes(free, held, None, held.usable(aperture=48)) == (
        "group 9 (0000:09:00.0) can no longer be assigned: direct region, rmrr:1",
        "what else changes is not known: the facts of h do not say what may be mapped "
        "(--aperture states a width)",
    )


def test_larger_pages_are_named() -> None:
    small, large = Host("s", page_size=4096), Host("l", page_size=65536)
    sentences = host_changes(small, large, small.usable(aperture=48), large.usable(aperture=48))
    assert "RAM must be whole multiples of 64 KiB instead of 4 KiB" in sentences


def test_two_layouts_say_what_moved() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    guest = vi.Guest("q35", "1.5TiB")
    split, move = (vi.plan(guest, usable, policy).to_json() for policy in ("split", "move"))  # type: ignore[arg-type]
    sentences = layout_changes(split, move)
    assert any(text.startswith("RAM piece high moved from 0x100000000-") for text in sentences)
    assert any(text.startswith("RAM piece high 2 at 0x10000000000-") for text in sentences)
    assert layout_changes(split, split) == ()


def test_command_says_what_changes_for_the_guest_first(capsys: Output, tmp_path: Path) -> None:
    hosts = ("qemu-vtd-notifier-ranges", "amd-epyc-1tb")
    assert cli.main(["diff", *hosts]) == 3
    text = capsys.readouterr().out
    verdict, why, *_ = text.splitlines()
    assert verdict.startswith("DIFFERENT: ")
    assert "a q35 guest with more than 978 GiB" in why
    assert cli.main(["diff", *hosts, "--ram", "8G", "-J"]) == 3
    assert '"guest": []' in capsys.readouterr().out
    assert cli.main(["diff", *hosts, "--ram", "8G"]) == 3
    assert "nothing changes" in capsys.readouterr().out


def test_two_layouts_of_other_sizes_say_how_much_ram_each_has() -> None:
    usable = vi.load_host("amd-epyc-1tb").usable()
    small, large = (vi.plan(vi.Guest("q35", ram), usable).to_json() for ram in ("8G", "16G"))
    assert layout_changes(small, large)[0] == "RAM: 8 GiB became 16 GiB"


def test_what_both_hosts_have_is_in_no_section_of_their_difference() -> None:
    ours, theirs = vi.load_host("lab-vtd-39"), vi.load_host("lab-vtd-48")
    difference = compare_hosts(ours, theirs, ours.usable(), theirs.usable())
    assert difference.sections
    for _, left, right in difference.sections:
        assert not set(left) & set(right)
