# SPDX-License-Identifier: Apache-2.0
"""The machine models that ship with the package, and a VMM author's own."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_iova.errors import RequestError, UnknownNameError
from vmm_iova.files import decode, read_bytes, shipped
from vmm_iova.machines.toml_file import parse_machine
from vmm_iova.plain import one_line

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from vmm_iova.machines.model import Machine

_LARGEST = 1 << 20  # bytes of a machine file; the longest that ships has 10 KiB


def _names() -> Iterator[str]:
    for item in shipped("machines").iterdir():
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
    return parse_machine(_text(name), f"{name}.toml", _text)


def _text(name: str) -> str:
    return (shipped("machines") / f"{name}.toml").read_text("utf-8")


_PROPERTIES = {
    "cxl": "its windows lie between RAM and the 64-bit PCI window, which then begins above them",
    "sgx-epc": "the enclave pages lie above RAM, and move what is behind them",
    "nvdimm": "its modules lie in the area for hotplugged memory, aligned by their labels",
    "confidential-guest-support": "such a guest has fewer address bits, and shares only some RAM",
    "memory-encryption": "such a guest has fewer address bits, and shares only some RAM",
}
"""Properties of QEMU's machines that move memory, and that no model here expresses: why not."""


def _refuse_property(text: str) -> None:
    """Refuse a property of QEMU's -machine by its name, and say what stands for those that count.

    Raises:
        RequestError: the text has one.
    """
    machine, *properties = text.split(",")
    for item in properties:
        name, _, value = item.partition("=")
        known = next((key for key in _PROPERTIES if name.startswith(key)), None)
        if known is not None and value not in ("off", ""):
            raise RequestError(
                f"machine {machine} with {item} is not planned: {_PROPERTIES[known]}",
                field="machine",
                value=text,
            )
        if name == "max-ram-below-4g":
            raise RequestError(
                f"machine {text}: {name} is an option of its own",
                field="machine",
                value=text,
                hint=f"--machine {machine} --max-ram-below-4g {value}",
            )


def load_machine(name: str | os.PathLike[str]) -> Machine:
    """Return a machine model by name, or read one from a TOML file.

    Args:
        name: a bundled name (see `machine_names`), or a path that ends in `.toml`.

    Raises:
        UnknownNameError: there is no such model.
        RequestError: the name has a property of QEMU's that no model expresses.
        HostUnavailableError: there is no such file, it is no regular one, or it may not be read
            (with errno).
        HostDataError: the file is malformed; the message names the line and the key.

    Complexity: O(size) once, then cached for bundled models.
    Synchronization: none required.
    """
    text = str(name)
    if text in machine_names():
        return _bundled(text)
    if text.endswith(".toml"):
        content = decode(read_bytes(Path(text), _LARGEST), text)
        return parse_machine(content, one_line(Path(text).name))
    known = machine_names()
    for model in map(_bundled, known):
        if text in model.aliases:
            return model
    _refuse_property(text)
    import difflib  # for a mistake alone

    close = difflib.get_close_matches(text, known, n=1, cutoff=0.4)
    raise UnknownNameError(
        f"there is no machine model {text!r}",
        kind="machine",
        name=text,
        known=known,
        hint=(f"did you mean {close[0]}? " if close else "")
        + f"models: {', '.join(known)}; or a path that ends in .toml",
    )
