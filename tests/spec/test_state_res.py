"""State resolution: the known scenarios, what the versions differ in, and properties of any room."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap64

from ranvier.spec.errors import AuthError
from ranvier.spec.event import StateKey
from ranvier.spec.event_auth import check_auth
from ranvier.spec.room_versions import ROOM_VERSIONS
from ranvier.spec.state_res import Resolution, resolve
from ranvier.spec.state_res_v2 import full_conflicted_set
from ranvier.spec.state_sets import StateSplit
from tests.spec.dag import Dag, State, make_event, user

POWER, RULES, TOPIC = "m.room.power_levels", "m.room.join_rules", "m.room.topic"


def start(version: str, **more: Any) -> Dag:
    """Make a public room of alice (100), bob, carol and zara; its last event is ``start``."""
    dag = Dag(version, **more).create()
    dag.power("power", "alice", {"alice": 100} if version != "12" else {})
    dag.rules("public", "alice", "public")
    for who in ("bob", "carol", "zara"):
        dag.join(f"join-{who}", who)
    dag.message("start", "alice")
    return dag


def levels(version: str, **users: int) -> Mapping[str, int]:
    """Power levels of users; alice has 100 where creators may have one."""
    return users if version == "12" else {"alice": 100, **users}


@pytest.fixture(params=["2", "6", "11", "12"])
def version(request: pytest.FixtureRequest) -> str:
    """Room versions with the second algorithm."""
    return str(request.param)


# -- known scenarios -----------------------------------------------------------------------


def test_ban_and_power_levels(version: str) -> None:
    """Were it otherwise, somebody who is banned could undo it by what he did at the same time."""
    dag = start(version)
    dag.power("PA", "alice", levels(version, bob=50))
    dag.member("MA", "alice", "alice", "join")
    dag.member("MB", "alice", "bob", "ban")
    dag.power("PB", "bob", levels(version, bob=50, carol=50), after="PA")
    state = dag.resolve("MB", "PB")
    assert dag.at(state, POWER) == "PA"
    assert dag.at(state, "m.room.member", "alice") == "MA"
    assert dag.at(state, "m.room.member", "bob") == "MB"


def test_join_rule_evasion(version: str) -> None:
    """Were it otherwise, one could enter a room that was closed, by joining as of before."""
    dag = start(version)
    dag.rules("JR", "alice", "private")
    dag.join("ME", "eve", after="start")
    state = dag.resolve("JR", "ME")
    assert dag.at(state, RULES) == "JR"
    assert dag.at(state, "m.room.member", "eve") is None


def test_power_levels_off_the_topic(version: str) -> None:
    """Were it otherwise, changes of power that follow one another would be lost in an unrelated fork."""
    dag = start(version)
    dag.power("PA", "alice", levels(version, bob=50, carol=50))
    dag.power("PB", "bob", levels(version, bob=50, carol=50))
    dag.power("PC", "carol", levels(version, bob=50, carol=0))
    assert dag.at(dag.resolve("PC", "PA"), POWER) == "PC"


def test_topic_and_lost_power(version: str) -> None:
    """Were it otherwise, a moderator who was demoted could still change the topic."""
    dag = start(version)
    dag.topic("T1", "alice")
    dag.power("PA1", "alice", levels(version, bob=50))
    dag.topic("T2", "alice")
    dag.power("PA2", "alice", levels(version, bob=0))
    dag.power("PB", "bob", levels(version, bob=50), after="PA1")
    dag.topic("T3", "bob")
    state = dag.resolve("PA2", "T3")
    assert dag.at(state, POWER) == "PA2"
    assert dag.at(state, TOPIC) == "T2"


def test_topic_of_a_banned_user_is_reset(version: str) -> None:
    """Were it otherwise, what a banned user set would stay though the other branch never saw it."""
    dag = start(version)
    dag.topic("T1", "alice")
    dag.power("PA", "alice", levels(version, bob=50))
    dag.topic("T2", "bob")
    dag.member("MB", "alice", "bob", "ban")
    state = dag.resolve("MB", "T1")
    assert dag.at(state, TOPIC) == "T1"
    assert dag.at(state, POWER) == "PA"
    assert dag.at(state, "m.room.member", "bob") == "MB"


def test_topic_after_a_merge(version: str) -> None:
    """Were it otherwise, the newest topic would lose against one that was set before branches met."""
    dag = start(version)
    dag.topic("T1", "alice")
    dag.power("PA1", "alice", levels(version, bob=50))
    dag.topic("T2", "alice")
    dag.power("PA2", "alice", levels(version, bob=0))
    dag.power("PB", "bob", levels(version, bob=50), after="PA1")
    dag.topic("T3", "bob")
    dag.member("MZ1", "zara", "zara", "join", after=["PA2", "T3"])
    dag.topic("T4", "alice", after="MZ1")
    state = dag.resolve("T4", "MZ1")
    assert dag.at(state, TOPIC) == "T4"
    assert dag.at(state, POWER) == "PA2"


def test_mainline_goes_before_time(version: str) -> None:
    """Were only time looked at, a clock that is wrong would let an older topic win for ever."""
    dag = start(version)
    dag.power("P1", "alice", levels(version, bob=50))
    dag.power("P2", "alice", levels(version, bob=51))
    dag.topic("T-new-line", "alice", ts=1)
    dag.topic("T-old-line", "bob", after="P1", ts=10**12)
    dag.message("M", "bob", after=["P1", "T-old-line"])
    assert dag.at(dag.resolve("T-new-line", "T-old-line"), TOPIC) == "T-new-line"


def test_time_then_id_decide_on_one_line(version: str) -> None:
    """Were the tie broken otherwise than on other servers, rooms would have two topics."""
    dag = start(version)
    dag.topic("Ta", "alice", ts=7)
    dag.topic("Tb", "alice", after="start", ts=6)
    assert dag.at(dag.resolve("Ta", "Tb"), TOPIC) == "Ta"
    dag.topic("Tc", "alice", after="start", ts=7)
    assert dag.at(dag.resolve("Ta", "Tb", "Tc"), TOPIC) == "Tc"


def test_greater_power_goes_first(version: str) -> None:
    """Were it otherwise, a moderator could undo what an administrator did at the same time."""
    dag = start(version)
    dag.power("PA", "alice", levels(version, bob=50))
    dag.rules("by-alice", "alice", "invite", ts=9_000_000)
    dag.rules("by-bob", "bob", "knock", after="PA", ts=1)
    # both are allowed, and the smaller is applied last
    assert dag.at(dag.resolve("by-alice", "by-bob"), RULES) == "by-bob"


def test_moderators_who_ban_each_other(version: str) -> None:
    """Were it not the same everywhere, each server would show another moderator as banned."""
    dag = start(version)
    dag.power("PA", "alice", levels(version, bob=60, carol=50))
    dag.member("bob-bans", "bob", "carol", "ban", ts=2)
    dag.member("carol-bans", "carol", "bob", "ban", after="PA", ts=1)
    state = dag.resolve("bob-bans", "carol-bans")
    assert dag.at(state, "m.room.member", "carol") == "bob-bans"
    assert dag.at(state, "m.room.member", "bob") == "join-bob"


def test_rejected_events_authorise_nothing(version: str) -> None:
    """Were they used, an event that everybody refused could still bring its sender into the room."""
    dag = start(version)
    create = [] if version == "12" else ["create"]
    dag.rules("open", "bob", "public", cite=[*create, "power", "join-bob"])
    dag.rules("closed", "alice", "invite", after="start")
    dag.join("eve", "eve", cite=[*create, "power", "open"])
    states = [
        {key: nid for key, nid in dag.after["eve"].items() if key[0] != RULES},
        {key: nid for key, nid in dag.after["start"].items() if key[0] != RULES},
    ]
    assert dag.at(dag.resolve_states(states), "m.room.member", "eve") == "eve"
    dag.events["open"].content["join_rule"] = "private"
    refused = dag.resolve_states(states, rejected=["open"])
    assert dag.at(refused, "m.room.member", "eve") is None


# -- v2.1 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "bob"), [("11", None), ("12", "late-join")])
def test_joins_are_judged_by_their_own_time(version: str, bob: str | None) -> None:
    """Version 12: were it judged by today's rules, members would fall out of a room that closed later."""
    dag = Dag(version).create()
    dag.power("power", "alice", levels(version))
    dag.rules("public", "alice", "public")
    dag.join("carol", "carol")
    dag.join("late-join", "bob")
    dag.rules("closed", "alice", "invite")
    with_bob = dag.after["closed"]
    without_bob = {key: nid for key, nid in with_bob.items() if key[1] != user("bob")}
    assert dag.at(dag.resolve_states([with_bob, without_bob]), "m.room.member", "bob") == bob


