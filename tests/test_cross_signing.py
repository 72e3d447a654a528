"""Cross-signing on a real database: keys replaced only by their user, signatures verified and shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from ranvier.spec.errors import MatrixError
from ranvier.spec.signatures import SigningKey, sign_json
from ranvier.spec.unpadded_base64 import encode_base64
from ranvier.storage.cross_signing import CrossSigningStore
from ranvier.storage.database import Database
from ranvier.storage.device_keys import CrossSigningKey
from ranvier.users.cross_signing import CrossSigning
from tests.core import Core, running_core
from tests.test_devices import make_devices
from tests.test_keys import make_keys

ALICE, BOB = "@alice:example.org", "@bob:example.org"


class Identity:
    """The cross-signing keys and one device of a user, as a client holds them."""

    def __init__(self, user_id: str, device_id: str, seed: int = 1) -> None:
        self.user_id, self.device_id = user_id, device_id
        self.secret = {
            name: bytes([seed + n]) * 32 for n, name in enumerate(("master", "self_signing", "user_signing"))
        }
        self.device_key = SigningKey(f"ed25519:{device_id}", bytes([seed + 3]) * 32)

    def public(self, usage: str) -> str:
        return SigningKey("ed25519:x", self.secret[usage]).verify_key.to_base64()

    def sign(self, obj: dict[str, Any], usage: str) -> dict[str, Any]:
        """Sign as clients do: the id of the key is the public key, which no server's key is called."""
        key = SigningKey("ed25519:x", self.secret[usage])
        signed = sign_json({k: v for k, v in obj.items() if k != "signatures"}, self.user_id, key)
        signature = signed["signatures"][self.user_id]["ed25519:x"]
        return {**obj, "signatures": {self.user_id: {f"ed25519:{self.public(usage)}": signature}}}

    def key(self, usage: str) -> dict[str, Any]:
        public = self.public(usage)
        key = {"user_id": self.user_id, "usage": [usage], "keys": {f"ed25519:{public}": public}}
        return key if usage == "master" else self.sign(key, "master")

    @property
    def keys(self) -> dict[str, Any]:
        return {usage: self.key(usage) for usage in self.secret}

    @property
    def device(self) -> dict[str, Any]:
        keys = {
            "user_id": self.user_id,
            "device_id": self.device_id,
            "algorithms": [],
            "keys": {f"ed25519:{self.device_id}": self.device_key.verify_key.to_base64()},
        }
        return sign_json(keys, self.user_id, self.device_key)


class Gate:
    """Stand where user-interactive authentication is."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self) -> None:
        self.asked += 1


class ReadsTogether(CrossSigningStore):
    """Read for the first time only when others have read, too."""

    def __init__(self, database: Database, readers: asyncio.Barrier) -> None:
        super().__init__(database)
        self._readers: asyncio.Barrier | None = readers

    async def of_users(self, user_ids: Sequence[str]) -> dict[tuple[str, str], CrossSigningKey]:
        found = await super().of_users(user_ids)
        if self._readers is not None:
            readers, self._readers = self._readers, None
            await readers.wait()
        return found


def make_cross_signing(core: Core, readers: asyncio.Barrier | None = None) -> CrossSigning:
    store = CrossSigningStore(core.database) if readers is None else ReadsTogether(core.database, readers)
    return CrossSigning(store=store, appender=core.appender, tail=core.tail)


@pytest.fixture
async def core(database: str) -> AsyncIterator[Core]:
    """A running core with a device of Alice and one of Bob, each with keys."""
    async with running_core(database) as running:
        for identity in (Identity(ALICE, "ADEV", 10), Identity(BOB, "BDEV", 20)):
            await make_devices(running).ensure(identity.user_id, identity.device_id, None)
            await make_keys(running).upload(identity.user_id, identity.device_id, device_keys=identity.device)
        yield running


alice, bob = Identity(ALICE, "ADEV", 10), Identity(BOB, "BDEV", 20)


async def test_the_first_keys_are_free_and_others_are_not(core: Core) -> None:
    """A stolen access token could replace somebody's identity, or nobody could set one up."""
    cross_signing, gate = make_cross_signing(core), Gate()
    await cross_signing.upload(ALICE, alice.keys, gate)
    await cross_signing.upload(ALICE, alice.keys, gate)
    await cross_signing.upload(ALICE, {"master": alice.key("master")}, gate)
    assert gate.asked == 0
    await cross_signing.upload(ALICE, Identity(ALICE, "ADEV", 50).keys, gate)
    assert gate.asked == 1
    answer = await make_keys(core).query(ALICE, {ALICE: []})
    assert answer["master_keys"][ALICE] == Identity(ALICE, "ADEV", 50).key("master")
    await cross_signing.upload(ALICE, {"self_signing": Identity(ALICE, "ADEV", 50).key("self_signing")}, gate)
    assert gate.asked == 2


