# SPDX-License-Identifier: Apache-2.0
"""A definition is recognised by what stands in it, and becomes the guest that its VMM starts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import vmm_iova as vi
from vmm_iova.definitions.change import change_between
from vmm_iova.definitions.write import changed_text
from vmm_iova.errors import HostDataError, RequestError

GIB = 1 << 30
DOMAIN = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest</name>
  <memory unit='GiB'>8</memory>
  <os><type arch='x86_64' machine='pc-q35-8.2'>hvm</type></os>
  {more}
</domain>
"""


def domain(more: str = "", machine: str = "pc-q35-8.2") -> vi.Definition:
    return vi.read_vm(DOMAIN.format(more=more).replace("pc-q35-8.2", machine))


def handed(*words: str) -> str:
    args = "".join(f"<qemu:arg value='{word}'/>" for word in words)
    return f"<qemu:commandline>{args}</qemu:commandline>"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<domain type='kvm'><memory>1048576</memory></domain>", "libvirt"),
        ("\ufeff\n <domain><memory>1048576</memory></domain>", "libvirt"),
        ("/usr/bin/qemu-system-x86_64 -m 1G", "qemu"),
        ("-m 1G -device vfio-pci,host=01:00.0", "qemu"),
        ("cores: 1\nmemory: 1024\n", "proxmox"),
        ("cores: 1\nargs: -cpu host -m 1G\nmemory: 2048\n", "proxmox"),
        ("cloud-hypervisor --memory size=1G --kernel k", "cloud-hypervisor"),
        ('{"payload": {}, "memory": {"size": 1073741824}}', "cloud-hypervisor"),
        ('{"machine-config": {"mem_size_mib": 1024}}', "firecracker"),
    ],
)
def test_text_of_each_format_is_recognised_and_has_its_ram(text: str, kind: str) -> None:
    read = vi.read_vm(text)
    assert read.kind == kind
    assert read.guest.ram == GIB
    assert vi.read_vm(text, read.kind).guest == read.guest


def test_kind_that_is_stated_wins_over_what_it_looks_like() -> None:
    with pytest.raises(HostDataError, match="is not XML"):
        vi.read_vm("-m 1G", "libvirt")
    with pytest.raises(RequestError, match="kind 'vmware' is none of"):
        vi.read_vm("-m 1G", "vmware")  # type: ignore[arg-type]


# -- libvirt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        ("<memory>2048</memory>", 2 << 20),
        ("<memory unit='b'>1048576</memory>", 1 << 20),
        ("<memory unit='KB'>2048000</memory>", 2048000000),
        ("<memory unit='MiB'>2</memory>", 2 << 20),
        ("<memory unit='T'>1</memory>", 1 << 40),
    ],
)
def test_libvirt_memory_counts_in_its_unit(memory: str, size: int) -> None:
    # QEMU is told whole KiB (qemuBuildMemCommandLine()).
    assert vi.read_vm(f"<domain>{memory}</domain>").guest.ram == size >> 10 << 10


def test_libvirt_modules_count_in_memory_and_are_no_ram_at_start() -> None:
    read = domain(
        "<maxMemory slots='16' unit='GiB'>64</maxMemory><devices><memory model='dimm'><target>"
        "<size unit='GiB'>2</size></target></memory></devices>"
    )
    assert (read.guest.ram, read.guest.maxmem, read.guest.slots) == (6 * GIB, 64 * GIB, 16)


