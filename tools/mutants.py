# SPDX-License-Identifier: Apache-2.0
"""What the tests notice: small changes to the code that decides, each tried on the tests (mutmut).

`python -m tools.mutants [COUNT [SEED]]` takes a sample of COUNT one-token changes of comparisons,
operators, constants and conditions, without those of texts for people, in the files that
`[tool.mutmut]` of pyproject.toml names; COUNT 0 takes all. Survivors are printed as diffs, and
the rate at the end. Everything happens in `mutants/`, a copy.
"""

from __future__ import annotations

import difflib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

FOLDER = Path("mutants")
_MUTANT = re.compile(r"(?P<of>.+)__mutmut_(?P<number>\d+)")
_DEF = re.compile(r"(?P<inset> *)def (?P<name>\w+__mutmut_\w+)\((?P<rest>.*)")
_TOKEN = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|\w+|[<>=!]=|//|\*\*|<<|>>|\S")
_SURVIVED, _UNTESTED = 0, 33  # exit codes; others are ways to be noticed, a hang among them
_WORDS = {"and", "or", "not", "in", "is", "True", "False", "continue", "break", "return"}


def mutmut(*arguments: str) -> int:
    """Run mutmut."""
    return subprocess.run([Path(sys.executable).with_name("mutmut"), *arguments]).returncode


def decides(before: str, after: str) -> bool:
    """Tell whether a change is one of comparisons, operators, numbers or conditions alone."""
    pairs = zip(before.split("\n"), after.split("\n"), strict=False)
    lines = [(old, new) for old, new in pairs if old != new]
    if not 1 <= len(lines) <= 3:
        return False  # lines were added or taken out
    olds, news = (_TOKEN.findall("\n".join(part)) for part in zip(*lines, strict=True))
    steps = difflib.SequenceMatcher(None, olds, news, autojunk=False).get_opcodes()
    changes = [(olds[a:b], news[c:d]) for tag, a, b, c, d in steps if tag != "equal"]
    changed = [token for old, new in changes for token in (*old, *new)]
    return bool(changed) and len(changed) <= 4 and all(map(_counts, changed))


def _counts(token: str) -> bool:
    if token in _WORDS:
        return True
    return not token[:1].isalpha() and token[:1] not in "_'\"" and token not in (",", ":", "(", ")")


def candidates() -> dict[str, str]:
    """Names of the mutants that count, each with its diff."""
    found = {}
    for meta in sorted(FOLDER.rglob("*.py.meta")):
        names = json.loads(meta.read_text())["exit_code_by_key"]
        if not names:
            continue
        parts = _functions(meta.with_suffix("").read_text("utf-8"))
        for name in names:
            short = name.rpartition(".")[2]
            match = _MUTANT.fullmatch(short)
            assert match is not None, name
            before, after = parts.get(f"{match['of']}__mutmut_orig"), parts.get(short)
            if before and after and decides(before, after):
                lines = difflib.unified_diff(
                    before.split("\n"), after.split("\n"), lineterm="", n=1
                )
                found[name] = "\n".join(list(lines)[2:])
    return found


def _functions(source: str) -> dict[str, str]:
    """Originals and mutants by name; a file of thousands takes a parser minutes."""
    parts: dict[str, list[str]] = {}
    block: list[str] = []
    inset = ""
    for line in source.split("\n"):
        if match := _DEF.match(line):
            inset, block = match["inset"], parts.setdefault(match["name"], [])
            line = f"def {match['name'].partition('__mutmut_')[0]}({match['rest']}"
        elif line.strip() and not line.startswith(f"{inset} ") and line.strip()[:1] not in ")]}":
            block = []
        block.append(line)
    return {name: "\n".join(lines) for name, lines in parts.items()}


def results() -> dict[str, int | None]:
    """Exit codes of the mutants that were tried."""
    codes: dict[str, int | None] = {}
    for meta in FOLDER.rglob("*.py.meta"):
        codes |= json.loads(meta.read_text())["exit_code_by_key"]
    return codes


def main() -> int:
    """Try a sample; print what survived, and the rate."""
    count, seed = (*map(int, sys.argv[1:]), *(300, 1)[len(sys.argv) - 1 :])
    mutmut("run", "no-such-mutant")  # makes them, and learns which test runs what
    diffs = candidates()
    names = sorted(diffs)
    chosen = random.Random(seed).sample(names, min(count, len(names))) if count else names
    print(f"{len(chosen)} of {len(names)} mutants that count", flush=True)
    mutmut("run", *chosen)
    codes = results()
    tried = {name: codes[name] for name in chosen if codes[name] is not None}
    for name, code in sorted(tried.items()):
        if code in (_SURVIVED, _UNTESTED):
            print(f"\nsurvived: {name}{' (no test)' * (code == _UNTESTED)}\n{diffs[name]}")
    tally = Counter(tried.values())
    noticed = len(tried) - tally[_SURVIVED] - tally[_UNTESTED]
    rate = 100 * noticed / max(1, len(tried))
    print(f"\n{noticed} of {len(tried)} noticed ({rate:.1f} %), seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
