# SPDX-License-Identifier: Apache-2.0
"""The door out: a change in the words of a VMM or its manager."""

from __future__ import annotations

import difflib
import shlex
from typing import TYPE_CHECKING

from vmm_iova.definitions.change import Change, change_between
from vmm_iova.definitions.read import command_of, read_vm
from vmm_iova.definitions.write_cloud import changed_json, cloud_options
from vmm_iova.definitions.write_libvirt import changed_domain, elements
from vmm_iova.definitions.write_libvirt import with_options as libvirt_with_options
from vmm_iova.definitions.write_proxmox import changed_config, commands
from vmm_iova.definitions.write_proxmox import with_options as proxmox_with_options
from vmm_iova.definitions.write_qemu import options_for
from vmm_iova.readers.qemu import options_of

if TYPE_CHECKING:
    from vmm_iova.definitions.definition import Definition, Kind
    from vmm_iova.readers.qemu import Option


def changed_text(given: Definition, change: Change) -> str | None:
    """Return the whole definition with a change made; None where it is a command line.

    What is handed on to QEMU may say otherwise than the format's own words: what comes out is read
    again, and what does not count yet is handed on, too.

    Complexity: O(size).
    """
    if given.kind == "libvirt":
        text = changed_domain(given.text, change, given.source)
    elif given.kind == "proxmox":
        text = changed_config(given.text, change)
    elif _is_json(given):
        return changed_json(given, change)[1]
    else:
        return None
    again = read_vm(text, given.kind, source=given.source)
    rest = change_between(again, change.guest).levers
    levers = {name: value for name, value in rest.items() if name in change.levers}
    if not levers:
        return text
    options = list(options_for(Change(change.guest, levers), again.cpu))
    if given.kind == "libvirt":
        return libvirt_with_options(text, options, given.source)
    return proxmox_with_options(text, options)


def write_change(given: Definition | None, change: Change, form: Kind | None = None) -> str:
    """Write a change.

    Args:
        given: the definition that is to be changed, or None where there is none.
        change: what must differ.
        form: in whose words; default those of the definition.

    Returns:
        A unified diff of the XML or configuration where one of this form was given; else the
        options, elements or calls that make the change. Empty where nothing differs.

    Raises:
        RequestError: the form has no words for a part of it.

    Complexity: O(size).
    """
    if not change:
        return ""
    form = form or (given.kind if given is not None else "qemu")
    if given is not None and given.kind == form and (text := changed_text(given, change)):
        before = given.text
        if _is_json(given):
            before, text = changed_json(given, change)
        return _diff(before, text, given)
    if form == "libvirt":
        return elements(change)
    if form == "proxmox":
        return commands(change)
    if form in ("cloud-hypervisor", "firecracker"):
        return cloud_options(change, given)
    cpu = given.cpu if given is not None else None
    own: list[Option] = []
    if given is not None and given.kind == "qemu":
        own = options_of(command_of(given.text)[1:])
    options = options_for(change, cpu, own)
    return "".join(f"-{name} {shlex.quote(value)}\n" for name, value in options)


def _is_json(given: Definition) -> bool:
    kinds = ("cloud-hypervisor", "firecracker")
    return given.kind in kinds and given.text.lstrip().startswith("{")


def _diff(before: str, after: str, given: Definition) -> str:
    name = given.source if given.source != "stdin" else given.name or given.kind
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        name,
        f"{name} (changed)",
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
