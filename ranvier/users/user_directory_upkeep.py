"""Keeping the user directory true to the log, in the background and in one process at a time.

The directory says how far it has followed, so a restart, or another process, goes on from there; doing a
piece twice does no harm, because names are read as they are and not as they were. A process that stood still
between reading and writing does harm, so it writes in transactions that are refused once another has the job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import orjson

from ranvier.log.tail import Tail
from ranvier.log.turns import Turns
from ranvier.rooms.room import MEMBER
from ranvier.spec.errors import MatrixError
from ranvier.spec.ids import localpart_of
from ranvier.spec.redaction import redact
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.storage.batches import write_each
from ranvier.storage.job_leases import Transactions
from ranvier.storage.user_directory import DirectoryEntry, Source, UserDirectoryStore
from ranvier.users.profiles import AVATAR_URL, DISPLAYNAME, PROFILE
from ranvier.users.search_words import fold, words_of
from ranvier.wire.log_rows import EventRow, Row

logger = logging.getLogger(__name__)

_STEP: Final = 20_000
_USERS_AT_ONCE: Final = 200
_IN_ONE_TURN: Final = 50
_GATHER_S: Final = 1.0
_POLL_S: Final = 5.0
_RETRY_S: Final = 30.0
_STATE: Final = frozenset({MEMBER, "m.room.join_rules", "m.room.history_visibility"})


class UserDirectoryUpkeep:
    """Bring what the log tells into the directory. ``run`` must be running in a task of the process."""

    def __init__(self, *, store: UserDirectoryStore, tail: Tail) -> None:
        self._store = store
        self._tail = tail
        self._wake = asyncio.Event()
        self._turns = Turns(1)
        tail.listen(self._apply, changes=True)

    async def run(self, transactions: Transactions) -> None:
        """Follow the log for ever."""
        while True:
            try:
                await self.catch_up(transactions)
            except MatrixError as error:
                logger.warning("The user directory can not be brought up to date now: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                # Making an account is no row of the log: looked for now and then.
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
                await asyncio.sleep(_GATHER_S)  # changes mostly come several at a time
            except TimeoutError:
                pass

    async def catch_up(self, transactions: Transactions) -> None:
        """Bring the directory up to where the log is."""
        self._wake.clear()
        while new := await self._store.new_accounts():
            await self._renew(transactions, new)
            async with transactions() as connection:
                await self._store.forget_new(connection, new)
        after, head = await self._store.progress(), self._tail.pos
        while after < head:
            upto = min(after + _STEP, head)
            await self._step(transactions, after, upto)
            after = upto

    async def _step(self, transactions: Transactions, after: int, upto: int) -> None:
        rooms = await self._store.changed_rooms(after, upto)
        unknown = [room.room_nid for room in rooms if room.unknown]
        users = await self._store.changed_users(after, upto, unknown)
        await self._renew(transactions, users | await self._redacted(after, upto))
        opened = [room.room_nid for room in rooms if room.rules or room.unknown]
        are_open = await self._are_open(opened) if opened else {}
        async with transactions() as connection:
            await self._store.advance(connection, upto, are_open)

    async def _redacted(self, after: int, upto: int) -> set[str]:
        """Give the users whose member events were redacted: names of other servers' users are from there."""
        redacted = {
            event_id for pdu in await self._store.redactions(after, upto) for event_id in _targets(pdu)
        }
        return await self._store.members(list(redacted)) if redacted else set()

    async def _are_open(self, room_nids: Sequence[int]) -> dict[int, bool]:
        """Tell of rooms whether anybody may join or read them."""
        found = dict.fromkeys(room_nids, False)
        for room_nid, pdu in await self._store.rules(room_nids):
            content = orjson.loads(pdu)["content"]
            if content.get("join_rule") == "public" or content.get("history_visibility") == "world_readable":
                found[room_nid] = True
        return found

    async def _renew(self, transactions: Transactions, user_ids: Iterable[str]) -> None:
        """Write the entries of users anew."""
        wanted = list(user_ids)
        for start in range(0, len(wanted), _USERS_AT_ONCE):
            # Other servers' users are called whatever they like: one of them must not keep out the others.
            await write_each(partial(self._write, transactions), wanted[start : start + _USERS_AT_ONCE])

    async def _write(self, transactions: Transactions, user_ids: Sequence[str]) -> None:
        sources = await self._store.sources(user_ids)
        entries: dict[str, DirectoryEntry | None] = {}
        async for some in self._turns.slices(sources, _IN_ONE_TURN):
            entries.update({source.user_id: _entry(source) for source in some})
        async with transactions() as connection:
            await self._store.put(
                connection,
                [entry for entry in entries.values() if entry is not None],
                [user_id for user_id, entry in entries.items() if entry is None],
            )

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if isinstance(row, EventRow):
                if row.redacts is not None or any(type_ in _STATE for type_, _ in row.state_changes):
                    self._wake.set()
            elif row.kind == PROFILE:
                self._wake.set()


def _entry(source: Source) -> DirectoryEntry | None:
    """Make the entry of a user; None for who is not in the directory."""
    if source.deactivated or (not source.has_account and source.pdu is None):
        return None
    fields = _fields(source)
    name, avatar = _text(fields.get(DISPLAYNAME)), _text(fields.get(AVATAR_URL))
    return DirectoryEntry(
        user_id=source.user_id,
        display_name=name,
        avatar_url=avatar,
        name_key=" ".join(fold(name or "")),
        local_key=" ".join(fold(localpart_of(source.user_id))),
        words=" ".join(words_of(source.user_id, name or "")),
    )


def _targets(pdu: bytes) -> list[str]:
    """Give what a redaction may be about: up to room version 10 it says so beside the content."""
    redaction = orjson.loads(pdu)
    targets = (redaction.get("redacts"), redaction["content"].get("redacts"))
    return [target for target in targets if isinstance(target, str) and "\0" not in target]


def _fields(source: Source) -> dict[str, Any]:
    if source.pdu is None:
        return dict(orjson.loads(source.document)) if source.document else {}
    pdu = orjson.loads(source.pdu)
    if source.redacted:
        assert source.version is not None
        pdu = redact(pdu, ROOM_VERSIONS[source.version])
    return dict(pdu["content"])


def _text(value: Any) -> str | None:
    # Other servers' events hold whatever they like; PostgreSQL's text holds no NUL.
    return value.replace("\0", "") or None if isinstance(value, str) else None
