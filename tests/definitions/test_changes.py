# SPDX-License-Identifier: Apache-2.0
"""What must differ: the least, in the words of each format, and read back it is the guest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import vmm_iova as vi
from tests.kit.command import Output, error_of, run
from vmm_iova.definitions.change import Change, change_between, mended, most_in_place
from vmm_iova.definitions.cloud_hypervisor import arguments_of
from vmm_iova.definitions.definition import CHANGE_FORMS
from vmm_iova.definitions.write import changed_text, write_change
from vmm_iova.errors import RequestError
from vmm_iova.planning.guest import Reading

GIB = 1 << 30
DATA = Path(__file__).parents[1] / "data/definitions"
DOMAIN = """<domain type='kvm'>
  <name>guest</name>
  <memory unit='KiB'>33554432</memory>
  <currentMemory unit='KiB'>33554432</currentMemory>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-9.2'>hvm</type>
  </os>
  <cpu mode='host-passthrough'/>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
  </devices>
</domain>
"""
CONFIG = """bios: ovmf
cores: 4
cpu: host
machine: pc-q35-9.2
memory: 32768
name: guest
numa: 1

[before]
memory: 1
"""
SCRIPT = "qemu-system-x86_64 -machine pc-q35-9.2 -m 32G -cpu host -bios OVMF.fd\n"
CLOUD = (
    '{\n  "cpus": {\n    "boot_vcpus": 1\n  },\n  "memory": {\n    "size": 34359738368\n  }\n}\n'
)
FIRE = '{\n  "machine-config": {\n    "mem_size_mib": 32768\n  }\n}\n'


def wanted(read: vi.Definition, **levers: object) -> Change:
    return change_between(read, replace(read.guest, **levers))  # type: ignore[arg-type]


def on(read: vi.Definition, **fields: object) -> vi.Definition:
    return read.with_guests(
        Reading(item.text, replace(item.guest, **fields))  # type: ignore[arg-type]
        for item in read.readings
    )


LEVERS: dict[str, object] = {
    "phys_bits": 39,
    "ovmf_window": 64 * GIB,
    "pci64": 0,
    "ram": 16 * GIB,
    "page_size": GIB,
    "max_ram_below_4g": GIB,
}


@pytest.mark.parametrize("name", LEVERS)
@pytest.mark.parametrize("text", [DOMAIN, CONFIG], ids=["libvirt", "proxmox"])
def test_change_of_one_thing_reads_back_as_that_and_nothing_else(text: str, name: str) -> None:
    read = vi.read_vm(text)
    change = wanted(read, **{name: LEVERS[name]})
    changed = changed_text(read, change)
    assert changed is not None
    again = vi.read_vm(changed)
    assert again.guest == replace(read.guest, **{name: LEVERS[name]})  # type: ignore[arg-type]
    assert again.unread == ()
    assert not change_between(again, change.guest)
    diff = write_change(read, change)
    assert diff.startswith("--- ")
    assert len([line for line in diff.splitlines() if line[0] in "+-"]) <= 12


@pytest.mark.parametrize("name", LEVERS)
def test_options_of_a_change_behind_the_command_make_the_guest(name: str) -> None:
    read = vi.read_vm(SCRIPT)
    options = write_change(read, wanted(read, **{name: LEVERS[name]}))
    again = vi.read_vm(SCRIPT.rstrip() + " " + options.replace("\n", " "))
    assert again.guest == replace(read.guest, **{name: LEVERS[name]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "levers"),
    [
        (CLOUD, {"phys_bits": 39}),
        (CLOUD, {"ram": 16 * GIB, "maxmem": 24 * GIB}),
        (CLOUD, {"page_size": GIB}),
        (FIRE, {"ram": 16 * GIB}),
        (FIRE, {"page_size": 2 << 20}),
    ],
)
def test_change_of_json_reads_back_as_the_guest(text: str, levers: dict[str, object]) -> None:
    read = vi.read_vm(text)
    change = wanted(read, **levers)
    again = vi.read_vm(changed_text(read, change) or "")
    assert again.guest == change.guest
    assert write_change(read, change).startswith("--- ")


def test_libvirt_change_stands_where_it_belongs_and_leaves_the_rest() -> None:
    read = vi.read_vm(DOMAIN, source="guest.xml")
    change = wanted(read, phys_bits=39, ovmf_window=64 * GIB)
    assert write_change(read, change) == (
        "--- guest.xml\n+++ guest.xml (changed)\n"
        "@@ -1,12 +1,18 @@\n"
        "-<domain type='kvm'>\n"
        "+<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
        "   <name>guest</name>\n"
        "   <memory unit='KiB'>33554432</memory>\n"
        "   <currentMemory unit='KiB'>33554432</currentMemory>\n"
        "   <os firmware='efi'>\n"
        "     <type arch='x86_64' machine='pc-q35-9.2'>hvm</type>\n"
        "   </os>\n"
        "-  <cpu mode='host-passthrough'/>\n"
        "+  <cpu mode='host-passthrough'>\n"
        "+    <maxphysaddr mode='passthrough' limit='39'/>\n"
        "+  </cpu>\n"
        "   <devices>\n"
        "     <controller type='pci' index='0' model='pcie-root'/>\n"
        "   </devices>\n"
        "+  <qemu:commandline>\n"
        "+    <qemu:arg value='-fw_cfg'/>\n"
        "+    <qemu:arg value='name=opt/ovmf/X-PciMmio64Mb,string=65536'/>\n"
        "+  </qemu:commandline>\n"
        " </domain>\n"
    )


@pytest.mark.parametrize(
    ("cpu", "line"),
    [
        ("<cpu mode='host-passthrough'/>", "<maxphysaddr mode='passthrough' limit='39'/>"),
        ("<cpu mode='maximum'/>", "<maxphysaddr mode='passthrough' limit='39'/>"),
        ("<cpu><model>EPYC</model></cpu>", "<maxphysaddr mode='emulate' bits='39'/>"),
        ("", "<cpu mode='custom' match='exact'>"),
        (
            "<cpu mode='host-passthrough'><maxphysaddr mode='passthrough'/></cpu>",
            "<maxphysaddr mode='passthrough' limit='39'/>",
        ),
    ],
)
def test_libvirt_address_bits_have_the_form_that_the_cpu_mode_takes(cpu: str, line: str) -> None:
    read = vi.read_vm(DOMAIN.replace("<cpu mode='host-passthrough'/>", cpu))
    changed = changed_text(read, wanted(read, phys_bits=39)) or ""
    assert line in changed
    assert changed.count("<maxphysaddr") == 1
    assert vi.read_vm(changed).guest.phys_bits == 39


def test_libvirt_arguments_that_are_handed_on_are_changed_in_their_place() -> None:
    text = (DATA / "libvirt-macos-args.xml").read_text()
    read = vi.read_vm(text)
    changed = changed_text(read, wanted(read, phys_bits=46, ovmf_window=64 * GIB)) or ""
    assert changed.count("value='-cpu'") == 1
    assert "vmware-cpuid-freq=on,phys-bits=46'" in changed
    assert "maxphysaddr" not in changed
    again = vi.read_vm(changed)
    assert (again.guest.phys_bits, again.guest.ovmf_window) == (46, 64 * GIB)
    twice = changed_text(again, wanted(again, ovmf_window=128 * GIB)) or ""
    assert twice.count("X-PciMmio64Mb") == 1
    assert vi.read_vm(twice).guest.ovmf_window == 128 * GIB


def test_proxmox_option_whose_name_needs_quotes_keeps_them() -> None:
    read = vi.read_vm("memory: 2048\ncpu: host\nargs: '-odd name=1' -smbios type=2\n")
    changed = changed_text(read, wanted(read, phys_bits=39)) or ""
    assert "\nargs: '-odd name' 1 -smbios type=2 -global host-x86_64-cpu." in changed
    assert vi.read_vm(changed).guest.phys_bits == 39


def test_libvirt_argument_that_is_the_value_of_another_option_is_not_changed() -> None:
    args = "".join(f"<qemu:arg value='{word}'/>" for word in ("-smbios", "-cpu", "host"))
    space = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
    text = DOMAIN.replace("<domain type='kvm'", f"<domain type='kvm' {space}").replace(
        "</domain>", f"<qemu:commandline>{args}</qemu:commandline></domain>"
    )
    read = vi.read_vm(text)
    changed = changed_text(read, wanted(read, phys_bits=39)) or ""
    assert f"{args}</qemu:commandline>" in changed
    assert vi.read_vm(changed).guest.phys_bits == 39


def test_libvirt_iommu_gets_its_width_and_its_caching_mode() -> None:
    given = "<hostdev type='pci'><source><address bus='0x01'/></source></hostdev>"
    read = vi.read_vm(
        DOMAIN.replace("</devices>", f"  <iommu model='intel'/>\n    {given}\n  </devices>")
    )
    change = wanted(read, viommu_bits=39)
    assert change.caching_mode
    again = vi.read_vm(changed_text(read, change) or "")
    assert (again.guest.viommu_bits, again.faults) == (39, ())


def test_libvirt_lock_limit_is_raised_only_where_it_is_stated_and_too_low() -> None:
    limit = "<memtune><hard_limit unit='GiB'>{}</hard_limit></memtune>"
    for size, raised in ((33, None), (32, 33 * GIB)):
        read = vi.read_vm(DOMAIN.replace("<os", limit.format(size) + "\n  <os"))
        change = change_between(read, read.guest, 32 * GIB)
        assert change.hard_limit == raised
        if raised:
            assert vi.read_vm(changed_text(read, change) or "").hard_limit == raised
    assert not change_between(vi.read_vm(DOMAIN), vi.read_vm(DOMAIN).guest, 32 * GIB)


def test_libvirt_nodes_share_less_memory() -> None:
    numa = (
        "<cpu mode='host-passthrough'><numa><cell id='0' cpus='0' memory='16' unit='GiB'/>"
        "<cell id='1' cpus='1' memory='16' unit='GiB'/></numa></cpu>"
    )
    read = vi.read_vm(DOMAIN.replace("<cpu mode='host-passthrough'/>", numa))
    change = wanted(read, ram=20 * GIB, nodes=())
    again = vi.read_vm(changed_text(read, change) or "")
    assert again.guest.nodes == (vi.Node(10 * GIB, None, "0"), vi.Node(10 * GIB, None, "1"))
    pages = wanted(read, nodes=(vi.Node(16 * GIB, GIB, "0"), vi.Node(16 * GIB, None, "1")))
    changed = vi.read_vm(changed_text(read, pages) or "")
    assert changed.guest.nodes == pages.guest.nodes


def test_libvirt_memory_to_plug_in_is_set_and_taken_out() -> None:
    read = vi.read_vm(DOMAIN)
    more = changed_text(read, wanted(read, maxmem=64 * GIB, slots=4)) or ""
    again = vi.read_vm(more)
    assert (again.guest.maxmem, again.guest.slots) == (64 * GIB, 4)
    less = changed_text(again, wanted(again, maxmem=None, slots=0)) or ""
    assert vi.read_vm(less).guest == read.guest


def test_proxmox_keys_that_do_nothing_are_not_used() -> None:
    read = vi.read_vm(CONFIG)
    changed = changed_text(read, wanted(read, phys_bits=39)) or ""
    assert "args: -global host-x86_64-cpu.host-phys-bits-limit=39\nbios: ovmf\n" in changed
    assert changed.endswith("[before]\nmemory: 1\n")
    model = vi.read_vm(CONFIG.replace("cpu: host", "cpu: EPYC,flags=+aes"))
    assert "cpu: EPYC,flags=+aes,phys-bits=46\n" in (
        changed_text(model, wanted(model, phys_bits=46)) or ""
    )


def test_proxmox_args_keep_what_they_had() -> None:
    read = vi.read_vm(
        CONFIG.replace(
            "bios", "args: -device 'x y' -global host-x86_64-cpu.host-phys-bits-limit=46\nbios"
        )
    )
    changed = changed_text(read, wanted(read, phys_bits=39)) or ""
    assert "args: -device 'x y' -global host-x86_64-cpu.host-phys-bits-limit=39\n" in changed


def test_proxmox_has_pages_of_two_sizes_only() -> None:
    read = vi.read_vm(CONFIG)
    with pytest.raises(RequestError, match="pages of 2 MiB or 1 GiB"):
        changed_text(read, wanted(read, page_size=64 << 10))


@pytest.mark.parametrize("form", CHANGE_FORMS)
def test_form_without_a_definition_has_all_that_makes_the_plan(form: str) -> None:
    guest = vi.Guest("q35" if form != "cloud-hypervisor" else "cloud-hypervisor", "32G")
    text = write_change(None, change_between(None, replace(guest, phys_bits=39)), form)  # type: ignore[arg-type]
    assert "39" in text
    assert "32" in text


def test_form_of_qemu_for_a_machine_that_is_not_its_own_is_refused() -> None:
    change = change_between(None, vi.Guest("own-x86", "1G"))
    with pytest.raises(RequestError, match="machine own-x86 is not one of QEMU's"):
        write_change(None, change, "qemu")


# -- looking for one -------------------------------------------------------------------------------


def find(read: vi.Definition, host: str, **fields: object) -> vi.Guest | None:
    usable = vi.load_host(host).usable()
    changed = mended(on(read, **fields), usable, "auto")
    if changed is not None:
        assert vi.plan(changed, usable).starts
    return None if changed is None else changed.guest


def test_change_that_is_found_is_the_smallest_one() -> None:
    read = vi.read_vm(DOMAIN)
    usable = vi.load_host("intel-dmar-i7-2600").usable()
    gpu = (vi.Bar("gpu", "32G", required=True),)
    asked = on(read, bars=gpu, phys_bits=46)
    with pytest.raises(vi.PlanError):
        vi.plan(asked, usable)
    found = mended(asked, usable, "auto")
    assert found is not None
    assert found.guest == replace(asked.guest, phys_bits=39)


def test_change_for_a_window_of_ovmf_is_found() -> None:
    gpus = tuple(vi.Bar(f"gpu{n}", "128G", required=True) for n in range(8))
    found = find(vi.read_vm(DOMAIN), "amd-epyc-1tb", bars=gpus, phys_bits=40)
    assert found is not None
    assert found.phys_bits != 40 or found.ovmf_window


def test_change_for_a_wide_iommu_is_its_width() -> None:
    found = find(vi.read_vm(DOMAIN), "intel-dmar-i7-2600", viommu=True, viommu_bits=48)
    assert found is not None
    assert found.viommu_bits == 39


def test_change_for_too_much_memory_is_less_of_it() -> None:
    found = find(vi.read_vm(DOMAIN), "intel-dmar-i7-2600", ram="600G")
    assert found is not None
    assert 400 * GIB < vi.parse_size(found.ram or 0) < 512 * GIB
    more = find(vi.read_vm(DOMAIN), "intel-dmar-i7-2600", maxmem="600G", slots=4)
    assert more is not None
    assert more.ram == 32 * GIB


def test_memory_to_plug_in_that_moves_ram_has_a_most_that_does_not() -> None:
    read = vi.read_vm(DOMAIN)
    usable = vi.load_host("amd-epyc-1tb").usable()
    asked = on(read, maxmem=1536 * GIB, slots=16)
    assert vi.plan(asked, usable).policy == "move"
    most = most_in_place(asked, usable, "auto")
    assert most is not None
    assert vi.plan(on(read, maxmem=most, slots=16), usable).policy == "as is"
    assert vi.plan(on(read, maxmem=most + GIB, slots=16), usable).policy == "move"


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def vm(tmp_path: Path) -> str:
    path = tmp_path / "guest.xml"
    path.write_text(DOMAIN)
    return str(path)


def test_plan_of_a_definition_answers_and_says_that_nothing_changes(
    vm: str, capsys: Output
) -> None:
    assert run("plan", "--vm", vm, "--host", "amd-epyc-1tb") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("FITS: 32 GiB of RAM in q35")
    assert "libvirt domain guest: q35, 32 GiB RAM, OVMF, the host's address bits" in shown
    assert shown.endswith("\nchange: none\n")


def test_plan_of_a_definition_that_does_not_fit_prints_the_change(vm: str, capsys: Output) -> None:
    command = ("plan", "--vm", vm, "--host", "intel-dmar-i7-2600", "--ram", "600G")
    assert run(*command) == 3
    shown = capsys.readouterr().out
    assert shown.startswith("REFUSED: ")
    assert "change (libvirt), with which it fits\n--- guest.xml\n" in shown
    assert run(*command, "--format", "libvirt") == 3
    assert capsys.readouterr().out.startswith("--- guest.xml\n")
    assert run(*command, "--format", "qemu") == 3
    assert capsys.readouterr().out.startswith("-m size=")
    assert run(*command, "-J") == 3
    root = json.loads(capsys.readouterr().out)
    assert (root["schema"]["name"], root["exit_status"]) == ("vmm-iova-error", 3)
    assert root["vm"]["change"].startswith("--- guest.xml\n")
    assert root["fixes"][0].startswith("--")


def test_plan_of_a_definition_that_lacks_something_says_so_first(
    tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "cmd"
    path.write_text(
        "qemu-system-x86_64 -machine q35 -m 1G -device intel-iommu,aw-bits=39 "
        "-device vfio-pci,host=01:00.0 -cpu host\n"
    )
    assert run("plan", "--vm", f"qemu:{path}", "--host", "intel-dmar-i7-2600") == 3
    shown = capsys.readouterr().out
    assert shown.startswith("REFUSED: it does not start: its intel-iommu lacks caching-mode")
    assert "-global intel-iommu.caching-mode=on" in shown


def test_plan_of_a_definition_with_options_is_that_guest(vm: str, capsys: Output) -> None:
    options = ("--ram", "8G", "--page-size", "1GiB", "--format", "libvirt")
    assert run("plan", "--vm", vm, "--host", "amd-epyc-1tb", *options) == 0
    diff = capsys.readouterr().out
    assert "+  <memory unit='KiB'>8388608</memory>" in diff
    assert "<page size='1048576' unit='KiB'/>" in diff


def test_plan_of_a_device_that_the_host_lacks_names_it(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "vm.conf"
    path.write_text("memory: 1024\ncores: 1\ncpu: host\nhostpci0: 01:00\n")
    assert run("plan", "--vm", str(path), "--host", "lab-vtd-39") == 4
    assert "has no device 0000:01:00, which vm.conf gives the VM" in error_of(capsys)
    path.write_text("memory: 1024\ncores: 1\ncpu: host\nhostpci0: 00:02\nmachine: q35\n")
    assert run("plan", "--vm", str(path), "--host", "lab-vtd-39") == 0
    assert run("plan", "--vm", str(path), "--host", "lab-vtd-39", "-s", "0000:00:01.0") == 0


def test_definition_and_host_cannot_both_be_standard_input(capsys: Output) -> None:
    assert run("plan", "--vm", "-", "--host", "-") == 2
    assert "both read standard input" in error_of(capsys)


def test_fleet_asks_a_definition_of_every_host(vm: str, capsys: Output) -> None:
    hosts = ("amd-epyc-1tb", "intel-dmar-i7-2600")
    assert run("fleet", *hosts, "--vm", vm) == 0
    assert capsys.readouterr().out.startswith("ALL FIT")
    path = Path(vm)
    path.write_text(
        DOMAIN.replace("pc-q35-9.2", "q35").replace(
            "</devices>", "<iommu model='intel'><driver caching_mode='on'/></iommu></devices>"
        )
    )
    assert run("fleet", *hosts, "--vm", vm) == 3
    shown = capsys.readouterr().out
    assert shown.startswith("SOME FIT")
    assert "--viommu-bits 39" in shown


def test_plan_of_a_definition_has_it_in_json(vm: str, capsys: Output) -> None:
    assert run("plan", "--vm", vm, "--host", "amd-epyc-1tb", "--ram", "8G", "-J") == 0
    shown = json.loads(capsys.readouterr().out)["vm"]
    assert (shown["kind"], shown["name"], shown["readings"]) == ("libvirt", "guest", [""])
    assert "+  <memory unit='KiB'>8388608</memory>" in shown["change"]


def test_bars_whose_place_rests_on_a_cpu_that_is_not_known_are_said_to(
    vm: str, capsys: Output
) -> None:
    command = ("plan", "--vm", vm, "--host", "amd-epyc-1tb", "--bar", "gpu=256M")
    assert run(*command) == 0
    assert "not known: the address bits of the host's CPU" in capsys.readouterr().out
    assert run(*command, "--phys-bits", "48") == 0
    assert "address bits of the host's CPU" not in capsys.readouterr().out


def test_proxmox_args_that_say_otherwise_are_changed_in_their_place() -> None:
    read = vi.read_vm(CONFIG.replace("bios", "args: -cpu 'EPYC,+aes' -m 40G -smbios type=2\nbios"))
    assert (read.guest.ram, read.guest.phys_bits) == (40 * GIB, 40)
    change = wanted(read, phys_bits=46, ram=16 * GIB)
    changed = changed_text(read, change) or ""
    assert "args: -cpu EPYC,+aes,phys-bits=46 -m size=16G -smbios type=2\n" in changed
    assert vi.read_vm(changed).guest == change.guest


def test_libvirt_arguments_that_say_otherwise_are_overruled() -> None:
    handed = "<qemu:commandline><qemu:arg value='-m'/><qemu:arg value='40G'/></qemu:commandline>"
    text = DOMAIN.replace(
        "<domain type='kvm'>",
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
    ).replace("</domain>", f"{handed}</domain>")
    read = vi.read_vm(text)
    change = wanted(read, ram=16 * GIB)
    changed = changed_text(read, change) or ""
    assert vi.read_vm(changed).guest.ram == 16 * GIB
    assert changed.count("value='-m'") == 1


def test_cloud_hypervisor_zones_share_less_memory() -> None:
    read = vi.read_vm(
        '{"memory": {"zones": [{"id": "a", "size": 8589934592}, {"id": "b", "size": 1}]}}'
    )
    change = wanted(read, ram=3 * GIB)
    assert vi.read_vm(changed_text(read, change) or "").guest.ram == 3 * GIB


@pytest.mark.parametrize(
    "levers",
    [
        {"ram": 3 * GIB},
        {"ram": 3 * GIB, "maxmem": 5 * GIB},
        {"ram": 3 * GIB, "maxmem": None},
        {"ram": 3 * GIB, "page_size": GIB, "maxmem": None},
        {"phys_bits": 39},
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "cloud-hypervisor --cpus boot=4,affinity=[0@[1,2],1@[3]] --memory size=8G,hotplug_size=4G",
        "cloud-hypervisor --cpus boot=4,affinity=[0@[1,2],1@[3]] --memory size=0 --memory-zone "
        "size=4G,id=a,host_numa_node=0,hotplug_size=2G size=4G,id=b,hotplug_size=2G",
        '{"memory": {"zones": [{"id": "a", "size": 4294967296, "hotplug_size": 2147483648}, '
        '{"id": "b", "size": 4294967296, "hotplug_size": 2147483648}]}}',
    ],
)
def test_cloud_hypervisor_changes_read_back(text: str, levers: dict[str, object]) -> None:
    read = vi.read_vm(text)
    change = wanted(read, **levers)
    changed = changed_text(read, change)
    if changed is None:  # options stand in the place of those of their name
        new = arguments_of(["cloud-hypervisor", *write_change(read, change).split()])
        both = {**arguments_of(text.split()), **new}
        assert both["cpus"][0].startswith("boot=4,affinity=[0@[1,2],1@[3]]")
        words = [word for name, values in both.items() for word in (f"--{name}", *values)]
        changed = " ".join(["cloud-hypervisor", *words])
    assert vi.read_vm(changed).guest == change.guest


def test_diff_of_two_hosts_asks_a_definition_of_both(vm: str, capsys: Output) -> None:
    hosts = ("amd-epyc-1tb", "intel-dmar-i7-2600")
    assert run("diff", *hosts, "--vm", vm, "--ram", "600G") == 3
    shown = capsys.readouterr().out
    assert run("diff", *hosts, "--machine", "q35", "--ram", "600G", "--firmware", "ovmf") == 3
    assert capsys.readouterr().out == shown


def test_ram_that_a_variable_says_has_to_be_stated(tmp_path: Path, capsys: Output) -> None:
    script = tmp_path / "start.sh"
    script.write_text('qemu-system-x86_64 -m 4G -M q35 -m "${SIZE}" -cpu host\n')
    vm = ["plan", "--vm", str(script), "--host", "intel-dmar-i7-2600"]
    assert run(*vm) == 2
    error = error_of(capsys)
    assert "does not say how much RAM (-m ${SIZE}: a variable of the shell)" in error
    assert run(*vm, "--ram", "8G") == 0
    assert "8 GiB RAM" in capsys.readouterr().out


def test_fleet_refuses_what_starts_on_no_host(tmp_path: Path, capsys: Output) -> None:
    script = tmp_path / "start.sh"
    script.write_text(
        "qemu-system-x86_64 -m 4G -M q35 -device intel-iommu -device vfio-pci,host=01:00.0\n"
    )
    assert run("fleet", "--vm", str(script), "intel-dmar-i7-2600") == 3
    assert error_of(capsys).startswith("it does not start: ")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{ qemu-system-x86_64 -m 4G -M q35 -cpu host; }\n", "qemu"),
        ('{"payload": {"cmdline": "grün"}, "memory": {"size": 4294967296}}', "cloud-hypervisor"),
    ],
)
def test_text_that_begins_with_a_brace_is_changed_as_what_it_is(text: str, kind: vi.Kind) -> None:
    read = vi.read_vm(text, kind)
    shown = write_change(read, wanted(read, ram=2 * GIB))
    assert "\\u" not in shown
    assert "grün" in shown or shown == "-m size=2G\n"


NODES = (
    "qemu-system-x86_64 -M q35 -cpu host -m 600G -object memory-backend-ram,id=r0,size=300G,"
    "host-nodes=1,policy=bind -numa node,nodeid=0,cpus=0-3,memdev=r0 "
    "-object {second} -numa node,nodeid=1,memdev=r1"
)


@pytest.mark.parametrize(
    "second",
    [
        "memory-backend-file,id=r1,size=300G,mem-path=/dev/hugepages",
        '\'{"qom-type":"memory-backend-memfd","id":"r1","size":322122547200,"share":true}\'',
    ],
)
def test_qemu_backends_of_nodes_get_their_share_and_keep_the_rest(second: str) -> None:
    read = vi.read_vm(NODES.replace("{second}", second))
    usable = vi.load_host("intel-dmar-i7-2600").usable()
    changed = mended(read, usable, "auto")
    assert changed is not None
    shown = write_change(read, change_between(read, changed.guest)).splitlines()
    assert shown[0] == "-m size=510G"
    assert shown[1] == ("-object memory-backend-ram,id=r0,size=255G,host-nodes=1,policy=bind")
    assert shown[2].startswith("-object memory-backend-")
    assert "id=r1,size=255G," in shown[2]
    assert len(shown) == 3


def test_qemu_backend_of_all_ram_gets_its_size() -> None:
    read = vi.read_vm(
        "qemu-system-x86_64 -M q35,memory-backend=a -m 64G -cpu host "
        "-object memory-backend-memfd,id=a,size=64G,share=on"
    )
    shown = write_change(read, wanted(read, ram=32 * GIB))
    assert shown == "-m size=32G\n-object memory-backend-memfd,id=a,size=32G,share=on\n"
    pages = write_change(read, wanted(read, page_size=GIB))
    assert pages == "-object memory-backend-memfd,id=a,size=64G,hugetlb=on,hugetlbsize=1G\n"


def test_proxmox_nodes_get_their_share_and_keep_their_cpus() -> None:
    read = vi.read_vm(
        "memory: 614400\nnuma: 1\ncpu: host\nmachine: q35\n"
        "numa0: cpus=0-3,hostnodes=0,memory=307200,policy=bind\nnuma1: cpus=4-7,memory=307200\n"
    )
    changed = mended(read, vi.load_host("intel-dmar-i7-2600").usable(), "auto")
    assert changed is not None
    text = changed_text(read, change_between(read, changed.guest)) or ""
    assert "numa0: cpus=0-3,hostnodes=0,memory=261120,policy=bind\n" in text
    assert "numa1: cpus=4-7,memory=261120\n" in text
    assert vi.read_vm(text).guest == changed.guest
