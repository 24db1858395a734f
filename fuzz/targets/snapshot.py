# SPDX-License-Identifier: Apache-2.0
"""Snapshots: as they come, or a good one with some of its values changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fuzz.kit import Bytes, bundled, check_host, edited, hosts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_GOOD = [json.loads(text) for text in bundled(".json")]


def one_input(data: bytes) -> None:
    """Read a snapshot, judge the host and show it."""
    if data[:1] != b"\xff":
        hosts = hosts_of(b"{" + data)
    else:
        source = Bytes(data[1:])
        host: Any = edited(_GOOD[source.below(len(_GOOD))], source)
        hosts = hosts_of(json.dumps(host).encode())
    for item in hosts:
        check_host(item)


def seeds() -> Iterator[bytes]:
    """The bundled snapshots, and edits of them."""
    for text in bundled(".json"):
        yield text.removeprefix(b"{")
    for number in range(32):
        yield b"\xff" + bytes((number * step) % 256 for step in range(40))
