"""Tags on rooms."""

from __future__ import annotations

import asyncio

from tests.account_features import ALICE, running_features

TAGS = f"/user/{ALICE}/rooms/!room:example.org/tags"


async def test_tags_are_put_changed_and_taken_away(database: str) -> None:
    """A room could not be made a favourite, or would stay one for ever."""
    async with running_features(database) as features:
        assert await features.ok("alice", "GET", TAGS) == {"tags": {}}
        await features.ok("alice", "PUT", f"{TAGS}/m.favourite", {"order": 0.25})
        await features.ok("alice", "PUT", f"{TAGS}/u.Sch%C3%B6n", {})
        await features.ok("alice", "PUT", f"{TAGS}/m.favourite", {"order": 1})
        assert await features.ok("alice", "GET", TAGS) == {
            "tags": {"m.favourite": {"order": 1}, "u.Schön": {}}
        }
        await features.ok("alice", "DELETE", f"{TAGS}/m.favourite")
        await features.ok("alice", "DELETE", f"{TAGS}/m.favourite")
        assert await features.ok("alice", "GET", TAGS) == {"tags": {"u.Schön": {}}}


async def test_tags_put_at_once_by_two_workers_are_all_kept(database: str) -> None:
    """Tags set on two devices at the same moment: one of them would be lost."""
    async with running_features(database) as one, running_features(database) as two:
        async with asyncio.TaskGroup() as tasks:
            for n in range(20):
                tags = (one if n % 2 else two).tags
                tasks.create_task(tags.put(ALICE, "!room:example.org", f"u.{n}", {}))
        assert len(await one.tags.of_room(ALICE, "!room:example.org")) == 20


async def test_refusals(database: str) -> None:
    """A stranger could see how somebody sorts their rooms, or a broken tag confuse all clients."""
    async with running_features(database) as features:
        assert await features.refused("bob", "GET", TAGS) == (403, "M_FORBIDDEN")
        assert await features.refused("bob", "PUT", f"{TAGS}/u.a", {}) == (403, "M_FORBIDDEN")
        assert await features.refused("bob", "DELETE", f"{TAGS}/u.a") == (403, "M_FORBIDDEN")
        for order in ("0.5", True, -0.1, 2, None):
            assert await features.refused("alice", "PUT", f"{TAGS}/u.a", {"order": order}) == (
                400,
                "M_BAD_JSON",
            )
        long = "%C3%A4" * 128
        big = {"x": "y" * 5000}
        assert await features.refused("alice", "PUT", f"{TAGS}/u.{long}", {}) == (400, "M_INVALID_PARAM")
        assert await features.refused("alice", "PUT", f"{TAGS}/u.a", big) == (
            413,
            "M_TOO_LARGE",
        )
        bad_room = f"/user/{ALICE}/rooms/nonsense/tags"
        assert await features.refused("alice", "GET", bad_room) == (400, "M_INVALID_PARAM")
