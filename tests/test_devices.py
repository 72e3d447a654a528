"""Devices on a real database: made at login, renamed, deleted with all that is theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ranvier.spec.errors import MatrixError
from ranvier.storage.access_tokens import AccessTokenStore
from ranvier.storage.devices import DeviceStore, Sighting
from ranvier.users.accounts import TOKEN_ROWS
from ranvier.users.devices import Devices
from tests.core import Core, running_core

ALICE = "@alice:example.org"


def make_devices(core: Core) -> Devices:
    return Devices(store=DeviceStore(core.database), appender=core.appender, tail=core.tail)


@pytest.fixture
async def core(database: str) -> AsyncIterator[Core]:
    """A running core."""
    async with running_core(database) as running:
        yield running


async def test_a_login_makes_a_device_and_a_second_one_finds_it(core: Core) -> None:
    """Logging in twice as the same device would show two, or overwrite the name that the user gave."""
    devices = make_devices(core)
    chosen = await devices.ensure(ALICE, None, "phone")
    assert len(chosen) == 10
    assert await devices.ensure(ALICE, "DESK", None) == "DESK"
    assert await devices.ensure(ALICE, chosen, "another name") == chosen
    assert [(d.device_id, d.display_name) for d in await devices.of_user(ALICE)] == [
        (chosen, "phone"),
        ("DESK", None),
    ]


@pytest.mark.parametrize("device_id", ["", "*", "x" * 256])
async def test_a_device_id_that_can_not_be_is_refused(core: Core, device_id: str) -> None:
    """A client with a strange device id would get an internal error, or messages for others' devices."""
    with pytest.raises(MatrixError) as caught:
        await make_devices(core).ensure(ALICE, device_id, None)
    assert caught.value.errcode == "M_INVALID_PARAM"


async def test_a_device_is_deleted_with_its_tokens(core: Core) -> None:
    """A logged-out device could still be used, or stay in the list."""
    devices = make_devices(core)
    for device_id in ("A", "B", "C"):
        await devices.ensure(ALICE, device_id, None)
    await devices.delete(ALICE, ["A", "NEVER_WAS"])
    revoked = [row.device_id for row in core.tail.rows_of_user(ALICE, 0) if row.kind == TOKEN_ROWS]
    assert revoked == ["A"]
    assert [d.device_id for d in await devices.of_user(ALICE)] == ["B", "C"]
    await devices.delete_all(ALICE, keep="C")
    assert [d.device_id for d in await devices.of_user(ALICE)] == ["C"]


async def test_devices_that_are_not_there_are_not_deleted(core: Core) -> None:
    """Whoever invents device ids would have everybody's writes wait, and fill the log."""
    before = await core.appender.note_others()
    await make_devices(core).delete(ALICE, [f"D{n}" for n in range(10_000)])
    assert await core.appender.note_others() == before


async def test_a_session_without_a_device_is_ended(core: Core) -> None:
    """Whose device is gone already could not log out."""
    store = AccessTokenStore(core.database)
    await core.database.execute(
        "INSERT INTO access_tokens (token_hash, user_id, device_id, created_ts) VALUES ('x', $1, 'A', 1)",
        ALICE,
    )
    assert await store.devices(ALICE) == ["A"]
    await make_devices(core).delete(ALICE, ["A"])
    assert await store.devices(ALICE) == []


async def test_a_device_is_renamed(core: Core) -> None:
    """A new name would not show."""
    devices = make_devices(core)
    await devices.ensure(ALICE, "A", "old")
    await devices.rename(ALICE, "A", "näw")
    assert (await devices.get(ALICE, "A")).display_name == "näw"
    with pytest.raises(MatrixError) as caught:
        await devices.rename(ALICE, "B", "name")
    assert caught.value.errcode == "M_NOT_FOUND"
    with pytest.raises(MatrixError) as caught:
        await devices.rename(ALICE, "A", "n" * 300)
    assert caught.value.errcode == "M_TOO_LARGE"


async def test_only_newer_sightings_count(core: Core) -> None:
    """The list of devices would show an old address as the last one."""
    devices = make_devices(core)
    await devices.ensure(ALICE, "A", None)
    await devices.saw([Sighting(ALICE, "A", 2_000, "192.0.2.1", "new")])
    await devices.saw([Sighting(ALICE, "A", 1_000, "192.0.2.9", "old")])
    device = await devices.get(ALICE, "A")
    assert (device.last_seen_ts, device.last_seen_ip, device.last_seen_agent) == (2_000, "192.0.2.1", "new")
