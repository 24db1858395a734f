"""One call of the differential, and what a kernel answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Op:
    """One call: what it is, and its numbers."""

    name: str
    args: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(hex, self.args))})"


@dataclass(frozen=True)
class Answer:
    """What a kernel said."""

    errno: int
    value: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        if self.errno:
            return f"errno {self.errno} {self.data.hex()}"
        return f"{self.value} {self.data.hex()}"
