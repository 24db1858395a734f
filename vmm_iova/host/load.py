# SPDX-License-Identifier: Apache-2.0
"""Get a host from wherever it is: this machine, a copied tree, a file, a text, or the package."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_iova.errors import HostDataError, HostUnavailableError, UnknownNameError
from vmm_iova.host.snapshot import load_snapshot
from vmm_iova.host.sysfs import read_sysfs
from vmm_iova.host.text import parse_text
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from vmm_iova.host.host import Host

_JSON = re.compile(r'\s*\{\s*["}]')  # and not a range written {a, b}
LARGEST = 64 << 20
"""Bytes of a source at most: no capture comes near it, and a disk image stays out of memory."""


def _bundle() -> Traversable:
    return resources.files("vmm_iova.host") / "bundled"


def bundled_hosts() -> tuple[str, ...]:
    """Return the names of the hosts that ship with the package, sorted."""
    names = (item.name for item in _bundle().iterdir())
    return tuple(
        sorted(name.rpartition(".")[0] for name in names if name.endswith((".txt", ".json")))
    )


def load_host(spec: str | os.PathLike[str] = "LIVE", *, sysroot: str | Path = "/") -> Host:
    """Read the facts of one host.

    Args:
        spec: `LIVE` (the machine that this runs on), a file (a snapshot, or any text with facts),
            `-` for standard input, a directory with a copy of `/sys`, or the name of a bundled
            host. `NAME#2` is the second host of a text that holds several.
        sysroot: for `LIVE`, where to find `sys/`.

    Raises:
        UnknownNameError: there is no bundled host of that name.
        HostUnavailableError: there is no such file, or it may not be read (with errno).
        HostDataError: it is malformed, or holds several hosts and `#N` is missing.

    Complexity: O(size).
    Synchronization: none required.
    """
    text = os.fspath(spec)
    if text == "LIVE":
        return read_sysfs(sysroot)
    path = Path(text)
    if text and _is_there(path) and path.is_dir():
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


def bundled_text(name: str) -> str | None:
    """Return the text of a bundled host, or None if there is none of that name."""
    if name not in bundled_hosts():
        return None
    entry = next(item for item in _bundle().iterdir() if item.name.startswith(f"{name}."))
    return entry.read_text("utf-8")


def read_text(path: str) -> tuple[str, str]:
    """Return the content of a text file (`-` for standard input) and its name for messages.

    Raises:
        HostUnavailableError: there is no such file, or it may not be read (with errno).
        HostDataError: it is not text.
    """
    if path == "-":
        return decode_text(sys.stdin.buffer.read(LARGEST + 1), "standard input"), "stdin"
    if not _is_there(Path(path)):
        raise HostUnavailableError(f"{path} does not exist", source=path, errno=errno.ENOENT)
    return decode_text(_read(Path(path)), path), Path(path).name


def _find(text: str) -> tuple[str, str, int | None]:
    """Return content, name for messages, and the number behind `#`, if any."""
    stem, mark, number = text.rpartition("#")
    choices: list[tuple[str, int | None]] = [(text, None)]
    if mark and number.isdecimal():
        choices.append((stem, int(number)))
    for name, index in choices:
        if name == "-" or _is_there(Path(name)):
            return (*read_text(name), index)
        bundled = bundled_text(name)
        if bundled is not None:
            return bundled, name, index
    named = text.removesuffix(".txt").removesuffix(".json")
    if "/" in text or (named != text and named not in bundled_hosts()):
        raise HostUnavailableError(
            f"{shorten(text)} does not exist", source=text, errno=errno.ENOENT
        )
    known = bundled_hosts()
    close = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    raise UnknownNameError(
        f"{shorten(text)!r} is no file, no directory and no bundled host",
        kind="host",
        name=text,
        known=known,
        hint=f"did you mean {' or '.join(close)}" if close else "vmm-iova show --list names them",
    )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except ValueError:  # a NUL byte in the name
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise HostUnavailableError(
            f"{shorten(str(path))}: {error.strerror}", source=str(path), errno=error.errno
        ) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise HostUnavailableError(
            f"{path}: {error.strerror}", source=str(path), errno=error.errno
        ) from error
    return content


def decode_text(content: bytes, name: str) -> str:
    """Return bytes as text.

    Raises:
        HostDataError: they are too many, or no text.
    """
    if len(content) > LARGEST:
        raise HostDataError(
            f"{name} is larger than 64 MiB: these are not the facts of one host", source=name
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HostDataError(
            f"{name} is not text: byte {content[error.start]:#04x} at offset {error.start:#x}",
            source=name,
        ) from error
    if "\0" in text:
        raise HostDataError(
            f"{name} is not text: byte 0x00 at offset {text.index(chr(0)):#x}", source=name
        )
    return text
