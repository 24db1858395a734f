# SPDX-License-Identifier: Apache-2.0
"""Where the snapshots of a fleet come from: folders, archives, files; one after the other."""

from __future__ import annotations

import os
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

    Folders are read recursively, by name; of folders and archives the `.json` and `.txt` files
    count, hidden ones do not. Archives are read as they stream by; nothing is unpacked to disk.
    What cannot be read is yielded with its problem.

    Args:
        specs: paths, or names of bundled hosts.

    Raises:
        UnknownNameError: a path does not exist.
        HostUnavailableError: a folder or an archive cannot be opened.

    Complexity: O(size); one snapshot is in memory at a time, and the names of one folder.
    """
    chosen = list(specs)
    several = len(chosen) > 1
    for spec in chosen:
        path = Path(spec)
        prefix = f"{path.name}/" if several else ""
        if path.is_dir():
            yield from _folder(path, prefix)
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


def _wanted(name: str) -> bool:
    parts = Path(name).parts
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return name.lower().endswith(_SUFFIXES) and not hidden


def _folder(folder: Path, prefix: str) -> Iterator[SourceText]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)  # names alone: there may be many
    except OSError as error:
        raise HostUnavailableError(
            f"{folder}: {error.strerror}", source=str(folder), errno=error.errno
        ) from error
    for name in names:
        entry, shown = folder / name, f"{prefix}{name}"
        if entry.is_dir() and not entry.is_symlink() and not name.startswith("."):
            yield from _folder(entry, f"{shown}/")
        elif _wanted(name) and entry.is_file():
            yield _read(entry, shown)


def _read(path: Path, name: str) -> SourceText:
    try:
        with path.open("rb") as file:
            return SourceText(name, file.read(LARGEST + 1))
    except OSError as error:
        return SourceText(name, b"", f"could not be read: {error.strerror}")


def _file(path: Path, prefix: str) -> Iterator[SourceText]:
    lower = path.name.lower()
    if lower.endswith(_TARS):
        yield from _tar(path, prefix)
    elif lower.endswith(".zip"):
        yield from _zip(path, prefix)
    else:
        yield _read(path, path.name)


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
                yield SourceText(prefix + member.name, content)
    except _BROKEN as error:
        yield _broken(path, error)


def _zip(path: Path, prefix: str) -> Iterator[SourceText]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith("/") or not _wanted(name):
                    continue
                try:
                    with archive.open(name) as file:
                        yield SourceText(prefix + name, file.read(LARGEST + 1))
                except (*_BROKEN, RuntimeError, NotImplementedError) as error:
                    yield SourceText(prefix + name, b"", f"could not be unpacked: {error}")
    except _BROKEN as error:
        yield _broken(path, error)


def _broken(path: Path, error: Exception) -> SourceText:
    """An archive that ends too early: what came before it counts, and it is named itself."""
    what = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return SourceText(path.name, b"", f"the archive is damaged, the rest of it is lost: {what}")
