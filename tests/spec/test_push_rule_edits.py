"""Editing push rules: what clients add, change, move and remove."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.spec import push_rule_edits as edits
from ranvier.spec.errors import MatrixError
from ranvier.spec.push_rules import UserPushRules
from ranvier.spec.push_rules_default import KINDS

ALICE = "@alice:example.org"
EMPTY = UserPushRules()
NOTIFY: dict[str, Any] = {"actions": ["notify"]}
CAKE: dict[str, Any] = {**NOTIFY, "pattern": "cake*lie"}


def ids(rules: UserPushRules, kind: str = "sender") -> list[str]:
    listed = edits.to_client(rules, ALICE)["global"][kind]
    return [rule["rule_id"] for rule in listed if not rule["default"]]


def with_senders(*names: str) -> UserPushRules:
    rules = EMPTY
    for name in reversed(names):
        rules = edits.put_rule(rules, "sender", name, NOTIFY)
    return rules


def fails(action: Callable[[], object], errcode: str, status: int) -> None:
    with pytest.raises(MatrixError) as raised:
        action()
    assert (raised.value.errcode, raised.value.status) == (errcode, status)


def test_a_new_account_sees_the_predefined_rules() -> None:
    """A client shows the predefined rules with the user's own id in them."""
    listed = edits.to_client(EMPTY, ALICE)
    assert list(listed) == ["global"]
    assert {kind: len(listed["global"][kind]) for kind in KINDS} == {
        "override": 10,
        "content": 0,
        "room": 0,
        "sender": 0,
        "underride": 5,
    }
    assert listed["global"]["override"][0] == {
        "rule_id": ".m.rule.master",
        "default": True,
        "enabled": False,
        "actions": [],
        "conditions": [],
    }
    mention = edits.get_rule(EMPTY, ALICE, "override", ".m.rule.is_user_mention")
    assert mention["conditions"] == [
        {"kind": "event_property_contains", "key": r"content.m\.mentions.user_ids", "value": ALICE}
    ]
    invite = edits.get_rule(EMPTY, ALICE, "override", ".m.rule.invite_for_me")
    assert invite["conditions"][2]["pattern"] == ALICE


def test_a_rule_comes_back_as_it_was_put() -> None:
    """A client that made a rule reads the same rule back, enabled."""
    rules = edits.put_rule(EMPTY, "content", "nocake", CAKE)
    assert edits.get_rule(rules, ALICE, "content", "nocake") == {
        "rule_id": "nocake",
        "default": False,
        "enabled": True,
        "actions": ["notify"],
        "pattern": "cake*lie",
    }
    conditions = [{"kind": "room_member_count", "is": "<=10"}, {"kind": "org.example.unknown", "x": 1}]
    rules = edits.put_rule(rules, "override", "few", {**NOTIFY, "conditions": conditions})
    assert edits.get_rule(rules, ALICE, "override", "few")["conditions"] == conditions
    rules = edits.put_rule(rules, "underride", "all", NOTIFY)
    assert edits.get_rule(rules, ALICE, "underride", "all")["conditions"] == []
    assert "conditions" not in edits.get_rule(with_senders("@a:x"), ALICE, "sender", "@a:x")


def test_own_rules_stand_between_master_and_the_other_defaults() -> None:
    """A user's override beats every predefined rule but the master switch."""
    rules = edits.put_rule(EMPTY, "override", "mine", NOTIFY)
    listed = [rule["rule_id"] for rule in edits.to_client(rules, ALICE)["global"]["override"]]
    assert listed[:3] == [".m.rule.master", "mine", ".m.rule.suppress_notices"]


