"""The authorisation rules as tables: room versions, what the room is like, what is done, what follows."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from nacl.signing import SigningKey

from ranvier.spec.errors import AuthError
from ranvier.spec.event import Event, StateKey
from ranvier.spec.event_auth import auth_event_keys, check_auth, check_state_independent
from ranvier.spec.power_levels import PowerLevels
from ranvier.spec.room_versions import ROOM_VERSIONS, RoomVersion
from tests.spec.dag import make_event, user

State = dict[StateKey, Event]

YES = ""
"""The verdict "allowed"; any other is part of the message with which the event is refused."""


def versions(text: str) -> Iterator[RoomVersion]:
    """Read ``1-6,9`` and ``7-`` (to the newest)."""
    for part in text.split(","):
        first, dash, last = part.partition("-")
        for number in range(int(first), int(last or (12 if dash else first)) + 1):
            yield ROOM_VERSIONS[str(number)]


def room(version: RoomVersion, facts: str) -> State:
    """Make a state of facts: ``bob:join``, ``rules:public``, ``pl:bob=50,kick=75,events.m.room.topic=9``.

    alice is its creator and joined, unless said otherwise (``alice:leave``).
    """
    creator = {"creator": "@alice:hs"} if version.creator_in_content else {}
    made = [make_event(version, "create", "alice", "m.room.create", creator, state_key="")]
    for fact in ["alice:join", *facts.split()]:
        subject, _, value = fact.partition(":")
        if subject == "rules":
            content: dict[str, Any] = {"join_rule": value}
            made.append(make_event(version, "rules", "alice", "m.room.join_rules", content, state_key=""))
        elif subject == "pl":
            content = power_levels(value)
            made.append(make_event(version, "pl", "alice", "m.room.power_levels", content, state_key=""))
        else:
            who = user(subject)
            content = {"membership": value}
            made.append(
                make_event(version, f"member-{subject}", who, "m.room.member", content, state_key=who)
            )
    return {event.key: event for event in made}


def power_levels(text: str) -> dict[str, Any]:
    """Read ``bob=50,kick=75,events.m.room.topic=9``: names that are no property are users."""
    content: dict[str, Any] = {"users": {}}
    properties = ("users_default", "events_default", "state_default", "ban", "redact", "kick", "invite")
    for part in filter(None, text.split(",")):
        name, _, level = part.rpartition("=")
        scope, _, key = name.partition(".")
        if name in properties:
            content[name] = int(level)
        elif scope in ("events", "notifications"):
            content.setdefault(scope, {})[key] = int(level)
        else:
            content["users"][user(name)] = int(level)
    return content


MEMBERSHIPS = {"invites": "invite", "kicks": "leave", "unbans": "leave", "bans": "ban"}
OWN_MEMBERSHIPS = {"joins": "join", "leaves": "leave", "knocks": "knock"}


def action(version: RoomVersion, text: str) -> Event:
    """Read ``bob joins``, ``alice bans bob``, ``bob sends T``, ``bob sets T KEY``, ``bob levels PL``."""
    actor, verb, *rest = text.split()
    if verb in OWN_MEMBERSHIPS:
        content: dict[str, Any] = {"membership": OWN_MEMBERSHIPS[verb]}
        if rest:
            content["join_authorised_via_users_server"] = user(rest[0])
        return make_event(version, "it", actor, "m.room.member", content, state_key=user(actor))
    if verb in MEMBERSHIPS:
        content = {"membership": MEMBERSHIPS[verb]}
        return make_event(version, "it", actor, "m.room.member", content, state_key=user(rest[0]))
    if verb == "levels":
        content = power_levels(rest[0] if rest else "")
        return make_event(version, "it", actor, "m.room.power_levels", content, state_key="")
    state_key = None if verb == "sends" else rest[1] if len(rest) > 1 else ""
    return make_event(version, "it", actor, rest[0], {}, state_key=state_key)


def judge(event: Event, state: State) -> str:
    try:
        check_auth(event, state)
    except AuthError as error:
        return error.message
    return YES


JOINING = [
    ("1-", "rules:public", "bob joins", YES),
    ("1-", "rules:public bob:join", "bob joins", YES),
    ("1-", "rules:public bob:leave", "bob joins", YES),
    ("1-", "rules:public bob:ban", "bob joins", "banned"),
    ("1-", "", "bob joins", "not invited"),
    ("1-", "rules:invite", "bob joins", "not invited"),
    ("1-", "rules:invite bob:invite", "bob joins", YES),
    ("1-", "rules:invite bob:join", "bob joins", YES),
    ("1-", "rules:invite bob:leave", "bob joins", "not invited"),
    ("1-", "rules:invite bob:knock", "bob joins", "not invited"),
    ("1-", "rules:private bob:invite", "bob joins", "join rule 'private'"),
    ("1-", "rules:unheard-of bob:invite", "bob joins", "join rule 'unheard-of'"),
    ("1-6", "rules:knock bob:invite", "bob joins", "join rule 'knock'"),
    ("7-", "rules:knock bob:invite", "bob joins", YES),
    ("7-", "rules:knock", "bob joins", "not invited"),
    ("7-", "rules:knock bob:knock", "bob joins", "not invited"),
    ("1-7", "rules:restricted bob:invite", "bob joins", "join rule 'restricted'"),
    ("8-", "rules:restricted bob:invite", "bob joins", YES),
    ("8-", "rules:restricted bob:join", "bob joins", YES),
    ("8-", "rules:restricted", "bob joins", "nobody who may invite"),
    ("8-", "rules:restricted", "bob joins alice", YES),
    ("8-", "rules:restricted carol:join", "bob joins carol", YES),
    ("8-", "rules:restricted carol:join pl:invite=50", "bob joins carol", "nobody who may invite"),
    ("8-", "rules:restricted carol:join pl:invite=50,carol=50", "bob joins carol", YES),
    ("8-", "rules:restricted carol:leave pl:carol=50", "bob joins carol", "nobody who may invite"),
    ("8-", "rules:restricted bob:ban", "bob joins alice", "banned"),
    ("8-", "rules:invite", "bob joins alice", "not invited"),
    ("1-9", "rules:knock_restricted bob:invite", "bob joins", "join rule 'knock_restricted'"),
    ("10-", "rules:knock_restricted bob:invite", "bob joins", YES),
    ("10-", "rules:knock_restricted", "bob joins alice", YES),
    ("10-", "rules:knock_restricted", "bob joins", "nobody who may invite"),
]

KNOCKING = [
    ("1-6", "rules:knock", "bob knocks", "no membership 'knock'"),
    ("7-", "rules:knock", "bob knocks", YES),
    ("7-", "rules:knock bob:leave", "bob knocks", YES),
    ("7-", "rules:knock bob:knock", "bob knocks", YES),
    ("7-", "rules:knock bob:ban", "bob knocks", "cannot knock"),
    ("7-", "rules:knock bob:invite", "bob knocks", "cannot knock"),
    ("7-", "rules:knock bob:join", "bob knocks", "cannot knock"),
    ("7-", "rules:public", "bob knocks", "Nobody can knock"),
    ("7-", "", "bob knocks", "Nobody can knock"),
    ("7-9", "rules:knock_restricted", "bob knocks", "Nobody can knock"),
    ("10-", "rules:knock_restricted", "bob knocks", YES),
    ("8-", "rules:restricted", "bob knocks", "Nobody can knock"),
    ("7-", "rules:knock bob:knock", "bob leaves", YES),
    ("1-6", "bob:knock", "bob leaves", "not in the room"),
]

INVITING = [
    ("1-", "", "alice invites bob", YES),
    ("1-", "bob:leave", "alice invites bob", YES),
    ("1-", "bob:invite", "alice invites bob", YES),
    ("7-", "bob:knock", "alice invites bob", YES),
    ("1-", "bob:join", "alice invites bob", "already in the room"),
    ("1-", "bob:ban", "alice invites bob", "banned"),
    ("1-", "", "bob invites carol", "not in the room"),
    ("1-", "bob:join", "bob invites carol", YES),
    ("1-", "bob:join pl:invite=50", "bob invites carol", "Inviting needs power level 50"),
    ("1-", "bob:join pl:invite=50,bob=50", "bob invites carol", YES),
    ("1-", "bob:join pl:invite=50,bob=50", "bob sends m.room.third_party_invite", YES),
    ("1-", "bob:join pl:invite=51,bob=50", "bob sends m.room.third_party_invite", "Inviting needs"),
    ("1-", "bob:join pl:state_default=99", "bob sets m.room.third_party_invite token", YES),
    ("1-", "", "bob sets m.room.third_party_invite token", "not in the room"),
]

REMOVING = [
    ("1-", "bob:join", "bob leaves", YES),
    ("1-", "bob:invite", "bob leaves", YES),
    ("1-", "bob:leave", "bob leaves", "not in the room"),
    ("1-", "bob:ban", "bob leaves", "not in the room"),
    ("1-", "", "bob leaves", "not in the room"),
    ("1-", "bob:join pl:alice=100", "alice kicks bob", YES),
    ("1-", "bob:invite pl:alice=100", "alice kicks bob", YES),
    ("1-", "bob:join carol:join", "bob kicks carol", "Removing others needs power level 50"),
    ("1-", "bob:join carol:join pl:bob=50", "bob kicks carol", YES),
    ("1-", "bob:join carol:join pl:bob=50,carol=50", "bob kicks carol", "not below"),
    ("1-", "bob:join carol:join pl:bob=50,kick=51", "bob kicks carol", "needs power level 51"),
    ("1-", "bob:leave carol:join pl:bob=50", "bob kicks carol", "not in the room"),
    ("1-", "bob:join carol:ban pl:bob=50", "bob unbans carol", YES),
    ("1-", "bob:join carol:ban pl:bob=50,ban=51", "bob unbans carol", "Unbanning needs power level 51"),
    ("1-", "bob:join carol:ban pl:bob=50,kick=51", "bob unbans carol", "Removing others needs"),
    ("1-", "bob:join carol:join pl:bob=50", "bob bans carol", YES),
    ("1-", "bob:join pl:bob=50", "bob bans carol", YES),
    ("1-", "bob:join pl:bob=50,carol=50", "bob bans carol", "not below"),
    ("1-", "bob:join pl:bob=50,ban=51", "bob bans carol", "Banning needs power level 51"),
    ("1-", "bob:invite pl:bob=50", "bob bans carol", "not in the room"),
    ("1-11", "bob:join pl:alice=50,bob=100", "bob bans alice", YES),
    ("12", "bob:join pl:bob=100", "bob bans alice", "not below"),
    ("12", "bob:join pl:bob=9007199254740991", "bob kicks alice", "not below"),
]

SENDING = [
    ("1-", "bob:join", "bob sends m.room.message", YES),
    ("1-", "", "bob sends m.room.message", "not in the room"),
    ("1-", "bob:leave", "bob sends m.room.message", "not in the room"),
    ("1-", "bob:invite", "bob sends m.room.message", "not in the room"),
    ("1-", "bob:join pl:events_default=10", "bob sends m.room.message", "needs power level 10"),
    ("1-", "bob:join pl:events_default=10,bob=10", "bob sends m.room.message", YES),
    ("1-", "bob:join pl:events.m.room.message=10", "bob sends m.room.message", "needs power level 10"),
    ("1-", "bob:join pl:users_default=10,events.m.room.message=10", "bob sends m.room.message", YES),
    ("1-", "bob:join", "bob sets m.room.topic", "needs power level 50"),
    ("1-", "bob:join pl:", "bob sets m.room.topic", "needs power level 50"),
    ("1-", "bob:join pl:state_default=0", "bob sets m.room.topic", YES),
    ("1-", "bob:join pl:events.m.room.topic=0", "bob sets m.room.topic", YES),
    ("1-", "bob:join pl:state_default=0", "bob sets my.type @bob:hs", YES),
    ("1-", "bob:join pl:state_default=0", "bob sets my.type @alice:hs", "must be the sender's"),
    ("1-", "bob:join pl:state_default=0,bob=100", "bob sets my.type @alice:hs", "must be the sender's"),
    ("1-", "bob:join pl:state_default=0", "bob sets my.type key", YES),
    ("1-", "", "alice sets m.room.topic", YES),
    ("1-11", "pl:", "alice sets m.room.topic", "needs power level 50"),
    ("12", "pl:", "alice sets m.room.topic", YES),
    ("1-5", "bob:join", "bob sets m.room.aliases hs", YES),
    ("1-5", "", "bob sets m.room.aliases hs", YES),
    ("1-5", "bob:join", "bob sets m.room.aliases other", "own users"),
    ("1-5", "bob:join", "bob sends m.room.aliases", "own users"),
    ("6-", "bob:join", "bob sets m.room.aliases hs", "needs power level 50"),
    ("6-", "bob:join pl:bob=50", "bob sets m.room.aliases other", YES),
]

LEVELS = [
    # who may send any at all
    ("1-11", "", "alice levels alice=100", YES),
    ("1-11", "", "alice levels alice=200,ban=500", YES),
    ("12", "", "alice levels bob=100", YES),
    ("12", "", "alice levels alice=100", "has no stated power level"),
    ("1-", "bob:join pl:bob=49", "bob levels bob=49", "needs power level 50"),
    ("1-", "bob:join pl:bob=50", "bob levels bob=50", YES),
    # single levels: neither the old nor the new value may be above one's own
    ("1-", "bob:join pl:bob=50", "bob levels bob=50,kick=50", YES),
    ("1-", "bob:join pl:bob=50", "bob levels bob=50,kick=51", "cannot give 51"),
    ("1-", "bob:join pl:bob=50,kick=51", "bob levels bob=50,kick=50", "is 51"),
    ("1-", "bob:join pl:bob=50,kick=51", "bob levels bob=50", "is 51"),
    ("1-", "bob:join pl:bob=50,kick=51", "bob levels bob=50,kick=51", YES),
    ("1-", "bob:join pl:bob=50,kick=50", "bob levels bob=50", YES),
    ("1-", "bob:join pl:bob=50", "bob levels bob=50,users_default=51", "cannot give 51"),
    ("1-", "bob:join pl:bob=50,invite=60", "bob levels bob=50,invite=0", "is 60"),
    ("1-", "bob:join pl:bob=50,state_default=50", "bob levels bob=50,state_default=51", "cannot give"),
    # events, and notifications since version 6
    ("1-", "bob:join pl:bob=50", "bob levels bob=50,events.a=50", YES),
    ("1-", "bob:join pl:bob=50", "bob levels bob=50,events.a=51", "cannot give 51"),
    ("1-", "bob:join pl:bob=50,events.a=51", "bob levels bob=50", "is 51"),
    ("1-", "bob:join pl:bob=50,events.a=51", "bob levels bob=50,events.a=1", "is 51"),
    ("1-", "bob:join pl:bob=50,events.a=50", "bob levels bob=50", YES),
    ("1-5", "bob:join pl:bob=50", "bob levels bob=50,notifications.room=51", YES),
    ("6-", "bob:join pl:bob=50", "bob levels bob=50,notifications.room=51", "cannot give 51"),
    ("1-5", "bob:join pl:bob=50,notifications.room=60", "bob levels bob=50", YES),
    ("6-", "bob:join pl:bob=50,notifications.room=60", "bob levels bob=50", "is 60"),
    # users: others must be below oneself; oneself may step down
    ("1-", "bob:join pl:bob=50", "bob levels bob=50,carol=50", YES),
    ("1-", "bob:join pl:bob=50", "bob levels bob=50,carol=51", "cannot give 51"),
    ("1-", "bob:join pl:bob=50,carol=49", "bob levels bob=50", YES),
    ("1-", "bob:join pl:bob=50,carol=50", "bob levels bob=50", "is 50"),
    ("1-", "bob:join pl:bob=50,carol=50", "bob levels bob=50,carol=0", "is 50"),
    ("1-", "bob:join pl:bob=50,carol=50", "bob levels bob=50,carol=50", YES),
    ("1-", "bob:join pl:bob=50", "bob levels bob=0", YES),
    ("1-", "bob:join pl:bob=50", "bob levels", YES),
    ("1-", "bob:join pl:bob=50", "bob levels bob=51", "cannot give 51"),
]


@pytest.mark.parametrize(
    ("which", "facts", "text", "verdict"), JOINING + KNOCKING + INVITING + REMOVING + SENDING + LEVELS
)
def test_rules(which: str, facts: str, text: str, verdict: str) -> None:
    """Were a row wrong, the room would let somebody do what it must not, or fall apart between servers."""
    for version in versions(which):
        state, event = room(version, facts), action(version, text)
        found = judge(event, state)
        assert (found == YES) == (verdict == YES), (version.identifier, found)
        assert verdict in found, (version.identifier, found)
        if verdict == YES:
            # what is cited, by the selection of auth events, must be enough to be allowed
            keys = auth_event_keys(
                version,
                type=event.type,
                sender=event.sender,
                state_key=event.state_key,
                content=event.content,
            )
            cited = {key: state[key] for key in [*keys, ("m.room.create", "")] if key in state}
            assert judge(event, cited) == YES
            levels = PowerLevels.of(state.get(("m.room.power_levels", "")), state["m.room.create", ""])
            check_auth(event, state, levels)


CREATING = [
    ("1-11", {"room_id": "!room:hs"}, {}, YES),
    ("1-11", {"room_id": "!room:other"}, {}, "not of the server"),
    ("1-11", {"room_id": "!room"}, {}, "not of the server"),
    ("12", {}, {}, YES),
    ("12", {"room_id": "!room:hs"}, {}, "has a room id"),
    ("1-", {}, {"room_version": "11"}, YES),
    ("1-", {}, {"room_version": "not-a-version"}, "version is not known"),
    ("1-", {}, {"room_version": 11}, "version is not known"),
    ("1-", {}, {"room_version": ["11"]}, "version is not known"),
    ("1-10", {}, {"creator": None}, "does not say who created"),
    ("11-", {}, {"creator": None}, YES),
    ("12", {}, {"additional_creators": ["@bob:hs"]}, YES),
    ("12", {}, {"additional_creators": []}, YES),
    ("12", {}, {"additional_creators": "@bob:hs"}, "additional_creators"),
    ("12", {}, {"additional_creators": ["bob"]}, "additional_creators"),
    ("12", {}, {"additional_creators": [1]}, "additional_creators"),
    ("1-11", {}, {"additional_creators": [1]}, YES),
]


@pytest.mark.parametrize(("which", "fields", "content", "verdict"), CREATING)
def test_creating(which: str, fields: dict[str, Any], content: dict[str, Any], verdict: str) -> None:
    """Were it wrong, nobody could make a room of that version, or a stranger could make one in our name."""
    for version in versions(which):
        full = {"creator": "@alice:hs", **content}
        full = {name: value for name, value in full.items() if value is not None}
        event = make_event(
            version, "create", "alice", "m.room.create", full, state_key="", prev_events=[], **fields
        )
        found = judge(event, {})
        assert (found == YES) == (verdict == YES), (version.identifier, found)
        assert verdict in found
        late = make_event(version, "create", "alice", "m.room.create", full, state_key="", **fields)
        assert "not the first" in judge(late, {})


def test_first_join_is_the_creators() -> None:
    """Were it refused, no room could be created; were it another's, anybody could enter a new room."""
    for version in versions("1-"):
        state = room(version, "")
        del state["m.room.member", "@alice:hs"]
        for who, previous, verdict in [
            ("alice", ["$create:hs"], YES),
            ("alice", ["$other:hs"], "not invited"),
            ("alice", ["$create:hs", "$other:hs"], "not invited"),
            ("bob", ["$create:hs"], "not invited"),
        ]:
            content = {"membership": "join"}
            event = make_event(
                version, "it", who, "m.room.member", content, state_key=user(who), prev_events=previous
            )
            assert verdict in judge(event, state)
            assert (judge(event, state) == YES) == (verdict == YES)


