"""How many files, and so connections, a process may have open."""

from __future__ import annotations

import logging
import resource
import sys

logger = logging.getLogger(__name__)


def allow_many_files() -> None:
    """Raise the soft limit on open files to the hard one: shells mostly give 1024, too few for a server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        logger.warning("This process may have no more than %d files open: %s", soft, error)


def most_open_files() -> int:
    """Give how many files this process may have open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
