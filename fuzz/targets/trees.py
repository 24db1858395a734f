# SPDX-License-Identifier: Apache-2.0
"""Copied sysfs trees: nothing outside is read, nothing waits, and what is read is plain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz.kit import Bytes, check_host
from fuzz.trees import Forest
from vmm_iova.errors import IovaError
from vmm_iova.host.sysfs import read_sysfs

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LENGTH = 1024
_FOREST = Forest()


def one_input(data: bytes) -> None:
    """Grow a tree, and read it."""
    with _FOREST.grown(Bytes(data)) as top:
        try:
            host = read_sysfs(top)
        except IovaError:
            return
        check_host(host)


def seeds() -> Iterator[bytes]:
    """Anything grows something."""
    for number in range(64):
        yield bytes((number * 7 + step * step * 3) % 256 for step in range(200))
