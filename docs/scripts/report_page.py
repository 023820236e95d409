"""Take a picture of a report's page.

``python docs/scripts/report_page.py runs/demo/report.html docs/images/report.png --columns``

Opens the file in headless Chromium (Debian's, or the one that CHROMIUM names). Fails if the page is
wider than its window or asks the network for anything.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TOP = (
    "[...document.querySelectorAll('h2')].map(h => h.getBoundingClientRect().top + window.scrollY)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1180, help="of the window, pixels")
    parser.add_argument(
        "--columns",
        action="store_true",
        help="cut the long page at a heading and set its halves side by side",
    )
    given = parser.parse_args()
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM")
            or shutil.which("chromium")
            or shutil.which("google-chrome"),
            args=FLAGS,
        )
        page = browser.new_page(viewport={"width": given.width, "height": 1200})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(given.page.resolve().as_uri())
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        headings = page.evaluate(TOP)
        browser.close()
    elsewhere = [url for url in asked if not url.startswith(("file:", "data:"))]
    if elsewhere or wider > 0:
        sys.exit(f"the page is {wider} pixels too wide and asked for {elsewhere}")
    if given.columns:
        picture = side_by_side(
            picture, round(min(headings, key=lambda y: abs(y - picture.height / 2))) - 12
        )
    picture.save(given.picture, optimize=True)


def side_by_side(picture: Image.Image, cut: int) -> Image.Image:
    """The part above ``cut`` to the left, the rest to the right."""
    out = Image.new(
        "RGB", (2 * picture.width, max(cut, picture.height - cut)), picture.getpixel((2, 2))
    )
    out.paste(picture.crop((0, 0, picture.width, cut)), (0, 0))
    out.paste(picture.crop((0, cut, picture.width, picture.height)), (picture.width, 0))
    return out


if __name__ == "__main__":
    main()
