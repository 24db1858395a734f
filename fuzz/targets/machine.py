# SPDX-License-Identifier: Apache-2.0
"""Machine files: read or refused with a line, and a guest is planned on what was read."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from fuzz.kit import check_lines
from vmm_iova.errors import IovaError
from vmm_iova.machines.toml_file import parse_machine
from vmm_iova.planning.guest import Guest
from vmm_iova.planning.plan import plan
from vmm_iova.planning.request import bare_usable
from vmm_iova.report.machines import machine_data, show_machine

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LENGTH = 8192


def one_input(data: bytes) -> None:
    """Read a machine, show it, and plan a small and a large guest on it."""
    try:
        machine = parse_machine(data.decode("utf-8", "replace"), "fuzz.toml")
    except IovaError as error:
        check_lines(error.message)
        return
    check_lines(show_machine(machine, bytes_=False))
    machine_data(machine)
    for ram in ("1G", "1.5TiB"):
        try:
            layout = plan(Guest(machine, ram), bare_usable(machine))
        except IovaError:
            continue
        assert sum(item.place.size for item in layout.ram) == layout.ram_bytes


def seeds() -> Iterator[bytes]:
    """The models that ship with the package."""
    for item in sorted(resources.files("vmm_iova.machines").iterdir(), key=lambda item: item.name):
        if item.name.endswith(".toml"):
            yield item.read_bytes()
