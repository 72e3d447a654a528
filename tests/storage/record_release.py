"""Record what this release asks of the database: ``python -m tests.storage.record_release``.

Run it when a version is released, and commit the file. ``--again`` records a version anew that is not out
yet. A record may be deleted once nobody updates from that release without a stop in between.
"""

from __future__ import annotations

import asyncio
import sys

import asyncpg

import ranvier
from tests.postgres import database_dsn, migrated_template, running_postgres
from tests.storage.release_record import FOLDER, release_now


def main() -> None:
    """Record it, in a PostgreSQL of its own."""
    path = FOLDER / f"{ranvier.__version__}.json"
    if path.exists() and "--again" not in sys.argv[1:]:
        sys.exit(f"{path} is there already; --again replaces it, for a version that is not out yet")
    with running_postgres() as dsn, migrated_template(dsn) as name:
        asyncio.run(_record(database_dsn(dsn, name)))
    print(path)


async def _record(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        (await release_now(connection, ranvier.__version__)).write()
    finally:
        await connection.close()


if __name__ == "__main__":
    main()
