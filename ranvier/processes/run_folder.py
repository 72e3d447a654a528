"""The folder that the workers of one machine share: their sockets, and the memory of the log's head."""

from __future__ import annotations

import os
import stat
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Final

from ranvier.processes.start_error import StartError

_LONGEST_PATH: Final = 107
_LONGEST_NAME: Final = 64 + len("/.sock")


def run_folder(data_dir: Path) -> Path:
    """Give the folder, made if need be: ``run`` in the data folder, or one in /tmp where that is too long.

    Only its owner may enter it. Raises StartError.
    """
    folder = _place(data_dir, os.geteuid())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise StartError(f"cannot use {folder} for the sockets of workers: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise StartError(f"{folder} is not a folder of the user that runs Ranvier")
    return folder


def find_run_folder(data_dir: Path) -> Path:
    """Give the folder that the server of a data folder uses, whoever asks; it need not be there.

    Raises ``OSError`` where there is no data folder, ``PermissionError`` for a folder in /tmp that is not of
    the user in its name: anybody can make one.
    """
    asker, owner = os.geteuid(), data_dir.stat().st_uid
    places = {uid: _place(data_dir, uid) for uid in ((owner, asker) if asker == 0 else (asker, owner))}
    for uid, place in places.items():
        if _is_folder_of(place, uid, data_dir):
            return place
    place = places[owner]
    if place.parent != data_dir.resolve() and (place.is_symlink() or place.exists()):
        raise PermissionError(f"{place} is not a folder of the user that runs Ranvier")
    return place


def _is_folder_of(place: Path, uid: int, data_dir: Path) -> bool:
    """Tell whether a folder is there, and of this user unless the data folder keeps others out."""
    try:
        status = place.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and (place.parent == data_dir.resolve() or status.st_uid == uid)


def _place(data_dir: Path, uid: int) -> Path:
    folder = data_dir.resolve() / "run"
    if len(os.fsencode(folder)) <= _LONGEST_PATH - _LONGEST_NAME:
        return folder
    name = sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ranvier-run-{uid}-{name}"
