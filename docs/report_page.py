"""Take a picture of a report's page: ``python docs/report_page.py runs/demo/report.html docs/report.png [WIDTH]``.

Opens the file in headless Chromium (Debian's, or the one CHROMIUM names) and fails if the page asked the network for anything.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def main() -> None:
    page_file, picture = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    width = int(sys.argv[3]) if len(sys.argv) > 3 else 1180
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome"), args=FLAGS
        )
        page = browser.new_page(viewport={"width": width, "height": 1200})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        page.screenshot(path=str(picture), full_page=True)
        wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if picture.suffix == ".png" and len(sys.argv) > 4:
            page.pdf(path=sys.argv[4], format="A4")
        browser.close()
    Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        picture, optimize=True
    )  # a third of the bytes
    elsewhere = [url for url in asked if not url.startswith(("file:", "data:"))]
    if elsewhere or wider > 0:
        sys.exit(f"the page is {wider} pixels too wide and asked for {elsewhere}")


if __name__ == "__main__":
    main()
