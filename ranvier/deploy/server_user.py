"""Whom to act as for a server that is named by its files."""

from __future__ import annotations

import pwd
from collections.abc import Iterable
from pathlib import Path

from ranvier.deploy.settings import Settings
from ranvier.processes.service_user import named_user, user_of


def is_of(deployed: Settings | None, files: Iterable[Path], data_dir: Path | None) -> bool:
    """Tell whether files of configuration, or a data folder, are those of the server that was deployed."""
    if deployed is None:
        return False
    if data_dir is not None and data_dir.resolve() == deployed.data_dir.resolve():
        return True
    return any(deployed.config_dir.resolve() in path.resolve().parents for path in files)


def server_user(deployed: Settings | None, files: Iterable[Path], data_dir: Path) -> pwd.struct_passwd | None:
    """Give whom the server runs as: as it was deployed, else by its data folder; None if nobody knows."""
    if deployed is not None and is_of(deployed, files, data_dir):
        return named_user(deployed.user)
    return user_of(data_dir)
