# SPDX-License-Identifier: Apache-2.0
"""Put a bug into a copy of the package, one for each target, and see that the target finds it.

`python -m fuzz.planted [TARGET ...]`; the exit status is the number of bugs that were not found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.names import target_names

ROOT = Path(__file__).parents[1]
SECONDS = 300
BUGS = {
    "allocator": ("vmm_iova/allocator/orders.py", "if place >= low:", "if place > low:"),
    "archives": (
        "vmm_iova/fleet/archives.py",
        "keep = member.isreg() and wanted(member.name)",
        "keep = member.isreg() and wanted(member.name) and member.size > 0",
    ),
    "capabilities": (
        "vmm_iova/kernel/caps.py",
        "if offset in heads:",
        "if offset in heads and offset > 60:",
    ),
    "definition": (
        "vmm_iova/definitions/proxmox.py",
        "own = own_part(text)",
        "own = text",
    ),
    "explain": (
        "vmm_iova/report/diagnosis.py",
        '"device": call.device,',
        '"device": call.device[0],',
    ),
    "keep": (
        "vmm_iova/planning/layout.py",
        "if not all(isinstance(part, str) for part in whole):",
        "if not whole:",
    ),
    "machine": ("vmm_iova/machines/toml_file.py", "isprintable():", "strip():"),
    "mapping": (
        "vmm_iova/mapping/mapped.py",
        "for piece in reversed(pieces):",
        "for piece in reversed(pieces[1:]):",
    ),
    "snapshot": (
        "vmm_iova/host/snapshot.py",
        '"dma_mask_bits": item.dma_mask_bits,',
        '"dma_mask_bits": item.dma_mask_bits or None,',
    ),
    "text": ("vmm_iova/plain.py", "_NUMBER.fullmatch(text) else None", "text.isdigit() else None"),
    "trees": (
        "vmm_iova/files.py",
        'if real != self._real and not real.startswith(self._real.rstrip("/") + "/"):',
        "if not real.startswith(self._real):",
    ),
}
"""By target: a file, a text in it, and what is put in its place."""


def plant(name: str, root: Path) -> None:
    """Put the bug of a target into a copy of the package.

    Raises:
        ValueError: the text that it changes is not there.
    """
    module, old, new = BUGS[name]
    path = root / module
    text = path.read_text("utf-8")
    if old not in text:
        raise ValueError(f"{name}: {module} has no {old!r}: the bug of this target is out of date")
    path.write_text(text.replace(old, new), "utf-8")


def found(name: str) -> bool:
    """Tell whether a target finds its bug."""
    with tempfile.TemporaryDirectory(prefix="vmm-iova-planted-") as folder:
        root = Path(folder)
        keep = shutil.ignore_patterns("corpus", "findings", "seeds", "__pycache__")
        for part in ("vmm_iova", "fuzz", "tests"):
            shutil.copytree(ROOT / part, root / part, ignore=keep)
        plant(name, root)
        done = subprocess.run(
            [sys.executable, "-m", "fuzz.run", name, str(SECONDS)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
        )
        findings = [path.name for path in (root / "fuzz/findings").glob(f"{name}-*")]
        error = [line for line in done.stderr.splitlines() if "Error" in line or "ERROR" in line]
        print(f"{name}: {'found' if findings else 'NOT FOUND'} {error[:1]}", flush=True)
        return bool(findings)


if __name__ == "__main__":
    sys.exit(sum(not found(name) for name in sys.argv[1:] or target_names()))