@pytest.mark.parametrize(
    ("content", "state_key", "verdict"),
    [
        ({"membership": "join"}, None, "does not say"),
        ({}, "@bob:hs", "does not say"),
        ({"membership": "other"}, "@bob:hs", "no membership 'other'"),
        ({"membership": 5}, "@bob:hs", "no membership 5"),
        ({"membership": ["join"]}, "@bob:hs", "no membership"),
        ({"membership": "join"}, "@carol:hs", "another's name"),
        ({"membership": "invite", "third_party_invite": 5}, "@carol:hs", "nothing signed"),
        ({"membership": "invite", "third_party_invite": {"signed": 5}}, "@carol:hs", "nothing signed"),
        ({"membership": "invite", "third_party_invite": {"signed": {}}}, "@carol:hs", "whom it is for"),
    ],
)
def test_odd_memberships(content: dict[str, Any], state_key: str | None, verdict: str) -> None:
    """Were anything else raised, a stranger's odd event would stop the room's other events."""
    for version in versions("1-"):
        event = make_event(version, "it", "bob", "m.room.member", content, state_key=state_key)
        assert verdict in judge(event, room(version, "rules:public"))


def test_knocking_for_another() -> None:
    """Were it allowed, anybody could make it look as if a user wanted to enter a room."""
    for version in versions("7-"):
        event = make_event(
            version, "it", "bob", "m.room.member", {"membership": "knock"}, state_key="@carol:hs"
        )
        assert "another's name" in judge(event, room(version, "rules:knock"))


