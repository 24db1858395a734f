# SPDX-License-Identifier: Apache-2.0
"""Boot one guest under software emulation, run a command in it, and bring the results out."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import cache, userland
from lab.initramfs import OUT, Share, initramfs
from lab.say import LabError, say

if TYPE_CHECKING:
    from lab.guests import Guest
    from lab.kernels import Kernel

REPO = Path(__file__).resolve().parent.parent
DISK_BYTES = 256 << 20
SCRATCH = b"".join(bytes([number]) * 512 for number in range(256)) * 8
PYCACHE, PURE = f"{OUT}-pycache", f"{OUT}-pure"
# How long QEMU may take to leave after the guest has written its exit code.
GRACE = 10
# Set when the person at the terminal has had enough: every guest is ended.
stop = threading.Event()


@dataclass(frozen=True)
class Outcome:
    """What came out of a boot; `code` is None when the guest never said how it ended."""

    code: int | None
    folder: Path
    seconds: float
    trouble: str


def _more_shares(guest: Guest) -> tuple[Share, ...]:
    """Return what a foreign root lacks: the checkout, and compiled Python kept between boots."""
    if not guest.foreign:
        return ()
    compiled = cache.root() / "pycache" / guest.arch
    compiled.mkdir(parents=True, exist_ok=True)
    return (
        Share("lab_repo", REPO, str(REPO)),
        Share("lab_pure", userland.pure_packages(), PURE),
        Share("lab_pyc", compiled, PYCACHE, writable=True),
    )


def qemu_command(guest: Guest, kernel: Kernel, root: Path, run: Path) -> list[str]:
    """Return the whole QEMU command line."""
    suffix = "-ccw" if guest.bus == "ccw" else "-pci"
    shares = [
        Share("lab_root", root, "/"),
        Share("lab_out", run, OUT, writable=True),
        *_more_shares(guest),
    ]
    command = [
        f"qemu-system-{guest.arch}",
        *("-accel", "tcg", "-smp", "2", "-m", guest.memory, "-no-reboot"),
        *("-display", "none", "-monitor", "none", "-net", "none"),
        *("-vga", "none") * (guest.arch == "x86_64"),
        *("-serial", f"file:{run}/console.log"),
        *("-drive", f"if=none,id=scratch,format=raw,file={run}/scratch.img"),
        *("-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={run}/disk.img"),
        *guest.machine,
    ]
    for share in shares:
        escaped = str(share.folder).replace(",", ",,")
        backend = f"local,id={share.tag},path={escaped},security_model=none,multidevs=remap"
        command += ["-fsdev", backend if share.writable else f"{backend},readonly=on"]
        command += ["-device", f"virtio-9p{suffix},fsdev={share.tag},mount_tag={share.tag}"]
    # no_timer_check: on a busy machine the emulated timer is late, and x86 takes that for a broken
    # I/O APIC and panics (arch/x86/kernel/apic/io_apic.c, check_timer). Others ignore the word.
    words = f"console={guest.console} panic=-1 loglevel=5 no_timer_check {guest.append}"
    command += ["-kernel", str(kernel.image), "-initrd", str(run / "initramfs.cpio")]
    return [*command, "-append", words]


def _script(guest: Guest, command: list[str], setup: bool, environment: dict[str, str]) -> str:
    """Return the shell script that runs inside, as process 2 or so, as root."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
    lines.append(f"cd {shlex.quote(str(REPO))} || exit 125")
    if setup:
        lines.append(f"{shlex.quote(python_inside(guest))} -m lab.guest_setup {OUT} || exit 125")
    lines.append(shlex.join(command))
    return "\n".join(lines) + "\n"


def python_inside(guest: Guest) -> str:
    """Return the Python to call inside: this very one where the root is the machine's own."""
    return "/usr/bin/python3" if guest.foreign else sys.executable


def _environment(guest: Guest) -> dict[str, str]:
    paths = [str(REPO)]
    compiled = {"PYTHONDONTWRITEBYTECODE": "1"}
    if guest.foreign:
        # Packages that were only unpacked have nothing compiled, and emulated machines are slow.
        paths.append(PURE)
        compiled = {"PYTHONPYCACHEPREFIX": PYCACHE}
    return {
        **compiled,
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONPATH": ":".join(paths),
        "VMM_IOVA_LAB": f"{OUT}/setup.json",
    }


