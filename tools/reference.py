# SPDX-License-Identifier: Apache-2.0
"""The reference pages that are made from the code: `python -m tools.reference` writes them anew.

Commands and options come from the parser, exit statuses from the errors, and the pages of the
Python names list every one of them by its public place, for mkdocstrings to fill in.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import schemas
from tools.manual import commands
from vmm_iova.cli.parser import EXAMPLES, ROOMS, make_parser
from vmm_iova.errors import EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[1] / "docs/reference"
HEAD = "<!-- written by `make docs` -->\n"
DOORS = {
    "vmm_iova": (
        "The front door: hosts, guests, plans, explanations, the allocator. Other names are had at "
        "the rooms below it."
    ),
    "vmm_iova.kernel": "Address spaces and devices of VFIO and iommufd.",
    "vmm_iova.mapping": "Guest memory, DMA maps, buffers.",
    "vmm_iova.simulated": "The kernel in memory.",
    "vmm_iova.testing": "Fixtures and strategies for your tests.",
    "vmm_iova.fleet": "One layout for many hosts.",
}
"""Public places, each with what it has; `vmm_iova.errors` has a page of its own."""


def public(door: str) -> dict[str, Any]:
    """What a public place has, by name."""
    module = import_module(door)
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if _is_ours(name, value, door)]
    return {name: getattr(module, name) for name in names}


def _is_ours(name: str, value: Any, door: str) -> bool:
    home = getattr(value, "__module__", door)
    return not (name.startswith("_") or inspect.ismodule(value)) and home.startswith("vmm_iova")


def python_page(door: str) -> str:
    """The page of a public place."""
    if door == "vmm_iova.testing":  # fixtures are no names that one imports
        parts = [f"## {part}\n\n::: {door}.{part}" for part in ("plugin", "strategies")]
        return "\n".join([HEAD, f"# {door}\n", DOORS[door], "", "\n\n".join(parts), ""])
    lines = [HEAD, f"# {door}\n", DOORS[door], ""]
    names = public(door)
    for name in sorted(names, key=str.casefold):
        home = getattr(names[name], "__module__", None)
        real = getattr(names[name], "__qualname__", None)
        if inspect.ismodule(names[name]):
            lines.append(f"- `{name}`: {(inspect.getdoc(names[name]) or '').splitlines()[0]}\n")
        elif home and real and str(home).startswith("vmm_iova"):
            page = _page_of(home, real)
            if page != door:  # it stands on one page
                target = "errors" if page == "vmm_iova.errors" else page
                lines += [f"## `{name}`\n", f"See [`{home}.{real}`]({target}.md#{home}.{real}).\n"]
                continue
            lines += [f"## `{name}`\n", f"::: {home}.{real}", *_options(), ""]
        else:
            lines += [f"## `{name}`\n", _about(door, name, names[name]), ""]
    return "\n".join(lines)


def _page_of(home: str, real: str) -> str:
    """The one page that shows a name which several places have."""
    for door in ("vmm_iova.errors", *DOORS):
        places = (
            (getattr(value, "__module__", ""), getattr(value, "__qualname__", ""))
            for value in public(door).values()
        )
        if (home, real) in places:
            return door
    raise AssertionError(f"{home}.{real} is public nowhere")


def _options(level: int = 3) -> tuple[str, ...]:
    return ("    options:", "      show_root_heading: false", f"      heading_level: {level}")


def _about(door: str, name: str, value: Any) -> str:
    """A constant or an alias: where it stands, and what it is."""
    text = repr(value) if not isinstance(value, int) or isinstance(value, bool) else f"{value:#x}"
    if " at 0x" in text:
        return f"A `{type(value).__module__}.{type(value).__qualname__}`."
    shown = text if len(text) < 300 else f"{text[:297]}..."
    return f"```text\n{door}.{name} = {shown}\n```"


def commands_page() -> str:
    """Every command and option."""
    lines = [HEAD, "# Commands\n", "`vmm-iova COMMAND [options]`; `man vmm-iova` has the same.\n"]
    for name, parser in commands(make_parser([], whole=True)).items():
        lines += [f"## vmm-iova {name}\n", f"{parser.description}\n", "```text"]
        lines += [parser.format_usage().rstrip(), "```\n"]
        for group in parser._action_groups:
            lines += _table(group)
        lines += ["```console", *(f"$ {example}" for example in EXAMPLES[name]), "```\n"]
    assert list(ROOMS)
    return "\n".join(lines)


def _table(group: argparse._ArgumentGroup) -> Iterator[str]:
    actions = [item for item in group._group_actions if item.help != argparse.SUPPRESS]
    if not actions:
        return
    yield f"| {group.title or 'options'} | |\n|---|---|"
    for action in actions:
        named = ", ".join(f"`{option}`" for option in action.option_strings)
        value = action.metavar or action.dest
        choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
        help_ = (action.help or "").replace("|", "\\|")
        yield f"| {named or f'`{value}`'} | {help_}{f' ({choices})' if choices else ''} |"
    yield ""


def errors_page() -> str:
    """Exit statuses, and the exceptions."""
    table = [f"| {int(code)} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    lines = [HEAD, "# Exit statuses and errors\n", "## Exit statuses\n", "| status | meaning |"]
    lines += ["|---|---|", *table, "", "## Exceptions\n"]
    lines.append("All that this package raises by itself is an `IovaError` with facts on it.\n")
    for name, value in sorted(public("vmm_iova.errors").items(), key=lambda item: item[0]):
        if inspect.isclass(value):
            lines += [f"### `{name}`\n", f"::: vmm_iova.errors.{name}"]
            lines += [
                "    options:",
                "      show_root_heading: false",
                "      heading_level: 4",
                "",
            ]
        else:
            lines += [f"### `{name}`\n", _about("vmm_iova.errors", name, value), ""]
    return "\n".join(lines)


def files() -> dict[str, str]:
    """Every page that is written, by name."""
    pages = {f"{door}.md": python_page(door) for door in DOORS}
    more = {"commands.md": commands_page(), "errors.md": errors_page(), "json.md": schemas.page()}
    return {**pages, **more}


def main() -> int:
    """Write them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