@pytest.mark.parametrize(
    ("setting", "refused"), [(False, True), (True, False), ("false", False), (None, False)]
)
def test_rooms_that_do_not_federate(setting: object, refused: bool) -> None:
    """Were it ignored, people of other servers could enter a room that was made for this server alone."""
    for version in versions("1-"):
        state = room(version, "rules:public")
        create = state["m.room.create", ""]
        create.content["m.federate"] = setting
        assert ("other servers" in judge(action(version, "@eve:other joins"), state)) == refused
        assert judge(action(version, "bob joins"), state) == YES


def test_state_must_be_of_the_room() -> None:
    """Were it not checked, an event could be authorised by the state of another room."""
    for version in versions("1-"):
        state = room(version, "bob:join")
        event = make_event(version, "it", "bob", "m.room.message", {}, room_id="!elsewhere:hs")
        assert "another room" in judge(event, state)
        assert "no create event" in judge(event, {})


@pytest.mark.parametrize(
    ("content", "v1", "v6", "v10"),
    [
        ({"users": {"@bob:hs": "100"}}, YES, YES, "not an integer"),
        ({"users": {"@bob:hs": 1.5}}, YES, "not an integer", "not an integer"),
        ({"users": {"@bob:hs": True}}, "not an integer", "not an integer", "not an integer"),
        ({"users": {"@bob:hs": None}}, "not an integer", "not an integer", "not an integer"),
        ({"users": {"bob": 1}}, "not a user id", "not a user id", "not a user id"),
        ({"users": []}, "not an object", "not an object", "not an object"),
        ({"users": None}, "not an object", "not an object", "not an object"),
        ({"ban": "50"}, YES, YES, "not an integer"),
        ({"ban": None}, "not an integer", "not an integer", "not an integer"),
        ({"kick": float("inf")}, "not an integer", "not an integer", "not an integer"),
        ({"events": {"a": "50"}}, YES, YES, "not an integer"),
        ({"events": []}, YES, YES, "not an object"),
        ({"notifications": {"room": "50"}}, YES, YES, "not an integer"),
        ({"notifications": {"room": {}}}, YES, "not an integer", "not an integer"),
        ({"notifications": 5}, YES, YES, "not an object"),
        ({"something_else": "x"}, YES, YES, YES),
    ],
)
def test_forms_of_power_levels(content: dict[str, Any], v1: str, v6: str, v10: str) -> None:
    """Were a form taken that must not be, servers would disagree about who has power in the room."""
    for which, verdict in (("1-5", v1), ("6-9", v6), ("10-", v10)):
        for version in versions(which):
            event = make_event(version, "it", "alice", "m.room.power_levels", content, state_key="")
            found = judge(event, room(version, ""))
            assert (found == YES) == (verdict == YES), (version.identifier, found)
            assert verdict in found


