# SPDX-License-Identifier: Apache-2.0
"""Devices by their BDF: which way to them is open, and if none is, why not.

    with open_space(["0000:01:00.0"]) as space:
        space.map(iova=0x10_0000, hva=address, size=0x20_0000)

Nothing is bound, unbound or written here: what has to be done is said, and left to the user.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Literal

from vmm_iova import remedies as say
from vmm_iova.errors import DeviceOpenError, DmaError, RequestError
from vmm_iova.host.obstacles import hinders
from vmm_iova.kernel.ioas import Ioas
from vmm_iova.kernel.iommufd import Iommufd, VfioCdev
from vmm_iova.kernel.syscalls import LINUX, Kernel
from vmm_iova.kernel.type1 import Type1Container
from vmm_iova.record import record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm_iova.errors import OpenProblem
    from vmm_iova.host.facts import SpaceKind
    from vmm_iova.kernel.space import AddressSpace

Via = Literal["auto", "iommufd", "type1"]
"""Which way to a device is to be taken."""

_Module = Literal["iommufd", "vfio_iommu_type1"]

_PCI = "/sys/bus/pci/devices"
_GROUPS = "/sys/kernel/iommu_groups"


@record
class DeviceSite:
    """Where a device is, as sysfs says.

    Attributes:
        bdf: the device.
        driver: that holds it, or None.
        group: number of its IOMMU group, or None: it is behind no IOMMU.
        members: of the group, each `(bdf, driver)`.
        direct: lines of the group's reserved_regions that demand a 1:1 mapping.
        cdev: its own node, or None (before 6.6, or not bound to VFIO).
        group_node: node of its group.
    """

    bdf: str
    driver: str | None
    group: int | None
    members: tuple[tuple[str, str | None], ...]
    direct: tuple[str, ...]
    cdev: str | None
    group_node: str | None

    @property
    def held_by_vfio(self) -> bool:
        """Whether its driver is one of VFIO's."""
        return self.cdev is not None or "vfio" in (self.driver or "")


def _driver(bdf: str, kernel: Kernel) -> str | None:
    try:
        return kernel.read_link(f"{_PCI}/{bdf}/driver").rsplit("/", 1)[-1]
    except OSError:
        return None


def find_device(bdf: str, kernel: Kernel = LINUX) -> DeviceSite:
    """Look a device up in sysfs.

    Args:
        bdf: `0000:01:00.0`; without a domain, 0000 is meant.
        kernel: whose sysfs.

    Raises:
        DeviceOpenError: there is no such device (`absent`).
    """
    bdf = bdf.lower() if bdf.count(":") == 2 else f"0000:{bdf.lower()}"
    base = f"{_PCI}/{bdf}"
    if not kernel.exists(base):
        raise DeviceOpenError(
            f"there is no PCI device {bdf}",
            bdf=bdf,
            problem="absent",
            errno=errno.ENODEV,
            ioctl="open",
            hint="lspci -D lists the devices",
        )
    group: int | None = None
    members: tuple[tuple[str, str | None], ...] = ()
    direct: tuple[str, ...] = ()
    try:
        group = int(kernel.read_link(f"{base}/iommu_group").rsplit("/", 1)[-1])
        names = kernel.list_dir(f"{_GROUPS}/{group}/devices")
        members = tuple((name, _driver(name, kernel)) for name in names)
    except (OSError, ValueError):
        pass
    if group is not None:
        try:
            lines = kernel.read_text(f"{_GROUPS}/{group}/reserved_regions").splitlines()
            direct = tuple(line for line in lines if line.split()[2:] == ["direct"])
        except OSError:
            pass
    return DeviceSite(
        bdf, _driver(bdf, kernel), group, members, direct, _cdev(base, kernel), _node(group, kernel)
    )


def _cdev(base: str, kernel: Kernel) -> str | None:
    """Find the node; its `dev` file exists only with CONFIG_VFIO_DEVICE_CDEV (6.6)."""
    try:
        names = kernel.list_dir(f"{base}/vfio-dev")
    except OSError:
        return None
    nodes = [name for name in names if kernel.exists(f"{base}/vfio-dev/{name}/dev")]
    return f"/dev/vfio/devices/{nodes[0]}" if nodes else None


