# SPDX-License-Identifier: Apache-2.0
"""Get a host from wherever it is: this machine, a copied tree, a file, a text, or the package."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vmm_iova.errors import HostDataError, HostUnavailableError, UnknownNameError
from vmm_iova.files import decode, is_there, read_bytes, read_stdin, shipped
from vmm_iova.host.snapshot import load_snapshot
from vmm_iova.host.sysfs import read_sysfs
from vmm_iova.host.text import parse_text
from vmm_iova.patterns import regex
from vmm_iova.plain import one_line, whole_number
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from vmm_iova.host.host import Host

_JSON = regex(r'\s*\{\s*["}]')  # and not a range written {a, b}


def _bundle() -> Traversable:
    return shipped("host/bundled")


def bundled_hosts() -> tuple[str, ...]:
    """Return the names of the hosts that ship with the package, sorted."""
    names = (item.name for item in _bundle().iterdir())
    return tuple(
        sorted(name.rpartition(".")[0] for name in names if name.endswith((".txt", ".json")))
    )


class HostKernel(Protocol):
    """A kernel that knows its host, such as `vmm_iova.simulated.SimulatedKernel`."""

    def host(self) -> Host:
        """Return the facts of the host that it runs."""


def load_host(
    spec: str | os.PathLike[str] = "LIVE",
    *,
    sysroot: str | Path = "/",
    kernel: HostKernel | None = None,
) -> Host:
    """Read the facts of one host.

    Args:
        spec: `LIVE` (the machine that this runs on), a file (a snapshot, or any text with facts),
            `-` for standard input, a directory with a copy of `/sys`, or the name of a bundled
            host. `NAME#2` is the second host of a text that holds several.
        sysroot: for `LIVE`, where to find `sys/`.
        kernel: for `LIVE`, the kernel to ask instead of reading this machine's `/sys`.

    Raises:
        UnknownNameError: there is no bundled host of that name.
        HostUnavailableError: there is no such file, or it may not be read (with errno).
        HostDataError: it is malformed, or holds several hosts and `#N` is missing.

    Complexity: O(size).
    Synchronization: none required.
    """
    text = os.fspath(spec)
    if text == "LIVE":
        if kernel is not None:
            return kernel.host()
        return read_sysfs(sysroot)
    path = Path(text)
    if text and is_there(path) and path.is_dir():
        return read_sysfs(path)
    content, name, index = _find(text)
    hosts = parse_hosts(content, name)
    if index is not None:
        if not 1 <= index <= len(hosts):
            raise UnknownNameError(
                f"{name} holds {len(hosts)} hosts, so there is no {name}#{index}",
                kind="host",
                name=text,
                known=[host.name for host in hosts],
            )
        return hosts[index - 1]
    if len(hosts) > 1:
        raise HostDataError(
            f"{name} holds {len(hosts)} hosts",
            source=name,
            hint=f"say which: {text}#1 to {text}#{len(hosts)}",
        )
    return hosts[0]


def parse_hosts(content: str, name: str) -> tuple[Host, ...]:
    """Return the hosts of a text: one of a snapshot, one or more of pasted facts.

    Raises:
        HostDataError: it is malformed.
    """
    if _JSON.match(content):
        return (load_snapshot(content, name),)
    return parse_text(content, name)


def load_facts(spec: str) -> Host:
    """Read more facts of a host: as `load_host`, or `ranges:FILE`.

    Args:
        spec: a file, or `ranges:FILE` for pairs of addresses that are the kernel's own range list.

    Raises:
        UnknownNameError, HostUnavailableError, HostDataError: as for `load_host`.

    Complexity: O(size).
    Synchronization: none required.
    """
    path = spec.removeprefix(_RANGES)
    if path == spec or is_there(Path(spec)):
        return load_host(spec)
    content, name = read_text(path)
    return parse_text(content, name, "iova_ranges")[0]


_RANGES = "ranges:"


def bundled_text(name: str) -> str | None:
    """Return the text of a bundled host, or None if there is none of that name."""
    if name not in bundled_hosts():
        return None
    entry = next(item for item in _bundle().iterdir() if item.name.startswith(f"{name}."))
    return entry.read_text("utf-8")


def read_text(path: str) -> tuple[str, str]:
    """Return the content of a text file (`-` for standard input) and its name for messages.

    Raises:
        HostUnavailableError: there is no such file, it is no regular one, or it may not be read
            (with errno).
        HostDataError: it is not text, or larger than `files.LARGEST`.
    """
    if path == "-":
        return decode(read_stdin(), "standard input"), "stdin"
    return decode(read_bytes(Path(path)), path), one_line(Path(path).name)


def _find(text: str) -> tuple[str, str, int | None]:
    """Return content, name for messages, and the number behind `#`, if any."""
    stem, mark, number = text.rpartition("#")
    choices: list[tuple[str, int | None]] = [(text, None)]
    if mark and (nth := whole_number(number)) is not None:
        choices.append((stem, nth))
    for name, index in choices:
        if name == "-" or is_there(Path(name)):
            return (*read_text(name), index)
        bundled = bundled_text(name)
        if bundled is not None:
            return bundled, name, index
    named = text.removesuffix(".txt").removesuffix(".json")
    if "/" in text or (named != text and named not in bundled_hosts()):
        raise HostUnavailableError(
            f"{shorten(one_line(text))} does not exist", source=text, errno=errno.ENOENT
        )
    known = bundled_hosts()
    import difflib  # for a mistake alone

    close = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    raise UnknownNameError(
        f"{shorten(text)!r} is no file, no directory and no bundled host",
        kind="host",
        name=text,
        known=known,
        hint=f"did you mean {' or '.join(close)}" if close else "vmm-iova show --list names them",
    )
