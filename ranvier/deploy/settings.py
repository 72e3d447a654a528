"""What an administrator decides about a deployment, kept so that the next run needs no options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

MAIN: Final = "main"
"""The name of the worker that ``ranvier.service`` runs."""


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
        return self.socket_dir / "redis.sock"

    @property
    def names(self) -> tuple[str, ...]:
        """Give the names of all processes."""
        return (MAIN, *self.workers)

    def socket(self, name: str) -> Path:
        """Give where a worker answers the web server."""
        return self.socket_dir / f"{name}.sock"

    @property
    def homeserver_yaml(self) -> Path:
        """Give the main configuration file."""
        return self.config_dir / "homeserver.yaml"

    @property
    def conf_d(self) -> Path:
        """Give the folder of more configuration for all processes."""
        return self.config_dir / "conf.d"

    def worker_yaml(self, name: str) -> Path:
        """Give the configuration file of one worker alone."""
        return self.config_dir / "workers" / f"{name}.yaml"

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
    return Settings(**known)
