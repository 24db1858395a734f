# SPDX-License-Identifier: Apache-2.0
"""Folders and archives of snapshots, whole and damaged; and the command that reads them."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vmm_iova as vi
from tests.kit.command import Output, run
from tests.kit.snapshots import snapshot
from vmm_iova import fleet

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three hosts, one of them in a folder of its own."""
    made = tmp_path / "hosts"
    (made / "rack").mkdir(parents=True)
    (made / "b.json").write_bytes(snapshot("b"))
    (made / "a.json").write_bytes(snapshot("a", bits=39))
    (made / "rack/c.json").write_bytes(snapshot("c"))
    (made / ".hidden.json").write_text("{")
    (made / "notes.md").write_text("not a host")
    return made


def names(*specs: str) -> list[str]:
    return [item.name for item in fleet.read_sources(specs)]


class TestRead:
    def test_folder_is_read_by_name_without_what_is_no_snapshot(self, folder: Path) -> None:
        assert names(str(folder)) == ["a.json", "b.json", "rack/c.json"]

    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
    def test_tar_gives_what_the_folder_gives(self, folder: Path, mode: str) -> None:
        path = folder.parent / f"hosts.tar{mode[1:].replace(':', '.')}"
        with tarfile.open(path, mode) as archive:
            archive.add(folder, "hosts")
        found = list(fleet.read_sources([str(path)]))
        assert sorted(item.name for item in found) == [
            "hosts/a.json",
            "hosts/b.json",
            "hosts/rack/c.json",
        ]
        assert all(item.content for item in found)

    def test_zip_gives_what_the_folder_gives(self, folder: Path) -> None:
        path = folder.parent / "hosts.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*.json")):
                archive.write(file, file.relative_to(folder))
        assert names(str(path)) == ["a.json", "b.json", "rack/c.json"]

    def test_archive_that_is_cut_off_keeps_what_came_before(self, folder: Path) -> None:
        path = folder.parent / "hosts.tar"
        with tarfile.open(path, "w") as archive:
            for file in sorted(folder.rglob("*.json")):
                archive.add(file, file.name)
        size = path.stat().st_size
        with path.open("rb+") as file:
            file.truncate(size // 2)
        found = list(fleet.read_sources([str(path)]))
        assert [item.problem for item in found[:-1]] == [None] * (len(found) - 1)
        assert "the archive is damaged" in (found[-1].problem or "")

    @pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip"])
    def test_archive_that_is_none_is_named(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"this is no archive" * 100)
        (found,) = fleet.read_sources([str(tmp_path / name)])
        assert found.name == name
        assert "the archive is damaged" in (found.problem or "")

    def test_links_and_devices_in_a_tar_are_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "odd.tar"
        with tarfile.open(path, "w") as archive:
            link = tarfile.TarInfo("link.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            real = tarfile.TarInfo("../real.json")
            real.size = 2
            archive.addfile(real, io.BytesIO(b"{}"))
        assert names(str(path)) == ["../real.json"]  # a name, and never a path to write to

    def test_zip_gives_each_of_two_members_of_one_name(self, tmp_path: Path) -> None:
        path = tmp_path / "twice.zip"
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's own, about the name
            archive.writestr("a.json", "first")
            archive.writestr("a.json", "second")
        found = [item.content for item in fleet.read_sources([str(path)])]
        assert found == [b"first", b"second"]

    def test_member_of_a_zip_that_does_not_unpack_is_named_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("a.json", random.Random(1).randbytes(1000))
            archive.writestr("b.json", "y" * 1000)
        data = bytearray(path.read_bytes())
        data[45:200] = bytes(155)
        path.write_bytes(data)
        first, second = fleet.read_sources([str(path)])
        assert "could not be unpacked" in (first.problem or "")
        assert second.content == b"y" * 1000

    def test_links_to_folders_are_followed_once(self, folder: Path) -> None:
        (folder / "rack/up").symlink_to(folder)
        (folder / "rack/self").symlink_to("self")
        other = folder.parent / "other"
        other.mkdir()
        (other / "d.json").write_text("{}")
        (folder / "more").symlink_to(other)
        assert names(str(folder)) == ["a.json", "b.json", "more/d.json", "rack/c.json"]

    def test_link_that_leads_nowhere_is_named(self, folder: Path) -> None:
        (folder / "gone.json").symlink_to("nowhere.json")
        (folder / "loop.json").symlink_to("loop.json")
        problems = {item.name: item.problem for item in fleet.read_sources([str(folder)])}
        assert problems["gone.json"] == "could not be read: No such file or directory"
        assert problems["loop.json"] == "could not be read: Too many levels of symbolic links"

    def test_what_is_no_file_is_not_opened(self, folder: Path) -> None:
        os.mkfifo(folder / "pipe.json")  # to open it would wait for ever
        assert "pipe.json" not in names(str(folder))

    def test_folder_inside_that_may_not_be_read_is_named_and_the_rest_is_read(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scan = os.scandir

        def guarded(path: Path) -> object:
            if path.name == "rack":
                raise PermissionError(errno.EACCES, "Permission denied")
            return scan(path)

        monkeypatch.setattr(os, "scandir", guarded)
        *read, last = fleet.read_sources([str(folder)])
        assert [item.name for item in read] == ["a.json", "b.json"]
        assert last == fleet.SourceText(
            "rack", b"", "this folder could not be read: Permission denied"
        )
        with pytest.raises(vi.errors.HostUnavailableError, match="Permission denied"):
            names(str(folder / "rack"))

    def test_name_that_no_terminal_should_print_is_shown_escaped(self, tmp_path: Path) -> None:
        odd = os.fsencode(tmp_path) + b"/\xff\x1b[31m\n.json"
        os.close(os.open(odd, os.O_CREAT))
        assert names(str(tmp_path)) == [r"\xff\x1b[31m\n.json"]

    def test_several_sources_are_told_apart(self, folder: Path) -> None:
        assert names(str(folder / "rack"), "amd-epyc-1tb") == ["rack/c.json", "amd-epyc-1tb"]

    def test_what_does_not_exist_is_said(self) -> None:
        with pytest.raises(vi.errors.UnknownNameError, match="no folder, no file"):
            names("/no/such/folder")


_ENDLESS = """
import itertools, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from vmm_iova import cli, fleet
text = sys.stdin.buffer.read()
def sources(_):
    for n in itertools.count():
        if n == 300:
            print("under way", flush=True)
        yield fleet.SourceText(f"h{n}", text)
fleet.read_sources = sources
sys.exit(cli.main(["fleet", "endless", "--ram=1G", *sys.argv[1:]]))
"""


def stopped(more: list[str], stop: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str]:
    """Run a fleet without an end, stop it once it is under way, and return what it says."""
    with tempfile.TemporaryFile() as given:
        given.write(snapshot())
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, *more],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        stop(process)
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert out == ""
    return process.returncode, said


class TestCommand:
    def test_fleet_that_fits_has_status_0(self, capsys: Output, folder: Path) -> None:
        assert run("fleet", str(folder), "--ram", "16G") == 0
        text = capsys.readouterr().out
        assert "hosts   3 hosts: 3 can have the guest" in text
        assert "answer  one layout fits every host" in text

    def test_host_in_the_way_has_status_3(self, capsys: Output, folder: Path) -> None:
        assert run("fleet", str(folder), "--ram", "1T") == 3
        text = capsys.readouterr().out
        assert "no layout fits every host: 1 host stands in the way, the other 2 share" in text
        assert "1 host (a.json): 1 TiB of RAM does not fit in q35" in text

    def test_damaged_snapshot_is_named_and_has_status_5(self, capsys: Output, folder: Path) -> None:
        (folder / "z.json").write_text('{"')
        assert run("fleet", str(folder), "--ram", "16G") == 5
        text = capsys.readouterr().out
        assert "one layout fits every host, 1 damaged aside" in text
        assert "damaged, not looked at\n  z.json: line 1: is not JSON" in text

    def test_facts_that_do_not_settle_it_have_status_9(self, capsys: Output) -> None:
        assert run("fleet", "amd-epyc-1tb", "s390x-32g", "--ram", "16G") == 9
        assert "none of its facts states an aperture" in capsys.readouterr().out

    def test_answer_as_json_is_whole(self, capsys: Output, folder: Path) -> None:
        assert run("fleet", str(folder), "--ram", "16G", "-J", "--workers", "2") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["schema"]["name"] == "vmm-iova-fleet"
        assert found["complete"] is True
        assert found["layout"]["items"][0]["gpa"]["start"] == "0x0"
        assert sum(item["hosts"] for item in found["classes"]) == 3

    def test_rows_are_written_by_suffix(self, capsys: Output, folder: Path) -> None:
        for suffix in ("csv", "jsonl", "json"):
            path = folder.parent / f"out.{suffix}"
            assert run("fleet", str(folder), "--ram", "16G", "-o", str(path)) == 0
        rows = list(csv.DictReader((folder.parent / "out.csv").read_text().splitlines()))
        assert [row["name"] for row in rows] == ["a.json", "b.json", "rack/c.json"]
        lines = (folder.parent / "out.jsonl").read_text().splitlines()
        assert [json.loads(line)["top_bits"] for line in lines] == [39, 48, 48]
        assert json.loads((folder.parent / "out.json").read_text())["hosts"] == 3

    def test_rows_as_parquet(self, capsys: Output, folder: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet", reason="the extra [fleet] is not there")
        path = folder.parent / "out.parquet"
        assert run("fleet", str(folder), "--ram", "16G", "-o", str(path)) == 0
        table = parquet.read_table(path).to_pylist()
        assert [row["status"] for row in table] == ["fits"] * 3

    def test_parquet_without_its_package_is_one_sentence(
        self, capsys: Output, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        assert run("fleet", str(folder), "--ram", "16G", "-o", "x.parquet") == 2
        text = capsys.readouterr().err
        assert "needs the package pyarrow" in text
        assert "pip install 'vmm-iova[fleet]'" in text

    def test_request_of_plan_is_taken_for_every_host(self, capsys: Output, folder: Path) -> None:
        status = run(
            "fleet",
            str(folder),
            "--machine=own-x86",
            "--node=4G@1GiB",
            "--node=4G",
            "--bar=gpu=16G,required",
            "--bar=old=1M,32",
            "--room=hotplug=8G",
            "--reserve=fb=0x40000000+16M",
            "--phys-bits=39",
            "--pci64=64G",
            "--align=auto",
            "--prefer=fewest",
            "--page-size=2MiB",
            "--groups=1",
            "--also-fit=2",
            "--viommu",
            "-J",
        )
        assert status == 0
        items = json.loads(capsys.readouterr().out)["layout"]["items"]
        assert {"gpu", "old", "hotplug", "fb"} <= {item["name"] for item in items}

    def test_saved_layout_is_kept_on_every_host_or_refused(
        self, capsys: Output, folder: Path
    ) -> None:
        saved = str(folder.parent / "saved.json")
        assert run("plan", "--host", str(folder / "b.json"), "--ram=1T", "-o", saved) == 0
        assert run("fleet", str(folder / "b.json"), "--ram=1T", f"--keep={saved}") == 0
        assert run("fleet", str(folder), "--ram=1T", f"--keep={saved}") == 3
        assert run("fleet", str(folder), "--ram=2G", f"--keep={saved}") == 3
        assert "the saved layout cannot be kept: RAM of 2 GiB instead" in capsys.readouterr().out

    def test_machine_by_architecture_is_said(self, capsys: Output) -> None:
        hosts = ("amd-epyc-1tb", "arm-hisilicon-d05-group3")
        assert run("fleet", *hosts, "--ram", "16G", "--aperture", "48") == 0
        text = capsys.readouterr().out
        assert "machine q35 for 1 host: 1 can have the guest\nmachine virt for 1 host" in text
        assert "(by the architecture of each host; --machine names another)" in text
        assert run("fleet", *hosts, "--ram=16G", "--aperture=48", "--machine=q35") == 3
        text = capsys.readouterr().out
        assert "machine q35\n" in text
        assert "by the architecture" not in text

    def test_empty_file_is_damaged_in_every_form(self, capsys: Output, folder: Path) -> None:
        (folder / "empty.json").touch()
        path = folder.parent / "rows.jsonl"
        assert run("fleet", str(folder), "--ram", "16G", "-J", "-o", str(path)) == 5
        found = json.loads(capsys.readouterr().out)
        said = {
            "name": "empty.json",
            "text": "is empty: nothing was captured",
            "fixes": ["capture that host again"],
        }
        assert found["problems"]["damaged"] == [said]
        assert found["answer"] == "one layout fits every host, 1 damaged aside"
        (row,) = (
            row
            for row in map(json.loads, path.read_text().splitlines())
            if row["name"] == "empty.json"
        )
        assert (row["status"], row["reason"]) == ("damaged", said["text"])
        assert row["fixes"] == "capture that host again"

    @pytest.mark.slow
    def test_ctrl_c_is_one_sentence(self, folder: Path) -> None:
        rows = folder.parent / "rows.csv"
        for more in ([], ["--workers=2"], ["--workers=2", "-o", str(rows)]):
            status, said = stopped(more, lambda process: os.killpg(process.pid, signal.SIGINT))
            assert status == 130
            assert said.startswith("vmm-iova: interrupted after ")
            assert said.count("\n") == 1
        hosts = int(said.split()[3])
        assert said.endswith(f"hosts; {rows} has their rows\n")
        assert len(rows.read_text().splitlines()) == hosts + 1

    @pytest.mark.slow
    def test_worker_that_is_killed_is_one_sentence(self) -> None:
        def kill(process: subprocess.Popen[str]) -> None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children.split()[0]), signal.SIGKILL)

        status, said = stopped(["--workers=2"], kill)
        assert status == 6
        assert said.startswith("vmm-iova: error: a worker died: ")
        assert "--workers 1" in said
        assert "Traceback" not in said

    @pytest.mark.parametrize(
        ("arguments", "status", "said"),
        [
            (("--ram", "16G", "-o", "x.png"), 2, "none of .parquet"),
            (("--ram", "16G", "-o", "/no/such/x.csv"), 6, "could not be written"),
            (("--ram", "16G", "--workers", "0"), 2, "workers 0 is not"),
            (("--ram", "16GB"), 2, "1000-based"),
            (("--ram", "16G", "--machine", "q53"), 4, "no machine model"),
            ((), 2, "the size of the RAM (--ram, or nodes) is missing"),
            (("--ram", "16G", "--bar", "gpu"), 2, "is not NAME=..."),
            (("--ram", "16G", "--keep", "/no/such.json"), 6, "/no/such.json does not exist"),
            (("--ram", "16G", "--class", "gpu"), 2, "class 'gpu' is not 2, 4 or 6 hex digits"),
            (("--ram", "16G", "--groups", ","), 2, "groups names none"),
            (("--ram", "16G", "--phys-bits", "20"), 2, "phys_bits 20"),
        ],
    )
    def test_wrong_option_is_one_sentence(
        self, capsys: Output, folder: Path, arguments: tuple[str, ...], status: int, said: str
    ) -> None:
        assert run("fleet", str(folder), *arguments) == status
        assert said in capsys.readouterr().err

    def test_empty_folder_is_said(self, capsys: Output, tmp_path: Path) -> None:
        assert run("fleet", str(tmp_path), "--ram", "16G") == 6
        assert "no snapshot in it" in capsys.readouterr().err

    @pytest.mark.slow
    def test_workers_and_order_do_not_change_what_is_printed(self, folder: Path) -> None:
        def printed(*arguments: str) -> bytes:
            command = [sys.executable, "-m", "vmm_iova", "fleet", *arguments, "--ram", "1T", "-J"]
            done = subprocess.run(command, capture_output=True, env={**os.environ})
            assert done.returncode == 3, done.stderr
            return done.stdout

        assert printed(str(folder)) == printed(str(folder), "--workers", "2")
