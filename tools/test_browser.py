# SPDX-License-Identifier: Apache-2.0
"""The pictures and the site in a real browser: `make browser`.

Debian's Chromium, driven by Playwright: what a reader does with a mouse, with the keyboard alone,
in both colour schemes and on a narrow screen; and no request leaves the machine. The site is what
`make site` has built. A missing browser fails: who runs this wants to know.
"""

from __future__ import annotations

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

import vmm_iova as vi
from vmm_iova.cli import main
from vmm_iova.planning.request import bare_usable
from vmm_iova.report.svg import draw_layout, draw_machine, draw_usable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build/site"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 420, "height": 800}
AMD = ("plan", "--host", "amd-epyc-1tb", "--machine", "q35", "--ram", "1.5TiB")
HOSTS = (
    "amd-epyc-1tb",
    "intel-dmar-i7-2600",
    "intel-dmar-8thread-laptop",
    "intel-dmar-thinkpad-t450s",
    "qemu-vtd-notifier-ranges",
    "lab-vtd-iommufd",
    "lab-arm64-smmuv3",
    "arm-centos7-server-05-00-0",
    "arm-multisocket-2021",
    "arm-nxp-lx2160a-fslmc-group0",
    "arm-hisilicon-rmr-megaraid-group0",
    "s390x-32g",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        # As root, as in most CI, Chromium has no sandbox; nothing foreign is opened.
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


Opened = tuple[Page, list[str]]


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Page]]:
    """Open a page; at the end no other machine was asked, and the browser had no complaint."""
    contexts, asked, said = [], [], []

    def open_(address: str, size: dict[str, int] = WIDE, scheme: str = "light") -> Page:
        context = browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page: Page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    away = [url for url in asked if urlsplit(url).hostname not in (None, "", "127.0.0.1")]
    assert asked
    assert away == []
    assert said == []


