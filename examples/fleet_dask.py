# SPDX-License-Identifier: Apache-2.0
"""Survey a fleet on a Dask cluster: its client's executor is all that `survey_fleet` needs.

    pip install vmm-iova distributed
    python examples/fleet_dask.py HOSTS.tar 64G                     # a cluster on this machine
    python examples/fleet_dask.py HOSTS.tar 64G tcp://scheduler:8786

Every worker needs vmm-iova installed; the snapshots travel to it, and what is asked of them.
"""

from __future__ import annotations

import sys

from distributed import Client

from vmm_iova import Guest, fleet


def main(source: str, ram: str, address: str | None = None) -> None:
    """Survey `source` and print the answer."""
    request = fleet.FleetRequest(Guest(ram=ram))
    own = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with Client(address, **({} if address else own)) as client:
        survey = fleet.survey_fleet(
            fleet.read_sources([source]),
            request,
            executor=client.get_executor(pure=False),
            # Of all workers: scheduler_info() names the first few of a large cluster only.
            in_flight=2 * sum(client.nthreads().values()),
            progress=lambda done: print(f"\r{done.hosts} hosts", end="", file=sys.stderr),
        )
    answer = fleet.analyse(survey, request)
    print(f"\n{answer.hosts} hosts: {dict(answer.counts)}")
    for group in answer.groups:
        print(f"{group.hosts} hosts share: {', '.join(str(item.gpa) for item in group.layout.ram)}")


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
