# SPDX-License-Identifier: Apache-2.0
"""Changes of XML that leave all the rest as it was written."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from vmm_iova.definitions.xml import start_tag
from vmm_iova.record import collector, field

if TYPE_CHECKING:
    from vmm_iova.definitions.xml import Element


@collector
class Edits:
    """Edits of one document, each a span of its text and what stands there instead.

    Attributes:
        text: the document.
        made: (start, stop, instead).
    """

    text: str
    made: list[tuple[int, int, str]] = field(default_factory=list)

    def done(self) -> str:
        """Return the text with every edit made; those of one place in the order they came."""
        parts, at = [], 0
        for start, stop, instead in sorted(self.made, key=lambda edit: edit[:2]):
            parts += [self.text[at:start], instead]
            at = stop
        return "".join([*parts, self.text[at:]])

    def set_text(self, element: Element, value: str) -> None:
        """Give an element another text."""
        if element.empty:
            opened = start_tag(element.name, element.attributes, empty=False)
            closed = f"{opened}{escape(value, quote=False)}</{element.name}>"
            self.made.append((element.start, element.stop, closed))
        else:
            self.made.append((element.inner, element.inner_stop, escape(value, quote=False)))

    def set_attributes(self, element: Element, **values: str | None) -> None:
        """Give an element other values of attributes; None takes one away."""
        old = self.text[element.start : element.inner]
        attributes = {**element.attributes, **values}
        kept = {name: value for name, value in attributes.items() if value is not None}
        quote = "'" if "'" in old or '"' not in old else '"'
        made = start_tag(element.name, kept, empty=element.empty)
        self.made.append((element.start, element.inner, made.replace("'", quote)))

    def add(self, parent: Element, lines: list[str], after: Element | None = None) -> None:
        """Put lines of XML into an element, at its end or behind one of its children."""
        if parent.empty:
            opened = start_tag(parent.name, parent.attributes, empty=False)
            outer = self._indent(parent)
            inner = "".join(f"\n{outer}  {line}" for line in lines)
            shown = f"{opened}{inner}\n{outer}</{parent.name}>"
            self.made.append((parent.start, parent.stop, shown))
            return
        if after is None and parent.children:
            after = parent.children[-1]
        if after is not None:
            inner = self._indent(after)
            shown = "".join(f"\n{inner}{line}" for line in lines)
            self.made.append((after.stop, after.stop, shown))
            return
        outer = self._indent(parent)
        inner = "".join(f"\n{outer}  {line}" for line in lines)
        self.made.append((parent.inner, parent.inner_stop, f"{inner}\n{outer}"))

    def replace(self, element: Element, lines: list[str]) -> None:
        """Put lines of XML in the place of an element."""
        inner = self._indent(element)
        self.made.append((element.start, element.stop, f"\n{inner}".join(lines)))

    def _indent(self, element: Element) -> str:
        """Blanks in front of an element, if it begins its line."""
        line = self.text.rfind("\n", 0, element.start) + 1
        before = self.text[line : element.start]
        return before if not before.strip() else re.match(r"[ \t]*", before)[0]  # type: ignore[index]
