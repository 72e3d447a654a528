"""Where log lines go and how they look."""

from __future__ import annotations

import logging
import sys


def set_up_logging(level: str) -> None:
    """Write log lines of ``level`` and above to standard error, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # asyncio and uvicorn speak up only when something is wrong.
    logging.getLogger("asyncio").setLevel(max(logging.getLevelName(level), logging.WARNING))
    logging.getLogger("uvicorn").setLevel(max(logging.getLevelName(level), logging.WARNING))