async def test_of_two_first_keys_at_once_one_is_a_replacement(core: Core) -> None:
    """Somebody with a stolen token could replace an identity in the moment in which it is set up."""
    readers, gate, other = asyncio.Barrier(2), Gate(), Identity(ALICE, "ADEV", 50)
    async with asyncio.timeout(60):
        await asyncio.gather(
            make_cross_signing(core, readers).upload(ALICE, alice.keys, gate),
            make_cross_signing(core, readers).upload(ALICE, other.keys, gate),
        )
    assert gate.asked == 1
    answer = await make_keys(core).query(ALICE, {ALICE: []})
    assert answer["master_keys"][ALICE] in (alice.key("master"), other.key("master"))


async def test_who_proved_who_they_are_is_not_asked_again(core: Core) -> None:
    """A client would be told that its proof was used already, when two sessions replace keys at once."""
    readers, gates = asyncio.Barrier(2), [Gate(), Gate()]
    await make_cross_signing(core).upload(ALICE, alice.keys, Gate())
    others = [Identity(ALICE, "ADEV", seed).keys for seed in (50, 60)]
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(
                make_cross_signing(core, readers).upload(ALICE, keys, gate)
                for keys, gate in zip(others, gates, strict=True)
            )
        )
    assert [gate.asked for gate in gates] == [1, 1]


async def test_only_the_user_sees_the_user_signing_key(core: Core) -> None:
    """Everybody could see whom a user has verified."""
    await make_cross_signing(core).upload(ALICE, alice.keys, Gate())
    mine, others = [await make_keys(core).query(user_id, {ALICE: []}) for user_id in (ALICE, BOB)]
    assert mine["user_signing_keys"] == {ALICE: alice.key("user_signing")}
    assert others["user_signing_keys"] == {}
    assert others["self_signing_keys"] == {ALICE: alice.key("self_signing")}


@pytest.mark.parametrize(
    ("keys", "errcode"),
    [
        ({"self_signing": alice.key("self_signing")}, "M_MISSING_PARAM"),
        ({"master": bob.key("master")}, "M_INVALID_PARAM"),
        ({"master": alice.key("self_signing")}, "M_INVALID_PARAM"),
        ({"master": {**alice.key("master"), "keys": {}}}, "M_INVALID_PARAM"),
        ({"master": {**alice.key("master"), "keys": {"ed25519:short": "short"}}}, "M_INVALID_PARAM"),
        ({"master": {**alice.key("master"), "signatures": 1}}, "M_BAD_JSON"),
        ({"master": "key"}, "M_BAD_JSON"),
        (
            {"master": alice.key("master"), "self_signing": {**alice.key("self_signing"), "signatures": {}}},
            "M_INVALID_SIGNATURE",
        ),
        (
            {
                "master": alice.key("master"),
                "user_signing": {
                    **alice.key("user_signing"),
                    "signatures": alice.key("self_signing")["signatures"],
                },
            },
            "M_INVALID_SIGNATURE",
        ),
    ],
)
async def test_bad_keys_are_refused(core: Core, keys: dict[str, Any], errcode: str) -> None:
    """Clients would be given keys that they can not trust, and no reason."""
    with pytest.raises(MatrixError) as caught:
        await make_cross_signing(core).upload(ALICE, keys, Gate())
    assert caught.value.errcode == errcode


async def test_keys_and_devices_never_share_a_name(core: Core) -> None:
    """Somebody who verifies a device would verify a key that somebody else chose."""
    public = alice.public("self_signing")
    devices, cross_signing = make_devices(core), make_cross_signing(core)
    await devices.ensure(ALICE, public, None)
    with pytest.raises(MatrixError) as caught:
        await cross_signing.upload(ALICE, alice.keys, Gate())
    assert (caught.value.status, caught.value.errcode) == (403, "M_FORBIDDEN")
    await devices.delete(ALICE, [public])
    await cross_signing.upload(ALICE, alice.keys, Gate())
    with pytest.raises(MatrixError) as caught:
        await devices.ensure(ALICE, public, None)
    assert caught.value.errcode == "M_FORBIDDEN"


