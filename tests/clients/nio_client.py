"""Drive matrix-nio with encryption: a device that syncs in the background and remembers what it saw."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from nio import (
    AsyncClient,
    AsyncClientConfig,
    Event,
    LoginResponse,
    MegolmEvent,
    ReceiptEvent,
    RedactionEvent,
    RegisterResponse,
    RoomCreateResponse,
    RoomSendResponse,
    SyncResponse,
    ToDeviceEvent,
    TypingNoticeEvent,
)
from nio.crypto import OlmDevice
from nio.responses import Response

from tests.clients.homeserver import Homeserver

T = TypeVar("T")
WAIT_S = 30
POLL_MS = 20_000


class NioDevice:
    """One device in matrix-nio, with its keys and sync token in a folder."""

    def __init__(self, homeserver: Homeserver, folder: Path, user_id: str) -> None:
        self._homeserver = homeserver
        self._folder = folder
        self.user_id = user_id
        self.password = ""
        self.events: list[tuple[str, Event]] = []
        self.typing: list[tuple[str, list[str]]] = []
        self.receipts: list[tuple[str, str, str, str]] = []
        self.to_device: list[ToDeviceEvent] = []
        self.tokens: list[str] = []
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self.client = self._new_client()

    def _new_client(self) -> AsyncClient:
        config = AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True, request_timeout=60)
        client = AsyncClient(self._homeserver.url, self.user_id, store_path=str(self._folder), config=config)
        client.add_event_callback(self._on_event, Event)
        client.add_ephemeral_callback(self._on_typing, TypingNoticeEvent)
        client.add_ephemeral_callback(self._on_receipt, ReceiptEvent)
        client.add_to_device_callback(self._on_to_device, ToDeviceEvent)
        client.add_response_callback(self._on_response)
        return client

    @classmethod
    async def register(cls, homeserver: Homeserver, folder: Path, localpart: str) -> "NioDevice":
        """Make an account and start its first device."""
        device = cls(homeserver, folder, f"@{localpart}:{homeserver.server_name}")
        device.password = secrets.token_hex(8)
        done = await device.client.register(localpart, device.password, "nio")
        assert isinstance(done, RegisterResponse), done
        return device

    async def log_in(self) -> None:
        """Start a further device of an account that exists."""
        answer = await self.client.login(self.password, "nio")
        assert isinstance(answer, LoginResponse), answer

    # ---- what was seen ----

    async def _note(self, note: Callable[[], None]) -> None:
        async with self._changed:
            note()
            self._changed.notify_all()

    async def _on_event(self, room: Any, event: Event) -> None:
        await self._note(lambda: self.events.append((room.room_id, event)))

    async def _on_typing(self, room: Any, event: TypingNoticeEvent) -> None:
        await self._note(lambda: self.typing.append((room.room_id, list(event.users))))

    async def _on_receipt(self, room: Any, event: ReceiptEvent) -> None:
        seen = [(room.room_id, r.event_id, r.user_id, r.receipt_type) for r in event.receipts]
        await self._note(lambda: self.receipts.extend(seen))

    async def _on_to_device(self, event: ToDeviceEvent) -> None:
        await self._note(lambda: self.to_device.append(event))

    async def _on_response(self, response: Response) -> None:
        token = [response.next_batch] if isinstance(response, SyncResponse) else []
        await self._note(lambda: self.tokens.extend(token))

    async def until(self, look: Callable[[], T | None], what: str) -> T:
        """Return what `look` finds as soon as it finds something; raises AssertionError after 30 s."""
        found: list[T] = []

        def there() -> bool:
            value = look()
            if value:
                found.append(value)
            return bool(value)

        try:
            async with self._changed:
                await asyncio.wait_for(self._changed.wait_for(there), WAIT_S)
        except TimeoutError:
            raise AssertionError(f"{self.user_id} did not see {what}; last {self.events[-8:]}") from None
        return found[-1]

    async def sees_message(self, event_id: str, body: str) -> Event:
        """Wait until the event is there and readable, with this text."""

        def look() -> Event | None:
            found = [event for _, event in self.events if event.event_id == event_id]
            return next((event for event in found if not isinstance(event, MegolmEvent)), None)

        event = await self.until(look, f"{event_id} ({body!r})")
        assert getattr(event, "body", None) == body
        return event

    async def sees_redaction(self, event_id: str) -> Event:
        """Wait until the redaction of this event has come."""
        return await self.until(
            lambda: next(
                (e for _, e in self.events if isinstance(e, RedactionEvent) and e.redacts == event_id), None
            ),
            f"redaction of {event_id}",
        )

    async def settled(self, room_id: str, members: list[str]) -> None:
        """Wait until the room has these members."""

        def look() -> bool:
            room = self.client.rooms.get(room_id)
            return room is not None and set(members) <= set(room.users)

        await self.until(look, f"{members} in {room_id}")

    def device_of(self, user_id: str, device_id: str) -> OlmDevice | None:
        """Return the device as this one knows it, or None while it does not."""
        known = self.client.device_store.active_user_devices(user_id)
        return next((device for device in known if device.id == device_id), None)

    # ---- life ----

    async def start(self) -> None:
        """Sync in the background until `stop` or `crash`; returns after the first answer."""
        count = len(self.tokens)
        self._task = asyncio.create_task(self.client.sync_forever(timeout=POLL_MS, full_state=False))
        await self.until(lambda: len(self.tokens) > count, "a first sync")

    async def crash(self) -> None:
        """Be gone in the middle of a long poll, without a word to the server."""
        await self._end_task()
        if self.client.client_session is not None:
            await self.client.client_session.close()

    async def revive(self) -> None:
        """Start anew from the folder: the old access token, keys and sync token."""
        old = self.client
        self.client = self._new_client()
        self.events, self.receipts, self.typing, self.to_device = [], [], [], []
        self.client.restore_login(self.user_id, old.device_id, old.access_token)
        assert self.client.loaded_sync_token == self.tokens[-1]
        await self.start()

    async def _end_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._task
            self._task = None

    async def close(self) -> None:
        """End the background sync and the connections."""
        await self._end_task()
        await self.client.close()

    # ---- acts ----

    async def create_encrypted_room(self, invite: list[str]) -> str:
        """Create a private room with encryption on."""
        encryption = {
            "type": "m.room.encryption",
            "state_key": "",
            "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        }
        answer = await self.client.room_create(invite=invite, initial_state=[encryption])
        assert isinstance(answer, RoomCreateResponse), answer
        return answer.room_id

    async def send(self, room_id: str, content: dict[str, Any], type_: str = "m.room.message") -> str:
        """Send an event, encrypted where the room is, and return its ID."""
        answer = await self.client.room_send(room_id, type_, content, ignore_unverified_devices=True)
        assert isinstance(answer, RoomSendResponse), answer
        return answer.event_id

    async def message(self, room_id: str, body: str, **content: Any) -> str:
        """Send a text message and return its event ID."""
        return await self.send(room_id, {"msgtype": "m.text", "body": body, **content})

    async def act(self, call: Awaitable[Any]) -> Any:
        """Await a call of `client` and fail on the server's error."""
        answer = await call
        assert not hasattr(answer, "status_code"), answer
        return answer
