# SPDX-License-Identifier: Apache-2.0
"""Lists as tables: columns, headings, raw and pairs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import vmm_iova as vi
from tests.kit.command import Output, error_of, run
from vmm_iova.host.load import bundled_text

MACHINES = list(vi.machine_names())


def printed(output: Output, *command: str, status: int = 0) -> list[str]:
    assert run(*command) == status
    return output.readouterr().out.splitlines()


def test_machines_have_a_line_each_and_columns_that_line_up(capsys: Output) -> None:
    head, *rows = printed(capsys, "machines")
    assert [row.split()[0] for row in rows] == MACHINES
    for title in ("ARCH", "RAM-FROM", "GAP32", "PCI64", "LIMITS", "TITLE"):
        assert all(row[head.index(title) - 1] == " " for row in rows)
        assert all(row[head.index(title)] != " " for row in rows)


def test_columns_are_those_that_are_named_in_their_order(capsys: Output) -> None:
    head, *rows = printed(capsys, "machines", "--columns", "arch,name")
    assert head.split() == ["ARCH", "NAME"]
    assert [row.split()[1] for row in rows] == MACHINES


def test_noheadings_leaves_the_rows(capsys: Output) -> None:
    assert printed(capsys, "machines", "--columns", "NAME", "--noheadings") == MACHINES


def test_raw_has_one_field_a_column_whatever_is_in_it(capsys: Output) -> None:
    rows = printed(capsys, "machines", "--raw")
    assert {len(row.split(" ")) for row in rows} == {7}
    assert "QEMU\\x20q35" in "".join(rows)


def test_pairs_are_words_of_a_shell(capsys: Output) -> None:
    rows = printed(capsys, "machines", "--pairs", "--columns", "NAME,RAM-FROM,TITLE")
    for row, name in zip(rows, MACHINES, strict=True):
        found = dict(word.split("=", 1) for word in shlex.split(row))
        assert list(found) == ["NAME", "RAM_FROM", "TITLE"]
        assert found["NAME"] == name
        assert found["TITLE"] == vi.load_machine(name).title


def test_one_machine_as_a_row(capsys: Output) -> None:
    columns = ("--columns", "NAME,ARCH", "--raw", "--noheadings")
    assert printed(capsys, "machines", "q35", *columns) == ["q35 x86_64"]


def test_show_list_is_names_alone_or_a_table(capsys: Output) -> None:
    assert printed(capsys, "show", "--list") == list(vi.bundled_hosts())
    columns = ("--columns", "NAME,GROUPS,ARCH", "--noheadings", "--raw")
    rows = [line.split(" ") for line in printed(capsys, "show", "--list", *columns)]
    assert [row[0] for row in rows] == list(vi.bundled_hosts())
    found = {name: groups for name, groups, _ in rows}
    name = "lab-vtd-iommufd"
    assert found[name] == str(len(vi.load_host(name).groups))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_fleet_prints_its_hosts_in_place_of_the_answer(
    workers: str, tmp_path: Path, capsys: Output
) -> None:
    folder = tmp_path / "hosts"
    folder.mkdir()
    for host in ("amd-epyc-1tb", "intel-dmar-i7-2600"):
        (folder / f"{host}.txt").write_text(bundled_text(host) or "")
    rows = tmp_path / "rows.csv"
    command = ("fleet", str(folder), "--machine", "q35", "--ram", "600G", "--workers", workers)
    lines = printed(
        capsys, *command, "-o", str(rows), "--columns", "NAME,STATUS", "--noheadings", status=3
    )
    found = dict(sorted(line.rsplit(maxsplit=1) for line in lines))
    assert list(found.values()) == ["fits", "refused"]
    assert len(rows.read_text().splitlines()) == 3  # the file has them, too


def test_pairs_of_hostile_name_cannot_leave_their_quotes(tmp_path: Path, capsys: Output) -> None:
    folder = tmp_path / "hosts"
    folder.mkdir()
    (folder / 'a" $(id) `id` \\ \n.txt').write_text(bundled_text("amd-epyc-1tb") or "")
    lines = printed(capsys, "fleet", str(folder), "--ram", "8G", "--pairs", "--columns", "NAME")
    assert len(lines) == 1
    inside = lines[0].removeprefix('NAME="').removesuffix('"')
    assert not set('"$`') & set(inside)
    assert len(shlex.split(lines[0])) == 1


def test_unknown_column_is_refused_with_the_nearest(capsys: Output) -> None:
    assert run("machines", "--columns", "NAME,ARHC") == 2
    assert "did you mean ARCH?" in capsys.readouterr().err
    assert run("machines", "--columns", ",") == 2
    assert "names no column" in error_of(capsys)


@pytest.mark.parametrize(
    "switch", [("--raw",), ("--pairs",), ("--noheadings",), ("--columns", "NAME")]
)
def test_table_of_json_is_refused(switch: tuple[str, ...], capsys: Output) -> None:
    assert run("machines", "-J", *switch) == 2
    assert f"{switch[0]} is about a table" in capsys.readouterr().out


def test_raw_and_pairs_together_are_refused(capsys: Output) -> None:
    assert run("machines", "--raw", "--pairs") == 2
    assert "not allowed with argument" in error_of(capsys)


def test_columns_without_list_are_refused(capsys: Output) -> None:
    assert run("show", "--host", "amd-epyc-1tb", "--raw") == 2
    assert "columns are those of --list" in error_of(capsys)