async def test_signatures_are_added_and_shown_to_whom_they_concern(core: Core) -> None:
    """A verified device or user would not show as verified; or everybody would see who trusts whom."""
    keys, cross_signing = make_keys(core), make_cross_signing(core)
    await cross_signing.upload(ALICE, alice.keys, Gate())
    await cross_signing.upload(BOB, bob.keys, Gate())
    before = core.tail.pos
    signed_device = alice.sign(alice.device, "self_signing")
    signed_master = sign_json(alice.key("master"), ALICE, alice.device_key)
    signed_bob = alice.sign(bob.key("master"), "user_signing")
    request = {
        ALICE: {"ADEV": signed_device, alice.public("master"): signed_master},
        BOB: {bob.public("master"): signed_bob},
    }
    assert await cross_signing.sign(ALICE, request) == {}
    kinds = [(row.kind, row.key) for row in core.tail.rows_of_user(ALICE, before)]
    assert kinds == [("device_list", "signatures"), ("user_signature", BOB)]

    seen = {user_id: await keys.query(user_id, {ALICE: [], BOB: []}) for user_id in (ALICE, BOB)}
    for answer in seen.values():
        device = answer["device_keys"][ALICE]["ADEV"]["signatures"][ALICE]
        assert set(device) == {"ed25519:ADEV", f"ed25519:{alice.public('self_signing')}"}
        assert set(answer["master_keys"][ALICE]["signatures"][ALICE]) == {"ed25519:ADEV"}
    assert ALICE in seen[ALICE]["master_keys"][BOB]["signatures"]
    assert "signatures" not in seen[BOB]["master_keys"][BOB]

    before = core.tail.pos
    assert await cross_signing.sign(ALICE, request) == {}
    assert core.tail.pos == before
    await cross_signing.upload(ALICE, Identity(ALICE, "ADEV", 60).keys, Gate())
    device = (await keys.query(BOB, {ALICE: []}))["device_keys"][ALICE]["ADEV"]["signatures"][ALICE]
    assert set(device) == {"ed25519:ADEV"}


async def test_wrong_signatures_are_reported(core: Core) -> None:
    """A client would think that it verified somebody."""
    cross_signing = make_cross_signing(core)
    await cross_signing.upload(ALICE, alice.keys, Gate())
    await cross_signing.upload(BOB, bob.keys, Gate())
    bad = alice.sign(alice.device, "self_signing")
    bad["signatures"][ALICE] = dict.fromkeys(bad["signatures"][ALICE], encode_base64(b"x" * 64))
    failures = await cross_signing.sign(
        ALICE,
        {
            ALICE: {
                "ADEV": bad,
                "NONE": alice.device,
                alice.public("self_signing"): alice.key("self_signing"),
            },
            BOB: {bob.public("master"): alice.sign({**bob.key("master"), "more": 1}, "user_signing")},
            "@carol:far.example": {"key": {"signatures": {}}},
        },
    )
    assert {u: {k: e["errcode"] for k, e in of_user.items()} for u, of_user in failures.items()} == {
        ALICE: {
            "ADEV": "M_INVALID_SIGNATURE",
            "NONE": "M_NOT_FOUND",
            alice.public("self_signing"): "M_NOT_FOUND",
        },
        BOB: {bob.public("master"): "M_INVALID_PARAM"},
        "@carol:far.example": {"key": "M_NOT_FOUND"},
    }
    unsigned = await cross_signing.sign(BOB, {BOB: {"BDEV": bob.device}})
    assert unsigned[BOB]["BDEV"]["errcode"] == "M_INVALID_SIGNATURE"


async def test_many_signatures_do_not_stop_the_server(core: Core) -> None:
    """While one user verifies hundreds of devices, everybody else would wait."""
    cross_signing = make_cross_signing(core)
    await cross_signing.upload(ALICE, alice.keys, Gate())
    others = {f"DEV{n}": {"signatures": {}} for n in range(100)}
    request = {ALICE: {"ADEV": alice.sign(alice.device, "self_signing"), **others}}
    failures, _ = await asyncio.gather(cross_signing.sign(ALICE, request), asyncio.sleep(0))
    assert set(failures[ALICE]) == set(others)
    with pytest.raises(MatrixError) as caught:
        await cross_signing.sign(ALICE, {ALICE: {f"D{n}": {"signatures": {}} for n in range(1001)}})
    assert caught.value.errcode == "M_TOO_LARGE"