@pytest.mark.parametrize(
    ("rule_id", "before", "after", "expected"),
    [
        ("new", None, None, "new a b c"),
        ("new", "a", None, "new a b c"),
        ("new", "c", None, "a b new c"),
        ("new", None, "a", "a new b c"),
        ("new", None, "c", "a b c new"),
        ("new", "c", "a", "a b new c"),
        ("b", None, None, "a b c"),
        ("c", "a", None, "c a b"),
        ("a", None, "c", "b c a"),
        ("a", None, "b", "b a c"),
    ],
)
def test_placement(rule_id: str, before: str | None, after: str | None, expected: str) -> None:
    """A rule lands where the client put it: it decides which of two matching rules wins."""
    rules = edits.put_rule(with_senders("a", "b", "c"), "sender", rule_id, NOTIFY, before=before, after=after)
    assert ids(rules) == expected.split()


@pytest.mark.parametrize(
    ("before", "after", "errcode"),
    [
        ("nobody", None, "M_UNKNOWN"),
        (None, "nobody", "M_UNKNOWN"),
        ("nobody", "a", "M_UNKNOWN"),
        ("new", None, "M_UNKNOWN"),
        (".m.rule.call", None, "M_INVALID_PARAM"),
        (None, ".m.rule.master", "M_INVALID_PARAM"),
    ],
)
def test_placement_next_to_nothing(before: str | None, after: str | None, errcode: str) -> None:
    """A client that names a neighbour which is not there hears so, and nothing changes."""
    rules = with_senders("a")
    fails(lambda: edits.put_rule(rules, "sender", "new", NOTIFY, before=before, after=after), errcode, 400)


def test_an_update_keeps_the_rule_disabled() -> None:
    """Changing a keyword does not switch a rule on that its owner had switched off."""
    rules = edits.put_rule(EMPTY, "content", "k", CAKE)
    rules = edits.set_enabled(rules, "content", "k", {"enabled": False})
    rules = edits.put_rule(rules, "content", "k", {"actions": [], "pattern": "tea"})
    rule = edits.get_rule(rules, ALICE, "content", "k")
    assert (rule["enabled"], rule["pattern"], rule["actions"]) == (False, "tea", [])


def test_delete() -> None:
    """A removed rule is gone; removing it again, or a predefined one, is an error."""
    rules = edits.delete_rule(with_senders("a", "b"), "sender", "a")
    assert ids(rules) == ["b"]
    fails(lambda: edits.delete_rule(rules, "sender", "a"), "M_NOT_FOUND", 404)
    fails(lambda: edits.delete_rule(rules, "underride", ".m.rule.call"), "M_INVALID_PARAM", 400)
    fails(lambda: edits.delete_rule(rules, "override", ".m.rule.call"), "M_NOT_FOUND", 404)


@pytest.mark.parametrize(("kind", "rule_id"), [("underride", ".m.rule.call"), ("sender", "a")])
def test_enabled_and_actions(kind: str, rule_id: str) -> None:
    """Rules of one's own and predefined ones can be switched and given other actions, each apart."""
    rules = with_senders("a")
    quiet = edits.set_actions(rules, kind, rule_id, {"actions": []})
    off = edits.set_enabled(quiet, kind, rule_id, {"enabled": False})
    assert edits.get_actions(rules, kind, rule_id)[0] == "notify"
    assert edits.get_enabled(rules, kind, rule_id)
    assert edits.get_actions(off, kind, rule_id) == []
    assert not edits.get_enabled(off, kind, rule_id)
    assert edits.get_enabled(quiet, kind, rule_id)
    on = edits.set_enabled(off, kind, rule_id, {"enabled": True})
    assert edits.get_actions(on, kind, rule_id) == []


def test_unknown_rules_kinds_and_scopes() -> None:
    """A client that asks for what is not there gets a clear answer from every operation."""
    fails(lambda: edits.get_rule(EMPTY, ALICE, "room", "!x"), "M_NOT_FOUND", 404)
    fails(lambda: edits.get_enabled(EMPTY, "room", "!x"), "M_NOT_FOUND", 404)
    fails(lambda: edits.get_actions(EMPTY, "room", "!x"), "M_NOT_FOUND", 404)
    fails(lambda: edits.set_enabled(EMPTY, "room", "!x", {"enabled": True}), "M_NOT_FOUND", 404)
    fails(lambda: edits.set_actions(EMPTY, "override", ".m.rule.call", NOTIFY), "M_NOT_FOUND", 404)
    fails(lambda: edits.get_rule(EMPTY, ALICE, "defaults", "x"), "M_INVALID_PARAM", 400)
    fails(lambda: edits.put_rule(EMPTY, "Room", "x", NOTIFY), "M_INVALID_PARAM", 400)
    fails(lambda: edits.check_scope("device"), "M_INVALID_PARAM", 400)
    edits.check_scope("global")


