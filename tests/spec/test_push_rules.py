"""Push rules: which events notify whom."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.spec import globs
from ranvier.spec.event import Event
from ranvier.spec.power_levels import PowerLevels
from ranvier.spec.property_paths import MISSING, parse_path, value_at
from ranvier.spec.push_rules import (
    DefaultChange,
    PushRule,
    PushView,
    UserPushRules,
    compile_rules,
    effective_rules,
    highlights,
    notifies,
    sound,
    tweaks,
)
from ranvier.spec.room_versions import V12

ALICE, BOB = "@alice:example.org", "@bob:example.org"
ROOM = "!room:example.org"
HIGHLIGHT: dict[str, Any] = {"set_tweak": "highlight"}
DEFAULT_SOUND: dict[str, Any] = {"set_tweak": "sound", "value": "default"}
RING: dict[str, Any] = {"set_tweak": "sound", "value": "ring"}
DEFAULTS = compile_rules(UserPushRules())


def message(body: Any = "hello", **content: Any) -> dict[str, Any]:
    return {"type": "m.room.message", "content": {"msgtype": "m.text", "body": body, **content}}


CREATE_EVENT = Event(
    {"type": "m.room.create", "sender": "@creator:x", "state_key": "", "content": {}}, "$room", V12
)


def view(pdu: dict[str, Any], members: int = 3, level: Any = 0, **levels: Any) -> PushView:
    event = Event({"room_id": ROOM, "sender": BOB, "content": {}, **pdu}, "$event", V12)
    content = {"users": {BOB: level}, "notifications": levels}
    power = Event({"type": "m.room.power_levels", "sender": BOB, "content": content}, "$power", V12)
    return PushView(event, member_count=members, power_levels=PowerLevels.of(power, CREATE_EVENT))


def mentions(**value: Any) -> dict[str, Any]:
    return {"m.mentions": value}


DEFAULT_CASES: list[tuple[str, PushView, Any]] = [
    ("message", view(message()), ("notify",)),
    ("encrypted", view({"type": "m.room.encrypted"}), ("notify",)),
    ("room_one_to_one", view(message(), members=2), ("notify", DEFAULT_SOUND)),
    ("encrypted_room_one_to_one", view({"type": "m.room.encrypted"}, members=2), ("notify", DEFAULT_SOUND)),
    ("call", view({"type": "m.call.invite"}), ("notify", RING)),
    ("suppress_notices", view(message(msgtype="m.notice")), ()),
    (
        "suppress_notices comes before mentions",
        view(message(msgtype="m.notice", **mentions(user_ids=[ALICE]))),
        (),
    ),
    (
        "invite_for_me",
        view({"type": "m.room.member", "state_key": ALICE, "content": {"membership": "invite"}}),
        ("notify", DEFAULT_SOUND),
    ),
    (
        "member_event: an invite for somebody else",
        view({"type": "m.room.member", "state_key": "@c:x", "content": {"membership": "invite"}}),
        (),
    ),
    (
        "member_event: a join",
        view({"type": "m.room.member", "state_key": ALICE, "content": {"membership": "join"}}),
        (),
    ),
    (
        "is_user_mention",
        view(message(**mentions(user_ids=[BOB, ALICE]))),
        ("notify", DEFAULT_SOUND, HIGHLIGHT),
    ),
    ("is_user_mention: somebody else", view(message(**mentions(user_ids=["@c:x"]))), ("notify",)),
    ("is_user_mention: not an array", view(message(**mentions(user_ids=ALICE))), ("notify",)),
    ("is_user_mention: odd entries", view(message(**mentions(user_ids=[1, None, {}]))), ("notify",)),
    ("is_room_mention", view(message(**mentions(room=True)), level=50), ("notify", HIGHLIGHT)),
    ("is_room_mention: level too low", view(message(**mentions(room=True)), level=49), ("notify",)),
    (
        "is_room_mention: the room's own level",
        view(message(**mentions(room=True)), level=10, room=10),
        ("notify", HIGHLIGHT),
    ),
    (
        "is_room_mention: a creator",
        view({**message(**mentions(room=True)), "sender": "@creator:x"}, room=2**53 - 1),
        ("notify", HIGHLIGHT),
    ),
    ("is_room_mention: odd levels", view(message(**mentions(room=True)), level="x", room=[]), ("notify",)),
    ("is_room_mention: 1 is not true", view(message(**mentions(room=1)), level=100), ("notify",)),
    ("tombstone", view({"type": "m.room.tombstone", "state_key": ""}), ("notify", HIGHLIGHT)),
    ("tombstone: no state event", view({"type": "m.room.tombstone"}), None),
    ("reaction", view({"type": "m.reaction"}, members=2), ()),
    ("server_acl", view({"type": "m.room.server_acl", "state_key": ""}), ()),
    ("suppress_edits", view(message(**{"m.relates_to": {"rel_type": "m.replace"}})), ()),
    ("a reply is no edit", view(message(**{"m.relates_to": {"m.in_reply_to": {}}})), ("notify",)),
    ("nothing matches", view({"type": "org.example.custom"}), None),
    ("odd content", view({"type": "m.room.message", "content": {"m.mentions": [], "body": 7}}), ("notify",)),
]


@pytest.mark.parametrize(("event", "actions"), [pytest.param(v, a, id=n) for n, v, a in DEFAULT_CASES])
def test_default_rules(event: PushView, actions: Any) -> None:
    """Users are notified (or spared) as every other server would do out of the box."""
    assert DEFAULTS.evaluate(event, ALICE) == actions


def test_own_events_never_notify() -> None:
    """Nobody's phone buzzes for their own message."""
    assert DEFAULTS.evaluate(view(message(**mentions(user_ids=[BOB]))), BOB) is None


