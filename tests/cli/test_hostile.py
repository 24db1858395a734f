# SPDX-License-Identifier: Apache-2.0
"""The command on what strangers send: no terminal is taken over, no line forged, no exit 70."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.dom.minidom
from pathlib import Path

import pytest

from tests.kit.command import Output, run
from vmm_iova.host.load import load_host
from vmm_iova.host.snapshot import dump_snapshot

EVIL = "evil\x1b[2J\x1b]0;pwn\x07\n0x0-0xffffffffffffffff forged\u202e"
REGION = "0x0000000008000000 0x00000000080fffff msi\n"


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    """A snapshot in which every text that a stranger may choose is hostile."""
    data = json.loads(dump_snapshot(load_host("lab-amd-vi"), "test"))
    data["name"] = data["origin"] = data["release"] = EVIL
    data["notes"] = [{"text": EVIL, "warning": True}]
    first = data["groups"][0]
    data["devices"].append({**data["devices"][0], "name": EVIL, "driver": EVIL})
    first["devices"] = [EVIL]
    for group in data["groups"]:
        for region in group["reserved_regions"] or ():
            region["source"] = f"{EVIL}:7"
        group["type"] = EVIL
    first["reserved_regions"].append(
        {"start": "0x1000000000", "last": "0x1fffffffff", "type": EVIL, "source": EVIL}
    )
    for unit in data["iommus"]:
        unit["source"] = EVIL
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(data))
    return str(path)


COMMANDS = (
    ("show", "--host", "{}"),
    ("plan", "--host", "{}", "--ram", "200G"),
    ("plan", "--host", "{}", "--ram", "200G", "--format", "iomem"),
    ("plan", "--host", "{}", "--ram", "200G", "--format", "e820"),
    ("plan", "--host", "{}", "--ram", "200G", "--machine", "virt", "--format", "dts"),
    ("check", "--host", "{}", "--range", "0x1000000000+4G"),
    ("explain", "--host", "{}", "vfio_dma_map(0x5, 0x1000000000, 0x10000000, 0x7) = -22"),
    ("diff", "{}", "amd-epyc-1tb"),
    ("fleet", "{}", "--ram", "200G"),
    ("capture", "--host", "{}"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "-".join(command[:1]))
def test_terminal_gets_no_control_and_no_line_of_a_stranger(
    capsys: Output, hostile: str, command: tuple[str, ...]
) -> None:
    status = run(*(part.format(hostile) for part in command))
    out, err = capsys.readouterr()
    assert status in (0, 1, 3, 9), err
    assert out
    for line in (out + err).splitlines():
        assert line.replace("\t", " ").isprintable()
        assert not line.startswith("0x0-0xffffffffffffffff")


def test_list_that_programs_read_has_ranges_of_the_layout_alone(
    capsys: Output, hostile: str
) -> None:
    assert run("plan", "--host", hostile, "--ram", "1.5T", "--format", "exclude") in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert "0x0-0xffffffffffffffff" not in [line.split(" ")[0] for line in lines]
    layout = ("plan", "--host", hostile, "--ram", "1.5T", "-J")
    run(*layout)
    ranges = json.loads(capsys.readouterr().out)["guest_reserved"]
    assert len(lines) == len(ranges)


def test_picture_of_a_hostile_host_is_well_formed(
    capsys: Output, hostile: str, tmp_path: Path
) -> None:
    run("plan", "--host", hostile, "--ram", "200G", "-o", str(tmp_path / "o.svg"))
    xml.dom.minidom.parse(str(tmp_path / "o.svg"))


@pytest.mark.parametrize("char", [chr(code) for code in (*range(1, 9), 27, 127, 0x9B, 0xFFFE)])
def test_picture_with_any_control_in_a_region_is_well_formed(
    capsys: Output, tmp_path: Path, char: str
) -> None:
    # The words "then: ..." above the last item were not cleaned.
    text = f"{REGION}0x0000002080000000 0x000000209fffffff x{char}[2Jy\n"
    (tmp_path / "h.txt").write_text(text)
    command = ("plan", "--host", str(tmp_path / "h.txt"), "--aperture", "48", "--machine", "q35")
    assert run(*command, "--ram", "4G", "-o", str(tmp_path / "o.svg")) == 0
    document = xml.dom.minidom.parse(str(tmp_path / "o.svg")).toxml()
    assert char not in document


def test_name_of_a_file_reaches_no_terminal_as_it_is(capsys: Output, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\x1b[31m\n\xff.txt")
    path.write_text(REGION)
    for command in (("show", "--aperture", "48", "--host"), ("show", "--host")):
        run(*command, str(path))
        assert r"\x1b[31m\n\xff.txt" in capsys.readouterr().out
    for option in ("--host", "--facts", "--machine", "--keep"):
        run("plan", "--ram", "1G", option, str(tmp_path / "\x1b[31m\nno.json"))
        err = capsys.readouterr().err
        assert "\x1b" not in err
        assert "\nno" not in err


def test_option_of_the_user_is_no_way_to_the_terminal(capsys: Output) -> None:
    for arguments in (
        ("plan", "--host", "amd-epyc-1tb", "--ram", "8G", "--bar", "\x1b[2J\n=1G"),
        ("plan", "--host", "amd-epyc-1tb", "--ram", "\x1b[2J\n"),
        ("plan", "--host", "\x1b[2J\n", "--ram", "1G"),
        ("show", "--\x1b[2J"),
        ("\x1b[2J",),
        ("explain", "--errno", "\x1b[2J"),
        ("machines", "\x1b[2J\n"),
        ("show", "--host", "amd-epyc-1tb", "-g", "\x1b[2J"),
    ):
        run(*arguments)
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err, arguments


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict", "utf-8:strict"])
@pytest.mark.parametrize("name", [r"\ud800", "µ", "名\u202e"])
def test_strict_locale_prints_what_it_can_and_escapes_the_rest(
    tmp_path: Path, encoding: str, name: str
) -> None:
    data = json.loads(dump_snapshot(load_host("lab-vtd-48"), "test"))
    text = json.dumps({**data, "name": "NAME"}).replace("NAME", name)
    (tmp_path / "h.json").write_text(text, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "vmm_iova", "show", "--host", str(tmp_path / "h.json")],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode in (0, 1), done.stderr
    done.stdout.decode(encoding.partition(":")[0], "strict")


@pytest.mark.parametrize(
    "device",
    ["²", "٣", "1" * 5000, "\udcff"],
    ids=["superscript", "arabic", "5000-digits", "no-utf-8"],
)
def test_group_or_device_that_is_a_number_to_some_is_a_name(
    capsys: Output, tmp_path: Path, device: str
) -> None:
    text = f"/sys/bus/pci/devices/{device}/iommu_group/reserved_regions:{REGION}"
    (tmp_path / "h.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    status = run("show", "--host", str(tmp_path / "h.txt"), "--aperture", "48")
    assert status == (5 if device == "\udcff" else 0)
    data = json.loads(dump_snapshot(load_host("lab-vtd-48"), "test"))
    for group in data["groups"]:
        group["id"] = device if group["id"] == "1" else group["id"]
    (tmp_path / "h.json").write_text(json.dumps(data))
    assert run("show", "--host", str(tmp_path / "h.json")) in (0, 1)
    capsys.readouterr()
    assert run("show", "--host", str(tmp_path / "h.json"), "-g", device) in (0, 1, 4)
    (tmp_path / "more.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert run("show", "--host", "lab-vtd-48", "--facts", str(tmp_path / "more.txt")) in (0, 1, 5)
    assert "defect" not in capsys.readouterr().err


@pytest.mark.parametrize("number", ["1" * 5000, "²", "٣", "-1", "", "0"])
def test_number_behind_a_host_that_is_none_is_a_name(capsys: Output, number: str) -> None:
    assert run("show", "--host", f"amd-epyc-1tb#{number}") == 4
    assert "defect" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema":' * 100_000,
        '{"schema": ' + "9" * 5000 + "}",
        "{" * 3,
        '{"a": 1e9}',
    ],
    ids=["lists", "objects", "digits", "cut", "other"],
)
def test_json_that_is_beyond_reason_is_malformed(capsys: Output, tmp_path: Path, text: str) -> None:
    path = str(tmp_path / "deep.json")
    Path(path).write_text(text)
    assert run("plan", "--host", "amd-epyc-1tb", "--ram", "8G", "--keep", path) == 5
    assert run("diff", path, path) == 5
    assert run("show", "--host", path) == 5
    assert run("fleet", path, "--ram", "8G") == 5
    out, err = capsys.readouterr()
    assert "defect" not in out + err


FILE_OPTIONS = (
    ("show", "--host", "{}"),
    ("show", "--host", "amd-epyc-1tb", "--facts", "{}"),
    ("plan", "--host", "amd-epyc-1tb", "--ram", "8G", "--machine", "{}"),
    ("plan", "--host", "amd-epyc-1tb", "--ram", "8G", "--keep", "{}"),
    ("machines", "{}"),
    ("check", "--host", "amd-epyc-1tb", "--maps", "{}"),
    ("explain", "--file", "{}"),
    ("diff", "amd-epyc-1tb", "{}"),
    ("fleet", "--ram", "8G", "{}"),
)


@pytest.mark.parametrize("command", FILE_OPTIONS, ids=lambda command: "-".join(command[:-1]))
@pytest.mark.parametrize("kind", ["fifo", "device", "sparse", "folder", "loop"])
def test_file_option_reads_regular_files_of_bounded_size_alone(
    capsys: Output, tmp_path: Path, command: tuple[str, ...], kind: str
) -> None:
    suffix = ".toml" if command[-2] == "--machine" or command[0] == "machines" else ".json"
    path = tmp_path / f"x{suffix}"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.mkdir()
    status = run(*(part.format(path) for part in command))
    out, err = capsys.readouterr()
    assert status in (4, 5, 6), (out, err)
    assert "defect" not in out + err
