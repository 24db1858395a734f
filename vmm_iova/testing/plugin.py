# SPDX-License-Identifier: Apache-2.0
"""Fixtures of pytest: a kernel in memory, a space on it, its host, and a look at what was left.

    def test_my_driver(vmm_space):
        with MyDriver(vmm_space) as driver:
            driver.start()

| fixture | what |
|---|---|
| `vmm_kernel` | a `SimulatedKernel` with one device; `inject` and `falsify` order faults |
| `vmm_space` | an `AddressSpace` on it with all its devices, by iommufd or type1 |
| `vmm_host` | the facts of its host, with what the kernel says of the space |
| `vmm_allocator` | an `IovaAllocator` of what the space can map |

The marker `vmm_kernel` says how the kernel is: `@pytest.mark.vmm_kernel(via="type1")`, with
`host` (name of a bundled host, a file, or a `Host`), `aperture`, `groups` (of `SimGroup`),
`via` (`type1`, `iommufd` or `auto`), and `release`, `memlock`, `dma_entry_limit`, `kinds`
(`{BDF: "nvme"}`) and whatever else `SimulatedKernel` takes.

When a test ends, nothing may be mapped, locked, open or allocated. What is, fails the test, with
the file and line that made it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm_iova.allocator import IovaAllocator
    from vmm_iova.host.host import Host
    from vmm_iova.kernel.ioas import Ioas
    from vmm_iova.kernel.type1 import Type1Container
    from vmm_iova.testing.watched import WatchedKernel

    Space = Type1Container | Ioas

# Nothing of the package is imported before a fixture is used: pytest loads this file in every run
# of every project that has the package installed.


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "vmm_kernel(host=, aperture=, groups=, via=, release=, ...): the simulated kernel of "
        "vmm_iova's fixtures (see vmm_iova.testing.plugin)",
    )


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of the markers; the one nearest to the test has the word."""
    options: dict[str, Any] = {}
    for marker in request.node.iter_markers("vmm_kernel"):
        options = {**marker.kwargs, **options}
    return options


@pytest.fixture
def vmm_kernel(request: pytest.FixtureRequest) -> Iterator[WatchedKernel]:
    """A kernel in memory; the test fails if something of it stays in use."""
    from vmm_iova.testing.watched import make_kernel

    options = _options(request)
    options.pop("via", None)
    kernel = make_kernel(**options)
    yield kernel
    # What the fixtures made of it found when they ended, and what is left behind all of them.
    left = [*kernel.told, *kernel.left()]
    kernel.close_all()
    if left:
        pytest.fail(f"the test leaves behind: {'; '.join(left)}", pytrace=False)


@pytest.fixture
def vmm_space(request: pytest.FixtureRequest, vmm_kernel: WatchedKernel) -> Iterator[Space]:
    """An address space with all devices of the kernel; the test fails if it leaves a mapping."""
    from vmm_iova.kernel import open_space

    via = _options(request).get("via", "auto")
    with open_space(vmm_kernel.devices(), kernel=vmm_kernel, via=via) as space:
        vmm_kernel.own()
        yield space
        vmm_kernel.told += [f"{item.range} is mapped, by {item.place}" for item in space.live]


@pytest.fixture
def vmm_host(vmm_space: Space, vmm_kernel: WatchedKernel) -> Host:
    """The facts of the kernel's host, with what it says of the space."""
    from vmm_iova.host.load import load_host
    from vmm_iova.kernel import with_kernel_facts

    return with_kernel_facts(load_host(kernel=vmm_kernel), vmm_space)


@pytest.fixture
def vmm_allocator(
    vmm_host: Host, vmm_space: Space, vmm_kernel: WatchedKernel
) -> Iterator[IovaAllocator]:
    """An allocator of what the space can map; the test fails if an address stays taken."""
    from vmm_iova.allocator import IovaAllocator

    allocator = IovaAllocator(vmm_host.usable(devices=vmm_space.open_devices))
    yield allocator
    vmm_kernel.told += [
        f"{item.range} is allocated{'' if item.tag is None else f' for {item.tag}'}"
        for item in allocator
    ]
