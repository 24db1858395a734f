# SPDX-License-Identifier: Apache-2.0
"""Choices drawn from bytes: the same bytes give the same choices, and no bytes give zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


class Draw:
    """Reads choices from the front of an input.

    Args:
        data: of the fuzzer.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def bytes(self, size: int) -> bytes:
        """Return the next bytes, with zeros where there are no more."""
        part = self._data[self._at : self._at + size]
        self._at += size
        return part.ljust(size, b"\0")

    def below(self, limit: int) -> int:
        """Return a number from 0 to `limit` - 1."""
        width = max((limit - 1).bit_length() + 7 >> 3, 1)
        return int.from_bytes(self.bytes(width), "little") % limit

    def one_of(self, choices: Sequence[T]) -> T:
        """Return one of these."""
        return choices[self.below(len(choices))]

    def rest(self) -> bytes:
        """Return what is left."""
        part, self._at = self._data[self._at :], len(self._data)
        return part
