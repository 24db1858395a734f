# SPDX-License-Identifier: Apache-2.0
"""A host: its facts, and what they allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm_iova.host.facts import Facts
from vmm_iova.host.judge import judge
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm_iova.host.evidence import Aperture
    from vmm_iova.host.usable import Usable


@record
class Host(Facts):
    """All facts of one host. Make one with `vmm_iova.load_host`.

    Synchronization: none required (immutable).
    """

    def usable(
        self,
        *,
        groups: Iterable[str | int] | None = None,
        devices: Iterable[str] | None = None,
        aperture: Aperture | None = None,
        granule: int | None = None,
        strict: bool = False,
    ) -> Usable:
        """Judge which IOVAs may be mapped for these groups or devices together.

        See `vmm_iova.host.judge.judge`, which this calls.
        """
        return judge(
            self,
            groups=groups,
            devices=devices,
            aperture=aperture,
            granule=granule,
            strict=strict,
        )
