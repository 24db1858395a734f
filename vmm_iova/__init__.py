# SPDX-License-Identifier: Apache-2.0
"""Where guest memory may go on a host, where it goes, and why it cannot go elsewhere.

    >>> import vmm_iova as vi
    >>> usable = vi.load_host("amd-epyc-1tb").usable()
    >>> layout = vi.plan(vi.Guest(machine="q35", ram="1.5TiB"), usable)
    >>> [str(piece.gpa) for piece in layout.ram]
    ['0x0-0x7fffffff', '0x100000000-0xfcffffffff', '0x10000000000-0x1837fffffff']

Planning touches no device and needs no root. Everything that is returned is immutable;
`IovaAllocator` is the only object with a state.
"""

import sys
from importlib import import_module

__version__ = "0.2.0"

# The names stand once, in the stub that type checkers and editors read: "from M import N as N".
_STUB = __loader__.get_data(f"{__path__[0]}/__init__.pyi").decode()
_HOMES = {line.split()[3]: line.split()[1] for line in _STUB.splitlines() if line[:5] == "from "}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Load a name when it is first asked for, so that a program pays for what it uses."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vmm_iova' has no attribute {name!r}")
    # What the package itself is the home of is one of its modules.
    home = import_module(_HOMES[name] if _HOMES[name] != __name__ else f"{__name__}.{name}")
    value: object = home if _HOMES[name] == __name__ else getattr(home, name)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