def test_one_view_serves_users_who_differ() -> None:
    """Of fifty members only those who are mentioned see a highlight, though work is shared."""
    event = view(message(**mentions(user_ids=[ALICE])))
    others = [DEFAULTS.evaluate(event, f"@u{n}:x") for n in range(50)]
    assert highlights(DEFAULTS.evaluate(event, ALICE))
    assert others == [("notify",)] * 50


def test_users_with_the_same_defaults_share_one_compiled_list() -> None:
    """A message to a large room stays cheap, because its rules run once for all ordinary members."""
    muted = UserPushRules(defaults={".m.rule.message": DefaultChange(enabled=False)})
    assert compile_rules(UserPushRules()) is DEFAULTS
    assert compile_rules(muted) is compile_rules(muted) is not DEFAULTS


def test_defaults_can_be_changed() -> None:
    """Switching a predefined rule off or giving it a sound has an effect; so has the master switch."""
    off = UserPushRules(defaults={".m.rule.message": DefaultChange(enabled=False)})
    loud = UserPushRules(defaults={".m.rule.message": DefaultChange(actions=("notify", RING))})
    master = UserPushRules(
        override=(PushRule("mine", ("notify",), ()),),
        defaults={".m.rule.master": DefaultChange(enabled=True)},
    )
    gone = UserPushRules(defaults={".m.rule.contains_display_name": DefaultChange(enabled=True)})
    assert compile_rules(off).evaluate(view(message()), ALICE) is None
    assert sound(compile_rules(loud).evaluate(view(message()), ALICE)) == "ring"
    assert compile_rules(master).evaluate(view(message()), ALICE) == ()
    assert compile_rules(gone).evaluate(view(message()), ALICE) == ("notify",)


def test_order_of_kinds() -> None:
    """Of several rules that match, the kind that the specification puts first decides."""
    named = {
        "override": PushRule("o", ("o",), ()),
        "content": PushRule("c", ("c",), pattern="hello"),
        "room": PushRule(ROOM, ("r",)),
        "sender": PushRule(BOB, ("s",)),
        "underride": PushRule("u", ("u",), ()),
    }
    kinds = ["override", "content", "room", "sender", "underride"]
    for first, kind in enumerate(kinds):
        rules = msgspec.structs.replace(UserPushRules(), **{name: (named[name],) for name in kinds[first:]})
        assert compile_rules(rules).evaluate(view(message()), ALICE) == (kind[0],)
    assert list(effective_rules(UserPushRules())) == kinds


