# SPDX-License-Identifier: Apache-2.0
"""Layout files, as `plan -o layout.json` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmm_iova.host.load import read_text
from vmm_iova.planning.layout import check_layout


def read_layout(spec: str) -> dict[str, Any] | None:
    """Read a layout file; None if it is something else."""
    if not spec.endswith(".json") or not Path(spec).is_file():
        return None
    content, name = read_text(spec)
    try:
        found = json.loads(content)
    except ValueError:
        return None  # the reader of snapshots says what is wrong with it
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, dict) or schema.get("name") != "vmm-iova-layout":
        return None
    return check_layout(found, name)
