"""End a build with one message.

An exception would end it too, but Jupyter Book prints a page of its own traceback after it, and the message, which
says what to do, is lost above that. Used by the build.
"""

from __future__ import annotations

from typing import NoReturn

from sphinx.util import logging

from labcode.errors import LabError

logger = logging.getLogger(__name__)


def halt(message: str, see: str, status: int = 1) -> NoReturn:
    """Print the message as an error that names its entry under Troubleshooting, and end the process.

    Raises:
        SystemExit: Always, with this status.
    """
    logger.critical("%s", LabError(message, see))
    raise SystemExit(status)
