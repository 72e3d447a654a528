"""The file system that is deployed to: a machine's own, or a folder that stands for its root."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat
from pathlib import Path
from typing import Final, NamedTuple

MAX_FILE_BYTES: Final = 4 << 20


class Rights(NamedTuple):
    """Who may do what: owner, group, permission bits."""

    owner: str
    group: str
    mode: int

    def __str__(self) -> str:
        return f"{self.owner}:{self.group} {self.mode:04o}"


class Target:
    """Look at files, users and groups below ``root``, and change them."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root.resolve()

    @property
    def is_machine(self) -> bool:
        """Tell whether this is the running machine, on which commands can be run."""
        return self.root == Path("/")

    def real(self, path: Path) -> Path:
        """Give where a path of the deployment is on this machine."""
        return self.root / path.relative_to("/")

    def read(self, path: Path) -> str | None:
        """Give a file's text; None if there is none. Raises ``OSError``."""
        try:
            return self.real(path).read_bytes()[:MAX_FILE_BYTES].decode(errors="surrogateescape")
        except FileNotFoundError:
            return None

    def rights(self, path: Path) -> Rights | None:
        """Give a file's or folder's rights; None if it is not there. Raises ``OSError``."""
        try:
            status = self.real(path).stat()
        except FileNotFoundError:
            return None
        return self._rights_of(status)

    def _rights_of(self, status: os.stat_result) -> Rights:
        mode = stat.S_IMODE(status.st_mode)
        return Rights(self.user_name(status.st_uid), self.group_name(status.st_gid), mode)

    def read_exposed(self, path: Path) -> tuple[str, Rights] | None:
        """Give text and rights of a file that others than root may exchange; None if there is none.

        Both come from one file, no link nor other name of one: that could be a file which they cannot read.
        Raises ``OSError``.
        """
        real = self.real(path)
        # Neither follows a link nor waits for the other end of a pipe.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(real, flags)
        except FileNotFoundError:
            return None
        except OSError as error:
            if real.is_symlink():
                raise OSError(f"{path} is a link, which root does not follow there") from error
            raise
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{path} is not a file")
            if status.st_nlink != 1:
                raise OSError(f"{path} has another name elsewhere, so it may be another program's file")
            text = file.read(MAX_FILE_BYTES).decode(errors="surrogateescape")
        return text, self._rights_of(status)

    def write(self, path: Path, content: str, rights: Rights) -> None:
        """Replace a file at once or not at all. Raises ``OSError``, ``LookupError``."""
        real = self.real(path)
        uid, gid = self.uid(rights.owner), self.gid(rights.group)
        temporary = real.with_name(f".{real.name}.new")
        temporary.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(content.encode(errors="surrogateescape"))
                os.fchown(file.fileno(), uid, gid)
                os.fchmod(file.fileno(), rights.mode)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(real)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def set_rights(self, path: Path, rights: Rights) -> None:
        """Change a file's or folder's rights. Raises ``OSError``, ``LookupError``."""
        os.chown(self.real(path), self.uid(rights.owner), self.gid(rights.group))
        self.real(path).chmod(rights.mode)  # afterwards, because chown takes the setgid bit away

    # -- users and groups ------------------------------------------------------------------------------

    def has_user(self, name: str) -> bool:
        """Tell whether a user exists."""
        return any(entry[0] == name for entry in self._users())

    def has_group(self, name: str) -> bool:
        """Tell whether a group exists."""
        return any(entry[0] == name for entry in self._groups())

    def uid(self, name: str) -> int:
        """Give a user's number. Raises ``LookupError``."""
        return next((uid for user, uid, _ in self._users() if user == name), None) or _known_zero(name)

    def gid(self, name: str) -> int:
        """Give a group's number. Raises ``LookupError``."""
        return next((gid for group, gid, _ in self._groups() if group == name), None) or _known_zero(name)

    def user_name(self, uid: int) -> str:
        """Give a user's name, or its number if it has none."""
        return "root" if uid == 0 else next((u for u, i, _ in self._users() if i == uid), str(uid))

    def group_name(self, gid: int) -> str:
        """Give a group's name, or its number if it has none."""
        return "root" if gid == 0 else next((g for g, i, _ in self._groups() if i == gid), str(gid))

    def is_member(self, user: str, group: str) -> bool:
        """Tell whether a user is in a group, by the group's list or as the user's own group."""
        gids = {gid for name, gid, members in self._groups() if name == group}
        listed = any(user in members for name, _, members in self._groups() if name == group)
        return listed or any(name == user and gid in gids for name, _, gid in self._users())

    def _users(self) -> list[tuple[str, int, int]]:
        if self.is_machine:
            return [(entry.pw_name, entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall()]
        return [(row[0], int(row[2]), int(row[3])) for row in self._table(Path("/etc/passwd"), 7)]

    def _groups(self) -> list[tuple[str, int, list[str]]]:
        if self.is_machine:
            return [(entry.gr_name, entry.gr_gid, entry.gr_mem) for entry in grp.getgrall()]
        return [(row[0], int(row[2]), row[3].split(",")) for row in self._table(Path("/etc/group"), 4)]

    def _table(self, path: Path, width: int) -> list[list[str]]:
        rows = [line.split(":") for line in (self.read(path) or "").splitlines()]
        return [row for row in rows if len(row) >= width and row[2].isdigit()]


def fingerprint(content: str) -> str:
    """Give what tells whether a file is still the one that was written."""
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()


def _known_zero(name: str) -> int:
    if name == "root":
        return 0
    raise LookupError(f"there is no user or group {name}")