def test_old_forms_compare_by_value() -> None:
    """Were "50" and 50 taken for different, a moderator of an old room could change no setting of it."""
    for version in versions("1-9"):
        state = room(version, "bob:join pl:bob=50")
        state["m.room.power_levels", ""].content.update({"kick": "60", "events": {"a": " +60"}})
        event = action(version, "bob levels bob=50,kick=60,events.a=60,ban=10")
        assert judge(event, state) == YES


def test_additional_creators_have_no_stated_level() -> None:
    """Were one stated, clients would show a creator with a power that he does not have."""
    version = ROOM_VERSIONS["12"]
    state = room(version, "bob:join")
    state["m.room.create", ""].content["additional_creators"] = ["@bob:hs"]
    assert "no stated power level" in judge(action(version, "alice levels bob=100"), state)
    assert judge(action(version, "bob levels carol=100"), state) == YES
    assert "not below" in judge(action(version, "alice bans bob"), state)


@pytest.mark.parametrize(
    ("level", "target", "allowed"),
    [
        (0, "$old:hs", True),
        (0, "$old:other", False),
        (50, "$old:other", True),
        (0, None, False),
        (0, "$x", False),
    ],
)
def test_redactions_of_old_rooms(level: int, target: str | None, allowed: bool) -> None:
    """Were it wrong, anybody could remove others' messages in rooms of versions 1 and 2."""
    for version in versions("1-2"):
        event = make_event(version, "it", "bob", "m.room.redaction", {}, redacts=target)
        assert (judge(event, room(version, f"bob:join pl:bob={level}")) == YES) == allowed
    for version in versions("3-"):
        event = make_event(version, "it", "bob", "m.room.redaction", {}, redacts="$old:other")
        assert judge(event, room(version, "bob:join")) == YES


