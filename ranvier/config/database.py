"""``database`` and ``redis``: where the truth is kept, and what makes it fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

from ranvier.config.reader import Section

_TLS_KEYS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_DRIVER_KEYS = dict.fromkeys(
    (
        "cp_min",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "connect_timeout",
        "options",
    ),
    "Ranvier's driver decides this itself",
)


@dataclass(frozen=True)
class DatabaseConfig:
    """A PostgreSQL that the administrator runs. ``host`` may be the folder of a UNIX socket."""

    host: str
    port: int
    user: str
    dbname: str
    password: str | None = field(default=None, repr=False)
    max_connections: int = 10
    tls: tuple[tuple[str, str], ...] = ()

    def dsn(self) -> str:
        """Give the connection URI (libpq's form, which asyncpg takes); it contains the password."""
        password = f":{quote(self.password, safe='')}" if self.password else ""
        query = urlencode([("host", self.host), ("port", self.port), *self.tls])
        return f"postgresql://{quote(self.user, safe='')}{password}@/{quote(self.dbname, safe='')}?{query}"


def read_database(root: Section) -> DatabaseConfig | None:
    """Read the database; none means that Ranvier runs its own."""
    if not root.has("database"):
        root.section("database")
        return None
    section = root.section("database")
    name = section.text("name", "psycopg2")
    if name not in ("psycopg2", "asyncpg", "postgresql"):
        section.error(
            "name",
            "Ranvier keeps its data in PostgreSQL: expected psycopg2, or leave `database` out and it runs "
            "its own PostgreSQL in the data folder",
        )
    section.ignore(
        {"txn_limit": "", "allow_unsafe_locale": "", "data_stores": ""}, "Ranvier has no use for this"
    )
    args = section.section("args")
    found = DatabaseConfig(
        host=args.text("host", "localhost"),
        port=args.integer("port", 5432, minimum=1, maximum=65535),
        user=args.text("user", "ranvier"),
        dbname=args.optional_text("dbname") or args.text("database", "ranvier"),
        password=args.secret("password"),
        max_connections=args.integer("cp_max", 10, minimum=2, maximum=1000),
        tls=_read_tls(args),
    )
    args.ignore(_DRIVER_KEYS, "{}; this has no effect")
    args.finish()
    section.finish()
    return found


def _read_tls(args: Section) -> tuple[tuple[str, str], ...]:
    values: dict[str, str] = {}
    for key in _TLS_KEYS:
        given = args.choice(key, _SSL_MODES, "") if key == "sslmode" else args.text(key) and args.path(key)
        if given:
            values[key] = str(given)
    return tuple(values.items())


@dataclass(frozen=True)
class RedisConfig:
    """A Redis that the administrator runs: a UNIX socket (``path``) or a host and port."""

    host: str = "localhost"
    port: int = 6379
    path: Path | None = None
    dbid: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    use_tls: bool = False
    certificate_file: Path | None = None
    private_key_file: Path | None = None
    ca_file: Path | None = None
    ca_path: Path | None = None


def read_redis(root: Section) -> RedisConfig | None:
    """Read Redis; none means that there is none, or that Ranvier runs its own."""
    section = root.section("redis")
    enabled = section.boolean("enabled", False)
    found = RedisConfig(
        host=section.text("host", "localhost"),
        port=section.integer("port", 6379, minimum=1, maximum=65535),
        path=section.path("path"),
        dbid=section.integer("dbid", 0, maximum=1_000_000),
        username=section.optional_text("username"),
        password=section.secret("password"),
        use_tls=section.boolean("use_tls", False),
        certificate_file=section.path("certificate_file"),
        private_key_file=section.path("private_key_file"),
        ca_file=section.path("ca_file"),
        ca_path=section.path("ca_path"),
    )
    section.finish()
    if section.names() and not section.has("enabled"):
        root.warn("redis", "this has no effect without enabled: true")
    return found if enabled else None
