# SPDX-License-Identifier: Apache-2.0
"""Stream a fleet through an executor: bounded chunks in flight, one survey out."""

from __future__ import annotations

from collections import deque
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, Protocol

from vmm_iova.errors import HostUnavailableError
from vmm_iova.fleet.one import damaged, survey_text
from vmm_iova.fleet.outcome import HostRow, Status
from vmm_iova.fleet.survey import Survey, merge_all
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmm_iova.fleet.request import FleetRequest
    from vmm_iova.fleet.sources import SourceText

CHUNK = 64
"""Hosts that are sent to a worker at once."""
_CHUNK_BYTES = 8 << 20


class SupportsSubmit(Protocol):
    """What is needed of an executor: `concurrent.futures.Executor.submit`."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `fn` somewhere, and return a future with `result()`."""


@record
class Progress:
    """How far a survey is.

    Attributes:
        hosts: hosts that are done.
        damaged: those of them that could not be read.
    """

    hosts: int
    damaged: int


def survey_chunk(
    sources: Sequence[SourceText], request: FleetRequest, rows: bool
) -> tuple[Survey, tuple[HostRow, ...]]:
    """Judge some hosts. This is what runs in a worker; it raises for a wrong request alone.

    Args:
        sources: the snapshots.
        request: what is asked.
        rows: True to return a row for each host, too.
    """
    judged = [
        damaged(name, problem) if problem else survey_text(content, name, request)
        for name, content, problem in sources
    ]
    survey = merge_all(item for item, _ in judged)
    return survey, tuple(row for _, of in judged for row in of) if rows else ()


def survey_fleet(
    sources: Iterable[SourceText],
    request: FleetRequest,
    *,
    executor: SupportsSubmit | None = None,
    in_flight: int = 8,
    chunk: int = CHUNK,
    progress: Callable[[Progress], None] | None = None,
    on_rows: Callable[[tuple[HostRow, ...]], None] | None = None,
) -> Survey:
    """Judge every host of a fleet.

    The result does not depend on the executor, the number of workers or the order in which they
    finish. At most `in_flight` chunks of sources are held at a time.

    Args:
        sources: the snapshots, from `read_sources` or anywhere else.
        request: what is asked of each.
        executor: anything with the `submit` of `concurrent.futures.Executor`: a process pool, a
            Dask client's, a wrapper of Ray. None judges here.
        in_flight: chunks that may be under way; twice the number of workers keeps them busy.
        chunk: hosts in a chunk.
        progress: called after each chunk.
        on_rows: called with the rows of each chunk, in the order of the sources.

    Returns:
        The survey; `analyse` makes the answer of it.

    Raises:
        RequestError: the request makes no sense on any host.
        HostUnavailableError: a worker died.

    Complexity: O(hosts); memory O(in_flight x chunk + classes), whatever the number of hosts.
    Synchronization: none required; callbacks run in the caller's thread.
    """
    request = request.resolved()
    want_rows = on_rows is not None
    total = Survey()
    waiting: deque[Any] = deque()

    def take(done: tuple[Survey, tuple[HostRow, ...]]) -> None:
        nonlocal total
        total = total.merge(done[0])
        if on_rows is not None:
            on_rows(done[1])
        if progress is not None:
            progress(Progress(total.hosts, total.counts[Status.DAMAGED.value]))

    try:
        for part in _chunks(sources, chunk):
            if executor is None:
                take(survey_chunk(part, request, want_rows))
                continue
            waiting.append(executor.submit(survey_chunk, part, request, want_rows))
            if len(waiting) >= max(in_flight, 1):
                take(waiting.popleft().result())
        while waiting:
            take(waiting.popleft().result())
    except BrokenExecutor as error:
        raise HostUnavailableError(
            f"a worker died: {error}",
            source="executor",
            hint="fewer workers need less memory; --workers 1 judges in this process",
        ) from error
    return total


def _chunks(sources: Iterable[SourceText], size: int) -> Iterator[list[SourceText]]:
    """Cut into chunks of `size` hosts, smaller ones where the snapshots are large."""
    part: list[SourceText] = []
    held = 0
    for source in sources:
        part.append(source)
        held += len(source.content)
        if len(part) >= size or held >= _CHUNK_BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part
