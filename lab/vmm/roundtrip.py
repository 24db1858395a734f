# SPDX-License-Identifier: Apache-2.0
"""The way back of a definition, on the real things: `python -m lab.vmm.roundtrip`.

Each public libvirt definition of tests/data/definitions is changed in every way that a change can
be; what comes out is held to the newest libvirt schema that Debian has, read and planned again, and
a real QEMU is started with the options of the same change.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import vmm_iova as vi
from vmm_iova.definitions.change import Change, change_between
from vmm_iova.definitions.write import changed_text, write_change

from lab import cache
from lab.debian import Apt, unpack
from lab.say import LabError, say
from lab.vmm.binaries import SUITES, Qemu, system, unpacked
from lab.vmm.observe import Qmp, regions

if TYPE_CHECKING:
    from vmm_iova.ranges import AddrRange

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data/definitions"
GIB = 1 << 30
CHANGES: dict[str, dict[str, object]] = {
    "39 address bits": {"phys_bits": 39},
    "a window of OVMF": {"ovmf_window": 64 * GIB},
    "no 64-bit window": {"pci64": 0},
    "a 64-bit window": {"pci64": 64 * GIB},
    "half the RAM": {"ram": 4 * GIB, "nodes": ()},
    "memory to plug in": {"maxmem": 256 * GIB, "slots": 8},
    "less RAM below 4 GiB": {"max_ram_below_4g": GIB},
    "pages of 1 GiB": {"page_size": GIB},
}
PARTS = "a lock limit and an IOMMU"


def schema() -> tuple[list[str], Path, str]:
    """Return xmllint, the folder of libvirt's schemas, and libvirt's version."""
    apt = Apt("amd64", (SUITES[-1],))
    home = cache.root() / "libvirt"
    note = home / "version"
    with cache.locked("fetch"):
        if not note.exists():
            apt.update()
            packages = apt.download_with_dependencies(["libxml2-utils"])
            with tempfile.TemporaryDirectory() as folder:
                packages += apt.download(["libvirt-common"], Path(folder))
                with cache.fresh(home) as into:
                    for package in packages:
                        unpack(package, into)
                    (into / "version").write_text(apt.version("libvirt-common"))
    libraries = ":".join(
        str(home / part) for part in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
    )
    loader = home / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    lint = [str(loader), "--library-path", libraries, str(home / "usr/bin/xmllint")]
    return lint, home / "usr/share/libvirt/schemas", note.read_text().strip()


def complaint(lint: list[str], schemas: Path, text: str) -> str | None:
    """Return what the schema says against a domain; None where it takes it."""
    command = [*lint, "--noout", "--relaxng", str(schemas / "domain.rng"), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()[-400:]


def start(qemu: Qemu, change: Change) -> tuple[str | None, list[AddrRange]]:
    """Start QEMU with the guest; return its complaint, or where it has RAM."""
    guest = change.guest
    whole = change_between(None, replace(guest, page_size=None))
    options = write_change(None, whole, "qemu").replace("-cpu host\n", "-cpu max\n")
    words = shlex.split(options)
    for index, word in enumerate(words):
        if word.startswith("host,host-phys-bits-limit="):  # without KVM a model has them
            words[index] = f"EPYC,phys-bits={guest.phys_bits}"
    command = [
        *qemu.command("x86_64"),
        *("-S", "-display", "none", "-nodefaults", "-accel", "tcg"),
        *words,
        *("-object", f"memory-backend-ram,id=lab,size={guest.ram},reserve=off"),
        *("-machine", "memory-backend=lab"),
    ]
    qmp = Qmp(command)
    try:
        if not qmp.alive:
            return qmp.complaint(), []
        spans = regions(qmp.hmp("info mtree")[0])
        names = ("ram-below-4g", "ram-above-4g")
        return None, sorted(span for name, span in spans if name in names)
    finally:
        qmp.close()


def main() -> int:
    """Compare; 1 where anything is wrong."""
    lint, schemas, version = schema()
    qemus = [system(), unpacked(SUITES[0])]
    say(f"libvirt {version}; {', '.join(qemu.title for qemu in qemus)}")
    usable = vi.load_host("amd-epyc-1tb").usable()
    wrong: list[str] = []
    valid = started = 0
    for path in sorted(DATA.glob("libvirt-*.xml")):
        text = path.read_text()
        before = complaint(lint, schemas, text)
        if before is not None:
            wrong.append(f"{path.name}, as it is: {before}")
            continue
        read = vi.read_vm(text, source=path.name)
        for name, fields in CHANGES.items():
            if "ovmf_window" in fields and read.guest.firmware != "ovmf":
                continue  # a switch of OVMF alone
            change = change_between(read, replace(read.guest, **fields))  # type: ignore[arg-type]
            changed = changed_text(read, change)
            assert changed is not None
            after = complaint(lint, schemas, changed)
            valid += after is None
            if after is not None:
                wrong.append(f"{path.name}, {name}: {after}")
            again = vi.read_vm(changed, source=path.name)
            if again.guest != change.guest:
                wrong.append(f"{path.name}, {name}: read again it is {again.guest}")
            layout = vi.plan(again, usable)
            for qemu in qemus:
                refused, ram = start(qemu, change)
                started += refused is None
                if refused is not None:
                    wrong.append(f"{path.name}, {name}, {qemu.name}: {refused}")
                elif ram != [item.place for item in layout.ram]:
                    places = ", ".join(map(str, ram))
                    wrong.append(f"{path.name}, {name}, {qemu.name}: RAM at {places}")
    wrong += parts(lint, schemas)
    for line in wrong:
        print(line)
    say(f"{valid} changed domains are valid, {started} starts of QEMU: {len(wrong)} wrong")
    return 1 if wrong else 0


def parts(lint: list[str], schemas: Path) -> list[str]:
    """Check what none of the public definitions has: a lock limit, and an IOMMU of its own."""
    text = (DATA / "libvirt-windows-efi.xml").read_text()
    text = text.replace(
        "<vcpu ", "<memtune><hard_limit unit='GiB'>1</hard_limit></memtune>\n  <vcpu ", 1
    ).replace("</devices>", "  <iommu model='intel'/>\n  </devices>")
    read = vi.read_vm(text, source=PARTS)
    wanted = replace(read.guest, viommu_bits=39)
    changed = changed_text(read, change_between(read, wanted, 24 * GIB))
    assert changed is not None
    again = vi.read_vm(changed, source=PARTS)
    found = complaint(lint, schemas, changed)
    good = again.hard_limit == 25 * GIB and again.guest.viommu_bits == 39 and not again.faults
    return [f"{PARTS}: {found or 'read again it is another'}"] if found or not good else []


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        say(str(error))
        sys.exit(2)
