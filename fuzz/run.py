# SPDX-License-Identifier: Apache-2.0
"""Run one target: `python -m fuzz.run TARGET [SECONDS] [libFuzzer options]`.

New inputs are kept in `fuzz/corpus/TARGET` (not in the repository), findings in `fuzz/findings`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import atheris

HERE = Path(__file__).parent


def main() -> None:
    """Fuzz until the time is up or something is found."""
    name, seconds, *more = (*sys.argv[1:], *("120",) * (len(sys.argv) == 2))
    source = (HERE / "targets" / f"{name}.py").read_text("utf-8")
    extra = [word for word in ("tarfile", "zipfile") if f'"{word}"' in source]
    for word in extra:
        sys.modules.pop(word, None)
    with atheris.instrument_imports(include=["vmm_iova", *extra]):
        for word in extra:
            importlib.import_module(word)
        import vmm_iova

        for item in pkgutil.walk_packages(vmm_iova.__path__, "vmm_iova."):
            if not item.name.endswith(("__main__", "_ioctl", "_fast")):
                importlib.import_module(item.name)
    target = importlib.import_module(f"fuzz.targets.{name}")
    corpus, seeds, findings = HERE / "corpus" / name, HERE / "seeds" / name, HERE / "findings"
    for folder in (corpus, seeds, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(getattr(target, "seeds", tuple)()):
        (seeds / f"{number:03}").write_bytes(content)
    kept = HERE / "kept" / name
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={getattr(target, 'MAX_LENGTH', 8192)}",
        f"-artifact_prefix={findings}/{name}-",
        "-timeout=30",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        *more,
    ]
    folders = [str(folder) for folder in (corpus, seeds, kept) if folder.is_dir()]
    atheris.Setup([sys.argv[0], *options, *folders], target.one_input, enable_python_coverage=True)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
