# SPDX-License-Identifier: Apache-2.0
"""Pre-faulting: have every page before the first map ioctl, by several threads.

The ioctl would fault the pages one after the other, in one thread, with nothing to show and no way
to stop it. madvise does the same work in pieces, in parallel, with the interpreter's lock released.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import threading
from typing import TYPE_CHECKING

from vmm_iova.errors import DmaError, MisalignedError, RequestError
from vmm_iova.kernel.syscalls import PAGE_SIZE
from vmm_iova.ranges import MIB, Hva
from vmm_iova.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm_iova.mapping.piece import Piece

MADV_POPULATE_WRITE = 23
"""Linux 5.14 (include/uapi/asm-generic/mman-common.h)."""

CHUNK = 32 * MIB
"""Bytes a step: a few milliseconds of work, so that an interrupt is heard soon."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _madvise(hva: Hva, size: int) -> int:
    """Populate; return an errno, or 0."""
    ctypes.set_errno(0)
    return ctypes.get_errno() if _libc.madvise(hva, size, MADV_POPULATE_WRITE) else 0


def _touch(hva: Hva, size: int) -> None:
    """Write to each page what is there; nobody else may use the memory yet."""
    for address in range(hva, hva + size, PAGE_SIZE):
        byte = ctypes.c_ubyte.from_address(address)
        byte.value = byte.value


def populate(hva: Hva, size: int) -> None:
    """Have all pages of this memory present and writable.

    Raises:
        DmaError: `ENOMEM` or `EFAULT` there is not so much memory, or not so many huge pages;
            `EHWPOISON` a page is broken.
    """
    number = errno.EAGAIN
    while number in (errno.EAGAIN, errno.EINTR):
        number = _madvise(hva, size)
    if number == errno.EINVAL and hva % PAGE_SIZE == 0:
        # KERNEL: before 5.14 the advice is unknown.
        _touch(hva, size)
    elif number:
        raise DmaError(
            f"{format_size(size)} at {hva:#x} cannot be had: {os.strerror(number)}",
            errno=number,
            ioctl="madvise",
            hva=hva,
            length=size,
            hint="free memory, or HugePages_Free in /proc/meminfo, does not suffice; or nothing is "
            "mapped there in this process",
        )


def prefault(
    pieces: Iterable[Piece],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    chunk: int = CHUNK,
) -> None:
    """Have all pages of these pieces before they are mapped.

    When `progress` raises, or Ctrl-C comes, the threads end after the step that each is at, and the
    exception goes on; the memory is the caller's to close.

    Args:
        pieces: memory that nobody else uses yet.
        threads: how many; default one a processor, at most 16.
        progress: called in this thread with bytes done and bytes in all.
        chunk: bytes a step.

    Raises:
        DmaError: memory is short.
        RequestError: threads below 1, or a chunk that is not whole pages.
        MisalignedError: memory that does not begin at a page.

    Complexity: one madvise call a chunk.
    Synchronization: internally locked; `progress` runs in the calling thread only.
    """
    count = threads if threads is not None else min(len(os.sched_getaffinity(0)), 16)
    if count < 1:
        raise RequestError(f"{count} threads do nothing", field="threads", value=count)
    if chunk < 1 or chunk % PAGE_SIZE:
        raise RequestError(
            f"a chunk of {chunk:#x} bytes is not whole pages of {PAGE_SIZE:#x}",
            field="chunk",
            value=chunk,
        )
    pieces = tuple(pieces)
    for piece in pieces:
        if piece.hva % PAGE_SIZE:
            raise MisalignedError(
                f"{piece}: hva {piece.hva:#x} is not a multiple of the page {PAGE_SIZE:#x}",
                field="hva",
                value=piece.hva,
                align=PAGE_SIZE,
            )
    steps: queue.SimpleQueue[tuple[Hva, int]] = queue.SimpleQueue()
    total = 0
    for piece in pieces:
        total += piece.size
        for at in range(0, piece.size, chunk):
            steps.put((Hva(piece.hva + at), min(chunk, piece.size - at)))
    reports: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                hva, size = steps.get_nowait()
            except queue.Empty:
                return
            try:
                populate(hva, size)
            except BaseException as exc:
                reports.put(exc)
                return
            reports.put(size)

    crew = [threading.Thread(target=work, name=f"prefault-{n}", daemon=True) for n in range(count)]
    done = 0
    try:
        for thread in crew:
            thread.start()
        while done < total:
            report = reports.get()
            if isinstance(report, BaseException):
                raise report
            done += report
            if progress is not None:
                progress(done, total)
    finally:
        stop.set()
        for thread in crew:
            if thread.ident is not None:
                thread.join()