def test_earlier_rule_of_a_kind_wins() -> None:
    """The rule that a user dragged to the top decides, however the rules are looked up."""
    by_room = PushRule("1", ("room",), ({"kind": "event_match", "key": "room_id", "pattern": ROOM},))
    by_type = PushRule("2", ("type",), ({"kind": "event_match", "key": "type", "pattern": "m.room.message"},))
    always = PushRule("3", ("always",), ())
    for rules in ([by_room, by_type, always], [always, by_room, by_type], [by_type, always, by_room]):
        compiled = compile_rules(UserPushRules(override=tuple(rules)))
        assert compiled.evaluate(view(message()), ALICE) == rules[0].actions
    both = PushRule("4", ("both",), (*by_room.conditions, *by_type.conditions))  # type: ignore[misc]
    compiled = compile_rules(UserPushRules(override=(both,)))
    assert compiled.evaluate(view(message()), ALICE) == ("both",)
    assert compiled.evaluate(view({"type": "m.reaction"}), ALICE) == ()


def test_room_and_sender_rules_are_exact() -> None:
    """Muting one room or person mutes no other whose id only differs in case."""
    rules = compile_rules(UserPushRules(room=(PushRule(ROOM, ()),), sender=(PushRule(BOB, ()),)))
    other = {"room_id": ROOM.upper(), "sender": BOB.replace("b", "B")}
    assert rules.evaluate(view(message()), ALICE) == ()
    assert rules.evaluate(view({**message(), **other}), ALICE) == ("notify",)


TOPIC = {"type": "m.room.topic", "state_key": "", "content": {"topic": "Lunch plans"}}
CREATE = {"type": "m.room.create", "content": {"m.federate": True, "creator": ALICE, "n": 1, "nothing": None}}
ALIASES = {"type": "m.room.canonical_alias", "content": {"alt_aliases": ["#a:x", "#my:x", 3, True, None, []]}}


def event_match(key: Any, pattern: Any) -> dict[str, Any]:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def prop_is(key: Any, value: Any) -> dict[str, Any]:
    return {"kind": "event_property_is", "key": key, "value": value}


def contains(key: Any, value: Any) -> dict[str, Any]:
    return {"kind": "event_property_contains", "key": key, "value": value}


def count(is_: Any) -> dict[str, Any]:
    return {"kind": "room_member_count", "is": is_}


