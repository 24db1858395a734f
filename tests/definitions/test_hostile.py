# SPDX-License-Identifier: Apache-2.0
"""Malformed and hostile definitions: one clear sentence each, soon, and no line is forged."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmm_iova as vi
from tests.kit.command import Output, run
from vmm_iova.definitions.definition import KINDS
from vmm_iova.errors import HostDataError, IovaError, RequestError

BOMB = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
DOMAIN = "<domain type='kvm'><memory>1048576</memory>{}</domain>"
MEMORY = '{{"memory": {}, "payload": {{}}}}'

BAD: dict[str, tuple[str, str]] = {
    "empty": ("", "is empty"),
    "blank": (" \n\t", "is empty"),
    "prose": ("please make my VM work", "is no definition of a VM"),
    "binary": ("\x00\x01\x02", "is no definition of a VM"),
    "another program": ("ls -la /dev/vfio", "is no definition of a VM"),
    "xml cut off": ("<domain><memory>", "is not XML: no element found"),
    "xml of two roots": ("<domain/><domain/>", "is not XML: junk after document element"),
    "xml of another kind": ("<network><name>n</name></network>", "<network> is no domain"),
    "xml, an entity": (
        "<!DOCTYPE d [<!ENTITY x 'y'>]><domain>&x;</domain>",
        "has a DOCTYPE or entities of its own",
    ),
    "xml, a bomb": (
        f"<!DOCTYPE d [<!ENTITY a0 'x'>{BOMB}]><domain>&a9;</domain>",
        "has a DOCTYPE or entities of its own",
    ),
    "xml, a file": (
        "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain>&x;</domain>",
        "has a DOCTYPE or entities of its own",
    ),
    "xml, a remote DTD": (
        "<!DOCTYPE d SYSTEM 'http://example.org/x.dtd'><domain/>",
        "has a DOCTYPE or entities of its own",
    ),
    "xml, nested": ("<domain>" + "<a>" * 5000, "nested deeper than 64"),
    "xml, many elements": (DOMAIN.format("<a/>" * 30_001), "too many"),
    "xml, large": ("<domain>" + " " * (4 << 20), "more than a definition of a VM"),
    "xml, a control character": ("<domain>\x01</domain>", "is not XML"),
    "xml, an attribute twice": ("<domain type='a' type='b'/>", "is not XML: duplicate attribute"),
    "libvirt, no size": ("<domain><memory>much</memory></domain>", "<memory> 'much' is no size"),
    "libvirt, another unit": (
        "<domain><memory unit='parsec'>1</memory></domain>",
        "<memory> '1 parsec' is no size",
    ),
    "libvirt, a negative size": ("<domain><memory>-1</memory></domain>", "'-1' is no size"),
    "libvirt, modules above memory": (
        DOMAIN.format("<devices><memory><target><size>2097152</size></target></memory></devices>"),
        "<memory> is less than its modules",
    ),
    "libvirt, of Xen": ("<domain type='xen'/>", "a domain of type 'xen' is not one of QEMU's"),
    "libvirt, a machine of no model": (
        DOMAIN.format("<os><type arch='ppc64' machine='pseries'>hvm</type></os>"),
        "no machine model here is like 'pseries' of ppc64",
    ),
    "json cut off": ('{"memory": {', "is not JSON"),
    "json of another kind": ('{"a": 1}', "its JSON is no configuration"),
    "json, nested": ('{"a":' * 100_000, "nested deeper than can be read"),
    "json, a number of 5000 digits": (MEMORY.format("9" * 5000), "is not JSON"),
    "json, memory is a list": (MEMORY.format("[1]"), "'memory' is no object"),
    "json, no size": (MEMORY.format('{"size": "much"}'), "size 'much' is not a number of bytes"),
    "json, devices are no list": (
        '{"memory": {}, "devices": {"a": 1}}',
        "'devices' is no list",
    ),
    "json, bits": ('{"cpus": {"max_phys_bits": 99}}', "max_phys_bits '99' is no number"),
    "firecracker, no size": (
        '{"machine-config": {"mem_size_mib": "8"}}',
        "mem_size_mib '8' is no number of MiB",
    ),
    "firecracker, no object": ('{"machine-config": 7}', "'machine-config' is no object"),
    "proxmox, no size": ("cores: 1\nmemory: much\n", "memory 'much' is no number of MiB"),
    "proxmox, no memory at all": ("cores: 1\nmemory: 0\n", "memory '0' is no number of MiB"),
    "qemu, no size": ("qemu-system-x86_64 -m much", "-m 'much' is no size of memory"),
    "qemu, readconfig": ("qemu-system-x86_64 -readconfig a.cfg", "-readconfig a.cfg"),
    "qemu, a quote without its partner": ("qemu-system-x86_64 'oops", "is no definition of a VM"),
    "qemu, a property of no model": (
        "qemu-system-x86_64 -m 1G -machine q35,cxl=on",
        "machine q35 with cxl=on is not planned",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_definition_is_refused_with_one_sentence(name: str) -> None:
    text, words = BAD[name]
    with pytest.raises(IovaError) as caught:
        vi.read_vm(text, source="vm")
    assert isinstance(caught.value, (HostDataError, RequestError))
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_there_are_thirty_of_them() -> None:
    assert len(BAD) >= 30


@pytest.mark.parametrize("name", ["prose", "xml, a bomb", "qemu, readconfig", "json cut off"])
def test_bad_definition_ends_the_command_with_its_status(
    name: str, tmp_path: Path, output: Output
) -> None:
    path = tmp_path / "vm"
    path.write_text(BAD[name][0], "utf-8")
    assert run("plan", "--vm", str(path), "--host", "amd-epyc-1tb") == 5
    shown = output.readouterr()
    assert shown.out == ""
    assert BAD[name][1] in shown.err
    assert shown.err.count("vmm-iova: error: ") == 1


def test_variables_that_grow_without_end_are_cut_off() -> None:
    lines = ["A0=xxxxxxxxxx"] + [f'A{i}="{f"$A{i - 1}" * 10}"' for i in range(1, 20)]
    read = vi.read_vm("\n".join([*lines, "qemu-system-x86_64 -m 1G -name $A19"]))
    assert read.guest.ram == 1 << 30


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("kvm " * 50_000, marks=pytest.mark.slow),
        "a=" + "x" * 200_000 + "'",
        "a=x'x'x'\n" * 20_000,
        "cores:" + " " * 200_000 + "x\nmemory: much\n",
        '{"a": ' * 30_000,
        '"' * 200_000,
        "\\\n" * 100_000,
    ],
    ids=["programs", "an assignment", "assignments", "blanks", "objects", "quotes", "lines"],
)
def test_text_that_would_be_read_again_and_again_is_refused(text: str) -> None:
    # Not timed: a reader that is quadratic, or worse, does not come to an end here.
    for kind in (None, *KINDS):
        with pytest.raises(HostDataError):
            vi.read_vm(text, kind)


def test_variable_that_names_itself_ends() -> None:
    assert vi.read_vm('A="$A $A"\nqemu-system-x86_64 -m 1G -name "$A"').guest.ram == 1 << 30


def test_names_of_strangers_are_one_line_each() -> None:
    read = vi.read_vm(DOMAIN.format("<name>a&#10;change: none\u202e</name><\u00e9vil/>"))
    assert read.name == r"a\nchange: none\u202e"
    for text in (*read.unread, *(item.name for item in read.devices)):
        assert text.isprintable()


@pytest.fixture
def output(capsys: Output) -> Output:
    return capsys
