"""Keys of devices on a real database: published, asked for, given out once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from ranvier.log.clock import note_asked
from ranvier.log.standstill import Standstill
from ranvier.spec.errors import MatrixError
from ranvier.storage.device_keys import DeviceKeyStore, PreKey
from ranvier.storage.devices import DeviceStore
from ranvier.users.device_keys import DeviceKeys, KeyCounts
from tests.core import SERVER_NAME, Core, running_core
from tests.test_devices import make_devices
from tests.test_standstill import Now

ALICE, BOB = "@alice:example.org", "@bob:example.org"


def make_keys(core: Core) -> DeviceKeys:
    return DeviceKeys(
        store=DeviceKeyStore(core.database),
        appender=core.appender,
        tail=core.tail,
        server_name=SERVER_NAME,
    )


def identity(user_id: str, device_id: str, key: str = "one") -> dict[str, Any]:
    """Identity keys as a client uploads them."""
    return {
        "user_id": user_id,
        "device_id": device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {f"ed25519:{device_id}": key, f"curve25519:{device_id}": key},
        "signatures": {user_id: {f"ed25519:{device_id}": "signature"}},
    }


def one_time(count: int, start: int = 0) -> dict[str, Any]:
    """One-time keys as a client uploads them."""
    return {
        f"signed_curve25519:K{n:04}": {"key": f"key{n}", "signatures": {ALICE: {"ed25519:A": "s"}}}
        for n in range(start, start + count)
    }


@pytest.fixture
async def core(database: str) -> AsyncIterator[Core]:
    """A running core with devices A and B of Alice."""
    async with running_core(database) as running:
        devices = make_devices(running)
        await devices.ensure(ALICE, "A", "phone")
        await devices.ensure(ALICE, "B", None)
        yield running


def ids(claimed: dict[str, Any]) -> set[str]:
    return {key for user in claimed["one_time_keys"].values() for device in user.values() for key in device}


async def test_published_keys_are_found(core: Core) -> None:
    """Nobody could write encrypted messages to a device."""
    keys = make_keys(core)
    await keys.upload(ALICE, "A", device_keys={**identity(ALICE, "A"), "unsigned": {"spoofed": 1}})
    await keys.upload(ALICE, "B", device_keys=identity(ALICE, "B"))
    answer = await keys.query(BOB, {ALICE: [], BOB: []})
    assert set(answer["device_keys"][ALICE]) == {"A", "B"}
    assert answer["device_keys"][BOB] == {}
    assert answer["device_keys"][ALICE]["A"] == {
        **identity(ALICE, "A"),
        "unsigned": {"device_display_name": "phone"},
    }
    assert set((await keys.query(BOB, {ALICE: ["B", "X"]}))["device_keys"][ALICE]) == {"B"}


async def test_a_server_that_can_not_be_asked_is_named(core: Core) -> None:
    """A client would take the silence of another server for a user without devices."""
    keys = make_keys(core)
    answer = await keys.query(ALICE, {"@carol:far.example": []})
    assert list(answer["failures"]) == ["far.example"]
    assert "@carol:far.example" not in answer["device_keys"]
    claimed = await keys.claim({"@carol:far.example": {"X": "signed_curve25519"}})
    assert list(claimed["failures"]) == ["far.example"]


@pytest.mark.parametrize(
    ("change", "errcode"),
    [
        ({"user_id": BOB}, "M_INVALID_PARAM"),
        ({"device_id": "B"}, "M_INVALID_PARAM"),
        ({"keys": {"ed25519:B": "x"}}, "M_INVALID_PARAM"),
        ({"keys": {"ed25519:A": 5}}, "M_BAD_JSON"),
        ({"algorithms": "olm"}, "M_BAD_JSON"),
        ({"signatures": {ALICE: "x"}}, "M_BAD_JSON"),
        ({"extra": "x" * 40_000}, "M_TOO_LARGE"),
        ({"extra": 1.5}, "M_BAD_JSON"),
    ],
)
async def test_keys_of_somebody_else_are_refused(core: Core, change: dict[str, Any], errcode: str) -> None:
    """A device could publish keys in the name of another one, or fill the server."""
    with pytest.raises(MatrixError) as caught:
        await make_keys(core).upload(ALICE, "A", device_keys={**identity(ALICE, "A"), **change})
    assert caught.value.errcode == errcode


async def test_one_time_keys_are_given_out_in_order_and_once(core: Core) -> None:
    """Two people would get one key, and one of their messages could never be read."""
    keys = make_keys(core)
    assert orjson.loads(await keys.upload(ALICE, "A", one_time_keys=one_time(2))) == {"signed_curve25519": 2}
    await keys.upload(ALICE, "A", one_time_keys=one_time(1, start=2))
    wanted = {ALICE: {"A": "signed_curve25519"}}
    first, second, third, none = [await keys.claim(wanted) for _ in range(4)]
    assert ids(first) | ids(second) == {"signed_curve25519:K0000", "signed_curve25519:K0001"}
    assert ids(third) == {"signed_curve25519:K0002"}
    assert none == {"one_time_keys": {}, "failures": {}}


async def test_a_key_that_is_claimed_in_a_worker_that_stood_still_is_not_lost(core: Core) -> None:
    """Whoever begins a chat would be refused, and the device not know that it has a key fewer."""
    keys, counts, now = make_keys(core), KeyCounts(store=DeviceKeyStore(core.database), tail=core.tail), Now()
    await keys.upload(ALICE, "A", one_time_keys=one_time(2))
    assert orjson.loads((await counts.of(ALICE, "A")).one_time) == {"signed_curve25519": 2}
    core.appender.standstill = Standstill(lambda: core.tail.pos, now.clock)
    note_asked()
    now.forward_s, before = 10.0, core.tail.pos
    assert ids(await keys.claim({ALICE: {"A": "signed_curve25519"}})) == {"signed_curve25519:K0000"}
    assert await core.tail.wait_for(before + 1)
    assert orjson.loads((await counts.of(ALICE, "A")).one_time) == {"signed_curve25519": 1}


async def test_a_worker_that_stood_still_keeps_no_key_in_place_of_a_newer_one(core: Core) -> None:
    """Others would get a fallback key that its device has forgotten, and their messages could not be read."""
    keys, now = make_keys(core), Now()
    await keys.upload(ALICE, "A", fallback_keys={"signed_curve25519:NEWER": {"key": "n", "signatures": {}}})
    core.appender.standstill = Standstill(lambda: core.tail.pos, now.clock)
    note_asked()
    now.forward_s = 10.0
    with pytest.raises(MatrixError) as refused:
        await keys.upload(ALICE, "A", fallback_keys={"signed_curve25519:O": {"key": "o", "signatures": {}}})
    assert refused.value.status == 503
    assert ids(await keys.claim({ALICE: {"A": "signed_curve25519"}})) == {"signed_curve25519:NEWER"}


async def test_workers_that_claim_at_once_give_each_key_once(database: str) -> None:
    """With several workers under load, one one-time key would go to two people."""
    async with running_core(database) as one, running_core(database) as two:
        await make_devices(one).ensure(ALICE, "A", None)
        keys = [make_keys(one), make_keys(two)]
        await keys[0].upload(ALICE, "A", one_time_keys=one_time(60))
        wanted = {ALICE: {"A": "signed_curve25519"}}
        claims = await asyncio.gather(*(keys[n % 2].claim(wanted) for n in range(60)))
        given = [key for claim in claims for key in ids(claim)]
        assert len(given) == len(set(given))
        left = await DeviceKeyStore(one.database).counts(ALICE, "A")
        assert len(given) + left[0].get("signed_curve25519", 0) == 60


async def test_a_fallback_key_is_given_when_nothing_is_left(core: Core) -> None:
    """A device that was offline for long could not be reached, or would not replace its fallback key."""
    keys, counts = make_keys(core), KeyCounts(store=DeviceKeyStore(core.database), tail=core.tail)
    fallback = {"signed_curve25519:F": {"key": "f", "fallback": True, "signatures": {}}}
    await keys.upload(ALICE, "A", one_time_keys=one_time(1), fallback_keys=fallback)
    assert orjson.loads((await counts.of(ALICE, "A")).unused_fallback) == ["signed_curve25519"]
    wanted = {ALICE: {"A": "signed_curve25519"}}
    given = [ids(await keys.claim(wanted)) for _ in range(3)]
    assert given == [{"signed_curve25519:K0000"}, {"signed_curve25519:F"}, {"signed_curve25519:F"}]
    await core.tail.wait_for(await core.database.fetchval("SELECT pos FROM log_head"))
    assert (await counts.of(ALICE, "A")) == (b'{"signed_curve25519":0}', b"[]")
    await keys.upload(ALICE, "A", fallback_keys=fallback)
    assert (await counts.of(ALICE, "A")).unused_fallback == b"[]"
    new = {"signed_curve25519:G": {"key": "g", "fallback": True, "signatures": {}}}
    await keys.upload(ALICE, "A", fallback_keys=new)
    assert orjson.loads((await counts.of(ALICE, "A")).unused_fallback) == ["signed_curve25519"]


async def test_a_retried_upload_is_no_error_and_another_key_is(core: Core) -> None:
    """A client whose answer got lost could never upload again; or two keys would have one name."""
    keys = make_keys(core)
    await keys.upload(ALICE, "A", one_time_keys=one_time(2))
    again = one_time(3)
    again["signed_curve25519:K0000"]["signatures"] = {ALICE: {"ed25519:A": "made anew"}}
    assert orjson.loads(await keys.upload(ALICE, "A", one_time_keys=again)) == {"signed_curve25519": 3}
    with pytest.raises(MatrixError) as caught:
        await keys.upload(
            ALICE, "A", one_time_keys={"signed_curve25519:K0000": {"key": "x", "signatures": {}}}
        )
    assert caught.value.status == 400
    assert "already exists" in caught.value.message


async def test_a_retried_upload_brings_no_key_back_that_was_given_out(core: Core) -> None:
    """Two people would get one key, and the messages of one of them could never be read."""
    keys = make_keys(core)
    await keys.upload(ALICE, "A", one_time_keys=one_time(2))
    wanted = {ALICE: {"A": "signed_curve25519"}}
    first = ids(await keys.claim(wanted))
    again = one_time(2)
    assert orjson.loads(await keys.upload(ALICE, "A", one_time_keys=again)) == {"signed_curve25519": 1}
    second, none = [ids(await keys.claim(wanted)) for _ in range(2)]
    assert (first | second, none) == (set(one_time(2)), set())
    await core.database.execute("UPDATE claimed_one_time_keys SET claimed_at = now() - interval '2 days'")
    await keys.upload(ALICE, "A", one_time_keys=one_time(1, start=2))
    assert not await core.database.fetchval("SELECT count(*) FROM claimed_one_time_keys")


async def test_keys_are_counted_though_the_worker_that_stored_them_died(core: Core) -> None:
    """A device whose upload had to be retried would be told that it has none left, and upload more."""
    keys, store = make_keys(core), DeviceKeyStore(core.database)
    counts = KeyCounts(store=store, tail=core.tail)
    assert (await counts.of(ALICE, "A")).one_time == b'{"signed_curve25519":0}'
    stored = [PreKey(*name.split(":"), orjson.dumps(key)) for name, key in one_time(2).items()]
    await store.add(ALICE, "A", stored, [])  # and nobody was told
    await keys.upload(ALICE, "A", one_time_keys=one_time(2))
    assert (await counts.of(ALICE, "A")).one_time == b'{"signed_curve25519":2}'


@pytest.mark.parametrize(
    ("upload", "errcode"),
    [
        ({"one_time_keys": {"nocolon": "x"}}, "M_INVALID_PARAM"),
        ({"one_time_keys": {"curve25519:a": 5}}, "M_BAD_JSON"),
        ({"one_time_keys": {"signed_curve25519:a": {"signatures": {}}}}, "M_BAD_JSON"),
        ({"one_time_keys": {"curve25519:a": "x" * 5000}}, "M_TOO_LARGE"),
        ({"one_time_keys": {f"curve25519:{n}": "x" for n in range(1001)}}, "M_TOO_LARGE"),
        ({"fallback_keys": {"curve25519:a": "x", "curve25519:b": "y"}}, "M_INVALID_PARAM"),
    ],
)
async def test_bad_one_time_keys_are_refused(core: Core, upload: dict[str, Any], errcode: str) -> None:
    """A device could store what nobody can use, or as much as it likes."""
    with pytest.raises(MatrixError) as caught:
        await make_keys(core).upload(ALICE, "A", **upload)
    assert caught.value.errcode == errcode


async def test_a_deleted_device_takes_its_keys_with_it(core: Core) -> None:
    """Messages would still be encrypted for a device that was logged out."""
    keys = make_keys(core)
    await keys.upload(ALICE, "A", device_keys=identity(ALICE, "A"), one_time_keys=one_time(3))
    before = core.tail.pos
    await make_devices(core).delete(ALICE, ["A", "B"])
    deleted = [row for row in core.tail.rows_of_user(ALICE, before) if row.key == "deleted"]
    assert {(row.kind, row.device_id) for row in deleted} == {("device_list", "A"), ("device", "B")}
    assert (await keys.query(BOB, {ALICE: []}))["device_keys"] == {ALICE: {}}
    assert ids(await keys.claim({ALICE: {"A": "signed_curve25519"}})) == set()


async def test_keys_that_are_published_while_their_device_is_deleted_end_for_all(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others would be told of a device, and never that it is gone: they would encrypt to it for ever."""
    have_keys, left = DeviceStore.have_keys, [1]

    async def published_meanwhile(*args: Any) -> dict[str, bool]:
        found = await have_keys(*args)
        if left:
            left.pop()
            await make_keys(core).upload(ALICE, "A", device_keys=identity(ALICE, "A"))
        return found

    monkeypatch.setattr(DeviceStore, "have_keys", published_meanwhile)
    await make_devices(core).delete(ALICE, ["A"])
    told = [row.key for row in core.tail.rows_of_user(ALICE, 0) if row.kind == "device_list"]
    assert told == ["device_keys", "deleted"]