@pytest.mark.parametrize(("version", "winner"), [("11", "P1"), ("12", "P3")])
def test_events_between_conflicting_ones_count(version: str, winner: str) -> None:
    """Version 12: were the step between left out, one bad server could set power levels back by years."""
    dag = start(version)
    dag.power("P1", "alice", levels(version))
    dag.power("P2", "alice", levels(version, bob=100))
    dag.join("dave", "dave")  # which cites P2, so that every state has it in its auth chain
    dag.power("P3", "bob", levels(version, bob=100, carol=50))
    reset = {**dag.after["P3"], (POWER, ""): dag.nids["P1"]}
    for states in ([dag.after["P3"], reset], [reset, dag.after["P3"]]):
        assert dag.at(dag.resolve_states(states), POWER) == winner


def test_subgraph_of_long_chains() -> None:
    """Were an event between missed, version 12 rooms would differ between servers."""
    for reverse in (False, True):
        dag = start("12", reverse_nids=reverse)
        for n in range(40):
            dag.power(f"P{n}", "alice", {"bob": n})
        dag.join("dave", "dave")
        dag.topic("T", "alice")
        states = [{**dag.after["T"], (POWER, ""): dag.nids[name]} for name in ("P5", "P20", "P39")]
        resolution = Resolution(dag.version, states)
        chains: dict[int, BitMap64] = {}
        while missing := resolution.missing_chains(chains):
            chains.update((nid, dag.chains[nid]) for nid in missing)
        needed = resolution.needed_events(chains)
        names = {dag.names[nid] for nid in needed.nids}
        assert {f"P{n}" for n in range(5, 40)} <= names
        assert "P4" not in names
        assert dag.at(dag.resolve_states(states), POWER) == "P39"


