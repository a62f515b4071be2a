"""What all tests in a browser share: one Chromium, and the site over HTTP on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from served import ARGUMENTS, BROWSER, serving


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Here and not above: without Playwright each module skips itself with a reason.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield chromium
        chromium.close()
