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

    Raises ``OSError`` where there is no data folder.
    """
    owner = data_dir.stat().st_uid
    own = _place(data_dir, os.geteuid())
    return own if own.is_dir() else _place(data_dir, owner)


def _place(data_dir: Path, uid: int) -> Path:
    folder = data_dir.resolve() / "run"
    if len(os.fsencode(folder)) <= _LONGEST_PATH - _LONGEST_NAME:
        return folder
    name = sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ranvier-run-{uid}-{name}"