# -- v1 ------------------------------------------------------------------------------------


def test_v1_takes_the_deepest() -> None:
    """Were another taken, rooms of version 1 would have two topics."""
    dag = start("1")
    dag.topic("T1", "alice")
    dag.message("M", "alice", after="start")
    dag.topic("T2", "alice")
    assert dag.at(dag.resolve("T1", "T2"), TOPIC) == "T2"


def test_v1_power_levels_build_on_one_another() -> None:
    """Were a change taken that the one before forbids, power in old rooms would be anybody's."""
    dag = start("1")
    dag.power("P1", "alice", {"alice": 100, "bob": 50})
    dag.message("M", "alice", after="start")
    dag.message("M2", "alice")
    dag.power("P2", "bob", {"bob": 100})
    assert dag.at(dag.resolve("P1", "P2"), POWER) == "P1"


def test_v1_members_and_what_follows_from_them() -> None:
    """Were a banned user's topic taken, a ban in old rooms would do nothing in a fork."""
    dag = start("1")
    dag.power("P", "alice", {"alice": 100, "bob": 50})
    dag.topic("T1", "alice")
    dag.message("M", "alice")
    dag.member("ban", "alice", "bob", "ban")
    dag.member("again", "bob", "bob", "join", after="P")
    dag.message("M2", "bob")
    dag.message("M3", "bob")
    dag.topic("T2", "bob")
    state = dag.resolve("ban", "T2")
    assert dag.at(state, "m.room.member", "bob") == "ban"
    assert dag.at(state, TOPIC) == "T1"


def test_v1_has_no_conflict_with_absence() -> None:
    """Were absence a conflict, an event in one branch alone could vanish from old rooms."""
    dag = start("1")
    dag.topic("T", "alice")
    dag.join("eve", "eve", after="start")
    state = dag.resolve("T", "eve")
    assert dag.at(state, TOPIC) == "T"
    assert dag.at(state, "m.room.member", "eve") == "eve"


def test_v1_where_nothing_passes() -> None:
    """Were the key dropped, old rooms would lose a name that other servers still show."""
    dag = start("1")
    dag.topic("T1", "bob")
    dag.topic("T2", "carol", after="T1")
    assert dag.at(dag.resolve("T1", "T2"), TOPIC) == "T1"


# -- without a conflict ----------------------------------------------------------------------


@pytest.mark.parametrize("version_id", ["1", "2", "12"])
def test_equal_states_need_nothing(version_id: str) -> None:
    """Were anything loaded, every message of a busy room would cost what a fork costs."""
    rules = ROOM_VERSIONS[version_id]
    state = {("m.room.member", f"@u{n}:hs"): n for n in range(100)}
    for states in ([], [state], [state, dict(state)], [state, state, dict(state)]):
        resolution = Resolution(rules, states)
        assert resolution.is_trivial
        assert not resolution.missing_chains({})
        needed = resolution.needed_events({})
        assert not needed.nids
        assert not resolution.needed_auth_events({}).event_ids
        assert not needed.power_levels_among
        assert resolve(rules, states, {}, {}) == (state if states else {})


