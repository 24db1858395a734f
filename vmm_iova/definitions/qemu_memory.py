# SPDX-License-Identifier: Apache-2.0
"""RAM, its nodes and the pages that back it, as QEMU's options state them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.errors import HostDataError
from vmm_iova.planning.guest import Node
from vmm_iova.ranges import MIB
from vmm_iova.readers.qemu import size_of
from vmm_iova.record import record
from vmm_iova.units import parse_size, shorten

if TYPE_CHECKING:
    from vmm_iova.definitions.options import Options

_DEFAULT_RAM = 128 * MIB  # hw/core/machine.c, default_ram_size


@record
class Memory:
    """What a guest has of memory.

    Attributes:
        ram: bytes at the start; None where a variable of the shell says it.
        maxmem: bytes that it may grow to, or None.
        slots: for modules.
        nodes: of NUMA; empty where it has none.
        page_size: of what backs it all, or None for small pages.
    """

    ram: int | None
    maxmem: int | None = None
    slots: int = 0
    nodes: tuple[Node, ...] = ()
    page_size: int | None = None


def memory_of(options: Options, source: str) -> Memory:
    """Return the memory of a guest.

    Raises:
        HostDataError: a size is none.
    """
    given = options.memory
    ram = _size(given["size"], "-m", source) if given.get("size") else None
    backend = options.objects.get(options.machine.get("memory-backend", ""))
    if backend is not None and backend.get("size"):
        ram = ram or _size(backend["size"], "-object", source, 1)
    maxmem = _size(given["maxmem"], "maxmem", source) if given.get("maxmem") else None
    slots = int(given["slots"]) if re.fullmatch(r"\d{1,3}", given.get("slots", "")) else 0
    pages = _pages(backend) if backend is not None else None
    if pages is None and "mem-path" in options.flags:
        pages = _pages_of_path(options.flags["mem-path"])
    nodes = tuple(_nodes(options, source))
    total = sum(int(node.size) for node in nodes)
    if nodes and ram not in (None, total):
        nodes = ()  # QEMU would refuse it; what -m says counts for addresses
    ram = ram or total or (None if "unknown-ram" in options.flags else _DEFAULT_RAM)
    if len({node.page_size for node in nodes}) == 1:
        size = nodes[0].page_size
        pages = None if size is None else parse_size(size)
    return Memory(ram, maxmem, slots, nodes if len(nodes) > 1 else (), pages)


def _nodes(options: Options, source: str) -> list[Node]:
    nodes = []
    for index, node in enumerate(options.nodes):
        backend = options.objects.get(node.get("memdev", ""))
        size: int | None = None
        if backend is not None and backend.get("size"):
            size = _size(backend["size"], "-object", source, 1)
        elif node.get("mem"):
            size = _size(node["mem"], "-numa", source)
        if size is None:
            continue  # a node of CPUs alone
        pages = _pages(backend) if backend is not None else None
        nodes.append(Node(size, pages, node.get("nodeid", str(index))))
    return nodes


def _pages(backend: dict[str, str]) -> int | None:
    """Size of the pages of a memory backend; None for small ones."""
    if backend.get("hugetlb") == "on":
        return size_of(backend.get("hugetlbsize"), 1) or 2 * MIB
    if backend.get("qom-type") == "memory-backend-file":
        return _pages_of_path(backend.get("mem-path", ""))
    return None


def _pages_of_path(path: str) -> int | None:
    """Page size of a file in hugetlbfs, by the name of its mount; None for another file.

    libvirt has /dev/hugepages1G, Proxmox /run/hugepages/kvm/1048576kB; without a size it is the
    kernel's default, 2 MiB on x86.
    """
    if "hugepage" not in path and "hugetlb" not in path:
        return None
    match = re.search(r"(\d{1,8})(kB|K|MB|M|GB|G)", path)
    return parse_size(f"{match[1]}{match[2][0].upper()}") if match else 2 * MIB


def _size(text: str, what: str, source: str, unit: int = MIB) -> int:
    size = size_of(text, unit)
    if size is None:
        raise HostDataError(
            f"{source}: {what} {shorten(text, 40)!r} is no size of memory", source=source, text=text
        )
    return size
