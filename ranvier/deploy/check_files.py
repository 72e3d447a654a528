"""Are the sockets' folder, its group and the sockets there, and right?"""

from __future__ import annotations

import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from ranvier.deploy.findings import Finding, error, ok, warning
from ranvier.deploy.scene import Process, Scene
from ranvier.deploy.settings import Settings
from ranvier.wire.members import CLIENT_ROLES

_FOLDER_MODE = 0o2770
_CONNECT_TIMEOUT_S = 2.0


def check_files(scene: Scene) -> Iterator[Finding]:
    """Look at the file system."""
    if scene.settings is not None:
        yield from _group(scene, scene.settings)
        yield from _folder(scene, scene.settings)
        yield from _proxy(scene, scene.settings)
    for process in scene.processes:
        for listener in process.listeners:
            if listener.path is not None:
                yield from _socket(scene, process, listener.path, listener.mode)
    yield from _space(scene)


def _group(scene: Scene, settings: Settings) -> Iterator[Finding]:
    target = scene.target
    users = {settings.user: "the server", settings.redis_user: "Redis", settings.web_user: "the web server"}
    for user, what in users.items():
        if not target.has_user(user):
            yield error(
                "user-missing", f"there is no user {user}, as which {what} runs", "run `ranvier deploy`"
            )
        elif not target.is_member(user, settings.group):
            yield error(
                "group-member",
                f"the user {user} ({what}) is not in the group {settings.group} of the sockets",
                f"usermod -aG {settings.group} {user}, then restart {what}",
            )


def _folder(scene: Scene, settings: Settings) -> Iterator[Finding]:
    folder = settings.socket_dir
    rights = scene.target.rights(folder)
    if rights is None:
        yield error("socket-folder", f"there is no folder {folder}", "systemd-tmpfiles --create ranvier.conf")
        return
    before = rights
    if rights.owner != settings.user:
        yield error(
            "socket-folder-owner",
            f"{folder} belongs to {rights.owner} and not to {settings.user}",
            f"chown {settings.user} {folder}",
        )
    if rights.group != settings.group:
        yield error(
            "socket-folder-group",
            f"{folder} has the group {rights.group} and not {settings.group}",
            f"chgrp {settings.group} {folder} && chmod 2770 {folder}",
        )
    if rights.mode != _FOLDER_MODE:
        yield error(
            "socket-folder-mode",
            f"{folder} has the mode {rights.mode:04o} and not {_FOLDER_MODE:04o}",
            f"chmod 2770 {folder}",
        )
    if before == (settings.user, settings.group, _FOLDER_MODE):
        yield ok("socket-folder", f"{folder} is {rights}")


def _socket(scene: Scene, process: Process, path: Path, mode: int) -> Iterator[Finding]:
    real = scene.target.real(path)
    restart = f"see `systemctl status` and the log of the worker {process.name}, and start it"
    try:
        status = real.stat()
    except FileNotFoundError:
        yield error("socket-missing", f"the worker {process.name} has no socket {path}", restart)
        return
    except OSError as failed:
        yield error("socket-missing", f"{path} cannot be seen: {failed}", "run this as root")
        return
    if not stat.S_ISSOCK(status.st_mode):
        yield error("socket-kind", f"{path} is not a socket", f"remove it, then {restart}")
        return
    found = stat.S_IMODE(status.st_mode)
    if found != mode:
        yield error(
            "socket-mode",
            f"{path} has the mode {found:04o}, and the configuration says {mode:04o}",
            f"restart the worker {process.name}, or chmod {mode:o} {path}",
        )
    settings = scene.settings
    if settings is not None and path.parent == settings.socket_dir:
        group = scene.target.group_name(status.st_gid)
        if group != settings.group:
            yield error(
                "socket-group",
                f"{path} has the group {group} and not {settings.group}: the web server cannot connect",
                f"chmod 2770 {settings.socket_dir}, then restart the worker {process.name}",
            )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_TIMEOUT_S)
        try:
            connection.connect(str(real))
        except ConnectionRefusedError:
            yield error("socket-stale", f"nobody listens on {path}: its worker died", restart)
        except OSError as failed:
            yield error("socket-refused", f"cannot connect to {path}: {failed}", "run this as root")


def _proxy(scene: Scene, settings: Settings) -> Iterator[Finding]:
    path = settings.nginx_dir / "ranvier-upstream.conf"
    text = scene.target.read(path)
    if text is None:
        yield warning("proxy", f"there is no {path}: nginx does not know the workers", "run `ranvier deploy`")
        return
    asked = [it for it in scene.processes if set(CLIENT_ROLES) & set(it.config.worker.roles)]
    listeners = (listener for process in asked for listener in process.listeners)
    sockets = {listener.path for listener in listeners if "client" in listener.resources}
    for socket_path in sorted(str(path) for path in sockets if path is not None):
        if f"unix:{socket_path} " not in text and f"unix:{socket_path};" not in text:
            yield warning(
                "proxy", f"nginx sends nothing to {socket_path}", f"add it to {path}, or run `ranvier deploy`"
            )


def _space(scene: Scene) -> Iterator[Finding]:
    try:
        usage = shutil.disk_usage(scene.data_dir)
    except OSError as failed:
        yield error("data-folder", f"the data folder cannot be used: {failed}", "make it, or say --data")
        return
    free = usage.free / usage.total
    if free < 0.05:
        told = error if free < 0.01 else warning
        yield told("disk-space", f"{free:.1%} of the disk of {scene.data_dir} is free", "make room on it")
