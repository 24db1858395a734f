# SPDX-License-Identifier: Apache-2.0
"""The house keeps its plan: imports go one way, public names are documented."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vmm_iova as vi

ROOT = Path(__file__).parents[2]
LICENCE = "# SPDX-" + "License-Identifier: Apache-2.0\n"
PACKAGE = ROOT / "vmm_iova"

# The wings of docs/design.md, from the ground up; a module imports only from its own wing or from
# wings above its line. Wings of one line do not import each other.
WINGS = (
    (
        "errors",
        "ranges",
        "units",
        "remedies",
        "plain",
        "files",
        "patterns",
        "record",
        "shown",
        "progress",
    ),
    ("allocator", "readers"),
    ("host",),
    ("machines",),
    ("diagnosis",),
    ("planning",),
    ("definitions",),
    ("fleet", "kernel"),
    ("simulated",),
    ("mapping",),
    ("report",),
    ("cli", "testing"),
)
GROUND = WINGS[0]
WING_OF = {"_fast": "allocator", "__init__": "cli", "__main__": "cli"}
"""Files of the root that belong to a wing."""

LATE = {
    "vmm_iova.cli": "a command starts with what it uses",
    "vmm_iova.__main__": "the same",
    "vmm_iova.testing.plugin": "pytest loads it in every project that has the package",
    "vmm_iova.shown": "the report is above: see UPWARD",
}
"""Wings in whose functions imports may stand, and why. Elsewhere they would hide a circle."""

UPWARD = {"vmm_iova.shown": {"vmm_iova.report", "vmm_iova.report.objects"}}
"""The one import that goes up: a layout shows itself (`text`, `svg`), and what does that is above.

It stands in functions, and is made when somebody looks. No other module looks up.
"""

PROMISED = {"errors": "ranges"}
"""Imports for type checkers that close a circle: an error carries ranges, a range raises errors."""

SOURCES = sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    """Name of the module in a file; that of a package is its folder's."""
    parts = ("vmm_iova", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in (*SOURCES, *sorted(PACKAGE.rglob("*.pyx")))}


def _wing(module: str) -> str:
    name = module.split(".")[1] if "." in module else "__init__"
    return WING_OF.get(name, name)


def _level(module: str) -> int:
    return next(index for index, names in enumerate(WINGS) if _wing(module) in names)


def _targets(node: ast.AST) -> set[str]:
    """Modules of ours that an import statement names."""
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
        # `from package import module` names the module, not the package.
        full = {f"{node.module}.{alias.name}" for alias in node.names}
        names = {name if name in MODULES else node.module for name in full}
    else:
        names = set()
    return {name for name in names if name.split(".")[0] == "vmm_iova"}


@cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    text = path.read_text("utf-8")
    if path.suffix == ".pyx":  # Cython is not Python: of it, the lines that are
        text = "\n".join(re.findall(r"^from vmm_iova\S* import [\w, ]+$", text, re.MULTILINE))
    return tuple(_statements(ast.parse(text)))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and the statements below: what stands in expressions imports nothing."""
    yield node
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, name, ()):
            yield from _statements(child)


def _imports(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, for type checkers included."""
    return set().union(*map(_targets, _nodes(path)))


def _late_imports(path: Path) -> set[str]:
    """Modules of ours that a file imports inside of functions."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [node for node in _nodes(path) if isinstance(node, kinds)]
    return set().union(*(_targets(node) for item in functions for node in _statements(item)))


def test_module_imports_only_from_its_own_wing_or_from_wings_before_it() -> None:
    wrong = [
        f"{module}: {name}"
        for module, path in MODULES.items()
        for name in _imports(path) - {"vmm_iova"} - UPWARD.get(module, set())
        if _level(name) >= _level(module) and _wing(name) != _wing(module)
        if not (_wing(name) in GROUND and _wing(module) in GROUND)
    ]
    assert wrong == []


def test_import_inside_of_a_function_stands_only_where_it_makes_the_start_faster() -> None:
    late = {
        module: _late_imports(path)
        for module, path in MODULES.items()
        if not any(module == name or module.startswith(f"{name}.") for name in LATE)
    }
    assert {module: names for module, names in late.items() if names} == {}


def test_no_circle_among_modules_also_among_imports_for_type_checkers() -> None:
    graph = {
        module: {
            name
            for name in _imports(path) & MODULES.keys() - {module, "vmm_iova"}
            if name not in UPWARD.get(module, ())
            if PROMISED.get(module.removeprefix("vmm_iova.")) != name.removeprefix("vmm_iova.")
        }
        for module, path in MODULES.items()
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")
    assert len(order) >= len(MODULES) - 1


def test_walk_of_imports_sees_late_and_typing_only_ones(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "from vmm_iova.kernel import caps\n"
        "from vmm_iova.kernel import Kernel\n"
        "import os\n"
        "if TYPE_CHECKING:\n    from vmm_iova.ranges import AddrRange\n"
        "def late():\n    import vmm_iova.cli\n",
        "ascii",
    )
    late = {"vmm_iova.cli"}
    assert _late_imports(file) == late
    assert _imports(file) == late | {
        "vmm_iova.kernel",
        "vmm_iova.kernel.caps",
        "vmm_iova.ranges",
    }


def test_file_names_its_licence_and_says_what_it_is() -> None:
    unnamed = [path for path in SOURCES if not path.read_text("utf-8").startswith(LICENCE)]
    assert unnamed == []
    silent = [path for path in SOURCES if not ast.get_docstring(_nodes(path)[0])]  # type: ignore[arg-type]
    assert silent == []


def test_file_of_the_package_has_at_most_500_lines() -> None:
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > 500} == {}


def test_public_names_are_sorted_and_exist() -> None:
    assert vi.__all__ == sorted(vi.__all__)
    assert [name for name in vi.__all__ if not hasattr(vi, name)] == []


@pytest.mark.parametrize("name", [n for n in vi.__all__ if inspect.isfunction(getattr(vi, n))])
def test_public_function_says_its_synchronization_or_is_a_plain_reader(name: str) -> None:
    text = inspect.getdoc(getattr(vi, name)) or ""
    assert len(text) > 40
    assert "Synchronization" in text or "Return" in text


def test_import_without_the_cython_and_linux_only_modules_is_enough_to_plan() -> None:
    # Planning works on a laptop that is not Linux: no fcntl, no resource, no mmap.
    program = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'mmap', 'termios'): sys.modules[name] = None\n"
        "import vmm_iova as vi\n"
        "usable = vi.load_host('amd-epyc-1tb').usable()\n"
        "print(len(vi.plan(vi.Guest('own-x86', '1.5TiB'), usable).ram))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "3\n"


def test_no_runtime_dependency_but_sortedcontainers_is_imported() -> None:
    program = (
        "import sys; before = set(sys.modules); import vmm_iova.cli\n"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "ours = {'vmm_iova', 'cython_runtime'} | {n for n in tops if n.startswith('_cython_')}\n"
        "print(sorted(tops - set(sys.stdlib_module_names) - ours))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert eval(done.stdout) in ([], ["sortedcontainers"])
