# SPDX-License-Identifier: Apache-2.0
"""Run the tests in the guests and judge what came out."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab import cache, fetch, report
from lab.boot import REPO, Outcome, boot, keep, python_inside, stop
from lab.initramfs import OUT
from lab.say import LabError, counting, say, tail

if TYPE_CHECKING:
    from pathlib import Path

    from lab.guests import Guest
    from lab.kernels import Kernel

TESTS = ("lab/tests",)


@dataclass(frozen=True)
class Row:
    """What one guest showed."""

    guest: str
    kernel: str
    proved: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    trouble: str
    failures: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Tell whether the guest booted, ran tests, and none failed."""
        return not self.trouble and self.failed == 0 and self.passed > 0


def last_words(outcome: Outcome) -> str:
    """Return the end of the log that says most about a run that went wrong."""
    for name in ("output.txt", "console.log", "qemu.log"):
        log = outcome.folder / name
        if log.exists() and log.stat().st_size:
            return f"--- end of {name}\n{tail(log, 60)}"
    return "--- all its logs are empty"


def _command(guest: Guest, tests: list[str] | None, keyword: str | None) -> list[str]:
    command = [
        *(python_inside(guest), "-m", "pytest", "-q", "-rfEs", "--tb=short", "--color=no"),
        *("-p", "no:cacheprovider", "-p", "lab.plugin"),
        *("-c", "lab/pytest.ini", "--rootdir", str(REPO), f"--junit-xml={OUT}/junit.xml"),
    ]
    if keyword:
        command += ["-k", keyword]
    return command + list(tests or TESTS)


def _counts(report_file: Path) -> tuple[int, int, int]:
    """Return passed, failed and skipped of a JUnit file."""
    suites = ElementTree.parse(report_file).getroot().iter("testsuite")
    total = failed = skipped = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return total - failed - skipped, failed, skipped


def _failures(report_file: Path) -> tuple[str, ...]:
    """Return each test that failed, with the first line of why."""
    failures = []
    for case in ElementTree.parse(report_file).getroot().iter("testcase"):
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                why = (found.get("message") or "").strip().split("\n")[0][:300]
                failures.append(f"{case.get('name')}: {why}")
    return tuple(failures)


def judge(guest: Guest, kernel: Kernel, outcome: Outcome) -> Row:
    """Turn an outcome into a row; whatever is not plainly good is a failure with its reason."""
    passed = failed = skipped = 0
    trouble = outcome.trouble
    failures: tuple[str, ...] = ()
    try:
        passed, failed, skipped = _counts(outcome.folder / "junit.xml")
        failures = _failures(outcome.folder / "junit.xml")
    except (OSError, ElementTree.ParseError):
        trouble = trouble or f"no test report came out (exit code {outcome.code})"
    if not trouble and passed + failed == 0:
        trouble = "not one test was run"
    if not trouble and outcome.code != 0 and failed == 0:
        trouble = f"the test run ended with exit code {outcome.code}"
    proved = "" if trouble else _proved(outcome.folder / "proved.json")
    name, release, seconds = guest.name, kernel.release, outcome.seconds
    return Row(name, release, proved, passed, failed, skipped, seconds, trouble, failures)


def _proved(path: Path) -> str:
    try:
        phrases: list[str] = json.loads(path.read_text())
    except (OSError, ValueError):
        return ""
    return "; ".join(phrases)


def _keep_facts(guest: Guest, folder: Path, commit: bool) -> None:
    """Keep the facts of a guest in the cache, and beside the code when asked to."""
    gathered = folder / "facts.json"
    if not gathered.exists():
        return
    place = cache.root() / "facts" / guest.name
    place.mkdir(parents=True, exist_ok=True)
    for name in ("facts.json", "setup.json", "dmesg.txt"):
        shutil.copyfile(folder / name, place / name)
    if commit:
        shutil.copyfile(gathered, REPO / "lab" / "facts" / f"{guest.name}.json")


def _fetched(guest: Guest) -> Kernel | LabError:
    """Return a guest's kernel, or why there is none; the other guests are to run all the same."""
    try:
        return fetch.fetch([guest])[guest.name]
    except LabError as error:
        say(f"{guest.name}: {error}")
        return error


def run(
    guests: list[Guest],
    tests: list[str] | None,
    keyword: str | None,
    jobs: int,
    seconds: float | None,
    save_facts: bool,
    stated: Kernel | None = None,
) -> int:
    """Run the guests, print the table, and return 0 only when every row is good."""

    def one(guest: Guest) -> Row:
        kernel = kernels[guest.name]
        if isinstance(kernel, LabError):
            is_done(f"{guest.name}: no kernel")
            return Row(guest.name, "-", "", 0, 0, 0, 0.0, str(kernel))
        outcome = boot(guest, kernel, _command(guest, tests, keyword), limit=seconds)
        _keep_facts(guest, outcome.folder, save_facts)
        row = judge(guest, kernel, outcome)
        word = "good" if row.good else "FAILED"
        is_done(f"{guest.name}: {word}, {row.passed} passed, {row.failed} failed")
        words = last_words(outcome)
        place = keep(guest, outcome)
        if not row.good:
            say(f"--- {guest.name}: {place}\n{words}", prefix="")
        return row

    fetch.install(guests)
    # One after the other and in this thread, where an interrupt also ends a build.
    kernels = {guest.name: stated or _fetched(guest) for guest in guests}
    with (
        counting("guests", len(guests)) as is_done,
        ThreadPoolExecutor(max_workers=max(1, jobs)) as pool,
    ):
        try:
            rows = list(pool.map(one, guests))
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    print(report.table(rows))
    print(report.failures(rows), end="")
    return 0 if rows and all(row.good for row in rows) else 1
