# SPDX-License-Identifier: Apache-2.0
"""What is planned, usable or diagnosed shows itself: its methods ask the report, which is above.

This is the one place that looks up: what an object shows is what the command prints of it, and a
program that shows nothing loads nothing of it.
"""

from __future__ import annotations


def text_of(item: object, *, verbose: bool = False) -> str:
    """Return what the command prints of it, without colours."""
    from vmm_iova.report import objects

    return objects.text_of(item, verbose=verbose)


def svg_of(item: object) -> str:
    """Return the picture that the command draws of it."""
    from vmm_iova.report import objects

    return objects.svg_of(item)


def html_of(item: object) -> str:
    """Return both for a notebook: the picture, and the text to be opened below it."""
    from vmm_iova.report import objects

    return objects.html_of(item)
