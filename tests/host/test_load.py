# SPDX-License-Identifier: Apache-2.0
"""Getting a host from wherever it is."""

import errno
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.kit.hosts import MSI, MSI_LINE, spans
from vmm_iova import files
from vmm_iova.errors import HostDataError, HostUnavailableError, IovaError, UnknownNameError
from vmm_iova.host.load import bundled_hosts, load_host
from vmm_iova.host.snapshot import dump_snapshot

SEVERAL = "intel-dmar-collected-client-39bit"  # seven machines
TWO = "# kind: dmar_dmesg (collection)\n" + "\n\n".join(
    f"DMAR: RMRR base: 0x0000000{n}000000 end: 0x0000000{n}0fffff" for n in (1, 2)
)


@pytest.fixture
def put(tmp_path):
    """Write a file and return its path as text."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def stdin(monkeypatch):
    def feed(content):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    return feed


def region_spans(host):
    return spans(region.range for group in host.groups for region in group.regions)


# -- bundled -------------------------------------------------------------------------------------


def test_bundled_names_are_sorted_and_without_suffix():
    names = bundled_hosts()
    assert list(names) == sorted(names)
    assert "amd-epyc-1tb" in names
    assert not [name for name in names if name.endswith((".txt", ".json"))]


def test_bundled_name_gives_its_host():
    assert load_host("amd-epyc-1tb").name == "amd-epyc-1tb"


@pytest.mark.parametrize("number", [1, 2, 7])
def test_number_picks_a_host_of_several(number):
    assert load_host(f"{SEVERAL}#{number}").name == f"{SEVERAL}#{number}"


def test_several_hosts_without_a_number_are_refused_with_the_choices():
    with pytest.raises(HostDataError, match="holds 7 hosts") as caught:
        load_host(SEVERAL)
    assert f"{SEVERAL}#7" in caught.value.hint


@pytest.mark.parametrize("spec", [f"{SEVERAL}#0", f"{SEVERAL}#8", "amd-epyc-1tb#2"])
def test_number_beyond_the_hosts_is_unknown(spec):
    with pytest.raises(UnknownNameError) as caught:
        load_host(spec)
    assert caught.value.exit_code == 4


def test_number_one_of_a_single_host_is_that_host():
    assert load_host("amd-epyc-1tb#1") == load_host("amd-epyc-1tb")


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("amd-epyc-1tbb", "amd-epyc-1tb"),
        ("s390-32g", "s390x-32g"),
        ("s390x-32g.txt", "s390x-32g"),
        ("intel-dmar-ivybridge-3770", "intel-dmar-ivy-bridge-3770"),
    ],
)
def test_misspelt_name_is_unknown_and_the_hint_names_the_right_one(spec, meant):
    with pytest.raises(UnknownNameError) as caught:
        load_host(spec)
    assert meant in caught.value.hint
    assert (caught.value.name, caught.value.known) == (spec, bundled_hosts())


def test_name_like_nothing_is_unknown_with_a_hint():
    with pytest.raises(UnknownNameError) as caught:
        load_host("zzz")
    assert caught.value.hint


@pytest.mark.parametrize("spec", ["/no/such/file", "missing.txt", "dir/amd-epyc-1tb", "h.json"])
def test_file_that_is_not_there_is_unavailable(spec):
    with pytest.raises(HostUnavailableError, match="does not exist") as caught:
        load_host(spec)
    assert (caught.value.errno, caught.value.exit_code) == (errno.ENOENT, 6)


@pytest.mark.parametrize(
    "spec",
    ["x" * 5000, "a\0b", "#", "#1", "amd-epyc-1tb/"],
    ids=["longer-than-a-path", "nul", "hash", "hash-one", "slash"],
)
def test_impossible_name_is_one_clear_error(spec):
    with pytest.raises((UnknownNameError, HostUnavailableError)):
        load_host(spec)


# -- files ---------------------------------------------------------------------------------------


def test_text_file_gives_its_host_under_its_name(put):
    found = load_host(put("paste.txt", MSI_LINE))
    assert (found.name, region_spans(found)) == ("paste.txt", [(MSI.start, MSI.last)])


def test_path_object_is_as_good_as_text(put):
    assert load_host(Path(put("paste.txt", MSI_LINE))).name == "paste.txt"


def test_file_with_a_number_picks_a_host(put):
    assert spans(r.range for r in load_host(put("two.txt", TWO) + "#2").log_regions) == [
        (0x2000000, 0x20FFFFF)
    ]


def test_file_with_a_hash_in_its_name_is_found(put):
    assert region_spans(load_host(put("box#1", MSI_LINE))) == [(MSI.start, MSI.last)]


def test_file_wins_over_a_bundled_host_of_the_same_name(put, tmp_path, monkeypatch):
    put("amd-epyc-1tb", MSI_LINE)
    monkeypatch.chdir(tmp_path)
    assert region_spans(load_host("amd-epyc-1tb")) == [(MSI.start, MSI.last)]


def test_snapshot_file_gives_the_host(put):
    host = load_host("amd-epyc-1tb")
    assert load_host(put("box.json", dump_snapshot(host, "test"))) == host


def test_snapshot_with_a_number_beyond_it_is_unknown(put):
    # not one host handed out for another
    path = put("box.json", dump_snapshot(load_host("amd-epyc-1tb"), "test"))
    with pytest.raises(UnknownNameError):
        load_host(f"{path}#2")


@pytest.mark.parametrize("form", ["text", "snapshot"])
def test_byte_order_mark_is_passed_over(put, form):
    text = {"text": MSI_LINE, "snapshot": dump_snapshot(load_host("amd-epyc-1tb"), "test")}[form]
    found = load_host(put("bom", b"\xef\xbb\xbf" + text.encode()))
    assert region_spans(found)[0] == (MSI.start, MSI.last)


def test_crlf_file_is_read(put):
    assert region_spans(load_host(put("dos.txt", MSI_LINE.replace("\n", "\r\n")))) == [
        (MSI.start, MSI.last)
    ]


@pytest.mark.parametrize(
    "content",
    [
        MSI_LINE.encode() + b"\0",
        b"\x7fELF\x02\x01\x01\0\0",
        MSI_LINE.encode("utf-16"),  # a redirect of PowerShell
        b"\x89PNG\r\n\x1a\n",
        b"\xff" * 100,
        b"\0" * 100,
    ],
    ids=["trailing-nul", "elf", "utf-16", "png", "ff", "nul"],
)
def test_file_that_is_not_text_is_malformed_in_one_sentence(put, content):
    path = put("binary", content)
    with pytest.raises(HostDataError, match="is not text") as caught:
        load_host(path)
    assert caught.value.exit_code == 5
    assert path in caught.value.message


def test_file_of_words_is_malformed(put):
    with pytest.raises(HostDataError, match=r"words\.txt: none of its"):
        load_host(put("words.txt", "hello\nworld\n"))


def test_file_beyond_the_limit_is_malformed(put, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 100)
    path = put("huge", MSI_LINE * 3)
    with pytest.raises(HostDataError, match="larger than") as caught:
        load_host(path)
    assert caught.value.exit_code == 5


def test_file_at_the_limit_is_read(put, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", len(MSI_LINE))
    assert region_spans(load_host(put("just", MSI_LINE))) == [(MSI.start, MSI.last)]


def test_endless_device_is_refused_and_not_read_for_ever():
    with pytest.raises(HostUnavailableError, match="is a device, and only regular files"):
        load_host("/dev/zero")


def test_unreadable_file_is_unavailable_with_its_errno(put, monkeypatch):
    path = put("secret", MSI_LINE)

    opens = os.open

    def refuse(name, *args, **kwargs):
        if str(name).endswith("secret"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return opens(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostUnavailableError, match="Permission denied") as caught:
        load_host(path)
    assert (caught.value.errno, caught.value.exit_code) == (errno.EACCES, 6)
    assert caught.value.source == path


def test_file_below_a_closed_directory_is_unavailable(put, monkeypatch):
    path = put("secret", MSI_LINE)

    stats = Path.stat

    def refuse(self, *args, **kwargs):
        if self.name == "secret":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return stats(self, *args, **kwargs)

    monkeypatch.setattr(Path, "stat", refuse)  # what a closed parent does to everyone but root
    with pytest.raises(HostUnavailableError) as caught:
        load_host(path)
    assert caught.value.errno == errno.EACCES


# -- directories, this machine, standard input ---------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    group = tmp_path / "box" / "sys" / "kernel" / "iommu_groups" / "3"
    group.mkdir(parents=True)
    (group / "reserved_regions").write_text(MSI_LINE, "utf-8")
    return tmp_path / "box"


def test_directory_is_a_copy_of_sys(tree):
    assert region_spans(load_host(tree)) == [(MSI.start, MSI.last)]


def test_directory_may_be_sys_itself(tree):
    assert region_spans(load_host(str(tree / "sys"))) == [(MSI.start, MSI.last)]


def test_directory_without_sysfs_is_unavailable(tmp_path):
    with pytest.raises(HostUnavailableError):
        load_host(tmp_path)


def test_live_reads_the_sysroot(tree):
    assert region_spans(load_host("LIVE", sysroot=tree)) == [(MSI.start, MSI.last)]


def test_live_is_the_default(tree):
    assert load_host(sysroot=tree) == load_host("LIVE", sysroot=tree)


def test_live_with_a_missing_sysroot_is_unavailable(tmp_path):
    with pytest.raises(HostUnavailableError) as caught:
        load_host("LIVE", sysroot=tmp_path / "nowhere")
    assert caught.value.errno == errno.ENOENT


def test_dash_reads_standard_input(stdin):
    stdin(MSI_LINE.encode())
    assert region_spans(load_host("-")) == [(MSI.start, MSI.last)]


def test_dash_reads_a_snapshot(stdin):
    host = load_host("amd-epyc-1tb")
    stdin(dump_snapshot(host, "test").encode())
    assert load_host("-") == host


def test_dash_with_several_hosts_has_a_hint_that_works(stdin):
    stdin(TWO.encode())
    with pytest.raises(HostDataError, match="holds 2 hosts") as caught:
        load_host("-")
    assert "-#2" in caught.value.hint
    stdin(TWO.encode())
    assert [r.range.start for r in load_host("-#2").log_regions] == [0x2000000]


@pytest.mark.parametrize("content", [b"\xff\xfe", MSI_LINE.encode() + b"\0", b"words"])
def test_dash_with_junk_names_standard_input(stdin, content):
    stdin(content)
    with pytest.raises(HostDataError, match=r"stdin|standard input"):
        load_host("-")


def test_dash_beyond_the_limit_is_malformed(stdin, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 10)
    stdin(MSI_LINE.encode())
    with pytest.raises(HostDataError, match="larger than"):
        load_host("-")


def test_every_error_of_loading_is_one_of_ours(put):
    with pytest.raises(IovaError):
        load_host(put("odd.json", "{"))
