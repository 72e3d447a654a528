"""Devices: what a user is logged in with."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Final

from ranvier.log.append import Appender
from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError, forbidden, invalid_param, not_found
from ranvier.spec.ids import fits
from ranvier.storage.devices import Device, DeviceStore, Sighting
from ranvier.users.access_tokens import revocations
from ranvier.users.edits import Edits
from ranvier.wire.log_rows import LogRow

MAX_DISPLAY_NAME: Final = 255
_NEW_ID_LENGTH: Final = 10


def check_device_id(device_id: str) -> str:
    """Give ``device_id`` back if a device may be called so, or raise 400 ``M_INVALID_PARAM``."""
    if not device_id or device_id == "*" or not fits(device_id):
        raise invalid_param("A device ID has 1 to 255 bytes, and is not *")
    return device_id


def check_display_name(name: str) -> str:
    """Give ``name`` back, or raise 400 ``M_TOO_LARGE`` past ``MAX_DISPLAY_NAME`` characters."""
    if len(name) > MAX_DISPLAY_NAME:
        raise MatrixError("M_TOO_LARGE", 400, f"A device name has at most {MAX_DISPLAY_NAME} characters")
    return name


class Devices:
    """Make, list, rename and delete devices."""

    def __init__(self, *, store: DeviceStore, appender: Appender, tail: Tail) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail
        self._edits = Edits()

    async def ensure(self, user_id: str, device_id: str | None, display_name: str | None) -> str:
        """Make a device, or find the one of that id, and give its id; without an id a new one is chosen.

        The name is ignored for a device that exists. Raises 400 ``M_INVALID_PARAM`` for an id that no
        device can have, 403 ``M_FORBIDDEN`` for "the same as a cross-signing key ID". Source: client-server
        API, "POST /login".
        """
        if device_id is not None:
            check_device_id(device_id)
        if display_name is not None:
            check_display_name(display_name)
        while True:
            chosen = device_id if device_id is not None else _new_device_id()
            outcome = await self._store.ensure(user_id, chosen, display_name)
            if outcome == "made" or (outcome == "known" and device_id is not None):
                return chosen
            if device_id is not None:
                raise forbidden("This device ID is the public key of a cross-signing key")

    async def create(self, user_id: str, device_id: str, display_name: str | None) -> bool:
        """Make the device of an application service's user; False if it exists."""
        check_device_id(device_id)
        if display_name is not None:
            check_display_name(display_name)
        outcome = await self._store.ensure(user_id, device_id, display_name)
        if outcome == "taken":
            raise forbidden("This device ID is the public key of a cross-signing key")
        return outcome == "made"

    async def of_user(self, user_id: str) -> list[Device]:
        """Give all devices of a user, oldest first."""
        return await self._store.of_user(user_id)

    async def get(self, user_id: str, device_id: str) -> Device:
        """Give one device. Raises 404 ``M_NOT_FOUND``."""
        device = await self._store.get(user_id, device_id)
        if device is None:
            raise not_found("There is no such device")
        return device

    async def rename(self, user_id: str, device_id: str, display_name: str) -> None:
        """Give a device a name. Raises 404 ``M_NOT_FOUND``, and what ``check_display_name`` raises."""
        check_display_name(display_name)
        device = await self.get(user_id, device_id)
        if device.display_name == display_name:
            return
        has_keys = (await self._store.have_keys(user_id, [device_id])).get(device_id, False)
        await self._append(
            [_row(user_id, device_id, "renamed", shown=has_keys, body=display_name.encode("utf-8"))]
        )

    async def delete(self, user_id: str, device_ids: Sequence[str]) -> None:
        """Delete devices with all that is theirs: access tokens, keys, messages; unknown ones are ignored."""
        wanted = list(dict.fromkeys(device_ids))

        async def edit() -> None:
            keys = await self._store.have_keys(user_id, wanted)
            gone = [
                _row(user_id, device_id, "deleted", shown=has, key2=None if has else "keyless")
                for device_id, has in keys.items()
            ]
            sessions = sorted({*keys, *await self._store.have_tokens(user_id, wanted)})
            # In one commit: without its tokens a device could not be deleted by a second attempt.
            if sessions:
                await self._append([*revocations(user_id, sessions), *gone], may_be_late=True)

        await self._edits.make(user_id, edit)

    async def delete_all(self, user_id: str, *, keep: str | None = None) -> None:
        """Delete all devices of a user but ``keep``."""
        await self.delete(user_id, [device_id for device_id in await self.ids(user_id) if device_id != keep])

    async def saw(self, sightings: Sequence[Sighting]) -> None:
        """Note when and where devices were seen last; at most one sighting for each device."""
        await self._store.saw(sightings)

    async def ids(self, user_id: str) -> list[str]:
        """Give the ids of all devices of a user."""
        return sorted((await self._store.ids_of([user_id])).get(user_id, ()))

    async def _append(self, rows: Sequence[LogRow], *, may_be_late: bool = False) -> None:
        await self._tail.wait_for(await self._appender.append_rows(rows, may_be_late=may_be_late))


def _row(
    user_id: str,
    device_id: str,
    change: str,
    *,
    shown: bool,
    key2: str | None = None,
    body: bytes | None = None,
) -> LogRow:
    # Others see a device by its keys: what happens to one without keys is nobody else's business.
    kind = "device_list" if shown else "device"
    return LogRow(kind=kind, user_id=user_id, device_id=device_id, key=change, key2=key2, body=body)


def _new_device_id() -> str:
    return "".join(secrets.choice(string.ascii_uppercase) for _ in range(_NEW_ID_LENGTH))
