# SPDX-License-Identifier: Apache-2.0
"""Where the lab keeps what it fetched and built: outside the checkout, shared by all checkouts."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab.say import say

if TYPE_CHECKING:
    from collections.abc import Iterator


def root() -> Path:
    """Return the cache folder, made if it is missing."""
    stated = os.environ.get("VMM_IOVA_LAB_CACHE")
    if stated:
        path = Path(stated)
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        path = Path(base) / "vmm-iova-lab"
    path = path.absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock of the cache, so that two labs on one machine do not fetch the same thing."""
    with (root() / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another lab is at work on {name}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """Fill a new folder and put it in the place of `target` only when the body was successful.

    To be called with the lock held that guards the target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*"):
        # The caller holds a lock, so this is what a killed lab could not put away.
        shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    made.chmod(0o755)
    try:
        yield made
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
