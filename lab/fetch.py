# SPDX-License-Identifier: Apache-2.0
"""Get everything that some guests need, once; a second time nothing is asked of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab import needs, userland
from lab.built import BuiltKernel
from lab.say import say

if TYPE_CHECKING:
    from lab.guests import Guest
    from lab.kernels import Kernel


def install(guests: list[Guest]) -> None:
    """Install what this machine lacks for these guests, or say in one sentence what to install."""
    wanted = [*needs.BASIC, *(needs.QEMU[guest.arch] for guest in guests)]
    if any(isinstance(guest.kernel, BuiltKernel) for guest in guests):
        wanted += needs.BUILD
    needs.install(wanted)


def fetch(guests: list[Guest], renew: bool = False) -> dict[str, Kernel]:
    """Fetch or build for these guests; return each one's kernel."""
    install(guests)
    kernels: dict[str, Kernel] = {}
    renewed: set[object] = set()
    for guest in guests:
        fresh = renew and guest.kernel not in renewed
        renewed.add(guest.kernel)
        kernels[guest.name] = guest.kernel.kernel(fresh)
        say(f"{guest.name}: kernel {kernels[guest.name].release}")
        userland.busybox(guest.debian_arch, fresh)
        if guest.foreign:
            userland.foreign_root(guest.debian_arch, fresh)
            userland.pure_packages()
    return kernels
