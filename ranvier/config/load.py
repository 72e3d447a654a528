"""Read configuration files into one frozen ``Config``, telling everything that is wrong with them at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ranvier.config.accounts import (
    PasswordConfig,
    RegistrationConfig,
    SessionConfig,
    read_passwords,
    read_registration,
    read_sessions,
)
from ranvier.config.database import DatabaseConfig, RedisConfig, read_database, read_redis
from ranvier.config.listeners import DEFAULT_LISTENER, Listener, is_for_workers, read_listeners
from ranvier.config.named_files import (
    check_database_tls,
    check_listeners_tls,
    check_redis_tls,
    check_signing_key,
)
from ranvier.config.not_needed import UNNEEDED, UNSUPPORTED, WITHOUT_EFFECT
from ranvier.config.problems import Problem, Problems
from ranvier.config.rate_limits import RateLimit, read_rate_limits
from ranvier.config.reader import Section, WrongValueError, text, texts
from ranvier.config.rooms import (
    PresenceConfig,
    ProfileConfig,
    RoomsConfig,
    UserDirectoryConfig,
    read_presence,
    read_profiles,
    read_rooms,
    read_user_directory,
)
from ranvier.config.server import KeysConfig, ServerConfig, read_keys, read_server
from ranvier.config.sso import SsoConfig, read_sso
from ranvier.config.yaml_files import read_files
from ranvier.wire.members import ROLES

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WORKER_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class WorkerConfig:
    """What concerns this process alone. ``listens_apart`` says that only ``listeners`` are its own.

    ``roles`` are what it is sent, and ``replication_secret`` is what workers prove to each other to know.
    """

    name: str
    listeners: tuple[Listener, ...]
    listens_apart: bool
    roles: tuple[str, ...] = ROLES
    replication_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Config:
    """Everything that an administrator can set. ``warnings`` are the problems that did not stop reading."""

    server: ServerConfig
    keys: KeysConfig
    listeners: tuple[Listener, ...]
    database: DatabaseConfig | None
    redis: RedisConfig | None
    registration: RegistrationConfig
    passwords: PasswordConfig
    sessions: SessionConfig
    sso: SsoConfig
    rate_limits: Mapping[str, RateLimit]
    rooms: RoomsConfig
    profiles: ProfileConfig
    presence: PresenceConfig
    user_directory: UserDirectoryConfig
    worker: WorkerConfig
    warnings: tuple[Problem, ...] = ()

    @property
    def users_can_confirm(self) -> bool:
        """Tell whether users have a way to prove once more who they are."""
        return self.passwords.enabled_for_reauth or bool(self.sso.providers)

    @property
    def has_tls(self) -> bool:
        """Whether any listener has TLS, one of another process too."""
        return any(listener.tls for listener in (*self.listeners, *self.worker.listeners))

    @property
    def own_listeners(self) -> tuple[Listener, ...]:
        """Give where this process answers, unless a front accepts for it."""
        return self.worker.listeners if self.worker.listens_apart else self.listeners

    def of_server(self, *, fronted: bool) -> Config:
        """Give it as that of a whole server, whose ``listeners`` are its own although another file names it.

        Those of a worker go before them, unless a front accepts for several.
        """
        apart = bool(self.worker.listeners) and not fronted
        return replace(self, worker=replace(self.worker, listens_apart=apart))


def load(paths: Sequence[Path], *, data_dir: Path | None = None) -> Config:
    """Read files and folders, later ones replacing top-level keys of earlier ones.

    With ``data_dir`` the files that a start would read besides are looked at, too.
    Raises ``ConfigError`` with every error and warning that was found.
    """
    problems = Problems()
    entries = read_files(paths, problems)
    if not entries:  # unreadable or empty files: what is missing in them is not the news
        problems.raise_errors()
    root = Section(entries, problems, place=(str(paths[-1]) if paths else "", 0))
    config = _read(root)
    if data_dir is not None:
        check_signing_key(root, config.keys.signing_key_path, data_dir)
        if config.has_tls:
            check_listeners_tls(root, config.server)
        check_database_tls(root, config.database)
        check_redis_tls(root, config.redis)
    root.ignore(UNNEEDED, "unnecessary: {}; this has no effect")
    unsupported = dict.fromkeys(UNSUPPORTED, "")
    root.ignore(unsupported, "Ranvier does not have this feature; this has no effect", severity="warning")
    root.ignore(WITHOUT_EFFECT, "{}; this has no effect", severity="warning")
    root.finish()
    problems.raise_errors()
    return replace(config, warnings=problems.sorted())


def _read(root: Section) -> Config:
    server = read_server(root)
    listeners = read_listeners(root)
    config = Config(
        server=server,
        keys=read_keys(root),
        listeners=listeners if root.has("listeners") else (DEFAULT_LISTENER,),
        database=read_database(root),
        redis=read_redis(root),
        registration=read_registration(root, server.server_name),
        passwords=read_passwords(root),
        sessions=read_sessions(root),
        sso=read_sso(root, server.public_baseurl),
        rate_limits=read_rate_limits(root),
        rooms=read_rooms(root),
        profiles=read_profiles(root),
        presence=read_presence(root),
        user_directory=read_user_directory(root),
        worker=WorkerConfig(
            name=root.take("worker_name", _worker_name, "main"),
            listeners=read_listeners(root, "worker_listeners"),
            listens_apart=_listens_apart(root),
            roles=read_roles(root),
            replication_secret=root.secret("worker_replication_secret"),
        ),
    )
    _check_tls(root, config)
    _check_replication(root, config)
    return config


def read_roles(root: Section) -> tuple[str, ...]:
    """Read what a worker is sent; everything where nothing says so."""
    return root.take("worker_roles", _roles, ROLES)


def _listens_apart(root: Section) -> bool:
    """Tell whether ``listeners`` are another process's.

    So they are for a worker that is named in a file of its own, as in classic unit files.
    """
    if root.has("worker_listeners"):
        return True
    common = {root.file_of(key) for key in ("server_name", "listeners") if root.has(key)}
    if not root.has("worker_name") or root.file_of("worker_name") in common:
        return False
    root.note(
        "worker_name", "clients do not come to a `ranvier worker` of this name without worker_listeners"
    )
    return True


def _check_tls(root: Section, config: Config) -> None:
    if config.has_tls:
        for key in ("tls_certificate_path", "tls_private_key_path"):
            path = getattr(config.server, key)
            if path is None:
                root.error(key, "expected a path, because a listener has tls: true")
                continue
            try:
                path.stat()
            except OSError as error:
                root.error(key, f"cannot find {path}: {error.strerror}")


def _check_replication(root: Section, config: Config) -> None:
    secret = config.worker.replication_secret
    for key, listeners in (("listeners", config.listeners), ("worker_listeners", config.worker.listeners)):
        for listener in listeners:
            public = [address for address in listener.bind_addresses if address not in _LOOPBACK]
            if "replication" in listener.resources and public and not secret:
                root.error(
                    key,
                    f"replication on {public[0]} port {listener.port} is open to the network: set "
                    "worker_replication_secret or worker_replication_secret_path, or use a UNIX socket",
                )
            if is_for_workers(listener) and listener.path and listener.mode & 0o077 and not secret:
                root.error(
                    key,
                    f"replication at {listener.path} is open to other users of this machine: set mode: 0600, "
                    "worker_replication_secret or worker_replication_secret_path",
                )


def _worker_name(value: Any) -> str:
    if _WORKER_NAME.fullmatch(name := text(value)):
        return name
    raise WrongValueError("a name of letters, digits, '.', '-' and '_', at most 64 of them")


def _roles(value: Any) -> tuple[str, ...]:
    if not set(texts(value)) <= set(ROLES):
        raise WrongValueError("roles among " + ", ".join(ROLES))
    return texts(value)
