"""Push rules through the API."""

from __future__ import annotations

import asyncio

from ranvier.spec.push_rule_edits import put_rule
from tests.account_features import ALICE, running_features

RULES = "/pushrules/global"
WORD = f"{RULES}/content/nocake"


async def test_a_rule_from_making_to_deleting(database: str) -> None:
    """A user could not make a rule, change it or get rid of it."""
    async with running_features(database) as features:
        await features.ok("alice", "PUT", WORD, {"pattern": "cake*lie", "actions": ["notify"]})
        assert await features.ok("alice", "GET", WORD) == {
            "rule_id": "nocake",
            "pattern": "cake*lie",
            "actions": ["notify"],
            "enabled": True,
            "default": False,
        }
        await features.ok("alice", "PUT", f"{WORD}/enabled", {"enabled": False})
        await features.ok("alice", "PUT", f"{WORD}/actions", {"actions": []})
        assert await features.ok("alice", "GET", f"{WORD}/enabled") == {"enabled": False}
        assert await features.ok("alice", "GET", f"{WORD}/actions") == {"actions": []}
        await features.ok(
            "alice", "PUT", f"{RULES}/content/other?before=nocake", {"pattern": "x", "actions": []}
        )
        assert [r["rule_id"] for r in await features.ok("alice", "GET", f"{RULES}/content/")] == [
            "other",
            "nocake",
        ]
    async with running_features(database) as features:
        assert (await features.ok("alice", "GET", WORD))["enabled"] is False
        await features.ok("alice", "DELETE", WORD)
        assert await features.refused("alice", "GET", WORD) == (404, "M_NOT_FOUND")


async def test_every_way_to_read_them_all(database: str) -> None:
    """A client that writes the path without the last slash would find no rules."""
    async with running_features(database) as features:
        all_rules = await features.ok("alice", "GET", "/pushrules/")
        assert await features.ok("alice", "GET", "/pushrules") == all_rules
        assert await features.ok("alice", "GET", f"{RULES}/") == all_rules["global"]
        assert await features.ok("alice", "GET", RULES) == all_rules["global"]
        assert await features.ok("alice", "GET", f"{RULES}/override") == all_rules["global"]["override"]
        conditions = [c for rule in all_rules["global"]["override"] for c in rule.get("conditions", [])]
        assert {"kind": "event_match", "key": "state_key", "pattern": ALICE} in conditions


async def test_refusals(database: str) -> None:
    """A client that asks for nonsense would not learn what is wrong with it."""
    async with running_features(database) as features:
        rule = {"pattern": "x", "actions": []}
        slash, enabled = f"{RULES}/content/a%2Fb", f"{WORD}/enabled"
        assert await features.refused("alice", "GET", "/pushrules/device/") == (400, "M_INVALID_PARAM")
        assert await features.refused("alice", "GET", f"{RULES}/nokind/") == (400, "M_INVALID_PARAM")
        assert await features.refused("alice", "PUT", f"{RULES}/nokind/a", rule) == (400, "M_INVALID_PARAM")
        assert await features.refused("alice", "PUT", f"{RULES}/content/.a", rule) == (400, "M_INVALID_PARAM")
        assert await features.refused("alice", "PUT", slash, rule) == (
            400,
            "M_INVALID_PARAM",
        )
        assert await features.refused("alice", "PUT", f"{WORD}?after=none", rule) == (400, "M_UNKNOWN")
        assert await features.refused("alice", "PUT", WORD, {}) == (400, "M_BAD_JSON")
        assert await features.refused("alice", "PUT", enabled, {"enabled": 1}) == (
            400,
            "M_BAD_JSON",
        )
        assert await features.refused("alice", "PUT", enabled, {"enabled": True}) == (
            404,
            "M_NOT_FOUND",
        )
        assert await features.refused("alice", "DELETE", WORD) == (404, "M_NOT_FOUND")
        assert await features.refused(None, "GET", "/pushrules/") == (401, "M_MISSING_TOKEN")
        assert await features.refused("alice", "POST", "/pushrules/", {}) == (405, "M_UNRECOGNIZED")


async def test_rules_made_at_once_by_two_workers_are_all_kept(database: str) -> None:
    """Rules made on two devices at the same moment: one of them would be lost."""
    async with running_features(database) as one, running_features(database) as two:
        async with asyncio.TaskGroup() as tasks:
            for n in range(20):
                rules = (one if n % 2 else two).push_rules
                tasks.create_task(
                    rules.edit(
                        ALICE,
                        lambda it, n=n: put_rule(it, "content", f"r{n}", {"pattern": f"w{n}", "actions": []}),
                    )
                )
        await two.core.tail.wait_for(one.core.tail.pos, 10)
        await one.core.tail.wait_for(two.core.tail.pos, 10)
        for features in (one, two):
            assert len((await features.push_rules.of(ALICE)).rules.content) == 20
