# SPDX-License-Identifier: Apache-2.0
"""The targets that there are: every module of `fuzz/targets`."""

from __future__ import annotations

import pkgutil
from pathlib import Path

HERE = Path(__file__).parent


def target_names() -> list[str]:
    """Names of the targets, sorted."""
    return sorted(item.name for item in pkgutil.iter_modules([str(HERE / "targets")]))
