# SPDX-License-Identifier: Apache-2.0
"""Fuzz definitions of VMs: any text is read or refused in one sentence, planned, and changed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fuzz.kit import NAMES
from vmm_iova.definitions.change import change_between
from vmm_iova.definitions.definition import CHANGE_FORMS, KINDS
from vmm_iova.definitions.read import read_vm
from vmm_iova.definitions.write import changed_text, write_change
from vmm_iova.errors import IovaError, PlanError, RequestError
from vmm_iova.host.load import load_host
from vmm_iova.planning.plan import plan
from vmm_iova.report.definition import definition_data, show_definition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.definitions.definition import Definition
    from vmm_iova.host.usable import Usable

DATA = Path(__file__).parents[2] / "tests/data/definitions"
_BITS, _RAM = 41, 3 << 30


@cache
def _usable(name: str) -> Usable:
    return load_host(name).usable()


def one_input(data: bytes) -> None:
    """Read a text as what it looks like, and as each kind that there is.

    Raises:
        Exception: any but the program's own is a finding.
    """
    text = data.decode("utf-8", "replace")
    for kind in (None, *KINDS):
        try:
            read = read_vm(text, kind)
        except IovaError as error:
            assert "\n" not in error.message
            continue
        _hold(read)


def _hold(read: Definition) -> None:
    for line in (*read.unread, *(item.name for item in read.devices), read.name or ""):
        assert line.isprintable() or not line
    for name in NAMES:
        with contextlib.suppress(PlanError, RequestError):
            plan(read, _usable(name))
        assert show_definition(read, read.guest, _usable(name))
    assert definition_data(read, "")["kind"] == read.kind
    wanted = replace(read.guest, ram=_RAM, nodes=(), maxmem=None, slots=0)
    if read.arch == "x86_64":
        wanted = replace(wanted, phys_bits=_BITS)
    change = change_between(read, wanted)
    for form in CHANGE_FORMS:
        try:
            write_change(read, change, form)
        except RequestError:
            continue  # another machine's, or pages that it has not
    changed = changed_text(read, change)
    if changed is None:
        return
    again = read_vm(changed, read.kind)
    found = again.guest.ram or sum(int(getattr(node, "size", 0)) for node in again.guest.nodes)
    assert found == _RAM, (found, changed)
    assert again.guest.phys_bits == wanted.phys_bits, changed


def seeds() -> Iterator[bytes]:
    """Definitions that were found in public, and some of the other formats."""
    yield from (line.encode() for line in SMALL)
    yield from (path.read_bytes() for path in sorted(DATA.glob("[lpq]*")))


SMALL = (
    "<domain type='kvm'><memory>4194304</memory><cpu mode='host-passthrough'/></domain>",
    "cores: 1\nmemory: 2048\ncpu: host\nargs: -cpu 'host,x=1' -m 3G\nhostpci0: 01:00,pcie=1\n",
    "R=1G\nA=(-m $R)\nA+=(-cpu host)\nqemu-system-x86_64 \"${A[@]}\" ${B:-x} -name 'a b' \\\n -S",
    "cloud-hypervisor --memory size=1G,hugepages=on --device path=/sys/bus/pci/devices/a iommu=on",
    "cores: 1\nmemory: 2048\ncpu: EPYC\n\n[snapshot]\nmemory: 512\nargs: -m 1G\n",
    '{"machine-config": {"mem_size_mib": 1024, "huge_pages": "2M"}}',
    '{"payload": {}, "cpus": {"max_phys_bits": 40}, "memory": {"zones": [{"size": 1048576}]}}',
)
