# SPDX-License-Identifier: Apache-2.0
"""The door: a text is recognised by what stands in it, and read by the reader of its kind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.definitions import cloud_hypervisor
from vmm_iova.definitions.definition import KINDS, Definition, Kind
from vmm_iova.definitions.firecracker import read_firecracker
from vmm_iova.definitions.libvirt import read_libvirt
from vmm_iova.definitions.options import Options
from vmm_iova.definitions.proxmox import LINE, TELLING, read_proxmox
from vmm_iova.definitions.qemu import definition_of
from vmm_iova.errors import HostDataError, RequestError
from vmm_iova.patterns import regex
from vmm_iova.plain import one_line, parse_json
from vmm_iova.readers.qemu import FLAGS, PROGRAM, options_of
from vmm_iova.readers.shell import LONGEST, command_words, split_words

if TYPE_CHECKING:
    from collections.abc import Sequence

_JSON_LONGEST = 4 << 20
_NAME = regex(r"(?:guest=)?(?P<name>[^,=]+)(?:,|$)")
_QEMU_VERSION = regex(r"qemu version: (\d{1,2})\.(\d{1,2})")
_HINT = (
    "libvirt XML (virsh dumpxml), a QEMU command line, Proxmox's ID.conf (qm config), Cloud "
    "Hypervisor's command line or JSON, or Firecracker's JSON are read"
)


def read_vm(text: str, kind: Kind | None = None, *, source: str = "the definition") -> Definition:
    """Read the definition of a VM.

    Args:
        text: libvirt's domain XML; a QEMU command line, as `ps`, a script or libvirt's log has it;
            Proxmox's configuration; Cloud Hypervisor's command line or JSON; Firecracker's JSON.
        kind: which of these it is; None to tell by what stands in it.
        source: what to call it in messages.

    Returns:
        What it asks for: `plan` takes it as it is.

    Raises:
        HostDataError: it is none of these, or malformed, or larger or deeper than any such text.
        RequestError: there is no such kind, or the VM has what no model here expresses.

    Complexity: O(size).
    Synchronization: none required.
    """
    if kind is not None and kind not in KINDS:
        raise RequestError(f"kind {kind!r} is none of {', '.join(KINDS)}", field="kind", value=kind)
    plain = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    found = kind or _kind_of(plain, source)
    if found == "libvirt":
        return read_libvirt(plain, source)
    if found == "proxmox":
        if not LINE.search(plain):
            raise HostDataError(f"{source}: has no line of the form key: value", source=source)
        return read_proxmox(plain, source)
    if found == "qemu":
        return _qemu(plain, source)
    if plain.lstrip().startswith("{"):
        return _json(plain, found, source)
    words = command_words(plain, cloud_hypervisor.PROGRAM)
    if found == "firecracker" or words is None:
        raise HostDataError(
            f"{source}: is no {'configuration' if found == 'firecracker' else 'command line'} of "
            f"{'Firecracker' if found == 'firecracker' else 'Cloud Hypervisor'}",
            source=source,
            hint="of Firecracker the JSON of --config-file is read"
            if found == "firecracker"
            else "the program's name has to stand in front: cloud-hypervisor --memory ...",
        )
    return cloud_hypervisor.read_command(words, plain, source)


def _kind_of(text: str, source: str) -> Kind:
    """Tell whose format it is.

    Raises:
        HostDataError: nobody's.
    """
    start = text.lstrip()
    if not start:
        raise HostDataError(f"{source}: is empty", source=source, hint=_HINT)
    if start.startswith("<"):
        return "libvirt"
    if start.startswith("{"):
        return _json_kind(_parsed(text, source), source)
    if len(set(TELLING.findall(text[:LONGEST]))) >= 2:
        return "proxmox"
    if command_words(text, cloud_hypervisor.PROGRAM) is not None:
        return "cloud-hypervisor"
    if command_of(text):
        return "qemu"
    raise HostDataError(f"{source}: is no definition of a VM", source=source, hint=_HINT)


def _json_kind(document: object, source: str) -> Kind:
    named = set(document) if isinstance(document, dict) else set()
    if named & {"machine-config", "boot-source"}:
        return "firecracker"
    if named & {"payload", "cpus", "memory"}:
        return "cloud-hypervisor"
    ours = {"schema", "groups"} & named
    raise HostDataError(
        f"{source}: its JSON is no configuration of Cloud Hypervisor or Firecracker",
        source=source,
        hint="a snapshot of a host goes to --host" if ours else _HINT,
    )


def _parsed(text: str, source: str) -> object:
    if len(text) > _JSON_LONGEST:
        raise HostDataError(
            f"{source}: has {len(text)} characters, more than a definition of a VM "
            f"({_JSON_LONGEST})",
            source=source,
        )
    return parse_json(text, source)


def _json(text: str, kind: Kind, source: str) -> Definition:
    document = _parsed(text, source)
    if not isinstance(document, dict):
        raise HostDataError(f"{source}: its JSON is no object", source=source)
    if kind == "firecracker":
        return read_firecracker(document, text, source)
    return cloud_hypervisor.read_json(document, text, source)


# -- QEMU's command line ---------------------------------------------------------------------------


def command_of(text: str) -> Sequence[str]:
    """Words of a command line of QEMU, or of its options alone; none where there is none."""
    words = command_words(text, PROGRAM)
    if words is not None:
        return words
    bare = text.lstrip()
    if re.match(r"--?[A-Za-z]", bare):
        words = split_words(bare)
        names = {name for name, _ in options_of(words)}
        if names & {"m", "machine", "M", "cpu", "device", "readconfig"} or names & FLAGS:
            return ["", *words]
    return []


def _qemu(text: str, source: str) -> Definition:
    words = command_of(text)
    if not words:
        raise HostDataError(
            f"{source}: is no command line of QEMU",
            source=source,
            hint="the program's name has to stand in front, or an option has to come first",
        )
    program = PROGRAM.search(f" {words[0]} ")
    options = Options(arch=program["arch"] if program else None)
    if program and not program["arch"]:
        options.arch = "x86_64" if program["name"] == "kvm" else None
    pairs = options_of(words[1:])
    releases = _QEMU_VERSION.findall(text[:LONGEST])
    if releases:
        release = int(releases[-1][0]), int(releases[-1][1])
        options.releases = (release, release)
    options.add(pairs, source)
    named = next((value for name, value in pairs if name == "name"), "")
    match = _NAME.match(named)
    return definition_of(
        options,
        kind="qemu",
        name=one_line(match["name"]) if match else None,
        text=text,
        source=source,
    )
