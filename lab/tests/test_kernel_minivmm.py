# SPDX-License-Identifier: Apache-2.0
"""The embedding example runs where there is KVM and a device to pass through."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest


@pytest.mark.guests("iommufd")
@pytest.mark.proves("a VMM in Python: the guest's own code starts a DMA, and the bytes arrive")
def test_minivmm_passes_a_device_through(lab: dict[str, Any]) -> None:
    bdf = next(each["bdf"] for each in lab["devices"] if each["kind"] == "edu")

    done = subprocess.run(
        [sys.executable, "examples/minivmm/minivmm.py", bdf],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "seen by the VMM" in done.stdout
