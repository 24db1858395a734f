# SPDX-License-Identifier: Apache-2.0
"""Guests that people describe in words: what is read of them, and what is no guest."""

from __future__ import annotations

import pytest

from tests.kit.data import DATA
from vmm_iova.ranges import GIB, MIB, TIB
from vmm_iova.readers.guest_words import GuestWords, read_guest_words


def _read(text: str) -> GuestWords | None:
    return read_guest_words(text.splitlines())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(  # tianocore/edk2#12997
            (DATA / "reports/15-eight-gpus.txt").read_text("utf-8"),
            GuestWords(TIB, None, "q35", 46, None, "ovmf", (512 * GIB,) * 8),
            id="eight-gpus",
        ),
        pytest.param(  # RHEL-98247
            (DATA / "reports/16-maxmem-on-amd.txt").read_text("utf-8"),
            GuestWords(64 * GIB, 1536 * GIB, "q35", None, "amd"),
            id="maxmem-on-amd",
        ),
        ("KVM guest, RAM: 128 GB, phys-bits=40", GuestWords(128 * GIB, bits=40)),
        (
            "VM with 512M of memory on a Xeon, SeaBIOS, a card with a 16 MiB BAR",
            GuestWords(512 * MIB, cpu="intel", firmware="seabios", bars=(16 * MIB,)),
        ),
    ],
)
def test_guest_in_words_is_read(text: str, words: GuestWords) -> None:
    assert _read(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "my machine has 64 GiB RAM",  # no guest
        "the guest does not start",  # no RAM
        "VM: 0 GiB RAM",
        "MemTotal: 65536000 kB\nguest",
    ],
)
def test_text_without_a_guest_and_its_ram_is_none(text: str) -> None:
    assert _read(text) is None


def test_vendors_and_firmware_that_stand_beside_each_other_are_left_open() -> None:
    words = _read("q35 guest, 8 GiB RAM, EPYC or Xeon, OVMF or SeaBIOS, an AMD GPU")
    assert words is not None
    assert (words.cpu, words.firmware) == (None, None)


def test_hostile_description_is_read_in_bounds() -> None:
    words = _read("guest 1 GiB RAM " + "999 GPUs 1G BAR " * 60)
    assert words is not None
    assert len(words.bars) <= 64
