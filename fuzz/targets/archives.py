# SPDX-License-Identifier: Apache-2.0
"""Archives of a fleet: read, or named damaged; never more memory than the limits allow."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from typing import TYPE_CHECKING

from vmm_iova import files
from vmm_iova.fleet.archives import ArchiveError, ArchiveLimits, read_archive
from vmm_iova.plain import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTRUMENT = ("tarfile", "zipfile")
MAX_LENGTH = 16384
_LIMITS = ArchiveLimits(unpacked=1 << 25, skipped=1 << 20, members=1000, seconds=20)
_UNPACK = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress}
_PACK = (bytes, gzip.compress, bz2.compress, lzma.compress)


def one_input(data: bytes) -> None:
    """Read a tar, a packed one, or a zip; the sums of a tar's headers are set right."""
    if not data:
        return
    kind, content = data[0] % 8, data[1:]
    if kind < 4:
        _tar(_PACK[kind](_summed(content)))
    elif kind == 4:
        _tar(content)
    else:
        _read(content, zipped=True)


def _tar(content: bytes) -> None:
    names, whole = _read(content, zipped=False)
    if whole:  # what tarfile itself takes for a whole archive has no fewer members
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            assert [item.name for item in archive if item.isfile()] == names


def _read(content: bytes, *, zipped: bool) -> tuple[list[str], bool]:
    names = []
    try:
        for name, text, _ in read_archive(
            io.BytesIO(content), 0, zipped=zipped, wanted=lambda _: True, limits=_LIMITS
        ):
            names.append(name)
            assert len(text) <= files.LARGEST
            assert one_line(name).isprintable()
    except ArchiveError as error:
        assert str(error)
        return names, False
    if not zipped:
        assert _ends(content), "the archive is cut, and nothing said so"
    return names, True


def _ends(content: bytes) -> bool:
    """Tell whether a tar, packed or not, has a block of zeros: without an end mark it is cut."""
    for magic, unpack in _UNPACK.items():
        if content.startswith(magic):
            content = unpack(content)
            break
    return any(not any(content[at : at + 512]) for at in range(0, len(content), 512))


def _summed(content: bytes) -> bytes:
    """Set the sum of each block that has the magic of a tar header: else nothing gets further."""
    blocks = bytearray(content)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)


def seeds() -> Iterator[bytes]:
    """A small archive of each kind."""
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form, pax_headers={"a": "b"}) as archive:
            for name in ("a.json", "d" * 120 + "/b.txt", "übung.json"):
                info = tarfile.TarInfo(name)
                info.size = 3
                archive.addfile(info, io.BytesIO(b"{}\n"))
            link = tarfile.TarInfo("l.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        for kind in range(5):
            yield bytes([kind]) + file.getvalue()
        yield b"\4" + gzip.compress(file.getvalue())
        yield b"\4" + bz2.compress(file.getvalue())
        yield b"\4" + lzma.compress(file.getvalue())
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive_:
            archive_.writestr("a.json", "{}" * 50)
            archive_.writestr("d/b.txt", "x")
        yield b"\5" + file.getvalue()
