"""Key backups on a real database: versions, which key stays, etag and count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from ranvier.log.clock import note_asked
from ranvier.log.standstill import Standstill
from ranvier.spec.errors import MatrixError
from ranvier.storage.key_backup import KeyBackupStore
from ranvier.users.key_backup import KeyBackups, KeyData
from tests.core import Core, running_core
from tests.test_standstill import Now

ALICE = "@alice:example.org"
ALGORITHM = "m.megolm_backup.v1.curve25519-aes-sha2"
ROOM, OTHER = "!room:example.org", "!other:example.org"


def key(index: int = 0, forwarded: int = 0, verified: bool = False, data: str = "") -> KeyData:
    return KeyData(index, forwarded, verified, {"ciphertext": data})


def plain(value: Any) -> Any:
    """Make the JSON of an answer comparable."""
    return orjson.loads(orjson.dumps(value))


@pytest.fixture
async def core(database: str) -> AsyncIterator[Core]:
    """A running core."""
    async with running_core(database) as running:
        yield running


@pytest.fixture
def backups(core: Core) -> KeyBackups:
    """Key backups on that core."""
    return KeyBackups(store=KeyBackupStore(core.database), appender=core.appender)


async def errcode_of(awaitable: Any) -> tuple[int, str]:
    with pytest.raises(MatrixError) as caught:
        await awaitable
    return caught.value.status, caught.value.errcode


async def test_a_worker_that_stood_still_replaces_no_backup_that_may_be_newer(
    core: Core, backups: KeyBackups
) -> None:
    """Somebody's keys would be gone, or no longer fit what they are encrypted with."""
    version, now = await backups.create(ALICE, ALGORITHM, {"newer": True}), Now()
    core.appender.standstill = Standstill(lambda: core.tail.pos, now.clock)
    note_asked()
    now.forward_s = 10.0
    for late in (
        backups.create(ALICE, ALGORITHM, {}),
        backups.update(ALICE, version, ALGORITHM, {}, None),
        backups.delete_keys(ALICE, version),
        backups.delete(ALICE, version),
    ):
        assert await errcode_of(late) == (503, "M_UNKNOWN")
    assert plain(await backups.current(ALICE))["auth_data"] == {"newer": True}


async def test_versions(backups: KeyBackups) -> None:
    """A new device would not find the backup, or find a deleted one."""
    assert await errcode_of(backups.current(ALICE)) == (404, "M_NOT_FOUND")
    assert await backups.create(ALICE, ALGORITHM, {"public_key": "one"}) == "1"
    assert await backups.create(ALICE, ALGORITHM, {"public_key": "two"}) == "2"
    expected = {"algorithm": ALGORITHM, "auth_data": {"public_key": "two"}, "version": "2"}
    assert plain(await backups.current(ALICE)) == {**expected, "etag": "0", "count": 0}
    assert plain(await backups.get(ALICE, "1"))["auth_data"] == {"public_key": "one"}
    await backups.delete(ALICE, "2")
    await backups.delete(ALICE, "2")
    assert (await backups.current(ALICE))["version"] == "1"
    assert await errcode_of(backups.get(ALICE, "2")) == (404, "M_NOT_FOUND")
    assert await errcode_of(backups.delete(ALICE, "9")) == (404, "M_NOT_FOUND")
    assert await errcode_of(backups.delete(ALICE, "x" * 50)) == (404, "M_NOT_FOUND")
    assert await backups.create(ALICE, ALGORITHM, {}) == "3"
    versions = await asyncio.gather(*(backups.create(ALICE, ALGORITHM, {}) for _ in range(5)))
    assert sorted(versions) == ["4", "5", "6", "7", "8"]


async def test_only_auth_data_of_a_version_changes(backups: KeyBackups) -> None:
    """A device could make a backup unreadable for all others."""
    await backups.create(ALICE, ALGORITHM, {"public_key": "one"})
    await backups.update(ALICE, "1", ALGORITHM, {"public_key": "two"}, "1")
    assert plain(await backups.current(ALICE))["auth_data"] == {"public_key": "two"}
    wrong_algorithm = backups.update(ALICE, "1", "m.other", {}, None)
    assert await errcode_of(wrong_algorithm) == (400, "M_INVALID_PARAM")
    assert await errcode_of(backups.update(ALICE, "1", ALGORITHM, {}, "2")) == (400, "M_INVALID_PARAM")
    assert await errcode_of(backups.update(ALICE, "2", ALGORITHM, {}, None)) == (404, "M_NOT_FOUND")


