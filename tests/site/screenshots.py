"""Full-page pictures of every page, light and dark, wide and narrow.

python tests/site/screenshots.py OUTDIR [PAGE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from served import ARGUMENTS, BROWSER, DESKTOP, PHONE, SCROLL_THROUGH, pages, serving

SIZES = ({**DESKTOP, "width": 1440}, PHONE)
TALLEST = 16_000  # pixels that the browser draws at once: what is longer comes in parts


def main() -> int:
    """Write PAGE-SCHEME-WIDTH.png for each page, scheme and width."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    if BROWSER is None:
        print("no chromium on the PATH: install it, for instance with apt-get install chromium", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [page for page in pages() if not sys.argv[2:] or any(name in page for name in sys.argv[2:])]
    with serving() as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        for scheme in ("light", "dark"):
            for size in SIZES:
                page = browser.new_context(color_scheme=scheme, viewport=size).new_page()
                for name in chosen:
                    page.goto(f"{site}/{name}", wait_until="networkidle")
                    page.evaluate(SCROLL_THROUGH)
                    target = folder / f"{Path(name).stem}-{scheme}-{size['width']}.png"
                    page.screenshot(path=target, full_page=True)
                    print(target)
                page.context.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
