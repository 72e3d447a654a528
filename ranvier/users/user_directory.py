"""Searching for users by name."""

from __future__ import annotations

from typing import Final, NamedTuple

from ranvier.config.rooms import UserDirectoryConfig
from ranvier.rooms.memberships import Memberships
from ranvier.storage.user_directory import FoundUser, UserDirectoryStore, UserSearch
from ranvier.users.search_words import fold, query_of

MAX_LIMIT: Final = 50


class Results(NamedTuple):
    """Users in the order of their rank; ``limited`` says that there are more."""

    users: list[FoundUser]
    limited: bool


class UserDirectory:
    """Find users that somebody may know of.

    "the homeserver MUST at a minimum consider … users that share a room with the requesting user, users who
    are joined to rooms … that have a public join rule, … that have a world_readable history visibility".
    Source: client-server API, ``POST /user_directory/search``.
    """

    def __init__(
        self,
        *,
        store: UserDirectoryStore,
        memberships: Memberships,
        config: UserDirectoryConfig,
        server_name: str,
    ) -> None:
        self._store = store
        self._memberships = memberships
        self._config = config
        self._domain = f":{server_name}"

    async def search(self, user_id: str, term: str, limit: int) -> Results:
        """Find users other than the one who asks; at most ``MAX_LIMIT``."""
        query, limit = query_of(term), min(limit, MAX_LIMIT)
        if not self._config.enabled or not query:
            return Results([], False)
        found = await self._store.search(
            UserSearch(
                query=query,
                key=" ".join(fold(term)),
                user_id=term.strip(),
                domain=self._domain,
                searcher=user_id,
                with_remote=not self._config.exclude_remote_users,
                prefer_local=self._config.prefer_local_users,
                with_locked=self._config.show_locked_users,
                limit=limit + 1,
            ),
            None if self._config.search_all_users else await self._rooms(user_id),
        )
        return Results(found[:limit], len(found) > limit)

    async def _rooms(self, user_id: str) -> list[int]:
        memberships = await self._memberships.of(user_id)
        return [m.room_nid for m in memberships.values() if m.membership == "join"]
