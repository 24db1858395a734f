# SPDX-License-Identifier: Apache-2.0
"""What an errno of a call says, and what it leaves open."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm_iova.diagnosis.causes import Rule
    from vmm_iova.diagnosis.failure import Failure


def meaning(call: Failure, rules: Sequence[Rule]) -> str:
    """Say what the errno of a call means, and how many causes it can have."""
    if call.op == "start":
        return "the program stopped before it made a map or an attach call"
    if call.op == "bar":
        return "a BAR has no address that its bus can have"
    if call.op == "fault":
        return "the device used an address that the IOMMU does not translate for it"
    causes = len({rule.why for rule in rules})
    what = {1: "one cause", 0: "no documented cause"}.get(causes, f"{causes} possible causes")
    if call.errno is None:
        return f"the line names no errno; {_CALLS[call.op]}{_api(call)} can fail for {what}"
    plain = PLAIN.get(call.errno, "the call was refused")
    return f"{plain}; {call.errno} of {_CALLS[call.op]}{_api(call)} has {what}"


PLAIN = {
    "EINVAL": "the kernel rejected it without saying why",
    "EEXIST": "something is mapped there already",
    "ENOSPC": "there is no room for another mapping",
    "ENOMEM": "the memory could not be pinned",
    "EFAULT": "the memory, or the page table, could not be reached",
    "EPERM": "the kernel does not permit it on this platform",
    "EACCES": "the user may not open it",
    "EBUSY": "somebody else has it",
    "ENODEV": "it is not there",
    "ENOENT": "nothing of that name is there",
    "EADDRINUSE": "a mapping lies where the device has a hole",
    "EOVERFLOW": "the range passes the end of the 64-bit space",
    "EOPNOTSUPP": "the kernel does not know what was asked",
}
_CALLS = {
    "map": "a map call",
    "unmap": "an unmap call",
    "set-iommu": "VFIO_SET_IOMMU",
    "attach": "an attach",
    "bind": "VFIO_DEVICE_BIND_IOMMUFD",
    "open": "opening the device or group",
    "get-device": "VFIO_GROUP_GET_DEVICE_FD",
    "probe": "binding a device to vfio-pci",
    "bar": "finding a place for a BAR",
    "memslot": "KVM_SET_USER_MEMORY_REGION",
    "start": "starting the VMM",
    "setup": "one of the calls that set a device up",
}


def _api(call: Failure) -> str:
    if call.op in ("memslot", "open", "start"):
        return ""
    return {"type1": " on a VFIO container", "iommufd": " on an iommufd", None: ""}[call.api]
