"""``POST /user_directory/search`` through the whole server."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from tests.postgres import private_folder
from tests.server.http_client import HttpClient, Refused
from tests.server.process import ServerProcess


async def _search(client: HttpClient, term: str, **more: Any) -> Any:
    return await client.post("/v3/user_directory/search", {"search_term": term, **more})


async def _found(client: HttpClient, term: str, user: HttpClient, name: str | None) -> None:
    """Wait until a user is found under a name, or (None) no longer at all."""
    async with asyncio.timeout(20):
        while True:
            results = (await _search(client, term))["results"]
            mine = [it for it in results if it["user_id"] == user.user_id]
            if [it.get("display_name") for it in mine] == ([] if name is None else [name]):
                return
            await asyncio.sleep(0.05)


async def test_a_new_name_is_found_and_a_deactivated_user_is_not(users: list[HttpClient]) -> None:
    """People could not be found by the name that they gave themselves, or after they are gone."""
    alice, bob, _ = users
    await bob.create_room()
    await bob.put(f"/v3/profile/{quote(bob.user_id)}/displayname", {"displayname": "Bertrand Çelik"})
    await _found(alice, "bert celik", bob, "Bertrand Çelik")
    await bob.put(f"/v3/profile/{quote(bob.user_id)}/displayname", {"displayname": "Robert"})
    await _found(alice, "rob", bob, "Robert")
    assert (await _search(alice, "celik")) == {"limited": False, "results": []}
    assert (await _search(alice, "rob", limit=0))["results"] == []
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": bob.user_id},
        "password": "a long password",
    }
    await bob.post("/v3/account/deactivate", {"auth": auth})
    await _found(alice, "rob", bob, None)


async def test_wrong_searches(users: list[HttpClient]) -> None:
    """A client with a mistake in it would get a server error."""
    for body in (
        {},
        {"search_term": 7},
        {"search_term": "x", "limit": "y"},
        {"search_term": "x", "limit": -1},
    ):
        with pytest.raises(Refused) as refused:
            await users[0].post("/v3/user_directory/search", body)
        assert (refused.value.status, refused.value.errcode) == (400, "M_BAD_JSON")


async def test_searches_are_limited() -> None:
    """One client could keep the database busy with searches."""
    settings = {"rc_user_directory": {"per_second": 0.01, "burst_count": 2}}
    with private_folder() as folder:
        server = ServerProcess(folder, settings)
        try:
            await server.start()
            async with HttpClient(server.url) as client:
                await client.register()
                for _ in range(2):
                    await _search(client, "x")
                with pytest.raises(Refused) as refused:
                    await _search(client, "x")
        finally:
            await server.stop()
    assert (refused.value.status, refused.value.errcode) == (429, "M_LIMIT_EXCEEDED")
    assert refused.value.body["retry_after_ms"] > 0
