"""Numbers that are wrong on purpose, one at a time in a machine file: each has to be found.

Guests of each machine are started once. Then each number of its file is changed, and the same
guests are planned with the changed file and compared again.
"""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import vmm_iova as vi
from vmm_iova.errors import HostDataError
from vmm_iova.machines.toml_file import parse_machine
from vmm_iova.ranges import GIB, MIB, TIB
from vmm_iova.units import parse_size

from lab.vmm.compare import differences, start
from lab.vmm.matrix import BITS, CPUS, MANY_CPUS, VARIANTS, Config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.vmm.binaries import Qemu
    from lab.vmm.observe import Observed

MACHINES = ("q35", "i440fx", "q35-7.0", "i440fx-7.0", "virt", "virt-gicv2", "virt-lowmem")
MACHINES += ("riscv-virt", "microvm", "s390x")
_NUMBER = re.compile(r'^(\w+) = ("(?:0x[0-9a-f]+|\d+[KMGT]iB|1/\d+)"|\d+)')
_AT_ONCE = 2  # QEMUs
_HEADER = re.compile(r"^\[+(\w+)\]")
UNREAD = {
    "required": "what a guest cannot start without is no place",
    "ram_reserved": "SeaBIOS, not QEMU, puts the EBDA there: lab/vmm reads QEMU's own e820",
    "riscv-virt:debug, ROM, test and clock.start": "QEMU has nothing at 0x0 to read",
    "riscv-virt:interrupt controllers.last": "it grows with CPUs and AIA guests",
    "riscv-virt:IMSIC doorbells (machine level).last": "the same",
    "riscv-virt:IMSIC doorbells (supervisor level).last": "the same",
    "microvm:firmware.start": "QEMU takes any size",
    "microvm:pci64.align": "a quarter of 33 address bits or more is a multiple of it",
    "microvm:pci64.floor": "a quarter of 34 address bits or more is above it",
    "virt:above/GIC redistributors 2.size": "what follows is aligned to 256 MiB",
    "virt-lowmem:.phys_bits": "ram_max is met first",
    "32-bit PCI window.start": "firmware's own: lab/vmm compares the BARs that it has there",
}
"""Numbers that QEMU does not tell, and why."""


@dataclass(frozen=True)
class Planted:
    """A number that was changed.

    Attributes:
        machine: whose file.
        key: where it stands, such as `high.move_past`.
        line: number in the file.
        others: the line with other values, of which the first that makes a machine is taken.
    """

    machine: str
    key: str
    line: int
    others: tuple[str, ...]

    @property
    def unread(self) -> str | None:
        """Why QEMU does not tell this number; None where it does."""
        part, _, name = self.key.rpartition(".")
        for key in (f"{self.machine}:{self.key}", self.key, part.partition("/")[0], name):
            if key in UNREAD:
                return UNREAD[key]
        return None


def text_of(machine: str) -> str:
    """Return the file of a bundled machine."""
    return (resources.files("vmm_iova.machines") / f"{machine}.toml").read_text("utf-8")


def planted(machine: str) -> Iterator[Planted]:
    """Yield a change of each number in a machine's own file."""
    section = name = ""
    for index, line in enumerate(text_of(machine).splitlines()):
        header = _HEADER.match(line)
        if header:
            section, name = header[1], ""
        if line.startswith("name = ") and section:
            name = line.split('"')[1]
        match = _NUMBER.match(line)
        if match is None:
            continue
        part = name if section == "fixed" else "/".join(filter(None, (section, name)))
        options = tuple(f"{match[1]} = {other}" for other in _others(match[2]))
        yield Planted(machine, f"{part}.{match[1]}", index, options)


def _others(value: str) -> Iterator[str]:
    """Other values of the same sort, and not far away: the reader of machine files takes one."""
    text = value.strip('"')
    if text.startswith("1/"):
        yield '"1/8"'
    elif text.isdigit():
        yield str(int(text) + 1)
    elif text.startswith("0x"):
        number = int(text, 16)
        for step in (GIB, -GIB, MIB, -MIB, 0x1000, -0x1000):
            if number + step >= 0 and (abs(step) < GIB or number >= 4 * GIB):
                yield f'"{number + step:#x}"'
    else:
        yield f'"{2 * parse_size(text, "value") // MIB}MiB"'
        yield f'"{parse_size(text, "value") // 2 // MIB}MiB"'


