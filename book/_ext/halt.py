"""End a build with one message.

An exception would end it too, but Jupyter Book prints a page of its own traceback after it, and the message, which
says what to do, is lost above that. Used by the build.
"""

from __future__ import annotations

from typing import NoReturn

from sphinx.util import logging

from labcode.errors import named

logger = logging.getLogger(__name__)


def halt(message: str, status: int = 1) -> NoReturn:
    """Print the message as an error and end the process.

    Raises:
        SystemExit: Always, with this status.
    """
    logger.critical("%s", named(message))
    raise SystemExit(status)
