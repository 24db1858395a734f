# SPDX-License-Identifier: Apache-2.0
"""XML from outside: elements with the places where they stand, so that a change stays small.

The parser is expat behind defusedxml, which refuses a DOCTYPE, and with it entities and what they
fetch or expand to. Size, depth and number of elements are bounded here.
"""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.sax import SAXException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import InputSource

from vmm_iova.errors import HostDataError
from vmm_iova.plain import one_line
from vmm_iova.record import collector, field

if TYPE_CHECKING:
    from collections.abc import Iterator
    from xml.sax.xmlreader import AttributesImpl

_LONGEST = 4 << 20  # characters; a domain of a thousand devices has half a MiB
_DEEPEST = 64
_MOST = 30_000  # elements; that domain has a tenth of it


@collector
class Element:
    """An element of a document.

    Attributes:
        name: with its prefix, as written.
        attributes: by name.
        start: where its `<` stands in the text.
        inner: where its content begins, behind the `>` of its start tag.
        inner_stop: where its content ends; the same as `inner` for `<x/>`.
        stop: behind its last `>`.
        children: elements in it.
        words: text in it, its children's not.
    """

    name: str
    attributes: dict[str, str]
    start: int
    inner: int = 0
    inner_stop: int = 0
    stop: int = 0
    children: list[Element] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Text in it, without blanks around."""
        return "".join(self.words).strip()

    def get(self, attribute: str, default: str = "") -> str:
        """Return an attribute."""
        return self.attributes.get(attribute, default)

    def find(self, *path: str) -> Element | None:
        """Return the first element at a path of names below, or None."""
        return next(self.every(*path), None)

    def every(self, *path: str) -> Iterator[Element]:
        """Yield the elements at a path of names below."""
        first, *rest = path
        for child in self.children:
            if child.name == first:
                if rest:
                    yield from child.every(*rest)
                else:
                    yield child

    @property
    def empty(self) -> bool:
        """True if it is written as `<x/>`."""
        return self.inner == self.stop


def read_xml(text: str, name: str) -> Element:
    """Parse a document.

    Args:
        text: with line feeds as its only line ends.
        name: for messages.

    Raises:
        HostDataError: it is no XML, it has a DOCTYPE or entities of its own, or it is larger or
            nested deeper than a definition can be.

    Complexity: O(size).
    """
    if len(text) > _LONGEST:
        raise HostDataError(
            f"{name}: has {len(text)} characters, more than a definition of a VM ({_LONGEST})",
            source=name,
        )
    # Loaded for XML alone: with them comes urllib.
    from defusedxml.common import DefusedXmlException
    from defusedxml.sax import make_parser

    handler = _Builder(text, name)
    parser = make_parser()
    parser.forbid_dtd = True
    parser.setContentHandler(handler)
    source = InputSource()
    source.setCharacterStream(StringIO(_without_encoding(text)))
    try:
        parser.parse(source)
    except DefusedXmlException as error:
        raise HostDataError(
            f"{name}: has a DOCTYPE or entities of its own, which no definition of a VM needs",
            source=name,
            hint="virsh dumpxml writes none: remove it",
        ) from error
    except HostDataError:
        raise
    except Exception as error:  # expat's own errors have no common class
        line = getattr(error, "getLineNumber", lambda: None)()
        what = error.getMessage() if isinstance(error, SAXException) else str(error)
        where = f"{name}:{line}" if line else name
        raise HostDataError(
            f"{where}: is not XML: {one_line(str(what))}", source=name, line=line
        ) from error
    assert handler.root is not None  # a document has an element
    return handler.root


def _without_encoding(text: str) -> str:
    """Blank the declaration of an encoding: the text has been decoded already."""
    if not text.startswith("<?xml"):
        return text
    stop = text.find("?>")
    return " " * (stop + 2) + text[stop + 2 :] if 0 < stop < 200 else text


class _Builder(ContentHandler):
    """Makes elements of what the parser says, with places in the text."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__()
        self.root: Element | None = None
        self._text, self._name = text, name
        self._open: list[Element] = []
        self._count = 0
        self._lines = [0]
        at = text.find("\n")
        while at >= 0:
            self._lines.append(at + 1)
            at = text.find("\n", at + 1)
        self._locator: Any = None

    def setDocumentLocator(self, locator: Any) -> None:  # noqa: N802
        self._locator = locator

    def _at(self) -> int:
        line, column = self._locator.getLineNumber(), self._locator.getColumnNumber()
        return int(self._lines[line - 1] + column)

    def startElement(self, name: str, attrs: AttributesImpl) -> None:  # noqa: N802
        self._count += 1
        if len(self._open) >= _DEEPEST or self._count > _MOST:
            what = f"nested deeper than {_DEEPEST}" if self._count <= _MOST else "too many"
            raise HostDataError(
                f"{self._name}: its elements are {what}: no definition of a VM is like that",
                source=self._name,
            )
        made = Element(name, dict(attrs.items()), self._at())
        if self._open:
            self._open[-1].children.append(made)
        else:
            self.root = made
        self._open.append(made)

    def characters(self, content: str) -> None:
        if self._open:
            self._open[-1].words.append(content)

    def endElement(self, name: str) -> None:  # noqa: N802
        done = self._open.pop()
        at = self._at()
        done.inner = _behind_tag(self._text, done.start)
        if self._text[done.inner - 2] == "/":  # <x/>
            done.inner_stop = done.stop = done.inner
        else:
            done.inner_stop, done.stop = at, self._text.index(">", at) + 1


def _behind_tag(text: str, at: int) -> int:
    """Where a start tag ends: a `>` may stand in the value of an attribute."""
    quote = ""
    for index in range(at, len(text)):
        char = text[index]
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == ">":
            return index + 1
    return len(text)


def start_tag(name: str, attributes: dict[str, str], *, empty: bool) -> str:
    """Write a start tag, with single quotes as libvirt has them."""
    shown = "".join(f" {key}={_quoted(value)}" for key, value in attributes.items())
    return f"<{name}{shown}{'/' if empty else ''}>"


def _quoted(value: str) -> str:
    from xml.sax.saxutils import quoteattr

    text = quoteattr(value)
    return f"'{text[1:-1]}'" if text[0] == '"' and "'" not in text else text
