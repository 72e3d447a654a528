"""Cross-signing: the keys by which users vouch for their devices and for each other.

Source: client-server API, "Cross-signing" and "Key and signature security".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from ranvier.log.append import Appender
from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError, bad_json, forbidden, invalid_param, missing_param, not_found
from ranvier.spec.ids import check_user_id
from ranvier.spec.signatures import VerifyKey, invalid_signature, json_signed_bytes, signature_of
from ranvier.storage.cross_signing import CrossSigningStore
from ranvier.storage.device_keys import CrossSigningKey, KeySignature
from ranvier.users.device_keys import check_signatures
from ranvier.users.edits import Edits
from ranvier.wire.log_rows import LogRow

MAX_KEY_BYTES: Final = 16 * 1024
MAX_SIGNED_OBJECTS: Final = 1_000
MAX_SIGNATURES: Final = 2_000
_VERIFIED_INLINE: Final = 8

MASTER, SELF_SIGNING, USER_SIGNING = "master", "self_signing", "user_signing"
USAGES: Final = (MASTER, SELF_SIGNING, USER_SIGNING)

Authenticate = Callable[[], Awaitable[object]]


class NewKey(NamedTuple):
    """A cross-signing key that was checked: what is stored of it."""

    usage: str
    public_key: str
    key: dict[str, Any]


class CrossSigning:
    """Publish cross-signing keys and signatures."""

    def __init__(self, *, store: CrossSigningStore, appender: Appender, tail: Tail) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail
        self._edits = Edits()

    # -- keys ----------------------------------------------------------------------------------------

    async def upload(self, user_id: str, keys: Mapping[str, Any], authenticate: Authenticate) -> None:
        """Publish the keys of a user, by usage; ``authenticate`` is asked where keys are to be replaced.

        Raises 400 ``M_MISSING_PARAM`` (no master key), ``M_INVALID_SIGNATURE``, ``M_INVALID_PARAM``,
        ``M_BAD_JSON``, 403 ``M_FORBIDDEN`` for a key that is named as a device, and what ``authenticate``
        raises. Source: client-server API, "POST /keys/device_signing/upload".
        """
        new = [check_key(keys[usage], usage, user_id) for usage in USAGES if keys.get(usage) is not None]
        proved = False

        async def publish() -> None:
            nonlocal proved
            stored = await self._store.of_users([user_id])
            if not await self._are_new(user_id, new, stored):
                return
            master = stored.get((user_id, MASTER))
            # "there is no existing master signing key uploaded to the homeserver"
            if master is not None and not proved:
                await authenticate()
                proved = True
            if new:
                await self._append([_key_row(user_id, key, master) for key in new])

        await self._edits.make(user_id, publish)

    async def _are_new(
        self, user_id: str, new: Sequence[NewKey], stored: Mapping[tuple[str, str], CrossSigningKey]
    ) -> bool:
        """Check keys against those that are stored, and tell whether they differ; raises as ``upload``."""
        master = next((key.public_key for key in new if key.usage == MASTER), None)
        if master is None and (old_master := stored.get((user_id, MASTER))) is not None:
            master = old_master.public_key
        if master is None:
            raise missing_param("There is no master signing key")
        for key in new:
            if key.usage != MASTER:
                # "Must be signed by the accompanying master signing key, or by the user's most recently
                # uploaded master signing key".
                _verify(key.key, user_id, master)
        if any(_is_same(stored.get((user_id, MASTER)), key) for key in new if key.usage == MASTER) and all(
            _is_same(stored.get((user_id, key.usage)), key) for key in new
        ):
            return False  # "the request contains no new keys"
        if await self._store.devices_called(user_id, [key.public_key for key in new]):
            raise forbidden("A key is called as one of your devices")
        return True

    # -- signatures ----------------------------------------------------------------------------------

    async def sign(self, user_id: str, signed: Mapping[str, Any]) -> dict[str, Any]:
        """Add the signatures of a user on keys, ``{user_id: {key_id: signed object}}``.

        Gives ``{user_id: {key_id: error}}`` of those that could not be added. Raises 400 ``M_BAD_JSON``,
        ``M_INVALID_PARAM`` and 413 ``M_TOO_LARGE`` for a request that is no such thing.
        Source: client-server API, "POST /keys/signatures/upload".
        """
        _check_signed(signed)
        keys = await self._store.of_users(list({user_id, *signed}))
        devices = await self._store.device_keys(user_id) if user_id in signed else {}
        known = await self._store.signed_by(user_id, list(signed))
        signer = _Signer(user_id, keys, devices)
        failures: dict[str, dict[str, Any]] = {}
        added: dict[str, list[KeySignature]] = {}

        def verify_all() -> None:
            for target_user, objects in signed.items():
                for target_id, obj in objects.items():
                    try:
                        new = signer.check(target_user, target_id, obj)
                    except MatrixError as error:
                        failures.setdefault(target_user, {})[target_id] = error.body()
                    else:
                        added.setdefault(target_user, []).extend(new)

        # The verifying of many takes long: it leaves the event loop to others.
        if sum(map(len, signed.values())) > _VERIFIED_INLINE:
            await asyncio.to_thread(verify_all)
        else:
            verify_all()
        rows = [
            _signature_row(user_id, target_user, new)
            for target_user, signatures in added.items()
            if (new := [signature for signature in signatures if signature not in known])
        ]
        if rows:
            await self._append(rows)
        return failures

    async def _append(self, rows: Sequence[LogRow]) -> None:
        await self._tail.wait_for(await self._appender.append_rows(rows))


class _Signer:
    """Check what one user signed, against the keys that they and others have published."""

    def __init__(
        self, user_id: str, keys: Mapping[tuple[str, str], CrossSigningKey], devices: Mapping[str, bytes]
    ) -> None:
        self._user_id = user_id
        self._keys = keys
        self._devices = devices

    def check(self, target_user: str, target_id: str, obj: dict[str, Any]) -> list[KeySignature]:
        """Give the signatures on one object that may be added.

        Raises 404 ``M_NOT_FOUND`` for a key that is not known, 400 ``M_INVALID_PARAM`` for an object that is
        not the published one, 400 ``M_INVALID_SIGNATURE``.
        """
        master = self._keys.get((target_user, MASTER))
        if master is not None and target_id == master.public_key:
            usage = MASTER if target_user == self._user_id else USER_SIGNING
            return self._check_object(target_user, target_id, master.key, obj, usage)
        stored = self._devices.get(target_id) if target_user == self._user_id else None
        if stored is None:
            raise not_found("There is no such key, or you may not sign it")
        return self._check_object(target_user, target_id, stored, obj, SELF_SIGNING)

    def _check_object(
        self, target_user: str, target_id: str, stored: bytes, obj: dict[str, Any], usage: str
    ) -> list[KeySignature]:
        published = orjson.loads(stored)
        signed = json_signed_bytes(obj)
        # "must match the key previously uploaded …, with the exception of the signatures property"
        if signed != json_signed_bytes(published):
            raise invalid_param("This is not the key that was published")
        had = published.get("signatures", {}).get(self._user_id, {})
        own = obj["signatures"].get(self._user_id, {})
        allowed = self._keys_for(usage)
        added = []
        for key_id, signature in own.items():
            if key_id not in allowed:
                continue
            if had.get(key_id) == signature:
                continue
            if not allowed[key_id].is_valid(signed, signature_of(obj, self._user_id, key_id)):
                raise invalid_signature(f"The signature with {key_id} is wrong")
            added.append(KeySignature(target_user, target_id, self._user_id, key_id, signature))
        if not any(key_id in allowed for key_id in own):
            raise invalid_signature("There is no signature by a key that may sign this")
        return added

    def _keys_for(self, usage: str) -> dict[str, VerifyKey]:
        """Give the keys by whose signature something may be vouched for.

        The self-signing key signs one's devices, the user-signing key other users' master keys, and one's
        devices sign one's own master key.
        """
        if usage != MASTER:
            key = self._keys.get((self._user_id, usage))
            if key is None:
                return {}
            key_id = f"ed25519:{key.public_key}"
            return {key_id: VerifyKey.from_base64(key_id, key.public_key)}
        found = {}
        for device_id, stored in self._devices.items():
            key_id = f"ed25519:{device_id}"
            public = orjson.loads(stored).get("keys", {}).get(key_id)
            try:
                found[key_id] = VerifyKey.from_base64(key_id, public or "")
            except MatrixError:
                continue  # keys of devices are stored as they come: with this one nothing can be verified
        return found


def check_key(key: Any, usage: str, user_id: str) -> NewKey:
    """Check the form of a cross-signing key of a user; signatures of others are left out.

    Raises 400 ``M_BAD_JSON``, ``M_INVALID_PARAM``, 413 ``M_TOO_LARGE``.
    """
    if not isinstance(key, dict):
        raise bad_json(f"The {usage} key must be an object")
    if key.get("user_id") != user_id:
        raise invalid_param(f"The {usage} key must name the user who uploads it")
    usages = key.get("usage")
    if not isinstance(usages, list) or usage not in usages:
        raise invalid_param(f"The usage of the {usage} key must hold {usage!r}")
    keys = key.get("keys")
    # "The object must have exactly one property, whose name is in the form <algorithm>:<public key>"
    if not isinstance(keys, dict) or len(keys) != 1:
        raise invalid_param(f"The {usage} key must hold exactly one public key")
    ((key_id, public_key),) = keys.items()
    if not isinstance(public_key, str) or key_id != f"ed25519:{public_key}":
        raise invalid_param(f"The public key of the {usage} key must be named ed25519:<public key>")
    VerifyKey.from_base64(key_id, public_key)
    signatures = key.get("signatures", {})
    check_signatures(signatures, f"The signatures of the {usage} key")
    written = orjson.dumps(key)
    if len(written) > MAX_KEY_BYTES:
        raise _too_large(f"A key may have at most {MAX_KEY_BYTES} bytes")
    kept = {name: value for name, value in key.items() if name not in ("signatures", "unsigned")}
    json_signed_bytes(kept)
    if user_id in signatures:
        kept["signatures"] = {user_id: signatures[user_id]}
    return NewKey(usage, public_key, kept)


def _verify(key: dict[str, Any], user_id: str, master: str) -> None:
    key_id = f"ed25519:{master}"
    signature = signature_of(key, user_id, key_id)
    if not VerifyKey.from_base64(key_id, master).is_valid(json_signed_bytes(key), signature):
        raise invalid_signature("A key is not signed by the master signing key")


def _is_same(stored: CrossSigningKey | None, new: NewKey) -> bool:
    return stored is not None and json_signed_bytes(orjson.loads(stored.key)) == json_signed_bytes(new.key)


def _check_signed(signed: Mapping[str, Any]) -> None:
    objects = signatures = 0
    for user_id, of_user in signed.items():
        check_user_id(user_id)
        if not isinstance(of_user, dict):
            raise bad_json("Each user ID must map key IDs to signed objects")
        for obj in of_user.values():
            if not isinstance(obj, dict):
                raise bad_json("A signed key must be an object")
            check_signatures(obj.get("signatures"), "The signatures of a key")
            json_signed_bytes(obj)
            objects += 1
            signatures += sum(map(len, obj["signatures"].values()))
    if objects > MAX_SIGNED_OBJECTS or signatures > MAX_SIGNATURES:
        raise _too_large("These are too many signatures at once")


def _key_row(user_id: str, key: NewKey, master: CrossSigningKey | None) -> LogRow:
    # The write is refused if the user has another master key than this by then (see the schema).
    found = None if master is None else master.public_key
    body = orjson.dumps({"public_key": key.public_key, "key": key.key, "master": found})
    return LogRow(kind="device_list", user_id=user_id, key="cross_signing", key2=key.usage, body=body)


def _signature_row(signer: str, target_user: str, signatures: Sequence[KeySignature]) -> LogRow:
    body = orjson.dumps(
        [
            {"target_id": s.target_id, "signer_key_id": s.signer_key_id, "signature": s.signature}
            for s in signatures
        ]
    )
    if target_user == signer:
        return LogRow(kind="device_list", user_id=signer, key="signatures", body=body)
    # Nobody but the signer sees what the signer thinks of others.
    return LogRow(kind="user_signature", user_id=signer, key=target_user, body=body)


def _too_large(message: str) -> MatrixError:
    return MatrixError("M_TOO_LARGE", 413, message)
