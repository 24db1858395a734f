# SPDX-License-Identifier: Apache-2.0
"""Work in a process of its own: what it breaks, it breaks alone."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def in_child(work: Callable[[], object]) -> Any:
    """Run `work` in a child and return what it returns, through JSON; None when the child died.

    An exception comes back as text that begins with its type.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer: object = None
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return json.loads(data) if data else None
