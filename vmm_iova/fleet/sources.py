# SPDX-License-Identifier: Apache-2.0
"""Where the snapshots of a fleet come from: folders, archives, files; one after the other."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm_iova.errors import HostUnavailableError, UnknownNameError
from vmm_iova.host.load import LARGEST, bundled_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SUFFIXES = (".json", ".txt")
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


class SourceText(NamedTuple):
    """One snapshot.

    Attributes:
        name: its path in the folder or archive.
        content: its bytes; empty if it could not be read.
        problem: why it could not be read, or None.
    """

    name: str
    content: bytes
    problem: str | None = None


def read_sources(specs: Iterable[str]) -> Iterator[SourceText]:
    """Yield the snapshots of folders, archives, files and bundled hosts, in a fixed order.

    Folders are read recursively, by name, and links to folders are followed but not in a circle;
    of folders and archives the `.json` and `.txt` files count, hidden ones do not. Archives are
    read as they stream by; nothing is unpacked to disk. Each member counts, also of one name.
    What cannot be read is yielded with its problem.

    Args:
        specs: paths, or names of bundled hosts.

    Raises:
        UnknownNameError: a path does not exist.
        HostUnavailableError: a folder that was named cannot be opened.

    Complexity: O(size); one snapshot is in memory at a time, and the names of one folder, or the
        directory of one zip file.
    """
    chosen = list(specs)
    several = len(chosen) > 1
    for spec in chosen:
        path = Path(spec)
        prefix = f"{_shown(path.name)}/" if several else ""
        if path.is_dir():
            status = path.stat()
            yield from _folder(path, prefix, _listed(path), ((status.st_dev, status.st_ino),))
        elif path.is_file():
            yield from _file(path, prefix)
        else:
            text = bundled_text(spec)
            if text is None:
                raise UnknownNameError(
                    f"{spec} is no folder, no file and no bundled host",
                    kind="fleet",
                    name=spec,
                    known=(),
                )
            yield SourceText(spec, text.encode())


def _shown(name: str) -> str:
    """A name as it can be printed and stored, whatever bytes and control characters it has."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _wanted(name: str) -> bool:
    parts = Path(name).parts
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return name.lower().endswith(_SUFFIXES) and not hidden


def _listed(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)  # names alone: there may be many
    except OSError as error:
        raise HostUnavailableError(
            f"{folder}: {error.strerror}", source=str(folder), errno=error.errno
        ) from error


def _folder(
    folder: Path, prefix: str, names: list[str], inside: tuple[tuple[int, int], ...]
) -> Iterator[SourceText]:
    """Yield what is in a folder; `inside` are the folders that it is in, and itself."""
    for name in names:
        entry, shown = folder / name, f"{prefix}{_shown(name)}"
        if name.startswith("."):
            continue
        try:
            status = entry.stat()
            if stat.S_ISDIR(status.st_mode):
                itself = (status.st_dev, status.st_ino)
                if itself not in inside:
                    yield from _folder(entry, f"{shown}/", _listed(entry), (*inside, itself))
            elif _wanted(name) and stat.S_ISREG(status.st_mode):
                yield _read(entry, shown)
        except HostUnavailableError as error:
            yield SourceText(shown, b"", f"this folder could not be read: {_why(error)}")
        except OSError as error:  # a link that leads nowhere, a folder that may not be entered
            if _wanted(name):
                yield SourceText(shown, b"", f"could not be read: {_why(error)}")


def _why(error: Exception) -> str:
    cause = error.__cause__ or error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _read(path: Path, name: str) -> SourceText:
    try:
        with path.open("rb") as file:
            return SourceText(name, file.read(LARGEST + 1))
    except OSError as error:
        return SourceText(name, b"", f"could not be read: {_why(error)}")


def _file(path: Path, prefix: str) -> Iterator[SourceText]:
    lower = path.name.lower()
    if lower.endswith(_TARS):
        yield from _tar(path, prefix)
    elif lower.endswith(".zip"):
        yield from _zip(path, prefix)
    else:
        yield _read(path, _shown(path.name))


_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError)


def _tar(path: Path, prefix: str) -> Iterator[SourceText]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                # A stream keeps a list of all members that went by: bounded memory needs none.
                archive.members = []  # type: ignore[attr-defined]
                if not member.isfile() or not _wanted(member.name):
                    continue
                file = archive.extractfile(member)
                content = b"" if file is None else file.read(LARGEST + 1)
                yield SourceText(prefix + _shown(member.name), content)
    except _BROKEN as error:
        yield _broken(path, error)


def _zip(path: Path, prefix: str) -> Iterator[SourceText]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.infolist(), key=lambda item: item.filename):
                if member.is_dir() or not _wanted(member.filename):
                    continue
                name = prefix + _shown(member.filename)
                try:
                    with archive.open(member) as file:
                        yield SourceText(name, file.read(LARGEST + 1))
                except Exception as error:  # each way to compress has errors of its own
                    yield SourceText(name, b"", f"could not be unpacked: {error}")
    except _BROKEN as error:
        yield _broken(path, error)


def _broken(path: Path, error: Exception) -> SourceText:
    """An archive that ends too early: what came before it counts, and it is named itself."""
    problem = f"the archive is damaged, the rest of it is lost: {_why(error)}"
    return SourceText(_shown(path.name), b"", problem)
