"""Do the processes' configurations fit together, and are the keys and secrets there and private?"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

from ranvier.deploy.findings import Finding, error, ok, warning
from ranvier.deploy.guard import guarded
from ranvier.deploy.scene import Process, Scene
from ranvier.spec.errors import MatrixError
from ranvier.spec.signatures import SigningKey


def check_config(scene: Scene) -> Iterator[Finding]:
    """Compare the processes with each other, and look at what the server's user has to read."""
    yield from guarded("what the workers have in common", _common(scene))
    yield from guarded("the signing key", _signing_key(scene))
    yield from guarded("the data folder", _data_folder(scene))


def _common(scene: Scene) -> Iterator[Finding]:
    yield from _names(scene)
    yield from _same(scene, "server name", "server-name", lambda it: it.config.server.server_name)
    yield from _same(scene, "database", "database-differs", _database)
    yield from _same(scene, "Redis", "redis-differs", lambda it: it.config.redis)
    yield from _same(
        scene, "secret", "secret-differs", lambda it: it.config.worker.replication_secret, secret=True
    )
    if len(scene.processes) > 1 and scene.redis is None and not scene.hidden:
        yield error(
            "redis-missing",
            f"{len(scene.processes)} workers are configured and no Redis",
            "set `redis: {enabled: true, path: /run/ranvier/redis.sock}` in conf.d/redis.yaml",
        )
    yield from _sockets(scene)


def _database(process: Process) -> Hashable:
    """Give which database a process uses; how it uses it is its own affair."""
    database = process.config.database
    return None if database is None else (database.host, database.port, database.dbname)


def _names(scene: Scene) -> Iterator[Finding]:
    sources = defaultdict(list)
    for process in scene.processes:
        sources[process.name].append(process.source)
    for name, files in sources.items():
        if len(files) > 1:
            yield error(
                "name-twice",
                f"two workers are named {name}: {', '.join(files)}",
                "give each its own worker_name; otherwise the second does not start",
            )


def _same(
    scene: Scene, what: str, check: str, value_of: Callable[[Process], Hashable], *, secret: bool = False
) -> Iterator[Finding]:
    values: dict[Hashable, str] = {}
    for process in scene.processes:
        values.setdefault(value_of(process), process.source)
    if len(values) > 1:
        files = " and ".join(values.values())
        key = "worker_replication_secret" if secret else what
        yield error(
            check,
            f"workers do not have the same {what}: {files} differ",
            f"say it once, in a file that all workers read ({key})",
        )


def _sockets(scene: Scene) -> Iterator[Finding]:
    users: dict[str, str] = {}
    for process in scene.processes:
        for listener in process.listeners:
            addresses = listener.bind_addresses
            places = [str(listener.path)] if listener.path else [f"{a}:{listener.port}" for a in addresses]
            if not places:
                yield error(
                    "listener-nowhere",
                    f"the worker {process.name} answers nowhere on port {listener.port}: it has no address",
                    "name one in bind_addresses, such as 127.0.0.1",
                )
            for place in places:
                other = users.setdefault(place, process.name)
                if other != process.name:
                    yield error(
                        "socket-twice",
                        f"the workers {other} and {process.name} both answer on {place}",
                        f"give {process.name} its own place in worker_listeners",
                    )


def _signing_key(scene: Scene) -> Iterator[Finding]:
    path = scene.config.keys.signing_key_path or scene.data_dir / "signing.key"
    try:
        text = path.read_text(encoding="ascii").strip()
        SigningKey.parse(text.splitlines()[0] if text else "")
    except FileNotFoundError:
        yield error(
            "signing-key",
            f"there is no signing key {path}",
            "bring it back from your copy; nobody trusts a new one",
        )
        return
    except PermissionError as failed:
        yield error(
            "signing-key",
            f"the server's user may not read the signing key: {failed}",
            f"chgrp {_group_of_user(scene)} {path} && chmod 640 {path}",
        )
        return
    except (OSError, ValueError, MatrixError) as failed:
        yield error(
            "signing-key", f"the signing key {path} cannot be used: {failed}", "restore it from a copy"
        )
        return
    yield from _private(path, "signing-key-open", "the signing key")
    yield ok("signing-key", f"the signing key {path} is good")


def _group_of_user(scene: Scene) -> str:
    return scene.target.group_name(os.getegid()) if scene.settings is None else scene.settings.user


def _data_folder(scene: Scene) -> Iterator[Finding]:
    folder = scene.data_dir
    if not folder.is_dir():
        yield error("data-folder", f"there is no data folder {folder}", "make it, or say --data")
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield error(
            "data-folder",
            f"the server's user may not write into the data folder {folder}",
            f"chown {scene.target.user_name(os.geteuid())} {folder}",
        )


def _private(path: Path, check: str, what: str) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007:
        yield warning(check, f"{what} {path} can be read by every user (mode {mode:04o})", f"chmod o= {path}")
