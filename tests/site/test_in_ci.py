"""Where it is decided about a change, nothing that looks at the site is skipped."""

from __future__ import annotations

import importlib.util
import os

import pytest
from served import BROWSER, SITE


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="who has no browser or no site may skip")
def test_there_is_a_site_and_a_browser_to_look_at_it_with():
    assert BROWSER, "all tests in a browser were skipped: put Chromium or Chrome on the PATH"
    assert importlib.util.find_spec("playwright"), "all tests in a browser were skipped: install playwright"
    assert (SITE / "book" / "index.html").is_file(), f"its tests were skipped: no site in {SITE}, run make book"
