"""What nobody needs any more leaves the log: old rows that are not events, and old transaction ids.

What a row brought about (a receipt, account data, a message that waits for a device) is in a table of its
own, written in the same commit, and a sync from an old token reads that. The log's rows are for followers
that missed a message, and for the tail of a process that starts.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ranvier.spec.errors import MatrixError
from ranvier.storage import log_pruning as storage
from ranvier.storage.database import Database
from ranvier.storage.job_leases import Transactions
from ranvier.storage.transactions import TransactionStore

logger = logging.getLogger(__name__)

LOG_KEPT_S: Final = 3 * 86_400
"""A process that stood still for longer can not go on, and is to be started anew."""
LOG_KEPT_ROWS: Final = 20_000
"""Those are kept however old they are: a process that starts reads some thousand."""
TRANSACTIONS_KEPT_S: Final = 7 * 86_400
"""How long a client that got no answer may try again."""
SWEEP_INTERVAL_S: Final = 3600.0
_PAUSE_S: Final = 0.02
"""Between two pieces: others use the same disk."""


class LogPruning:
    """Remove old rows. ``run`` does it in one process at a time."""

    def __init__(self, *, database: Database, transactions: TransactionStore) -> None:
        self._database = database
        self._sent = transactions

    async def run(self, transactions: Transactions) -> None:
        """Sweep for ever."""
        while True:
            try:
                await self.sweep(transactions)
            except MatrixError as error:
                logger.warning("Old rows of the log can not be removed now: %s", error.message)
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def sweep(self, transactions: Transactions) -> None:
        """Remove all that is old enough, in pieces."""
        await storage.build_index(self._database)
        async with transactions() as connection:
            await storage.mark(connection)
            upto = await storage.reached(connection, LOG_KEPT_S, LOG_KEPT_ROWS)
        more = upto is not None
        while more and upto is not None:
            async with transactions() as connection:
                more = await storage.remove_piece(connection, upto)
            await asyncio.sleep(_PAUSE_S)
        more = True
        while more:
            async with transactions() as connection:
                more = await self._sent.forget_piece(connection, TRANSACTIONS_KEPT_S)
            await asyncio.sleep(_PAUSE_S)
