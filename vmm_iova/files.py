# SPDX-License-Identifier: Apache-2.0
"""The one place that opens files: regular ones, of bounded size, and of a tree only what is in it.

A path may come from a stranger's archive or script: a FIFO would wait for ever, a device may act
on being opened, `/dev/zero` and sparse files have no end, and a link in a copied tree may lead to a
file that is nobody's business.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vmm_iova.errors import HostDataError, HostUnavailableError
from vmm_iova.patterns import regex
from vmm_iova.plain import one_line

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

LARGEST = 8 << 20
"""Bytes of one file, or of all files of a tree: no capture comes near it, and what is made of them
stays below a gigabyte."""
_MOST_NAMES = 1 << 16  # in one directory; no host has as many groups
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# What a shell hands over itself, as with <(...): as much asked for as standard input.
_DESCRIPTOR = regex(r"/dev/stdin|/dev/fd/[0-9]+|/proc/self/fd/[0-9]+")
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a circle of links",
}


class _KindError(OSError):
    """A file is there, but it is no regular one; `strerror` goes on behind its name."""


def shipped(folder: str) -> Traversable:
    """Return a folder of the package's own files, such as `host/bundled`."""
    root = Path(__file__).parent
    if root.is_dir():
        return root / folder
    from importlib import resources  # in an archive; with it come tempfile, shutil and random

    return resources.files("vmm_iova") / folder


_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
"""Nothing is at a path, or can be."""


def is_there(path: Path) -> bool:
    """Tell whether there is anything at a path, also where no name can be like that.

    Raises:
        HostUnavailableError: that may not be looked at (with errno).
    """
    try:
        path.stat()  # exists() hides what may not be looked at, from Python 3.14 on
        return True
    except ValueError:  # a NUL byte, or no encoding for a character, in the name
        return False
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise _unavailable(str(path), error) from error


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Read a regular file that somebody named.

    Args:
        path: it. A descriptor that the shell passes (`/dev/fd/N`) may be a pipe, too.
        limit: most bytes; default `LARGEST`.

    Raises:
        HostUnavailableError: it is not there, is no regular file, or may not be read (with errno).
        HostDataError: it is larger.
    """
    name = os.fspath(path)
    most = LARGEST if limit is None else limit
    try:
        if not _DESCRIPTOR.fullmatch(name):
            return _read(name, most, 0)
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise _unavailable(name, error) from error
    except HostDataError:
        raise
    except ValueError as error:  # a NUL byte, or no encoding for a character, in the name
        raise HostUnavailableError(
            f"{one_line(name)} is no name of a file", source=name, errno=errno.EINVAL
        ) from error
    if len(content) > most:
        raise too_large(name, most)
    return content


def _read(name: str, most: int, flags: int) -> bytes:
    """Read a regular file; nothing else is even opened, because to open a device may act."""
    _check_regular(name, os.lstat(name) if flags else os.stat(name))
    descriptor = os.open(name, _FLAGS | flags)
    with open(descriptor, "rb", buffering=0, closefd=True) as file:
        status = os.fstat(descriptor)
        _check_regular(name, status)
        if status.st_size > most:
            raise too_large(name, most)
        content = bytearray()
        while len(content) <= most and (part := file.read(most + 1 - len(content))):
            content += part
    if len(content) > most:
        raise too_large(name, most)
    return bytes(content)


def _check_regular(name: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
    raise _KindError(errno.EINVAL, f"is {kind}, and only regular files are read", name)


def too_large(name: str, limit: int) -> HostDataError:
    """Return the error for a file of more bytes than are read."""
    size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit:#x} bytes"
    return HostDataError(
        f"{one_line(name)} is larger than {size}: these are not the facts of one host",
        source=name,
    )


def _unavailable(name: str, error: OSError) -> HostUnavailableError:
    why = f": {error.strerror}"
    if error.errno == errno.ENOENT:
        why = " does not exist"
    elif isinstance(error, _KindError):
        why = f" {error.strerror}"
    return HostUnavailableError(f"{one_line(name)}{why}", source=name, errno=error.errno)


def nodes_below(folder: str) -> list[str]:
    """Return the paths of the device nodes right in a folder, sorted; none where it is none."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    except OSError:
        return []
    return sorted(f"{folder}/{name}" for name in names)