# -- third-party invites ----------------------------------------------------------------


def third_party(version: RoomVersion, signed: dict[str, Any], keys: dict[str, Any], facts: str = "") -> str:
    state = room(version, facts)
    content = {"display_name": "b…", **keys}
    token = make_event(version, "token", "alice", "m.room.third_party_invite", content, state_key="token")
    state[token.key] = token
    content = {"membership": "invite", "third_party_invite": {"display_name": "b…", "signed": signed}}
    event = make_event(version, "it", "alice", "m.room.member", content, state_key="@bob:hs")
    keys_cited = auth_event_keys(
        version, type=event.type, sender=event.sender, state_key="@bob:hs", content=content
    )
    assert (token.key in keys_cited) == (signed.get("token") == "token")
    return judge(event, state)


def text_of(data: bytes, *, urlsafe: bool = False) -> str:
    encoded = base64.urlsafe_b64encode(data) if urlsafe else base64.b64encode(data)
    return encoded.decode().rstrip("=")


def sign(key: SigningKey, **fields: Any) -> dict[str, Any]:
    signed = {"mxid": "@bob:hs", "token": "token", **fields}
    signature = key.sign(orjson.dumps(signed, option=orjson.OPT_SORT_KEYS)).signature
    return {**signed, "signatures": {"id.example": {"ed25519:0": text_of(signature)}}}


