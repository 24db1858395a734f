# SPDX-License-Identifier: Apache-2.0
"""What to do depends on the machine: `explain` goes by the facts of the host that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.command import Output, run

LINE = "vfio 0000:08:00.0: no iommu_group found: No such file or directory"


@pytest.mark.parametrize(
    ("cpu", "hint"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t: fpu hypervisor\n", "start the outer QEMU with"),
        ("vendor_id\t: AuthenticAMD\nflags\t: fpu\n", "(AMD-Vi) on in the firmware"),
    ],
)
def test_machine_without_an_iommu_is_explained_by_its_own_facts(
    cpu: str, hint: str, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "sys/kernel/iommu_groups").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpu)
    assert run("explain", LINE, "--sysroot", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert text.startswith("CERTAIN: no IOMMU is in use on this host.\nDo:     ")
    assert hint in text.splitlines()[1]


def test_option_that_raises_the_address_bits_is_no_limit(capsys: Output) -> None:
    assert run("plan", "--host", "amd-epyc-1tb", "--ram", "536G", "--phys-bits", "39") == 3
    text = capsys.readouterr().err
    assert "--phys-bits 40 (QEMU: -cpu host, or -cpu MODEL,phys-bits=40; libvirt: " in text
    assert "<maxphysaddr mode='emulate' bits='40'/> in <cpu>)" in text
    assert "limit" not in text.partition("\n\n")[0]
    assert "host-phys-bits-limit=40" not in text
