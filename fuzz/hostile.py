# SPDX-License-Identifier: Apache-2.0
"""Hostile archives and sysfs trees by the thousand, through the command itself.

`python -m fuzz.hostile [COUNT [SEED]]` makes COUNT archives and COUNT trees (10,000 each), gives
them to `fleet`, `show` and `capture`, and holds each run to this: no exit 70, nothing opened
outside of what was given, nothing written, and memory below `MOST`.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fuzz.kit import Bytes, bundled
from fuzz.targets import archives as target
from fuzz.trees import SECRET, Forest
from vmm_iova import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 512 << 10
"""KiB that the process may have in use at its peak."""
_SUFFIXES = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".zip", ".txz")
_STATUSES = {0, 1, 3, 5, 6, 9}


def archives(rng: random.Random) -> Iterator[bytes]:
    """Archives: whole ones that are cut, changed, joined, and with headers that lie."""
    seeds = [seed[1:] for seed in target.seeds()] + list(_good())
    while True:
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(6)):
            what, at = rng.randrange(7), rng.randrange(len(content) + 1)
            if what == 0:
                del content[at:]
            elif what == 1:
                content[at : at + rng.randrange(64)] = b""
            elif what == 2:
                content[at:at] = rng.randbytes(rng.randrange(64))
            elif what == 3 and at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            elif what == 4:
                content += rng.choice(seeds)
            elif what == 5:
                content[at:at] = _lie(rng)
            else:
                content[at : at + 4] = b"\xff" * 4
            if rng.randrange(2):
                content = bytearray(target._summed(bytes(content)))
        yield bytes(content) if rng.randrange(8) else _bomb(rng)


def _good() -> Iterator[bytes]:
    """Archives of snapshots that a guest fits on."""
    texts = list(bundled(".json"))[:3]
    for pack in target._PACK:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number, text in enumerate(texts):
                info = tarfile.TarInfo(f"{number}.json")
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text))
        yield from (pack(file.getvalue()),) * 4
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for number, text in enumerate(texts):
            zipped.writestr(f"{number}.json", text)
    yield from (file.getvalue(),) * 4


def _lie(rng: random.Random) -> bytes:
    """A header of a tar that claims what does not follow."""
    header = tarfile.TarInfo(rng.choice(("../../x.json", "/etc/x.json", "a\x1b.json", "x" * 90)))
    header.type = rng.choice((b"0", b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S", b"Z", b"3"))
    header.linkname = "/etc/passwd"
    header.size = rng.choice((0, 1, 512, 1 << 20, 1 << 33, (1 << 63) - 1))
    return header.tobuf(tarfile.GNU_FORMAT)


def _bomb(rng: random.Random) -> bytes:
    """A few bytes that unpack to many."""
    size = rng.choice((1 << 20, 40 << 20))
    if rng.randrange(2):
        file = io.BytesIO()
        method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
        with zipfile.ZipFile(file, "w", method) as bomb:
            bomb.writestr("a.json", bytes(size))
        return file.getvalue()
    header = tarfile.TarInfo("a.json")
    header.size = size
    return rng.choice(target._PACK[1:3])(header.tobuf() + bytes(size))


def run(*arguments: str) -> tuple[int, str]:
    """Run the command; return its status and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = cli.main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue()


def check(status: int, printed: str, what: str) -> None:
    """Hold a run to what was promised."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert status in _STATUSES, (what, status, printed[-500:])
    assert "defect" not in printed, (what, printed[-500:])
    assert SECRET not in printed, what
    assert printed.replace("\n", "").replace("\t", "").isprintable(), what
    assert peak < MOST, (what, peak)


def main() -> None:
    """Make them, read them, and say what came out."""
    count, seed = (*map(int, sys.argv[1:]), *(10_000, 1)[len(sys.argv) - 1 :])
    rng = random.Random(seed)
    made = archives(rng)
    folder = Path(tempfile.mkdtemp(prefix="vmm-iova-hostile-"))
    statuses: Counter[str] = Counter()
    try:
        for number in range(count):
            path = folder / f"x{rng.choice(_SUFFIXES)}"
            path.write_bytes(next(made))
            status, printed = run("fleet", str(path), "--ram", "8G")
            check(status, printed, f"archive {number} of seed {seed}")
            assert [item.name for item in folder.iterdir()] == [path.name], "something was written"
            path.unlink()
            statuses[f"fleet {status}"] += 1
    finally:
        shutil.rmtree(folder)
    for command in ("show", "capture"):  # what they import is opened here
        run(command, "--host", "lab-vtd-39")
    forest = Forest()
    try:
        for number in range(count):
            command = rng.choice(("show", "capture"))
            with forest.grown(Bytes(rng.randbytes(300))) as top:
                status, printed = run(command, "--sysroot", str(top))
            check(status, printed, f"tree {number} of seed {seed}")
            statuses[f"{command} {status}"] += 1
    finally:
        forest.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{count} archives and {count} trees of seed {seed}: {dict(statuses)}; peak {peak} KiB")


if __name__ == "__main__":
    os.nice(10)
    main()
