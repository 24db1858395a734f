# SPDX-License-Identifier: Apache-2.0
"""`explain` of a text that tells of no failed call: what it is about, and a command that works."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.kit.command import Output, run
from tests.kit.data import DATA
from vmm_iova.errors import ExitCode

EIGHT_GPUS, MAXMEM = "15-eight-gpus", "16-maxmem-on-amd"
_PASTES = {
    name: (DATA / "reports" / f"{name}.txt").read_text("utf-8") for name in (EIGHT_GPUS, MAXMEM)
}


def first_lines(capsys: Output, text: str, *options: str) -> list[str]:
    assert run("explain", text, *options) == ExitCode.UNSETTLED
    return capsys.readouterr().out.splitlines()[:3]


@pytest.mark.parametrize(
    ("name", "wrong", "do"),
    [
        (
            EIGHT_GPUS,
            ("LIKELY: with OVMF", "finds no place", "8 devices", "window of 8 TiB"),
            ("a window of 16 TiB", "X-PciMmio64Mb,string=16777216"),
        ),
        (
            MAXMEM,
            (
                "LIKELY: because of maxmem, QEMU moves all RAM above 4 GiB to 0x10000000000",
                "Code 43",
            ),
            ("maxmem=978G or less",),
        ),
    ],
)
def test_guest_that_is_described_is_planned_by_the_rules_of_its_vmm(
    capsys: Output, name: str, wrong: tuple[str, ...], do: tuple[str, ...]
) -> None:
    first, second, third = first_lines(capsys, _PASTES[name])
    found = first.replace("may find no place", "finds no place")
    assert all(words in found for words in wrong), first
    assert all(words in second for words in do), second
    assert "vmm-iova plan --host HOST --machine q35 --ram" in third


@pytest.mark.parametrize(
    ("name", "host"),
    [(EIGHT_GPUS, "intel-dmar-server-oob-pr10"), (MAXMEM, "amd-epyc-1tb")],
)
def test_command_that_is_printed_says_the_same_of_a_real_host(
    capsys: Output, name: str, host: str
) -> None:
    first, _, third = first_lines(capsys, _PASTES[name], "--host", host)
    command = shlex.split(third.partition("vmm-iova ")[2])
    assert run(*command) == 0
    planned = capsys.readouterr().out.splitlines()[0]
    assert planned.startswith("FITS, BUT: " + first.removeprefix("LIKELY: ").rstrip("."))


def test_failure_of_the_guests_driver_with_its_description_has_the_cause_of_the_plan(
    capsys: Output,
) -> None:
    text = _PASTES[MAXMEM] + "Windows has stopped this device. (Code 43)\n"
    assert first_lines(capsys, text) == first_lines(capsys, _PASTES[MAXMEM])


def test_failure_of_the_guests_driver_alone_says_how_to_see_whether_ram_is_moved(
    capsys: Output,
) -> None:
    first, second, _ = first_lines(capsys, "This device has reported problems. (Code 43)")
    assert first.startswith("LIKELY: the guest's own driver gave up")
    assert "vmm-iova plan --vm FILE" in second


def test_guest_without_anything_unexpected_gets_the_command(capsys: Output) -> None:
    first, second, _ = first_lines(capsys, "a VM with 16 GiB RAM on an EPYC is slow")
    assert first.startswith("NO FAILED CALL: the text describes a guest (q35, 16 GiB of RAM)")
    assert second.endswith("vmm-iova plan --host HOST --machine q35 --ram 16G --cpu amd")


def test_guest_that_does_not_start_by_the_rules_of_its_vmm_is_refused(capsys: Output) -> None:
    first, second, _ = first_lines(capsys, "q35 guest, 600 GiB RAM, 39 address bits")
    assert first.startswith("LIKELY: ")
    assert "39" in first
    assert second.startswith("Do: ")


@pytest.mark.parametrize(
    ("text", "about", "command"),
    [
        (
            "qemu-system-x86_64 -machine q35 -m 8G -device vfio-pci,host=01:00.0",
            "the definition of a VM (a QEMU command line)",
            "vmm-iova plan --vm FILE",
        ),
        (
            "<domain type='kvm'><memory unit='GiB'>8</memory><os><type arch='x86_64' "
            "machine='q35'>hvm</type></os></domain>",
            "the definition of a VM (libvirt XML)",
            "vmm-iova plan --vm FILE",
        ),
        (
            "01:00.0 3D controller [0302]: a card\n\tFlags: bus master\n"
            "\tRegion 2: Memory at 380000000000 (64-bit, prefetchable) [size=64G]\n",
            "facts of a host (1 device",
            "vmm-iova show --host FILE",
        ),
        (
            "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"
            "BIOS-e820: [mem 0x0000000000100000-0x000000007fffffff] usable\n",
            "a machine's memory map",
            "vmm-iova capture",
        ),
        (
            "00001000-0009fbff : System RAM\n00100000-7fffffff : System RAM\n",
            "a machine's memory map",
            "vmm-iova capture",
        ),
    ],
)
def test_text_that_is_known_says_what_it_is_and_names_its_command(
    capsys: Output, tmp_path: Path, text: str, about: str, command: str
) -> None:
    path = tmp_path / "paste.txt"
    path.write_text(text)
    assert run("explain", "--file", str(path)) == ExitCode.UNSETTLED
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("NO FAILED CALL: ")
    assert about in first
    assert command in second


def test_text_that_nobody_knows_is_refused_as_before(capsys: Output) -> None:
    assert run("explain", "hello world") == ExitCode.DAMAGED
    assert "tells of a failed call" in capsys.readouterr().err


def test_json_has_the_answer_in_its_notes_and_no_failure(capsys: Output) -> None:
    assert run("explain", _PASTES[MAXMEM], "-J") == ExitCode.UNSETTLED
    found = json.loads(capsys.readouterr().out)
    assert (found["settled"], found["failures"]) == (False, [])
    assert found["notes"][0].startswith("because of maxmem, QEMU moves all RAM above 4 GiB")
    assert any("maxmem=978G" in note for note in found["notes"])