def test_third_party_invites() -> None:
    """Were a forged one taken, anybody could enter a room with an invitation of another address."""
    # a key whose base64 has characters in which the two alphabets differ
    key = SigningKey(b"\x07" * 32)
    other = SigningKey(b"\x02" * 32)
    public, wrong = text_of(bytes(key.verify_key)), text_of(bytes(other.verify_key))
    urlsafe = text_of(bytes(key.verify_key), urlsafe=True)
    for version in versions("1-"):
        assert third_party(version, sign(key), {"public_key": public}) == YES
        assert third_party(version, sign(key), {"public_key": urlsafe}) == YES
        assert third_party(version, sign(key), {"public_keys": [{"public_key": public}]}) == YES
        both = {"public_key": wrong, "public_keys": [{}, 5, {"public_key": 5}, {"public_key": public}]}
        assert third_party(version, sign(key), both) == YES
        assert third_party(version, sign(key), {"public_key": public}, "bob:join") == YES
        for signed, keys, facts, verdict in [
            (sign(key), {"public_key": wrong}, "", "not signed"),
            (sign(key), {}, "", "not signed"),
            (sign(key), {"public_key": "%%%"}, "", "not signed"),
            (sign(key), {"public_keys": 5}, "", "not signed"),
            ({**sign(key), "extra": 1}, {"public_key": public}, "", "not signed"),
            ({**sign(key), "signatures": 5}, {"public_key": public}, "", "not signed"),
            ({**sign(key), "signatures": {"a": 5}}, {"public_key": public}, "", "not signed"),
            ({**sign(key), "signatures": {"a": {"ed25519:0": 5}}}, {"public_key": public}, "", "not signed"),
            (
                {**sign(key), "signatures": {"a": {"ed25519:0": "AA"}}},
                {"public_key": public},
                "",
                "not signed",
            ),
            (sign(key), {"public_key": public}, "bob:ban", "banned"),
            (sign(key, mxid="@eve:hs"), {"public_key": public}, "", "not for @bob:hs"),
            (sign(key, token="other"), {"public_key": public}, "", "no such third-party invite"),
            (sign(key, token=5), {"public_key": public}, "", "whom it is for"),
        ]:
            assert verdict in third_party(version, signed, keys, facts)