async def test_a_device_that_is_made_anew_has_all_its_one_time_keys(core: Core) -> None:
    """Keys of a client that counts from the start would be dropped unseen: nobody could write to it first."""
    keys, devices = make_keys(core), make_devices(core)
    await keys.upload(ALICE, "A", one_time_keys=one_time(1))
    assert ids(await keys.claim({ALICE: {"A": "signed_curve25519"}})) == set(one_time(1))
    await devices.delete(ALICE, ["A"])
    await devices.ensure(ALICE, "A", None)
    anew = {name: {**key, "key": "anew"} for name, key in one_time(1).items()}
    assert orjson.loads(await keys.upload(ALICE, "A", one_time_keys=anew)) == {"signed_curve25519": 1}


async def test_the_same_keys_again_tell_nobody(core: Core) -> None:
    """Each start of a client would make everybody fetch its keys anew."""
    keys = make_keys(core)
    await keys.upload(ALICE, "A", device_keys=identity(ALICE, "A"))
    before = core.tail.pos
    await keys.upload(ALICE, "A", device_keys=identity(ALICE, "A"))
    assert core.tail.rows_of_user(ALICE, before) == []
    await keys.upload(ALICE, "A", device_keys=identity(ALICE, "A", key="two"))
    assert [row.kind for row in core.tail.rows_of_user(ALICE, before)] == ["device_list"]