def sample(machine: str, seed: int) -> list[Config]:
    """Return guests that between them depend on each number of a machine."""
    draw = random.Random(f"{machine}{seed}")  # noqa: S311 -- the same draw each time
    pc = machine.startswith(("q35", "i440fx", "microvm"))
    sizes = [2 * GIB, 3 * GIB - MIB, 3 * GIB, 0xB000_0000, 0xB000_0000 - MIB, 0xE000_0000]
    sizes += [0xE000_0000 - MIB, 4 * GIB, 30 * GIB, 300 * GIB]
    tops = [0xFD_0000_0000 - n * GIB for n in (0, 1, 2, 3, 34, 35)] if pc else []
    found = []
    for variant in VARIANTS.get(machine, ("",)):
        for ram in (*sizes, *tops):
            cpus = draw.choice(MANY_CPUS.get(machine, (1,)))
            cpus = min(cpus, 8) if variant == "gic-version=2" else cpus
            cpu = "EPYC" if ram in tops else draw.choice(tuple(CPUS))
            bits = 48 if ram in tops else draw.choice((40, 41, 42, 46))
            found.append(Config("map", machine, ram, cpu, bits, variant=variant, cpus=cpus))
    if pc and machine != "microvm":
        stated = (0, 33 * GIB + 7 * MIB, TIB)
        found += (Config("map", machine, 8 * GIB, "EPYC", 48, size) for size in stated)
        found += (Config("map", machine, 8 * GIB, low_ram=size) for size in (GIB, 3 * GIB))
        found += (
            Config("map", machine, GIB << power, "Skylake-Server", bits)
            for power in range(5, 11)
            for bits in BITS[:5]
        )
        bars = ((64 * MIB,), (256 * MIB, 16 * GIB))
        found += (
            Config("firmware", machine, 8 * GIB, "EPYC", 40, bars=some, firmware="seabios")
            for some in bars
        )
    if machine == "virt":
        stated = (0, 256 * GIB, 512 * GIB, TIB)
        found += (Config("map", machine, 8 * GIB, pci64=size) for size in stated)
    if vi.load_machine(machine).hotplug is not None:
        found += (
            Config("hotplug", machine, ram, "EPYC", 48, more=more, slots=slots)
            for ram in (GIB, 3 * GIB + MIB, 5 * GIB, 8 * GIB)
            for more, slots in ((GIB, 1), (60 * GIB, 16))
        )
    return found


@dataclass(frozen=True)
class Seen:
    """What became of a machine's numbers.

    Attributes:
        wrong: differences without any change.
        found: changed numbers that the comparison found.
        barred: those of which no other value makes a machine.
        missed: those that it did not find.
    """

    wrong: list[str]
    found: list[Planted]
    barred: list[Planted]
    missed: list[Planted]


def look(machine: str, qemu: Qemu, seed: int) -> Seen:
    """Plant each number of a machine."""
    drawn = sample(machine, seed)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        starts = list(zip(drawn, pool.map(lambda config: start(config, qemu), drawn), strict=True))
    wrong = [
        f"{config}: {text}"
        for config, observed in starts
        for text in differences(config, qemu, observed)
    ]
    seen = Seen(wrong, [], [], [])
    into = {True: seen.found, False: seen.missed, None: seen.barred}
    for change in planted(machine):
        into[_found(change, qemu, starts)].append(change)
    return seen


def _found(change: Planted, qemu: Qemu, starts: list[tuple[Config, Observed]]) -> bool | None:
    """Tell whether a changed number is found; None where no machine has it."""
    lines = text_of(change.machine).splitlines()
    for other in change.others:
        lines[change.line] = other
        try:
            model = parse_machine("\n".join(lines) + "\n", f"{change.machine}.toml", text_of)
        except (HostDataError, vi.RequestError):
            continue
        return any(differences(config, qemu, observed, model) for config, observed in starts)
    return None
