# SPDX-License-Identifier: Apache-2.0
"""A VMM small enough to read in one sitting: a KVM guest with a VFIO device passed through.

    python examples/minivmm/minivmm.py 0000:00:10.0

The device is QEMU's `edu`, bound to vfio-pci. Where RAM, PCI window and MSI window lie is planned
with the ranges that this host's kernel gives for this very device; RAM is mapped for the device at
IOVA = GPA; the guest's own machine code then starts two DMA transfers, and the bytes arrive. Where
the guest rings when it is done is left open too: the planner finds a page for the doorbell that is
neither RAM nor PCI window nor a hole of the host.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import kvm

import vmm_iova as vi
from vmm_iova.kernel import Device, open_space, with_kernel_facts
from vmm_iova.mapping import GuestMemory, TerminalProgress, map_pieces, prefault
from vmm_iova.planning.layout import ItemKind

CODE, SENT, ARRIVED = 0x1000, 0x20_0000, 0x30_0000
MESSAGE = b"written by the guest, moved by the device, seen by the VMM"


def guest_code(bar: int, doorbell: int) -> bytes:
    """Assemble: SENT to the device, back out to ARRIVED, then 42 to the doorbell."""

    def store(register: int, value: int) -> bytes:  # mov dword [edi + register], value
        return b"\xc7\x87" + struct.pack("<II", register, value)

    # mov eax, [edi + 0x98]; test al, 1; jnz back: until the device is done
    wait = b"\x8b\x87\x98\0\0\0\xa8\x01\x75\xf6"
    size, inside = len(MESSAGE), 0x40000
    code = b"\xbf" + struct.pack("<I", bar)  # mov edi, bar
    for source, target, command in ((SENT, inside, 1), (inside, ARRIVED, 3)):
        code += store(0x80, source) + store(0x88, target) + store(0x90, size)
        code += store(0x98, command) + wait
    ring = b"\xc7\x05" + struct.pack("<II", doorbell, 42)  # mov dword [doorbell], 42
    return code + ring + b"\xf4"  # hlt


def main(bdf: str) -> int:
    """Run the guest; 0 when the bytes arrived."""
    with open_space([bdf]) as space:
        host = with_kernel_facts(vi.load_host(), space)
        guest = vi.Guest(machine="own-x86", ram="64MiB", doorbells=[vi.Doorbell("done", "4KiB")])
        layout = vi.plan(guest, host.usable(devices=[bdf]))
        for item in layout.items:
            print(f"{item.place}  {item.kind.value}: {item.name}")
        window = next(item for item in layout.items if item.kind is ItemKind.WINDOW)
        doorbell = next(item for item in layout.items if item.name == "done").place.start
        device = space.device(bdf)
        with (
            GuestMemory.for_layout(layout, largest_page=space.facts().largest_page) as memory,
            kvm.Machine() as machine,
        ):
            prefault(memory.pieces, progress=TerminalProgress("guest memory"))
            with map_pieces(space, memory.pieces, usable=layout.usable):
                for item, piece in zip(layout.ram, memory.pieces, strict=True):
                    machine.add_memory(item.place.start, piece.size, piece.hva)
                bar = pass_bar_through(machine, device, window.place.start)
                device.enable(memory=True, bus_master=True)
                memory.write(CODE, guest_code(window.place.start, doorbell))
                memory.write(SENT, MESSAGE)

                said = machine.run(CODE, doorbell)

                arrived = memory.read(ARRIVED, len(MESSAGE))
                del bar
    print(f"the guest says {said}; at {ARRIVED:#x} there is: {arrived.decode(errors='replace')}")
    return 0 if said == 42 and arrived == MESSAGE else 1


def pass_bar_through(machine: kvm.Machine, device: Device, gpa: int) -> mmap.mmap:
    """Let the guest see the registers of the device, without an exit for each access."""
    region = device.region(0)
    bar = mmap.mmap(device.fd, region.size, offset=region.offset)
    machine.add_memory(gpa, region.size, ctypes.addressof(ctypes.c_char.from_buffer(bar)))
    return bar


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
