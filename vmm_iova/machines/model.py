# SPDX-License-Identifier: Apache-2.0
"""Machine models: where a VMM's guest may and must have RAM, doorbells and windows.

A model is a TOML file, so that a VMM's author can write one; those of the package name the source
file that each number comes from.
"""

from __future__ import annotations

import difflib
import errno
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_iova.errors import HostDataError, HostUnavailableError, UnknownNameError
from vmm_iova.machines.rules import check_machine
from vmm_iova.ranges import AddrRange, RangeSet

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

FIXED_KINDS = ("device", "doorbell", "firmware", "reserved", "window")
_FOUR_GIB = 1 << 32


@dataclass(frozen=True, slots=True)
class RamWindow:
    """A span of guest addresses that RAM fills from the bottom.

    Attributes:
        name: `low`, `high`, ...
        range: the span.
        whole_below: a guest with less RAM than this many bytes has it all in this window, up to
            that address; None when there is no such rule.
        required: bytes at the start of the span that must be RAM; 0 when none.
        move_to: where all of this window's RAM may go instead, or None.
        movable: it may go anywhere instead.
        movable_note: what to know about that.
    """

    name: str
    range: AddrRange
    whole_below: int | None = None
    required: int = 0
    move_to: int | None = None
    movable: bool = False
    movable_note: str | None = None


@dataclass(frozen=True, slots=True)
class FixedItem:
    """Something that has its fixed place and is not free RAM.

    Attributes:
        name: what it is.
        kind: one of FIXED_KINDS.
        range: guest addresses.
    """

    name: str
    kind: str
    range: AddrRange


@dataclass(frozen=True, slots=True)
class AboveItem:
    """Something that the machine puts above RAM, each at the next multiple of `align` in turn.

    Attributes:
        name: what it is.
        kind: one of FIXED_KINDS.
        size: bytes, a power of two.
        align: bytes, a power of two.
    """

    name: str
    kind: str
    size: int
    align: int


@dataclass(frozen=True, slots=True)
class Pci64Window:
    """The 64-bit PCI window: above all RAM, so its place depends on the layout.

    Whether its VMM can be told another size, or where it begins, is said by the machine's options
    (`pci64`, `pci64_start`): without them it stays as the machine has it.

    Attributes:
        size: bytes by default; None for all that is left up to the top of the guest's addresses.
        align: bytes; with `self_aligned` the size by default.
        floor: lowest address.
        start: its fixed place, which RAM windows leave free; None when it lies above RAM.
        share: with `size` None, the topmost 1/share of the guest's addresses instead.
        top_free: bytes at the top of the guest's addresses that it leaves free.
        step: with `size` None, it has as many whole `step` bytes as fit, counted from its start;
            0 when it has all.
        downward: True if the VMM gives out BARs from its top.
        self_aligned: True if it is aligned to its size, which then is a power of two.
        least: fewest bytes that the VMM takes for its size.
    """

    size: int | None
    align: int
    floor: int
    start: int | None = None
    share: int | None = None
    top_free: int = 0
    downward: bool = False
    self_aligned: bool = False
    least: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine model.

    Attributes:
        name: short name.
        title: what it is, with versions.
        arch: `x86_64`, `aarch64`, `s390x`, ...
        identity: True if IOVA equals guest physical address.
        source: where its numbers are written.
        ram: windows in the order in which RAM fills them, ascending.
        fixed: what else has a fixed place, ascending.
        pci64: its 64-bit PCI window, or None.
        aliases: other names that it is known by.
        phys_bits: most guest address bits that the VMM gives, whatever the CPU has; None: no limit.
        ram_max: most RAM in bytes, or None.
        ram_reserved: spans inside RAM that the guest must be told are not free.
        options: (name, template) of the VMM's own switches, to name in fixes.
        above: what stands between RAM and the 64-bit PCI window, in order.
        split_note: what to know when its RAM is cut or shifted, or None.

    Raises:
        RequestError: two of its parts overlap, or a part makes no sense (`machine_rules`).

    Synchronization: none required (immutable).
    """

    name: str
    title: str
    arch: str
    ram: tuple[RamWindow, ...]
    identity: bool = True
    source: str = ""
    fixed: tuple[FixedItem, ...] = ()
    pci64: Pci64Window | None = None
    aliases: tuple[str, ...] = ()
    phys_bits: int | None = None
    ram_max: int | None = None
    ram_reserved: tuple[FixedItem, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    above: tuple[AboveItem, ...] = ()
    split_note: str | None = None

    def __post_init__(self) -> None:
        check_machine(self)
        object.__setattr__(self, "fixed", tuple(sorted(self.fixed, key=_place)))
        object.__setattr__(self, "ram_reserved", tuple(sorted(self.ram_reserved, key=_place)))

    @property
    def doorbells(self) -> tuple[FixedItem, ...]:
        """Where the guest's own interrupt controller takes MSI writes."""
        return tuple(item for item in self.fixed if item.kind == "doorbell")

    @property
    def gap32(self) -> AddrRange | None:
        """Where below 4 GiB, above the lowest RAM, there is none; None when RAM goes through."""
        below = RangeSet(window.range for window in self.ram).complement(
            AddrRange(self.ram[0].range.start, _FOUR_GIB - 1)
        )
        return below.hull

    @property
    def pci32(self) -> tuple[FixedItem, ...]:
        """Its windows for 32-bit BARs."""
        return tuple(
            item for item in self.fixed if item.kind == "window" and item.range.last < _FOUR_GIB
        )

    @property
    def pci64_placed(self) -> bool:
        """True if the VMM can be told where its 64-bit PCI window begins."""
        return self.option("pci64_start", start="") is not None

    @property
    def pci64_sized(self) -> bool:
        """True if the VMM can be told the size of its 64-bit PCI window."""
        return self.pci64_placed or self.option("pci64", size="", mib=0) is not None

    def option(self, name: str, **values: object) -> str | None:
        """Return the VMM's own switch for something, filled in, or None if it has none."""
        for known, template in self.options:
            if known == name:
                return template.format(**values)
        return None