def test_deep_rooms_do_not_recurse() -> None:
    """Were it recursive, a room whose power levels changed a thousand times would stop taking events."""
    for version in ("11", "12"):
        dag = start(version)
        for n in range(1500):
            dag.power(f"P{n}", "alice", levels(version, bob=n % 40))
        dag.topic("T1", "alice")
        dag.rules("R1", "alice", "invite")
        dag.topic("T2", "alice", after="P700")
        dag.power("Q", "alice", levels(version, bob=77))
        state = dag.resolve("R1", "Q")
        assert dag.at(state, RULES) == "R1"
        assert dag.at(state, TOPIC) in ("T1", "T2")


# -- properties of any room --------------------------------------------------------------------

Script = list[tuple[str, str, str, int, int, int]]

USERS = ("alice", "bob", "carol", "dave")

ACTIONS: dict[str, Callable[[Dag, str, str, str, int, dict[str, Any]], Any]] = {
    "join": lambda dag, name, who, _other, _n, at: dag.join(name, who, **at),
    "leave": lambda dag, name, who, _other, _n, at: dag.member(name, who, who, "leave", **at),
    "invite": lambda dag, name, who, other, _n, at: dag.member(name, who, other, "invite", **at),
    "ban": lambda dag, name, who, other, _n, at: dag.member(name, who, other, "ban", **at),
    "kick": lambda dag, name, who, other, _n, at: dag.member(name, who, other, "leave", **at),
    "topic": lambda dag, name, who, _other, _n, at: dag.topic(name, who, **at),
    "rules": lambda dag, name, who, _other, n, at: dag.rules(
        name, who, ("public", "invite", "knock")[n % 3], **at
    ),
    "power": lambda dag, name, who, other, n, at: dag.power(
        name, who, {**levels(dag.version.identifier), who: 50, other: (0, 50, 100)[n % 3]}, **at
    ),
}

steps = st.lists(
    st.tuples(
        st.sampled_from(sorted(ACTIONS)),
        st.sampled_from(USERS),
        st.sampled_from(USERS),
        st.integers(0, 8),  # which event it follows, and what it sets
        st.integers(0, 8),
        st.integers(0, 5),  # clocks of servers differ
    ),
    min_size=3,
    max_size=14,
)


def grow(
    version: str, script: list[tuple[str, str, str, int, int, int]], *, reverse: bool
) -> tuple[Dag, list[str]]:
    """Play what is allowed of a script, each step after one or two of the last; name the newest events."""
    dag = start(version, reverse_nids=reverse)
    names = ["start"]
    for number, (verb, who, other, back, second, ts) in enumerate(script):
        previous = {names[-1 - back % len(names)], names[-1 - second % len(names)]}
        before = dag.full_state(dag.resolve(*sorted(previous)))
        if version == "12" and verb == "power" and "alice" in (who, other):
            continue
        name = f"e{number}"
        event = ACTIONS[verb](dag, name, who, other, back + second, {"after": sorted(previous), "ts": ts})
        try:
            check_auth(event, before)
            names.append(name)
        except AuthError:
            dag.after[name] = dag.after[sorted(previous)[0]]  # refused: nothing follows it
    return dag, names[-3:]


def named(dag: Dag, state: Mapping[StateKey, int]) -> dict[StateKey, str]:
    return {key: dag.names[nid] for key, nid in state.items()}


@pytest.mark.parametrize("version_id", ["1", "2", "11", "12"])
@given(script=steps)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_resolution_depends_on_nothing_else(version_id: str, script: list[Any]) -> None:
    """Were it to depend on order or on our numbering, two servers would have two states of one room."""
    dag, heads = grow(version_id, script, reverse=False)
    mirrored, _ = grow(version_id, script, reverse=True)
    results = [named(dag, dag.resolve(*order)) for order in itertools.permutations(heads)]
    results += [named(mirrored, mirrored.resolve(*order)) for order in itertools.permutations(heads)]
    results.append(named(dag, dag.resolve(*heads, *heads)))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("version_id", ["2", "11", "12"])
