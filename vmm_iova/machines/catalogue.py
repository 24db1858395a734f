# SPDX-License-Identifier: Apache-2.0
"""The machine models that ship with the package, and a VMM author's own."""

from __future__ import annotations

import difflib
import errno
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_iova.errors import HostDataError, HostUnavailableError, UnknownNameError
from vmm_iova.machines.toml_file import parse_machine

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from vmm_iova.machines.model import Machine


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
