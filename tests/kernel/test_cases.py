# SPDX-License-Identifier: Apache-2.0
"""The shared cases that concern the kernel, run on the simulation.

Kinds that are statements or shapes of other programs are covered elsewhere or do not apply:

* `rollback`: tests/mapping/test_mapped.py (every step) and test_dynamic.py (the leaked address).
* `translate`: tests/mapping/test_dynamic.py, TestTranslate.
* `parse_caps`, `abi`: tests/kernel/test_caps.py and test_iommufd_objects.py, TestProtocol.
* `register` spdk-register and spdk-chunks-kept: another program's registry of its own memory, whose
  ERANGE and 2 MiB page exist nowhere in the kernel. What carries over is tested below: chunks are
  kept, and one bare unmap may cover several whole ones.
* `msi_window` swmsi-window-set: an option of a patch series that no kernel has; the planner's
  placing of windows is tested in the guest wing.
* `dma` of the back ends vfio-user and libvfn: limits and errors of those programs, not of Linux.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.kit.data import cases
from tests.kit.kernels import HVA
from vmm_iova import AddrRange, MappableRanges
from vmm_iova.errors import DmaError
from vmm_iova.kernel import uapi
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd, VfioCdev
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.simulated import SimGroup, SimulatedKernel

BDF = {"a": "0000:00:04.0", "b": "0000:00:05.0"}
WIDE = AddrRange(0, (1 << 64) - 1)


def of_kind(kind: str, **where: str) -> list[Any]:
    chosen = [
        case for case in cases(kind) if all(case.get(key) == value for key, value in where.items())
    ]
    return [pytest.param(case, id=case["id"]) for case in chosen]


def answer(call: Any) -> dict[str, Any]:
    """Return what happened, in the words of the cases."""
    try:
        value = call()
    except DmaError as exc:
        return {"errno": errno.errorcode[exc.errno or 0]}
    return {"ok": True} if value is None else {"unmapped": hex(value)}


def sim_group(number: int, aperture: Any, reserved: list[dict[str, str]]) -> SimGroup:
    window = WIDE if aperture is None else AddrRange(*(int(edge, 16) for edge in aperture))
    regions = tuple(
        (AddrRange(int(item["first"], 16), int(item["last"], 16)), item["type"])
        for item in reserved
    )
    return SimGroup(
        number, (BDF["ab"[number]],), aperture=window, reserved=regions, page_sizes=0x1000
    )


def do(space: Type1Container | Ioas, op: dict[str, Any]) -> dict[str, Any]:
    if op["op"] == "unmap_all":
        return answer(space.unmap_all)
    iova, size = int(op["iova"], 16), int(op["size"], 16)
    if op["op"] == "map":
        return answer(lambda: space.map(iova, HVA, size))
    return answer(lambda: space.unmap_range(iova, size))


@pytest.mark.parametrize("case", of_kind("dma", backend="type1"))
def test_type1_case(case: dict[str, Any]) -> None:
    with Type1Container(SimulatedKernel([sim_group(0, None, [])])) as space:
        space.add_group(0)

        assert [do(space, op) for op in case["ops"]] == [op["expect"] for op in case["ops"]]


@pytest.mark.parametrize("case", of_kind("dma", backend="iommufd"))
def test_iommufd_case(case: dict[str, Any]) -> None:
    with Ioas(Iommufd(SimulatedKernel([])), owns=True) as space:
        assert [do(space, op) for op in case["ops"]] == [op["expect"] for op in case["ops"]]
        space.unmap_all()


@pytest.mark.parametrize("case", of_kind("attach"))
def test_attach_case(case: dict[str, Any]) -> None:
    attached = [step for step in case["steps"] if step["op"] == "attach"]
    groups = [
        sim_group(index, step["aperture"], step["reserved"]) for index, step in enumerate(attached)
    ]
    with Type1Container(SimulatedKernel(groups)) as space:
        for step in case["steps"]:
            expected = {key: value for key, value in step["expect"].items() if key != "why"}
            assert one_step(space, step) == expected


def one_step(space: Type1Container, step: dict[str, Any]) -> dict[str, Any]:
    if step["op"] == "map":
        return do(space, step)
    number = "ab".index(step["group"])
    try:
        facts = space.add_group(number) if step["op"] == "attach" else space.remove_group(number)
    except DmaError as exc:
        return {"errno": errno.errorcode[exc.errno or 0]}
    assert facts is not None
    assert facts.ranges is not None
    return {"ranges": [[hex(item.start), hex(item.last)] for item in facts.ranges]}


@pytest.mark.parametrize("case", of_kind("ranges_query"))
def test_ranges_case(case: dict[str, Any]) -> None:
    sim = SimulatedKernel([sim_group(0, case["aperture"], case["reserved"])])
    with Ioas(Iommufd(sim), owns=True) as space:
        if case["reserved"]:
            device = VfioCdev(sim, "/dev/vfio/devices/vfio0")
            device.bind(space.iommufd)
            space.attach(BDF["a"], device)
        ranges, _ = space.ranges()

    assert ranges == MappableRanges(
        AddrRange(int(first, 16), int(last, 16)) for first, last in case["expect"]["ranges"]
    )


@pytest.mark.parametrize("case", of_kind("iommufd_ops"))
def test_iommufd_ops_case(case: dict[str, Any]) -> None:
    """A device that reserves the region stands for the mock's "add reserved"."""
    told = next(op for op in case["ops"] if op["op"] == "add_reserved")
    region = {**told, "type": "reserved"}
    sim = SimulatedKernel([sim_group(0, None, [region])])
    with Ioas(Iommufd(sim), owns=True) as space:
        device = VfioCdev(sim, "/dev/vfio/devices/vfio0")
        device.bind(space.iommufd)
        said = []
        for op in case["ops"]:
            if op["op"] == "allow":
                wanted = [AddrRange(int(a, 16), int(b, 16)) for a, b in op["ranges"]]
                said.append(answer(lambda wanted=wanted: space.allow(wanted)))
            else:
                said.append(answer(lambda: device.attach(space.id) and None))
        device.close()

    assert said == [op["expect"] for op in case["ops"]]


def test_one_bare_unmap_covers_several_whole_chunks() -> None:
    """spdk-chunks-kept: what was registered apart stays apart, and goes together."""
    chunks = [0x40_0000, 0x20_0000, 0x60_0000, 0x40_0000, 0x20_0000, 0x20_0000]
    with Type1Container(SimulatedKernel([sim_group(0, None, [])])) as space:
        space.add_group(0)
        at = 0
        for size in chunks:
            space.map(at, HVA, size)
            at += size

        assert [item.range.size for item in space.live] == chunks
        assert space.unmap_range(0, sum(chunks[:3])) == sum(chunks[:3])
        assert space.unmap_range(0, 0, flags=uapi.UNMAP_ALL) == sum(chunks[3:])
        space.live.clear()
