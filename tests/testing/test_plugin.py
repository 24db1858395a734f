# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin, in a project that knows of it only by its entry point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import pytest
from vmm_iova import Hva, Iova
from vmm_iova.kernel import open_space, uapi
from vmm_iova.mapping import DynamicMaps, Piece, map_pieces
from vmm_iova.simulated import SimGroup
"""


def _run(tmp_path: Path, body: str, *options: str) -> tuple[int, str]:
    """Run a test file in a folder of its own."""
    file = tmp_path / "test_driver.py"
    file.write_text(HEAD + body, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n", "ascii")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, file],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _line(body: str, word: str) -> int:
    """Number of the line of the file that has a word."""
    return next(n for n, text in enumerate((HEAD + body).splitlines(), 1) if word in text)


CLEAN = """
@pytest.mark.parametrize("number", range(2))
def test_all_is_given_back(vmm_space, vmm_host, vmm_allocator, vmm_kernel, number):
    maps = DynamicMaps(vmm_allocator, vmm_space)
    iova = maps.map_address(Hva(0x7000_0000), 0x1000)
    assert vmm_kernel.mapped()
    maps.unmap(iova)
    assert vmm_host.usable().ranges

@pytest.mark.vmm_kernel(via="type1", release=(5, 10), memlock=1 << 20)
def test_marker_says_how_it_is(vmm_space, vmm_kernel):
    assert (vmm_space.kind, vmm_kernel.settings.release) == ("type1", (5, 10))
    with map_pieces(vmm_space, [Piece(Iova(0), 0x1000, Hva(0x7000_0000))]):
        assert vmm_kernel.memory.locked == 0x1000

@pytest.mark.vmm_kernel(host="amd-epyc-1tb", via="iommufd")
class TestHost:
    def test_host_of_the_package(self, vmm_space, vmm_kernel):
        assert vmm_space.kind == "iommufd"
        assert 0xFD_0000_0000 not in vmm_space.facts().ranges.as_set()

    @pytest.mark.vmm_kernel(via="type1")
    def test_nearest_marker_has_the_word(self, vmm_space):
        assert vmm_space.kind == "type1"

def test_fault_is_injected(vmm_space, vmm_kernel):
    vmm_kernel.inject(12)
    with pytest.raises(OSError):
        vmm_space.map(Iova(0), Hva(0), 0x1000)

def test_own_space(vmm_kernel):
    with open_space(vmm_kernel.devices(), kernel=vmm_kernel):
        pass
"""


@pytest.mark.slow
def test_tests_that_give_everything_back_pass(tmp_path: Path) -> None:
    code, text = _run(tmp_path, CLEAN)
    assert (code, "7 passed" in text) == (0, True), text


@pytest.mark.slow
@pytest.mark.parametrize("via", ["type1", "iommufd"])
@pytest.mark.parametrize(
    ("what", "step", "words"),
    [
        (
            "a mapping",
            "vmm_space.map(Iova(0x1000), Hva(0), 0x1000)  # here",
            "0x1000-0x1fff is mapped, by",
        ),
        ("an address", "vmm_allocator.allocate(0x1000, tag='queue')", "is allocated for queue"),
        (
            "a file",
            "box.append(open_space([OTHER], kernel=second(vmm_kernel)))  # here",
            "is open, by",
        ),
    ],
)
def test_test_that_leaves_something_fails_and_says_what_and_who(
    tmp_path: Path, via: str, what: str, step: str, words: str
) -> None:
    body = f"""
box = []
OTHER = "0000:09:00.0"

def second(kernel):
    kernel.sysfs.plug(SimGroup(9, (OTHER,)))
    return kernel

@pytest.mark.vmm_kernel(via="{via}")
def test_leak(vmm_space, vmm_allocator, vmm_kernel):
    {step}
"""
    code, text = _run(tmp_path, body, "-W", "ignore::ResourceWarning")
    assert code == 1, text
    assert "the test leaves behind" in text
    assert words in text, text
    if "# here" in step:
        assert f"test_driver.py:{_line(body, '# here')}" in text, text


@pytest.mark.slow
def test_plugin_imports_nothing_of_the_package_before_it_is_used(tmp_path: Path) -> None:
    body = """
def test_nothing(request):
    import sys
    assert not {name for name in sys.modules if name.startswith("vmm_iova.")} - {
        "vmm_iova.testing", "vmm_iova.testing.plugin"
    }
"""
    (tmp_path / "test_driver.py").write_text(body, "ascii")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_what_several_fixtures_find_is_one_failure_without_a_traceback(tmp_path: Path) -> None:
    body = """
def test_leak(vmm_space, vmm_allocator):
    DynamicMaps(vmm_allocator, vmm_space).allocate(100, tag="mine")
"""
    status, shown = _run(tmp_path, body)
    assert (status, "Traceback" in shown, "Exception Group" in shown) == (1, False, False)
    place = f"{tmp_path}/test_driver.py:{_line(body, 'allocate(100')}"
    assert f"0x1000-0x1fff is allocated for mine; 0x1000-0x1fff is mapped, by {place}" in shown


MISTAKES = {
    "relase=(5, 10)": "the marker vmm_kernel has no option relase; it has allow_",
    'host="amd-epyc-1tb", memlock=1': "the marker vmm_kernel has no option memlock",
    'kinds={"0000:01:00.0": "nvm"}': "0000:01:00.0 cannot be a 'nvm'; there are edu, nvme",
    'kinds={"0000:09:00.0": "edu"}': "there is no device 0000:09:00.0; there are 0000:01:00",
    'via="vfio"': "there is no way 'vfio'; there are auto, iommufd, type1",
}


def test_mistake_in_the_marker_is_told_with_what_there_is(tmp_path: Path) -> None:
    body = "".join(
        f"@pytest.mark.vmm_kernel({marker})\ndef test_never_{at}(vmm_space):\n    pass\n\n"
        for at, marker in enumerate(MISTAKES)
    )
    status, shown = _run(tmp_path, body)
    assert (status, "5 failed" in shown or "5 errors" in shown) == (1, True), shown
    assert [told for told in MISTAKES.values() if told not in shown] == []
