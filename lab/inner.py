"""A QEMU inside of a guest of the lab: the guest's own VMM, which takes one of its VFIO devices.

It runs under software emulation, too, so that no KVM is needed. Over its test protocol
(docs/devel/testing/qtest.rst of QEMU) memory, ports and the device's registers are read and
written as the innermost guest's processor would do it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.say import LabError
from lab.vmm.observe import Qmp

if TYPE_CHECKING:
    from collections.abc import Iterator

QEMU = "qemu-system-x86_64"
PLAIN = ("-nodefaults", "-display", "none", "-vga", "none", "-accel", "tcg")
WITHOUT_IPC_LOCK = ("setpriv", "--bounding-set=-ipc_lock")
OWNER_ALONE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
SECONDS = 120.0
# Registers of QEMU's edu device (docs/specs/edu.rst).
SOURCE, TARGET, COUNT, COMMAND, BUFFER = 0x80, 0x88, 0x90, 0x98, 0x40000
FROM_MEMORY, TO_MEMORY = 1, 3


def ours(*arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run `vmm-iova` as that user would; return its exit status and all that it printed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "vmm_iova", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def planned(*arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    """Plan on this very machine; return the exit status and the document."""
    status, text = ours("plan", "-J", *arguments, prefix=prefix)
    try:
        document: dict[str, Any] = json.loads(text)
    except ValueError:
        raise LabError(f"plan {' '.join(arguments)} ended with {status}: {text}") from None
    return status, document


def explained(text: str) -> list[dict[str, Any]]:
    """Give what a QEMU printed to `explain`, with this very machine as the host."""
    with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
        file.write(text)
        file.flush()
        status, answer = ours("explain", "--file", file.name, "--host", "LIVE", "-J")
    try:
        failures: list[dict[str, Any]] = json.loads(answer)["failures"]
    except (ValueError, KeyError):
        raise LabError(f"explain ended with {status} for {text!r}: {answer}") from None
    return failures


@dataclass
class Inner:
    """A QEMU that runs."""

    qmp: Qmp
    wire: socket.socket

    def ask(self, command: str) -> str:
        """Send one command of the test protocol and return its answer."""
        self.wire.sendall(command.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            part = self.wire.recv(1 << 16)
            if not part:
                raise LabError(f"QEMU has ended: {self.qmp.complaint()}")
            answer += part
        word, _, value = answer.decode().strip().partition(" ")
        if word != "OK":
            raise LabError(f"{command}: {answer!r}")
        return value

    def config(self, slot: int, register: int, value: int | None = None) -> int:
        """Read, or write, 32 bits of the configuration space of a device on the root bus."""
        self.ask(f"outl 0xcf8 {0x80000000 | slot << 11 | register:#x}")
        if value is None:
            return int(self.ask("inl 0xcfc"), 16)
        self.ask(f"outl 0xcfc {value:#x}")
        return value

    def write(self, address: int, data: bytes) -> None:
        """Write to memory of the innermost guest."""
        self.ask(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def read(self, address: int, size: int) -> bytes:
        """Read memory of the innermost guest."""
        return bytes.fromhex(self.ask(f"read {address:#x} {size:#x}").removeprefix("0x"))

    def dma(self, bar: int, source: int, target: int, size: int, command: int) -> None:
        """Let an edu device copy, and wait until it has."""
        for register, value in ((SOURCE, source), (TARGET, target), (COUNT, size)):
            self.ask(f"writel {bar + register:#x} {value:#x}")
        self.ask(f"writel {bar + COMMAND:#x} {command:#x}")
        until = time.monotonic() + SECONDS
        while int(self.ask(f"readl {bar + COMMAND:#x}"), 16) & 1:
            if time.monotonic() > until:
                raise LabError("the device does not end its copy")
            time.sleep(0.05)


@contextlib.contextmanager
def started(*arguments: str, prefix: tuple[str, ...] = ()) -> Iterator[Inner]:
    """Start a QEMU with these arguments.

    Raises:
        LabError: it ended; the message has what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qtest"
        test = ("-qtest", f"unix:{path},server=on,wait=off")
        qmp = Qmp([*prefix, QEMU, *PLAIN, *test, *arguments])
        try:
            if not qmp.alive:
                raise LabError(f"QEMU has ended: {qmp.complaint()}")
            qmp.ask("query-status")
            with socket.socket(socket.AF_UNIX) as wire:
                wire.settimeout(SECONDS)
                wire.connect(str(path))
                yield Inner(qmp, wire)
        finally:
            qmp.close()


def refused(*arguments: str, prefix: tuple[str, ...] = ()) -> str:
    """Start a QEMU that should not start; return what it printed, or an empty text if it did."""
    done = subprocess.Popen(
        [*prefix, QEMU, *PLAIN, "-S", "-qmp", "stdio", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        # It leaves by itself when it refuses; one that starts obeys, and then says nothing more.
        _, errors = done.communicate(_QUIT, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        done.kill()
        done.communicate()
        raise LabError("QEMU neither starts nor refuses") from None
    return errors.decode("utf-8", "replace") if done.returncode else ""


_QUIT = b'{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'
