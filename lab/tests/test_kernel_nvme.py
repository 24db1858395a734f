# SPDX-License-Identifier: Apache-2.0
"""The NVMe driver of the examples moves real blocks on the kernel of this guest."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/nvme/nvme.py"


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("nvme", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.guests("vtd", "vtd39", "amd", "iommufd")
@pytest.mark.proves("a user-space NVMe driver writes 64 MiB, reads it back, every block the same")
@pytest.mark.parametrize("interrupts", [False, True], ids=["polling", "MSI-X"])
def test_nvme_driver_moves_blocks(lab: dict[str, Any], interrupts: bool) -> None:
    bdf = next(each["bdf"] for each in lab["devices"] if each["kind"] == "nvme")

    done = _example().main(bdf, 64 << 20, interrupts=interrupts)

    assert done.endswith(f"the same, by {'MSI-X' if interrupts else 'polling'}")
    assert "131072 blocks" in done
