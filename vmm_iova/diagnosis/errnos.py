# SPDX-License-Identifier: Apache-2.0
"""The errnos of Linux, by number, name and words: a report is explained on any laptop."""

from __future__ import annotations

import errno


def errno_name(number: int) -> str:
    """Return the name of a Linux errno, or the number as text."""
    return _LINUX.get(abs(number)) or errno.errorcode.get(abs(number), str(abs(number)))


# The numbers of Linux on x86, arm64, s390 and riscv (include/uapi/asm-generic/errno-base.h and
# errno.h): a report is explained on any laptop, whose own numbers may differ.
_LINUX = {
    1: "EPERM",
    2: "ENOENT",
    5: "EIO",
    7: "E2BIG",
    9: "EBADF",
    11: "EAGAIN",
    12: "ENOMEM",
    13: "EACCES",
    14: "EFAULT",
    16: "EBUSY",
    17: "EEXIST",
    19: "ENODEV",
    22: "EINVAL",
    25: "ENOTTY",
    28: "ENOSPC",
    75: "EOVERFLOW",
    77: "EBADFD",
    90: "EMSGSIZE",
    95: "EOPNOTSUPP",
    98: "EADDRINUSE",
}
_WORDS = {
    "operation not permitted": "EPERM",
    "no such file or directory": "ENOENT",
    "input/output error": "EIO",
    "bad file descriptor": "EBADF",
    "cannot allocate memory": "ENOMEM",
    "out of memory": "ENOMEM",
    "permission denied": "EACCES",
    "bad address": "EFAULT",
    "device or resource busy": "EBUSY",
    "resource busy": "EBUSY",
    "file exists": "EEXIST",
    "no such device": "ENODEV",
    "invalid argument": "EINVAL",
    "inappropriate ioctl for device": "ENOTTY",
    "no space left on device": "ENOSPC",
    "value too large for defined data type": "EOVERFLOW",
    "operation not supported": "EOPNOTSUPP",
    "address already in use": "EADDRINUSE",
}
NAMES = frozenset(_LINUX.values())
"""Names of errnos that these calls return."""


def errno_of_words(text: str) -> str | None:
    """Return the errno whose words (as strerror has them) stand in a text, or None."""
    lower = text.lower()
    return next((name for words, name in _WORDS.items() if words in lower), None)
