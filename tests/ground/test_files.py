# SPDX-License-Identifier: Apache-2.0
"""The one place that opens files."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vmm_iova import files
from vmm_iova.errors import HostDataError, HostUnavailableError
from vmm_iova.files import Tree, is_there, read_bytes, write_text


def endless(path: Path) -> Path:
    """A sparse file that no memory holds."""
    with path.open("wb") as file:
        file.truncate(1 << 40)
    return path


# -- one file ------------------------------------------------------------------------------------


def test_regular_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100_000)
    assert read_bytes(path, 100_000) == b"x" * 100_000
    with pytest.raises(HostDataError, match="is larger than 0x1869f bytes"):
        read_bytes(path, 99_999)


def test_fifo_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HostUnavailableError, match="pipe is a FIFO, and only regular") as caught:
        read_bytes(tmp_path / "pipe")
    assert caught.value.errno == errno.EINVAL


def test_device_and_socket_are_named_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    opens = os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(a[0]) or opens(*a, **k))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        for path, kind in ((Path("/dev/zero"), "a device"), (tmp_path / "s", "a socket")):
            with pytest.raises(HostUnavailableError, match=f"is {kind}, and only regular"):
                read_bytes(path)
    assert opened == []


def test_file_that_became_a_fifo_meanwhile_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    regular = (tmp_path / "f").stat()
    monkeypatch.setattr(os, "stat", lambda *a, **k: regular)
    with pytest.raises(HostUnavailableError, match="is a FIFO"):
        read_bytes(tmp_path / "pipe")


def test_sparse_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(HostDataError, match="sparse is larger than 8 MiB"):
        read_bytes(endless(tmp_path / "sparse"))


def test_file_that_grows_while_it_is_read_stops_at_the_limit(monkeypatch) -> None:
    # As files of /proc, whose size says nothing.
    monkeypatch.setattr(files, "LARGEST", 8)
    with pytest.raises(HostDataError, match="larger"):
        read_bytes(Path("/proc/self/status"))


@pytest.mark.parametrize(
    ("name", "words"),
    [("/no/such", "does not exist"), ("/etc", "Is a directory"), ("a\0b", "is no name of a file")],
)
def test_name_that_is_no_file_is_said_in_one_line(name: str, words: str) -> None:
    with pytest.raises(HostUnavailableError, match=words) as caught:
        read_bytes(Path(name))
    assert caught.value.errno
    assert caught.value.message.isprintable()


def test_is_there_takes_any_name() -> None:
    assert not any(map(is_there, map(Path, ("a\0b", "x" * 5000, "\ud800", "/no/such"))))
    assert is_there(Path("/"))


def test_pipe_that_the_shell_passes_is_read_like_standard_input() -> None:
    program = "from vmm_iova.files import *; print(read_bytes(Path('/dev/fd/0'), 5))"
    done = subprocess.run(
        [sys.executable, "-c", program], input=b"facts", capture_output=True, check=True
    )
    assert done.stdout == b"b'facts'\n"
    done = subprocess.run([sys.executable, "-c", program], input=b"facts.", capture_output=True)
    assert b"/dev/fd/0 is larger" in done.stderr


# -- a tree --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory `box` with a file, and beside it what is nobody's business."""
    (tmp_path / "box/sub").mkdir(parents=True)
    (tmp_path / "box/sub/f").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    (tmp_path / "box-too").mkdir()
    (tmp_path / "box-too/f").write_text("outside")
    return tmp_path / "box"


def test_link_inside_the_tree_is_followed(tree: Path) -> None:
    (tree / "l").symlink_to("sub")
    assert Tree(tree).read("l/f", 10) == b"inside"
    assert Tree(tree).names("l") == ["f"]


@pytest.mark.parametrize(
    "target", ["/etc/hostname", "../secret", "../box-too/f", "sub/../../secret", "up"]
)
def test_link_out_of_the_tree_is_not_followed(tree: Path, target: str) -> None:
    (tree / "up").symlink_to("../secret")
    (tree / "l").symlink_to(target)
    with pytest.raises(OSError, match="leads out of the tree") as caught:
        Tree(tree).read("l", 100)
    assert caught.value.errno == errno.EXDEV
    assert not Tree(tree).holds("l")