CONDITION_CASES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    (event_match("content.topic", "lunc?*"), TOPIC, True),
    (event_match("content.topic", "lunc?*"), {**TOPIC, "content": {"topic": "LUNCH"}}, True),
    (event_match("content.topic", "lunc?*"), {**TOPIC, "content": {"topic": " lunch"}}, False),
    (event_match("content.topic", "lunc?*"), {**TOPIC, "content": {"topic": "lunc"}}, False),
    (event_match("content.topic", "lunc?*"), {**TOPIC, "content": {"topic": None}}, False),
    (event_match("content.topic", "plans"), TOPIC, False),
    (event_match("content.none", "*"), TOPIC, False),
    (event_match("content", "*"), TOPIC, False),
    (event_match("state_key", ""), TOPIC, True),
    (event_match("state_key", ""), message(), False),
    (event_match("room_id", "!ROOM:*"), TOPIC, True),
    (event_match("event_id", "$event"), TOPIC, True),
    (event_match("type", "M.ROOM.TOPIC"), TOPIC, True),
    (event_match("sender", BOB), TOPIC, True),
    (event_match("content.topic", 5), TOPIC, False),
    (event_match(None, "*"), TOPIC, False),
    (event_match("content.topic", "*" * 600), TOPIC, False),
    (event_match("content.body", "ex*ple"), message("An example event."), True),
    (event_match("content.body", "ex*ple"), message("exple"), True),
    (event_match("content.body", "ex*ple"), message("An exciting triple-whammy"), True),
    (event_match("content.body", "ex*ple"), message("a simplex ampler"), False),
    (event_match("content.body", "bob"), message("hi BOB!"), True),
    (event_match("content.body", "bob"), message("bobby"), False),
    (event_match("content.body", "bob"), message("bob_1"), False),
    (event_match("content.body", "bob"), message("größebob"), False),
    (event_match("content.body", "bob"), message("ébobé"), True),
    (event_match("content.body", "c++"), message("I like C++."), True),
    (event_match("content.body", "größe"), message("Die GRÖSSE, die Größe"), True),
    (event_match("content.body", "two words"), message("just two words"), True),
    (event_match("content.body", "two words"), message("just two wordss"), False),
    (event_match("content.body", "*"), message(3), False),
    (event_match("content.body", "*"), message("x" * 60_000), True),
    (event_match("content.body", "end"), message("x " * 30_000 + "end"), True),
    (event_match("content.body", "οδοσ*"), message("ΟΔΟΣ"), True),
    (prop_is(r"content.m\.federate", True), CREATE, True),
    (prop_is(r"content.m\.federate", "true"), CREATE, False),
    (prop_is(r"content.m\.federate", 1), CREATE, False),
    (prop_is("content.n", 1), CREATE, True),
    (prop_is("content.n", True), CREATE, False),
    (prop_is("content.nothing", None), CREATE, True),
    (prop_is("content.absent", None), CREATE, False),
    (prop_is("content.creator", ALICE), CREATE, True),
    (prop_is("content.creator", ALICE.upper()), CREATE, False),
    (prop_is("content", {}), message(), False),
    (prop_is("content.n", 1.0), CREATE, False),
    ({"kind": "event_property_is", "key": "content.nothing"}, CREATE, False),
    (contains("content.alt_aliases", "#my:x"), ALIASES, True),
    (contains("content.alt_aliases", ":x"), ALIASES, False),
    (contains("content.alt_aliases", "#MY:x"), ALIASES, False),
    (contains("content.alt_aliases", 3), ALIASES, True),
    (contains("content.alt_aliases", 1), ALIASES, False),
    (contains("content.alt_aliases", True), ALIASES, True),
    (contains("content.alt_aliases", None), ALIASES, True),
    (contains("content.alt_aliases", []), ALIASES, False),
    (contains("content.topic", "Lunch plans"), TOPIC, False),
    (count("3"), message(), True),
    (count("==3"), message(), True),
    (count("<3"), message(), False),
    (count("<=3"), message(), True),
    (count(">3"), message(), False),
    (count(">2"), message(), True),
    (count(">=3"), message(), True),
    (count("=3"), message(), False),
    (count("3 "), message(), False),
    (count(3), message(), False),
    ({"kind": "contains_display_name"}, message("ask alice."), True),
    ({"kind": "contains_display_name"}, message("malice"), False),
    ({"kind": "contains_display_name"}, message(None), False),
    ({"kind": "sender_notification_permission", "key": "other"}, message(), False),
    ({"kind": "sender_notification_permission"}, message(), False),
    ({"kind": "org.example.unknown"}, message(), False),
    ({"kind": ["event_match"]}, message(), False),
    ({}, message(), False),
]


@pytest.mark.parametrize(("condition", "pdu", "matches"), CONDITION_CASES)
def test_conditions(condition: dict[str, Any], pdu: dict[str, Any], matches: bool) -> None:
    """A rule that a user made fires for exactly the events that it describes."""
    rules = compile_rules(UserPushRules(override=(PushRule("mine", ("hit",), (condition,)),)))
    assert (rules.evaluate(view(pdu), ALICE, "Alice") == ("hit",)) is matches