def node_usable(path: str) -> bool | None:
    """Tell whether a character device may be read and written; None where there is none.

    Nothing is opened. A cgroup that forbids it all the same is not noticed.
    """
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            return None
        return os.access(path, os.R_OK | os.W_OK)
    except OSError:
        return None


def read_stdin() -> bytes:
    """Read standard input.

    Raises:
        HostDataError: it is larger than `LARGEST`.
    """
    content = sys.stdin.buffer.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise too_large("standard input", LARGEST)
    return content


def decode(content: bytes, name: str) -> str:
    """Return bytes as text.

    Raises:
        HostDataError: they are no UTF-8, or hold a NUL.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HostDataError(
            f"{one_line(name)} is not text: byte {content[error.start]:#04x} at offset "
            f"{error.start:#x}",
            source=name,
        ) from error
    if "\0" in text:
        raise HostDataError(
            f"{one_line(name)} is not text: byte 0x00 at offset {text.index(chr(0)):#x}",
            source=name,
        )
    return text


class Tree:
    """The small files below a directory, such as a copy of `/sys` that somebody sent.

    A link that leads out of the tree is not followed (`OSError` with EXDEV, as `openat2` gives for
    RESOLVE_BENEATH), and what is no regular file is not opened. The tree must not change meanwhile.

    Args:
        top: the directory; `/` is this machine itself, where every link is inside.

    Synchronization: one thread at a time.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._real = os.path.realpath(top)
        self._left = LARGEST

    def _inside(self, path: str) -> str:
        """Return where a path leads, which is in the tree.

        Raises:
            OSError: EXDEV, it is not.
        """
        real = os.path.realpath(self._top / path)
        if real != self._real and not real.startswith(self._real.rstrip("/") + "/"):
            raise OSError(errno.EXDEV, "a link leads out of the tree: not followed")
        return real

    def holds(self, path: str) -> bool:
        """Tell whether a path leads to something in the tree."""
        try:
            return os.path.lexists(self._inside(path))
        except OSError:
            return False

    def read(self, path: str, limit: int) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: there is none that may be read; EFBIG, it is larger than the limit.
            HostDataError: all files together are larger than `LARGEST`.
        """
        try:
            content = _read(self._inside(path), limit, _NO_FOLLOW)
        except HostDataError:
            raise OSError(errno.EFBIG, f"is larger than {limit >> 10} KiB") from None
        self._take(len(content))
        return content

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted and each as one line.

        Raises:
            OSError: it cannot be listed; EFBIG, it has too many.
            HostDataError: files and names together are larger than `LARGEST`.
        """
        with os.scandir(self._inside(path)) as entries:
            names = [one_line(entry.name) for entry in islice(entries, _MOST_NAMES + 1)]
        if len(names) > _MOST_NAMES:
            raise OSError(errno.EFBIG, f"has more than {_MOST_NAMES} entries")
        self._take(sum(map(len, names)))
        return sorted(names)

    def link(self, path: str) -> str | None:
        """Return the last component of what a symbolic link names; None if it is none."""
        above, _, last = path.rpartition("/")
        try:
            return one_line(Path(os.readlink(f"{self._inside(above)}/{last}")).name)
        except OSError:
            return None

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise HostDataError(
                f"{one_line(str(self._top))} holds more than {LARGEST >> 20} MiB in the files of "
                "its IOMMUs: this is no copy of /sys",
                source=str(self._top),
            )


def write_text(name: str, content: str) -> None:
    """Write a file whole or not at all: what an interruption leaves is the old one.

    A name that is a device or a FIFO is written to as it is.

    Raises:
        HostUnavailableError: it could not be written (with errno).
    """
    data = content.encode("utf-8", "backslashreplace")
    try:
        path = os.path.realpath(name)
        if os.path.exists(path) and not os.path.isfile(path):
            Path(path).write_bytes(data)
        else:
            _replace(path, data)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise HostUnavailableError(
            f"{one_line(name)} could not be written: {why}",
            source=name,
            errno=getattr(error, "errno", None) or errno.EINVAL,
        ) from error


def _replace(path: str, data: bytes) -> None:
    """Write beside the file and put it in its place; its permissions stay."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    except FileNotFoundError:
        mode = None
    folder, last = os.path.split(path)
    temporary = os.path.join(folder, f".{last[:100]}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
