# SPDX-License-Identifier: Apache-2.0
"""A call that failed, as a line tells it; and failures that several lines tell, once each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.diagnosis.why import Api, Op, Part, Why
from vmm_iova.ranges import ADDRESS_LAST, BASE_PAGE, AddrRange
from vmm_iova.record import record, replace

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_FAILURES = 100
"""Different failures of a paste that are told."""


@record
class Failure:
    """One call that failed, or one access of a device.

    Attributes:
        op: what it was.
        api: the interface, or None when the line does not tell.
        errno: name of the errno, or None.
        iova: first IOVA, or None; of a fault, the address.
        size: bytes, or None.
        hva: address in the process, or None.
        program: who said so, or None.
        part: what was to be mapped, or None when the line does not tell.
        sign: what the words alone settle, or None.
        line: number of the line, from 1.
        text: the line.
        name: what a list of failed maps calls it, or None.
        echo: True if the line only repeats that some call failed.
        warning: True if the program goes on.
        device: the device that the line names, or None.
        driver: the driver that holds it, where the line tells.
        group: the group that the line names, or None.
        node: the node that could not be opened, or None.
        times: how often the same was told.
        unwound: True if the program printed an errno that the call does not have.
        likely: True if the words settle less than their sign.
    """

    op: Op
    api: Api | None = None
    errno: str | None = None
    iova: int | None = None
    size: int | None = None
    hva: int | None = None
    program: str | None = None
    part: Part | None = None
    sign: Why | None = None
    line: int = 1
    text: str = ""
    name: str | None = None
    echo: bool = False
    warning: bool = False
    device: str | None = None
    driver: str | None = None
    group: str | None = None
    node: str | None = None
    times: int = 1
    unwound: bool = False
    likely: bool = False

    def __post_init__(self) -> None:
        """Take words for the members that they are the values of."""
        object.__setattr__(self, "op", Op(self.op))
        if self.api is not None:
            object.__setattr__(self, "api", Api(self.api))
        if self.part is not None:
            object.__setattr__(self, "part", Part(self.part))

    @property
    def range(self) -> AddrRange | None:
        """The IOVAs, when both ends are known and do not wrap."""
        if self.iova is None or not self.size or self.iova + self.size - 1 > ADDRESS_LAST:
            return None
        return AddrRange.from_size(self.iova, self.size)

    @property
    def place(self) -> AddrRange | None:
        """The IOVAs, or the page at `iova` where the size is not known."""
        if self.iova is None or self.size:
            return self.range
        start = self.iova // BASE_PAGE * BASE_PAGE if self.op is Op.FAULT else self.iova
        return AddrRange(start, min(start + BASE_PAGE - 1, ADDRESS_LAST))


def each_once(found: list[Failure]) -> Iterator[Failure]:
    """Leave out what is told again, with fewer facts or with the same.

    QEMU prints the ioctl's failure and then the call's; the kernel logs the cause beside it.
    """
    kept: list[Failure] = []
    told = [item for item in found if not item.echo] or found
    # A warning beside a failure is not what the report is about.
    told = [item for item in told if not item.warning] or told
    for item in told:
        twin = next((index for index, old in enumerate(kept) if _same(old, item)), None)
        if twin is None:
            if len(kept) <= MOST_FAILURES:  # one more, to say that there are more
                kept.append(item)
        else:
            kept[twin] = _join(kept[twin], item)
    whole = [item for item in kept if not (item.program == "kernel" and item.iova is None)]
    # A cause that the kernel logged beside a VMM's own line is a clue to that line.
    calls = {item.api for item in kept if item.api}
    for item in whole or kept:
        one = item.api is None and item.op in (Op.MAP, Op.UNMAP) and len(calls) == 1
        yield replace(item, api=next(iter(calls))) if one else item


def _same(old: Failure, new: Failure) -> bool:
    if old.op != new.op or (old.errno and new.errno and old.errno != new.errno):
        return False
    if old.op is Op.FAULT:
        return (old.device, old.sign) == (new.device, new.sign) and old.iova is not None
    if old.op is Op.BAR:
        pairs = ((old.size, new.size), (old.device, new.device))
        alike = all(None in pair or pair[0] == pair[1] for pair in pairs)
        return old.sign is new.sign and alike
    if old.sign is not new.sign and old.sign and new.sign:
        return False
    if old.iova is None or new.iova is None:
        return "kernel" not in (old.program, new.program) or old.program == new.program
    return (old.iova, old.size) == (new.iova, new.size)


def _join(old: Failure, new: Failure) -> Failure:
    known, more = (new, old) if old.iova is None and new.iova is not None else (old, new)
    return replace(
        known,
        api=known.api or more.api,
        errno=known.errno or more.errno,
        size=known.size or (more.size if known.op is Op.BAR else None),
        program=known.program or more.program,
        part=known.part or more.part,
        sign=known.sign or more.sign,
        device=known.device or more.device,
        driver=known.driver or more.driver,
        group=known.group or more.group,
        times=old.times + new.times,
    )