@pytest.mark.parametrize(
    ("name", "body", "matches"),
    [
        ("Al*", "hello al*", True),
        ("Al*", "hello alice", False),
        ("", "hello", False),
        (None, "hello None", False),
        ("x" * 300, "x" * 300, False),
        ("Alice B.", "to alice b., hello", True),
        ("🦊", "a 🦊 here", True),
    ],
)
def test_display_names_are_taken_literally(name: str | None, body: str, matches: bool) -> None:
    """Somebody called ``*`` is not notified of everything."""
    condition = {"kind": "contains_display_name"}
    rules = compile_rules(UserPushRules(override=(PushRule("mine", ("hit",), (condition,)),)))
    assert (rules.evaluate(view(message(body)), ALICE, name) == ("hit",)) is matches


def test_disabled_rules_never_match() -> None:
    """A rule that is switched off leaves the next one in charge."""
    rules = UserPushRules(override=(PushRule("mine", ("hit",), (), enabled=False),))
    assert compile_rules(rules).evaluate(view(message()), ALICE) == ("notify",)


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (None, (False, False, None)),
        ((), (False, False, None)),
        (("notify",), (True, False, None)),
        (("notify", HIGHLIGHT, RING), (True, True, "ring")),
        (({"set_tweak": "highlight", "value": False}, {"set_tweak": "sound"}), (False, False, None)),
        (({"set_tweak": 3}, {"odd": 1}), (False, False, None)),
    ],
)
def test_what_actions_say(actions: Any, expected: tuple[bool, bool, str | None]) -> None:
    """Counts, highlights and sounds follow the actions, with the defaults of each tweak."""
    assert (notifies(actions), highlights(actions), sound(actions)) == expected


def test_other_tweaks_reach_the_gateway() -> None:
    """Tweaks that only client and gateway know pass through."""
    assert tweaks(({"set_tweak": "org.example.led", "value": [1]},)) == {"org.example.led": [1]}


TEXT = st.text(alphabet="ab _-ßI", max_size=12)
PATTERN = st.text(alphabet="ab _-*?", max_size=8)


def _oracle(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)


def _is_boundary(text: str, position: int) -> bool:
    around = text[max(position - 1, 0) : position + 1]
    return position in (0, len(text)) or re.fullmatch(r"[A-Za-z0-9_]{2}", around) is None


@given(PATTERN, TEXT)
def test_whole_globs_agree_with_the_definition(pattern: str, text: str) -> None:
    """A pattern matches what it says, although it is not matched by backtracking."""
    expected = re.fullmatch(_oracle(pattern), text, re.DOTALL) is not None
    assert globs.whole_glob(pattern).matches(text) is expected


@given(PATTERN, TEXT)
def test_word_globs_agree_with_the_definition(pattern: str, text: str) -> None:
    """A keyword is found wherever it stands between word boundaries, and nowhere else."""
    regex = re.compile(_oracle(pattern), re.DOTALL)
    bounds = [position for position in range(len(text) + 1) if _is_boundary(text, position)]
    expected = any(regex.fullmatch(text, start, end) for start in bounds for end in bounds if start <= end)
    assert globs.word_glob(pattern).matches(text) is expected
    if globs.is_word(globs.fold(pattern)):
        assert (globs.fold(pattern) in globs.words_of(globs.fold(text))) is (
            globs.word_glob(globs.fold(pattern)).matches(globs.fold(text))
        )


@given(st.lists(st.text(alphabet="ab.\\", max_size=5), min_size=1, max_size=4))
def test_paths_survive_escaping(names: list[str]) -> None:
    """A rule on a property whose name has dots or backslashes looks at that property."""
    text = ".".join(name.replace("\\", "\\\\").replace(".", "\\.") for name in names)
    assert list(parse_path(text)) == names


def test_other_escapes_are_left_as_they_are() -> None:
    """``\\x`` in a path is a backslash and an x, as the specification says."""
    assert parse_path(r"content.m\x.m\\y\.z") == ("content", r"m\x", r"m\y.z")
    assert value_at({"a": {"b": 1}}, ("a", "b", "c")) is MISSING
