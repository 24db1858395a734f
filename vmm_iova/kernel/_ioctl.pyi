# SPDX-License-Identifier: Apache-2.0
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any

from vmm_iova.kernel.book import Mappable

def ioctl_many(fd: int, request: int, records: bytearray, stride: int) -> tuple[int, int]: ...
def pack_type1(pieces: Sequence[Mappable]) -> bytearray: ...
def pack_ioas(pieces: Sequence[Mappable], ioas_id: int) -> bytearray: ...
def spot(depth: int = 2) -> tuple[CodeType, int]: ...
def map_type1(
    fd: int,
    request: int,
    book: dict[int, Any],
    flags: int,
    iova: int,
    hva: int,
    size: int,
    entry: object,
) -> int: ...
def map_ioas(
    fd: int,
    request: int,
    book: dict[int, Any],
    ioas_id: int,
    flags: int,
    iova: int,
    hva: int,
    size: int,
    entry: object,
) -> int: ...
def unmap_one(
    fd: int, request: int, book: dict[int, Any], second: int, iova: int, size: int
) -> tuple[int, int]: ...

class Order:
    def __init__(self, starts: Sequence[int]) -> None: ...
    def update(self, late: list[int], book: Mapping[int, object]) -> None: ...
    def below(self, x: int) -> int: ...
    def span(self, first: int, last: int) -> list[int]: ...
