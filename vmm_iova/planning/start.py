# SPDX-License-Identifier: Apache-2.0
"""Will a planned guest start? What a host needs beside addresses, as far as its facts say.

Each row is judged by a fact, or it is not known; nothing is guessed. In the order in which a VMM
meets them (hw/vfio/pci.c, vfio_realize; drivers/vfio/group.c and vfio_iommu_type1.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vmm_iova import remedies as say
from vmm_iova.diagnosis.filled_remedies import fill
from vmm_iova.planning.assigned import members
from vmm_iova.planning.layout import ItemKind
from vmm_iova.ranges import BASE_PAGE, GIB
from vmm_iova.record import record
from vmm_iova.units import format_size, show_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from vmm_iova.host.facts import Facts
    from vmm_iova.planning.assigned import Member
    from vmm_iova.planning.budget import Budget, LargePages
    from vmm_iova.planning.layout import Layout
    from vmm_iova.remedies import Remedy

StartVerdict = Literal["starts and works", "starts, but", "does not start", "not known"]
"""`starts, but`: something that the guest can do without is amiss."""
RowState = Literal["ok", "not ok", "not known"]
"""What the facts say of a row."""
Via = Literal["type1", "iommufd"]
"""How the VMM opens its devices."""
Manager = Literal["libvirt", "proxmox"]
"""A program that starts the VMM, binds devices and sets limits by itself."""


@record
class StartRow:
    """One thing that a guest needs to start.

    Attributes:
        what: a word or two: `IOMMU`, `driver`, `locked memory`.
        state: what the facts say.
        text: the fact, or what is not known; a clause.
        do: what to do against it; where it is not known, what would settle it.
        fatal: True if the guest does not start for it; False if it only misses something.
    """

    what: str
    state: RowState
    text: str
    do: tuple[str, ...] = ()
    fatal: bool = True


@record
class Start:
    """Whether a planned guest starts on its host.

    Attributes:
        rows: what it needs, in the order in which a VMM meets it.

    Synchronization: none required (immutable).
    """

    rows: tuple[StartRow, ...]

    @property
    def verdict(self) -> StartVerdict:
        """The answer: what stops it counts first, then what is not known, then what it misses."""
        amiss = [row for row in self.rows if row.state == "not ok"]
        if any(row.fatal for row in amiss):
            return "does not start"
        if any(row.state == "not known" for row in self.rows):
            return "not known"
        return "starts, but" if amiss else "starts and works"

    def rows_that_are(self, state: RowState) -> tuple[StartRow, ...]:
        """Return the rows of one state, what stops the guest first."""
        found = [row for row in self.rows if row.state == state]
        return tuple(sorted(found, key=lambda row: not row.fatal))


def will_start(
    host: Facts,
    layout: Layout,
    cost: Budget,
    devices: Iterable[str] = (),
    *,
    via: Via = "type1",
    manager: Manager | None = None,
    managed: Collection[str] = (),
    hard_limit: int | None = None,
) -> Start:
    """Say whether a planned guest starts on its host, beside having its addresses.

    Args:
        host: the facts that it was planned on.
        layout: where the guest is.
        cost: what mapping it takes, from `budget`.
        devices: names of the devices that it is given, as in `Facts.device`.
        via: how its VMM opens them.
        manager: what starts the VMM: it opens nodes and sets limits for it.
        managed: names of devices that the manager binds by itself.
        hard_limit: bytes that the VMM may lock, where its definition says so (libvirt's memtune).

    Raises:
        UnknownNameError: the host has no such device.

    Complexity: O(devices of the host).
    Synchronization: none required.
    """
    given = members(host, devices)
    bound = {host.device(name).name for name in managed}
    case = _Case(host, layout, cost, given, via, manager, frozenset(bound), hard_limit)
    return Start(tuple(case.rows()))


@record
class _Case:
    host: Facts
    layout: Layout
    cost: Budget
    given: tuple[Member, ...]
    via: Via
    manager: Manager | None
    managed: frozenset[str]
    hard_limit: int | None

    def rows(self) -> Iterator[StartRow]:
        yield self._iommu()
        yield self._addresses()
        yield from self._peers()
        if self.given:
            yield self._assignable()
            yield self._driver()
            yield self._group()
            yield self._bars()
            yield self._nodes()
        else:
            yield _unknown("devices", "no device of the guest is named", say.SETTLE_DEVICES)
        yield self._interrupts()
        yield self._memory()
        yield self._huge_pages()
        yield self._locked()
        yield self._entries()

    # -- addresses ---------------------------------------------------------------------------------

    def _iommu(self) -> StartRow:
        groups = self.host.groups
        wanted = {member.device.group for member in self.given}
        physical = [item.id for item in groups if not item.translated and item.id in wanted]
        if physical:
            text = f"nothing translates group {physical[0]}: an IOVA is a physical address there"
            return StartRow("IOMMU", "not ok", text, (_do(say.IOMMU_ON),))
        if self.host.sysfs and groups:
            return StartRow("IOMMU", "ok", f"in use, {len(groups)} groups")
        return _unknown("IOMMU", "whether the IOMMU is in use")

    def _addresses(self) -> StartRow:
        if self.layout.starts:
            return StartRow("addresses", "ok", "devices reach all RAM where the VMM puts it")
        text = f"{self.layout.machine.title} cannot have RAM around the holes of this host"
        return StartRow("addresses", "not ok", text)

    def _peers(self) -> Iterator[StartRow]:
        away = [
            item.name
            for item in self.layout.items
            if item.kind is ItemKind.BAR and item.iova is None and not item.emulated
        ]
        if away:
            text = f"peer-to-peer: no other device reaches {', '.join(away)}"
            yield StartRow("peers", "not ok", text, fatal=False)

    def _assignable(self) -> StartRow:
        wanted = {member.device.group for member in self.given if member.asked}
        blocked = [item for item in self.layout.usable.unassignable if item.group.id in wanted]
        if blocked:
            do = (_do(say.FIRMWARE_REGION), _do(say.FREE_DEVICE))
            return StartRow("assignable", "not ok", blocked[0].text, do)
        listed = [item for item in self.host.groups if item.id in wanted]
        if any(item.regions is None for item in listed):
            return _unknown("assignable", "whether firmware claims the devices")
        return StartRow("assignable", "ok", "firmware claims none of the devices")

    # -- devices -----------------------------------------------------------------------------------

    def _driver(self) -> StartRow:
        asked = [member for member in self.given if member.asked]
        loose = [item for item in asked if item.device.name not in self.managed]
        unknown = [item.device.name for item in loose if item.holder == "not known"]
        wrong = [
            item.device
            for item in loose
            if item.holder != "not known" and "vfio" not in (item.device.driver or "")
        ]
        if wrong:
            first = wrong[0]
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            text = f"{first.name} is bound to {first.driver or 'no driver'}{more}"
            do = tuple(_do(say.BIND_THIS, bdf=device.name) for device in wrong)
            return StartRow("driver", "not ok", text, do)
        if unknown:
            return _unknown("driver", f"the driver of {', '.join(unknown)}")
        if not loose:
            return StartRow("driver", "ok", f"{self.manager or 'its manager'} binds the devices")
        drivers = dict.fromkeys(str(item.device.driver) for item in loose)
        return StartRow("driver", "ok", f"bound to {', '.join(drivers)}")

    def _group(self) -> StartRow:
        others = [member for member in self.given if not member.asked]
        held = [item.device for item in others if item.holder == "held"]
        unknown = [item.device.name for item in others if item.holder == "not known"]
        groups = sorted({str(item.device.group) for item in self.given})
        name = f"group {groups[0]}" if len(groups) == 1 else f"groups {', '.join(groups)}"
        if held:
            holders = ", ".join(f"{device.name} to {device.driver}" for device in held)
            text = f"a host driver has part of group {held[0].group}: {holders}"
            do = (_do(say.BIND_THESE, devices=", ".join(device.name for device in held)),)
            return StartRow("group", "not ok", text, do)
        if unknown:
            return _unknown("group", f"who has {', '.join(unknown)} of {name}")
        return StartRow("group", "ok", f"no host driver has another device of {name}")

    def _bars(self) -> StartRow:
        asked = [member.device for member in self.given if member.asked]
        lost = [
            f"{bar.title} of {device.name}"
            for device in asked
            for bar in device.bars or ()
            if not bar.assigned and bar.kind.value == "bar"
        ]
        if lost:
            text = f"the host has no address for {', '.join(lost)}, so that nothing can drive it"
            return StartRow("BARs", "not ok", text, (_do(say.WINDOW_HOST),))
        unknown = [device.name for device in asked if device.bars is None]
        if unknown:
            return _unknown("BARs", f"the BARs of {', '.join(unknown)}")
        return StartRow("BARs", "ok", "the host has an address for each")

    def _nodes(self) -> StartRow:
        nodes = self.host.state.nodes
        if self.manager is not None:
            return StartRow("nodes", "ok", f"{self.manager} hands them to the VMM")
        if nodes is None:
            return _unknown("nodes", "the nodes in /dev/vfio, and who may open them")
        if (
            self.via == "iommufd"
            and len({n.usable for n in nodes if n.path.startswith(_DEVICES)}) > 1
        ):
            return _unknown(
                "nodes", f"which of {_DEVICES}* the devices have", _do(say.NODE_OF_DEVICE)
            )
        there = {node.path: node.usable for node in nodes}
        needed = dict(self._needed_nodes(there))
        for path, hint in needed.items():
            if path not in there:
                return StartRow("nodes", "not ok", f"{path} is not there", (hint,))
        for path in needed:
            if not there[path]:
                do = (_do(say.GIVE_NODE, node=path),)
                return StartRow("nodes", "not ok", f"{path} may not be read and written", do)
        return StartRow("nodes", "ok", f"{', '.join(needed)} may be read and written")

    def _needed_nodes(self, there: Collection[str]) -> Iterator[tuple[str, str]]:
        """Each node that the VMM opens, and what makes it appear."""
        if self.via == "iommufd":
            yield "/dev/iommu", _do(say.LOAD_IOMMUFD)
            own = [path for path in there if path.startswith(_DEVICES)]
            yield from ((path, _do(say.CDEV)) for path in own or (f"{_DEVICES}*",))
            return
        yield "/dev/vfio/vfio", _do(say.LOAD_MODULES)
        for member in self.given:  # the node of a group is there once a device of it is bound
            if member.asked and member.holder == "vfio":
                yield f"/dev/vfio/{member.device.group}", _do(say.LOAD_VFIO)

    def _interrupts(self) -> StartRow:
        state = self.host.state
        if state.remaps_interrupts or self.host.arch == "s390x":  # arch_is_isolated_msi() there
            return StartRow("interrupts", "ok", "isolated: no device can forge one")
        if state.remaps_interrupts is None:
            return _unknown("interrupts", "whether interrupts are remapped")
        text = "nothing remaps interrupts, so that a device can forge them"
        told = state.unsafe_iommufd if self.via == "iommufd" else state.unsafe_interrupts
        if told:
            text = f"{text}; the host accepts that (allow_unsafe_interrupts)"
            return StartRow("interrupts", "not ok", text, (_do(say.REMAP_INTERRUPTS),), fatal=False)
        do = (_do(say.REMAP_INTERRUPTS), _do(say.UNSAFE_INTERRUPTS))
        return StartRow("interrupts", "not ok", f"{text}: VFIO refuses such a host", do)

    # -- memory and limits -------------------------------------------------------------------------

    def _memory(self) -> StartRow:
        memory = self.host.state.memory
        need = sum(
            size for _, size, pages in self.layout.page_sizes if pages is None or pages <= BASE_PAGE
        )
        if not need:
            return StartRow("memory", "ok", "all RAM is in huge pages")
        if memory is None:
            return _unknown("memory", "how much memory is free")
        shown = f"{show_size(need)} of RAM, {show_size(memory.available)} available"
        if need <= memory.available:
            return StartRow("memory", "ok", shown)
        do = (_do(say.MEMORY_LESS, size=_whole(memory.available)),)
        if need <= memory.total:
            text = f"{shown}: VFIO pins all of it, so that others must make room"
            return StartRow("memory", "not ok", text, do, fatal=False)
        text = f"{show_size(need)} of RAM, and the host has {show_size(memory.total)} in all"
        return StartRow("memory", "not ok", f"{text}: VFIO pins all of it", do)

    def _huge_pages(self) -> StartRow:
        needed, pools = self.cost.large_pages, self.host.state.huge_pages
        if not needed:
            return StartRow("huge pages", "ok", "none are asked for")
        if pools is None:
            return _unknown("huge pages", "how many huge pages are free")
        free = {pool.page_size: pool.free for pool in pools}
        for pages in needed:
            if pages.page_size not in free:
                text = f"its kernel has none of {show_size(pages.page_size)}"
                return StartRow("huge pages", "not ok", text, (pages.setting,))
        short = [pages for pages in needed if pages.count > free[pages.page_size]]
        text = ", ".join(_of_pool(pages, free) for pages in short or needed)
        if short:
            return StartRow("huge pages", "not ok", text, tuple(item.setting for item in short))
        return StartRow("huge pages", "ok", text)

    def _locked(self) -> StartRow:
        need, what = self.cost.locked_bytes, "locked memory"
        times = f" in {self.cost.containers} containers" if self.cost.containers > 1 else ""
        shown = f"{show_size(need)}{times}"
        if self.hard_limit is None:
            if self.manager == "proxmox" or (self.manager is None and self.host.state.may_lock):
                who = "Proxmox starts QEMU" if self.manager else "this was read"
                text = f"{shown}; nothing counts it, as {who} with CAP_IPC_LOCK"
                return StartRow(what, "ok", text)
            if self.manager == "libvirt":  # qemuDomainGetMemLockLimitBytes()
                if times:
                    return StartRow(
                        what, "not known", f"the limit that libvirt sets; it takes {shown}"
                    )
                return StartRow(what, "ok", f"{shown}; libvirt sets the limit")
        limit = self.host.limits.memlock if self.hard_limit is None else self.hard_limit
        if limit is None:
            return _unknown(what, f"the limit; it takes {shown}")
        if limit < 0:
            return StartRow(what, "ok", f"{shown}, and there is no limit")
        return self._within(limit, need, f"{shown}, and the limit is {show_size(limit)}")

    def _within(self, limit: int, need: int, shown: str) -> StartRow:
        """Compare with a limit of locked memory that counts."""
        what = "locked memory"
        if limit >= need + _OWN_RAM:
            return StartRow(what, "ok", shown)
        if self.host.state.may_lock is None and self.hard_limit is None:
            return _unknown(what, f"{shown}, unless the VMM has CAP_IPC_LOCK", say.SETTLE_MEMLOCK)
        more = need + GIB  # as libvirt does it
        if limit >= need:
            text = f"{shown}: little is left for firmware and video memory, which the VMM maps too"
            return _unknown(what, text, _do(say.LOCK_NUMBER, kib=-(-more // 1024), size=more))
        do = (_do(say.LOCK_NUMBER, kib=-(-more // 1024), size=more),)
        return StartRow(what, "not ok", shown, do)

    def _entries(self) -> StartRow:
        cost = self.cost
        if cost.slots > cost.slot_limit:
            text = f"{cost.slots} pieces of RAM, and KVM takes {cost.slot_limit} memory slots"
            return StartRow("map calls", "not ok", text, (_do(say.MORE_SLOTS),))
        if self.via == "iommufd":
            return StartRow("map calls", "ok", f"{cost.entries}; iommufd has no limit")
        if not (cost.entry_limit_known or self.host.sysfs):
            return _unknown("map calls", f"the limit; it takes {cost.entries}")
        shown = f"{cost.entries} of {cost.entry_limit}"
        if cost.entries <= cost.entry_limit:
            return StartRow("map calls", "ok", shown)
        do = (_do(say.ENTRIES_NUMBER, entries=cost.entries),)
        return StartRow("map calls", "not ok", shown, do)


def _do(remedy: Remedy, **numbers: object) -> str:
    """What to do, in words; what was not tried says so."""
    return str(fill(remedy, None, only=None, **numbers))


def _unknown(what: str, text: str, settle: str = "") -> StartRow:
    return StartRow(what, "not known", text, (settle or say.SETTLE_STATE,))


_DEVICES = "/dev/vfio/devices/vfio"
_OWN_RAM = 64 << 20  # firmware, option ROMs and 16 MiB of video memory, as QEMU maps them too


def _of_pool(pages: LargePages, free: dict[int, int]) -> str:
    return f"{pages.count} of {show_size(pages.page_size)}, {free[pages.page_size]} free"


def _whole(size: int) -> str:
    """A size that a guest could have: whole GiB, or MiB where it is less than one."""
    unit = GIB if size >= GIB else 1 << 20
    return format_size(size // unit * unit)
