"""What happens in a seeded room: how it is made, and an endless conversation."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from random import Random
from typing import Any

from bench.seed.plan import PlannedRoom
from ranvier.rooms.presets import PRESETS, default_power_levels
from ranvier.spec.room_versions import RoomVersion

_TEXT = (
    "nerve signal node leap axon sheath pulse along fast slow the a of and between from to over under after "
    "before when where who why morning evening meeting lunch train paper draft review cable tea answer"
)
_WORDS = _TEXT.split()
_RECENT = 30
_STATE_SHARE = 0.02
_REACTIONS = ("👍", "🎉", "❤️", "😄")


@dataclass(frozen=True)
class Step:
    """One event that is to be sent; a state event has a state key."""

    sender: str
    type: str
    content: dict[str, Any]
    state_key: str | None = None


# What is sent back in is the ID of the event that the step became.
Life = Generator[Step, str, None]


def life_of(room: PlannedRoom, version: RoomVersion) -> Life:
    """Give what happens in a room, one step after another, without end; the same for the same room.

    In a room that was there before nobody comes or goes and no new kind of state appears, so that its
    state stays as large as it was.
    """
    random = Random(room.number)
    here = list(room.members)
    if room.room_id is None:
        yield from _opening(room, version)
    yield from _conversation(random, here, settled=room.room_id is not None)


def _opening(room: PlannedRoom, version: RoomVersion) -> Life:
    creator, preset = room.members[0], PRESETS["public_chat"]
    # The room's ID is the hash of this event: rooms that one user makes in one millisecond must differ in it.
    create: dict[str, Any] = {"room_version": version.identifier, "seeded": room.number}
    if version.creator_in_content:
        create["creator"] = creator
    yield Step(creator, "m.room.create", create, "")
    yield _member(creator, "join")
    yield Step(creator, "m.room.power_levels", default_power_levels(version, creator, (), preset), "")
    for type_, content in preset.state:
        yield Step(creator, type_, content, "")
    yield Step(creator, "m.room.name", {"name": f"Seeded room {room.number}"}, "")
    for user in room.members[1:]:
        yield _member(user, "join")


def _conversation(random: Random, here: list[str], *, settled: bool) -> Life:
    creator, away = here[0], list[str]()
    recent: deque[str] = deque(maxlen=_RECENT)
    count = 0
    while True:
        count += 1
        if random.random() >= _STATE_SHARE:
            event_id = yield Step(random.choice(here), *_message(random, recent))
            recent.append(event_id)
        elif settled or random.random() < 0.3 or len(here) + len(away) < 2:
            yield Step(creator, "m.room.name", {"name": f"Talk number {count}"}, "")
        elif away:
            here.append(away.pop())
            yield _member(here[-1], "join")
        else:
            away.append(here.pop(random.randrange(1, len(here))))
            yield _member(away[-1], "leave")


def _member(user: str, membership: str) -> Step:
    return Step(user, "m.room.member", {"membership": membership, "displayname": user[1:8]}, user)


def _message(random: Random, recent: deque[str]) -> tuple[str, dict[str, Any]]:
    content: dict[str, Any] = {"msgtype": "m.text", "body": _sentence(random)}
    kind = random.random()
    if kind > 0.3 or not recent:
        return "m.room.message", content
    target = random.choice(recent)
    if kind < 0.12:
        relation = {"rel_type": "m.annotation", "event_id": target, "key": random.choice(_REACTIONS)}
        return "m.reaction", {"m.relates_to": relation}
    if kind < 0.16:
        relation = {"rel_type": "m.replace", "event_id": target}
        return "m.room.message", {**content, "m.new_content": content, "m.relates_to": relation}
    relation = {"rel_type": "m.thread", "event_id": recent[0]} if kind < 0.2 else {"rel_type": "m.reference"}
    return "m.room.message", {**content, "m.relates_to": {"event_id": target, **relation}}


def _sentence(random: Random) -> str:
    return " ".join(random.choices(_WORDS, k=min(60, 2 + int(random.expovariate(0.12)))))
