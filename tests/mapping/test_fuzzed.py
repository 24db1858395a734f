# SPDX-License-Identifier: Apache-2.0
"""The targets of the fuzzer, on a few inputs: that they hold, and that they find what is wrong."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from fuzz.targets import capabilities as caps_target
from fuzz.targets import mapping as mapping_target
from vmm_iova.errors import IovaError
from vmm_iova.kernel import caps
from vmm_iova.kernel.book import LiveMappings
from vmm_iova.mapping import DynamicMaps

TARGETS = [caps_target.one_input, mapping_target.one_input]


def _inputs(count: int) -> list[bytes]:
    rng = random.Random(9)
    return [rng.randbytes(rng.randrange(1, 300)) for _ in range(count)]


@pytest.mark.parametrize("target", TARGETS, ids=["caps", "mapping"])
def test_target_holds_on_random_inputs(target: Callable[[bytes], None]) -> None:
    _all(target, [b"", *_inputs(60)])


def _all(target: Callable[[bytes], None], inputs: list[bytes]) -> None:
    for data in inputs:
        target(data)


def _reader_of_one_range_less(cap: caps.Capability) -> Any:
    ranges = list(READ_RANGES(cap))
    return caps.MappableRanges(ranges[:-1])


READ_RANGES = caps.read_ranges


def _forget_all(self: LiveMappings, _: int) -> None:
    self.clear()


def _keep_the_address(self: DynamicMaps, *_: object) -> None:
    """What ends a call does not give the address back."""


@pytest.mark.parametrize(
    ("target", "owner", "name", "wrong"),
    [
        (caps_target.one_input, caps, "read_ranges", _reader_of_one_range_less),
        (mapping_target.one_input, LiveMappings, "discard", _forget_all),
        (mapping_target.one_input, DynamicMaps, "_end", _keep_the_address),
    ],
    ids=["a range is lost", "the book loses what is mapped", "an address is lost"],
)
def test_target_finds_a_defect_put_in_on_purpose(
    target: Callable[[bytes], None],
    owner: Any,
    name: str,
    wrong: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    inputs = _inputs(400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # what is found is dropped as it is
        with pytest.raises((AssertionError, IovaError)):
            _all(target, inputs)
        gc.collect()
