# SPDX-License-Identifier: Apache-2.0
"""Survey a fleet on Ray: a task's reference gives a future, so an executor is ten lines.

    pip install vmm-iova ray
    python examples/fleet_ray.py HOSTS.tar 64G            # Ray on this machine
    RAY_ADDRESS=auto python examples/fleet_ray.py HOSTS.tar 64G

Every node needs vmm-iova installed; the snapshots travel to it, and what is asked of them.
"""

from __future__ import annotations

import functools
import sys
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

import ray

from vmm_iova import Guest, fleet

if TYPE_CHECKING:
    from collections.abc import Callable


class RayExecutor(Executor):
    """`concurrent.futures.Executor.submit` on Ray tasks."""

    def __init__(self) -> None:
        self._remote = functools.cache(ray.remote)  # each call of it exports the function anew

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call `fn` somewhere on the cluster."""
        future: Future[Any] = self._remote(fn).remote(*args, **kwargs).future()
        return future


def main(source: str, ram: str) -> None:
    """Survey `source` and print the answer."""
    request = fleet.FleetRequest(Guest(ram=ram))
    ray.init(log_to_driver=False, include_dashboard=False)
    try:
        survey = fleet.survey_fleet(
            fleet.read_sources([source]),
            request,
            executor=RayExecutor(),
            in_flight=2 * int(ray.cluster_resources().get("CPU", 1)),
            progress=lambda done: print(f"\r{done.hosts} hosts", end="", file=sys.stderr),
        )
    finally:
        ray.shutdown()
    answer = fleet.analyse(survey, request)
    print(f"\n{answer.hosts} hosts: {dict(answer.counts)}")
    for group in answer.groups:
        print(f"{group.hosts} hosts share: {', '.join(str(item.gpa) for item in group.layout.ram)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
