# SPDX-License-Identifier: Apache-2.0
"""What people read: every line that the text may have, and when it has it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

import vmm_iova as vi
from tests.kit.hosts import (
    CAP_39,
    CAP_48,
    LAST_39,
    device,
    group,
    intel,
    kernel_list,
    msi,
    region,
)
from vmm_iova import remedies
from vmm_iova.host.facts import PASTED, Group, Limits
from vmm_iova.host.host import Host
from vmm_iova.planning.difference import Difference
from vmm_iova.planning.page_tables import PageTables
from vmm_iova.ranges import AddrRange
from vmm_iova.report import text
from vmm_iova.report.host import show_host
from vmm_iova.report.layout import show_difference, show_layout
from vmm_iova.report.machines import machine_row, show_machine
from vmm_iova.report.verdicts import difference_answer

GIB = 1 << 30
PAGE = AddrRange(0x1000, 0x1FFF)
HOLE = region(0x8000_0000, 0x8000_FFFF)


def a_host(*regions: vi.ReservedRegion, **fields: object) -> Host:
    return intel(group("1", msi(), *regions), **fields)


def a_layout(ram: str = "4G", **fields: object) -> vi.Layout:
    usable = a_host(HOLE).usable()
    return vi.plan(vi.Guest("q35", ram, **fields), usable)  # type: ignore[arg-type]


def a_cost(**fields: object) -> vi.Budget:
    """A budget with every limit far away, but for what is stated."""
    cost = vi.Budget(
        entries=3,
        entry_limit=65535,
        entry_limit_known=True,
        locked_bytes=GIB,
        memlock=None,
        best=PageTables(GIB, ((GIB, 1),), 8192),
        worst=PageTables(GIB, ((GIB, 1),), 8192),
        page_sizes_known=True,
        slots=3,
    )
    return replace(cost, **fields)  # type: ignore[arg-type]


def section(shown: str, title: str) -> list[str]:
    """The lines of a section, without their indent; empty when there is none."""
    lines = shown.splitlines()
    if title not in lines:
        return []
    found = []
    for line in lines[lines.index(title) + 1 :]:
        if not line:
            break
        found.append(line.removeprefix("  "))
    return found


class TestLine:
    def test_columns_are_those_of_iomem_with_the_size_at_the_right(self) -> None:
        assert text.line(PAGE, "RAM") == (
            "0000000000001000-0000000000001fff : RAM                             4 KiB"
        )

    def test_indented_line_keeps_the_column_of_the_size(self) -> None:
        plain, inside = text.line(PAGE, "RAM"), text.line(PAGE, "RAM", indent=4)
        assert inside.startswith("    0000000000001000")
        assert len(inside) == len(plain)

    def test_bytes_are_hex(self) -> None:
        assert text.line(PAGE, "RAM", bytes_=True).endswith("    0x1000")

    def test_remark_stands_behind_the_size_and_no_blank_behind_none(self) -> None:
        assert text.line(PAGE, "RAM", more="node 0").endswith("4 KiB  node 0")
        assert text.line(PAGE, "RAM", more="").endswith("4 KiB")

    def test_section_without_entries_is_nothing(self) -> None:
        assert list(text.section("notes", [])) == []
        assert list(text.section("notes", ["one"])) == ["", "notes", "  one"]


class TestHost:
    def test_host_is_named_with_its_system_units_and_groups(self) -> None:
        host = a_host(
            release="6.18.3",
            devices=(replace(device("0000:01:00.0", "1", "dmar0"), driver="vfio-pci"),),
        )
        named = replace(host.groups[0], devices=("0000:01:00.0", "0000:01:00.1"), type="DMA")
        shown = show_host(replace(host, groups=(named,)), host.usable(), None, bytes_=False)
        assert shown.splitlines()[0] == "host    box (x86_64 Linux 6.18.3)"
        assert section(shown, "iommu") == [
            f"dmar0 cap {CAP_48:x} ecap f020de: 2 MiB pages, 1 GiB pages, queued invalidation, "
            "device TLBs (ATS), interrupt remapping, pass-through, snoop control"
        ]
        assert section(shown, "groups") == ["1 DMA: 0000:01:00.0 (vfio-pci, dmar0), 0000:01:00.1"]

    def test_damaged_group_says_what_is_wrong_with_it(self) -> None:
        host = intel(Group("7", regions=None, damaged="cut off"))
        shown = show_host(host, None, "no", bytes_=False)
        assert section(shown, "groups") == ["7: no members named [cut off]"]

    def test_group_that_a_pasted_text_does_not_name_is_not_listed(self) -> None:
        host = Host("paste", groups=(group(PASTED, msi(PASTED)),))
        shown = show_host(host, None, "no", bytes_=False)
        assert section(shown, "groups") == []
        assert section(shown, "regions")[0].endswith(f"1 MiB  {msi(PASTED).source}")

    def test_host_that_is_not_settled_lists_its_regions_and_says_why(self) -> None:
        host = Host("box", groups=(group("1", msi(), HOLE), group("2", msi("2"))))
        shown = show_host(host, None, "no evidence for the aperture", bytes_=False)
        assert section(shown, "usable: not known") == ["no evidence for the aperture"]
        reserved, interrupts = section(shown, "regions")
        assert reserved == text.line(HOLE.range, "reserved", more=f"groups 1; {HOLE.source}")
        assert interrupts.endswith(f"groups 1, 2; {msi().source}")
        assert section(shown, "map") == []

    def test_region_of_many_groups_names_eight(self) -> None:
        host = Host("box", groups=tuple(group(str(n), msi(str(n))) for n in range(1, 12)))
        (line,) = section(show_host(host, None, "no", bytes_=False), "regions")
        assert "groups 1, 2, 3, 4, 5, 6, 7, 8, ...; " in line

    def test_map_covers_the_whole_space_with_a_cause_for_each_hole(self) -> None:
        usable = a_host(HOLE).usable()
        lines = [line[:33] for line in text.usable_map(usable, bytes_=False)]
        spans = [tuple(int(part, 16) for part in line.split("-")) for line in lines]
        assert spans[0][0] == 0
        assert spans[-1][1] == (1 << 64) - 1
        assert all(below[1] + 1 == above[0] for below, above in pairwise(spans))
        shown = "\n".join(text.usable_map(usable, bytes_=False))
        assert ": reserved                       64 KiB  reserved region" in shown
        assert ": outside of the aperture" in shown

    def test_gap_of_the_kernels_list_and_end_of_a_coarse_granule_are_named(self) -> None:
        listed = kernel_list((0, 0xFFFF), (0x2_0000, LAST_39))
        usable = intel(
            group("1", region(0x8000_0000, 0x8000_07FF)), kernel_ranges=(listed,)
        ).usable()
        shown = "\n".join(text.usable_map(usable, bytes_=False))
        assert "0000000000010000-000000000001ffff : not in the kernel's list" in shown
        assert "0000000080000000-0000000080000fff : reserved" in shown  # whole granules

    def test_relaxable_region_stands_inside_of_what_is_usable(self) -> None:
        usable = a_host(region(0x9000_0000, 0x9000_FFFF, "direct-relaxable")).usable()
        inside = [line for line in text.usable_map(usable, bytes_=False) if line.startswith("  ")]
        assert [line.split(" : ")[0] for line in inside] == ["  0000000090000000-000000009000ffff"]
        assert "usable, with a warning; " in inside[0]

    def test_group_that_is_never_handed_out_is_said_first(self) -> None:
        host = a_host(region(0x9000_0000, 0x9000_FFFF, "direct"))
        usable = host.usable()
        shown = show_host(host, usable, None, bytes_=False)
        (entry,) = usable.unassignable
        assert shown.startswith(f"warning: {entry.text}\nhost    box")

    @pytest.mark.parametrize(
        ("limits", "lines"),
        [
            (Limits(), []),
            (Limits(dma_entries=65535), ["map calls in one container: 65535"]),
            (Limits(memlock=65536), ["locked memory (RLIMIT_MEMLOCK): 64 KiB"]),
            (Limits(memlock=-1), ["locked memory (RLIMIT_MEMLOCK): unlimited"]),
        ],
    )
    def test_limits_are_shown_where_they_are_known(self, limits: Limits, lines: list[str]) -> None:
        host = a_host(limits=limits)
        shown = show_host(host, host.usable(), None, bytes_=False)
        assert section(shown, "limits") == lines

    def test_upper_bound_of_the_aperture_is_called_one(self) -> None:
        by_registers, by_kernel = a_host(), a_host(kernel_ranges=(kernel_list((0, LAST_39)),))
        first, *_, granule = text.evidence(by_registers.usable())
        assert first.startswith("aperture (an upper bound): ")
        assert granule.startswith("granule: 4 KiB, ")
        assert next(text.evidence(by_kernel.usable())).startswith("aperture: ")

    def test_narrowest_width_that_counts_is_marked(self) -> None:
        widths = a_host(cap=CAP_39, cpu_bits=46).usable().widths
        lines = list(text.width_lines(widths))
        assert [line.endswith("  <- limits") for line in lines] == [
            width.counts and width.bits == 39 for width in widths
        ]
        assert any(line.endswith("  <- limits") for line in lines)
        assert all(
            "says nothing about what may be mapped" in line
            for line, width in zip(lines, widths, strict=True)
            if not width.counts
        )


class TestMachines:
    @pytest.mark.parametrize(
        ("name", "window"),
        [
            ("firecracker", "256 GiB at 0x4000000000"),
            ("q35", "32 GiB above RAM"),
            ("microvm", "topmost 1/4"),
            ("kvmtool", "none"),
            ("cloud-hypervisor", "all above RAM"),
        ],
    )
    def test_window_for_64_bit_bars_is_told_as_its_kind(self, name: str, window: str) -> None:
        machine = vi.load_machine(name)
        assert f"; 64-bit PCI window: {window}\n" in show_machine(machine, bytes_=False)
        assert machine_row(machine)["PCI64"] == window

    def test_machine_shows_where_ram_may_go_and_its_options(self) -> None:
        shown = show_machine(vi.load_machine("q35"), bytes_=False)
        assert "IOVA     equals the guest address\n" in shown
        assert "may move to 0x10000000000 as a whole" in shown
        assert section(shown, "options of the VMM")

    def test_machine_that_translates_says_so(self) -> None:
        shown = show_machine(vi.load_machine("s390x"), bytes_=False)
        assert "IOVA     is chosen\n" in shown

    def test_place_inside_of_another_is_indented(self) -> None:
        shown = show_machine(vi.load_machine("q35"), bytes_=True)
        (inside,) = [line for line in shown.splitlines() if line.startswith("  0")]
        assert inside.split(" : ")[0] == "  000000000009fc00-00000000000fffff"
        assert inside.endswith("0x60400  told to the guest")


class TestLayout:
    def test_head_names_guest_host_policy_and_bits(self) -> None:
        layout = a_layout("4G")
        guest, host, policy, blank, *_ = show_layout(layout, a_cost(), bytes_=False).splitlines()
        assert guest == f"guest   {layout.machine.title}, 4 GiB RAM"
        assert host == "host    box, groups 1"
        assert policy == (
            f"policy  on hole: auto; done: {layout.policy}, {len(layout.ram)} pieces of RAM; "
            f"{layout.address_bits} address bits"
        )
        assert blank == ""

    def test_cut_says_where_and_why(self) -> None:
        usable = a_host(region(0x1_4000_0000, 0x1_4000_FFFF)).usable()
        layout = vi.plan(vi.Guest("q35", "6G"), usable)
        shown = show_layout(layout, a_cost(), bytes_=False)
        ends, begins = section(shown, "cuts")[:2]
        assert ends.startswith("RAM high ends at 0x13fffffff: reserved region 0x140000000-")
        assert begins.startswith("RAM high begins at 0x140010000: reserved region 0x140000000-")
        (told,) = section(shown, "tell the guest that these are reserved")
        assert told.startswith("0000000140000000-000000014000ffff : reserved")
        assert ": reserved by the host           64 KiB  the guest must be told\n" in shown

    def test_node_and_bar_that_no_peer_reaches_have_their_remark(self) -> None:
        usable = intel(group("1", msi()), cap=CAP_39).usable()
        guest = vi.Guest(
            "q35",
            nodes=[vi.Node("1G"), vi.Node("1G")],
            bars=[vi.Bar("far", "1T")],
        )
        shown = show_layout(vi.plan(guest, usable), a_cost(), bytes_=False)
        assert "  node 1\n" in shown
        assert "  peers do not reach it\n" in shown

    def test_interrupt_window_that_the_guest_has_elsewhere_is_no_guest_address(self) -> None:
        usable = a_host().usable()
        shown = show_layout(vi.plan(vi.Guest("virt", "4G"), usable), a_cost(), bytes_=False)
        assert ": MSI window of the host" in shown
        assert "1 MiB  IOVA, not a guest address\n" in shown

    def test_translated_guest_shows_both_addresses(self) -> None:
        usable = vi.load_host("s390x-32g").usable(aperture=42)
        shown = show_layout(vi.plan(vi.Guest("s390x", "4G"), usable), a_cost(), bytes_=False)
        assert ": RAM                             4 GiB  IOVA 0000000100000000-" in shown

    def test_settings_and_comparison_are_sections_of_their_own(self) -> None:
        cost = a_cost(settings=("ulimit -l 4",))
        many = a_cost(entries=70000)
        compared = [("split", "4 KiB", cost), ("move", "1 GiB", None), ("refuse", "2 MiB", many)]
        shown = show_layout(a_layout(), cost, bytes_=False, compared=compared)
        assert section(shown, "set") == ["ulimit -l 4"]
        assert section(shown, "cost by policy and page size") == [
            "split   4 KiB    3 pieces, 3 map calls, 8 KiB of tables",
            "move    1 GiB    refused",
            "refuse  2 MiB    3 pieces, 70000 map calls, 8 KiB of tables -- TOO MANY",
        ]

    @pytest.mark.parametrize(
        ("cost", "lines"),
        [
            (a_cost(), ["3 of 65535"]),
            (
                a_cost(entry_limit_known=False),
                ["3 of 65535 (the kernel's default; the host states none)"],
            ),
            (a_cost(chunk=2 << 20), ["3 of 65535, each 2 MiB at most"]),
            (a_cost(entries=65536), ["65536 of 65535 -- TOO MANY for type1"]),
        ],
    )
    def test_map_calls_are_counted_against_the_limit(
        self, cost: vi.Budget, lines: list[str]
    ) -> None:
        shown = section(show_layout(a_layout(), cost, bytes_=False), "cost")
        assert [line.removeprefix("map calls      ") for line in shown[:1]] == lines

    @pytest.mark.parametrize(
        ("memlock", "words"),
        [
            (None, "1 GiB, so RLIMIT_MEMLOCK >= 0x40000000 or CAP_IPC_LOCK"),
            (-1, "1 GiB, and RLIMIT_MEMLOCK is unlimited"),
            (GIB, "1 GiB, within RLIMIT_MEMLOCK of 1 GiB"),
            (
                65536,
                "1 GiB, MORE than RLIMIT_MEMLOCK of 64 KiB: "
                + remedies.LOCK_NUMBER.format(kib=1 << 20, size=GIB),
            ),
        ],
    )
    def test_locked_memory_is_held_against_the_limit(self, memlock: int | None, words: str) -> None:
        cost = a_cost(memlock=memlock)
        shown = section(show_layout(a_layout(), cost, bytes_=False), "cost")
        assert shown[1] == f"locked memory  {words}"

    def test_containers_are_counted(self) -> None:
        cost = a_cost(containers=2, locked_bytes=2 * GIB)
        shown = section(show_layout(a_layout(), cost, bytes_=False), "cost")
        assert shown[1].startswith("locked memory  2 GiB (2 containers), so ")
        assert shown[2] == "page tables    16 KiB for 1 x 1 GiB in each of 2 containers"

    @pytest.mark.parametrize(
        ("known", "lines"),
        [
            (True, ["8 KiB for 1 x 1 GiB", "2052 KiB for 262144 x 4 KiB"]),
            (
                False,
                [
                    "8 KiB for 1 x 1 GiB, if host and hardware have such pages",
                    "2052 KiB for 262144 x 4 KiB",
                ],
            ),
        ],
    )
    def test_tables_are_shown_for_the_largest_pages_and_for_the_smallest(
        self, known: bool, lines: list[str]
    ) -> None:
        worst = PageTables(4096, ((4096, 262144),), 0x20_1000)
        cost = a_cost(page_sizes_known=known, worst=worst)
        shown = section(show_layout(a_layout(), cost, bytes_=False), "cost")
        assert [line[15:] for line in shown[2:]] == lines

    def test_warning_of_a_device_that_is_kept_stands_first_and_once(self) -> None:
        usable = a_host(region(0x9000_0000, 0x9000_FFFF, "direct")).usable()
        layout = vi.plan(vi.Guest("q35", "4G"), usable)
        shown = show_layout(layout, a_cost(), bytes_=False)
        (entry,) = usable.unassignable
        assert shown.startswith(f"warning: {entry.text}\nguest ")
        assert shown.count(entry.text) == 1

    def test_layout_held_as_saved_says_so(self) -> None:
        layout = a_layout()
        again = vi.plan(vi.Guest("q35", "4G"), layout.usable, keep=layout)
        shown = show_layout(again, a_cost(), bytes_=False)
        assert f"done: kept as saved, {layout.policy}, " in shown


class TestDifference:
    def test_nothing_is_left_to_the_answer(self) -> None:
        same = Difference((("regions", (), ()),))
        assert show_difference(same, "a", "b") == ""
        assert difference_answer(same, "a", "b").verdict == "a and b: no difference for a guest"

    def test_what_changes_for_the_guest_is_said_once_and_first(self) -> None:
        difference = Difference(
            (("regions", ("0x0-0xfff msi",), ("0x1000-0x1fff msi",)), ("groups", (), ())),
            ("RAM moves",),
        )
        assert show_difference(difference, "a", "b") == (
            "- a\n+ b\n\nregions\n  - 0x0-0xfff msi\n  + 0x1000-0x1fff msi\n"
        )
        assert difference_answer(difference, "a", "b").reasons == ("RAM moves",)

    def test_facts_that_change_nothing_for_the_guest_say_so(self) -> None:
        difference = Difference((("notes", ("old",), ()),))
        shown = show_difference(difference, "a", "b")
        assert "nothing changes for a guest" in difference_answer(difference, "a", "b").verdict
        assert section(shown, "notes") == ["- old"]
