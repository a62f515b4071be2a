"""What a screen reader is told: each table has headings."""

from __future__ import annotations

import re

import pytest
from served import SITE

pytestmark = pytest.mark.skipif(
    not (SITE / "book" / "index.html").is_file(), reason=f"no built site in {SITE}: run make book"
)
FILES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)


@pytest.mark.parametrize("name", FILES)
def test_every_heading_of_a_table_has_words(name):
    page = (SITE / name).read_text(encoding="utf8")
    headings = re.findall(r"<th\b[^>]*>(.*?)</th>", page, re.DOTALL)
    assert [one for one in headings if not re.sub(r"<[^>]+>", "", one).strip()] == []
