# SPDX-License-Identifier: Apache-2.0
"""Archives of snapshots, read as they stream by, within limits of bytes, members and time.

An archive comes from anywhere. What is lost of it is said, and a few bytes that unpack to gigabytes
cost neither memory nor minutes: nothing is unpacked beyond what is asked for (`Unpacked`), and
between two members of a tar there is at most `_HEADERS` of headers, which `tarfile` holds whole.
"""

from __future__ import annotations

import bz2
import copy
import lzma
import tarfile
import time
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

from vmm_iova import files
from vmm_iova.record import brief

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PIECE = 1 << 16
_HEADERS = 1 << 20  # bytes of headers before a member: paths of any length, and no flood
_DIRECTORY = 32 << 20  # bytes of a zip's directory: 300,000 members of usual names
_XZ_MEMORY = 96 << 20  # xz -9 takes 65 MiB to unpack


class Member(NamedTuple):
    """One file of an archive.

    Attributes:
        name: its path in there, as it is written.
        content: its bytes.
        problem: why it could not be read, or None.
    """

    name: str
    content: bytes
    problem: str | None = None


class ArchiveError(Exception):
    """What is wrong with an archive, in one clause."""


@brief
@dataclass(slots=True)
class ArchiveLimits:
    """What an archive may take; the shares grow with its size as a file.

    Attributes:
        unpacked: bytes that it may unpack to.
        skipped: bytes of those that may be passed over, because they are no snapshots.
        members: members.
        seconds: seconds of CPU that may be spent on it, without the time between members.
        clock: what measures them.
    """

    unpacked: int = 16 << 30
    skipped: int = 1 << 30
    members: int = 4_000_000
    seconds: float = 60.0
    clock: Callable[[], float] = field(default=time.process_time, repr=False)

    def of_size(self, size: int) -> ArchiveLimits:
        """Return those of an archive of a size in bytes: a thousandfold, and 1 s for each MiB."""
        return ArchiveLimits(
            self.unpacked + 1000 * size,
            self.skipped + 10 * size,
            self.members,
            self.seconds + size / (1 << 20),
            self.clock,
        )


class _Budget:
    """What is left of the limits of one archive."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._unpacked = self._skipped = self._members = 0
        self._spent = 0.0
        self._since: float | None = None
        self.headers: int | None = None  # bytes that may come before the next member begins

    def resume(self) -> None:
        self._since = self._limits.clock()

    def pause(self) -> None:
        self._spent = self._time()
        self._since = None

    def _time(self) -> float:
        running = 0.0 if self._since is None else self._limits.clock() - self._since
        return self._spent + running

    def take(self, size: int) -> None:
        """Count bytes that were unpacked.

        Raises:
            ArchiveError: they are too many, or took too long.
        """
        self._unpacked += size
        if self._unpacked > self._limits.unpacked:
            raise ArchiveError(f"it unpacks to more than {self._limits.unpacked >> 20} MiB")
        if self._time() > self._limits.seconds:
            raise ArchiveError(f"to unpack it takes longer than {self._limits.seconds:.0f} s")
        if self.headers is not None:
            self.headers -= size
            if self.headers < 0:
                raise ArchiveError(f"a header is larger than {_HEADERS >> 10} KiB")

    def skip(self, size: int) -> None:
        """Count bytes that are passed over.

        Raises:
            ArchiveError: they are too many.
        """
        self._skipped += size
        if self._skipped > self._limits.skipped:
            raise ArchiveError(
                f"more than {self._limits.skipped >> 20} MiB of it are no snapshots of hosts"
            )

    def member(self) -> None:
        """Count a member.

        Raises:
            ArchiveError: there are too many.
        """
        self._members += 1
        if self._members > self._limits.members:
            raise ArchiveError(f"it has more than {self._limits.members} members")


class _Unit(Protocol):
    """What `zlib`, `bz2` and `lzma` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _xz() -> _Unit:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


