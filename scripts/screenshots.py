"""Pictures of the web application for the documentation, and a look at its faults.

``python scripts/screenshots.py runs/ docs/img/viewer`` opens every view of the runs in Chromium
(CHROMIUM, or the one on the path), dark and light, 1280 and 390 pixels wide. Ends with an error
when the browser's console has one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from agent_r1.testing.chromium import launch_chromium
from agent_r1.viewer.catalog import Catalog
from agent_r1.viewer.server import Server

SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("target", type=Path)
    parser.add_argument("--only", help="Only views whose name has this in it.")
    given = parser.parse_args()
    given.target.mkdir(parents=True, exist_ok=True)
    with Server(Catalog(given.runs)) as server, sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        complaints: list[str] = []
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else 0)
                page.on("pageerror", lambda error: complaints.append(str(error)))
                page.goto(server.address)
                for name in views(page):
                    if not given.only or given.only in name:
                        path = given.target / f"{name}-{size}-{scheme}.png"
                        page.screenshot(path=path)
                        shrink(path)
                page.close()
        browser.close()
    if complaints:
        raise SystemExit("\n".join(complaints))


def shrink(path: Path) -> None:
    """Keep 256 colours: a third of the size, and no difference that one sees."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def views(page: Page) -> Iterator[str]:
    """Go from view to view as a reader would; each is shown while its name is out."""
    page.wait_for_selector(".chart canvas")
    page.wait_for_timeout(300)
    yield "runs"
    page.click("nav >> text=Step")
    page.wait_for_selector(".histogram")
    yield "step"
    page.click("nav >> text=Find")
    page.wait_for_selector(".row")
    yield "find"
    page.select_option("label:has-text('Order') select", "turns true")
    page.wait_for_timeout(500)
    page.click(".rows li:first-child a")
    page.wait_for_selector(".said.model")
    page.wait_for_timeout(300)
    yield "trajectory"
    page.keyboard.press("t")
    page.wait_for_selector(".tokens, .note")
    page.wait_for_timeout(200)
    yield "tokens"
    page.keyboard.press("t")
    page.click("nav >> text=Settings")
    page.wait_for_selector(".settings")
    yield "settings"


if __name__ == "__main__":
    main()
