# SPDX-License-Identifier: Apache-2.0
"""What `explain` answers where no call failed: what the text is about, and the command for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova import remedies as say
from vmm_iova.definitions.read import read_vm
from vmm_iova.errors import IovaError, PlanError
from vmm_iova.host.host import Host
from vmm_iova.host.text import parse_text
from vmm_iova.planning.guest import Bar, Guest
from vmm_iova.planning.plan import plan
from vmm_iova.readers.guest_words import GuestWords, read_guest_words
from vmm_iova.readers.iomem import read_iomem
from vmm_iova.report.answer import Answer
from vmm_iova.units import format_size, show_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.host.usable import Usable

LIKELY, _WORD = "LIKELY", "NO FAILED CALL"
_WHY = "no line of the text tells of a failed call"
_KINDS = {
    "libvirt": "libvirt XML",
    "qemu": "a QEMU command line",
    "proxmox": "Proxmox's configuration",
    "cloud-hypervisor": "Cloud Hypervisor's",
    "firecracker": "Firecracker's JSON",
}
_LINES = 20_000


def answer_without_failure(text: str, usable: Usable | None, host: str | None) -> Answer | None:
    """Say what a text is about that tells of no failed call; None where nobody can tell.

    Args:
        text: the paste.
        usable: where a host allows mappings; None where none is named.
        host: its name, for the commands.

    Complexity: O(size), and one plan.
    """
    lines = text.splitlines()[:_LINES]
    named = host or "HOST"
    try:
        definition = read_vm(text)
    except IovaError:
        definition = None
    if definition is not None:
        return Answer(
            _WORD,
            f"the text is the definition of a VM ({_KINDS[definition.kind]})",
            "unsure",
            actions=(say.PLAN_VM.format(host=named),),
            reasons=(_WHY,),
        )
    words = read_guest_words(lines)
    if words is not None:
        return _described(words, usable, named)
    if len(read_iomem(lines)) > 1 or sum("e820: [mem" in line for line in lines) > 1:
        return Answer(
            _WORD,
            "the text is a machine's memory map: physical addresses, which say nothing of IOVAs",
            "unsure",
            actions=(say.CAPTURE_THERE,),
            reasons=(_WHY,),
        )
    try:
        (facts, *_) = parse_text(text, "the text")
    except (IovaError, ValueError):
        return None
    counts = (
        ("device", len(facts.devices)),
        ("IOMMU group", len(facts.groups)),
        ("remapping unit", len(facts.units)),
    )
    held = ", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counts if n)
    return Answer(
        _WORD,
        f"the text has facts of a host{f' ({held})' * bool(held)}",
        "unsure",
        actions=(say.SHOW_TEXT,),
        reasons=(_WHY,),
    )


def _described(words: GuestWords, usable: Usable | None, host: str) -> Answer:
    """Plan a guest that is described: what its VMM and firmware do by themselves is told."""
    command = say.PLAN_DESCRIBED.format(command=" ".join(_command(words, host)))
    of = ", ".join(_summary(words))
    # Without a host only the rules of QEMU and of the firmware count: everything may be mapped.
    where = usable or Host("the text", arch="x86_64").usable(aperture=64)
    guest = Guest(
        words.machine or "q35",
        words.ram,
        maxmem=words.maxmem,
        phys_bits=words.bits,
        cpu=words.cpu,  # type: ignore[arg-type]
        firmware=words.firmware,
        bars=[Bar(f"g{number}", size) for number, size in enumerate(words.bars)],
    )
    try:
        layout = plan(guest, where)
    except PlanError as error:
        return Answer(
            LIKELY,
            error.message,
            "bad",
            actions=tuple(error.fixes),
            more=(command,),
            reasons=(f"{_WHY}; it describes a guest: {of}",),
        )
    except IovaError:
        return Answer(_WORD, f"the text describes a guest ({of})", "unsure", (command,), (_WHY,))
    if layout.reasons:
        first, *more = layout.reasons
        return Answer(
            LIKELY,
            first,
            "unsure",
            actions=layout.otherwise or layout.settings,
            more=(command,),
            reasons=(*more, f"{_WHY}; it describes a guest: {of}"),
        )
    return Answer(
        _WORD,
        f"the text describes a guest ({of})",
        "unsure",
        actions=(command,),
        reasons=(_WHY,),
    )


def _summary(words: GuestWords) -> Iterator[str]:
    yield f"{words.machine or 'q35'}, {show_size(words.ram)} of RAM"
    if words.maxmem:
        yield f"up to {show_size(words.maxmem)}"
    if words.bars:
        sizes = sorted({show_size(size) for size in words.bars})
        count = len(words.bars)
        yield f"{count} BAR{'s' * (count != 1)} of {' and '.join(sizes)}"


def _command(words: GuestWords, host: str) -> Iterator[str]:
    yield f"vmm-iova plan --host {host} --machine {words.machine or 'q35'}"
    yield f"--ram {_short(words.ram)}"
    if words.maxmem:
        yield f"--maxmem {_short(words.maxmem)}"
    if words.bits:
        yield f"--phys-bits {words.bits}"
    if words.cpu:
        yield f"--cpu {words.cpu}"
    if words.firmware:
        yield f"--firmware {words.firmware}"
    for number, size in enumerate(words.bars):
        yield f"--bar g{number}={_short(size)}"


def _short(size: int) -> str:
    return format_size(size).replace(" ", "").removesuffix("iB")
