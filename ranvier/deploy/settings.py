"""What an administrator decides about a deployment, kept so that the next run needs no options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from ranvier.cluster.head_board import PLACES
from ranvier.spec.ids import is_server_name

MAIN: Final = "main"
"""The name of the worker that ``ranvier.service`` runs."""

_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_SYSTEM_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_PATH: Final = re.compile(r"/[A-Za-z0-9._/@+-]*")
_SERVICE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}(?:@[A-Za-z0-9_.-]{1,64})?\.service")
_OTHER_UNIT: Final = re.compile(r".*\.(?:socket|target|timer|path|slice|scope|mount)\.service")
_MAX_SOCKET_PATH: Final = 100
_REDIS: Final = "redis"
MAX_WORKERS: Final = PLACES - 1  # besides the first


class SettingsError(ValueError):
    """Say what cannot be deployed; the message is for the administrator."""


@dataclass(frozen=True)
class Settings:
    """One deployment. Paths are those of the running machine, whatever folder they are written into."""

    server_name: str
    public_name: str
    workers: tuple[str, ...] = ("worker1", "worker2", "worker3")
    user: str = "ranvier"
    group: str = "ranvier-sockets"
    redis_user: str = "redis"
    web_user: str = "www-data"
    config_dir: Path = Path("/etc/ranvier")
    data_dir: Path = Path("/var/lib/ranvier")
    socket_dir: Path = Path("/run/ranvier")
    program: Path = Path("/usr/bin/ranvier")
    redis_config: Path = Path("/etc/redis/redis.conf")
    redis_service: str = "redis-server.service"
    nginx_dir: Path = Path("/etc/nginx/conf.d")
    certificate: Path | None = None
    certificate_key: Path | None = None

    @property
    def redis_socket(self) -> Path:
        """Give where Redis answers."""
        return self.socket(_REDIS)

    @property
    def redis_fragment(self) -> Path:
        """Give the file that Redis's own configuration includes."""
        return self.redis_config.with_name("ranvier.conf")

    @property
    def nginx_upstream(self) -> Path:
        """Give the file that tells nginx of the workers."""
        return self.nginx_dir / "ranvier-upstream.conf"

    @property
    def nginx_site(self) -> Path:
        """Give the file of nginx's site."""
        return self.nginx_dir / "ranvier.conf"

    @property
    def names(self) -> tuple[str, ...]:
        """Give the names of all processes."""
        return (MAIN, *self.workers)

    def socket(self, name: str) -> Path:
        """Give where a worker answers the web server, or Redis the workers."""
        return self.socket_dir / f"{name}.sock"

    @property
    def homeserver_yaml(self) -> Path:
        """Give the main configuration file."""
        return self.config_dir / "homeserver.yaml"

    @property
    def conf_d(self) -> Path:
        """Give the folder of more configuration for all processes."""
        return self.config_dir / "conf.d"

    @property
    def redis_yaml(self) -> Path:
        """Give the file that says where Redis is."""
        return self.conf_d / "redis.yaml"

    def worker_yaml(self, name: str) -> Path:
        """Give the configuration file of one worker alone."""
        return self.config_dir / "workers" / f"{name}.yaml"

    def worker_of(self, path: Path) -> str | None:
        """Give the worker whose own file this is; None for other files."""
        name = path.name.removesuffix(".yaml")
        return name if is_worker_name(name) and path == self.worker_yaml(name) else None

    def config_paths(self, name: str) -> tuple[Path, ...]:
        """Give the files and folders that a process reads, in order."""
        own = () if name == MAIN else (self.worker_yaml(name),)
        return (self.homeserver_yaml, self.conf_d, *own)


def to_plain(settings: Settings) -> dict[str, Any]:
    """Give settings as JSON can hold them."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}


def from_plain(values: Mapping[str, Any]) -> Settings:
    """Read what ``to_plain`` gave. Keys of another version are left out. Raises ``TypeError``."""
    known: dict[str, Any] = {}
    for field in fields(Settings):
        value = values.get(field.name)
        if value is None:
            continue
        if field.name == "workers":
            known[field.name] = tuple(str(name) for name in value)
        else:
            known[field.name] = Path(value) if "Path" in str(field.type) else str(value)
    if "redis_service" in known:
        known["redis_service"] = service_name(known["redis_service"])
    return Settings(**known)


def service_name(name: str) -> str:
    """Give the whole name of a service, as systemd knows it when the end is left out."""
    return name if name.endswith(".service") else f"{name}.service"


def check_settings(settings: Settings) -> None:
    """Refuse what would not be one word in the files that it is written into. Raises SettingsError."""
    if not is_server_name(settings.server_name):
        raise SettingsError(f"{settings.server_name!r} is not a server name such as example.org")
    if not _HOST.fullmatch(settings.public_name):
        raise SettingsError(f"{settings.public_name!r} is not a host name such as matrix.example.org")
    _check_workers(settings)
    for name in (settings.user, settings.group, settings.redis_user, settings.web_user):
        if not _SYSTEM_NAME.fullmatch(name):
            raise SettingsError(f"{name!r} cannot be the name of a user or group")
    if settings.user == "root":
        raise SettingsError("the server cannot run as root: choose a user of its own")
    if not _SERVICE.fullmatch(settings.redis_service) or _OTHER_UNIT.fullmatch(settings.redis_service):
        raise SettingsError(f"{settings.redis_service!r} is not a service")
    if settings.redis_config == settings.redis_fragment:
        raise SettingsError(f"{settings.redis_config} is written by this command: name Redis's own file")
    for path in (getattr(settings, field.name) for field in fields(Settings)):
        if isinstance(path, Path) and (not _PATH.fullmatch(str(path)) or ".." in path.parts):
            raise SettingsError(f"{str(path)!r} is not an absolute path of plain characters")
    if (settings.certificate is None) != (settings.certificate_key is None):
        raise SettingsError("give --certificate and --certificate-key together")


def is_worker_name(name: str) -> bool:
    """Tell whether a worker that has a file of its own can have this name."""
    return _NAME.fullmatch(name) is not None and name not in (MAIN, _REDIS)


def _check_workers(settings: Settings) -> None:
    if len(settings.workers) > MAX_WORKERS:
        raise SettingsError(f"there can be at most {MAX_WORKERS} workers besides the first")
    for name in settings.workers:
        if not is_worker_name(name):
            raise SettingsError(f"{name!r} cannot be the name of a worker")
        if len(str(settings.socket(name))) > _MAX_SOCKET_PATH:
            raise SettingsError(f"the path of a socket of {name!r} would be too long")
    if len(set(settings.workers)) != len(settings.workers):
        raise SettingsError("two workers have the same name")