@pytest.fixture(scope="module")
def amd(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("map") / "map.html"
    assert main([*AMD, "-o", str(path)]) == 0
    return path.as_uri()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two thousand holes."""
    folder = tmp_path_factory.mktemp("many")
    starts = [(i << 24) + (8 << 30) for i in range(1, 2001)]
    lines = "".join(f"{start:#x} {start + 0xFFFF:#x} reserved\n" for start in starts)
    (folder / "many.txt").write_text(lines)
    path = folder / "map.html"
    host = ("--host", str(folder / "many.txt"), "--aperture", "48")
    assert main(["plan", *host, "--machine", "own-x86", "--ram", "30G", "-o", str(path)]) == 0
    return path.as_uri()


def piece(page: Page, name: str) -> Any:
    return page.locator("#map li", has_text=name).first


def ratio(page: Page, selector: str) -> float:
    """Contrast of a text with what is behind it, as WCAG 2 counts it."""
    found: float = page.evaluate(
        """selector => {
          const parse = text => { const c = document.createElement("canvas").getContext("2d");
            c.fillStyle = text; c.fillRect(0, 0, 1, 1);
            return [...c.getImageData(0, 0, 1, 1).data]; };
          const over = (top, below) => top.slice(0, 3).map((v, i) => {
            const a = top[3] / 255; return v * a + below[i] * (1 - a); });
          const light = rgb => { const [r, g, b] = rgb.map(v => { v /= 255;
            return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
            return .2126 * r + .7152 * g + .0722 * b; };
          const node = document.querySelector(selector), chain = [];
          for (let at = node; at; at = at.parentElement) chain.unshift(at);
          let behind = [255, 255, 255];
          const tint = at => parse(getComputedStyle(at).backgroundColor);
          for (const at of chain) behind = over(tint(at), behind);
          const ink = over(parse(getComputedStyle(node).color), behind);
          const [a, b] = [light(ink), light(behind)].sort((x, y) => y - x);
          return (a + .05) / (b + .05);
        }""",
        selector,
    )
    return found


# -- the picture to explore ------------------------------------------------------------------------


def test_map_pointed_at_says_cause_source_and_numbers(opened: Any, amd: str) -> None:
    page = opened(amd)
    piece(page, "AMD HyperTransport").hover()
    text = page.locator("#piece").inner_text()
    for part in ("0xfd00000000", "0xffffffffff", "12 GiB", "amd-epyc-1tb:4", "1012 GiB"):
        assert part in text
    piece(page, "RAM high").hover()
    assert "starts after: reserved region" in page.locator("#piece").inner_text()


def test_map_address_is_copied(opened: Any, amd: str) -> None:
    page = opened(amd)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    piece(page, "AMD HyperTransport").click()
    page.get_by_role("button", name="Copy start").click()
    expect(page.locator("#status")).to_have_text("copied 0xfd00000000")  # the clipboard takes time
    assert page.evaluate("navigator.clipboard.readText()") == "0xfd00000000"


def test_map_keyboard_alone_reaches_every_piece_and_zooms(opened: Any, amd: str) -> None:
    page = opened(amd)
    for _ in range(12):  # Tab reaches the map
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "option":
            break
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused).startswith("usable, 4078 MiB")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused).startswith("x86 interrupt window")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.parentNode.ariaLabel") == "guest has"
    seen = set()
    page.keyboard.press("Home")
    for _ in range(page.locator("#map ul").nth(1).locator("li").count()):
        seen.add(page.evaluate("document.activeElement.id"))
        page.keyboard.press("ArrowDown")
    assert len(seen) == page.locator("#map ul").nth(1).locator("li").count()
    before = page.locator("#map li").count()
    page.keyboard.press("Enter")
    assert page.locator("#map li").count() < before
    assert page.locator("#status").inner_text().startswith("Zoomed in")
    page.keyboard.press("Escape")
    assert page.locator("#map li").count() == before
    page.keyboard.press("/")
    page.keyboard.type("0xfd00000001")
    page.keyboard.press("Enter")
    assert "AMD HyperTransport" in page.locator("#piece").inner_text()


def test_map_of_many_holes_folds_unfolds_and_finds(opened: Any, many: str) -> None:
    page = opened(many)
    folded = page.locator("#map li").count()
    assert folded < 60
    assert piece(page, "1997 more like this").is_visible()
    piece(page, "1997 more like this").click()
    page.get_by_role("button", name="Unfold").click()
    assert 300 < page.locator("#map li").count() <= 820
    page.get_by_role("button", name="Fold like holes").click()
    assert page.locator("#map li").count() == folded
    page.locator("#find").fill(hex((1500 << 24) + (8 << 30)))
    page.keyboard.press("Enter")
    assert f"many.txt:{1500}" in page.locator("#piece").inner_text()
    assert page.locator("#map li[aria-selected=true]").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_map_in_either_scheme_can_be_read(opened: Any, amd: str, scheme: str) -> None:
    page = opened(amd, scheme=scheme)
    piece(page, "RAM high").click()
    for selector in (
        "h1",
        "#subtitle",
        "#status",
        ".tick",
        "#piece dt",
        "#piece p",
        "button:enabled",
    ):
        assert ratio(page, selector) >= 4.5, selector
    for css in page.eval_on_selector_all(
        "#map li", "all => [...new Set(all.map(a => a.classList[0]))]"
    ):
        assert ratio(page, f"#map li.{css}") >= 4.5, css
    bright = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (bright == "rgb(255, 255, 255)") == (scheme == "light")


def test_map_on_narrow_screen_fits_and_has_its_pane(opened: Any, amd: str) -> None:
    page = opened(amd, NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    piece(page, "MSI doorbell").click()
    assert page.locator("#piece").is_visible()
    assert page.locator("#piece").bounding_box()["y"] < 800


def test_map_of_translated_guest_has_three_columns_and_zooms_all(
    opened: Any, tmp_path: Path
) -> None:
    lines = "0x0 0xffffffff reserved\n0x200000000 0x2ffffffff reserved\n"
    (tmp_path / "holes.txt").write_text(lines + "0x900000000 0x3ffffffffff reserved\n")
    path = tmp_path / "map.html"
    host = ("--host", str(tmp_path / "holes.txt"), "--aperture", "42")
    assert main(["plan", *host, "--machine", "s390x", "--ram", "26G", "-o", str(path)]) == 0
    page = opened(path.as_uri())
    assert page.locator("#map ul").count() == 3
    own = page.locator("#map ul").nth(2).locator("li")
    assert own.count() == 2
    page.locator("#map ul").nth(1).locator("li", has_text="4 GiB").first.click()
    page.keyboard.press("ArrowRight")
    assert "0x100000000-0x1ffffffff" in page.locator("#piece").inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert own.count() == 1


@pytest.mark.parametrize(
    "command", [("show", "--host", "amd-epyc-1tb"), ("machines", "q35", "--phys-bits", "40")]
)
def test_map_of_host_and_of_machine_alone_has_one_column(
    opened: Any, tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "map.html"
    assert main([*command, "-o", str(path)]) == 0
    page = opened(path.as_uri())
    assert page.locator("#map ul").count() == 1
    page.locator("#map li").first.click()
    assert "0x0" in page.locator("#piece").inner_text()


# -- the pictures ----------------------------------------------------------------------------------


def pictures() -> Iterator[tuple[str, str]]:
    for name in HOSTS:
        host = vi.load_host(name)
        try:
            usable = host.usable()
        except vi.errors.EvidenceError:
            usable = host.usable(aperture=42 if "s390" in name else 48)
        yield name, draw_usable(usable, name)
        machine = "virt" if name.startswith("arm") or "arm64" in name else "q35"
        if "s390" in name:
            machine = "s390x"
        yield f"{machine} on {name}", draw_layout(vi.plan(vi.Guest(machine, "1G"), usable, "split"))
    for name in vi.machine_names():
        model = vi.load_machine(name)
        ram = min(8 << 30, model.ram_max or 8 << 30)
        yield name, draw_machine(vi.plan(vi.Guest(model, ram), bare_usable(model)))


def test_svg_texts_stay_in_their_boxes_and_on_the_page_as_drawn(
    opened: Any, tmp_path: Path
) -> None:
    path = tmp_path / "picture.svg"
    path.write_text(
        draw_layout(vi.plan(vi.Guest("q35", "8G"), bare_usable(vi.load_machine("q35"))))
    )
    page = opened(path.as_uri())
    for name, text in pictures():
        path.write_text(text)
        page.goto(path.as_uri())
        out = page.evaluate(
            """() => { const wide = document.documentElement.viewBox.baseVal.width, bad = [];
              for (const text of document.querySelectorAll("text")) {
                const own = text.getBBox(), body = text.parentNode.querySelector(":scope > .body");
                const box = body ? body.getBBox() : { x: 0, width: wide };
                const inside = own.x >= box.x && own.x + own.width <= box.x + box.width;
                if (!inside) bad.push(text.textContent);
              }
              return bad; }"""
        )
        assert out == [], name


# -- the site --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    assert (SITE / "index.html").exists(), "make site builds it"

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_site_every_link_leads_somewhere(opened: Any, site: str) -> None:
    page = opened(site + "index.html")
    wanted, seen, broken = [site + "index.html"], set(), []
    while wanted:
        address = wanted.pop()
        if address in seen:
            continue
        seen.add(address)
        answer = page.goto(address, wait_until="domcontentloaded")
        if answer is None or answer.status != 200:
            broken.append(address)
            continue
        links = page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
        ours = {link.partition("#")[0] for link in links if link.startswith(site)}
        wanted += [link for link in ours if link.endswith((".html", "/"))]
        anchors = {link.partition("#")[2] for link in links if link.startswith(f"{address}#")}
        ids = set(page.eval_on_selector_all("[id]", "all => all.map(a => a.id)"))
        broken += [f"{address}#{name}" for name in anchors if name and name not in ids]
    assert broken == []
    assert len(seen) > 15


def test_site_search_finds_a_name(opened: Any, site: str) -> None:
    page = opened(site + "index.html")
    page.keyboard.press("/")  # by the keyboard
    page.keyboard.type("IovaAllocator")
    page.wait_for_selector(".md-search-result__item a", timeout=15_000)
    page.locator(".md-search-result__item a").first.click()
    page.wait_for_load_state()
    assert "IovaAllocator" in page.inner_text("article")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_site_follows_the_scheme(opened: Any, site: str, scheme: str) -> None:
    page = opened(site + "reference/commands.html", scheme=scheme)
    page.wait_for_function("document.body.dataset.mdColorScheme !== undefined")
    wanted = {"light": "default", "dark": "slate"}[scheme]
    page.wait_for_function(f"document.body.dataset.mdColorScheme === '{wanted}'")
    assert ratio(page, "article p") >= 4.5


def test_site_on_narrow_screen_fits(opened: Any, site: str) -> None:
    for name in ("index.html", "reference/commands.html", "design.html", "explain.html"):
        page = opened(site + name, NARROW)
        assert page.evaluate("document.documentElement.scrollWidth") <= 420, name
        picture = page.locator("article img").first
        if picture.count():
            assert picture.bounding_box()["width"] <= 420
