# SPDX-License-Identifier: Apache-2.0
"""`plan` with all that it can place, `machines`, and the widths of `show`."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import vmm_iova as vi
from tests.kit.command import Output, error_of, run
from vmm_iova import cli


class TestPlanner:
    def test_nodes_bars_rooms_and_reserved_areas_are_placed(self, capsys: Output) -> None:
        status = run(
            "plan",
            "--host",
            "amd-epyc-1tb",
            "--node=4G@1GiB",
            "--node=4G",
            "--bar=gpu=16G,required",
            "--bar=old=1M,32",
            "--room=hotplug=8G",
            "--reserve=fb=0x40000000+16M",
            "--viommu",
            "--assigned=2",
            "--chunk=2MiB",
            "--compare",
        )
        shown = capsys.readouterr().out
        assert status == 0
        for words in (
            "node 0",
            "gpu",
            "hotplug",
            "fb",
            "(2 containers)",
            "hugepagesz=1G hugepages=4",
            "cost by policy and page size",
            "<- limits",
        ):
            assert words in shown

    @pytest.mark.parametrize(
        ("form", "first"),
        [
            ("e820", "BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n"),
            ("iomem", "00000000000-0007fffffff : System RAM\n"),
            ("exclude", "0xfd00000000-0xffffffffff "),
        ],
    )
    def test_format_prints_only_what_the_guest_must_be_told(
        self, capsys: Output, form: str, first: str
    ) -> None:
        assert run("plan", "--host=amd-epyc-1tb", "--ram=1.5TiB", f"--format={form}") == 0
        assert capsys.readouterr().out.startswith(first)

    def test_saved_layout_is_kept_or_the_change_is_named(
        self, capsys: Output, tmp_path: Path
    ) -> None:
        saved = str(tmp_path / "saved.json")
        plan = ("plan", "--host=amd-epyc-1tb", f"--keep={saved}")
        assert run("plan", "--host=amd-epyc-1tb", "--ram=64G", "-o", saved) == 0
        assert run(*plan, "--ram=64G") == 0
        assert "kept as saved" in capsys.readouterr().out
        assert run(*plan, "--ram=32G") == 3
        assert "RAM of 32 GiB instead of 64 GiB" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("option", "status", "said"),
        [
            ("--bar=gpu", 2, "is not NAME=..."),
            ("--bar=gpu=1G,fast", 2, "'fast' is none of"),
            ("--keep=/no/such.json", 6, "/no/such.json does not exist"),
            (f"--keep={__file__}", 5, "is no saved layout"),
            ("--also-fit=99", 4, "has no group 99"),
            ("--phys-bits=20", 2, "phys_bits 20"),
        ],
    )
    def test_wrong_option_of_plan_is_one_sentence(
        self, capsys: Output, option: str, status: int, said: str
    ) -> None:
        assert run("plan", "--host=amd-epyc-1tb", "--ram=4G", option) == status
        assert said in error_of(capsys)

    def test_machines_are_listed_shown_and_drawn(self, capsys: Output, tmp_path: Path) -> None:
        assert run("machines") == 0
        assert len(capsys.readouterr().out.splitlines()) == 1 + len(vi.machine_names())
        assert run("machines", "-J") == 0
        found = json.loads(capsys.readouterr().out)["machines"]
        assert [item["name"] for item in found] == list(vi.machine_names())
        assert run("machines", "virt", "-o", str(tmp_path / "virt.svg")) == 0
        assert "GICv2m doorbell" in capsys.readouterr().out
        assert "GICv2m doorbell" in (tmp_path / "virt.svg").read_text()
        assert run("machines", "-o", "x.svg") == 2
        path = str(tmp_path / "q35.svg")
        assert run("machines", "q35", "--phys-bits", "40", "-o", path) == 0
        capsys.readouterr()
        assert run("machines", "q35", "--phys-bits", "32", "-o", path) == 3

    def test_show_draws_the_host_alone(self, capsys: Output, tmp_path: Path) -> None:
        path = tmp_path / "host.svg"
        assert run("show", "--host", "amd-epyc-1tb", "-o", str(path)) == 0
        assert "AMD HyperTransport range" in path.read_text()
        assert run("show", "--host", "s390x-32g", "-o", str(path)) == 0
        assert "the width is unknown" in path.read_text()
        assert run("show", "--host", "amd-epyc-1tb", "-o", str(path.with_suffix(".json"))) == 2
        assert "neither .svg nor .html" in capsys.readouterr().err
        assert run("machines", "q53") == 4

    @pytest.mark.parametrize("name", vi.machine_names())
    def test_each_machine_can_be_drawn(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "machine.svg"
        assert run("machines", name, "-o", str(path)) == 0
        assert ElementTree.parse(path).getroot().tag.endswith("svg")

    def test_show_has_the_widths_side_by_side(self, capsys: Output) -> None:
        assert run("show", "--host=intel-dmar-8thread-laptop") == 0
        assert "39 bits  MGAW of dmar0" in capsys.readouterr().out
        assert run("show", "--host=intel-dmar-8thread-laptop", "-J") == 0
        widths = json.loads(capsys.readouterr().out)["usable"]["widths"]
        assert widths[0] == {
            "what": "MGAW of dmar0",
            "bits": 39,
            "source": "intel-dmar-8thread-laptop:5",
            "counts": True,
            "limits": True,
        }


def test_guest_iommu_is_told_its_width_and_costs_each_container(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--ram", "64G", "--viommu", "--assigned", "4")
    assert cli.main(["plan", "--host", "intel-dmar-8thread-laptop", *options]) == 0
    text = capsys.readouterr().out
    assert (
        "at most 39 address bits, 0x0-0x7fffffffff (QEMU: -device intel-iommu,aw-bits=39)" in text
    )
    assert "must not hand out 0xfee00000-0xfeefffff" in text
    assert "in each of 4 containers" in text
    assert "takes an entry of dma_entry_limit: 16777216 in one container" in text


def test_seams_below_unmoved_ram_are_said_to_need_several_calls(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    host = tmp_path / "ranges.txt"
    host.write_text(
        "usable ranges\n0x0 - 0xfedfffff\n0xfef00000 - 0x13fffffff\n0x140000000 - 0x7fffffffff\n"
    )
    assert cli.main(["plan", "--host", str(host), "--ram", "8G", "--on-hole", "refuse"]) == 0
    assert "must map RAM in one call for each piece" in capsys.readouterr().out
    assert cli.main(["plan", "--host", str(host), "--ram", "3G", "--on-hole", "refuse"]) == 0
    assert "one call for each piece" not in capsys.readouterr().out


def test_direct_region_is_said_first_although_the_width_is_not_known(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    host = tmp_path / "regions.txt"
    host.write_text("0x00000000a0000000 0x00000000a00fffff direct\n")
    assert cli.main(["show", "--host", str(host)]) == 1
    assert capsys.readouterr().out.startswith("NOT ASSIGNABLE: the devices of the pasted text")