@pytest.mark.parametrize("rule_id", ["", ".mine", "a/b", "a\\b", "x" * 256])
def test_rule_ids_that_are_refused(rule_id: str) -> None:
    """No client can pass a rule off as predefined, or make one that no path reaches."""
    fails(lambda: edits.put_rule(EMPTY, "room", rule_id, NOTIFY), "M_INVALID_PARAM", 400)


def with_condition(**condition: Any) -> dict[str, Any]:
    return {"actions": [], "conditions": [condition]}


DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]

BAD_BODIES: list[tuple[str, dict[str, Any], str, int]] = [
    ("room", {}, "M_BAD_JSON", 400),
    ("room", {"actions": "notify"}, "M_BAD_JSON", 400),
    ("room", {"actions": [3]}, "M_BAD_JSON", 400),
    ("room", {"actions": [{}]}, "M_BAD_JSON", 400),
    ("room", {"actions": [{"set_tweak": 1}]}, "M_BAD_JSON", 400),
    ("room", {"actions": ["explode"]}, "M_INVALID_PARAM", 400),
    ("room", {"actions": ["notify"] * 17}, "M_BAD_JSON", 400),
    ("room", {"actions": [{"set_tweak": "x", "value": "y" * 5000}]}, "M_TOO_LARGE", 413),
    ("room", {"actions": [{"set_tweak": "x", "value": DEEP}]}, "M_BAD_JSON", 400),
    ("content", NOTIFY, "M_BAD_JSON", 400),
    ("content", {**NOTIFY, "pattern": 1}, "M_BAD_JSON", 400),
    ("content", {**NOTIFY, "pattern": "x" * 513}, "M_INVALID_PARAM", 400),
    ("content", {**NOTIFY, "pattern": "?" * 65}, "M_INVALID_PARAM", 400),
    ("override", {**NOTIFY, "conditions": {}}, "M_BAD_JSON", 400),
    ("override", {**NOTIFY, "conditions": [1]}, "M_BAD_JSON", 400),
    ("override", {**NOTIFY, "conditions": [{"kind": "x"}] * 17}, "M_BAD_JSON", 400),
    ("override", with_condition(), "M_BAD_JSON", 400),
    ("override", with_condition(kind=1), "M_BAD_JSON", 400),
    ("override", with_condition(kind="event_match", pattern="x"), "M_BAD_JSON", 400),
    ("override", with_condition(kind="event_match", key="type"), "M_BAD_JSON", 400),
    ("underride", with_condition(kind="event_match", key="type", pattern="?" * 65), "M_INVALID_PARAM", 400),
    ("underride", with_condition(kind="event_property_is", key="x"), "M_BAD_JSON", 400),
    ("underride", with_condition(kind="event_property_is", key="x", value=[]), "M_BAD_JSON", 400),
    ("underride", with_condition(kind="event_property_contains", key="x", value=2**53), "M_BAD_JSON", 400),
    ("underride", with_condition(kind="room_member_count", **{"is": "few"}), "M_BAD_JSON", 400),
    ("underride", with_condition(kind="sender_notification_permission"), "M_BAD_JSON", 400),
]


@pytest.mark.parametrize(("kind", "body", "errcode", "status"), BAD_BODIES)
def test_bodies_that_are_refused(kind: str, body: dict[str, Any], errcode: str, status: int) -> None:
    """A rule that could never work is refused with the reason, not stored."""
    fails(lambda: edits.put_rule(EMPTY, kind, "mine", body), errcode, status)