def _place(item: FixedItem) -> AddrRange:
    return item.range


def _names() -> Iterator[str]:
    for item in (resources.files("vmm_iova.machines")).iterdir():
        if item.name.endswith(".toml"):
            yield item.name.removesuffix(".toml")


def machine_names() -> tuple[str, ...]:
    """Return the names of the machine models that ship with the package, sorted."""
    return tuple(sorted(_names()))


_USUAL = {
    "aarch64": "virt",
    "i386": "q35",
    "i686": "q35",
    "riscv64": "riscv-virt",
    "s390x": "s390x",
    "x86_64": "q35",
}


def usual_machine(arch: str | None) -> str:
    """Return the machine that is planned for hosts of an architecture when none is named.

    Args:
        arch: as `uname -m` prints it; None, for a host whose facts do not say, counts as `x86_64`.

    Raises:
        UnknownNameError: no bundled model is of that architecture.
    """
    try:
        return _USUAL[arch or "x86_64"]
    except KeyError:
        raise UnknownNameError(
            f"there is no machine model for {arch} hosts",
            kind="machine",
            name=str(arch),
            known=tuple(_USUAL),
            hint="name a model of your own: --machine FILE.toml",
        ) from None


@lru_cache
def _bundled(name: str) -> Machine:
    from vmm_iova.machines.toml_file import parse_machine

    path = resources.files("vmm_iova.machines") / f"{name}.toml"
    return parse_machine(path.read_text("utf-8"), f"{name}.toml")


def load_machine(name: str | os.PathLike[str]) -> Machine:
    """Return a machine model by name, or read one from a TOML file.

    Args:
        name: a bundled name (see `machine_names`), or a path that ends in `.toml`.

    Raises:
        UnknownNameError: there is no such model.
        HostUnavailableError: there is no such file, or it may not be read (with errno).
        HostDataError: the file is malformed; the message names the line and the key.

    Complexity: O(size) once, then cached for bundled models.
    Synchronization: none required.
    """
    text = str(name)
    if text in machine_names():
        return _bundled(text)
    if text.endswith(".toml"):
        from vmm_iova.machines.toml_file import parse_machine  # the reader knows these models

        path = Path(text)
        if not path.exists():
            raise HostUnavailableError(f"{path} does not exist", source=text, errno=errno.ENOENT)
        try:
            return parse_machine(path.read_text("utf-8-sig"), path.name)
        except OSError as error:
            raise HostUnavailableError(
                f"{path}: {error.strerror}", source=text, errno=error.errno
            ) from error
        except UnicodeDecodeError as error:
            raise HostDataError(f"{path} is not text", source=text) from error
    known = machine_names()
    for model in map(_bundled, known):
        if text in model.aliases:
            return model
    close = difflib.get_close_matches(text, known, n=1, cutoff=0.4)
    raise UnknownNameError(
        f"there is no machine model {text!r}",
        kind="machine",
        name=text,
        known=known,
        hint=(f"did you mean {close[0]}? " if close else "")
        + f"models: {', '.join(known)}; or a path that ends in .toml",
    )
