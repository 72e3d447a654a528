"""Are the sockets' folder, its group and the sockets there, and right?"""

from __future__ import annotations

import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from ranvier.deploy.findings import Finding, error, note, ok, warning
from ranvier.deploy.guard import guarded
from ranvier.deploy.scene import Process, Scene
from ranvier.deploy.settings import Settings
from ranvier.deploy.system_files import includes
from ranvier.wire.members import CLIENT_ROLES

_FOLDER_MODE = 0o2770
_CONNECT_TIMEOUT_S = 2.0


def check_files(scene: Scene) -> Iterator[Finding]:
    """Look at the file system."""
    settings = scene.settings
    if settings is not None:
        yield from guarded("users and groups", _group(scene, settings))
        yield from guarded(f"the folder {settings.socket_dir}", _folder(scene, settings))
        yield from guarded("nginx's files", _proxy(scene, settings))
        yield from guarded("Redis's configuration", _redis_file(scene, settings))
        yield from guarded("the files of workers", _left_over(scene, settings))
        yield from guarded("the folder of private sockets", _run_folder(scene, settings))
    for process in scene.processes:
        if process.name in scene.drained:
            continue  # it has taken its sockets away
        for listener in process.listeners:
            if listener.path is not None:
                found = _socket(scene, process, listener.path, listener.mode)
                yield from guarded(f"the socket {listener.path}", found)
    yield from guarded("the disk", _space(scene))


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
    restart = _start(process)
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
    yield from _listening(process, path, real)


def _listening(process: Process, path: Path, real: Path) -> Iterator[Finding]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_TIMEOUT_S)
        try:
            connection.connect(str(real))
        except ConnectionRefusedError:
            yield error("socket-stale", f"nobody listens on {path}: its worker died", _start(process))
        except (BlockingIOError, TimeoutError):
            yield error(
                "socket-full",
                f"so many connections wait on {path} that no more are taken: its worker stands still",
                f"see the log of the worker {process.name}, and restart it",
            )
        except PermissionError as failed:
            yield error("socket-refused", f"cannot connect to {path}: {failed}", "run this as root")
        except OSError as failed:
            advice = "give the listener a path of at most 107 bytes, in a folder that is there"
            yield error("socket-refused", f"cannot connect to {path}: {failed}", advice)


def _start(process: Process) -> str:
    return f"see `systemctl status` and the log of the worker {process.name}, and start it"


def _proxy(scene: Scene, settings: Settings) -> Iterator[Finding]:
    path = settings.nginx_dir / "ranvier-upstream.conf"
    text = scene.target.read(path)
    if text is None:
        yield note(
            "proxy",
            f"there is no {path}: nginx does not know the workers",
            "another web server has to; for nginx run `ranvier deploy`",
        )
        return
    for process in scene.processes:
        if not set(CLIENT_ROLES) & set(process.config.worker.roles):
            continue
        sockets = {it.path for it in process.listeners if it.path is not None and "client" in it.resources}
        if any(f"unix:{place} " in text or f"unix:{place};" in text for place in sockets):
            continue
        place = settings.socket(process.name)
        yield warning(
            "proxy",
            f"nginx sends nothing to the worker {process.name}",
            "run `ranvier deploy`"
            if place in sockets
            else f"let it answer clients on {place}, in {process.source}, then run `ranvier deploy`",
        )


def _redis_file(scene: Scene, settings: Settings) -> Iterator[Finding]:
    """See whether Redis still reads what it was told: an update of its package may bring a new file."""
    if scene.redis is None or scene.redis.path != settings.redis_socket:
        return  # a person has the server use another one
    found = scene.target.read_exposed(settings.redis_config)
    if found is not None and not includes(found[0], str(settings.redis_fragment)):
        yield error(
            "redis-include",
            f"{settings.redis_config} does not include {settings.redis_fragment} any more: Redis takes "
            "connections by TCP, and not where the workers look for it, as soon as it restarts",
            "run `ranvier deploy`",
        )


def _left_over(scene: Scene, settings: Settings) -> Iterator[Finding]:
    folder = settings.config_dir / "workers"
    for path in sorted(scene.target.real(folder).glob("*.yaml")):
        if path.stem not in settings.workers:
            yield note("left-over", f"{folder / path.name} is of no worker that was deployed", "remove it")


def _run_folder(scene: Scene, settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir / "run"
    rights = scene.target.rights(folder)
    if rights is not None and rights.owner != settings.user:
        yield error(
            "run-folder",
            f"{folder} belongs to {rights.owner} and not to {settings.user}: workers do not start",
            f"chown -R {settings.user}: {folder}",
        )


def _space(scene: Scene) -> Iterator[Finding]:
    if not scene.data_dir.exists():
        return  # said already
    usage = shutil.disk_usage(scene.data_dir)
    free = usage.free / usage.total
    if free < 0.05:
        told = error if free < 0.01 else warning
        yield told("disk-space", f"{free:.1%} of the disk of {scene.data_dir} is free", "make room on it")