def test_third_party_invite_of_another_user() -> None:
    """Were it taken, a member who may not invite could use up an invitation that another made."""
    key = SigningKey(b"\x07" * 32)
    for version in versions("1-"):
        state = room(version, "carol:join")
        content: dict[str, Any] = {"public_key": text_of(bytes(key.verify_key))}
        token = make_event(version, "t", "alice", "m.room.third_party_invite", content, state_key="token")
        state[token.key] = token
        content = {"membership": "invite", "third_party_invite": {"signed": sign(key)}}
        event = make_event(version, "it", "carol", "m.room.member", content, state_key="@bob:hs")
        assert "another user's" in judge(event, state)


def test_third_party_invite_with_endless_keys() -> None:
    """Were every pair tried, one event would keep the server busy for seconds."""
    key = SigningKey(b"\x07" * 32)
    signed = sign(key)
    good = signed["signatures"]["id.example"]["ed25519:0"]
    bad = text_of(b"\x01" * 64)
    signed["signatures"] = {"a": {f"ed25519:{n}": bad for n in range(300)}, "z": {"ed25519:0": good}}
    keys = {"public_keys": [{"public_key": text_of(bytes(key.verify_key))}] * 300}
    assert "not signed" in third_party(ROOM_VERSIONS["11"], signed, keys)


# -- auth events -------------------------------------------------------------------------

