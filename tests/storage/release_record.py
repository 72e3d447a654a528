"""What a release asks of the database: so that a later one can be held to it.

Workers of two releases run side by side while a server is updated, on the schema of the newer one. It may
have more than the older one knows, and nothing less: expand first, contract a release later.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec

from ranvier import storage
from ranvier.storage.database import Connection
from ranvier.storage.migrations import migration_files

FOLDER: Final = Path(__file__).parent / "releases"
_STATEMENT: Final = re.compile(r"\s*(--.*\n\s*)*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
_PLACEHOLDER: Final = re.compile(r"\{\w*\}")
_COLUMNS: Final = """
SELECT c.relname AS table, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type,
       NOT a.attnotnull AS nullable, a.atthasdef OR a.attidentity <> '' AS filled
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname, a.attnum
"""


class Statement(msgspec.Struct, frozen=True):
    """One statement: types of its parameters, names and types of the columns that it gives."""

    sql: str
    parameters: list[str]
    columns: list[tuple[str, str]]


class Column(msgspec.Struct, frozen=True):
    """One column; ``filled``: it has a default, so that who does not know it may leave it out."""

    type: str
    nullable: bool
    filled: bool


class Release(msgspec.Struct, frozen=True):
    """All that a release needs: its migrations by name (SHA-256), its statements by place, its tables."""

    version: str
    migrations: dict[str, str]
    statements: dict[str, Statement]
    tables: dict[str, dict[str, Column]]

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return FOLDER / f"{self.version}.json"

    def write(self) -> None:
        """Keep it."""
        self.path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def recorded() -> list[Release]:
    """Give every release that was recorded."""
    return [msgspec.json.decode(path.read_bytes(), type=Release) for path in sorted(FOLDER.glob("*.json"))]


def statements() -> dict[str, str]:
    """Give every statement of ``ranvier.storage``: constants (in tuples and mappings, too) and literals."""
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules(storage.__path__):
        loaded = importlib.import_module(f"ranvier.storage.{module.name}")
        for name, value in vars(loaded).items():
            if name.lstrip("_").isupper():
                found.update({f"{module.name}.{place}": sql for place, sql in _in(name, value)})
        assert loaded.__file__ is not None
        for node in ast.walk(ast.parse(Path(loaded.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and _is_statement(argument.value):
                        found[f"{module.name}:{argument.lineno}"] = argument.value
    return found


def _in(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if _is_statement(value):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _in(f"{place}[{key}]", inner)
    elif isinstance(value, tuple | list):
        for index, inner in enumerate(value):
            yield from _in(f"{place}[{index}]", inner)


def _is_statement(value: Any) -> bool:
    return isinstance(value, str) and _STATEMENT.match(value) is not None


def migrations() -> dict[str, str]:
    """Give the checksum of each migration."""
    return {name: sha256(sql.encode()).hexdigest() for name, sql in migration_files()}


async def describe(connection: Connection, sql: str) -> Statement:
    """Have PostgreSQL say what a statement takes and gives. Raises what PostgreSQL has against it."""
    prepared = await connection.prepare(sql)
    return Statement(
        sql,
        [_name(kind) for kind in prepared.get_parameters()],
        [(attribute.name, _name(attribute.type)) for attribute in prepared.get_attributes()],
    )


def _name(kind: asyncpg.Type) -> str:
    return f"{kind.schema}.{kind.name}"


async def tables(connection: Connection) -> dict[str, dict[str, Column]]:
    """Give all tables as they are."""
    found: dict[str, dict[str, Column]] = {}
    for row in await connection.fetch(_COLUMNS):
        found.setdefault(row["table"], {})[row["column"]] = Column(
            row["type"], row["nullable"], row["filled"]
        )
    return found


async def release_now(connection: Connection, version: str) -> Release:
    """Describe this very code; the database has its schema."""
    described: dict[str, Statement] = {}
    known = statements()
    for place, sql in known.items():
        try:
            described[place] = await describe(connection, sql)
        except asyncpg.PostgresError:
            # A template is made into others, and a piece is looked at in what it is a piece of.
            if not _PLACEHOLDER.search(sql) and not any(sql in it and sql != it for it in known.values()):
                raise
    return Release(version, migrations(), described, await tables(connection))


async def contradictions(connection: Connection, release: Release) -> list[str]:
    """Give why a worker of an earlier release could not run on the schema of this database."""
    found = [
        f"the migration {name} was released and is another one now"
        for name, checksum in release.migrations.items()
        if migrations().get(name) != checksum
    ]
    for place, statement in release.statements.items():
        try:
            now = await describe(connection, statement.sql)
        except asyncpg.PostgresError as error:
            found.append(f"{place}: {error}")
            continue
        if now != statement:
            found.append(f"{place}: takes and gives {now}, and not {statement}")
    return found + _lost_columns(release.tables, await tables(connection))


def _lost_columns(before: dict[str, dict[str, Column]], now: dict[str, dict[str, Column]]) -> list[str]:
    found = []
    for table, columns in before.items():
        kept = now.get(table, {})
        for name, column in columns.items():
            if name not in kept:
                found.append(f"{table}.{name} is gone")
            elif kept[name].type != column.type or (column.nullable and not kept[name].nullable):
                found.append(f"{table}.{name} is {kept[name]}, and was {column}")
            elif column.filled and not kept[name].filled and not kept[name].nullable:
                found.append(f"{table}.{name} has no default any more")
        for name in kept.keys() - columns.keys():
            if not kept[name].nullable and not kept[name].filled:
                found.append(f"{table}.{name} is new, and who does not know it cannot write a row")
    return found
