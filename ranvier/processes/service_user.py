"""Act as the user that a server runs as: what root may open and connect to, that user may not."""

from __future__ import annotations

# Read late, by which time Python's library may be closed to us: for keys, names of hosts and schema files.
import encodings.ascii
import encodings.idna  # noqa: F401
import importlib.readers  # noqa: F401
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def named_user(name: str) -> pwd.struct_passwd | None:
    """Give a user of this machine; None if there is none of this name."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def user_of(data_dir: Path) -> pwd.struct_passwd | None:
    """Give who runs the server of a data folder, by the folder of its sockets in it, else by the data folder.

    None where neither is there or their owner has no name. Folders elsewhere, as in /tmp, are not asked.
    """
    run = data_dir / "run"
    try:
        status = run.lstat() if run.is_dir() else data_dir.stat()
        return pwd.getpwuid(status.st_uid)
    except (KeyError, OSError):
        return None


@contextmanager
def acting_as(user: pwd.struct_passwd | None) -> Iterator[None]:
    """Let this process be a user in all that it does, if it is root; with None it stays who it is.

    For commands that do one thing: every thread changes, and what is imported meanwhile has to be readable
    for the user. Programs that are started meanwhile cannot become root again. Raises ``OSError``.
    """
    if user is None or user.pw_uid == 0 or os.geteuid() != 0:
        yield
        return
    groups, gids, uids, home = os.getgroups(), os.getresgid(), os.getresuid(), os.environ.get("HOME")
    try:
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setresgid(user.pw_gid, user.pw_gid, gids[2])
        # PostgreSQL and Redis are told the effective user. The real one goes along, because PostgreSQL does
        # not start where the two differ; the saved one is the way back.
        os.setresuid(user.pw_uid, user.pw_uid, 0)
        os.environ["HOME"] = user.pw_dir
        yield
    finally:
        os.setresuid(-1, 0, -1)
        os.setresuid(*uids)
        os.setresgid(*gids)
        os.setgroups(groups)
        if home is None:
            os.environ.pop("HOME", None)
        else:
            os.environ["HOME"] = home