def _node(group: int | None, kernel: Kernel) -> str | None:
    return None if group is None else f"/dev/vfio/{group}"


def _refusal(
    site: DeviceSite, problem: OpenProblem, message: str, number: int, ioctl: str, hint: str
) -> DeviceOpenError:
    return DeviceOpenError(
        message,
        bdf=site.bdf,
        problem=problem,
        errno=number,
        ioctl=ioctl,
        group=site.group,
        hint=hint,
    )


def _check_site(site: DeviceSite) -> None:
    """Refuse what sysfs alone shows to be hopeless."""
    if site.group is None:
        raise _refusal(
            site,
            "no-iommu",
            f"{site.bdf} is in no IOMMU group: the host translates nothing for it",
            errno.ENODEV,
            "open",
            say.IOMMU_ON,
        )
    if not site.held_by_vfio:
        holder = f"driver {site.driver} holds it" if site.driver else "no driver holds it"
        raise _refusal(
            site,
            "wrong-driver",
            f"{site.bdf} is not bound to vfio-pci: {holder}",
            errno.ENODEV,
            "open",
            say.BIND_DEVICE.format(bdf=site.bdf),
        )


def _parameter(kernel: Kernel, module: _Module) -> str:
    try:
        path = f"/sys/module/{module}/parameters/allow_unsafe_interrupts"
        return kernel.read_text(path).strip()
    except OSError:
        return "?"


def _explain(site: DeviceSite, exc: DmaError, kernel: Kernel, module: _Module) -> DeviceOpenError:
    """Say which of the known reasons an errno stands for here."""
    number, node = exc.errno or 0, site.cdev if module == "iommufd" else site.group_node
    opening = exc.ioctl == "open"
    hint: str
    problem: OpenProblem
    if opening and number == errno.ENOENT:
        problem, why = "no-node", f"{node} does not exist"
        hint = say.LOAD_VFIO
    elif opening and number in (errno.EACCES, errno.EPERM):
        problem, why = "unreadable", f"this user may not open {node}"
        hint = say.GIVE_NODE.format(node=node)
    elif number == errno.EBUSY:
        problem, why = "busy", f"{node} or the device itself is open elsewhere"
        hint = say.CLOSE_OTHER_NODE
    elif number == errno.EPERM:
        problem = "unsafe-interrupts"
        why = (
            "the host does not remap its interrupts, and "
            f"{module}'s parameter allow_unsafe_interrupts is {_parameter(kernel, module)}"
        )
        hint = say.REMAP_OR_UNSAFE.format(module=module)
    elif number == errno.EINVAL and site.direct:
        problem = "direct-region"
        why = f"firmware demands a 1:1 mapping ({site.direct[0]}), so the kernel keeps the device"
        hint = say.NO_PARAMETER
    elif number == errno.EINVAL and (foreign := _foreign(site)):
        problem, why = "not-viable", f"of its group {site.group}, {foreign}"
        hint = say.BIND_GROUP
    else:
        problem, why = "refused", exc.message
        hint = exc.hint or say.READ_LOG
    error = _refusal(site, problem, f"{site.bdf}: {why}", number, exc.ioctl, hint)
    error.detail = exc.message
    return error


def _foreign(site: DeviceSite) -> str:
    held = [f"{bdf} has driver {driver}" for bdf, driver in site.members if hinders(driver)]
    return ", ".join(held)