@pytest.mark.parametrize("memory", ["", "<memory unit='GiB'>99</memory>"])
def test_libvirt_takes_the_sum_of_cells_for_memory(memory: str) -> None:
    text = (
        f"<domain type='kvm'>{memory}<os><type arch='x86_64' machine='q35'>hvm</type></os>"
        "<cpu mode='host-passthrough'><numa><cell id='0' cpus='0' memory='3' unit='GiB'/>"
        "<cell id='1' cpus='1' memory='5' unit='GiB'/></numa></cpu></domain>"
    )
    read = vi.read_vm(text)
    assert [getattr(node, "size", 0) // GIB for node in read.guest.nodes] == [3, 5]
    smaller = change_between(read, replace(read.guest, ram=4 * GIB, nodes=()))
    again = vi.read_vm(changed_text(read, smaller) or "")
    assert sum(getattr(node, "size", 0) for node in again.guest.nodes) == 4 * GIB


def test_libvirt_nodes_have_their_pages_by_nodeset() -> None:
    read = domain(
        "<memoryBacking><hugepages><page size='1' unit='GiB' nodeset='1'/><page size='2' "
        "unit='MiB'/></hugepages><locked/></memoryBacking><cpu mode='host-passthrough'><numa>"
        "<cell id='0' cpus='0' memory='4' unit='GiB'/><cell id='1' memory='4' unit='GiB'/>"
        "</numa></cpu>"
    )
    assert read.guest.nodes == (vi.Node(4 * GIB, 2 << 20, "0"), vi.Node(4 * GIB, GIB, "1"))
    assert read.locked


@pytest.mark.parametrize(
    ("cpu", "bits"),
    [
        ("", 40),
        ("<cpu mode='host-passthrough'/>", None),
        ("<cpu mode='maximum'/>", None),
        ("<cpu mode='host-passthrough'><maxphysaddr mode='passthrough' limit='39'/></cpu>", 39),
        ("<cpu mode='host-passthrough'><maxphysaddr mode='emulate' bits='42'/></cpu>", 42),
        ("<cpu mode='custom'><model>EPYC</model></cpu>", 40),
        ("<cpu><model>EPYC</model><maxphysaddr mode='emulate' bits='46'/></cpu>", 46),
        ("<cpu><model>kvm32</model></cpu>", 36),
    ],
)
def test_libvirt_cpu_gives_the_guest_these_address_bits(cpu: str, bits: int | None) -> None:
    assert [item.guest.phys_bits for item in domain(cpu).readings] == [bits]


def test_libvirt_host_model_is_answered_for_both_widths_that_it_may_have() -> None:
    read = domain("<cpu mode='host-model'/>")
    assert [item.guest.phys_bits for item in read.readings] == [40, None]
    assert all(item.text for item in read.readings)


def test_libvirt_emulated_guest_has_the_vendor_of_its_model() -> None:
    text = DOMAIN.format(more="<cpu><model>EPYC</model></cpu>").replace("'kvm'", "'qemu'")
    assert vi.read_vm(text).guest.cpu == "amd"
    assert domain("<cpu><model>EPYC</model></cpu>").guest.cpu is None  # KVM: the host's


def test_libvirt_devices_are_pci_virtual_functions_and_mediated_ones() -> None:
    address = "<source><address domain='0x0001' bus='0x41' slot='0x02' function='0x3'/></source>"
    read = domain(
        f"<devices><hostdev type='pci' managed='yes'>{address}<rom bar='off'/></hostdev>"
        f"<interface type='hostdev'>{address.replace('0x41', '0x42')}</interface>"
        "<hostdev type='mdev'><source><address uuid='00000000-0000-4000-8000-000000000001'/>"
        "</source></hostdev><hostdev type='usb'/></devices>"
    )
    assert read.devices == (
        vi.AssignedDevice("0001:41:02.3", "pci", managed=True, rom=False),
        vi.AssignedDevice("00000000-0000-4000-8000-000000000001", "mdev"),
        vi.AssignedDevice("0001:42:02.3", "pci"),
    )
    assert read.guest.devices == 3


@pytest.mark.parametrize(
    ("iommu", "bits", "faults"),
    [
        ("<iommu model='intel'><driver caching_mode='on' aw_bits='48'/></iommu>", 48, 0),
        ("<iommu model='intel'><driver caching_mode='on'/></iommu>", 39, 0),
        ("<iommu model='intel'/>", 39, 1),
        ("<iommu model='virtio'/>", None, 0),
    ],
)
def test_libvirt_iommu_has_its_width_and_must_tell_what_it_maps(
    iommu: str, bits: int | None, faults: int
) -> None:
    given = "<hostdev type='pci'><source><address bus='0x01'/></source></hostdev>"
    read = domain(f"<devices>{iommu}{given}</devices>")
    assert read.guest.viommu
    assert read.guest.viommu_bits == bits
    assert len(read.faults) == faults


@pytest.mark.parametrize(
    ("machine", "model", "bits"),
    [
        ("pc-q35-9.2", "q35", 48),
        ("pc-q35-9.1", "q35", 39),
        ("pc-q35-7.1", "q35", 39),
        ("pc-q35-7.0", "q35-7.0", 39),
        ("pc-q35-noble", "q35", 39),
        ("pc-q35-jammy-hpb", "q35-7.0", 39),
        ("pc-q35-rhel9.0.0", "q35-7.0", 39),
        ("pc-q35-rhel9.4.0", "q35", 39),
        ("pc-i440fx-6.2", "i440fx-7.0", 39),
        ("pc-i440fx-10.0", "i440fx", 48),
    ],
)
def test_machine_type_has_the_model_and_the_iommu_width_of_its_age(
    machine: str, model: str, bits: int
) -> None:
    read = domain("<devices><iommu model='intel'/></devices>", machine)
    assert [item.guest.machine for item in read.readings] == [model]
    assert read.guest.viommu_bits == bits


def test_machine_type_without_age_is_answered_for_each_release_that_differs() -> None:
    read = domain("<devices><iommu model='intel'/></devices>", "q35")
    assert [(item.text, item.guest.machine, item.guest.viommu_bits) for item in read.readings] == [
        ("QEMU 7.0 and older", "q35-7.0", 39),
        ("QEMU 7.1 to 9.1", "q35", 39),
        ("QEMU 9.2 and later", "q35", 48),
    ]
    assert [item.text for item in domain(machine="q35").readings] == [
        "QEMU 7.0 and older",
        "QEMU 7.1 and later",
    ]


def test_handed_on_arguments_count_as_qemu_counts_them() -> None:
    read = domain(
        "<cpu mode='host-passthrough'/><os firmware='efi'/>"
        + handed(
            *("-cpu", "host,host-phys-bits-limit=39"),
            *("-device", "vfio-pci,host=02:00.0"),
            *("-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string=65536"),
            *("-set", "device.none.x=1"),
            *("-frobnicate", "on"),
        )
    )
    assert read.guest.phys_bits == 39
    assert [item.name for item in read.devices] == ["0000:02:00.0"]
    assert read.unread == ("-set device.none.x=1", "-frobnicate")


def test_handed_on_arguments_without_their_namespace_are_dropped_as_libvirt_drops_them() -> None:
    text = DOMAIN.format(more=handed("-cpu", "host")).replace(
        " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'", ""
    )
    read = vi.read_vm(text)
    assert read.guest.phys_bits == 40
    assert read.unread == ("<qemu:commandline> without xmlns:qemu: libvirt drops it",)


def test_libvirt_elements_that_are_unknown_are_listed_once_each() -> None:
    read = domain("<sparkle/><sparkle/><devices><glitter/><memory model='nvdimm'/></devices>")
    assert read.unread == (
        "<sparkle>",
        "<glitter> in <devices>",
        "<memory model='nvdimm'>: its place",
    )


def test_libvirt_hard_limit_and_window_are_read() -> None:
    read = domain(
        "<memtune><hard_limit unit='GiB'>9</hard_limit></memtune><devices><controller type='pci' "
        "model='pcie-root'><pcihole64 unit='GiB'>64</pcihole64></controller></devices>"
    )
    assert read.hard_limit == 9 * GIB
    assert read.guest.pci64 == 64 * GIB


# -- QEMU ------------------------------------------------------------------------------------------


def qemu(options: str) -> vi.Definition:
    return vi.read_vm(f"qemu-system-x86_64 {options}")


@pytest.mark.parametrize(
    ("cpu", "bits"),
    [
        ("", 40),
        ("-cpu host", None),
        ("-cpu max", None),
        ("-cpu host,phys-bits=39", None),
        ("-cpu host,host-phys-bits-limit=39", 39),
        ("-cpu host,host-phys-bits=off,phys-bits=39", 39),
        ("-cpu EPYC,host-phys-bits-limit=39", 40),
        ("-cpu EPYC,phys-bits=48", 48),
        ("-cpu EPYC,host-phys-bits=on", None),
        ("-cpu host -global host-x86_64-cpu.host-phys-bits-limit=42", 42),
        ("-cpu EPYC -global cpu.phys-bits=45", 45),
        ("-cpu EPYC -cpu host", None),
        ("-accel tcg -cpu max", 40),
        ("-machine pc-q35-rhel9.4.0 -cpu EPYC", None),
    ],
)
def test_qemu_cpu_gives_the_guest_these_address_bits(cpu: str, bits: int | None) -> None:
    assert qemu(f"-m 1G {cpu}").guest.phys_bits == bits


def test_qemu_memory_of_nodes_has_the_pages_of_their_backends() -> None:
    read = qemu(
        "-m 8G,slots=4,maxmem=32G -object memory-backend-file,id=a,size=4G,"
        "mem-path=/dev/hugepages1G/x -object "
        '\'{"qom-type":"memory-backend-memfd","id":"b","size":4294967296,"hugetlb":true,'
        '"hugetlbsize":2097152}\' -numa node,nodeid=0,memdev=a -numa node,nodeid=1,memdev=b'
    )
    assert read.guest.nodes == (vi.Node(4 * GIB, GIB, "0"), vi.Node(4 * GIB, 2 << 20, "1"))
    assert (read.guest.maxmem, read.guest.slots) == (32 * GIB, 4)


@pytest.mark.parametrize(
    ("more", "pages"),
    [
        ("-mem-path /dev/hugepages", 2 << 20),
        ("-mem-path /run/hugepages/kvm/1048576kB", GIB),
        ("-mem-path /dev/shm", None),
        ("-object memory-backend-ram,id=m,size=1G -machine memory-backend=m", None),
    ],
)
def test_qemu_pages_are_those_of_the_mount(more: str, pages: int | None) -> None:
    assert qemu(f"-m 1G {more}").guest.page_size == pages


def test_qemu_log_of_libvirt_states_the_release() -> None:
    log = (
        "2026-01-01 00:00:00.000+0000: starting up libvirt version: 10.0.0, qemu version: 8.2.2\n"
        "LC_ALL=C \\\nPATH=/bin \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=old \\\n-m 1G\n"
        "2026-01-02 00:00:00.000+0000: starting up libvirt version: 11.0.0, qemu version: 9.2.0\n"
        "LC_ALL=C \\\n/usr/bin/qemu-system-x86_64 \\\n-name guest=new,debug-threads=on \\\n"
        "-machine q35 \\\n-device intel-iommu \\\n-m 2G\n"
        "char device redirected to /dev/pts/1 (label charserial0)\n"
    )
    read = vi.read_vm(log)
    assert (read.name, read.guest.ram, read.guest.viommu_bits) == ("new", 2 * GIB, 48)
    assert len(read.readings) == 1


def test_qemu_script_sets_its_variables_and_lists() -> None:
    script = (
        'RAM="4G" # a comment\nGPU=${GPU:-01:00.0}\nOPTIONS=(\n  -m "$RAM" # more\n  # -m 9G\n)\n'
        'OPTIONS+=(-device "vfio-pci,host=02:00.0")\n'
        'qemu-system-x86_64 "${OPTIONS[@]}" -smp ${CPUS:-4} $UNKNOWN \\\n'
        '  -name "a b"\necho -m 7G\n'
    )
    read = vi.read_vm(script)
    assert (read.guest.ram, read.name) == (4 * GIB, "a b")
    assert [item.name for item in read.devices] == ["0000:02:00.0"]


def test_qemu_command_in_a_variable_is_found() -> None:
    read = vi.read_vm('C="qemu-system-x86_64 -m 2G"\nC+=" -machine q35"\nsudo $C\n')
    assert (read.guest.ram, read.guest.machine) == (2 * GIB, "q35")


def test_qemu_value_with_a_variable_that_is_unknown_is_listed() -> None:
    read = qemu('-m "$RAM" -device vfio-pci,host=01:00.0')
    assert read.unread == ("-m $RAM: a variable of the shell",)
    assert read.guest.ram is None


def test_qemu_ps_line_has_bare_json() -> None:
    read = vi.read_vm(
        "root 1 0.0 /usr/bin/kvm -id 100 -name guest,debug-threads=on -m 2048 "
        "-machine type=q35+pve0"
        ' -device {"driver":"vfio-pci","host":"0000:01:00.0", "rombar":0} -cpu host'
    )
    assert read.devices == (vi.AssignedDevice("0000:01:00.0", rom=False),)
    assert (read.guest.ram, read.arch) == (2 * GIB, "x86_64")


def test_qemu_readconfig_is_refused_by_name() -> None:
    with pytest.raises(HostDataError, match=r"-readconfig ./vm.cfg: what that file holds"):
        qemu("-m 1G -readconfig ./vm.cfg")


def test_qemu_machine_that_no_model_is_like_is_refused() -> None:
    with pytest.raises(HostDataError, match="no machine model here is like 'xenfv'"):
        qemu("-machine xenfv -m 1G")
    with pytest.raises(RequestError, match="confidential-guest-support"):
        qemu("-machine q35,confidential-guest-support=sev0 -m 1G")


@pytest.mark.parametrize(
    ("text", "model", "arch"),
    [
        ("qemu-system-aarch64 -M virt,gic-version=2 -m 1G", "virt-gicv2", "aarch64"),
        ("qemu-system-aarch64 -M virt-9.0,highmem=off -m 1G", "virt-lowmem", "aarch64"),
        ("qemu-system-riscv64 -M virt -m 1G", "riscv-virt", "riscv64"),
        ("qemu-system-s390x -m 1G", "s390x", "s390x"),
        ("qemu-system-x86_64 -M microvm -m 1G", "microvm", "x86_64"),
    ],
)
def test_qemu_of_each_architecture_has_its_machine(text: str, model: str, arch: str) -> None:
    read = vi.read_vm(text)
    assert (read.guest.machine, read.arch) == (model, arch)


def test_qemu_ivshmem_is_a_bar_and_the_guest_has_its_own_iommu_by_the_machine() -> None:
    read = vi.read_vm(
        "qemu-system-aarch64 -M virt,iommu=smmuv3 -m 1G -device ivshmem-plain,memdev=lg,id=shm "
        "-object memory-backend-file,id=lg,size=64M,mem-path=/dev/shm/lg -overcommit mem-lock=on"
    )
    assert read.guest.bars == (vi.Bar("ivshmem shm", 64 << 20, required=True),)
    assert read.guest.viommu
    assert read.locked


# -- Proxmox, Cloud Hypervisor, Firecracker --------------------------------------------------------


def test_proxmox_snapshots_behind_the_configuration_do_not_count() -> None:
    read = vi.read_vm(
        "cores: 1\nmemory: 2048\nname: a\n\n[before]\nmemory: 9999\nhostpci0: 01:00\n"
    )
    assert (read.guest.ram, read.devices) == (2 * GIB, ())


def test_proxmox_devices_are_slots_functions_lists_mappings_and_mediated_ones() -> None:
    read = vi.read_vm(
        "memory: 1024\ncores: 1\nhostpci0: 01:00,pcie=1,rombar=0\nhostpci1: host=02:00.0;03:00.1\n"
        "hostpci2: mapping=gpu1\nhostpci3: 04:00.0,mdev=nvidia-63\n"
        "args: -device vfio-pci,host=5:0\n"
    )
    assert [(item.name, item.kind) for item in read.devices] == [
        ("0000:01:00", "pci"),
        ("0000:02:00.0", "pci"),
        ("0000:03:00.1", "pci"),
        ("mapping gpu1", "other"),
        ("nvidia-63 of 04:00.0", "mdev"),
        ("5:0", "other"),
    ]
    assert not read.devices[0].rom


@pytest.mark.parametrize(
    ("cpu", "bits", "maxmem"),
    [("cpu: EPYC", 40, 512 << 30), ("cpu: EPYC,phys-bits=46", 46, 4 << 40), ("cpu: host", None, 0)],
)
def test_proxmox_memory_hotplug_reaches_as_far_as_the_address_bits_allow(
    cpu: str, bits: int | None, maxmem: int
) -> None:
    read = vi.read_vm(f"{cpu}\nmemory: 8192\nnuma: 1\nhotplug: disk,memory\n")
    assert read.guest.phys_bits == bits
    assert (read.guest.maxmem or 0) == maxmem
    assert len(read.unread) == 1


def test_proxmox_numa_nodes_and_huge_pages_are_read() -> None:
    read = vi.read_vm(
        "memory: 8192\nnuma: 1\nhugepages: 1024\nnuma0: cpus=0-3,memory=4096\n"
        "numa1: cpus=4-7,memory=4096\nmachine: q35,viommu=intel\nmeta: creation-qemu=9.2.0\n"
    )
    assert read.guest.nodes == (vi.Node(4 * GIB, GIB, "0"), vi.Node(4 * GIB, GIB, "1"))
    assert read.guest.viommu_bits == 48
    assert not read.faults


def test_proxmox_cpu_keeps_bits_that_host_does_not_obey() -> None:
    assert vi.read_vm("cpu: host,phys-bits=39\nmemory: 1024\n").guest.phys_bits is None
    assert vi.read_vm("cpu: custom-mine\nmemory: 1024\n").unread == (
        "cpu: custom-mine: what cpu-models.conf says of it",
    )


def test_cloud_hypervisor_command_and_json_are_the_same_guest() -> None:
    command = vi.read_vm(
        "cloud-hypervisor --cpus boot=4,max_phys_bits=40 --memory size=4G,hugepages=on,"
        "hugepage_size=1G,hotplug_size=2G "
        "--device path=/sys/bus/pci/devices/0000:01:00.0/,iommu=on "
        "path=/sys/bus/pci/devices/0000:02:00.0 --disk path=a --frobnicate"
    )
    document = {
        "payload": {"kernel": "k"},
        "cpus": {"boot_vcpus": 4, "max_phys_bits": 40},
        "memory": {
            "size": 4 * GIB,
            "hugepages": True,
            "hugepage_size": GIB,
            "hotplug_size": 2 * GIB,
        },
        "devices": [
            {"path": "/sys/bus/pci/devices/0000:01:00.0/", "iommu": True},
            {"path": "/sys/bus/pci/devices/0000:02:00.0"},
        ],
        "frobnicate": 1,
    }
    read = vi.read_vm(json.dumps(document))
    assert read.readings == command.readings
    assert read.devices == command.devices
    assert (read.guest.maxmem, read.guest.page_size) == (6 * GIB, GIB)
    assert (command.unread, read.unread) == (("--frobnicate",), ("'frobnicate'",))


def test_cloud_hypervisor_zones_are_its_ram_and_the_host_decides_the_machine() -> None:
    read = vi.read_vm("cloud-hypervisor --memory size=0 --memory-zone id=a,size=1G id=b,size=2G")
    assert read.guest.ram == 3 * GIB
    assert read.readings_on("aarch64")[0].guest.machine == "cloud-hypervisor-arm"
    assert read.readings_on("x86_64")[0].guest.machine == "cloud-hypervisor"


def test_firecracker_pages_are_read_and_what_is_new_is_listed() -> None:
    read = vi.read_vm(
        '{"machine-config": {"mem_size_mib": 256, "huge_pages": "2M"}, "sparkle": 1,'
        ' "memory-hotplug": {"total_size_mib": 1024}}'
    )
    assert read.guest.page_size == 2 << 20
    assert read.unread == ("'sparkle'", "'memory-hotplug': where its memory lies")


def test_definition_is_planned_as_it_is_and_each_reading_has_to_fit() -> None:
    read = domain("<cpu mode='host-passthrough'/>", "q35")
    layout = vi.plan(read, vi.load_host("amd-epyc-1tb").usable())
    assert layout.ram_bytes == 8 * GIB
    wide = domain("<devices><iommu model='intel'/></devices>", "q35")
    with pytest.raises(vi.PlanError, match=r"^with QEMU 9.2 and later: .* it fits with QEMU 7"):
        vi.plan(wide, vi.load_host("intel-dmar-i7-2600").usable())


def test_intel_iommu_on_a_machine_without_a_place_for_it_is_a_fault() -> None:
    # QEMU 10.0.13: "Parameter 'driver' expects a dynamic sysbus device type for the machine"
    read = qemu(
        "-machine pc -m 1G -device intel-iommu,caching-mode=on -device vfio-pci,host=01:00.0"
    )
    assert [fault.fix for fault in read.faults] == ["-machine q35"]


@pytest.mark.parametrize(
    ("text", "behind"),
    [
        ("qemu-system-x86_64 -M q35 -m 1G -device vfio-pci,host=01:00.0", False),
        ("qemu-system-x86_64 -M q35 -m 1G -device vfio-pci,host=01:00.0,bus=pcie.0", False),
        ("qemu-system-x86_64 -M q35 -m 1G -device vfio-pci,host=01:00.0,bus=root.1", True),
        ("memory: 1024\nmachine: q35\nhostpci0: 01:00,pcie=1\n", True),
        ("memory: 1024\nmachine: q35\nhostpci0: 01:00\n", False),
    ],
)
def test_devices_behind_ports_are_known_to_be(text: str, behind: bool) -> None:
    assert vi.read_vm(text).root_ports == behind


@pytest.mark.parametrize(
    ("machine", "address", "behind"),
    [
        ("q35", "<address type='pci' bus='0x04'/>", True),
        ("q35", "<address type='pci' bus='0x00'/>", False),
        ("q35", "", True),
        ("pc", "<address type='pci' bus='0x00'/>", False),
    ],
)
def test_libvirt_devices_stand_behind_ports_unless_they_are_on_the_root(
    machine: str, address: str, behind: bool
) -> None:
    given = f"<hostdev type='pci'><source><address bus='0x01'/></source>{address}</hostdev>"
    assert domain(f"<devices>{given}</devices>", machine).root_ports == behind


PORTS = (
    "-M q35 -m 1G -device pcie-root-port,id=c,bus=pcie.0,addr=0x3 "
    "-device pcie-root-port,id=b,addr=02.1 -device ioh3420,id=a,addr=2.0x0 "
)


@pytest.mark.parametrize(
    ("more", "ports"),
    [
        ("", ((), (), ())),
        ("-device vfio-pci,host=01:00.0,bus=b", ((), ("0000:01:00.0",), ())),
        (
            "-device vfio-pci,host=01:00.1,bus=c,addr=0.1 -device vfio-pci,host=01:00.0,bus=c",
            ((), (), ("0000:01:00.1", "0000:01:00.0")),
        ),
        ("-device vfio-pci,host=01:00.0", ((), (), ())),  # on the root bus
        ("-device vfio-pci,host=01:00.0,bus=switch", ()),  # behind more than a port
        ("-device virtio-net-pci,bus=a", ((), (), ())),  # as good as nothing
        # which gets the slot that is free: those stand as they are listed
        (
            "-device pcie-root-port,id=d -device vfio-pci,host=01:00.0,bus=c",
            (("0000:01:00.0",), (), (), ()),
        ),
        ("-device pxb-pcie,id=far -device pcie-root-port,bus=far", ((), (), ())),
    ],
)  # fmt: skip
def test_root_ports_are_listed_as_the_bus_has_them(more: str, ports: object) -> None:
    assert qemu(PORTS + more).ports == ports


def test_root_ports_of_a_machine_whose_firmware_is_not_modelled_are_none() -> None:
    read = vi.read_vm("qemu-system-aarch64 -M virt -m 1G -device pcie-root-port,id=a")
    assert read.ports == ()


CONTROLLER = (
    "<controller type='pci' index='{index}' model='pcie-root-port'>"
    "<address type='pci' bus='0x00' slot='{slot}' function='{function}'/></controller>"
)


@pytest.mark.parametrize(
    ("place", "ports"),
    [
        ("<address type='pci' bus='0x0a'/>", ((), ("0000:01:00.0",), ())),
        ("<address type='pci' bus='1'/>", (("0000:01:00.0",), (), ())),
        ("<address type='pci' bus='0x00'/>", ((), (), ())),
        ("<address type='pci' bus='0x0c'/>", ()),  # no root port
        ("", ()),  # libvirt chooses
        ("<address type='pci' bus='what'/>", ()),
    ],
)
def test_root_ports_of_a_domain_are_its_controllers(place: str, ports: object) -> None:
    controllers = "".join(
        CONTROLLER.format(index=index, slot=slot, function=function)
        for index, slot, function in (
            ("2", "0x3", "0"),
            ("10", "0x02", "0x1"),
            ("1", "0x02", "0x0"),
        )
    )
    other = "<controller type='pci' index='12' model='pcie-to-pci-bridge'/>"
    given = f"<hostdev type='pci'><source><address bus='0x01'/></source>{place}</hostdev>"
    read = domain(f"<devices>{controllers}{other}{given}</devices>", "q35")
    assert read.ports == ports


@pytest.mark.parametrize(
    "place", ["", "<address type='pci' bus='0x00' slot='x'/>", "<address type='pci' slot='0x2'/>"]
)
def test_root_port_without_an_address_is_not_counted(place: str) -> None:
    port = f"<controller type='pci' index='1' model='pcie-root-port'>{place}</controller>"
    assert domain(f"<devices>{port}</devices>", "q35").ports == ()


def test_qemu_program_is_not_taken_from_the_value_of_an_option() -> None:
    read = vi.read_vm(
        "exec qemu-system-aarch64 \\\n -machine virt -accel kvm \\\n -name kvm -m 8G\n"
    )
    assert (read.guest.machine, read.guest.ram, read.name) == ("virt", 8 * GIB, "kvm")


@pytest.mark.parametrize(
    "text",
    [
        "<domain><memory>1048576</memory><launchSecurity type='sev'/></domain>",
        "memory: 1024\ncores: 1\namd-sev: type=std\n",
    ],
)
def test_confidential_guest_is_refused_in_every_format(text: str) -> None:
    with pytest.raises(RequestError, match="such a guest has fewer address bits"):
        vi.read_vm(text)


def test_libvirt_interrupt_controller_and_pages_of_the_only_node_are_read() -> None:
    read = vi.read_vm(
        "<domain type='kvm'><memory unit='GiB'>8</memory><os><type arch='aarch64' "
        "machine='virt-9.0'>hvm</type></os><features><gic version='2'/></features><memoryBacking>"
        "<hugepages><page size='1' unit='G' nodeset='0'/></hugepages></memoryBacking></domain>"
    )
    assert (read.guest.machine, read.guest.page_size) == ("virt-gicv2", GIB)
