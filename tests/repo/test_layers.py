# SPDX-License-Identifier: Apache-2.0
"""The house keeps its plan: imports go one way, public names are documented."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import vmm_iova as vi

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vmm_iova"

# The wings of docs/design.md, from the ground up; a room imports only from its own wing or above.
WINGS = (
    ("errors", "ranges", "units", "remedies"),
    ("allocator", "_fast", "readers"),
    ("host",),
    ("machines",),
    ("diagnosis",),
    ("planning",),
    ("fleet",),
    ("kernel",),
    ("simulated",),
    ("mapping",),
    ("report",),
    ("cli", "__main__", "__init__"),
)


def _wing(module: str) -> int:
    name = module.split(".")[1] if "." in module else "__init__"
    return next(index for index, names in enumerate(WINGS) if name in names)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.startswith("vmm_iova.")}


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_room_imports_only_from_wings_above(path: Path) -> None:
    module = ".".join(("vmm_iova", *path.relative_to(PACKAGE).with_suffix("").parts))
    wrong = {name for name in _imports(path) if _wing(name) > _wing(module)}
    assert wrong == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_names_its_licence_and_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text))


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
        "print(len(vi.plan(vi.Guest('q35', '1.5TiB'), usable).ram))\n"
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
