# SPDX-License-Identifier: Apache-2.0
"""Manual pages and completion in the real programs: `make package` runs this, and installs them.

The shells get the files of `share/` and nothing of the user's; what Tab would offer is read back.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lab.needs import Need, install

SHARE = Path(__file__).parents[1] / "share"
PAGES = sorted((SHARE / "man/man1").glob("*.1"))
NEEDS = (
    Need("man", ("man-db",)),
    Need("groff", ("groff",)),
    Need("zsh", ("zsh",)),
    Need("fish", ("fish",)),
)

ASKED = [
    (["vmm-iova", ""], {"plan", "explain", "capture"}),
    (["vmm-iova", "pl"], {"plan"}),
    (["vmm-iova", "plan", "--mach"], {"--machine"}),
    (["vmm-iova", "plan", "--machine", "i4"], {"i440fx"}),
    (["vmm-iova", "plan", "--host", "amd-e"], {"amd-epyc-1tb"}),
    (["vmm-iova", "plan", "--on-hole", "s"], {"split"}),
]
"""What stands on the line, and what must be among the offers."""


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    """Install what this machine lacks."""
    install(NEEDS)


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program in a home and a locale of its own."""
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    env |= {"TERM": "dumb", "HOME": "/nonexistent", "MANPAGER": "cat", "XDG_CONFIG_HOME": "/tmp"}
    return subprocess.run(words, input=stdin, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_renders_without_a_warning(page: Path) -> None:
    done = run("man", "--warnings=w", "-l", str(page))

    assert done.returncode == 0
    assert done.stderr == ""
    assert "EXIT STATUS" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(("words", "offers"), ASKED)
def test_tab_offers_commands_options_hosts_and_machines_in_bash(
    words: list[str], offers: set[str]
) -> None:
    line = " ".join(words)
    array = " ".join(f"'{word}'" for word in words)
    script = f"""
        source {SHARE}/bash-completion/completions/vmm-iova
        COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'
        COMP_POINT={len(line)}
        complete -p vmm-iova | grep -q -- '-F' || exit 3
        handler=$(complete -p vmm-iova | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $handler vmm-iova '{words[-1]}' '{words[-2]}'
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = run("bash", "--norc", "-c", script)

    assert done.stderr == ""
    assert offers <= {item.strip() for item in done.stdout.splitlines()}


@pytest.mark.parametrize(("words", "offers"), ASKED)
def test_tab_offers_commands_options_hosts_and_machines_in_fish(
    words: list[str], offers: set[str]
) -> None:
    file = SHARE / "fish/vendor_completions.d/vmm-iova.fish"
    done = run("fish", "--no-config", "-c", f"source {file}; complete -C '{' '.join(words)}'")

    assert done.stderr == ""
    assert offers <= {item.split("\t")[0].strip() for item in done.stdout.splitlines()}


def test_zsh_takes_the_file_and_knows_every_command(tmp_path: Path) -> None:
    functions = tmp_path / "functions"
    functions.mkdir()
    shutil.copy(SHARE / "zsh/site-functions/_vmm-iova", functions)
    script = f"""
        fpath=({functions} $fpath)
        autoload -Uz compinit && compinit -D -u -d {tmp_path}/dump
        print -r -- ${{_comps[vmm-iova]}}
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "PS1='> '; fpath=({functions} \\$fpath); autoload -Uz compinit"
        zpty -w shell "compinit -D -u -d {tmp_path}/dump; print rea''dy"
        zpty -r -m shell seen '*ready*'
        zpty -n -w shell $'vmm-iova plan --machine i4\\t'
        sleep 2
        zpty -n -w shell $'\\x01echo \\n'
        zpty -r -m shell seen '*i440fx*'
        print -r -- "$seen"
    """
    done = run("timeout", "40", "zsh", "-f", "-c", script)

    assert done.stdout.splitlines()[0] == "_vmm-iova"
    assert "i440fx" in done.stdout
