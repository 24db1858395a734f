# SPDX-License-Identifier: Apache-2.0
"""Saved layouts: kept, refused in one sentence, or compared, whatever was changed in them."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from fuzz.kit import NAMES, Bytes, check_lines, edited
from vmm_iova.errors import IovaError
from vmm_iova.host.load import load_host
from vmm_iova.plain import parse_json
from vmm_iova.planning.difference import compare_layouts, layout_changes
from vmm_iova.planning.guest import Guest
from vmm_iova.planning.layout import Layout, check_layout
from vmm_iova.planning.plan import plan
from vmm_iova.report.layout import show_difference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.host.usable import Usable


@cache
def _usable(name: str) -> Usable:
    return load_host(name).usable()


@cache
def _saved() -> tuple[dict[str, Any], ...]:
    guests = (Guest("q35", "200G"), Guest("q35", "4G", bars=()))
    return tuple(plan(guest, _usable(name)).to_json() for guest in guests for name in NAMES)


def one_input(data: bytes) -> None:
    """Take a saved layout that was changed, or any JSON."""
    good = _saved()
    if data[:1] == b"\xff":
        source = Bytes(data[1:])
        content = json.dumps(edited(good[source.below(len(good))], source))
    else:
        content = data.decode("utf-8", "replace")
    try:
        saved = parse_json(content, "fuzz")
        if not isinstance(saved, dict) or not isinstance(saved.get("schema"), dict):
            return
        check_layout(saved, "fuzz")
    except IovaError as error:
        check_lines(error.message)
        return
    for step in (
        lambda: Layout.from_json(saved, _usable(NAMES[0])),
        lambda: plan(Guest("q35", "200G"), _usable(NAMES[0]), keep=saved),
        lambda: show_difference(compare_layouts(good[0], saved), "a", "b"),
        lambda: layout_changes(good[0], saved),
    ):
        try:
            step()
        except IovaError as error:
            check_lines(error.message)


def seeds() -> Iterator[bytes]:
    """Layouts as they are saved, and edits of them."""
    for saved in _saved():
        yield json.dumps(saved).encode()
    for number in range(32):
        yield b"\xff" + bytes((number * step) % 256 for step in range(40))
