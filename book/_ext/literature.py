"""Published figures in running text: the role `{published}` with a key of `labcode.report.PUBLISHED`.

The figure is written down in one place, with its source; pointing at it shows what it is and where it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

from labcode.report import PUBLISHED

if TYPE_CHECKING:
    from sphinx.application import Sphinx

logger = logging.getLogger(__name__)


class PublishedRole(SphinxRole):
    """A published figure of GPT-2 small."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The figure; a warning, and the key as it is, where there is none."""
        figure = PUBLISHED.get(self.text)
        if figure is None:
            logger.warning("no published figure %r in labcode.report", self.text, location=self.get_location())
            return [nodes.literal(self.text, self.text)], []
        shown = f"{figure.bound} {figure.written(figure.value)}".strip().replace("-", "−")
        return [nodes.abbreviation("", shown, explanation=f"{figure.quantity}: {figure.source}")], []


def setup(app: Sphinx) -> None:
    """Register the role."""
    app.add_role("published", PublishedRole())
