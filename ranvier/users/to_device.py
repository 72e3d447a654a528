"""Messages from device to device: sent once, kept until the device acknowledges them.

Source: client-server API, "Send-to-Device messaging".
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final
from weakref import WeakValueDictionary

import orjson

from ranvier.log.append import Appender
from ranvier.log.clock import Clock
from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError, invalid_param
from ranvier.spec.ids import check_event_type, check_user_id, domain_of, fits
from ranvier.storage.batches import write_each
from ranvier.storage.devices import DeviceStore
from ranvier.storage.log import AlreadyStored
from ranvier.storage.to_device import Message, ToDeviceStore
from ranvier.wire.log_rows import LogRow, Row

logger = logging.getLogger(__name__)

MAX_CONTENT_BYTES: Final = 64 * 1024
MAX_MESSAGES: Final = 10_000
MAX_TOTAL_BYTES: Final = 16 * 1024 * 1024
MESSAGES_PER_ANSWER: Final = 100
"""100 messages is recommended as a reasonable limit."""

_ALL_DEVICES: Final = "*"
_GATHER_S: Final = 0.2
_RETRY_S: Final = 1.0
_SWEEP_S: Final = 3600.0
_TRANSACTION_AGE_S: Final = 24 * 3600

Device = tuple[str, str]
"""User id and device id."""


class ToDevice:
    """Send messages to devices of this server."""

    def __init__(
        self,
        *,
        store: ToDeviceStore,
        devices: DeviceStore,
        appender: Appender,
        tail: Tail,
        server_name: str,
    ) -> None:
        self._store = store
        self._devices = devices
        self._appender = appender
        self._tail = tail
        self._server_name = server_name
        self._sending: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()

    async def send(
        self, sender: Device, event_type: str, txn_id: str, messages: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Send ``{user_id: {device_id: content}}``; the device id ``*`` means all devices of the user.

        A transaction id that the sender used before does nothing. Messages for devices that do not exist
        are dropped. Raises 400 ``M_INVALID_PARAM`` and 413 ``M_TOO_LARGE``.
        """
        check_event_type(event_type)
        if not fits(txn_id):
            raise invalid_param("A transaction ID has at most 255 bytes")
        key = (*sender, txn_id)
        lock = self._sending.get(key)
        if lock is None:
            lock = self._sending[key] = asyncio.Lock()
        async with lock:
            if await self._store.was_sent(*key):
                return
            rows = await self._rows(sender[0], event_type, messages)
            # In the same commit: it was sent, or it may be sent again. The row does not say whose it is in
            # `user_id`, since it is nothing to wake the sender for.
            rows.append(LogRow(kind="to_device_txn", key=sender[0], device_id=sender[1], key2=txn_id))
            try:
                pos = await self._appender.append_rows(rows, may_be_late=True)
            except AlreadyStored:
                return  # another process sent it at this very moment
        await self._tail.wait_for(pos)

    async def _rows(
        self, sender: str, event_type: str, messages: Mapping[str, Mapping[str, Any]]
    ) -> list[LogRow]:
        # Users of servers that can not be asked are left out, as they are in a query for keys.
        local = [u for u in messages if domain_of(check_user_id(u)) == self._server_name]
        known = await self._devices.ids_of(local)
        rows = []
        total = 0
        for user_id in local:
            for target, content in messages[user_id].items():
                body = _render(sender, event_type, content)
                devices = known.get(user_id, set())
                for device_id in sorted(devices) if target == _ALL_DEVICES else devices & {target}:
                    rows.append(LogRow(kind="to_device", user_id=user_id, device_id=device_id, body=body))
                    total += len(body)
                    if len(rows) > MAX_MESSAGES or total > MAX_TOTAL_BYTES:
                        raise _too_large("These are too many messages at once")
        return rows


def _render(sender: str, event_type: str, content: Any) -> bytes:
    body = orjson.dumps({"content": content, "sender": sender, "type": event_type})
    if len(body) > MAX_CONTENT_BYTES:
        raise _too_large(f"A message may have at most {MAX_CONTENT_BYTES} bytes")
    return body


def _too_large(message: str) -> MatrixError:
    return MatrixError("M_TOO_LARGE", 413, message)


class _Inbox:
    """What this process knows of the messages that wait for one device.

    ``acked`` is the newest token position that the device sent, ``oldest`` the position of a message before
    which none waits (0: none waits at all), ``held`` the last position that messages are held for. Until
    ``is_read`` the database may know of more.
    """

    __slots__ = ("acked", "held", "is_read", "oldest")

    def __init__(self) -> None:
        self.acked = self.oldest = self.held = 0
        self.is_read = False

    def note(self, pos: int) -> None:
        self.oldest = min(self.oldest or pos, pos)


