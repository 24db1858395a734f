# SPDX-License-Identifier: Apache-2.0
"""Which of the two engines does the searching: compiled `fast`, or `pure` Python.

Both give the same answers, byte for byte; `VMM_IOVA_ENGINE=fast|pure` forces one. Where `fast` was
not built, a checkout says so once, with what to do; the user of a wheel asks `vmm-iova --version`.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from vmm_iova.errors import EngineError

if TYPE_CHECKING:
    from types import ModuleType

VARIABLE = "VMM_IOVA_ENGINE"
"""Environment variable that forces an engine."""

_MODULES = {"fast": "vmm_iova._fast", "pure": "vmm_iova.allocator.pure"}
_BUILD = "build it in the checkout with: pip install -e .  (needs a C compiler and Python headers)"


_SOURCE = Path(__file__).parents[1] / "_fast.pyx"  # in a checkout; no wheel has it


def load(name: str) -> ModuleType:
    """Return the module of the engine `name`.

    Raises:
        EngineError: there is no such engine, or it cannot be imported here.
    """
    if name not in _MODULES:
        raise EngineError(
            f"there is no engine {name[:40]!r}", engine=name, hint="the engines are fast and pure"
        )
    try:
        return import_module(_MODULES[name])
    except ImportError as exc:
        raise EngineError(
            f"the {name} engine cannot be imported: {exc}",
            engine=name,
            hint=_BUILD if name == "fast" else "pip install sortedcontainers",
        ) from exc


@cache
def engine_name() -> str:
    """Return the engine that `IovaAllocator` uses: "fast" or "pure". Settled once per process.

    Raises:
        EngineError: `VMM_IOVA_ENGINE` names an engine that cannot be had.

    Synchronization: none required.
    """
    forced = os.environ.get(VARIABLE, "")
    if forced:
        load(forced)
        return forced
    try:
        load("fast")
    except EngineError as exc:
        if not _SOURCE.exists():  # a wheel: its user cannot build, and sees it with --version
            return "pure"
        warnings.warn(
            f"{exc.message}; falling back to the pure engine, which is many times slower. "
            f"To have the fast one, {_BUILD}",
            RuntimeWarning,
            stacklevel=2,
        )
        return "pure"
    return "fast"


def describe(part: Any, words: FunctionType) -> None:
    """Give a method of an engine its docstring, which stands once, in `vmm_iova.allocator`."""
    if isinstance(part, FunctionType):
        part.__doc__ = words.__doc__
    else:
        load("fast").describe(part, words)
