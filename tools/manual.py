# SPDX-License-Identifier: Apache-2.0
"""Manual pages and completion, made from the parser that the command itself uses.

`python -m tools.manual` writes `share/` anew: a page for the program and one for each command, and
completion for bash, zsh and fish (shtab). Both go into the wheel. The pages are written here, for
the libraries for it know neither groups of options nor examples.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import shtab

from vmm_iova import __version__
from vmm_iova.cli.parser import EXAMPLES, ROOMS, make_parser
from vmm_iova.errors import EXIT_CODES
from vmm_iova.host.load import bundled_hosts
from vmm_iova.machines.catalogue import machine_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SHARE = Path(__file__).parents[1] / "share"

DESCRIPTION = (
    "Works out where a guest's memory can go on a given host, maps it through VFIO or iommufd, "
    "and, when something does not fit, names the device, register or reserved region in the way.",
    "A host is this machine, a snapshot that vmm-iova capture wrote on another one, a kernel log, "
    "a copy of /sys, or any paste of these. Nothing here maps guest memory, and nothing needs root "
    "but --ask-kernel.",
    "The width of the IOVA space is never guessed: where no fact of the host states one, the "
    "answer is UNKNOWN, and says what would settle it.",
)
ENVIRONMENT = {
    "NO_COLOR": "no colour, also on a terminal",
    "COLUMNS": "width to which lines are wrapped on a terminal",
    "VMM_IOVA_ENGINE": "fast or pure: the allocator's engine, instead of the fastest there is",
}


def escaped(text: str) -> str:
    """Return text that groff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in text.split("\n"))
    return text.replace("'", "\\(aq")


def heading(name: str) -> Iterator[str]:
    """The first line of a page."""
    yield f'.TH {name.upper()} 1 "" "vmm\\-iova {__version__}" "User Commands"'


def names(action: argparse.Action) -> str:
    """An option or argument as a page names it."""
    value = re.sub(r"^\.\.\.$", "", _value(action))
    if not action.option_strings:
        return f"\\fI{escaped(value)}\\fR"
    shown = ", ".join(f"\\fB{escaped(name)}\\fR" for name in action.option_strings)
    return f"{shown} \\fI{escaped(value)}\\fR" if value else shown


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    shown = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
    assert isinstance(shown, str)
    ends = {"?": f"[{shown}]", "*": f"[{shown} ...]", "+": f"{shown} ..."}
    return ends.get(str(action.nargs), shown)


def listed(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Terms, each with what it means; the terms are groff already."""
    for term, meaning in pairs:
        yield from (".TP", term, escaped(meaning))


def page(name: str, parser: argparse.ArgumentParser) -> str:
    """The page of a command."""
    full = f"vmm-iova-{name}"
    lines = [*heading(full), ".SH NAME", f"{escaped(full)} \\- {escaped(ROOMS[name])}"]
    lines += [".SH SYNOPSIS", f".B vmm\\-iova {name}", "[\\fIoptions\\fR]"]
    lines += [names(action) for action in parser._actions if not action.option_strings]
    lines += [".SH DESCRIPTION", escaped(parser.description or "")]
    for group in parser._action_groups:
        actions = [item for item in group._group_actions if item.help != argparse.SUPPRESS]
        if actions:
            lines.append(f'.SH "{escaped((group.title or "options").upper())}"')
            lines += listed((names(item), item.help or "") for item in actions)
    lines.append(".SH EXAMPLES")
    for example in EXAMPLES[name]:
        lines += [".PP", ".nf", escaped(example), ".fi"]
    return _end(lines, (other for other in ("", *ROOMS) if other != name))


def main_page() -> str:
    """The page of the program."""
    lines = [*heading("vmm-iova"), ".SH NAME"]
    lines.append("vmm\\-iova \\- where guest memory may go on a host, and why not elsewhere")
    lines += [".SH SYNOPSIS", ".B vmm\\-iova", "\\fICOMMAND\\fR [\\fIoptions\\fR]"]
    lines += [".SH DESCRIPTION", *(f"{escaped(part)}\n.PP" for part in DESCRIPTION)]
    lines.append(".SH COMMANDS")
    lines += listed((f"\\fBvmm\\-iova\\-{name}\\fR(1)", about) for name, about in ROOMS.items())
    lines.append(".SH ENVIRONMENT")
    lines += listed((f"\\fB{escaped(name)}\\fR", about) for name, about in ENVIRONMENT.items())
    return _end(lines, ROOMS)


def _end(lines: list[str], others: Iterable[str]) -> str:
    lines.append('.SH "EXIT STATUS"')
    lines += listed((f"\\fB{code}\\fR", meaning) for code, meaning in EXIT_CODES.items())
    full = (f"vmm-iova-{name}" if name else "vmm-iova" for name in others)
    shown = [f"\\fB{escaped(name)}\\fR(1)" for name in full]
    return "\n".join([*lines, '.SH "SEE ALSO"', ",\n".join(shown)]) + "\n"


# -- completion ------------------------------------------------------------------------------------

FILES = {"facts", "output", "keep", "file", "vm"}
FOLDERS = {"sysroot"}
HOSTS, MACHINES = {"host", "first", "second"}, {"machine", "name"}


def _completer(words: str) -> dict[str, str]:
    return dict.fromkeys(("bash", "zsh"), f"_vmm_iova_{words}") | {"fish": f"(_vmm_iova_{words})"}


def preamble() -> dict[str, str]:
    """The functions that complete hosts and machines, for each shell."""
    lists = {"hosts": ("LIVE", *bundled_hosts()), "machines": machine_names()}
    text = {"bash": "", "zsh": "", "fish": ""}
    for name, words in lists.items():
        plain = " ".join(words)
        text["bash"] += (
            f'_vmm_iova_{name}() {{\n  compgen -W "{plain}" -- "$1"\n  compgen -f -- "$1"\n}}\n'
        )
        text["zsh"] += f"_vmm_iova_{name}() {{ compadd -- {plain}; _files }}\n"
        text["fish"] += (
            f"function _vmm_iova_{name}\n"
            f"    printf '%s\\n' {plain}\n"
            "    __fish_complete_path (commandline -ct)\n"
            "end\n"
        )
    return text


def completion(shell: str) -> str:
    """The completion for a shell."""
    parser = make_parser([], whole=True)
    for one in commands(parser).values():
        for action in one._actions:
            kinds = ((HOSTS, _completer("hosts")), (MACHINES, _completer("machines")))
            kinds += ((FILES, shtab.FILE), (FOLDERS, shtab.DIRECTORY))
            for dests, complete in kinds:
                if action.dest in dests and not action.choices:
                    action.complete = complete  # type: ignore[attr-defined]
    return shtab.complete(parser, shell, preamble=preamble())


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the program has commands")


def files() -> dict[str, str]:
    """Everything in share/, by path."""
    parts = commands(make_parser([], whole=True))
    made = {f"man/man1/vmm-iova-{name}.1": page(name, parts[name]) for name in ROOMS}
    return {
        "man/man1/vmm-iova.1": main_page(),
        **made,
        "bash-completion/completions/vmm-iova": completion("bash"),
        "zsh/site-functions/_vmm-iova": completion("zsh"),
        "fish/vendor_completions.d/vmm-iova.fish": completion("fish"),
    }


def main() -> int:
    """Write them."""
    for name, text in files().items():
        path = SHARE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
