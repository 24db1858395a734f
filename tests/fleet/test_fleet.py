# SPDX-License-Identifier: Apache-2.0
"""Many hosts at once: the same answer however they are cut, and nothing ends the run."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm_iova as vi
from tests.kit.data import cases
from tests.kit.snapshots import GIB, MSI, snapshot, source
from vmm_iova import Guest, fleet
from vmm_iova.fleet import one as one_module
from vmm_iova.fleet import survey as survey_module
from vmm_iova.fleet.survey import Survey
from vmm_iova.host.snapshot import dump_snapshot
from vmm_iova.ranges import AddrRange
from vmm_iova.report import fleet as show

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST = fleet.FleetRequest(Guest("q35", "16G"))
HT = (0xFD_0000_0000, 0xFF_FFFF_FFFF, "reserved")
MIXED = [
    source("amd", regions=(MSI, HT)),
    source("amd-2", regions=(MSI, HT)),
    source("narrow", bits=39),
    source("wide"),
    source("kept", direct=True),
    fleet.SourceText("broken", b"{"),
    fleet.SourceText("gone", b"", "could not be read: Permission denied"),
    fleet.SourceText("no-width", b"0x00000000fee00000 0x00000000feefffff msi\n"),
]


@pytest.mark.parametrize("case", cases("fleet"), ids=lambda c: c["id"])
def test_intersection_of_hosts_is_what_the_case_says(case: dict[str, Any]) -> None:
    texts = [
        "".join(f"range: {start} - {last}\n" for start, last in host).encode()
        for host in case["hosts"]
    ]
    sources = [fleet.SourceText(f"h{n}", text) for n, text in enumerate(texts)]
    request = fleet.FleetRequest(Guest("q35", "1G"), granule=4096)

    survey = fleet.survey_fleet(sources, request)

    expect = [AddrRange(int(start, 16), int(last, 16)) for start, last in case["expect"]]
    assert survey.all_ranges is not None
    assert list(survey.all_ranges) == expect


class TestAnswer:
    def test_hosts_that_differ_share_a_layout(self) -> None:
        sources = [source("amd", regions=(MSI, HT)), source("narrow", bits=39), source("wide")]
        answer = fleet.analyse(fleet.survey_fleet(sources, REQUEST), REQUEST)
        assert answer.complete
        assert answer.layout is not None
        assert [str(item.gpa) for item in answer.layout.ram] == [
            "0x0-0x7fffffff",
            "0x100000000-0x47fffffff",
        ]
        assert answer.blockers == ()
        assert [group.hosts for group in answer.groups] == [3]

    def test_layout_for_all_goes_around_the_hole_of_one(self) -> None:
        request = fleet.FleetRequest(Guest("own-x86", "1.5TiB"))
        sources = [source("amd", regions=(MSI, HT)), source("wide"), source("wide-2")]
        answer = fleet.analyse(fleet.survey_fleet(sources, request), request)
        assert answer.layout is not None
        cut = next(item for item in answer.layout.ram if item.last_cause)
        assert cut.place.last == 0xFC_FFFF_FFFF
        assert cut.last_cause is not None
        assert "[amd]" in cut.last_cause.text

    def test_host_that_cannot_have_the_guest_is_named_with_its_reason(self) -> None:
        request = fleet.FleetRequest(Guest("q35", "1.5TiB"))
        sources = [source("n2", bits=39), source("n1", bits=39), source("wide")]
        answer = fleet.analyse(fleet.survey_fleet(sources, request), request)
        (blocker,) = answer.blockers
        assert (blocker.hosts, blocker.names, blocker.status) == (2, ("n1", "n2"), "refused")
        assert "does not fit" in blocker.why
        assert blocker.fixes
        assert answer.layout is None
        assert answer.groups[0].names == ("wide",)

    def test_hosts_that_fit_apart_but_not_together_are_two_groups(self) -> None:
        low = (0, 0x7FFF_FFFF)
        sources = [
            source("a1", ranges=[low, (4 * GIB, 20 * GIB - 1)]),
            source("a2", ranges=[low, (4 * GIB, 20 * GIB - 1)]),
            source("b", ranges=[low, (32 * GIB, 64 * GIB - 1)]),
        ]
        request = fleet.FleetRequest(Guest("q35", "16G", pci64=0))
        answer = fleet.analyse(fleet.survey_fleet(sources, request), request)
        assert [(group.hosts, group.names) for group in answer.groups] == [
            (2, ("a1", "a2")),
            (1, ("b",)),
        ]
        (blocker,) = answer.blockers
        assert blocker.names == ("b",)
        assert "together with the largest group" in blocker.why

    def test_every_layout_of_a_group_lies_in_what_its_hosts_allow(self) -> None:
        answer = fleet.analyse(fleet.survey_fleet(MIXED, REQUEST), REQUEST)
        for group in answer.groups:
            for item in group.layout.ram:
                for of in group.classes:
                    assert item.iova in of.allowed.ranges

    def test_group_with_a_direct_region_is_left_out_and_counted(self) -> None:
        answer = fleet.analyse(fleet.survey_fleet([source("kept", direct=True)], REQUEST), REQUEST)
        assert answer.complete  # the other group can be assigned, and the guest fits
        count = answer.devices["0c03", "xhci_hcd"]
        assert (count.groups, count.assignable) == (1, 0)
        assert count.blocked == ("kept", "direct region of group 2 (0000:02:00.0)")
        assert (count.fit_hosts, count.names) == (0, ())
        assert answer.devices["0302", "vfio-pci"].fits == 1
        assert answer.devices["0302", "vfio-pci"].names == ("kept",)
        text = show.show_fleet(answer, bytes_=False)
        assert "1 group on 1 host, 1 can be assigned, 1 where the guest fits (kept)\n" in text
        assert "1 cannot (kept: direct region of group 2 (0000:02:00.0))" in text

    def test_devices_name_the_hosts_where_they_can_go(self) -> None:
        sources = [source(f"h{n}", bits=33 if n % 2 else 48) for n in range(20)]
        answer = fleet.analyse(fleet.survey_fleet(sources, REQUEST), REQUEST)
        count = answer.devices["0302", "vfio-pci"]
        assert (count.hosts, count.assignable, count.fits, count.fit_hosts) == (20, 20, 10, 10)
        assert count.names == ("h0", "h10", "h12", "h14", "h16")

    @pytest.mark.parametrize(
        ("more", "status"),
        [
            ({"devices": ("0000:02:00.0",)}, "unassignable"),
            ({"groups": ("2",)}, "unassignable"),
            ({"devices": ("0000:99:00.0",)}, "absent"),
            ({"groups": ("9",)}, "absent"),
            ({"pci_class": "02"}, "absent"),
            ({"pci_class": "0x0302"}, "fits"),
            ({"devices": ("01:00.0",)}, "fits"),
        ],
    )
    def test_devices_that_are_needed_decide(self, more: dict[str, Any], status: str) -> None:
        request = fleet.FleetRequest(Guest("q35", "16G"), **more)
        survey = fleet.survey_fleet([source("kept", direct=True)], request)
        assert dict(survey.counts) == {status: 1}

    def test_host_of_another_architecture_is_in_the_way(self) -> None:
        request = fleet.FleetRequest(Guest("virt", "16G"))
        answer = fleet.analyse(fleet.survey_fleet([source("x86")], request), request)
        (blocker,) = answer.blockers
        assert "but the host is x86_64: KVM cannot run it there" in blocker.why

    def test_names_of_what_is_wrong_are_kept(self) -> None:
        answer = fleet.analyse(fleet.survey_fleet(MIXED, REQUEST), REQUEST)
        assert dict(answer.counts) == {"damaged": 2, "fits": 5, "unsettled": 1}
        assert [item.name for item in answer.problems["damaged"]] == ["broken", "gone"]
        assert answer.problems["damaged"][1].text == "could not be read: Permission denied"
        assert answer.problems["unsettled"][0].name == "no-width"
        assert answer.problems["unsettled"][0].fixes  # what would settle it
        assert answer.layout is None  # one host does not settle it
        assert answer.layouts["q35"] is not None  # but for it, there is one
        assert answer.groups[0].hosts == 5

    def test_empty_fleet_has_no_answer(self) -> None:
        answer = fleet.analyse(Survey(), REQUEST)
        assert (answer.hosts, answer.layout, answer.groups) == (0, None, ())


class TestMerge:
    @given(order=st.permutations(range(len(MIXED))), cuts=st.sets(st.integers(1, len(MIXED) - 1)))
    def test_any_order_and_any_cut_give_the_same(self, order: list[int], cuts: set[int]) -> None:
        whole = fleet.survey_fleet(MIXED, REQUEST)
        edges = [0, *sorted(cuts), len(MIXED)]
        total = Survey()
        for start, stop in pairwise(edges):
            part, _ = fleet.survey_chunk(
                [MIXED[order[n]] for n in range(start, stop)], REQUEST.resolved(), False
            )
            total = part.merge(total)
        assert total == whole

    def test_merge_is_associative_and_has_a_neutral_element(self) -> None:
        a, b, c = (fleet.survey_fleet(MIXED[n::3], REQUEST) for n in range(3))
        assert a.merge(b).merge(c) == a.merge(b.merge(c)) == fleet.survey_fleet(MIXED, REQUEST)
        assert a.merge(Survey()) == Survey().merge(a) == a

    def test_kept_classes_have_exact_counts_when_there_are_too_many(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sources = [
            source(f"h{n:03}", regions=(MSI, (0x5000_0000, 0x5000_0FFF + 0x1000 * (n % 20), "msi")))
            for n in range(60)
        ]
        exact = fleet.survey_fleet(sources, REQUEST)
        monkeypatch.setattr(survey_module, "MAX_CLASSES", 6)
        by_seven = fleet.survey_fleet(sources, REQUEST, chunk=7)
        backwards = fleet.survey_fleet(sources[::-1], REQUEST, chunk=13)
        assert by_seven == backwards
        assert by_seven.truncated
        assert len(by_seven.classes) == 6
        assert by_seven.counts == exact.counts
        assert by_seven.all_ranges == exact.all_ranges
        for digest, item in by_seven.classes.items():
            assert item == exact.classes[digest]

    def test_survey_and_request_pickle(self) -> None:
        survey = fleet.survey_fleet(MIXED, REQUEST)
        assert pickle.loads(pickle.dumps(survey)) == survey
        request = REQUEST.resolved()
        assert pickle.loads(pickle.dumps(request)) == request


ARM_MSI = (0x0800_0000, 0x080F_FFFF, "msi")
S390 = [(0x1_0000_0000, 0x3FF_FFFF_FFFF)]


class TestMachines:
    BY_HOST = fleet.FleetRequest(Guest(None, "16G"))
    SOURCES = (
        source("x1"),
        source("x2", bits=39),
        source("a1", arch="aarch64", regions=(ARM_MSI,)),
        source("z1", arch="s390x", regions=(), ranges=S390),
        source("r1", arch="riscv64", regions=()),
    )

    def test_each_host_has_the_usual_machine_of_its_architecture(self) -> None:
        answer = fleet.analyse(fleet.survey_fleet(self.SOURCES, self.BY_HOST), self.BY_HOST)
        assert {name: counts["fits"] for name, counts in answer.machines.items()} == {
            "q35": 2,
            "riscv-virt": 1,
            "s390x": 1,
            "virt": 1,
        }
        assert answer.complete
        assert answer.by_host
        assert answer.layout is None  # there is no one machine for all
        for name, layout in answer.layouts.items():
            assert layout is not None
            assert layout.machine.name == name
        assert show.answer(answer) == "4 machines, each with one layout that fits every host of it"
        assert answer.blockers == ()

    def test_hosts_of_several_machines_are_never_one_group(self) -> None:
        answer = fleet.analyse(fleet.survey_fleet(self.SOURCES, self.BY_HOST), self.BY_HOST)
        for group in answer.groups:
            assert {item.machine for item in group.classes} == {group.layout.machine.name}

    def test_unsettled_host_of_another_machine_does_not_take_its_layout(self) -> None:
        sources = [source("x"), source("a", arch="aarch64", regions=(ARM_MSI,), listed=False)]
        answer = fleet.analyse(fleet.survey_fleet(sources, self.BY_HOST), self.BY_HOST)
        assert answer.layouts["q35"] is not None
        assert answer.layouts["virt"] is None
        assert (
            show.answer(answer) == "one layout fits every host that the facts settle, 1 unsettled"
        )

    def test_architecture_without_a_machine_is_refused_with_what_to_do(self) -> None:
        sources = [source("p", arch="ppc64le", regions=()), source("x")]
        answer = fleet.analyse(fleet.survey_fleet(sources, self.BY_HOST), self.BY_HOST)
        (blocker,) = answer.blockers
        assert blocker.why == "there is no machine model for ppc64le hosts"
        assert blocker.fixes == ("name a model of your own: --machine FILE.toml",)
        assert answer.machines["ppc64le"] == {"refused": 1}

    def test_machine_that_is_named_counts_for_every_host(self) -> None:
        request = fleet.FleetRequest(Guest("q35", "16G"))
        answer = fleet.analyse(fleet.survey_fleet(self.SOURCES, request), request)
        assert answer.machines == {"q35": {"fits": 2, "refused": 3}}
        assert not answer.by_host


class TestRequest:
    """What `plan` can be asked for, asked of every host."""

    def rows(self, request: fleet.FleetRequest, *sources: fleet.SourceText) -> list[fleet.HostRow]:
        found: list[fleet.HostRow] = []
        fleet.survey_fleet(sources, request, on_rows=found.extend)
        return found

    def test_bar_that_must_be_reached_is_part_of_every_layout(self) -> None:
        guest = Guest("q35", "16G", bars=[vi.Bar("gpu", "128G", required=True)])
        request = fleet.FleetRequest(guest)
        sources = [source("wide"), source("narrow", bits=37)]
        answer = fleet.analyse(fleet.survey_fleet(sources, request), request)
        (group,) = answer.groups
        assert any(item.name == "gpu" and item.iova for item in group.layout.items)
        (blocker,) = answer.blockers
        assert blocker.names == ("narrow",)
        assert "gpu" in blocker.why

    def test_cpu_of_one_host_bounds_the_layout_for_all(self) -> None:
        request = fleet.FleetRequest(Guest("own-x86", "16G", rooms=[vi.Room("later", "64G")]))
        sources = [source("a"), source("b", cpu_bits=36)]
        answer = fleet.analyse(fleet.survey_fleet(sources, request), request)
        assert answer.layout is None
        assert [row.status for row in self.rows(request, *sources)] == ["fits", "refused"]
        small = fleet.FleetRequest(Guest("own-x86", "16G"))
        sources = [source("a"), source("b", cpu_bits=35)]
        answer = fleet.analyse(fleet.survey_fleet(sources, small), small)
        assert answer.layout is not None
        assert answer.layout.address_bits <= 35

    def test_one_host_is_laid_out_as_plan_does(self) -> None:
        guest = Guest("q35", "1.5TiB", align="auto")
        request = fleet.FleetRequest(guest, prefer="fewest")
        usable = vi.load_host("amd-epyc-1tb").usable()
        answer = fleet.analyse(
            fleet.survey_fleet(fleet.read_sources(["amd-epyc-1tb"]), request), request
        )
        assert answer.layout is not None
        expect = vi.plan(guest, usable, prefer="fewest")
        assert [item.place for item in answer.layout.ram] == [item.place for item in expect.ram]

    def test_group_that_comes_later_narrows_every_host(self) -> None:
        request = fleet.FleetRequest(Guest("q35", "16G"), groups=("1",), also_fit=("2",))
        (kept,) = self.rows(request, source("kept", direct=True))
        assert (kept.status, kept.reason) == (
            "unassignable",
            "firmware demands a direct region of group 2",
        )
        lacking = fleet.FleetRequest(Guest("q35", "16G"), also_fit=("9",))
        (row,) = self.rows(lacking, source("h"))
        assert (row.status, row.reason) == ("absent", "it has no group 9")

    def test_saved_layout_is_kept_or_the_host_is_refused_with_the_change(self) -> None:
        usable = vi.load_host("amd-epyc-1tb").usable()
        saved = vi.plan(Guest("own-x86", "1.5TiB"), usable).to_json()
        request = fleet.FleetRequest(Guest("own-x86", "1.5TiB"), keep=saved)
        fits, refused = self.rows(request, source("wide"), source("narrow", bits=40))
        assert fits.status == "fits"
        assert refused.status == "refused"
        sources = [source("h", regions=(MSI, (0x2_0000_0000, 0x2_0000_FFFF, "reserved")))]
        (row,) = self.rows(request, *sources)
        assert row.status == "refused"
        assert row.reason is not None
        assert row.reason.startswith("the saved layout cannot be kept: RAM 0x100000000")


class TestReasons:
    """Refused, unsettled and damaged are told apart, each with what would help."""

    def row(self, content: bytes, **of: Any) -> fleet.HostRow:
        request = fleet.FleetRequest(Guest(None, "1G"), **of)
        survey, (row,) = fleet.survey_text(content, "h.json", request)
        assert survey.counts == {row.status: 1}
        return row

    def test_host_without_evidence_is_unsettled_with_the_command_that_settles_it(self) -> None:
        row = self.row(snapshot(listed=False))
        assert row.status == "unsettled"
        assert "vmm-iova capture --ask-kernel -s BDF" in (row.fixes or "")

    @pytest.mark.parametrize("content", [b"", b" \n\t\n"])
    def test_empty_file_is_damaged_also_where_a_width_is_stated(self, content: bytes) -> None:
        row = self.row(content, aperture=48)
        assert (row.status, row.reason) == ("damaged", "is empty: nothing was captured")
        assert row.fixes == "capture that host again"

    def test_host_without_an_iommu_has_nothing_to_hand_out(self) -> None:
        host = vi.Host("h", arch="x86_64", sysfs=True)
        row = self.row(dump_snapshot(host, "test").encode())
        assert (row.status, row.reason) == (
            "unassignable",
            "it has no IOMMU groups: no IOMMU is in use",
        )

    def test_no_iommu_group_is_left_out_and_refused_where_it_is_named(self) -> None:
        data = json.loads(snapshot())
        data["groups"][1]["translated"] = False
        text = json.dumps(data).encode()
        assert self.row(text).status == "fits"
        survey, _ = fleet.survey_text(text, "h", REQUEST)
        assert survey.devices["0c03", "xhci_hcd"].assignable == 0
        row = self.row(text, groups=("2",))
        assert row.reason == "nothing translates the no-IOMMU group 2"
        for group in data["groups"]:
            group["translated"] = False
        row = self.row(json.dumps(data).encode())
        assert row.reason == "every group is a no-IOMMU group of VFIO: nothing translates"

    def test_device_without_a_group_is_not_said_to_be_absent(self) -> None:
        data = json.loads(snapshot())
        data["devices"][0]["group"] = None
        text = json.dumps(data).encode()
        for of in ({"devices": ("01:00.0",)}, {"pci_class": "0302"}):
            row = self.row(text, **of)
            assert row.status == "unassignable"
            assert row.reason == "0000:01:00.0 is in no IOMMU group: no IOMMU translates it"

    def test_granule_that_contradicts_a_host_says_so(self) -> None:
        row = self.row(snapshot(arch="aarch64", granule=65536), granule=4096)
        assert row.status == "unsettled"
        assert row.fixes == "state 0x10000, or leave it out"

    def test_damaged_list_of_one_host_in_a_text_leaves_the_others(self) -> None:
        data = json.loads(snapshot())
        data["groups"][0]["damaged"] = "group 1: its list fills a page"
        data["groups"][0]["reserved_regions"] = None
        data["iova_ranges"] = []
        row = self.row(json.dumps(data).encode(), aperture=48)
        assert (row.status, row.reason) == ("damaged", "group 1: its list fills a page")

    NARROW = source("narrow", bits=33)
    OPEN = source("open", listed=False)
    BROKEN = fleet.SourceText("broken", b"{")

    @pytest.mark.parametrize(
        ("sources", "said"),
        [
            ([source("a")], "one layout fits every host"),
            ([source("a"), OPEN], "one layout fits every host that the facts settle, 1 unsettled"),
            ([source("a"), BROKEN], "one layout fits every host, 1 damaged aside"),
            ([NARROW], "no host can have it"),
            ([NARROW, BROKEN], "no host can have it, 1 damaged aside"),
            ([NARROW, OPEN], "no host that the facts settle can have it, 1 unsettled"),
            ([OPEN], "unsettled: no host's facts say what may be mapped"),
            ([OPEN, BROKEN], "unsettled: no host's facts say what may be mapped, 1 damaged aside"),
            ([BROKEN], "nothing is known: every snapshot is damaged"),
            (
                [source("a"), NARROW, OPEN, BROKEN],
                "no layout fits every host: 1 host stands in the way, the other 1 has one, "
                "1 unsettled, 1 damaged aside",
            ),
        ],
    )
    def test_what_is_not_known_is_never_said_to_be_no(
        self, sources: list[fleet.SourceText], said: str
    ) -> None:
        answer = fleet.analyse(fleet.survey_fleet(sources, REQUEST), REQUEST)
        assert show.answer(answer) == said
        text = show.show_fleet(answer, bytes_=False)
        assert f"answer  {said}\n" in text
        assert ("settles it: " in text) == (self.OPEN in sources)
        assert show.fleet_data(answer)["answer"] == said


class Counting:
    """An executor that runs at once and counts what nobody has taken yet."""

    def __init__(self) -> None:
        self.open = self.most = 0

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        executor = self

        class Taken(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                executor.open -= 1
                return super().result(timeout)

        future = Taken()
        self.open += 1
        self.most = max(self.most, self.open)
        future.set_result(call(*arguments))
        return future


class TestRun:
    def test_workers_do_not_change_the_answer(self) -> None:
        sources = [
            source(f"h{n}", bits=39 + n % 4, regions=(MSI, HT) if n % 3 else (MSI,))
            for n in range(40)
        ]
        alone = fleet.survey_fleet(sources, REQUEST)
        with ProcessPoolExecutor(2) as processes:
            pooled = fleet.survey_fleet(sources, REQUEST, executor=processes, chunk=3)
        with ThreadPoolExecutor(3) as threads:
            threaded = fleet.survey_fleet(sources, REQUEST, executor=threads, chunk=5, in_flight=2)
        assert alone == pooled == threaded

    def test_chunks_in_flight_are_bounded(self) -> None:
        executor = Counting()
        sources = (source(f"h{n}") for n in range(30))
        fleet.survey_fleet(sources, REQUEST, executor=executor, chunk=2, in_flight=4)
        assert executor.most == 4

    def test_sources_are_read_as_they_are_needed(self) -> None:
        read = []

        def sources() -> Any:
            for n in range(100):
                read.append(n)
                yield source(f"h{n}")

        executor = Counting()
        seen: list[int] = []

        def progress(done: fleet.Progress) -> None:
            seen.append(done.hosts)
            assert len(read) <= done.hosts + 4 * 5

        fleet.survey_fleet(
            sources(), REQUEST, executor=executor, chunk=5, in_flight=4, progress=progress
        )
        assert seen[-1] == 100

    def test_rows_come_in_the_order_of_the_sources(self) -> None:
        rows: list[fleet.HostRow] = []
        with ThreadPoolExecutor(3) as threads:
            fleet.survey_fleet(MIXED, REQUEST, executor=threads, chunk=1, on_rows=rows.extend)
        assert [row.name for row in rows] == [item.name for item in MIXED]
        assert rows[5].status == "damaged"
        assert rows[0].layout == rows[3].layout

    def test_worker_that_dies_is_one_sentence(self) -> None:
        class Dying:
            def submit(self, *_: Any) -> Future[Any]:
                future: Future[Any] = Future()
                future.set_exception(BrokenExecutor("gone"))
                return future

        with pytest.raises(vi.errors.HostUnavailableError, match="a worker died"):
            fleet.survey_fleet(MIXED, REQUEST, executor=Dying())

    def test_strange_file_that_trips_us_is_counted_not_raised(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(one_module, "parse_hosts", broken)
        survey = fleet.survey_fleet([fleet.SourceText("odd", b"0x0 - 0x1\n")], REQUEST)
        assert "defect of vmm-iova: ZeroDivisionError" in survey.problems["damaged"][0][1]

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\xfe\x00",
            b"[" * 100_000,
            b'{"schema": {"name": "vmm-iova-host", "version": 99}}',
            b'{"schema": 5}',
            snapshot()[:-100],
            b"0x0 - 0xzz\n",
        ],
    )
    def test_hostile_snapshot_is_damaged(self, content: bytes) -> None:
        request = fleet.FleetRequest(Guest("q35", "16G"), aperture=48)
        survey = fleet.survey_fleet([fleet.SourceText("x", content)], request)
        assert survey.hosts == 1
        assert survey.counts["damaged"] == 1

    def test_same_facts_under_another_name_give_the_same_class(self) -> None:
        survey = fleet.survey_fleet([source("b"), source("a"), source("c")], REQUEST)
        (item,) = survey.classes.values()
        assert (item.hosts, item.names) == (3, ("a", "b", "c"))

    @pytest.mark.parametrize(
        ("request_", "error"),
        [
            (fleet.FleetRequest(Guest("q53", "1G")), vi.errors.UnknownNameError),
            (fleet.FleetRequest(Guest("q35", "1GB")), vi.RequestError),
            (fleet.FleetRequest(Guest("q35", "1G"), aperture="wide"), vi.RequestError),
            (fleet.FleetRequest(Guest("q35", "1G"), granule=3000), vi.RequestError),
            (fleet.FleetRequest(Guest("q35", "1G"), on_hole="jump"), vi.RequestError),  # type: ignore[arg-type]
            (fleet.FleetRequest(Guest(None, "1GB")), vi.RequestError),
            (fleet.FleetRequest(Guest("q35", "1G"), groups=()), vi.RequestError),
            (fleet.FleetRequest(Guest("q35", "1G"), pci_class="gpu"), vi.RequestError),
            (fleet.FleetRequest(Guest("q35", "1G"), keep={}), vi.errors.HostDataError),
        ],
    )
    def test_request_that_makes_no_sense_is_said_before_the_first_host(
        self, request_: fleet.FleetRequest, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            fleet.survey_fleet(MIXED, request_)