CREATE, LEVELS_KEY, RULES = ("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", "")
ALICE, BOB, CAROL = (("m.room.member", f"@{name}:hs") for name in ("alice", "bob", "carol"))


@pytest.mark.parametrize(
    ("which", "text", "expected"),
    [
        ("1-", "bob sends m.room.message", {BOB}),
        ("1-", "bob sets m.room.topic", {BOB}),
        ("1-", "bob joins", {BOB, RULES}),
        ("1-", "bob knocks", {BOB, RULES}),
        ("1-", "bob leaves", {BOB}),
        ("1-", "alice invites bob", {ALICE, BOB, RULES}),
        ("1-", "alice bans bob", {ALICE, BOB}),
        ("1-", "alice kicks bob", {ALICE, BOB}),
        ("1-7", "bob joins carol", {BOB, RULES}),
        ("8-", "bob joins carol", {BOB, RULES, CAROL}),
        ("1-", "bob leaves carol", {BOB}),
    ],
)
def test_auth_event_keys(which: str, text: str, expected: set[StateKey]) -> None:
    """Were another set cited, other servers would reject what our users send."""
    for version in versions(which):
        event = action(version, text)
        keys = auth_event_keys(
            version, type=event.type, sender=event.sender, state_key=event.state_key, content=event.content
        )
        assert len(keys) == len(set(keys))
        create = set() if version.identifier == "12" else {CREATE}
        assert set(keys) == expected | create | {LEVELS_KEY}


def test_create_cites_nothing() -> None:
    """Were something cited, no room could begin."""
    for version in versions("1-"):
        keys = auth_event_keys(version, type="m.room.create", sender="@alice:hs", state_key="", content={})
        assert keys == []


def independent(event: Event, cited: list[Event], **more: Any) -> str:
    try:
        check_state_independent(event, cited, **more)
    except AuthError as error:
        return error.message
    return YES


def test_state_independent_rules() -> None:
    """Were a row wrong, a stranger's event could bring its own permissions along."""
    for version in versions("1-"):
        state = room(version, "bob:join pl:bob=50 carol:join rules:public")
        event = action(version, "bob sends m.room.message")
        create = state[CREATE]
        base = [] if version.room_id_is_create_hash else [create]
        cited = [*base, state[LEVELS_KEY], state[BOB]]
        more = {"create_event": create}
        assert independent(event, cited, **more) == YES
        assert independent(event, base, **more) == YES
        assert "twice" in independent(event, [*cited, state[BOB]], **more)
        assert "does not bear on it" in independent(event, [*cited, state[CAROL]], **more)
        assert "does not bear on it" in independent(event, [*cited, state[RULES]], **more)
        message = action(version, "bob sends m.room.message")
        assert "does not bear on it" in independent(event, [*cited, message], **more)
        assert "rejected" in independent(event, cited, rejected={state[BOB].event_id}, **more)
        foreign = make_event(
            version, "f", "bob", "m.room.member", {}, state_key="@bob:hs", room_id="!elsewhere:hs"
        )
        assert "another room" in independent(event, [*base, foreign], **more)
        if version.room_id_is_create_hash:
            assert "does not bear on it" in independent(event, [*cited, create], **more)
            assert "room id" in independent(event, cited)
            assert "room id" in independent(event, cited, rejected={create.event_id}, **more)
            other = make_event(version, "other", "alice", "m.room.create", {}, state_key="")
            assert "room id" in independent(event, cited, create_event=other)
        else:
            assert "does not cite" in independent(event, cited[1:], **more)
        first = make_event(
            version, "create", "alice", "m.room.create", {"creator": "x"}, state_key="", prev_events=[]
        )
        assert independent(first, []) == YES
        assert "cites other events" in independent(first, [create])


def test_authorised_joins_are_signed() -> None:
    """Were the signature not asked for, any server could let its users into a restricted room."""
    for version in versions("8-"):
        state = room(version, "rules:restricted carol:join")
        base = [] if version.room_id_is_create_hash else [state[CREATE]]
        cited = [*base, state[RULES], state[CAROL]]
        more = {"create_event": state[CREATE]}
        event = action(version, "bob joins carol")
        assert "not signed" in independent(event, cited, **more)
        event.pdu["signatures"] = {"hs": {"ed25519:1": "…"}}
        assert independent(event, cited, **more) == YES
        event.content["join_authorised_via_users_server"] = "carol"
        assert "not a user id" in independent(event, base, **more)
    event = action(ROOM_VERSIONS["7"], "bob joins carol")
    assert independent(event, [room(event.version, "")[CREATE]]) == YES
