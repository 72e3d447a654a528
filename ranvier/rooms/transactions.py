"""Transaction ids of clients: a request that is repeated gets the first answer and does nothing."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from ranvier.log.append import Appender
from ranvier.log.tail import Tail
from ranvier.rooms.append_event import AlreadySent
from ranvier.rooms.draft import Txn
from ranvier.spec.errors import MatrixError
from ranvier.storage.transactions import TransactionStore


class Transactions:
    """Remember what was sent: lately in memory, longer in the database (written by the append itself).

    A repeat that comes while the first request is under way in this process waits for its outcome; in
    another process the append refuses it.
    """

    def __init__(
        self, *, store: TransactionStore, appender: Appender, tail: Tail, max_kept: int = 20_000
    ) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail
        self._max_kept = max_kept
        self._sent: OrderedDict[Txn, str] = OrderedDict()
        self._running: dict[Txn, asyncio.Future[str]] = {}

    async def once(self, txn: Txn, send: Callable[[], Awaitable[str]]) -> str:
        """Give the event id that ``send`` gives, or gave when the transaction was new.

        Raises what ``send`` raises; a refused request may be repeated and is tried anew.
        """
        event_id = self._sent.get(txn)
        if event_id is not None:
            return event_id
        running = self._running.get(txn)
        if running is not None:
            return await asyncio.shield(running)
        running = self._running[txn] = asyncio.get_running_loop().create_future()
        try:
            event_id = await self._send(txn, send)
        except BaseException as error:
            broken_off = MatrixError("M_UNKNOWN", 503, "The first request was broken off; try again")
            running.set_exception(error if isinstance(error, Exception) else broken_off)
            running.exception()  # mostly nobody else waits for it
            raise
        else:
            running.set_result(event_id)
            self._keep(txn, event_id)
            return event_id
        finally:
            del self._running[txn]

    async def _send(self, txn: Txn, send: Callable[[], Awaitable[str]]) -> str:
        try:
            return await send()
        except AlreadySent as already:
            return already.event_id
        except MatrixError as error:
            # What is refused now may have been sent before: the room, or the sender's rights, have changed.
            if error.status >= 500:
                raise
            known = await self._store.event_ids([txn])
            if (event_id := known.get(tuple(txn))) is None:
                raise
            # A worker that died may have told nobody of it.
            await self._tail.wait_for(await self._appender.note_others())
            return event_id

    def _keep(self, txn: Txn, event_id: str) -> None:
        self._sent[txn] = event_id
        if len(self._sent) > self._max_kept:
            self._sent.popitem(last=False)
