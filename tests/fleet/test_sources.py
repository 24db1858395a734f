# SPDX-License-Identifier: Apache-2.0
"""Folders and archives of snapshots, whole and damaged; and the command that reads them."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from fleet_kit import snapshot

import vmm_iova as vi
from vmm_iova import cli, fleet

if TYPE_CHECKING:
    from pathlib import Path

Output = pytest.CaptureFixture[str]


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

    def test_several_sources_are_told_apart(self, folder: Path) -> None:
        assert names(str(folder / "rack"), "amd-epyc-1tb") == ["rack/c.json", "amd-epyc-1tb"]

    def test_what_does_not_exist_is_said(self) -> None:
        with pytest.raises(vi.UnknownNameError, match="no folder, no file"):
            names("/no/such/folder")


def run(*arguments: str) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


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
        assert "1 host (a.json): q35 RAM of 1 TiB does not fit" in text

    def test_damaged_snapshot_is_named_and_has_status_5(self, capsys: Output, folder: Path) -> None:
        (folder / "z.json").write_text('{"')
        assert run("fleet", str(folder), "--ram", "16G") == 5
        text = capsys.readouterr().out
        assert "one layout fits every host, 1 damaged aside" in text
        assert "damaged, not looked at\n  z.json: line 1: is not JSON" in text

    def test_facts_that_do_not_settle_it_have_status_9(self, capsys: Output) -> None:
        assert run("fleet", "amd-epyc-1tb", "s390x-32g", "--ram", "16G") == 9
        assert "a width is not guessed" in capsys.readouterr().out

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

    @pytest.mark.parametrize(
        ("arguments", "status", "said"),
        [
            (("--ram", "16G", "-o", "x.png"), 2, "none of .parquet"),
            (("--ram", "16G", "-o", "/no/such/x.csv"), 6, "could not be written"),
            (("--ram", "16G", "--workers", "0"), 2, "workers 0 is not"),
            (("--ram", "16GB"), 2, "1000-based"),
            (("--ram", "16G", "--machine", "q53"), 4, "no machine model"),
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

    def test_workers_and_order_do_not_change_what_is_printed(self, folder: Path) -> None:
        def printed(*arguments: str) -> bytes:
            command = [sys.executable, "-m", "vmm_iova", "fleet", *arguments, "--ram", "1T", "-J"]
            done = subprocess.run(command, capture_output=True, env={**os.environ})
            assert done.returncode == 3, done.stderr
            return done.stdout

        assert printed(str(folder)) == printed(str(folder), "--workers", "2")
