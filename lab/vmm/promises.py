"""Options that the program prints for QEMU: each is started, and has to have its effect.

They are taken from where they are worded, the remedies and the machine files, so an option that
is new there and that nothing here tries is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vmm_iova as vi
from vmm_iova import remedies
from vmm_iova.ranges import GIB, MIB, TIB
from vmm_iova.remedies import Remedy
from vmm_iova.units import parse_size

from lab.say import LabError
from lab.vmm.compare import differences, start
from lab.vmm.guests import guest_of
from lab.vmm.matrix import Config
from lab.vmm.observe import Qmp, regions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.vmm.binaries import Qemu

_OPTION = re.compile(r"(?<![\w-])-(cpu|device|global|fw_cfg|machine|M) ([^\s;'\"()]+)")
_BITS = 39


def printed() -> dict[str, str]:
    """Return each option that remedies and machine files print for QEMU, with where it stands."""
    found: dict[str, str] = {}
    for name, remedy in vars(remedies).items():
        if isinstance(remedy, Remedy):
            for text in (remedy, *(way for _, way in remedy.ways)):
                found |= dict.fromkeys(_options(text), name)
    for file in resources.files("vmm_iova.machines").iterdir():
        if file.name.endswith(".toml"):
            for _, text in vi.load_machine(file.name.removesuffix(".toml")).options:
                found |= dict.fromkeys(_options(text), file.name)
    return found


def _options(text: str) -> Iterator[str]:
    return (f"-{match[1]} {match[2].rstrip(',.:')}" for match in _OPTION.finditer(text))


@dataclass(frozen=True)
class Promise:
    """What an option is printed for.

    Attributes:
        check: tells what is wrong on a QEMU; None when all is well.
        since: first release of QEMU that has it.
        kvm: it needs KVM.
    """

    check: Callable[[Qemu], str | None]
    since: tuple[int, int] = (0, 0)
    kvm: bool = False


def _run(qemu: Qemu, words: str, *, arch: str = "x86_64", kvm: bool = False) -> Qmp:
    accel = ["-accel", "kvm"] if kvm else []
    command = [*qemu.command(arch), "-nodefaults", "-display", "none", "-S", *accel, *words.split()]
    qmp = Qmp(command)
    if not qmp.alive:
        raise LabError(qmp.complaint() or "it ends at once")
    return qmp


def _cpu_bits(words: str, bits: int | None) -> Callable[[Qemu], str | None]:
    """The guest's CPU has these address bits; None for those of the host."""

    def check(qemu: Qemu) -> str | None:
        wanted = bits
        if bits is None:
            match = re.search(r"(\d+) bits physical", Path("/proc/cpuinfo").read_text("utf-8"))
            wanted = int(match[1]) if match else None
        kvm = words.startswith("-cpu host")
        # KVM in a VM refuses a register of the host's that has nothing to do with addresses
        cpu = words.replace("-cpu host", "-cpu host,arch-capabilities=off")
        qmp = _run(qemu, f"-M q35 -m 1G {cpu}", kvm=kvm)
        try:
            path = qmp.ask("query-cpus-fast")[0]["qom-path"]
            real = qmp.ask("qom-get", path=path, property="phys-bits")
            return None if real == wanted else f"the guest has {real} address bits, not {wanted}"
        finally:
            qmp.close()

    return check


def _hidden(qemu: Qemu) -> str | None:
    """The guest is not told that it runs on KVM; without KVM the property alone is looked at."""
    qmp = _run(qemu, "-M q35 -m 1G -cpu max,kvm=off")
    try:
        path = qmp.ask("query-cpus-fast")[0]["qom-path"]
        shown = qmp.ask("qom-get", path=path, property="kvm")
        return None if shown is False else f"kvm is {shown}"
    finally:
        qmp.close()


def _device(words: str, **wanted: Any) -> Callable[[Qemu], str | None]:
    """The device is there, with these properties."""

    def check(qemu: Qemu) -> str | None:
        qmp = _run(qemu, words)
        try:
            for name, value in wanted.items():
                path = "/machine/peripheral/dev"
                real = qmp.ask("qom-get", path=path, property=name.replace("_", "-"))
                if real != value:
                    return f"{name} is {real}, not {value}"
            return None
        finally:
            qmp.close()

    return check


