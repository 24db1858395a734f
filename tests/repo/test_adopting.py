# SPDX-License-Identifier: Apache-2.0
"""The sketches of docs/adopting.md run as they are printed."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vmm_iova as vi
from vmm_iova.errors import NotAllocatedError
from vmm_iova.simulated import SimGroup, SimulatedKernel

PAGE = Path(__file__).parents[2] / "docs/adopting.md"
TEXT = PAGE.read_text("utf-8")
SPACE, TESTS, MODULE, MANAGER = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
DISK = "0000:01:00.0"
ERROR = (
    "error: internal error: qemu unexpectedly closed the monitor: 2022-07-02T19:41:18.784519Z "
    'qemu-system-x86_64: -device {"driver":"vfio-pci","host":"0000:09:00.0","id":"hostdev0"}: '
    "vfio 0000:09:00.0: group 2 is not viable\n"
    "Please ensure all devices within the iommu_group are bound to their vfio bus driver."
)
XML = """<domain type='kvm'><name>vm</name><memory unit='GiB'>{ram}</memory><vcpu>4</vcpu>
<os><type arch='x86_64' machine='pc-q35-9.2'>hvm</type></os>
<cpu mode='host-passthrough'/></domain>"""


def _names(program: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "sketch"}
    exec(compile(program, PAGE.name, "exec"), names)
    return names


def test_address_space_gives_exact_blocks_out_and_refuses_a_second_free() -> None:
    space = _names(SPACE)["AddressSpace"](0x10_0000, base=0x4000_0000)
    first = space.alloc(0xF_F000)
    assert space.alloc(100, align=0x1000) == 0x400F_F000  # the one page that is left
    with pytest.raises(MemoryError):
        space.alloc(1)
    space.free(first)
    with pytest.raises(NotAllocatedError):
        space.free(first)
    assert space.alloc(0x8_0000, align=0x8_0000) % 0x8_0000 == 0


@pytest.mark.slow
def test_tests_of_the_sketch_pass_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "test_sketch.py").write_text(TESTS, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "5 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("iommufd", [True, False])
def test_module_drives_a_disk_and_leaves_nothing(iommufd: bool) -> None:
    kernel = SimulatedKernel([SimGroup(1, (DISK,))], kinds={DISK: "nvme"}, iommufd=iommufd)
    vfio = _names(MODULE)["Vfio"](DISK, kernel=kernel)
    assert vfio.pcie_get(0) == 0x36
    assert vfio.registers.read(8) == 0x0001_0400
    with vfio.malloc(10 << 20) as memory, vfio.enable_msix(2) as (first, second):
        memory.view[:4] = b"data"
        assert kernel.device_read(DISK, memory.iova, 4) == b"data"
        vfio.device.trigger("msix", 1)
        assert (first.take(), second.take()) == (0, 1)
    vfio.clean()
    assert (kernel.open_files(), len(kernel.mapped())) == (0, 0)


def test_module_is_not_opened_where_the_kernel_refuses() -> None:
    kernel = SimulatedKernel([SimGroup(1, (DISK,))], kinds={DISK: "nvme"}, iommufd=False)
    kernel.inject(errno.EBUSY)
    with pytest.raises(vi.DmaError):
        _names(MODULE)["Vfio"](DISK, kernel=kernel)
    assert kernel.open_files() == 0


def test_manager_says_before_the_start_whether_it_fits() -> None:
    before = _names(MANAGER)["before_the_start"]
    narrow = vi.load_host("intel-dmar-i7-2600")
    line, details = before(XML.format(ram=600), narrow)
    assert line == "This VM cannot start on intel-dmar-i7-2600."
    assert "--ram 510GiB fits" in details
    line, details = before(XML.format(ram=8), vi.load_host("amd-epyc-1tb"))
    assert line.startswith("This VM ")
    assert "cannot" not in line


def test_manager_explains_the_error_of_the_page() -> None:
    (shown,) = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    after = _names(MANAGER)["after_it"]
    assert after(ERROR) == shown
    assert after("all is well") == ""
