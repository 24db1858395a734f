# SPDX-License-Identifier: Apache-2.0
"""QEMU's options, merged as QEMU merges them.

Source: qemu-options.hx and system/vl.c, QEMU 7.2 to 11.1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmm_iova.errors import HostDataError
from vmm_iova.patterns import regex
from vmm_iova.plain import one_line
from vmm_iova.readers.qemu import device, keys
from vmm_iova.record import collector, field
from vmm_iova.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.readers.qemu import Option

_QUIET_WORDS = (
    "name uuid rtc smp boot display vga vnc spice k usb usbdevice monitor mon qmp qmp-pretty "
    "chardev serial parallel pidfile D d trace msg sandbox netdev nic net fsdev virtfs tpmdev "
    "smbios acpitable kernel initrd append dtb audio audiodev soundhw iscsi add-fd compat "
    "watchdog watchdog-action action icount echr id gdb loadvm plugin prom-env show-cursor "
    "hda hdb hdc hdd fda fdb cdrom mtdblock sd pflash blockdev drive seed clock L runas run-with "
    "chroot qtest qtest-log dump-vmstate dfilter jitdump perfmap bt incoming tb-size xen-domid "
    "option-rom no-hpet no-acpi nodefaults nographic enable-kvm no-user-config S daemonize "
    "snapshot no-reboot no-shutdown only-migratable win2k-hack no-fd-bootchk preconfig singlestep "
    "full-screen no-quit portrait async-teardown alt-grab ctrl-grab enable-sync-profile "
    "no-kvm-irqchip no-kvm-pit-reinjection nodefconfig s g rotate semihosting-config nouserconfig "
    "enable-fips h help version device-del g realtime mem-path mem-prealloc"
)
_QUIET = frozenset(_QUIET_WORDS.split())
"""Options that say nothing of addresses, or are read elsewhere in this folder."""

_FILES = ("pflash", "blockdev", "drive")
OVMF = regex(r"OVMF|edk2|QEMU_EFI|efi[_-]code|uefi", re.IGNORECASE)
"""Names of files that hold UEFI firmware."""


@collector
class Options:
    """The options of one start of QEMU, in groups as QEMU merges them.

    Attributes:
        arch: of the program, or None.
        machine: properties of -machine, with `type`.
        memory: -m, with `size`.
        cpu: the last -cpu, or None.
        devices: -device, in order.
        objects: -object, by id.
        globals: -global, in order: driver, property, value.
        fw_cfg: -fw_cfg, by name.
        nodes: -numa node.
        flags: other options that matter, by name.
        firmware: files of firmware.
        unread: what was not understood.
        releases: lower and upper bound of QEMU's release, where something states it.
    """

    arch: str | None = None
    machine: dict[str, str] = field(default_factory=dict)
    memory: dict[str, str] = field(default_factory=dict)
    cpu: str | None = None
    devices: list[dict[str, str]] = field(default_factory=list)
    objects: dict[str, dict[str, str]] = field(default_factory=dict)
    globals: list[tuple[str, str, str]] = field(default_factory=list)
    fw_cfg: dict[str, str] = field(default_factory=dict)
    nodes: list[dict[str, str]] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)
    firmware: list[str] = field(default_factory=list)
    unread: dict[str, None] = field(default_factory=dict)
    releases: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None)

    @property
    def kvm(self) -> bool:
        """True unless the guest is emulated: who gives a guest a device has KVM."""
        said = [self.machine.get("accel", ""), self.flags.get("accel", "")]
        names = " ".join(said).replace(",", " ").replace(":", " ").split()
        return not names or "kvm" in names or names[0] != "tcg"

    def add(self, options: Iterable[Option], name: str) -> None:
        """Take more options, behind those that there are.

        Args:
            options: as `readers.qemu.options_of` returns them.
            name: of the definition, for messages.

        Raises:
            HostDataError: -readconfig is among them.
        """
        for option, value in options:
            self._add(option, value, name)

    def _add(self, option: str, value: str, name: str) -> None:
        if option in ("readconfig", "writeconfig"):
            raise HostDataError(
                f"{name}: -{option} {shorten(value, 40)}: what that file holds is not on the "
                "command line, and it is not read",
                source=name,
                text=value,
                hint="put its options on the command line, or ask QEMU's log for them",
            )
        if "$" in value and option in ("m", "cpu", "machine", "M", "device", "object", "numa"):
            self._odd(f"-{option} {value}: a variable of the shell")
            if option == "m":
                self.memory.pop("size", None)
                self.flags["unknown-ram"] = value
            if option != "device":  # what it is counts, also where its name is not known
                return
        if option in ("machine", "M"):
            self.machine.update(_json_or_keys(value, "type"))
        elif option == "m":
            self.memory.update(keys(value, "size"))
        elif option == "cpu":
            self.cpu = value
        elif option == "device":
            self._device(value)
        elif option == "object":
            made = device(value, "qom-type")
            self.objects[made.get("id", str(len(self.objects)))] = made
        elif option == "global":
            self._global(value)
        elif option == "fw_cfg":
            given = keys(value, "name")
            self.fw_cfg[given.get("name", "")] = given.get("string", "")
        elif option == "numa":
            node = keys(value, "type")
            if node.get("type") == "node":
                self.nodes.append(node)
        elif option == "set":
            self._set(value)
        elif option in ("accel", "overcommit", "mem-path", "mem-prealloc", "realtime"):
            self.flags[option] = value
        elif option == "bios" or (option in _FILES and OVMF.search(value)):
            self.firmware.append(value)
        elif option not in _QUIET:
            self._odd(f"-{option}")

    def _odd(self, text: str) -> None:
        self.unread[shorten(one_line(text), 80)] = None

    def _device(self, value: str) -> None:
        made = device(value)
        if not made.get("driver"):
            self._odd(f"-device {value}")
            return
        self.devices.append(made)

    def _global(self, value: str) -> None:
        given = keys(value, "first")
        if {"driver", "property", "value"} <= given.keys():
            self.globals.append((given["driver"], given["property"], given["value"]))
            return
        name, equals, text = value.partition("=")
        driver, dot, what = name.rpartition(".")
        if equals and dot:
            self.globals.append((driver, what, text))
        else:
            self._odd(f"-global {value}")

    def _set(self, value: str) -> None:
        """-set device.ID.KEY=VALUE changes what -device has said."""
        match = re.fullmatch(r"device\.([^.=]+)\.([^=]+)=(.*)", value)
        known = [item for item in self.devices if match and item.get("id") == match[1]]
        if match and known:
            known[0][match[2]] = match[3]
        else:
            self._odd(f"-set {value}")


def _json_or_keys(value: str, first: str) -> dict[str, str]:
    return device(value, first) if value.startswith("{") else keys(value, first)
