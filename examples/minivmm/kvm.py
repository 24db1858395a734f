# SPDX-License-Identifier: Apache-2.0
"""As much of KVM as a guest of one processor needs (include/uapi/linux/kvm.h, x86-64)."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import Self

CREATE_VM = 0xAE01
GET_VCPU_MMAP_SIZE = 0xAE04
CREATE_VCPU = 0xAE41
RUN = 0xAE80
SET_USER_MEMORY_REGION = 0x4020_AE46
SET_REGS = 0x4090_AE82
GET_SREGS = 0x8138_AE83
SET_SREGS = 0x4138_AE84

EXIT_MMIO = 6
SEGMENT = struct.Struct("=QIHBBBBBBBBBB")  # base limit selector type present dpl db s l g avl ...
SREGS_SIZE = 0x138
CR0_AT = 8 * SEGMENT.size + 2 * 16


class Machine:
    """A virtual machine with one processor in 32-bit protected mode, all segments flat."""

    def __init__(self) -> None:
        self._kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self._vm = fcntl.ioctl(self._kvm, CREATE_VM, 0)
        self._slots = 0
        size = fcntl.ioctl(self._kvm, GET_VCPU_MMAP_SIZE, 0)
        self._vcpu = fcntl.ioctl(self._vm, CREATE_VCPU, 0)
        self._run = mmap.mmap(self._vcpu, size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._run.close()
        for fd in (self._vcpu, self._vm, self._kvm):
            os.close(fd)

    def add_memory(self, gpa: int, size: int, hva: int) -> None:
        """Let the guest see memory of this process."""
        slot = struct.pack("=IIQQQ", self._slots, 0, gpa, size, hva)
        fcntl.ioctl(self._vm, SET_USER_MEMORY_REGION, slot)
        self._slots += 1

    def run(self, entry: int, doorbell: int) -> int:
        """Run from `entry` until the guest writes to the doorbell; return what it wrote."""
        sregs = bytearray(SREGS_SIZE)
        fcntl.ioctl(self._vcpu, GET_SREGS, sregs)
        for index, kind in enumerate((11, 3, 3, 3, 3, 3)):  # code, then data segments
            selector = 8 if index == 0 else 16
            flat = SEGMENT.pack(0, 0xFFFF_FFFF, selector, kind, 1, 0, 1, 1, 0, 1, 0, 0, 0)
            sregs[index * SEGMENT.size : (index + 1) * SEGMENT.size] = flat
        (cr0,) = struct.unpack_from("=Q", sregs, CR0_AT)
        struct.pack_into("=Q", sregs, CR0_AT, cr0 | 1)
        fcntl.ioctl(self._vcpu, SET_SREGS, bytes(sregs))
        fcntl.ioctl(self._vcpu, SET_REGS, struct.pack("=18Q", *[0] * 16, entry, 2))
        while True:
            fcntl.ioctl(self._vcpu, RUN, 0)
            (reason,) = struct.unpack_from("=I", self._run, 8)
            if reason != EXIT_MMIO:
                raise RuntimeError(f"the guest stopped for reason {reason}")
            address, word, _, _, writes = struct.unpack_from("=QIIIB", self._run, 32)
            if writes and address == doorbell:
                return int(word)
