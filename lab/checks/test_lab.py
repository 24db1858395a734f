# SPDX-License-Identifier: Apache-2.0
"""The lab's own judgement, without booting anything: `pytest lab/checks`."""

from __future__ import annotations

import dataclasses
import lzma
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from lab import cache, debian, guests, report, runner
from lab.boot import Outcome, boot
from lab.initramfs import cpio, modules_in_order
from lab.kernels import Kernel
from lab.say import LabError

if TYPE_CHECKING:
    from pathlib import Path

GUEST = guests.GUESTS[0]
JUNIT = '<testsuites><testsuite tests="{}" failures="{}" errors="0" skipped="{}"/></testsuites>'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMM_IOVA_LAB_CACHE", str(tmp_path / "cache"))


def judged(folder: Path, code: int | None, junit: str | None, trouble: str = "") -> runner.Row:
    if junit is not None:
        (folder / "junit.xml").write_text(junit)
    kernel = Kernel(folder / "vmlinuz", "1.0", None)
    return runner.judge(GUEST, kernel, Outcome(code, folder, 1.0, trouble))


def test_all_passed_is_good(tmp_path: Path) -> None:
    (tmp_path / "proved.json").write_text('["one", "two"]')
    row = judged(tmp_path, 0, JUNIT.format(3, 0, 1))
    assert (row.good, row.passed, row.skipped, row.proved) == (True, 2, 1, "one; two")


@pytest.mark.parametrize(
    ("code", "junit", "trouble"),
    [
        (None, None, "the guest was still running after 1 s"),
        (None, None, ""),
        (125, None, ""),
        (0, "<torn", ""),
        (5, JUNIT.format(0, 0, 0), ""),
        (0, JUNIT.format(0, 0, 0), ""),
        (0, JUNIT.format(4, 0, 4), ""),
        (0, JUNIT.format(4, 1, 0), ""),
        (1, JUNIT.format(4, 0, 0), ""),
        (None, JUNIT.format(4, 0, 0), "the guest was still running after 1 s"),
    ],
)
def test_anything_else_is_a_failure(
    tmp_path: Path, code: int | None, junit: str | None, trouble: str
) -> None:
    row = judged(tmp_path, code, junit, trouble)
    assert not row.good
    assert "FAILED" in report.table([row])


def test_what_failed_is_said_last_with_its_reason(tmp_path: Path) -> None:
    junit = (
        '<testsuites><testsuite tests="2" failures="1" errors="0" skipped="0">'
        '<testcase name="test_good"/><testcase name="test_bad">'
        '<failure message="assert 1 == 2&#10;more">long</failure></testcase>'
        "</testsuite></testsuites>"
    )
    row = judged(tmp_path, 1, junit)
    torn = judged(tmp_path, 125, "<torn")

    assert report.failures([row, torn]).splitlines() == [
        f"FAILED: {GUEST.name}: test_bad: assert 1 == 2",
        f"FAILED: {GUEST.name}: no test report came out (exit code 125)",
    ]


def test_a_guest_that_cannot_boot_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An emulator that ends at once: no exit code came out, whatever it said itself."""
    program = tmp_path / "qemu-system-none"
    program.write_text(f"#!/bin/sh\necho >> {tmp_path}/starts\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("lab.userland.busybox", lambda _arch: program)
    guest = dataclasses.replace(GUEST, arch="none", debian_arch="none")
    monkeypatch.setattr(type(guest), "foreign", False)
    outcome = boot(guest, Kernel(program, "1.0", None), ["true"], limit=5)
    assert outcome.code is None
    assert "did not get to its command" in outcome.trouble
    # Emulated on a busy machine, a kernel stumbles now and then: it is booted once more.
    assert (tmp_path / "starts").read_text() == "\n\n"


def test_an_unknown_guest_is_named() -> None:
    with pytest.raises(LabError, match="no guest nine; there are vtd,"):
        guests.named(["nine"])


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    for name, needs in (("vfio-pci", "core,vfio"), ("core", "vfio"), ("vfio", "")):
        data = lzma.compress(b"\0license=GPL\0depends=" + needs.encode() + b"\0")
        (tmp_path / f"{name}.ko.xz").write_bytes(data)
    (tmp_path / "modules.builtin").write_text("kernel/virtio-pci.ko\n")
    kernel = Kernel(tmp_path, "1.0", tmp_path)
    found = modules_in_order(kernel, ("?none", "virtio_pci", "vfio-pci"))
    assert list(found) == ["vfio.ko", "core.ko", "vfio_pci.ko"]
    with pytest.raises(LabError, match="no module other"):
        modules_in_order(kernel, ("other",))


def test_cpio_is_what_cpio_reads() -> None:
    archive = cpio({"bin/a": b"abc", "b": b""}, ["bin"])
    assert archive.count(b"070701") == 4
    assert len(archive) % 4 == 0
    assert archive.index(b"abc") % 4 == 0


def test_a_failed_fill_leaves_the_old(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    with cache.fresh(target) as made:
        (made / "a").write_text("1")

    def fail() -> None:
        with cache.fresh(target) as made:
            (made / "a").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_apt_is_tried_again_and_then_blamed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "apt-get"
    script.write_text(
        textwrap.dedent(
            f"""\
            #!/bin/sh
            echo x >> {tmp_path}/calls
            echo 'E: File has unexpected size (1 != 2). Mirror sync in progress?'
            exit 100
            """
        )
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(debian, "PAUSES", (0, 0))
    with pytest.raises(LabError, match=r"failed 3 times because the mirror is mid-sync"):
        debian.Apt("amd64", ("trixie",)).update()
    assert (tmp_path / "calls").read_text() == "x\n" * 3


def test_the_command_line_says_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab", "run", "nine"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
