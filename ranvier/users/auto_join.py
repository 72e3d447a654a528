"""New users come into the rooms that the configuration names, which are made if they are missing.

Registering a user does not wait for it: what is to be done is in the table ``auto_joins``, written with the
account. Source: Synapse's configuration, ``auto_join_rooms`` and what stands with it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from ranvier.config.accounts import AutoJoinConfig
from ranvier.log.clock import Clock
from ranvier.rooms.aliases import Aliases
from ranvier.rooms.create import CreateRoom, RoomCreator
from ranvier.rooms.membership import Membership
from ranvier.rooms.rooms import Rooms
from ranvier.spec.errors import MatrixError, not_found
from ranvier.spec.ids import domain_of, localpart_of
from ranvier.storage.accounts import Account
from ranvier.storage.auto_joins import AutoJoinStore
from ranvier.users.accounts import Accounts
from ranvier.users.requester import Requester

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0
"""How often is looked for users whom another process left, or whom the command line made."""
_AGAIN_MS: Final = 20_000
_MOST_MS: Final = 300_000
_AT_ONCE: Final = 16
_MADE_ELSEWHERE_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.1


class AutoJoin:
    """Join new users to rooms. ``run`` is to run always, in every process; ``new_users`` makes it look.

    Any number of processes may do it: a user is taken by one of them, and an alias can be claimed for a new
    room by one alone.
    """

    def __init__(
        self,
        *,
        config: AutoJoinConfig,
        server_name: str,
        store: AutoJoinStore,
        accounts: Accounts,
        rooms: Rooms,
        aliases: Aliases,
        membership: Membership,
        room_creator: RoomCreator,
        clock: Clock,
        new_users: asyncio.Event,
    ) -> None:
        self._config = config
        self._server_name = server_name
        self._store = store
        self._accounts = accounts
        self._rooms = rooms
        self._aliases = aliases
        self._membership = membership
        self._room_creator = room_creator
        self._clock = clock
        self._making = asyncio.Lock()
        self._new_users = new_users
        host = config.mxid_localpart
        self._host_id = None if host is None else f"@{host}:{server_name}"

    async def run(self) -> None:
        """Join users, those whom an earlier run left first; for ever (without such rooms, not at all)."""
        while self._config.rooms:
            try:
                while await self._join_some():
                    pass
            except MatrixError as error:
                logger.warning("New users can not be joined to their rooms now: %s", error.message)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._new_users.wait()
            except TimeoutError:
                pass
            self._new_users.clear()

    async def _join_some(self) -> bool:
        """Join some users; True if there may be more."""
        users = await self._store.take(
            self._clock.now_ms(), again_ms=_AGAIN_MS, most_ms=_MOST_MS, limit=_AT_ONCE
        )
        async with asyncio.TaskGroup() as tasks:
            for user_id in users:
                tasks.create_task(self._settle(user_id))
        return len(users) == _AT_ONCE

    async def _settle(self, user_id: str) -> None:
        try:
            await self._join_all(user_id)
            await self._store.done(user_id)
        except MatrixError as error:
            logger.warning("%s is not in all rooms yet; it is tried again: %s", user_id, error.message)
        except Exception:
            # One user or room that cannot be worked with must not end the server.
            logger.exception("Joining %s to rooms failed", user_id)

    async def _join_all(self, user_id: str) -> None:
        """Join a user to every room. Raises 429 and 503 where trying again later may help."""
        user = await self._accounts.get(user_id)
        if user is None or user.deactivated or (user.is_guest and not self._config.for_guests):
            return
        later: list[MatrixError] = []
        for alias in self._config.rooms:
            try:
                await self._join(user, alias)
            except MatrixError as error:
                if error.status in (429, 503):
                    later.append(error)
                else:
                    logger.warning("%s is not joined to %s: %s", user_id, alias, error.message)
        if later:
            raise later[0]

    async def _join(self, user: Account, alias: str) -> None:
        room_id = await self._room(user, alias)
        room = await self._rooms.get(room_id)
        if room.membership_of(user.user_id) == "join":
            return
        # "The user id is also used to invite new users to any auto-join rooms which are set to invite-only."
        if self._host_id not in (None, user.user_id) and room.join_rule != "public":
            await self._membership.change(await self._host(), room_id, user.user_id, "invite")
        await self._membership.change(_acting(user), room_id, user.user_id, "join")

    async def _host(self) -> Requester:
        """Give the user who makes rooms and invites. Raises 503: there may be one later."""
        assert self._host_id is not None
        host = await self._accounts.get(self._host_id)
        if host is None or host.deactivated:
            raise _later(f"auto_join_mxid_localpart: there is no user {self._host_id}")
        # The administrator has it invite, whoever else may not.
        return Requester(host.user_id, is_admin=True, rate_limited=False)

    async def _room(self, user: Account, alias: str) -> str:
        """Give the room of an alias, made if it may be. Raises 404 ``M_NOT_FOUND``."""
        if (room_id := await self._existing(alias)) is not None:
            return room_id
        may = self._config.autocreate and domain_of(alias) == self._server_name
        if not may or (user.is_guest and self._host_id is None):
            raise not_found("there is no such room")
        async with self._making:
            return await self._existing(alias) or await self._make(user, alias)

    async def _existing(self, alias: str) -> str | None:
        try:
            return (await self._aliases.resolve(alias)).room_id
        except MatrixError as error:
            if error.status != 404:
                raise
            return None

    async def _make(self, user: Account, alias: str) -> str:
        """Make the room, or wait for another process that is just doing it."""
        # "If this is not provided then the initial user account that registers will be used"
        creator = _acting(user) if self._host_id is None else await self._host()
        preset = self._config.preset
        # "an invitation is required to join this room and the invitee is assigned a power level"
        invited = [user.user_id] if preset != "public_chat" and creator.user_id != user.user_id else []
        # "If false, users from other homeservers are prevented from joining these rooms."
        content: dict[str, Any] = {} if self._config.federated else {"m.federate": False}
        request = CreateRoom(
            room_alias_name=localpart_of(alias), preset=preset, creation_content=content, invite=invited
        )
        try:
            return await self._room_creator.create(creator, request)
        except MatrixError as error:
            if error.errcode != "M_ROOM_IN_USE":
                raise
        waited_s = 0.0
        while waited_s < _MADE_ELSEWHERE_S:
            await asyncio.sleep(_LOOK_AGAIN_S)
            waited_s += _LOOK_AGAIN_S
            if (room_id := await self._existing(alias)) is not None:
                return room_id
        raise _later(f"{alias} is claimed for a room that is not made yet")


def _acting(user: Account) -> Requester:
    return Requester(user.user_id, is_guest=user.is_guest, is_admin=user.is_admin, rate_limited=False)


def _later(message: str) -> MatrixError:
    return MatrixError("M_UNKNOWN", 503, message)
