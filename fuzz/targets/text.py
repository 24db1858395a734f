# SPDX-License-Identifier: Apache-2.0
"""Pasted text: facts are found or refused in one sentence, and print as plain lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz.kit import bundled, check_host, hosts_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def one_input(data: bytes) -> None:
    """Read a text, judge its hosts and show them."""
    for host in hosts_of(data):
        check_host(host)


def seeds() -> Iterator[bytes]:
    """The bundled texts, and forms of lines that none of them has."""
    yield from bundled(".txt")
    yield b"0x0000000008000000 0x00000000080fffff msi\n"
    yield b"/sys/devices/0000:01:00.0/iommu_group/reserved_regions:0x8000000 0x80fffff msi\n"
    yield b"==> /sys/kernel/iommu_groups/7/reserved_regions <==\n0x0 0xffffff direct\n"
    yield b"IOVA ranges: [0x0 - 0xfedfffff] [0xfef00000 - 0xffffffffffff]\n"
    yield b"address sizes\t: 46 bits physical, 48 bits virtual\nLinux version 6.1.0 (x)\n"
    yield b"AMD-Vi: Extended features (0x58f77ef22294a5a, 0x0): PPR NX\n"
    yield b"# kind: dmar_dmesg (collection)\n\nDMAR: RMRR base: 0x0 end: 0xfff\n\nDMAR: x\n"
