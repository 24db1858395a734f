# SPDX-License-Identifier: Apache-2.0
"""What the site shows of files that are not in docs/, and of what is generated (an MkDocs hook).

The start page is the README, and the project's own papers are pages. A link to a source file names
it, for there is no public place of it yet.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAPERS = {
    "index.md": "README.md",
    "changes.md": "CHANGELOG.md",
    "contribute.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "conduct.md": "CODE_OF_CONDUCT.md",
}
PAGE_OF = {paper: page for page, paper in PAPERS.items()}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<to>[^)#\s]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the papers."""
    for page, paper in PAPERS.items():
        text = (ROOT / paper).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turn links to papers into links to their pages, and those to sources into their names."""
    up = "../" * page.file.src_uri.count("/")

    def link(found: re.Match[str]) -> str:
        to, anchor = found["to"], found["anchor"] or ""
        name = to.removeprefix("../")
        if name in PAGE_OF:
            return f"[{found['text']}]({up}{PAGE_OF[name]}{anchor})"
        inside = to.startswith(("http:", "https:", "mailto:"))
        if inside or files.get_file_from_path(_resolved(page.file.src_uri, to)) is not None:
            return found[0]
        if (ROOT / name).exists():
            return found["text"] if "`" in found["text"] else f"`{found['text']}`"
        return found[0]

    return _LINK.sub(link, markdown)


def _resolved(page: str, to: str) -> str:
    base = Path("/", page).parent / to
    return str(Path(*[part for part in base.parts if part != ".."]).relative_to("/"))
