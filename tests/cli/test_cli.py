# SPDX-License-Identifier: Apache-2.0
"""The command as a user meets it: answers, exit codes, and one sentence for everything wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

import vmm_iova as vi
from tests.kit.command import Output, error_of, run
from tests.kit.data import FAILED_MAPS
from vmm_iova.cli import options, parser
from vmm_iova.host.snapshot import SCHEMA_VERSION


class TestPlan:
    def test_amd_guest_prints_map_cuts_and_cost(self, capsys: Output) -> None:
        assert run("plan", "--host", "amd-epyc-1tb", "--machine", "own-x86", "--ram", "1.5TiB") == 0
        text = capsys.readouterr().out
        assert "0000010000000000-000001837fffffff : RAM high" in text
        assert "000000fd00000000-000000ffffffffff : reserved by the host" in text
        assert "RAM high ends at 0xfcffffffff: reserved region" in text
        assert "map calls      3 of 65535" in text
        assert "MSI doorbell" in text
        assert "aperture: kernel range list" in text

    def test_json_is_whole_and_names_its_schema(self, capsys: Output) -> None:
        own = ("--machine", "own-x86")
        assert run("plan", "--host", "amd-epyc-1tb", *own, "--ram", "1.5TiB", "-J") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["schema"] == {"name": "vmm-iova-layout", "version": 1}
        assert [item["gpa"]["start"] for item in found["items"] if item["kind"] == "ram"] == [
            "0x0",
            "0x100000000",
            "0x10000000000",
        ]
        assert found["cost"]["entries"] == 3

    def test_output_by_suffix_writes_picture_and_layout(
        self, capsys: Output, tmp_path: Path
    ) -> None:
        for name in ("map.svg", "map.html", "map.json"):
            path = str(tmp_path / name)
            assert run("plan", "--host", "amd-epyc-1tb", "--ram", "8G", "-o", path) == 0
        assert ElementTree.parse(tmp_path / "map.svg").getroot().tag.endswith("svg")
        assert json.loads((tmp_path / "map.json").read_text())["ram"] == "0x200000000"
        assert "wrote" in capsys.readouterr().err

    def test_output_of_another_kind_is_refused(self, capsys: Output) -> None:
        assert run("plan", "--host", "amd-epyc-1tb", "--ram", "8G", "-o", "map.png") == 2
        assert "neither .svg, .html nor .json" in error_of(capsys)

    def test_output_that_cannot_be_written_is_said(self, capsys: Output, tmp_path: Path) -> None:
        path = str(tmp_path / "no/such/map.svg")
        assert run("plan", "--host", "amd-epyc-1tb", "--ram", "8G", "-o", path) == 6
        assert "could not be written: No such file" in error_of(capsys)

    def test_direct_region_is_said_first_and_gives_status_1(self, capsys: Output) -> None:
        status = run(
            *("plan", "--host", "arm-hisilicon-rmr-megaraid-group0", "--aperture", "48"),
            *("--machine", "virt", "--ram", "4G"),
        )
        assert status == 1
        assert capsys.readouterr().out.startswith("FITS, BUT: a requested device cannot be")

    def test_no_evidence_says_what_would_settle_it(self, capsys: Output) -> None:
        assert run("plan", "--host", "s390x-32g", "--machine", "s390x", "--ram", "4G") == 9
        text = capsys.readouterr().err
        assert "none of its facts states an aperture" in text
        assert "Why:    looked at: " in text
        assert "--aperture 0x100000000-0x8ffffffff, which its reserved regions leave" in text

    def test_refusal_has_status_3_and_fixes(self, capsys: Output) -> None:
        status = run("plan", "--host", "amd-epyc-1tb", "--ram", "1.5TiB", "--on-hole", "refuse")
        assert status == 3
        text = capsys.readouterr().err
        assert "0xfd00000000-0xffffffffff" in text
        assert "--on-hole move puts RAM at" in text
        assert "--on-hole split" not in text  # which QEMU cannot

    def test_bytes_are_printed_when_asked(self, capsys: Output) -> None:
        assert run("plan", "--host", "amd-epyc-1tb", "--ram", "4G", "-b") == 0
        assert "0x80000000" in capsys.readouterr().out


class TestCheck:
    def test_hole_is_named(self, capsys: Output) -> None:
        assert run("check", "--host", "amd-epyc-1tb", "--range", "0xfd00000000+4G") == 3
        text = capsys.readouterr().out
        assert text.startswith("NO: 0xfd00000000-0xfdffffffff (4 GiB) overlaps ")
        assert "AMD HyperTransport range" in text

    def test_usable_range_is_a_yes(self, capsys: Output) -> None:
        assert run("check", "--host", "amd-epyc-1tb", "--range", "4G+4G") == 0
        assert capsys.readouterr().out.startswith("YES: 0x100000000-0x1ffffffff")

    def test_one_no_among_several_is_a_no(self, capsys: Output) -> None:
        arguments = ("--range", "4G+4G", "--range", "0xfee00000+4K")
        assert run("check", "--host", "amd-epyc-1tb", *arguments) == 3
        text = capsys.readouterr().out
        assert (text.count("YES: "), text.count("NO: ")) == (1, 1)

    def test_list_of_failed_maps_is_judged_line_by_line(self, capsys: Output) -> None:
        assert run("check", "--host", "intel-dmar-ivy-bridge-3770", "--maps", str(FAILED_MAPS)) == 3
        text = capsys.readouterr().out
        assert text.count("NO: ") == 6
        assert "YES: harvester/harvester#3135" in text  # refused for locked memory, not for place

    def test_json_has_a_verdict_a_range(self, capsys: Output) -> None:
        assert run("check", "--host", "amd-epyc-1tb", "--range", "0xfee00000+4K", "-J") == 3
        (verdict,) = json.loads(capsys.readouterr().out)["verdicts"]
        assert verdict["kind"] == "conflict"
        assert verdict["causes"][0]["type"] == "msi"

    def test_nothing_to_check_is_refused(self, capsys: Output) -> None:
        assert run("check", "--host", "amd-epyc-1tb") == 2
        assert "nothing to check" in error_of(capsys)

    def test_failed_maps_as_a_host_says_where_they_belong(self, capsys: Output) -> None:
        assert run("check", "--host", str(FAILED_MAPS), "--range", "0x0+4K") == 5
        assert "7 failed maps and no host facts" in capsys.readouterr().err


class TestExplain:
    LINE = "vfio_dma_map(0x..., 0x382000000000, 0x10000000, 0x...) = -22 (Invalid argument)"

    def test_line_alone_gives_the_likely_cause_and_status_9(self, capsys: Output) -> None:
        assert run("explain", self.LINE) == 9
        text = capsys.readouterr().out
        verdict, action, *_ = text.splitlines()
        assert verdict == (
            "LIKELY: the device BAR at 0x382000000000 (256 MiB) lies beyond the IOMMU's address "
            "width; of a BAR QEMU only warns."
        )
        assert action.startswith("Do:     nothing, if the guest runs")
        assert "the width of the IOMMU: cat /sys/class/iommu" in text

    def test_line_with_a_host_gives_the_fact(self, capsys: Output) -> None:
        assert run("explain", self.LINE, "--host", "intel-dmar-i7-2600") == 0
        text = capsys.readouterr().out
        assert text.startswith("CERTAIN: the device BAR at 0x382000000000 (256 MiB) lies beyond ")
        assert "the last usable address is 0x7fffffffff" in text

    def test_numbers_are_taken_instead_of_a_line(self, capsys: Output) -> None:
        numbers = ("--iova", "0xfd00000000", "--size", "4G", "--errno", "-22")
        assert run("explain", *numbers, "--host", "amd-epyc-1tb", "-J") == 0
        (found,) = json.loads(capsys.readouterr().out)["failures"]
        assert found["causes"][0]["cause"] == "hole"
        assert found["range"]["next_fit"] == "0x10000000000"

    def test_list_of_failed_maps_is_explained(self, capsys: Output) -> None:
        assert run("explain", "--file", str(FAILED_MAPS)) == 9
        assert capsys.readouterr().out.count("Do: ") == 7

    def test_host_without_evidence_is_said_and_left_out(self, capsys: Output) -> None:
        assert run("explain", self.LINE, "--host", "s390x-32g") == 9
        assert "note: the IOVA width of s390x-32g is unknown" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "status", "said"),
        [
            (("hello",), 5, "tells of a failed call"),
            (("--errno", "EWHAT", "--iova", "0"), 2, "none that these calls return"),
            (("x", "--errno", "EINVAL"), 2, "not both"),
            (("--iova", "nowhere"), 2, "not a number of bytes"),
        ],
    )
    def test_wrong_input_is_one_sentence(
        self, capsys: Output, arguments: tuple[str, ...], status: int, said: str
    ) -> None:
        assert run("explain", *arguments) == status
        assert said in error_of(capsys)


class TestShow:
    def test_list_names_the_bundled_hosts(self, capsys: Output) -> None:
        assert run("show", "--list") == 0
        assert "amd-epyc-1tb\n" in capsys.readouterr().out

    def test_list_as_json(self, capsys: Output) -> None:
        assert run("show", "--list", "-J") == 0
        assert "amd-epyc-1tb" in json.loads(capsys.readouterr().out)["hosts"]

    def test_facts_are_shown_although_the_aperture_is_not_known(self, capsys: Output) -> None:
        assert run("show", "--host", "arm-hisilicon-d05-group3") == 0
        text = capsys.readouterr().out
        assert "00000000c6010000-00000000c601ffff : msi" in text
        assert "usable: not known" in text

    def test_map_has_no_gap_from_0_to_the_top(self, capsys: Output) -> None:
        assert run("show", "--host", "intel-dmar-8thread-laptop") == 0
        lines = capsys.readouterr().out.splitlines()
        spans = [
            line.split(" : ")[0].split("-") for line in lines if " : " in line and line[0] in "0f"
        ]
        edges = [(int(start, 16), int(last, 16)) for start, last in spans]
        assert edges[0][0] == 0
        assert edges[-1][1] == (1 << 64) - 1
        assert all(above[0] == below[1] + 1 for below, above in pairwise(edges))

    def test_json_has_facts_and_judgement(self, capsys: Output) -> None:
        assert run("show", "--host", "amd-epyc-1tb", "-J") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["host"]["name"] == "amd-epyc-1tb"
        assert found["usable"]["ranges"][1]["last"] == "0xfcffffffff"

    def test_json_without_evidence_says_why(self, capsys: Output) -> None:
        assert run("show", "--host", "s390x-32g", "-J") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["usable"] is None
        assert "none of its facts states" in found["why_not"]


class TestDiff:
    def test_same_host_has_no_difference(self, capsys: Output) -> None:
        assert run("diff", "amd-epyc-1tb", "amd-epyc-1tb") == 0
        assert "no difference" in capsys.readouterr().out

    def test_two_hosts_differ_with_the_cause_on_the_other(self, capsys: Output) -> None:
        assert run("diff", "amd-epyc-1tb", "intel-dmar-i7-2600") == 3
        text = capsys.readouterr().out
        assert (
            "- 0x8000000000-0xfcffffffff (500 GiB); the other: IOMMU dmar0 translates 39 bits"
            in text
        )

    def test_hosts_without_evidence_are_compared_by_their_regions(self, capsys: Output) -> None:
        assert run("diff", "arm-hisilicon-d05-group3", "arm-multisocket-2021", "-J") == 3
        found = json.loads(capsys.readouterr().out)["difference"]
        assert found["reserved regions"]["only_first"] == ["0xc6010000-0xc601ffff msi"]

    def test_two_layouts_differ_by_their_parts(self, capsys: Output, tmp_path: Path) -> None:
        paths = [str(tmp_path / f"{policy}.json") for policy in ("split", "move")]
        for path, policy in zip(paths, ("split", "move"), strict=True):
            base = ("plan", "--host", "amd-epyc-1tb", "--ram", "1.5TiB", "--on-hole", policy)
            assert run(*base, "-o", path) == 0
        capsys.readouterr()
        assert run("diff", *paths) == 3
        assert "- ram high: gpa 0x100000000-0xfcffffffff" in capsys.readouterr().out
        assert run("diff", paths[0], paths[0]) == 0

    def test_host_and_layout_are_not_comparable(self, capsys: Output, tmp_path: Path) -> None:
        path = str(tmp_path / "a.json")
        assert run("plan", "--host", "amd-epyc-1tb", "--ram", "4G", "-o", path) == 0
        capsys.readouterr()
        assert run("diff", path, "amd-epyc-1tb") == 2
        assert "a host and a layout" in error_of(capsys)

    def test_layout_of_a_newer_version_is_refused(self, capsys: Output, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text('{"schema": {"name": "vmm-iova-layout", "version": 99}}')
        assert run("diff", str(path), str(path)) == 5
        assert "layout version 99" in capsys.readouterr().err

    def test_damaged_layout_is_refused(self, capsys: Output, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text('{"schema": {"name": "vmm-iova-layout", "version": 1}, "items": 5}')
        assert run("diff", str(path), str(path)) == 5
        assert "is no layout" in capsys.readouterr().err


class TestCapture:
    def test_capture_and_plan_give_the_answer_of_the_source(
        self, capsys: Output, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "host.json")
        assert run("capture", "--host", "intel-dmar-8thread-laptop", "-o", path) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"CAPTURED: {path} has 2 remapping units")
        assert f"vmm-iova plan --host {path}" in said
        assert "Sure?   the kernel's own range list is not among it" in said
        assert run("show", "--host", path, "-J") == 0
        again = json.loads(capsys.readouterr().out)["usable"]
        assert run("show", "--host", "intel-dmar-8thread-laptop", "-J") == 0
        assert json.loads(capsys.readouterr().out)["usable"]["ranges"] == again["ranges"]

    def test_capture_to_stdout_is_the_document_alone_and_the_answer_stands_beside_it(
        self, capsys: Output
    ) -> None:
        assert run("capture", "--host", "lab-vtd-39") == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)["name"] == "lab-vtd-39"
        assert shown.err.startswith("CAPTURED: 10 IOMMU groups, 13 devices")

    def test_capture_answers_as_json_beside_a_file_only(
        self, capsys: Output, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "host.json")
        assert run("capture", "--host", "lab-vtd-39", "-o", path, "-J") == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["schema"]["name"], answer["certainty"]) == ("vmm-iova-capture", "certain")
        assert run("capture", "--host", "lab-vtd-39", "-J") == 2
        assert "leave out -J" in capsys.readouterr().out

    def test_facts_of_another_file_are_added(self, capsys: Output, tmp_path: Path) -> None:
        ranges = tmp_path / "ranges.txt"
        ranges.write_text("0x0 - 0x7ffffff\n0x8100000 - 0xffffffffffff\n")
        facts = ("--facts", f"ranges:{ranges}")
        arguments = ("--host", "arm-multisocket-2021", *facts, "--ram", "4G")
        assert run("plan", "--machine", "virt", *arguments) == 0
        assert "kernel range list, ranges.txt:1" in capsys.readouterr().out

    def test_facts_about_the_same_group_twice_are_refused(self, capsys: Output) -> None:
        arguments = ("--host", "arm-multisocket-2021", "--facts", "arm-multisocket-2021")
        assert run("show", *arguments) == 5
        assert "which one counts cannot be known" in capsys.readouterr().err

    def test_machine_without_iommu_has_nothing_to_capture(
        self, capsys: Output, tmp_path: Path
    ) -> None:
        (tmp_path / "sys/kernel").mkdir(parents=True)
        assert run("capture", "--sysroot", str(tmp_path)) == 6
        assert "nothing to capture" in error_of(capsys)
        assert run("plan", "--sysroot", str(tmp_path), "--ram", "4G") == 6
        assert "no IOMMU is in use" in error_of(capsys)


class TestWrongInput:
    def test_hostile_text_of_10000_lines_is_one_sentence(
        self, capsys: Output, tmp_path: Path
    ) -> None:
        path = tmp_path / "hostile.txt"
        lines = [
            f"0x{n * 0x2000:016x} 0x{n * 0x2000 - 0x999:016x} direct" for n in range(1, 10_001)
        ]
        path.write_text("\n".join(lines) + "\n")
        assert run("plan", "--host", str(path), "--aperture", "48", "--ram", "4G") == 5
        assert "hostile.txt:1: region last" in error_of(capsys)

    @pytest.mark.slow
    def test_garbage_of_10000_lines_is_one_sentence(self, capsys: Output, tmp_path: Path) -> None:
        path = tmp_path / "garbage.txt"
        path.write_text("what is this \x1b[31m\n" * 10_000)
        assert run("show", "--host", str(path)) == 5
        assert "none of its" in error_of(capsys)

    @pytest.mark.slow
    def test_10000_holes_are_planned_around(self, capsys: Output, tmp_path: Path) -> None:
        path = tmp_path / "many.txt"
        path.write_text(
            "".join(f"0x{n << 24:x} 0x{(n << 24) + 0xFFF:x} reserved\n" for n in range(1, 10_001))
        )
        arguments = ("--aperture", "48", "--granule", "4K", "--ram", "64M", "-J")
        assert run("plan", "--host", str(path), *arguments) == 0
        # 3 between the pieces of RAM, 64 and 2048 in the PCI windows, which QEMU does not move
        assert len(json.loads(capsys.readouterr().out)["guest_reserved"]) == 3 + 64 + 2048

    def test_binary_junk_is_one_sentence(self, capsys: Output, tmp_path: Path) -> None:
        path = tmp_path / "junk.bin"
        path.write_bytes(bytes(range(256)) * 40)
        assert run("plan", "--host", str(path), "--ram", "4G") == 5
        assert "is not text: byte" in error_of(capsys)

    def test_snapshot_of_a_newer_schema_is_one_sentence(
        self, capsys: Output, tmp_path: Path
    ) -> None:
        path = tmp_path / "new.json"
        schema = {"name": "vmm-iova-host", "version": SCHEMA_VERSION + 1}
        path.write_text(json.dumps({"schema": schema}))
        assert run("plan", "--host", str(path), "--ram", "4G") == 5
        assert "is newer than" in error_of(capsys)

    def test_missing_file_is_one_sentence_with_a_guess(self, capsys: Output) -> None:
        assert run("plan", "--host", "amd-epyc-1tv", "--ram", "4G") == 4
        text = capsys.readouterr().err
        assert "is no file, no directory and no bundled host" in text
        assert "did you mean amd-epyc-1tb" in text

    @pytest.mark.parametrize(
        ("arguments", "status", "said"),
        [
            (("plan", "--ram", "64GB"), 2, "1000-based"),
            (("plan", "--ram", "4G", "--machine", "q53"), 4, "no machine model 'q53'"),
            (("plan", "--ram", "4G", "--aperture", "99"), 2, "not a width from 1 to 64"),
            (("plan", "--ram", "4G", "--aperture", "wide"), 2, "not a range"),
            (("plan", "--ram", "4G", "--granule", "3K"), 2, "power of two"),
            (("plan", "--ram", "4G", "-g", "77"), 4, "no group 77"),
            (("plan", "--ram", "4G", "-s", "0000:99:00.0"), 4, "no device 0000:99:00.0"),
            (("plan", "--ram", "4G", "--on-hole", "jump"), 2, "invalid choice"),
            (("plan",), 2, "--ram"),
            (("fly",), 2, "invalid choice"),
            (("check", "--range", "0x1000"), 2, "is not a range"),
            (("check", "--maps", "/no/such/file"), 6, "does not exist"),
            (("show", "--host", "intel-dmar-collected-client-39bit"), 5, "holds 7 hosts"),
            (("show", "--host", "intel-dmar-collected-client-39bit#9"), 4, "holds 7 hosts"),
            (("show", "--sysroot", "/no/such"), 6, "does not exist"),
        ],
    )
    def test_wrong_option_is_one_sentence(
        self, capsys: Output, arguments: tuple[str, ...], status: int, said: str
    ) -> None:
        elsewhere = "--host" not in arguments and "--sysroot" not in arguments
        if arguments and arguments[0] in ("plan", "check") and elsewhere:
            arguments = (*arguments, "--host", "amd-epyc-1tb")
        assert run(*arguments) == status
        assert said in error_of(capsys)

    def test_help_lists_every_exit_status(self, capsys: Output) -> None:
        assert run("--help") == 0
        assert "the facts do not settle it" in capsys.readouterr().out

    def test_defect_is_reported_without_a_traceback(
        self, capsys: Output, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(options, "load_host", broken)
        assert run("show") == 70
        assert "defect of vmm-iova" in capsys.readouterr().err

    def test_interrupt_ends_quietly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(options, "load_host", interrupted)
        assert run("show") == 130


class TestProcess:
    def _run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vmm_iova", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )

    def test_version_names_the_engine(self) -> None:
        done = self._run("--version", VMM_IOVA_ENGINE="pure")
        assert done.stdout == f"vmm-iova {vi.__version__} (pure engine)\n"

    def test_engine_that_does_not_exist_is_one_sentence(self) -> None:
        done = self._run("show", "--list", VMM_IOVA_ENGINE="turbo")
        assert done.returncode == 8
        assert done.stderr.startswith("vmm-iova: error: there is no engine 'turbo'")
        assert "Traceback" not in done.stderr

    @pytest.mark.slow
    def test_reader_that_goes_away_is_no_error(self) -> None:
        command = f'"{sys.executable}" -m vmm_iova show --host amd-epyc-1tb | head -n 1'
        environment = {**os.environ, "VMM_IOVA_ENGINE": "pure"}  # says nothing on stderr
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.slow
    def test_text_from_standard_input_is_read(self) -> None:
        done = subprocess.run(
            f'"{sys.executable}" -m vmm_iova plan --host - --aperture 48 --machine virt --ram 8G',
            shell=True,
            input="0x8000000 0x80fffff msi\n",
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0
        assert "MSI window of the host" in done.stdout

    @pytest.mark.slow
    def test_plan_is_the_same_on_both_engines_byte_for_byte(self, engine: str) -> None:
        arguments = ("plan", "--host", "s390x-32g", "--aperture", "42", "--machine", "s390x")
        pure = self._run(*arguments, "--ram", "8G", "-J", VMM_IOVA_ENGINE="pure")
        other = self._run(*arguments, "--ram", "8G", "-J", VMM_IOVA_ENGINE=engine)
        assert pure.stdout == other.stdout != ""


class TestKernel:
    def test_dry_run_lists_the_calls(self, capsys: Output) -> None:
        arguments = ("--host=amd-epyc-1tb", "--machine=own-x86", "--ram=1.5TiB", "--dry-run")
        assert run("plan", *arguments) == 0
        text = capsys.readouterr().out
        assert "dry run on type1: 3 calls taken, 65532 more are allowed" in text
        assert "map 0x10000000000-0x1837fffffff (high)" in text

    def test_ask_kernel_without_devices_is_refused(self, capsys: Output) -> None:
        assert run("show", "--ask-kernel") == 2
        assert "which devices to attach" in error_of(capsys)

    def test_ask_kernel_where_there_is_no_such_device_says_so(
        self, capsys: Output, tmp_path: Path
    ) -> None:
        group = tmp_path / "sys/kernel/iommu_groups/3"
        (group / "devices/0000:99:00.0").mkdir(parents=True)
        (group / "reserved_regions").write_text("0xfee00000 0xfeefffff msi\n")
        arguments = ("--sysroot", str(tmp_path), "-s", "99:00.0", "--ask-kernel")
        assert run("show", *arguments) == 7
        assert "0000:99:00.0" in error_of(capsys)


@pytest.mark.parametrize("name", parser.ROOMS)
def test_every_command_of_the_help_has_its_own_help(capsys: Output, name: str) -> None:
    assert run(name, "--help") == 0
    text = capsys.readouterr().out
    assert f"usage: vmm-iova {name}" in text
    assert "--json" in text or name == "capture"


def test_name_of_a_command_as_a_value_is_no_command(capsys: Output) -> None:
    assert run("plan", "--host", "show", "--ram", "4G") == 4
    assert "'show' is no file" in error_of(capsys)


def test_dry_run_as_json_is_refused(capsys: Output) -> None:
    assert run("plan", "--host", "amd-epyc-1tb", "--ram", "4G", "--dry-run", "--json") == 2
    assert "does not go with --json" in capsys.readouterr().out


class TestHolesWithoutAWidth:
    """A pasted list of regions names holes, and nothing how wide the IOVA space is."""

    @pytest.fixture
    def host(self, tmp_path: Path) -> str:
        path = tmp_path / "amd.txt"
        path.write_text(
            "0x00000000fee00000 0x00000000feefffff msi\n"
            "0x000000fd00000000 0x000000ffffffffff reserved\n"
        )
        return str(path)

    def test_range_in_a_hole_is_refused_without_a_place_that_is_only_assumed(
        self, host: str, capsys: Output
    ) -> None:
        assert run("check", "--host", host, "--range", "0xfc00000000+8G") == 3
        text = capsys.readouterr().out
        assert text.startswith("NO: 0xfc00000000-0xfdffffffff (8 GiB) overlaps reserved region ")
        assert "move it out of 0xfd00000000-0xffffffffff" in text
        assert "fit at" not in text
        assert "fits there" not in text

    def test_range_in_no_hole_is_not_settled(self, host: str, capsys: Output) -> None:
        ranges = ("--range", "0xfd00000000+4G", "--range", "0x100000000+4G")
        assert run("check", "--host", host, *ranges) == 9
        assert "none of its facts states an aperture" in error_of(capsys)

    def test_call_in_a_hole_is_explained_for_certain(self, host: str, capsys: Output) -> None:
        call = ("--iova", "0xfd00000000", "--size", "1G", "--errno", "EINVAL")
        assert run("explain", *call, "--host", host) == 0
        text = capsys.readouterr().out
        assert text.startswith("CERTAIN: the range 0xfd00000000-0xfd3fffffff (1 GiB) overlaps ")
        assert "LIKELY" not in text

    def test_call_in_no_hole_leaves_the_width(self, host: str, capsys: Output) -> None:
        call = ("--iova", "0x382000000000", "--size", "1G", "--errno", "EINVAL")
        assert run("explain", *call, "--host", host) == 9
        text = capsys.readouterr().out
        assert text.startswith("LIKELY: ")
        assert "beyond the IOMMU's address width" in text
        assert "none of the holes that host" in text
        assert "reserved_regions" not in text

    def test_damaged_selection_is_still_one_error(self, host: str, capsys: Output) -> None:
        assert run("check", "--host", host, "-g", "7", "--range", "0xfd00000000+4G") == 4
        assert "group" in error_of(capsys)