@given(script=steps)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_resolution_gives(version_id: str, script: list[Any]) -> None:
    """Were it to lose what all agree on, or to take what nobody may send, the room would reset itself."""
    dag, heads = grow(version_id, script, reverse=False)
    states = [dag.after[name] for name in heads]
    resolved = dag.resolve(*heads)
    for key in set.intersection(*(set(state) for state in states)):
        if len({state[key] for state in states}) == 1:
            assert resolved[key] == states[0][key]
    everything = set().union(*(set(state.values()) for state in states))
    chains = BitMap64()
    for nid in everything:
        chains |= dag.chains[nid]
    for key, nid in resolved.items():
        event = dag.events[dag.names[nid]]
        assert event.key == key
        assert nid in everything or nid in chains
        # an event that was authorised once stays so when it is replayed on what it cites
        if event.type != "m.room.create":
            cited = {
                dag.events[name].key: dag.events[name]
                for name in (event_id[1:].removesuffix(":hs") for event_id in event.auth_event_ids)
            }
            check_auth(event, {("m.room.create", ""): dag.events["create"], **cited})
    # nothing is left to resolve
    assert dag.resolve_states([resolved, dict(resolved)]) == resolved


def union_of_chains(dag: Dag, nids: Iterable[int]) -> set[int]:
    return set().union(*(set(dag.chains[nid]) for nid in nids))


@pytest.mark.parametrize("subgraph", [False, True])
@given(script=steps, picks=st.lists(st.integers(0, 20), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_full_conflicted_set_is_as_defined(subgraph: bool, script: list[Any], picks: list[int]) -> None:
    """Were the short cuts to find another set than the definition does, rooms would fall apart."""
    dag, _ = grow("12" if subgraph else "11", script, reverse=False)
    names = list(dag.after)
    states = [dag.after[names[-1 - pick % len(names)]] for pick in picks]
    chains = [union_of_chains(dag, state.values()) for state in states]
    keys = set().union(*states)
    conflicted = {
        state[key]
        for key in keys
        for state in states
        if key in state and not all(other.get(key) == state[key] for other in states)
    }
    expected = conflicted | (set().union(*chains) - set.intersection(*chains))
    if subgraph:
        expected |= {
            nid
            for nid in union_of_chains(dag, conflicted)
            if any(nid in dag.chains[end] for end in conflicted) and set(dag.chains[nid]) & conflicted
        }
    split = StateSplit.of(states)
    assert set(full_conflicted_set(split, dag.chains, subgraph=subgraph)) == expected
    resolution = pickle.loads(pickle.dumps(Resolution(dag.version, states)))
    loaded = {nid: dag.events[name] for nid, name in dag.names.items()}
    assert resolution.resolve(loaded, dag.chains) == dag.resolve_states(states)


@pytest.mark.parametrize("version_id", ["2", "11"])
@given(script=steps.map(lambda script: [step for step in script if step[0] in ("ban", "topic", "rules")]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_won_is_allowed_by_what_won(version_id: str, script: list[Any]) -> None:
    """Were a topic to win that its setter may not set, moderation would not reach over a fork."""
    dag, heads = grow(version_id, script, reverse=False)
    resolved = dag.full_state(dag.resolve(*heads))
    topic = resolved.get((TOPIC, ""))
    conflicting = {dag.at(dag.after[name], TOPIC) for name in heads}
    if topic is not None and len(conflicting) > 1:
        check_auth(topic, resolved)


def test_states_of_ten_thousand() -> None:
    """Were the result of a large fork wrong, members of a large room would vanish from its list."""
    version = ROOM_VERSIONS["11"]
    dag = start("11")
    base: State = dict(dag.after["start"])
    join = dag.events["join-bob"].auth_event_ids
    states: list[State] = [dict(base), dict(base)]
    for n in range(10_000):
        nid, key = 1000 + n, ("m.room.member", f"@u{n}:hs")
        content = {"membership": "join"}
        for index, state in enumerate(states[: 2 if n < 100 else 1]):
            event = make_event(
                version, f"u{n}-{index}", key[1], key[0], content, state_key=key[1], auth_events=join, ts=n
            )
            name, number = f"u{n}-{index}", nid + index * 20_000
            dag.events[name], dag.names[number], dag.nids[name] = event, name, number
            dag.chains[number] = dag.chains[dag.nids["join-bob"]]
            state[key] = number
        if n >= 100:
            states[1][key] = nid
    resolved = dag.resolve_states(states)
    assert len(resolved) == len(states[0])
    assert all(resolved["m.room.member", f"@u{n}:hs"] == 21_000 + n for n in range(100))