def _as_planned(config: Config) -> Callable[[Qemu], str | None]:
    """All is where the plan has it, and elsewhere than without the option."""

    def check(qemu: Qemu) -> str | None:
        observed = start(config, qemu)
        if observed.refused is not None:
            return f"QEMU refuses: {observed.refused}"
        wrong = differences(config, qemu, observed)
        if wrong:
            return "; ".join(wrong)
        without = replace(config, pci64=None, low_ram=None, window=None)
        plain = start(without, qemu)
        same = (observed.ram, observed.window, observed.bars) == (
            plain.ram,
            plain.window,
            plain.bars,
        )
        return "it changes nothing" if same and without != config else None

    return check


def _moved(qemu: Qemu) -> str | None:
    words = "-object memory-backend-ram,id=m,size=1500G,reserve=off -m 1500G"
    qmp = _run(qemu, f"-M pc-q35-7.1,memory-backend=m -cpu EPYC,phys-bits=42 {words}")
    try:
        spans = dict(regions(qmp.hmp("info mtree")[0]))
        high = spans["ram-above-4g"]
        return None if high.start == TIB else f"RAM above 4 GiB is at {high}"
    finally:
        qmp.close()


def _bridge(qemu: Qemu) -> str | None:
    words = "-device pcie-pci-bridge,id=br,bus=pcie.0 -device pci-testdev,id=dev,bus=br,addr=1"
    qmp = _run(qemu, f"-M q35 {words}")
    try:
        bus = qmp.ask("qom-get", path="/machine/peripheral/dev", property="parent_bus")
        return None if "/br/" in bus else f"the device is on {bus}"
    finally:
        qmp.close()


_IOMMU = "-M q35,kernel-irqchip=split -device intel-iommu,id=dev"
_PLAIN = Config("map", "q35", 8 * GIB, "Skylake-Server", 46)
_PIECE = replace(_PLAIN, kind="firmware", bars=(256 * MIB,), firmware="ovmf", window=32768, bits=46)
_PIECES = {machine: replace(_PIECE, machine=machine) for machine in ("q35", "i440fx")}


def _ovmf_window(qemu: Qemu) -> str | None:
    """Firmware has BARs low with it, from the release on that the program names."""
    if qemu.ovmf is None or tuple(map(int, qemu.ovmf.split("+")[0].split("."))) < (2025, 2):
        return None
    return next(filter(None, (_as_planned(one)(qemu) for one in _PIECES.values())), None)


