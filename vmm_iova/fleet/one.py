# SPDX-License-Identifier: Apache-2.0
"""One host of a fleet: its text in, a survey of one host out. Pure, and everything pickles."""

from __future__ import annotations

import hashlib
import marshal
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

from vmm_iova import files
from vmm_iova.errors import HostDataError, IovaError
from vmm_iova.fleet.outcome import HostRow, Outcome, Status, fixes_of, joined, judge_host
from vmm_iova.fleet.request import written
from vmm_iova.fleet.survey import Problem, Survey, merge_all
from vmm_iova.host.load import parse_hosts
from vmm_iova.host.snapshot import read_snapshot
from vmm_iova.plain import one_line, parse_json, whole_number
from vmm_iova.record import replace

if TYPE_CHECKING:
    from vmm_iova.fleet.request import FleetRequest

_CACHED = 1024  # hosts whose facts were judged, kept by each worker


_CACHE: OrderedDict[bytes, Outcome] = OrderedDict()


def survey_text(
    content: bytes, name: str, request: FleetRequest
) -> tuple[Survey, tuple[HostRow, ...]]:
    """Judge one snapshot or pasted text; nothing about it raises.

    Hosts with the same facts but for their names are judged once: a worker keeps the last ones.

    Args:
        content: the file.
        name: what to call it.
        request: what is asked, best `resolved`.

    Complexity: O(size) for parsing, milliseconds for judging, once for the same facts.
    Synchronization: none required; the cache only ever holds what would be computed again.
    """
    if not content.strip():
        # For one host an empty text is an empty list of regions; in a fleet, a capture that failed.
        return damaged(name, "is empty: nothing was captured", ("capture that host again",))
    try:
        if len(content) > files.LARGEST:
            raise files.too_large(name, files.LARGEST)
        text = files.decode(content, name)
        data = _snapshot(text)
        key = None if data is None else _key(data, request)
        known = _CACHE.get(key) if key else None
        if known is not None and key:
            _CACHE.move_to_end(key)
            outcomes = [(name, known)]
        else:
            hosts = parse_hosts(text, name) if data is None else (read_snapshot(data, name),)
            outcomes = [
                (name if len(hosts) == 1 else f"{name}#{index}", judge_host(host, request))
                for index, host in enumerate(hosts, 1)
            ]
            if key and len(outcomes) == 1:
                _CACHE[key] = outcomes[0][1]
                while len(_CACHE) > _CACHED:
                    _CACHE.popitem(last=False)
    except IovaError as error:
        return damaged(name, _without_name(error.message, name), fixes_of(error))
    except Exception as error:  # one strange file does not end the survey of a fleet
        return damaged(name, f"defect of vmm-iova: {type(error).__name__}: {one_line(str(error))}")
    named = [_named(outcome, host) for host, outcome in outcomes]
    rows = tuple(row for _, row in named)
    return named[0][0] if len(named) == 1 else merge_all(survey for survey, _ in named), rows


def _without_name(message: str, name: str) -> str:
    """Take the file's name off the front of a message that will stand beside it."""
    rest = message.removeprefix(name)
    if rest == message:
        return message
    number, colon, text = rest.removeprefix(":").partition(":")
    at_line = rest.startswith(":") and colon and whole_number(number) is not None
    return f"line {number}:{text}" if at_line else rest.lstrip(": ")


def damaged(
    name: str, problem: str, fixes: tuple[str, ...] = ()
) -> tuple[Survey, tuple[HostRow, ...]]:
    """Return the survey of a host that could not be read."""
    status = Status.DAMAGED
    survey = Survey(
        Counter({status.value: 1}), problems={status.value: (Problem(name, problem, fixes),)}
    )
    return survey, (HostRow(name, status, reason=problem, fixes=joined(fixes)),)


def _snapshot(text: str) -> dict[str, Any] | None:
    """Parse a snapshot; None where it is a text, or malformed, which its reader says."""
    if text.lstrip()[:1] != "{":
        return None
    try:
        data = parse_json(text, "")
    except HostDataError:
        return None
    return data if isinstance(data, dict) else None


_OWN = {"name", "origin", "generator", "notes", "state"}


def _key(data: dict[str, Any], request: FleetRequest) -> bytes | None:
    """Digest what the answer depends on: not the names and the moment that make hosts different."""
    data = {key: value for key, value in data.items() if key not in _OWN}
    try:
        facts = marshal.dumps(data)  # by value, and the fastest that there is
    except ValueError:  # what nobody reads may be nested as deep as it can be
        return None
    digest = hashlib.blake2b(facts, digest_size=16)
    digest.update(written(request))
    return digest.digest()


def _named(outcome: Outcome, name: str) -> tuple[Survey, HostRow]:
    """Give an outcome its host's name."""
    survey = outcome.survey
    return (
        replace(
            survey,
            classes={key: replace(item, names=(name,)) for key, item in survey.classes.items()},
            problems={
                key: tuple(item._replace(name=name) for item in named)
                for key, named in survey.problems.items()
            },
            devices={
                key: replace(
                    item,
                    names=(name,) if item.names else (),
                    blocked=(name, item.blocked[1]) if item.blocked else None,
                )
                for key, item in survey.devices.items()
            },
        ),
        replace(outcome.row, name=name),
    )
