# SPDX-License-Identifier: Apache-2.0
"""A change as Proxmox's configuration: of one that was given, or as calls of `qm set`."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from vmm_iova.definitions.proxmox import LINE, own_part
from vmm_iova.definitions.write_qemu import ONE, cpu_with_bits, nodes_of, pc_options, ram_of
from vmm_iova.errors import RequestError
from vmm_iova.readers.qemu import FLAGS, keys, options_of
from vmm_iova.readers.shell import split_words
from vmm_iova.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.definitions.change import Change
    from vmm_iova.readers.qemu import Option

_PAGES = {2 << 20: "2", 1 << 30: "1024"}


def changed_config(text: str, change: Change) -> str:
    """Return a configuration with a change made; snapshots behind it stay as they are."""
    head = own_part(text)
    rest = text[len(head) :]
    config = {match["key"]: match["value"].strip() for match in LINE.finditer(head)}
    for key, value in settings(change, config).items():
        line = "" if value is None else f"{key}: {value}"
        found = _last(rf"^{key}:.*\n?", head)
        if found:
            head = head[: found.start()] + (f"{line}\n" if line else "") + head[found.end() :]
        elif line:
            head = _inserted(head, key, line)
    return f"{head}{rest}"


def with_options(text: str, options: list[Option]) -> str:
    """Return a configuration that hands these options on to QEMU, behind its own."""
    head = own_part(text)
    rest = text[len(head) :]
    config = {match["key"]: match["value"].strip() for match in LINE.finditer(head)}
    line = f"args: {_args(config.get('args', ''), options)}"
    found = _last(r"^args:.*$", head)
    if found:
        head = head[: found.start()] + line + head[found.end() :]
    else:
        head = _inserted(head, "args", line)
    return f"{head}{rest}"


def _last(pattern: str, head: str) -> re.Match[str] | None:
    """Return the last line of a key: where there are more, that one counts."""
    return next(reversed(list(re.finditer(pattern, head, re.MULTILINE))), None)


def _inserted(head: str, key: str, line: str) -> str:
    """Put a new line where qm sorts it: keys ascend (PVE::QemuServer, write_vm_config())."""
    for match in LINE.finditer(head):
        if match["key"] > key:
            return f"{head[: match.start()]}{line}\n{head[match.start() :]}"
    body = head.rstrip("\n")
    return f"{body}\n{line}\n{head[len(body) + 1 :]}"


def commands(change: Change) -> str:
    """Return the calls of `qm set` that make a change."""
    found = settings(change, {"cpu": "host"})
    words = (f"--{key} {shlex.quote(value)}" for key, value in found.items() if value is not None)
    lines = [f"qm set VMID {word}" for word in words]
    lines += (f"qm set VMID --delete {key}" for key, value in found.items() if value is None)
    return "".join(f"{line}\n" for line in lines)


def settings(change: Change, config: dict[str, str]) -> dict[str, str | None]:
    """Return the keys that a change sets, with their values; None takes a key away.

    Raises:
        RequestError: Proxmox has no page of such a size.
    """
    guest, levers = change.guest, change.levers
    found: dict[str, str | None] = {}
    if "machine" in levers and str(guest.machine).startswith("q35"):
        found["machine"] = "q35"
    if levers.keys() & {"ram", "nodes"}:
        found["memory"] = str(ram_of(guest) >> 20)
        found |= dict.fromkeys((key for key in config if re.fullmatch(r"numa\d+", key)), None)
        for name, size, _ in nodes_of(guest):
            old = config.get(f"numa{name}", "cpus=...,memory=0")
            found[f"numa{name}"] = re.sub(r"(?<=memory=)\d+", str(size >> 20), old)
    if "maxmem" in levers:
        kept = [item for item in re.split(r"[,;]", config.get("hotplug", "")) if item != "memory"]
        if guest.maxmem is None and "hotplug" in config:
            found["hotplug"] = ",".join(kept) or "disk,network,usb"
    if levers.get("page_size"):
        size = parse_size(guest.page_size or 0)
        if size not in _PAGES:
            raise RequestError(
                f"Proxmox backs a VM with pages of 2 MiB or 1 GiB, not {size:#x} bytes",
                field="page_size",
                value=guest.page_size,
            )
        found |= {"hugepages": _PAGES[size], "numa": "1"}
    options = list(_options(change, config, found))
    if options:
        found["args"] = _args(config.get("args", ""), options)
    return found


def _options(
    change: Change, config: dict[str, str], found: dict[str, str | None]
) -> Iterator[Option]:
    """What Proxmox hands on to QEMU, because it has no key for it, or its key does nothing."""
    guest, levers = change.guest, change.levers
    by_hand = dict(options_of(split_words(config.get("args", "")))).get("cpu")
    if "phys_bits" in levers and guest.phys_bits is not None and by_hand is not None:
        yield "cpu", cpu_with_bits(by_hand, guest.phys_bits)  # the last -cpu counts
    elif "phys_bits" in levers and guest.phys_bits is not None:
        cpu = keys(config.get("cpu", "kvm64"), "cputype")
        model = cpu.get("cputype", "kvm64")
        if model in ("host", "max"):  # phys-bits= does nothing there
            yield "global", f"{model}-x86_64-cpu.host-phys-bits-limit={guest.phys_bits}"
        else:
            parts = [
                item for item in config.get("cpu", model).split(",") if "phys-bits=" not in item
            ]
            found["cpu"] = ",".join([*parts, f"phys-bits={guest.phys_bits}"])
    if levers.get("viommu_bits"):
        yield "global", f"intel-iommu.aw-bits={guest.viommu_bits}"
    yield from pc_options(change)


def _args(text: str, options: list[Option]) -> str:
    """Put options into args, each in the place of its like: of the last, which counts."""
    pairs = options_of(split_words(text))
    for name, value in options:
        start = "" if name in ONE else value.rpartition("=")[0]
        alike = [pair[0] == name and pair[1].startswith(start) for pair in pairs]
        if any(alike):
            last = len(alike) - 1 - alike[::-1].index(True)
            pairs[last] = (name, value)
            pairs = [pair for at, pair in enumerate(pairs) if at == last or not alike[at]]
        elif pairs and not pairs[-1][1] and pairs[-1][0] not in FLAGS:
            pairs = [(name, value), *pairs]  # the last one lacks its value, and would take ours
        else:
            pairs.append((name, value))
    words = (word for name, value in pairs for word in (f"-{name}", value) if word)
    return " ".join(map(shlex.quote, words))
