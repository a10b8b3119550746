"""Draws task_report.png, the picture of README and start page: a part of a report, in a browser.

After `make demo`, which makes the task's text and vocabulary (its first minute does):

    plug-jax inspect --task demo_palm --num_examples 2 --report demo_palm.html
    python docs/images/task_report.py demo_palm.html

It needs the system's Chromium, and a font with Chinese characters.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

_SHOWN = ("Rates", "Examples")


def main(report: Path) -> None:
    """Write the picture beside this file."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 860, "height": 600})
        page.goto(report.resolve().as_uri())
        page.evaluate(
            """shown => {
              for (const one of document.querySelectorAll('section, .summary, .facts'))
                if (!shown.includes(one.querySelector('h2')?.textContent)) one.remove();
              for (const one of document.querySelectorAll('.note')) one.remove();
            }""",
            _SHOWN,
        )
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        picture.quantize(64).save(Path(__file__).with_suffix(".png"), optimize=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
