# SPDX-License-Identifier: Apache-2.0
"""`-o FILE`: a picture or a document, as the suffix of its name says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm_iova.cli.options import GENERATOR, write
from vmm_iova.errors import RequestError

if TYPE_CHECKING:
    import argparse

    from vmm_iova.host.usable import Usable
    from vmm_iova.planning.layout import Layout

_WHAT = "write a picture (.svg), one to explore (.html){}"


def add_output(parser: argparse.ArgumentParser, also: str = "") -> None:
    """Add `-o`; `also` names what else it writes."""
    parser.add_argument("-o", "--output", metavar="FILE", help=_WHAT.format(also))


def write_picture(
    name: str, subject: Layout | Usable, document: str | None = None, *, title: str | None = None
) -> None:
    """Draw and write.

    Args:
        name: of the file; its suffix says what is written.
        subject: a layout, or what a host allows.
        document: JSON for `.json`; None where that is not written.
        title: of a host; None for a layout.

    Raises:
        RequestError: the suffix names nothing that is written.
        HostUnavailableError: the file could not be written.
    """
    suffix = Path(name).suffix.lower()
    known = (".svg", ".html") if document is None else (".svg", ".html", ".json")
    if suffix not in known:
        *some, last = known
        message = f"output {name!r} is neither {', '.join(some)} nor {last}"
        raise RequestError(message, field="output", value=name)
    if suffix == ".json":
        write(name, document or "")
        return
    from vmm_iova.report import html, scene, svg  # a picture is asked for rarely

    seen = scene.scene_of(subject, title)
    write(name, svg.draw(seen) if suffix == ".svg" else html.page_of(seen, GENERATOR))