def test_path_out_of_the_tree_is_not_followed(tree: Path) -> None:
    for path in ("../secret", "sub/../../secret", "/etc/hostname"):
        with pytest.raises(OSError, match="leads out of the tree"):
            Tree(tree).read(path, 100)


def test_folder_that_is_a_link_out_of_the_tree_is_not_listed(tree: Path) -> None:
    (tree / "d").symlink_to("..")
    with pytest.raises(OSError, match="leads out of the tree"):
        Tree(tree).names("d")
    assert Tree(tree).link("d/box-too") is None


def test_tree_behind_a_link_is_its_own_top(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to("box")
    assert Tree(tmp_path / "alias").read("sub/f", 10) == b"inside"


def test_circle_of_links_is_not_followed(tree: Path) -> None:
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("a")
    with pytest.raises(OSError, match="circle of links"):
        Tree(tree).read("a", 10)


def test_fifo_device_and_sparse_file_in_a_tree_are_left_alone(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    endless(tree / "sparse")
    (tree / "zero").symlink_to("/dev/zero")
    for name, number in (
        ("pipe", errno.EINVAL),
        ("sparse", errno.EFBIG),
        ("zero", errno.EXDEV),
        ("sub", errno.EISDIR),
        ("none", errno.ENOENT),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            Tree(tree).read(name, 4096)
        assert caught.value.errno == number, name


def test_file_at_its_limit_is_read_and_one_byte_more_is_not(tree: Path) -> None:
    assert Tree(tree).read("sub/f", 6) == b"inside"
    with pytest.raises(OSError, match="larger"):
        Tree(tree).read("sub/f", 5)


def test_all_files_of_a_tree_together_are_bounded(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST", 20)
    small = Tree(tree)
    for _ in range(3):
        small.read("sub/f", 6)
    with pytest.raises(HostDataError, match="this is no copy of /sys"):
        small.read("sub/f", 6)


def test_names_in_a_folder_are_bounded_sorted_and_one_line(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tree / "sub" / os.fsdecode(b"a\xff\n\x1b")
    odd.touch()
    assert Tree(tree).names("sub") == [r"a\xff\n\x1b", "f"]
    monkeypatch.setattr(files, "_MOST_NAMES", 2)
    assert len(Tree(tree).names("sub")) == 2
    (tree / "sub/g").touch()
    with pytest.raises(OSError, match="more than 2 entries"):
        Tree(tree).names("sub")


def test_link_is_told_by_its_last_component_alone(tree: Path) -> None:
    (tree / "driver").symlink_to("../../nowhere/vfio-pci")
    assert Tree(tree).link("driver") == "vfio-pci"
    assert Tree(tree).link("sub") is None
    assert Tree(tree).link("none") is None


def test_everything_is_inside_of_the_root() -> None:
    assert Tree(Path("/")).holds("proc/self/status")
    assert Tree(Path("/")).read("proc/sys/kernel/ostype", 100) == b"Linux\n"


# -- writing -------------------------------------------------------------------------------------


def test_file_is_written_whole_with_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "o"
    write_text(str(path), "µ\ud800\n")
    assert path.read_bytes() == "µ\\ud800\n".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert [item.name for item in tmp_path.iterdir()] == ["o"]


def test_file_that_was_there_keeps_its_permissions_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "o").write_text("old")
    (tmp_path / "o").chmod(0o640)
    (tmp_path / "l").symlink_to("o")
    write_text(str(tmp_path / "l"), "new")
    assert (tmp_path / "l").is_symlink()
    assert (tmp_path / "o").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "o").stat().st_mode) == 0o640


def test_interruption_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "o").write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(str(tmp_path / "o"), "new")
    assert (tmp_path / "o").read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["o"]


def test_device_and_fifo_are_written_to_as_they_are(tmp_path: Path) -> None:
    write_text("/dev/null", "x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(str(tmp_path / "pipe"), "x")
    reader.join(10)
    assert got == ["x"]


@pytest.mark.parametrize("name", ["/no/such/o", "/", "a\0b", "/proc/version"])
def test_file_that_cannot_be_written_is_said_in_one_sentence(name: str) -> None:
    with pytest.raises(HostUnavailableError, match="could not be written") as caught:
        write_text(name, "x")
    assert caught.value.errno
    assert caught.value.message.isprintable()
