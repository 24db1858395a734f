# SPDX-License-Identifier: Apache-2.0
"""Regular expressions that are compiled when they are first used.

A command has some hundred of them at hand and uses ten; to compile one costs up to 1 ms.
"""

from __future__ import annotations

import re
from typing import Any, cast


def regex(source: str, flags: int = 0) -> re.Pattern[str]:
    """Return what `re.compile` does, later: a mistake in `source` is found at its first use."""
    return cast("re.Pattern[str]", _Late(source, flags))


class _Late:
    def __init__(self, source: str, flags: int) -> None:
        self._source = source
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        """Take an attribute of the compiled pattern; from then on it is one of this object."""
        if name.startswith("__"):  # asked by copy, pickle and the like: a pattern has none of these
            raise AttributeError(name)
        value = getattr(re.compile(self._source, self._flags), name)
        setattr(self, name, value)
        return value