def _prepare(guest: Guest, kernel: Kernel, run: Path, command: list[str], setup: bool) -> Path:
    """Write everything that the guest reads, and return the root that it gets."""
    root = userland.foreign_root(guest.debian_arch) if guest.foreign else Path("/")
    script = _script(guest, command, setup, _environment(guest))
    (run / "command.sh").write_text(script)
    plan = {"guest": guest.name, "title": guest.title, "devices": list(guest.devices)}
    (run / "guest.json").write_text(json.dumps(plan))
    (run / "scratch.img").write_bytes(SCRATCH)
    with (run / "disk.img").open("wb") as disk:
        disk.truncate(DISK_BYTES)  # a hole: what a guest writes is all that it takes
    first = initramfs(
        kernel,
        guest.modules,
        userland.busybox(guest.debian_arch),
        _more_shares(guest),
    )
    (run / "initramfs.cpio").write_bytes(first)
    return root


def _wait(process: subprocess.Popen[bytes], run: Path, limit: float) -> str:
    """Wait for QEMU; kill it when the time is up or when the guest is done but does not leave."""
    end = time.monotonic() + limit
    done_since: float | None = None
    while process.poll() is None:
        if stop.is_set():
            process.kill()
            process.wait()
            return "the lab was interrupted"
        now = time.monotonic()
        if done_since is None and (run / "exit").exists():
            done_since = now
        if done_since is not None and now - done_since > GRACE:
            process.kill()
            process.wait()
            return ""
        if now > end:
            process.kill()
            process.wait()
            return f"the guest was still running after {limit:.0f} s"
        time.sleep(0.1)
    return ""


def boot(
    guest: Guest, kernel: Kernel, command: list[str], setup: bool = True, limit: float | None = None
) -> Outcome:
    """Boot a guest and run a command in it; the caller puts the folder away with `keep`.

    A guest that ends before its command is booted once more: emulated on a busy machine, a kernel
    of several CPUs stumbles now and then over its own patching (int3), or finds no clock.
    """
    outcome = _boot(guest, kernel, command, setup, limit)
    if outcome.trouble.startswith(_TOO_EARLY):
        say(f"{guest.name}: {outcome.trouble}: booting once more")
        shutil.rmtree(outcome.folder, ignore_errors=True)
        outcome = _boot(guest, kernel, command, setup, limit)
    return outcome


_TOO_EARLY = "the guest did not get to its command"


def _boot(
    guest: Guest, kernel: Kernel, command: list[str], setup: bool, limit: float | None
) -> Outcome:
    runs = cache.root() / "runs"
    runs.mkdir(exist_ok=True)
    _sweep(runs)
    run = Path(tempfile.mkdtemp(prefix=f"{guest.name}.", dir=runs))
    start = time.monotonic()
    try:
        root = _prepare(guest, kernel, run, command, setup)
        line = qemu_command(guest, kernel, root, run)
        (run / "qemu.sh").write_text(shlex.join(line) + "\n")
        say(f"{guest.name}: booting {kernel.release}")
        with (run / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                trouble = _wait(process, run, limit or guest.seconds)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        code = _code(run)
        if code is None and not trouble:
            trouble = f"{_TOO_EARLY} (QEMU ended with {process.returncode})"
    except (OSError, LabError) as error:
        code, trouble = None, str(error)
    return Outcome(code, run, time.monotonic() - start, trouble)


def _code(run: Path) -> int | None:
    try:
        return int((run / "exit").read_text())
    except (OSError, ValueError):
        return None


def _sweep(runs: Path) -> None:
    """Remove what labs left behind that were killed in the middle of a run, a day ago or more."""
    for left in runs.glob("*.*"):
        if left.stat().st_mtime < time.time() - 86400:
            shutil.rmtree(left, ignore_errors=True)


def keep(guest: Guest, outcome: Outcome) -> Path:
    """Make this run the guest's last one, without the parts that are big and the same always.

    To be called after everything was read: other labs may put their own run there at any time.
    """
    run, place = outcome.folder, outcome.folder.parent / guest.name
    for name in ("initramfs.cpio", "scratch.img", "disk.img"):
        (run / name).unlink(missing_ok=True)
    with cache.locked("runs"):
        shutil.rmtree(place, ignore_errors=True)
        run.rename(place)
    return place