PROMISES: dict[str, Promise] = {
    "-cpu host,host-phys-bits-limit={bits}": Promise(
        _cpu_bits(f"-cpu host,host-phys-bits-limit={_BITS}", _BITS), kvm=True
    ),
    "-global host-x86_64-cpu.host-phys-bits-limit={bits}": Promise(
        _cpu_bits(f"-cpu host -global host-x86_64-cpu.host-phys-bits-limit={_BITS}", _BITS),
        kvm=True,
    ),
    "-cpu host,host-phys-bits=on": Promise(
        _cpu_bits("-cpu host,host-phys-bits=on", None), kvm=True
    ),
    "-cpu host": Promise(_cpu_bits("-cpu host", None), kvm=True),
    "-cpu host,kvm=off": Promise(_hidden),
    "-cpu MODEL,phys-bits={bits}": Promise(_cpu_bits("-cpu EPYC,phys-bits=42", 42)),
    "-cpu EPYC": Promise(_moved),
    "-machine pc-q35-7.1": Promise(_moved),
    "-global q35-pcihost.pci-hole64-size={size}": Promise(
        _as_planned(replace(_PLAIN, pci64=250 * GIB))
    ),
    "-global q35-pcihost.pci-hole64-size=SIZE": Promise(_as_planned(replace(_PLAIN, pci64=GIB))),
    "-global q35-pcihost.pci-hole64-size=0": Promise(_as_planned(replace(_PLAIN, pci64=0))),
    "-global i440FX-pcihost.pci-hole64-size={size}": Promise(
        _as_planned(replace(_PLAIN, machine="i440fx", pci64=250 * GIB))
    ),
    "-global i440FX-pcihost.pci-hole64-size=0": Promise(
        _as_planned(replace(_PLAIN, machine="i440fx", pci64=0))
    ),
    "-machine max-ram-below-4g={size}": Promise(_as_planned(replace(_PLAIN, low_ram=GIB))),
    "-fw_cfg name=opt/ovmf/X-PciMmio64Mb,string={mib}": Promise(_ovmf_window),
    "-M virt,highmem-mmio-size={size}": Promise(
        _as_planned(Config("map", "virt", 8 * GIB, pci64=TIB)), since=(10, 0)
    ),
    "-M virt,highmem-mmio=off": Promise(
        _as_planned(Config("map", "virt", 8 * GIB, pci64=0)), since=(8, 0)
    ),
    "-M q35,kernel-irqchip=split": Promise(_device(_IOMMU)),
    "-device intel-iommu": Promise(_device(_IOMMU)),
    "-device intel-iommu,aw-bits={bits}": Promise(_device(f"{_IOMMU},aw-bits=39", aw_bits=39)),
    "-device intel-iommu,aw-bits=48": Promise(_device(f"{_IOMMU},aw-bits=48", aw_bits=48)),
    "-device intel-iommu,caching-mode=on": Promise(
        _device(f"{_IOMMU},caching-mode=on", caching_mode=True)
    ),
    "-device intel-iommu,intremap=on,caching-mode=on": Promise(
        _device(f"{_IOMMU},intremap=on,caching-mode=on", intremap="on", caching_mode=True)
    ),
    "-device virtio-iommu-pci,granule=host": Promise(
        _device("-M q35 -device virtio-iommu-pci,id=dev,granule=host", granule="host"),
        since=(9, 0),
    ),
    "-device pcie-pci-bridge,id=br,bus=pcie.0": Promise(_bridge),
}
"""Each option as it is worded, and what it promises."""

WITHOUT = {"-device {viommu}": "names the device that is on the command line already, to leave out"}
"""Options that are printed to be taken away."""


_FIXES = (
    (re.compile(r"--phys-bits (\d+)\b"), "bits", int),
    (re.compile(r"--pci64 (0)\b"), "pci64", int),
    (re.compile(r"--ram (\w+)"), "ram", lambda text: parse_size(text, "ram")),
    (re.compile(r"--ovmf-window (\d+)MiB"), "window", int),
)
"""What a fix of a refusal changes in a guest."""


def remedied(config: Config, fix: str) -> Config | None:
    """Return a guest with a fix applied; None where the fix is none of QEMU's options."""
    for pattern, field, number in _FIXES:
        match = pattern.match(fix)
        if match is not None:
            return replace(config, **{field: number(match[1])})  # type: ignore[arg-type]
    return None


def broken_fixes(config: Config, qemu: Qemu) -> Iterator[str | None]:
    """Start a guest that is refused with each fix that the refusal names; say what fails."""
    usable = vi.Host("open").usable(aperture=64, granule=4096)
    try:
        vi.plan(guest_of(config, qemu), usable)
    except vi.PlanError as error:
        for fix in error.fixes:
            other = remedied(config, fix)
            if other is not None:
                wrong = differences(other, qemu, start(other, qemu))
                refused = f"{qemu.name}: {config}: {fix}: "
                yield refused + "; ".join(wrong) if wrong else None


def untried() -> dict[str, str]:
    """Return the options that are printed and that nothing here tries, with where they stand."""
    return {
        option: where
        for option, where in printed().items()
        if option not in PROMISES and option not in WITHOUT
    }


def broken_promises(qemu: Qemu, *, kvm: bool) -> Iterator[str | None]:
    """Start each option on a QEMU; yield what is wrong, or None for one that has its effect.

    Args:
        qemu: which.
        kvm: whether this machine has KVM; what needs it is left out without.
    """
    for option, promise in PROMISES.items():
        if qemu.version < promise.since or (promise.kvm and not kvm):
            continue
        try:
            problem = promise.check(qemu)
        except LabError as error:
            problem = str(error)
        yield None if problem is None else f"{qemu.name}: {option}: {problem}"