def open_space(
    bdfs: Sequence[str], *, kernel: Kernel = LINUX, via: Via = "auto", dirty: bool = False
) -> Type1Container | Ioas:
    """Open devices and put them into one I/O address space, whichever way the host has.

    The ranges are asked for when all devices are attached, and not before. If one cannot be had,
    all are closed again.

    Args:
        bdfs: at least one device.
        kernel: where the calls go.
        via: `iommufd`, `type1`, or `auto`: the first of these that works.
        dirty: with iommufd, attach so that written pages can be tracked.

    Returns:
        An `AddressSpace` that owns the devices; use it in `with`.

    Raises:
        DeviceOpenError: neither way is open; `problem` and `detail` say why.
        DmaError: the kernel refused a call that is not about a device, such as for want of memory.
        RequestError: no device, or an unknown way.

    Complexity: one attach a device.
    Synchronization: external.
    """
    ways: dict[SpaceKind, Callable[..., Type1Container | Ioas]]
    ways = {"iommufd": _via_iommufd, "type1": _via_type1}
    if via != "auto" and via not in ways:
        raise RequestError(
            f"there is no way {via!r}; there are auto, {', '.join(ways)}", field="via", value=via
        )
    if not bdfs:
        raise RequestError("no device was named", field="bdfs", value=bdfs)
    if isinstance(bdfs, str):
        bdfs = [bdfs]
    sites = [find_device(bdf, kernel) for bdf in bdfs]
    if len({site.bdf for site in sites}) < len(sites):
        raise RequestError(
            f"a device is named twice: {', '.join(bdfs)}", field="bdfs", value=tuple(bdfs)
        )
    for site in sites:
        _check_site(site)
    chosen = dict(ways) if via == "auto" else {via: ways[via]}
    if via == "auto" and not (kernel.exists("/dev/iommu") and all(s.cdev for s in sites)):
        del chosen["iommufd"]
    failures: list[DeviceOpenError] = []
    for name, way in chosen.items():
        try:
            return way(sites, kernel, dirty=dirty)
        except DeviceOpenError as exc:
            more = f" ({exc.detail})" if exc.detail else ""
            exc.detail = f"by {name}: {exc.message}{more}"
            failures.append(exc)
    last = failures[-1]
    if len(failures) > 1:
        last.detail = "; ".join(exc.detail or "" for exc in failures)
    raise last


def _via_iommufd(sites: list[DeviceSite], kernel: Kernel, *, dirty: bool) -> Ioas:
    try:
        iommufd = Iommufd(kernel)
    except DmaError as exc:
        raise _explain_file(sites[0], exc, "/dev/iommu") from exc
    ioas: Ioas | None = None
    try:
        ioas = Ioas(iommufd, owns=True)
        for site in sites:
            _attach_cdev(ioas, site, kernel, dirty=dirty)
    except BaseException:
        if ioas is not None:
            ioas.close()
        iommufd.close()
        raise
    return ioas


def _attach_cdev(ioas: Ioas, site: DeviceSite, kernel: Kernel, *, dirty: bool) -> None:
    if site.cdev is None:
        raise _refusal(
            site,
            "no-node",
            f"{site.bdf} has no device node of its own",
            errno.ENOENT,
            "open",
            say.CDEV,
        )
    device: VfioCdev | None = None
    try:
        device = VfioCdev(kernel, site.cdev)
        device.bind(ioas.iommufd)
        ioas.attach(site.bdf, device, dirty=dirty)
    except BaseException as exc:
        if device is not None:
            device.close()
        if isinstance(exc, DmaError):
            raise _explain(site, exc, kernel, "iommufd") from exc
        raise


def _via_type1(sites: list[DeviceSite], kernel: Kernel, *, dirty: bool) -> Type1Container:
    del dirty  # type1 tracks whenever it is told to
    try:
        container = Type1Container(kernel)
    except DmaError as exc:
        raise _explain_file(sites[0], exc, "/dev/vfio/vfio") from exc
    try:
        for site in sites:
            try:
                if site.group is not None and site.group not in container.groups:
                    container.add_group(site.group)
                container.open_device(site.bdf, site.group or 0)
            except DmaError as exc:
                raise _explain(site, exc, kernel, "vfio_iommu_type1") from exc
    except BaseException:
        container.close()
        raise
    return container


def _explain_file(site: DeviceSite, exc: DmaError, path: str) -> DeviceOpenError:
    number = exc.errno or 0
    if number in (errno.EACCES, errno.EPERM):
        text = f"{site.bdf}: this user may not open {path}"
        hint = say.GIVE_NODE.format(node=path)
        return _refusal(site, "unreadable", text, number, exc.ioctl, hint)
    problem: OpenProblem = "no-node" if number == errno.ENOENT else "refused"
    return _refusal(site, problem, exc.message, number, exc.ioctl, exc.hint or path)


_SPACES: tuple[type[AddressSpace], ...] = (Type1Container, Ioas)
"""Checked by mypy: both are address spaces."""
