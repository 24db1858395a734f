# SPDX-License-Identifier: Apache-2.0
"""Where the snapshots of a fleet come from: folders, archives, files; one after the other."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm_iova.errors import HostDataError, HostUnavailableError, UnknownNameError
from vmm_iova.files import is_there, read_bytes
from vmm_iova.fleet.archives import ArchiveError, ArchiveLimits, read_archive
from vmm_iova.host.load import bundled_text
from vmm_iova.plain import one_line
from vmm_iova.record import brief
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_SUFFIXES = (".json", ".txt")
_LONGEST_NAME = 1000  # characters of a path that is shown and kept
_DEEPEST = 64  # folders in each other: links may make a maze of a few folders
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


@brief
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


def read_sources(
    specs: Iterable[str], *, limits: ArchiveLimits | None = None
) -> Iterator[SourceText]:
    """Yield the snapshots of folders, archives, files and bundled hosts, in a fixed order.

    Folders are read recursively, by name, and links to folders are followed, to each one once;
    of folders and archives the `.json` and `.txt` files count, hidden ones do not. Archives are
    read as they stream by; nothing is unpacked to disk. Each member counts, also of one name.
    What cannot be read is yielded with its problem.

    Args:
        specs: paths, or names of bundled hosts.
        limits: of each archive; default `ArchiveLimits()`.

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
        if is_there(path) and path.is_dir():
            yield from _Walk(_read).folder(path, prefix, _listed(path), (_identity(path.stat()),))
        elif is_there(path) and path.is_file():
            yield from _file(path, prefix, limits or ArchiveLimits())
        else:
            text = bundled_text(spec)
            if text is None:
                raise UnknownNameError(
                    f"{_shown(spec)} is no folder, no file and no bundled host",
                    kind="fleet",
                    name=spec,
                    known=(),
                )
            yield SourceText(spec, text.encode())


def count_sources(specs: Iterable[str]) -> int | None:
    """Return how many snapshots `read_sources` will yield, or None where only reading tells.

    Args:
        specs: paths, or names of bundled hosts.

    Complexity: O(entries of the folders); no file is read. An archive streams by, so it is not
        counted.
    """
    count = 0
    walk = _Walk(lambda _, name: SourceText(name, b""))
    for spec in specs:
        path = Path(spec)
        try:
            if not (is_there(path) and path.is_dir()):
                if is_there(path) and path.name.lower().endswith((".zip", *_TARS)):
                    return None
                count += 1
                continue
            within = (_identity(path.stat()),)
            count += sum(1 for _ in walk.folder(path, "", _listed(path), within))
        except (HostUnavailableError, OSError):
            return None
    return count


def _shown(name: str) -> str:
    """A name as it can be printed and stored, whatever characters it has, and how many."""
    return shorten(one_line(name), _LONGEST_NAME)


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


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class _Walk:
    """Reads the folders below one; what links lead to is read once, or few folders were a maze."""

    def __init__(self, read: Callable[[Path, str], SourceText]) -> None:
        self._read = read
        self._linked: set[tuple[int, int]] = set()

    def folder(
        self, folder: Path, prefix: str, names: list[str], inside: tuple[tuple[int, int], ...]
    ) -> Iterator[SourceText]:
        """Yield what is in a folder; `inside` are the folders that it is in, and itself."""
        for name in names:
            if name.startswith("."):
                continue
            shown = f"{prefix}{_shown(name)}"
            try:
                yield from self._entry(folder / name, shown, inside)
            except HostUnavailableError as error:
                yield SourceText(shown, b"", f"this folder could not be read: {_why(error)}")
            except OSError as error:  # a link that leads nowhere, a folder that may not be entered
                if _wanted(name):
                    yield SourceText(shown, b"", f"could not be read: {_why(error)}")

    def _entry(
        self, entry: Path, shown: str, inside: tuple[tuple[int, int], ...]
    ) -> Iterator[SourceText]:
        status = entry.stat()
        if not stat.S_ISDIR(status.st_mode):
            if _wanted(entry.name) and stat.S_ISREG(status.st_mode):
                yield self._read(entry, shown)
            return
        itself = _identity(status)
        if entry.is_symlink():
            if itself in self._linked:
                return
            self._linked.add(itself)
        if itself in inside:
            return
        if len(inside) > _DEEPEST:
            yield SourceText(shown, b"", f"this folder is in {_DEEPEST} others: it was not read")
            return
        yield from self.folder(entry, f"{shown}/", _listed(entry), (*inside, itself))


def _why(error: Exception) -> str:
    cause = error.__cause__ or error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _read(path: Path, name: str) -> SourceText:
    try:
        return SourceText(name, read_bytes(path))
    except HostUnavailableError as error:
        return SourceText(name, b"", f"could not be read: {_why(error)}")
    except HostDataError as error:
        return SourceText(name, b"", error.message.removeprefix(f"{one_line(str(path))} "))


def _file(path: Path, prefix: str, limits: ArchiveLimits) -> Iterator[SourceText]:
    lower = path.name.lower()
    zipped = lower.endswith(".zip")
    if not zipped and not lower.endswith(_TARS):
        yield _read(path, _shown(path.name))
        return
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for name, content, problem in read_archive(
                file, size, zipped=zipped, wanted=_wanted, limits=limits
            ):
                yield SourceText(prefix + _shown(name), content, problem)
    except (ArchiveError, OSError) as error:
        # What came before counts, and the archive is named itself.
        what = str(error) if isinstance(error, ArchiveError) else _why(error)
        problem = f"the archive is damaged, the rest of it is lost: {shorten(one_line(what), 200)}"
        yield SourceText(_shown(path.name), b"", problem)
