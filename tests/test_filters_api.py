"""Uploading filters and naming them."""

from __future__ import annotations

import orjson
import pytest

from ranvier.spec.errors import MatrixError
from ranvier.spec.filters import NO_FILTER
from ranvier.storage.filters import FilterStore
from ranvier.users.filters import Filters
from tests.account_features import ALICE, BOB, running_features

FILTER = f"/user/{ALICE}/filter"


async def test_no_filter_takes_more_than_the_server_gives(database: str) -> None:
    """One client could ask for the whole history of every room with each sync."""
    async with running_features(database) as features:
        filters = Filters(store=FilterStore(features.core.database), timeline_limit=7)
        for limit, given in ((5, 5), (7, 7), (8, 7), (10_000, 7)):
            body = {"room": {"timeline": {"limit": limit, "types": ["m.room.message"]}}}
            stored = await features.ok("alice", "POST", f"/user/{ALICE}/filter", body)
            for wanted in (stored["filter_id"], orjson.dumps(body).decode()):
                timeline = (await filters.get(ALICE, wanted)).room.timeline
                assert (timeline.limit, timeline.types) == (given, ("m.room.message",))
        assert (await filters.get(ALICE, None)).room.timeline.limit is None


async def test_a_filter_is_stored_once_and_kept(database: str) -> None:
    """A client that was restarted would sync by another filter than the one it uploaded."""
    definition = {"room": {"timeline": {"limit": 7}, "org.example.unknown": 1.5}, "presence": {"types": []}}
    async with running_features(database) as features:
        filter_id = (await features.ok("alice", "POST", FILTER, definition))["filter_id"]
        again = dict(reversed(definition.items()))
        assert (await features.ok("alice", "POST", FILTER, again))["filter_id"] == filter_id
    async with running_features(database) as features:
        assert await features.ok("alice", "GET", f"{FILTER}/{filter_id}") == definition
        parsed = await features.filters.get(ALICE, filter_id)
        assert parsed.room.timeline.limit == 7
        assert await features.filters.get(ALICE, filter_id) is parsed
        with pytest.raises(MatrixError) as caught:
            await features.filters.get(BOB, filter_id)
        assert (caught.value.status, caught.value.errcode) == (400, "M_INVALID_PARAM")


async def test_inline_filters(database: str) -> None:
    """A client that sends its filter with each sync would be refused, or not heeded."""
    async with running_features(database) as features:
        inline = orjson.dumps({"room": {"timeline": {"limit": 3}}}).decode()
        assert (await features.filters.get(ALICE, inline)).room.timeline.limit == 3
        assert await features.filters.get(ALICE, None) is NO_FILTER
        assert await features.filters.get(ALICE, "") is NO_FILTER
        for broken, errcode in (
            ("{", "M_NOT_JSON"),
            ('{"room":1}', "M_BAD_JSON"),
            ('{"a":' * 5000 + "1" + "}" * 5000, "M_BAD_JSON"),
            ("0x1", "M_INVALID_PARAM"),
            ("9" * 30, "M_INVALID_PARAM"),
        ):
            with pytest.raises(MatrixError) as caught:
                await features.filters.get(ALICE, broken)
            assert (caught.value.status, caught.value.errcode) == (400, errcode)


async def test_refusals(database: str) -> None:
    """Others could read somebody's filters, or fill the database with them."""
    async with running_features(database) as features:
        assert await features.refused("bob", "POST", FILTER, {}) == (403, "M_FORBIDDEN")
        assert await features.refused("bob", "GET", f"{FILTER}/1") == (403, "M_FORBIDDEN")
        assert await features.refused("alice", "GET", f"{FILTER}/987654") == (404, "M_NOT_FOUND")
        assert await features.refused("alice", "GET", f"{FILTER}/abc") == (404, "M_NOT_FOUND")
        assert await features.refused("alice", "POST", FILTER, {"room": []}) == (400, "M_BAD_JSON")
        big = {"x": "y" * 70_000}
        assert await features.refused("alice", "POST", FILTER, big) == (413, "M_TOO_LARGE")


async def test_what_is_kept_of_inline_filters_is_bounded(database: str) -> None:
    """Somebody who sends another inline filter with each request would fill the server's memory."""
    async with running_features(database) as features:
        filters = features.filters
        filters._max_bytes = 20_000
        for n in range(200):
            await filters.get(ALICE, orjson.dumps({"n": n, "x": "y" * 500}).decode())
        assert filters._bytes <= 20_000
        assert 0 < len(filters._parsed) < 20