class ToDeviceInboxes:
    """Give devices their messages, and remove those that they acknowledge.

    A device acknowledges an answer by the token that it sends next. An answer holds at most
    ``MESSAGES_PER_ANSWER``; where there are more, a row of kind ``to_device_held`` says after which one it
    ended, and its position, which lies after the answer's token, becomes that of the rest: so the token
    does not acknowledge them, and the next answer has them.

    What nobody sent anything to costs nothing: messages are found in the tail, and an inbox that is empty
    is known to be so. A device that goes back to an older token, or is new to this process, is looked up
    in the database. ``run`` must be running: it removes what was acknowledged, many devices at once.
    """

    def __init__(
        self,
        *,
        store: ToDeviceStore,
        appender: Appender,
        tail: Tail,
        clock: Clock,
        max_devices: int = 20_000,
    ) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail
        self._clock = clock
        self._max_devices = max_devices
        self._inboxes: OrderedDict[Device, _Inbox] = OrderedDict()
        self._acked: dict[Device, int] = {}
        self._wake = asyncio.Event()
        tail.listen(self._apply, changes=True)

    async def receive(self, device: Device, since: int, upto: int, *, in_tail: bool) -> list[bytes]:
        """Give the messages that ``since`` does not acknowledge, up to ``upto``, oldest first.

        ``since`` is 0 for a device that has no token. ``in_tail`` says that the tail held all after it.
        """
        inbox = self._inboxes.get(device)
        if inbox is not None and not since and inbox.is_read and not inbox.oldest:
            return []  # a client that begins anew, and nothing waits for it
        in_tail = in_tail and since >= self._tail.start  # or it was, and an inbox would seem to be empty
        if inbox is None or not inbox.is_read or not in_tail or since < inbox.acked or inbox.held > since:
            messages = await self._read(device, since)
        else:
            self._inboxes.move_to_end(device)
            inbox.acked = since
            if not inbox.oldest:
                return []
            messages = self._from_tail(device, inbox, since)
        return await self._cut(device, [message for message in messages if message.pos <= upto])

    def _from_tail(self, device: Device, inbox: _Inbox, since: int) -> list[Message]:
        messages = [
            Message(row.pos, row.body or b"")
            for row in self._tail.rows_of_user(device[0], since)
            if row.kind == "to_device" and row.device_id == device[1]
        ]
        if inbox.oldest <= since:
            self._acknowledge(device, since)
            inbox.oldest = messages[0].pos if messages else 0
        return messages

    async def _read(self, device: Device, since: int) -> list[Message]:
        # The inbox is there before the database is asked, so that it sees what comes meanwhile.
        inbox = self._inboxes.setdefault(device, _Inbox())
        if len(self._inboxes) > self._max_devices:
            self._inboxes.popitem(last=False)
        inbox.acked = max(inbox.acked, since)
        if inbox.acked:
            await self._store.acknowledge({device: inbox.acked})
            self._acked.pop(device, None)
        pending = await self._store.pending(*device, since, MESSAGES_PER_ANSWER + 1)
        inbox.held = max(inbox.held, pending.held)
        if pending.messages:
            inbox.note(pending.messages[0].pos)
        inbox.is_read = True
        return pending.messages

    async def _cut(self, device: Device, messages: Sequence[Message]) -> list[bytes]:
        shown = messages[:MESSAGES_PER_ANSWER]
        if len(messages) > len(shown):
            user_id, device_id = device
            held = LogRow(kind="to_device_held", user_id=user_id, device_id=device_id, key=str(shown[-1].pos))
            await self._tail.wait_for(await self._appender.append_rows([held]))
        return [message.body for message in shown]

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if not isinstance(row, LogRow) or row.user_id is None or row.device_id is None:
                continue
            inbox = self._inboxes.get((row.user_id, row.device_id))
            if inbox is None:
                continue
            if row.kind == "to_device":
                inbox.note(row.pos)
            elif row.kind == "to_device_held":
                inbox.held = row.pos
            elif row.key == "deleted":
                del self._inboxes[(row.user_id, row.device_id)]

    def _acknowledge(self, device: Device, since: int) -> None:
        self._acked[device] = max(since, self._acked.get(device, 0))
        self._wake.set()

    async def flush(self) -> None:
        """Remove what was acknowledged. Whatever it raises, that is still to be removed then."""
        acked, self._acked = self._acked, {}
        if not acked:
            return
        try:
            await write_each(lambda some: self._store.acknowledge(dict(some)), list(acked.items()))
        except Exception:
            for device, since in acked.items():
                self._acknowledge(device, since)
            raise

    async def run(self) -> None:
        """Remove what was acknowledged, and transaction ids of yesterday, for ever."""
        swept = self._clock.monotonic()
        while True:
            await self._wake.wait()
            self._wake.clear()
            # A moment's patience makes one commit for many devices.
            await asyncio.sleep(_GATHER_S)
            try:
                await self.flush()
                if self._clock.monotonic() - swept > _SWEEP_S:
                    swept = self._clock.monotonic()
                    await self._store.forget_transactions(_TRANSACTION_AGE_S)
            except MatrixError as error:
                logger.warning("Can not remove delivered messages: %s", error.message)
                await asyncio.sleep(_RETRY_S)
            except Exception:
                logger.exception("Can not remove delivered messages")
                await asyncio.sleep(_RETRY_S)
