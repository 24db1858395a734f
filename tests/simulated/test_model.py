# SPDX-License-Identifier: Apache-2.0
"""The simulated kernel against a model that keeps one entry a page and knows nothing else."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_iova import AddrRange
from vmm_iova.errors import DmaError
from vmm_iova.kernel import uapi
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd, VfioCdev
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.simulated import SimGroup, SimulatedKernel

PAGE, PAGES, HVA = 0x1000, 24, 0x7F00_0000_0000
WINDOW = AddrRange(0, PAGES * PAGE - 1)
HOLE = AddrRange(10 * PAGE, 11 * PAGE - 1)
NIC = "0000:00:04.0"
GROUP = SimGroup(4, (NIC,), aperture=WINDOW, reserved=((HOLE, "msi"),), page_sizes=0x1000)

OPS = st.lists(
    st.tuples(
        st.sampled_from(["map", "unmap", "unmap_all"]),
        st.integers(0, PAGES + 1),
        st.integers(0, 6),
    ),
    max_size=40,
)


class PageModel:
    """Which mapping each page belongs to."""

    def __init__(self, limit: int) -> None:
        self.pages: dict[int, int] = {}
        self.serial = 0
        self.limit = limit

    def _span(self, page: int, count: int) -> list[int]:
        return list(range(page, page + count))

    def _usable(self, span: list[int]) -> bool:
        return all(page < PAGES and page != 10 for page in span)

    def whole(self, span: list[int]) -> bool:
        """No mapping has pages both inside and outside of the span."""
        inside = {self.pages[page] for page in span if page in self.pages}
        outside = {owner for page, owner in self.pages.items() if page not in span}
        return not inside & outside

    def map(self, page: int, count: int, order: list[int]) -> int:
        """Return an errno, or 0; `order` says which of two reasons is given first."""
        span = self._span(page, count)
        reasons = {
            errno.EINVAL: not self._usable(span),
            errno.EEXIST: any(item in self.pages for item in span),
            errno.ENOSPC: len(set(self.pages.values())) >= self.limit,
        }
        if not count:
            return errno.EINVAL
        for number in order:
            if reasons[number]:
                return number
        self.serial += 1
        self.pages.update(dict.fromkeys(span, self.serial))
        return 0

    def take(self, span: list[int]) -> int:
        """Take the pages out; return bytes."""
        return PAGE * sum(self.pages.pop(page, None) is not None for page in span)


def attempt(call) -> int:  # type: ignore[no-untyped-def]
    try:
        return call() or 0
    except DmaError as exc:
        return -(exc.errno or 0)


@given(ops=OPS, limit=st.integers(1, 8))
def test_type1_agrees_with_the_page_model(ops: list[tuple[str, int, int]], limit: int) -> None:
    sim = SimulatedKernel([GROUP], dma_entry_limit=limit)
    model = PageModel(limit)
    with Type1Container(sim) as container:
        container.add_group(4)
        for name, page, count in ops:
            span = list(range(page, page + count))
            iova, size = page * PAGE, count * PAGE
            if name == "map":
                got = attempt(lambda: container.map(iova, HVA, size))  # noqa: B023
                order = [errno.EEXIST, errno.ENOSPC, errno.EINVAL]
                assert got == -model.map(page, count, order)
            elif name == "unmap":
                got = attempt(lambda: container.unmap_range(iova, size))  # noqa: B023
                if not count or not model.whole(span):
                    assert got == -errno.EINVAL
                else:
                    assert got == model.take(span)
            else:
                assert container.unmap_range(0, 0, flags=uapi.UNMAP_ALL) == model.take(
                    list(model.pages)
                )
            assert sim.mapped().size == len(model.pages) * PAGE
        left = len(set(model.pages.values()))
        assert container.info().entries_left == limit - left


@given(ops=OPS)
def test_iommufd_agrees_with_the_page_model(ops: list[tuple[str, int, int]]) -> None:
    sim = SimulatedKernel([GROUP])
    model = PageModel(1 << 30)
    with Ioas(Iommufd(sim), owns=True) as space:
        device = VfioCdev(sim, "/dev/vfio/devices/vfio0")
        device.bind(space.iommufd)
        space.attach(NIC, device)
        for name, page, count in ops:
            span = list(range(page, page + count))
            iova, size = page * PAGE, count * PAGE
            if name == "map":
                got = attempt(lambda: space.map(iova, HVA, size))  # noqa: B023
                assert got == -model.map(page, count, [errno.EINVAL, errno.EEXIST, errno.ENOSPC])
            elif name == "unmap" and model.whole(span):
                got = attempt(lambda: space.unmap_range(iova, size))  # noqa: B023
                if not count:
                    assert got == -errno.EINVAL
                else:
                    assert got == (model.take(span) or -errno.ENOENT)
            elif name == "unmap_all":
                assert space.unmap_range(0, 2**64 - 1) == model.take(list(model.pages))
            assert sim.mapped().size == len(model.pages) * PAGE


@given(
    sizes=st.lists(st.integers(1, 5), max_size=12), offset=st.integers(0, 7), seed=st.integers(0, 9)
)
def test_automatic_placement_is_the_lowest_fit(sizes: list[int], offset: int, seed: int) -> None:
    """A naive search over all pages finds the same place, or neither finds one."""
    sim = SimulatedKernel([GROUP], max_auto_alignment=0x2000)
    used: set[int] = {10}
    with Ioas(Iommufd(sim), owns=True) as space:
        device = VfioCdev(sim, "/dev/vfio/devices/vfio0")
        device.bind(space.iommufd)
        space.attach(NIC, device)
        for index, count in enumerate(sizes):
            hva = HVA + (offset + index * seed) * PAGE
            align = min(1 << (count - 1).bit_length(), (hva & -hva) // PAGE, 2)
            fits = [
                page
                for page in range(1, PAGES - count + 1)
                if page % align == 0 and not used & set(range(page, page + count))
            ]
            if not fits:
                with pytest.raises(DmaError, match="No space"):
                    space.map_anywhere(hva, count * PAGE)
                continue

            placed = space.map_anywhere(hva, count * PAGE)

            assert placed == fits[0] * PAGE
            used |= set(range(fits[0], fits[0] + count))