def test_changes_that_are_refused() -> None:
    """Switching with anything but true or false, or to unknown actions, is refused."""
    rules = with_senders("a")
    fails(lambda: edits.set_enabled(rules, "sender", "a", {}), "M_BAD_JSON", 400)
    fails(lambda: edits.set_enabled(rules, "sender", "a", {"enabled": 1}), "M_BAD_JSON", 400)
    fails(lambda: edits.set_actions(rules, "sender", "a", {"actions": None}), "M_BAD_JSON", 400)


def test_historical_actions_are_ignored() -> None:
    """Old clients' ``dont_notify`` means what no actions mean."""
    rules = edits.put_rule(EMPTY, "room", "!a", {"actions": ["dont_notify", "coalesce", "notify"]})
    assert edits.get_actions(rules, "room", "!a") == ["notify"]


def test_limits_on_the_amount() -> None:
    """One user cannot make every message slow for all by storing endless rules."""
    full = UserPushRules(sender=with_senders("a").sender * edits.MAX_RULES)
    fails(lambda: edits.put_rule(full, "room", "!x", NOTIFY), "M_TOO_LARGE", 413)
    rules = EMPTY
    for number in range(edits.MAX_SEARCHES):
        rules = edits.put_rule(rules, "content", f"k{number}", CAKE)
    fails(lambda: edits.put_rule(rules, "content", "more", CAKE), "M_TOO_LARGE", 413)
    condition = {"kind": "event_match", "key": "content.topic", "pattern": "*x*"}
    more = {"actions": [], "conditions": [condition]}
    fails(lambda: edits.put_rule(rules, "override", "more", more), "M_TOO_LARGE", 413)
    edits.put_rule(rules, "content", "more", {**CAKE, "pattern": "word"})
    big = [{"set_tweak": "x", "value": "y" * 4000}]
    large = UserPushRules(
        sender=edits.put_rule(EMPTY, "sender", "a", {"actions": big}).sender * 65 + with_senders("b").sender
    )
    fails(lambda: edits.set_actions(large, "sender", "b", {"actions": big}), "M_TOO_LARGE", 413)


NAMES = st.sampled_from(["a", "b", "c", "d"])
MAYBE = st.one_of(st.none(), NAMES)


@given(
    st.lists(st.tuples(st.sampled_from(["put", "delete", "off", "quiet"]), NAMES, MAYBE, MAYBE), max_size=20)
)
def test_edits_keep_rules_whole(steps: list[tuple[str, str, str | None, str | None]]) -> None:
    """After any series of edits each rule is there once, others keep their order, and all of it is stored."""
    rules = EMPTY
    for verb, name, before, after in steps:
        old = rules
        others = [it for it in ids(old) if it != name]
        try:
            if verb == "put":
                rules = edits.put_rule(rules, "sender", name, NOTIFY, before=before, after=after)
                assert name in ids(rules)
            elif verb == "delete":
                rules = edits.delete_rule(rules, "sender", name)
                assert name not in ids(rules)
            elif verb == "off":
                rules = edits.set_enabled(rules, "sender", name, {"enabled": False})
                assert not edits.get_enabled(rules, "sender", name)
            else:
                rules = edits.set_actions(rules, "sender", name, {"actions": []})
        except MatrixError:
            assert rules is old
        assert [it for it in ids(rules) if it != name] == others
        assert len(set(ids(rules))) == len(ids(rules))
        assert edits.decode_rules(edits.encode_rules(rules)) == rules


def test_everything_survives_storing() -> None:
    """After a restart the user's rules are what they were."""
    rules = edits.put_rule(with_senders("a"), "content", "k", {"actions": [], "pattern": ""})
    rules = edits.put_rule(rules, "override", "o", NOTIFY)
    rules = edits.set_actions(rules, "underride", ".m.rule.call", {"actions": []})
    rules = edits.set_enabled(rules, "override", ".m.rule.master", {"enabled": False})
    stored = edits.decode_rules(edits.encode_rules(rules))
    assert stored == rules
    assert edits.to_client(stored, ALICE) == edits.to_client(rules, ALICE)
    assert edits.decode_rules(b"{}") == EMPTY