_MAGIC: tuple[tuple[bytes, Callable[[], _Unit]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", _xz),
    (b"\x5d\0\0", _xz),
)


class Unpacked:
    """The bytes of a file, unpacked as far as they are read.

    `tarfile` and `zipfile` unpack more than they are asked for, and check neither the sum of a
    gzip stream nor that it was not cut.

    Args:
        file: what is packed.
        take: called with the number of bytes each time, before they are handed out.
        make: makes what unpacks; default by the first bytes, and as they are if those say nothing.
    """

    def __init__(
        self,
        file: IO[bytes],
        take: Callable[[int], None],
        make: Callable[[], _Unit] | None = None,
    ) -> None:
        self._file = file
        self._take = take
        self._rest = file.read(_PIECE)
        self._make = make or next(
            (unit for magic, unit in _MAGIC if self._rest.startswith(magic)), None
        )
        self._unit: _Unit | None = None
        self._ended = False

    def read(self, size: int) -> bytes:
        """Return up to so many bytes; none at the end."""
        data = self._plain(size) if self._make is None else self._unpack(self._make, size)
        self._take(len(data))
        return data

    def _plain(self, size: int) -> bytes:
        data, self._rest = self._rest[:size], self._rest[size:]
        return data or self._file.read(size)

    def _padding_passed(self) -> bool:
        """Go to the stream that stands behind the last one; tell whether there is one."""
        while not self._rest.strip(b"\0"):
            self._rest = self._file.read(_PIECE)
            if not self._rest:
                return False
        self._rest = self._rest.lstrip(b"\0")
        return True

    def _unpack(self, make: Callable[[], _Unit], size: int) -> bytes:
        while True:
            if self._unit is None:
                if self._ended and not self._padding_passed():
                    return b""
                self._unit, self._ended = make(), False
            unit = self._unit
            ended = False
            if not self._rest and getattr(unit, "needs_input", True):
                self._rest = self._file.read(_PIECE)
                ended = not self._rest
            data = unit.decompress(self._rest, size)
            self._rest = unit.unused_data if unit.eof else getattr(unit, "unconsumed_tail", b"")
            if unit.eof:
                self._unit, self._ended = None, True
            if data:
                return data
            if ended and not unit.eof:
                raise ArchiveError("it is cut off")


def read_archive(
    file: IO[bytes],
    size: int,
    *,
    zipped: bool,
    wanted: Callable[[str], bool],
    limits: ArchiveLimits,
) -> Iterator[Member]:
    """Yield the members of an archive that are wanted, in its order, those of a zip by name.

    Args:
        file: the archive, open for reading; a zip must be seekable.
        size: its bytes.
        zipped: True for a zip, False for a tar, which may be packed with gzip, bzip2 or xz.
        wanted: tells by the path whether a member counts.
        limits: of one archive.

    Raises:
        ArchiveError: it is damaged or goes beyond the limits; what came before counts.

    Complexity: O(bytes); memory for one member, and the directory of a zip.
    """
    budget = _Budget(limits.of_size(size))
    members = (_zip if zipped else _tar)(file, wanted, budget)
    while True:
        budget.resume()
        try:
            member = next(members, None)
        except ArchiveError:
            raise
        except Exception as error:  # each format has ways to break, and exceptions, of its own
            raise ArchiveError(_why(error)) from error
        finally:
            budget.pause()
        if member is None:
            return
        yield member


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _content(read: Callable[[int], bytes], size: int, keep: bool, budget: _Budget) -> bytes:
    """Read a member to its end, and keep what a snapshot may have.

    Raises:
        ArchiveError: it is shorter than it should be, or too much was passed over.
    """
    content = bytearray()
    left = size
    while left:
        piece = read(min(left, _PIECE))
        if not piece:
            raise ArchiveError("it ends within a member")
        left -= len(piece)
        if keep and len(content) <= files.LARGEST:
            content += piece
        else:
            budget.skip(len(piece))
    return bytes(content)


def _member(name: str, content: bytes) -> Member:
    if len(content) > files.LARGEST:
        size = files.LARGEST >> 20
        return Member(name, b"", f"is larger than {size} MiB: these are not the facts of one host")
    return Member(name, content)


# -- tar -------------------------------------------------------------------------------------------


def _tar(file: IO[bytes], wanted: Callable[[str], bool], budget: _Budget) -> Iterator[Member]:
    ended = False

    class Header(tarfile.TarInfo):
        """A header that is damaged is no end of the archive, as `tarfile` takes it."""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
            nonlocal ended
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                ended = True
                raise
            except tarfile.HeaderError as error:
                cut = "it ends without an end mark" if not buf else f"a header is broken: {error}"
                raise ArchiveError(cut) from error

    budget.headers = _HEADERS
    stream = Unpacked(file, budget.take)
    with tarfile.open(  # type: ignore[call-overload]
        fileobj=stream, mode="r|", tarinfo=Header
    ) as archive:
        while True:
            budget.headers = _HEADERS
            member = archive.next()
            budget.headers = None
            if member is None:
                break
            budget.member()
            # A stream keeps a list of all members that went by: bounded memory needs none.
            archive.members = []
            if member.sparse is not None:
                raise ArchiveError("a member is stored with holes (tar -S), which is not read")
            if not member.isreg() and member.type in tarfile.SUPPORTED_TYPES:
                continue  # a folder, a link, a device: nothing follows it
            keep = member.isreg() and wanted(member.name)
            data = archive.extractfile(member)
            if data is None:
                continue
            content = _content(data.read, member.size, keep, budget)
            if keep:
                yield _member(member.name, content)
        while rest := archive.fileobj.read(_PIECE):  # also: is the sum of the stream right
            budget.skip(len(rest))
            if rest.strip(b"\0"):
                raise ArchiveError("there is more behind its end mark")
        if not ended:
            raise ArchiveError("it ends without an end mark")


# -- zip -------------------------------------------------------------------------------------------


class _Bounded:
    """A file of which no more is read at once than the directory of a zip may have."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY:
            raise ArchiveError(
                f"its directory is larger than {_DIRECTORY >> 20} MiB: a tar may have any number "
                "of members"
            )
        return self._file.read(_DIRECTORY if size < 0 else size)


def _zip(file: IO[bytes], wanted: Callable[[str], bool], budget: _Budget) -> Iterator[Member]:
    first = file.read(4)
    with zipfile.ZipFile(_Bounded(file)) as archive:
        listed = archive.infolist()
        for member in sorted(listed, key=lambda item: item.filename):
            budget.member()
            if member.is_dir() or not wanted(member.filename):
                continue
            try:
                content = _unzip(archive, member, budget)
            except ArchiveError:
                raise
            except Exception as error:  # each way to pack has errors of its own
                yield Member(member.filename, b"", f"could not be unpacked: {_why(error)}")
            else:
                yield _member(member.filename, content)
    begins = min((member.header_offset for member in listed), default=1)
    if first == b"PK\3\4" and begins > 0:  # as of two archives, one put behind the other
        raise ArchiveError("it has members before the first one that its directory lists")


def _unzip(archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: _Budget) -> bytes:
    """Return the content of a member, one byte more than is allowed if it is larger.

    Raises:
        ArchiveError: the limits are reached.
        Exception: it does not unpack.
    """
    most = min(member.file_size, files.LARGEST + 1)
    if member.compress_type not in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with archive.open(member) as file:
            return _all(file.read, most, budget.take)
    # zipfile unpacks what it has read of these whole, and a few bytes may be gigabytes.
    packed = copy.copy(member)
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, member.compress_size
    del packed.CRC  # of what is unpacked
    with archive.open(packed) as file:
        make = _lzma1(file) if member.compress_type == zipfile.ZIP_LZMA else bz2.BZ2Decompressor
        content = _all(Unpacked(file, budget.take, make).read, most, lambda size: None)
    if len(content) == member.file_size and zlib.crc32(content) != member.CRC:
        raise zipfile.BadZipFile("its checksum is wrong")
    return content


def _all(read: Callable[[int], bytes], size: int, take: Callable[[int], None]) -> bytes:
    content = bytearray()
    while len(content) < size:
        piece = read(min(size - len(content), _PIECE))
        if not piece:
            raise zipfile.BadZipFile("it is cut off")
        take(len(piece))
        content += piece
    return bytes(content)


def _lzma1(file: IO[bytes]) -> Callable[[], _Unit]:
    """Read the properties before an LZMA member (APPNOTE 5.8.8), and return what unpacks it."""
    head = file.read(9)
    code, size = head[4], int.from_bytes(head[5:9], "little")
    if int.from_bytes(head[2:4], "little") != 5 or code >= 9 * 5 * 5 or size > _XZ_MEMORY:
        raise zipfile.BadZipFile("its LZMA properties are wrong, or need too much memory")
    filters = [
        {
            "id": lzma.FILTER_LZMA1,
            "dict_size": max(size, 4096),
            "lc": code % 9,
            "lp": code // 9 % 5,
            "pb": code // 45,
        }
    ]
    return lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
