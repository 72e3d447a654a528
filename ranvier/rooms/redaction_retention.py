"""Redacted events lose in the database, too, what redaction takes away: ``redaction_retention_period``."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import orjson

from ranvier.rooms.room import MEMBER
from ranvier.spec.errors import MatrixError
from ranvier.spec.redaction import redact
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.storage.job_leases import Transactions
from ranvier.storage.redaction_retention import RedactedEvent, RedactionRetentionStore

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_S: Final = 300.0
_AT_ONCE: Final = 100
_PAUSE_S: Final = 0.02

# The rules that judge later events read these as they were sent.
_KEPT: Final = frozenset(
    {"m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.third_party_invite"}
)


class RedactionRetention:
    """Replace stored events by their redacted forms, ``retention_ms`` after the redaction (None: never).

    How old a redaction is is told by when the log had come to it, which nobody outside can choose.
    """

    def __init__(self, *, store: RedactionRetentionStore, retention_ms: int | None) -> None:
        self._store = store
        self._retention_ms = retention_ms

    async def run(self, transactions: Transactions) -> None:
        """Sweep for ever; without a retention period, never."""
        while self._retention_ms is not None:
            try:
                await self.sweep(transactions, self._retention_ms)
            except MatrixError as error:
                logger.warning("Redacted events can not be replaced now: %s", error.message)
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def sweep(self, transactions: Transactions, retention_ms: int) -> None:
        """Replace all that was redacted long enough ago."""
        await self._store.note_time()
        upto = await self._store.reached(retention_ms)
        after = await self._store.progress()
        while upto is not None and after < upto:
            found, done = await self._store.redacted(after, upto, _AT_ONCE)
            pdus = [(event.event_nid, pdu) for event in found if (pdu := _redacted(event)) is not None]
            async with transactions() as connection:
                await self._store.replace(connection, pdus, done)
            after = done
            await asyncio.sleep(_PAUSE_S)


def _redacted(event: RedactedEvent) -> bytes | None:
    """Give the redacted form; None for what is kept as it is."""
    if event.state_key is not None and event.type in _KEPT:
        return None
    pdu = orjson.loads(event.pdu)
    if event.type == MEMBER and pdu["content"].get("membership") in ("invite", "knock"):
        return None  # what who is invited is shown of the room comes with it
    return orjson.dumps(redact(pdu, ROOM_VERSIONS[event.version_id]))
