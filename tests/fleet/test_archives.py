# SPDX-License-Identifier: Apache-2.0
"""Archives that are cut, damaged, strange or bombs: what is lost is said, and nothing is taken."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import os
import re
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kit.snapshots import snapshot
from vmm_iova import cli, files, fleet
from vmm_iova.fleet import archives
from vmm_iova.fleet.archives import ArchiveError, ArchiveLimits, Unpacked, read_archive

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTILE = Path(__file__).parents[1] / "data/hostile"
NAMES = ("a.json", "b.json", "c.json")
SNAPSHOT = snapshot()
MIB = 1 << 20
LOST = "the archive is damaged, the rest of it is lost: "


def tar(*members: tuple[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


THREE = tuple((name, SNAPSHOT) for name in NAMES)
WHOLE = tar(*THREE)
ONE = 512 + -(-len(SNAPSHOT) // 512) * 512  # bytes of a member with its header


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[list[str], list[str]]]:
    """Write an archive; return the names of what is whole in it, and the problems."""

    def write_and_read(
        name: str, content: bytes, limits: ArchiveLimits | None = None
    ) -> tuple[list[str], list[str]]:
        (tmp_path / name).write_bytes(content)
        sources = list(fleet.read_sources([str(tmp_path / name)], limits=limits))
        whole = [item.name for item in sources if item.problem is None]
        return whole, [item.problem for item in sources if item.problem]

    return write_and_read


PACKERS = {
    "x.tar": lambda data: data,
    "x.tar.gz": gzip.compress,
    "x.tar.bz2": bz2.compress,
    "x.tar.xz": lzma.compress,
}


# -- what is lost is said --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKERS)
def test_tar_that_is_whole_gives_every_member_and_no_problem(read, name: str) -> None:
    assert read(name, PACKERS[name](WHOLE)) == (list(NAMES), [])


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("members", [1, 2, 3])
def test_tar_cut_at_a_member_says_that_its_rest_is_lost(read, name: str, members: int) -> None:
    whole, problems = read(name, PACKERS[name](WHOLE[: members * ONE]))
    assert whole == list(NAMES[:members])
    assert problems == [f"{LOST}it ends without an end mark"]


def test_tar_cut_at_any_block_never_loses_a_host_in_silence(read) -> None:
    for at in range(0, len(WHOLE), 512):
        whole, problems = read("x.tar", WHOLE[:at])
        assert whole == list(NAMES[: at // ONE])
        assert bool(problems) == (at <= 3 * ONE), at


@pytest.mark.parametrize("at", [1, 100, 511])
def test_tar_cut_within_a_header_or_a_member_does_not_give_half_a_host(read, at: int) -> None:
    for start in (ONE, ONE + 512):
        whole, problems = read("x.tar", WHOLE[: start + at])
        assert whole == ["a.json"]
        assert len(problems) == 1


def test_gzip_flushed_after_a_member_and_cut_says_so(read) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = packer.compress(WHOLE[:ONE]) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert read("x.tar.gz", content) == (["a.json"], [f"{LOST}it is cut off"])


@pytest.mark.parametrize("name", list(PACKERS)[1:])
def test_packed_tar_without_its_last_byte_says_so(read, name: str) -> None:
    _, problems = read(name, PACKERS[name](WHOLE)[:-1])
    assert problems == [f"{LOST}it is cut off"]


@pytest.mark.parametrize(
    ("name", "at"), [("x.tar.gz", -6), ("x.tar.gz", -2), ("x.tar.bz2", -6), ("x.tar.xz", -20)]
)
def test_checksum_that_is_wrong_says_so(read, name: str, at: int) -> None:
    content = bytearray(PACKERS[name](WHOLE))
    content[at] ^= 0xFF
    _, problems = read(name, bytes(content))
    assert len(problems) == 1
    assert problems[0].startswith(LOST)


def test_header_that_is_damaged_is_no_end_of_the_archive(read) -> None:
    content = bytearray(WHOLE)
    content[ONE + 200] ^= 1
    whole, problems = read("x.tar", bytes(content))
    assert whole == ["a.json"]
    assert problems == [f"{LOST}a header is broken: bad checksum"]


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_second_archive_behind_the_first_is_not_passed_over_in_silence(read, pack) -> None:
    whole, problems = read("x.tar", pack(tar(("a.json", b"{}"))) + pack(tar(("b.json", b"{}"))))
    assert whole == ["a.json"]
    assert problems == [f"{LOST}there is more behind its end mark"]


@pytest.mark.parametrize("name", list(PACKERS)[1:])
def test_streams_one_behind_another_are_one_archive(read, name: str) -> None:
    pack = PACKERS[name]
    assert read(name, pack(WHOLE[:ONE]) + pack(WHOLE[ONE:])) == (list(NAMES), [])


def test_gzip_padded_with_zeros_is_whole_and_with_anything_else_is_not(read) -> None:
    content = gzip.compress(WHOLE)
    assert read("x.tar.gz", content + bytes(100)) == (list(NAMES), [])
    assert read("x.tar.gz", content + b"junk")[1][0].startswith(LOST)


def test_zip_cut_anywhere_says_so(read) -> None:
    content = zipped(*THREE)
    for at in range(0, len(content), 97):
        assert read("x.zip", content[:at])[1], at


def test_zip_behind_another_is_not_the_whole_of_it(read) -> None:
    whole, problems = read("x.zip", zipped(("a.json", b"{}")) + zipped(("b.json", b"{}")))
    assert whole == ["b.json"]
    assert problems == [f"{LOST}it has members before the first one that its directory lists"]


def test_zip_behind_a_program_is_whole(read) -> None:
    assert read("x.zip", b"#!/bin/sh\n" * 10 + zipped(("a.json", b"{}"))) == (["a.json"], [])


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_zip_of_each_method_is_read_and_its_damage_is_named(read, method: int) -> None:
    content = bytearray(zipped(*THREE, method=method))
    assert read("x.zip", bytes(content)) == (list(NAMES), [])
    content[30 + 6 + 20] ^= 0xFF  # within the first member
    whole, problems = read("x.zip", bytes(content))
    assert whole == ["b.json", "c.json"]
    assert problems[0].startswith("could not be unpacked: ")


def test_command_says_what_was_lost_and_has_status_5(capsys, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(WHOLE[:ONE])
    assert cli.main(["fleet", str(tmp_path / "cut.tar"), "--ram", "8G"]) == 5
    text = capsys.readouterr().out
    assert "hosts   2 hosts: 1 can have the guest, 1 damaged" in text
    assert f"cut.tar: {LOST}it ends without an end mark" in text


# -- strange ones ----------------------------------------------------------------------------------


def _flagged(bit: int) -> bytes:
    content = bytearray(zipped(("a.json", b"{}")))
    for at in (6, content.index(b"PK\1\2") + 8):
        content[at] |= bit
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.tar.gz", b"\x1f\x8b\x08", "it is cut off"),
        ("x.tar.gz", b"\x1f\x8b\x08\xff\xff\xff\xff", "unknown header flags"),
        ("x.tar.gz", b"", "it ends without an end mark"),
        ("x.tar.bz2", b"BZh", "it is cut off"),
        ("x.tar.bz2", b"BZh9junk", "Invalid data stream"),
        ("x.tar.xz", b"\xfd7zXZ\0", "it is cut off"),
        ("x.tar.xz", b"\xfd7zXZ\0" + bytes(20), "Corrupt|Unsupported|Input format"),
        ("x.tar", b"x" * 512, "a header is broken"),
        ("x.zip", b"PK\5\6" + b"\xff" * 18, "."),
        ("x.zip", b"PK\5\6" + bytes(18), None),
        ("x.zip", (HOSTILE / "version-9.9.zip").read_bytes(), "zip file version 9.9"),
        ("x.zip", _flagged(1), "encrypted"),
        ("x.zip", _flagged(1 << 5), "compressed patched data"),
        ("x.zip", _flagged(1 << 6), "strong encryption"),
    ],
)
def test_strange_archive_is_named_and_ends_nothing(
    read, name: str, content: bytes, problem: str | None
) -> None:
    whole, problems = read(name, content)
    assert whole == []
    if problem is None:
        assert problems == []
    else:
        (text,) = problems
        assert re.search(problem, text), text


@pytest.mark.parametrize("method", [6, 9, 93, 99])
def test_zip_of_a_method_that_is_not_known_is_named_by_member(read, method: int) -> None:
    content = bytearray(zipped(("a.json", b"{}"), ("b.json", b"{}")))
    at = content.index(b"PK\1\2")
    struct.pack_into("<H", content, 8, method)
    struct.pack_into("<H", content, at + 10, method)
    whole, problems = read("x.zip", bytes(content))
    assert whole == ["b.json"]
    assert "could not be unpacked: " in problems[0]


def test_sparse_member_is_named(read) -> None:
    content = bytearray(tar(("a.json", b"x" * 512)))
    content[156:157] = tarfile.GNUTYPE_SPARSE
    content[386:410] = b"00000000000\0" + b"00000001000\0"
    content[483:495] = b"77777777777\0"
    info = content[:148] + b" " * 8 + content[156:512]
    content[148:156] = b"%06o\0 " % sum(info)
    _, problems = read("x.tar", bytes(content))
    assert problems == [f"{LOST}a member is stored with holes (tar -S), which is not read"]


def test_headers_in_each_other_are_bounded(read) -> None:
    # Each pax header announces the next one: tarfile calls itself for each.
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 0
    content = header.tobuf(tarfile.USTAR_FORMAT) * 5000
    _, problems = read("x.tar", content)
    assert len(problems) == 1


def test_name_of_a_megabyte_is_cut_and_one_line(read) -> None:
    name = "d\x1b[2J\n/" * 50_000 + "a.json"
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    (shown,), problems = read("x.tar", file.getvalue())
    assert problems == []
    assert len(shown) <= 1000
    assert shown.isprintable()


# -- bombs -----------------------------------------------------------------------------------------


class Zeros(io.RawIOBase):
    """What is put in front, and then zeros, so many; no disk and no memory holds them."""

    def __init__(self, head: bytes, size: int) -> None:
        self._head, self._left = head, size
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        part, self._head = self._head[:size], self._head[size:]
        zeros = min(size - len(part), self._left)
        self._left -= zeros
        self.given += len(part) + zeros
        return part + bytes(zeros)


def _peak(file: Zeros) -> tuple[str, int, int]:
    """Read a tar; return what is wrong, the peak of memory and the bytes that were asked for."""
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError) as caught:
            list(
                read_archive(
                    file, 3 << 20, zipped=False, wanted=lambda _: True, limits=ArchiveLimits()
                )
            )
        return str(caught.value), tracemalloc.get_traced_memory()[1], file.given
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_header_of_3_gib_is_refused_after_a_megabyte(kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 3 << 30
    what, peak, given = _peak(Zeros(header.tobuf(tarfile.GNU_FORMAT), 4 << 30))
    assert what == "a header is larger than 1024 KiB"
    assert peak < 8 * MIB
    assert given < 2 * MIB


def test_map_of_a_sparse_member_without_end_is_refused_where_headers_may_be_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archives, "_HEADERS", MIB // 16)
    record = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n36 GNU.sparse.realsize=999999999999\n"
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    member = tarfile.TarInfo("a.json")
    member.size = 1 << 33
    head = header.tobuf(tarfile.GNU_FORMAT) + record.ljust(512, b"\0")
    head += member.tobuf(tarfile.GNU_FORMAT) + b"999999999\n" + b"1\n" * (MIB // 16)
    what, peak, _ = _peak(Zeros(head, 0))
    assert what == "a header is larger than 64 KiB"
    assert peak < 7 * MIB  # the head itself, and thirty thousand short numbers


@pytest.mark.parametrize("name", ["a.json", "core"])
def test_member_of_gibibytes_is_passed_over_within_its_share(name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = 3 << 30
    limits = ArchiveLimits(skipped=64 * MIB)
    file = Zeros(member.tobuf(tarfile.GNU_FORMAT), 4 << 30)
    with pytest.raises(ArchiveError, match="more than 64 MiB of it are no snapshots"):
        list(read_archive(file, 0, zipped=False, wanted=lambda _: True, limits=limits))
    assert file.given < 64 * MIB + files.LARGEST + MIB


def test_large_member_is_named_and_what_stands_behind_it_is_read(read, monkeypatch) -> None:
    monkeypatch.setattr(files, "LARGEST", MIB)
    content = tar(("a.json", bytes(MIB + 1)), ("b.json", b" " * MIB), ("c.json", b"{}"))
    whole, problems = read("x.tar.gz", gzip.compress(content))
    assert whole == ["b.json", "c.json"]
    assert problems == ["is larger than 1 MiB: these are not the facts of one host"]


def test_bomb_in_a_zip_is_named_and_takes_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        sources = list(fleet.read_sources([str(HOSTILE / "bzip2-bomb.zip")]))
        assert tracemalloc.get_traced_memory()[1] < 5 * files.LARGEST
    finally:
        tracemalloc.stop()
    assert [(item.name, bool(item.problem)) for item in sources] == [
        ("a.json", True),
        ("b.json", False),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_member_of_a_zip_is_unpacked_no_further_than_is_allowed(
    read, monkeypatch, method: int
) -> None:
    monkeypatch.setattr(files, "LARGEST", MIB)
    content = zipped(("a.json", bytes(40 * MIB)), ("b.json", b"{}"), method=method)
    whole, problems = read("x.zip", content, ArchiveLimits(unpacked=2 * MIB - 1000 * len(content)))
    assert whole == ["b.json"]
    assert problems == ["is larger than 1 MiB: these are not the facts of one host"]


def test_bz2_of_2_kb_is_stopped(read, monkeypatch) -> None:
    content = (HOSTILE / "zeros-3-gib.tar.bz2").read_bytes()
    limits = ArchiveLimits(skipped=8 * MIB)
    assert read("x.tar.bz2", content, limits)[1] == [
        f"{LOST}more than 8 MiB of it are no snapshots of hosts"
    ]


def test_members_of_a_zip_that_lie_over_each_other_use_up_the_bytes(read) -> None:
    # Many names for the same bytes: a few kilobytes that unpack to terabytes.
    content = zipped(("a.json", bytes(MIB)))
    at = content.index(b"PK\1\2")
    entry = content[at : content.index(b"PK\5\6")]
    end = bytearray(content[content.index(b"PK\5\6") :])
    struct.pack_into("<HHI", end, 8, 500, 500, 500 * len(entry))
    bomb = content[:at] + entry * 500 + bytes(end)
    limits = ArchiveLimits(unpacked=10 * MIB - 1000 * len(bomb))
    whole, problems = read("x.zip", bomb, limits)
    assert len(whole) == 10
    assert problems == [f"{LOST}it unpacks to more than 10 MiB"]


def test_directory_of_a_zip_is_bounded(read) -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 33 << 20, 0, 0)
    _, problems = read("x.zip", bytes(33 << 20) + end)
    assert "its directory is larger than 32 MiB" in problems[0]


def test_members_are_counted(read) -> None:
    limits = ArchiveLimits(members=2)
    assert read("x.tar", WHOLE, limits) == (
        ["a.json", "b.json"],
        [f"{LOST}it has more than 2 members"],
    )
    assert read("x.zip", zipped(*THREE), limits)[0] == ["a.json", "b.json"]


def test_time_of_reading_counts_and_the_time_between_members_does_not(read, tmp_path) -> None:
    ticks = itertools.count()
    slow = ArchiveLimits(seconds=5, clock=lambda: float(next(ticks)))
    assert read("x.tar", WHOLE, slow)[1] == [f"{LOST}to unpack it takes longer than 5 s"]
    now = 0.0
    patient = ArchiveLimits(seconds=5, clock=lambda: now)
    (tmp_path / "y.tar").write_bytes(WHOLE)
    for source in fleet.read_sources([str(tmp_path / "y.tar")], limits=patient):
        now += 100
        assert source.problem is None


def test_limits_grow_with_the_size_of_the_archive() -> None:
    limits = ArchiveLimits().of_size(100 * MIB)
    assert limits.unpacked == (16 << 30) + 1000 * 100 * MIB
    assert limits.seconds == 160
    assert limits.clock is time.process_time


@pytest.mark.slow
def test_xz_that_needs_much_memory_is_refused(read) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    content = lzma.compress(WHOLE, filters=filters)
    assert "emory" in read("x.tar.xz", content)[1][0]


def test_lzma_properties_that_need_much_memory_are_refused(read) -> None:
    content = bytearray(zipped(("a.json", b"x" * 100), method=zipfile.ZIP_LZMA))
    at = 30 + 6 + 4 + 1
    content[at : at + 4] = b"\xff\xff\xff\xff"
    assert "too much memory" in read("x.zip", bytes(content))[1][0]


@pytest.mark.parametrize("pack", PACKERS.values())
@pytest.mark.parametrize("size", [1, 7, 65536])
def test_unpacked_gives_the_same_bytes_in_pieces_of_any_size(pack, size: int) -> None:
    counted: list[int] = []
    file = Unpacked(io.BytesIO(pack(WHOLE)), counted.append)
    pieces = list(iter(lambda: file.read(size), b""))
    assert b"".join(pieces) == WHOLE
    assert max(map(len, pieces)) <= size
    assert sum(counted) == len(WHOLE)


def test_folders_that_link_to_each_other_are_no_maze(tmp_path: Path) -> None:
    # Without a bound, 9 folders that link to each other are a million paths.
    for name in "abcdefghi":
        (tmp_path / name).mkdir()
        (tmp_path / name / "h.json").write_text("{}")
        for other in "abcdefghi":
            (tmp_path / name / other).symlink_to(f"../{other}")
    sources = [item.name for item in fleet.read_sources([str(tmp_path)])]
    assert len(sources) < 100
    assert {f"{name}/h.json" for name in "abcdefghi"} <= set(sources)


@pytest.mark.slow
def test_folders_deeper_than_python_calls_are_named(tmp_path: Path) -> None:
    # One step at a time: such a path is longer than the kernel takes.
    within = os.open(tmp_path, os.O_RDONLY)
    for depth in range(1500):
        os.mkdir("d", dir_fd=within)
        above, within = within, os.open("d", os.O_RDONLY, dir_fd=within)
        os.close(above)
        if depth == 0:
            os.close(os.open("h.json", os.O_CREAT | os.O_WRONLY, dir_fd=within))
    os.close(within)
    last, whole = fleet.read_sources([str(tmp_path)])
    assert whole.name == "d/h.json"
    assert last.problem == "this folder is in 64 others: it was not read"
    subprocess.run(["rm", "-rf", "d"], cwd=tmp_path, check=True)


def test_snapshot_of_a_folder_that_is_too_large_is_named(tmp_path: Path) -> None:
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(1 << 40)
    (only,) = fleet.read_sources([str(tmp_path)])
    assert only.problem == "is larger than 8 MiB: these are not the facts of one host"


@pytest.mark.slow
def test_whole_archive_stays_in_bounded_memory(tmp_path: Path) -> None:
    """The members go by: a hundred times as many take no more."""
    program = (
        "import sys, resource; from vmm_iova import fleet\n"
        "assert all(s.problem is None for s in fleet.read_sources(sys.argv[1:]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for count in (10, 3000):
        path = tmp_path / f"{count}.tar"
        path.write_bytes(tar(*((f"{n}.json", SNAPSHOT) for n in range(count))))
        done = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, check=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 2048  # KiB
