# SPDX-License-Identifier: Apache-2.0
"""The first two lines of `plan`: whether the guest starts there, and what must be set."""

from __future__ import annotations

import pytest

from tests.kit.command import Output, run
from vmm_iova.errors import ExitCode, HostDataError
from vmm_iova.host.load import bundled_hosts, load_host

_MODEL_BITS = 40  # of QEMU's CPU models, where nothing is set


def _every_host() -> list[str]:
    """Bundled hosts, and each one of files that hold several."""
    names = []
    for name in bundled_hosts():
        try:
            load_host(name)
            names.append(name)
        except HostDataError:  # "holds 7 hosts"
            names.append(f"{name}#1")
    return names


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["q35", "virt", "i440fx"])
@pytest.mark.parametrize("host", _every_host())
@pytest.mark.parametrize("ram", ["16G", "1.5TiB"])
def test_first_lines_on_every_host_say_whether_it_starts_and_what_to_set(
    capsys: Output, host: str, machine: str, ram: str
) -> None:
    options = ["plan", "--host", host, "--machine", machine, "--ram", ram]
    status = run(*options)
    if status == ExitCode.UNSETTLED:
        first, second = capsys.readouterr().err.splitlines()[:2]
        assert first.startswith("UNKNOWN: the IOVA width of")
        assert second.startswith("Do: ")
        if "--aperture" not in second:
            return  # something narrower settles it
        status = run(*options, "--aperture", "48")  # what the second line asks for
    shown = capsys.readouterr()
    first, second = (shown.out or shown.err).splitlines()[:2]
    word, _, verdict = first.partition(": ")
    if word == "REFUSED":
        assert status == ExitCode.REFUSED
        assert second.startswith("Do: ")
        return
    if word == "DOES NOT START":
        assert status == ExitCode.UNASSIGNABLE
        assert second.startswith("Do: ")
        return
    forbidden = "a requested device cannot be assigned on current kernels"
    if word == "FITS, BUT" and verdict.startswith(forbidden):
        assert status == ExitCode.UNASSIGNABLE
        return
    assert status == 0
    assert f"of RAM in {machine}" in verdict
    bits = int(verdict.rpartition(" address bits")[0].rpartition(" ")[2])
    if word == "FITS":
        assert "where its VMM puts it" in verdict or "moved to 0x10000000000 by its VMM" in verdict
        if machine != "virt":
            assert (f"phys-bits={bits}" in second) is (bits > _MODEL_BITS)
        return
    assert word == "NOT AS IT IS"
    assert "--machine own-" in second