async def test_keys_are_stored_found_and_deleted(backups: KeyBackups) -> None:
    """A new device could not read old messages."""
    await backups.create(ALICE, ALGORITHM, {})
    stored = await backups.put(
        ALICE, "1", {ROOM: {"s1": key(data="a"), "s2": key(data="b")}, OTHER: {"s3": key(data="c")}}
    )
    assert stored == {"etag": "1", "count": 3}
    everything = plain(await backups.keys(ALICE, "1"))
    assert {room_id: set(sessions) for room_id, sessions in everything.items()} == {
        ROOM: {"s1", "s2"},
        OTHER: {"s3"},
    }
    assert plain(await backups.keys(ALICE, "1", ROOM, "s2")) == {
        ROOM: {
            "s2": {
                "first_message_index": 0,
                "forwarded_count": 0,
                "is_verified": False,
                "session_data": {"ciphertext": "b"},
            }
        }
    }
    assert await backups.keys(ALICE, "1", "!none:example.org") == {}
    assert await backups.delete_keys(ALICE, "1", ROOM, "s1") == {"etag": "2", "count": 2}
    assert await backups.delete_keys(ALICE, "1", ROOM, "s1") == {"etag": "2", "count": 2}
    assert await backups.delete_keys(ALICE, "1", ROOM) == {"etag": "3", "count": 1}
    assert await backups.delete_keys(ALICE, "1") == {"etag": "4", "count": 0}
    assert await errcode_of(backups.delete_keys(ALICE, "7")) == (404, "M_NOT_FOUND")
    assert await errcode_of(backups.keys(ALICE, "7")) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("old", "new", "replaced"),
    [
        (key(5, 5), key(5, 5), False),
        (key(5, 5), key(9, 9, verified=True), True),
        (key(5, 5, verified=True), key(0, 0), False),
        (key(5, 5), key(4, 9), True),
        (key(5, 5), key(6, 0), False),
        (key(5, 5), key(5, 4), True),
        (key(5, 5), key(5, 6), False),
        (key(5, 5, verified=True), key(4, 5, verified=True), True),
    ],
)
async def test_the_better_key_stays(backups: KeyBackups, old: KeyData, new: KeyData, replaced: bool) -> None:
    """A forged or poorer key would push out a good one, and messages stay unreadable."""
    await backups.create(ALICE, ALGORITHM, {})
    old.session_data, new.session_data = {"which": "old"}, {"which": "new"}
    await backups.put(ALICE, "1", {ROOM: {"s": old}})
    answer = await backups.put(ALICE, "1", {ROOM: {"s": new}})
    assert answer == {"etag": "2" if replaced else "1", "count": 1}
    stays = plain(await backups.keys(ALICE, "1"))[ROOM]["s"]["session_data"]["which"]
    assert stays == ("new" if replaced else "old")


async def test_keys_go_into_the_current_version_only(backups: KeyBackups) -> None:
    """A device with an old backup would store keys where nobody looks for them."""
    for _ in range(2):
        await backups.create(ALICE, ALGORITHM, {})
    with pytest.raises(MatrixError) as caught:
        await backups.put(ALICE, "1", {ROOM: {"s": key()}})
    assert (caught.value.status, caught.value.errcode) == (403, "M_WRONG_ROOM_KEYS_VERSION")
    assert caught.value.fields == {"current_version": "2"}
    assert await errcode_of(backups.put(ALICE, "5", {ROOM: {"s": key()}})) == (404, "M_NOT_FOUND")
    await backups.delete(ALICE, "2")
    await backups.put(ALICE, "1", {ROOM: {"s": key()}})


@pytest.mark.parametrize(
    ("room_id", "session_id", "bad", "errcode"),
    [
        ("room", "s", key(), "M_INVALID_PARAM"),
        (ROOM, "", key(), "M_INVALID_PARAM"),
        (ROOM, "s", key(index=-1), "M_BAD_JSON"),
        (ROOM, "s", key(index=2**60), "M_BAD_JSON"),
        (ROOM, "s", key(data="x" * 70_000), "M_TOO_LARGE"),
    ],
)
async def test_bad_keys_are_refused(
    backups: KeyBackups, room_id: str, session_id: str, bad: KeyData, errcode: str
) -> None:
    """A broken client would get an internal error, or fill the server."""
    await backups.create(ALICE, ALGORITHM, {})
    with pytest.raises(MatrixError) as caught:
        await backups.put(ALICE, "1", {room_id: {session_id: bad}})
    assert caught.value.errcode == errcode


async def test_devices_that_store_at_once_all_count(backups: KeyBackups) -> None:
    """A device would not notice that another one changed the backup."""
    await backups.create(ALICE, ALGORITHM, {})
    answers = await asyncio.gather(*(backups.put(ALICE, "1", {ROOM: {f"s{n}": key()}}) for n in range(10)))
    assert {answer["etag"] for answer in answers} == {str(n) for n in range(1, 11)}
    assert (await backups.current(ALICE))["count"] == 10
