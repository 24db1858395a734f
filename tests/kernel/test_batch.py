# SPDX-License-Identifier: Apache-2.0
"""Both packers of a batch give the same bytes, and the book of it is read when it is asked."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit import through_c
from tests.kit.kernels import HVA, NIC, NIC_GROUP
from vmm_iova import AddrRange
from vmm_iova.kernel import batch, uapi, uapi_iommufd
from vmm_iova.kernel.book import LiveMappings
from vmm_iova.kernel.device import open_space
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.mapping import Piece
from vmm_iova.simulated import SimulatedKernel

COMPILED = importlib.util.find_spec("vmm_iova.kernel._ioctl") is not None
U64 = st.integers(0, 2**64 - 1)
PIECES = st.lists(st.builds(Piece, U64, U64, U64, st.none(), st.booleans(), st.booleans()))


@pytest.mark.skipif(not COMPILED, reason="the extension was not built")
@given(pieces=PIECES, ioas_id=st.integers(0, 2**32 - 1))
def test_compiled_and_plain_packers_agree(pieces: list[Piece], ioas_id: int) -> None:
    assert batch.pack_type1(pieces) == batch.pack_type1_plain(pieces)
    assert batch.pack_ioas(pieces, ioas_id) == batch.pack_ioas_plain(pieces, ioas_id)


@pytest.mark.skipif(not COMPILED, reason="the extension was not built")
@pytest.mark.parametrize(("read", "write"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("via", ["type1", "iommufd"])
def test_single_call_makes_the_record_of_a_batch(
    via: Literal["type1", "iommufd"], read: bool, write: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = SimulatedKernel([NIC_GROUP])
    piece = Piece(0x3000, 0x1000, HVA, read=read, write=write)
    with through_c.answered(monkeypatch) as bridge:
        bridge.sim = sim
        with open_space([NIC], kernel=sim, via=via) as space:
            space.map(piece.iova, piece.hva, piece.size, read=read, write=write)
            made = bridge.record
            assert [(item.read, item.write) for item in space.live] == [(read, write)]
    if isinstance(space, Ioas):
        assert made == batch.pack_ioas_plain([piece], struct.unpack_from("=8xI", made)[0])
    else:
        assert made == batch.pack_type1_plain([piece])


class Growing(list[Piece]):
    """Says that it holds one piece, and hands out more when it is walked through."""

    def __len__(self) -> int:
        return 1


@pytest.mark.skipif(not COMPILED, reason="the extension was not built")
def test_compiled_packers_write_no_more_records_than_there_is_room_for() -> None:
    pieces = Growing(Piece(0x1000 * i, 0x1000, 0) for i in range(5000))
    assert batch.pack_type1(pieces) == batch.pack_type1([pieces[0]])
    assert batch.pack_ioas(pieces, 1) == batch.pack_ioas([pieces[0]], 1)


def test_plain_packers_follow_the_records() -> None:
    piece = Piece(0x1000, 0x2000, 0x7F00_0000_0000, read=True, write=False)

    type1 = uapi.DMA_MAP.read(batch.pack_type1_plain([piece]))
    ioas = uapi_iommufd.MAP_ARG.read(batch.pack_ioas_plain([piece], 9))

    assert type1 == {
        "argsz": 32,
        "flags": uapi.MAP_READ,
        "vaddr": 0x7F00_0000_0000,
        "iova": 0x1000,
        "size": 0x2000,
    }
    assert (ioas["flags"], ioas["ioas_id"]) == (
        uapi_iommufd.MAP_FIXED_IOVA | uapi_iommufd.MAP_READABLE,
        9,
    )


@pytest.mark.parametrize("packed", [batch.pack_type1, batch.pack_type1_plain])
def test_value_beyond_64_bits_raises(packed: Callable[[list[Piece]], bytearray]) -> None:
    with pytest.raises((OverflowError, struct.error)):
        packed([Piece(1 << 64, 0x1000, 0)])


def test_batch_in_the_book_is_found_by_every_question() -> None:
    live = LiveMappings()
    code = compile("", "vmm.py", "exec").replace(co_firstlineno=12)
    live.add_many([Piece(0x3000, 0x1000, 7), Piece(0x1000, 0x1000, 5)], (code, 99))
    live.book.put(0x8000, 0x1000, 9, True, True, (code, 99))

    assert [item.range.start for item in live] == [0x1000, 0x3000, 0x8000]
    assert (len(live), 0x3000 in live, live.at(0x1000).place) == (3, True, "vmm.py:12")
    assert [item.hva for item in live.overlapping(AddrRange(0x1800, 0x8000))] == [5, 7, 9]
    live.discard(0x3000)
    live.discard(0x3000)
    assert live.clear() == 0x2000
    assert len(live) == 0
