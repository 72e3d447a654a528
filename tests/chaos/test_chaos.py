"""Faults of every kind while twenty people talk through four workers."""

from __future__ import annotations

from typing import Any

from tests.chaos.storm import storm

SEED = 3
FAULTS = (
    *("worker killed",) * 8,  # each of four twice
    *("worker killed in a commit",) * 2,
    "worker frozen",
    "worker added and drained",
    "rooms written by two",
    "Redis killed",
    "Redis emptied",
    "Redis paused",
    "PostgreSQL restarted",
    "configuration read again",
    "workers restarted one by one",
)


async def test_people_who_talk_notice_nothing_but_a_repeated_request(record_property: Any) -> None:
    """Messages would vanish, come twice or in another order, or people would have to log in again."""
    async with storm(SEED, pause_s=10.0, watch_s=0.5) as made:
        for name in FAULTS:
            await made.strike(name)
    record_property("summary", made.summary())
