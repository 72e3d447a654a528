"""The keys that devices publish for end-to-end encryption: upload, query, claim.

Source: client-server API, "End-to-End Encryption", "Key Distribution".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from ranvier.log.append import Appender
from ranvier.log.tail import Tail
from ranvier.spec.errors import MatrixError, bad_json, invalid_param
from ranvier.spec.ids import check_user_id, domain_of, fits
from ranvier.spec.signatures import json_signed_bytes
from ranvier.storage.device_keys import Claim, Claimed, DeviceKeyStore, KeySignature, PreKey, UserKeys
from ranvier.wire.log_rows import LogRow, Row

MAX_DEVICE_KEYS_BYTES: Final = 32 * 1024
MAX_PRE_KEY_BYTES: Final = 4 * 1024
MAX_ONE_TIME_KEYS: Final = 1_000
MAX_QUERIED_USERS: Final = 10_000
MAX_CLAIMS: Final = 20_000
_CLAIMS_AT_ONCE: Final = 500
_ALWAYS_COUNTED: Final = "signed_curve25519"

_ANSWER_KEY: Final = {
    "master": "master_keys",
    "self_signing": "self_signing_keys",
    "user_signing": "user_signing_keys",
}


class Counts(NamedTuple):
    """The keys left of a device, as JSON: ``{algorithm: number}`` and ``[algorithm]``."""

    one_time: bytes
    unused_fallback: bytes


class KeyCounts:
    """Know how many keys devices have left, without asking the database each time.

    Follows the log: a row of kind ``otk``, or one that deletes a device, makes it forget that device.
    """

    def __init__(self, *, store: DeviceKeyStore, tail: Tail, max_devices: int = 20_000) -> None:
        self._store = store
        self._max_devices = max_devices
        self._counts: OrderedDict[tuple[str, str], Counts] = OrderedDict()
        self._loading: dict[tuple[str, str], object] = {}
        tail.listen(self._apply, changes=True)

    def held(self, user_id: str, device_id: str) -> Counts | None:
        """Give the counts of a device if they are in memory."""
        return self._counts.get((user_id, device_id))

    async def of(self, user_id: str, device_id: str) -> Counts:
        """Give the counts of a device, at least as new as the tail."""
        key = (user_id, device_id)
        counts = self._counts.get(key)
        if counts is not None:
            self._counts.move_to_end(key)
            return counts
        mark = self._loading[key] = object()
        try:
            counts = _render(*await self._store.counts(user_id, device_id))
        finally:
            # A row that came meanwhile, or another reader that began after us, took the mark away.
            unchanged = self._loading.get(key) is mark
            if unchanged:
                del self._loading[key]
        if unchanged:
            self._counts[key] = counts
            if len(self._counts) > self._max_devices:
                self._counts.popitem(last=False)
        return counts

    def _apply(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if not isinstance(row, LogRow) or row.user_id is None or row.device_id is None:
                continue
            if row.kind == "otk" or row.key == "deleted":
                self._counts.pop((row.user_id, row.device_id), None)
                self._loading.pop((row.user_id, row.device_id), None)


def _render(counts: Mapping[str, int], unused: Sequence[str]) -> Counts:
    # Clients take a missing count for "unknown" and would never upload more: zero is said.
    return Counts(orjson.dumps({_ALWAYS_COUNTED: 0, **counts}), orjson.dumps(unused))


class DeviceKeys:
    """Publish and give out keys of this server's devices."""

    def __init__(self, *, store: DeviceKeyStore, appender: Appender, tail: Tail, server_name: str) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail
        self._server_name = server_name

    # -- upload --------------------------------------------------------------------------------------

    async def upload(
        self,
        user_id: str,
        device_id: str,
        *,
        device_keys: dict[str, Any] | None = None,
        one_time_keys: Mapping[str, Any] | None = None,
        fallback_keys: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Publish keys of a device and give the counts of its one-time keys, as a JSON object.

        Raises 400 ``M_INVALID_PARAM`` (keys of somebody else, too many fallback keys), ``M_BAD_JSON``,
        ``M_TOO_LARGE``, and ``M_UNKNOWN`` for a one-time key of a known id that is another key.
        """
        rows: list[LogRow] = []
        if device_keys is not None:
            check_device_keys(device_keys, user_id, device_id)
            rows.extend(await self._device_keys_row(user_id, device_id, device_keys))
        one_time = _pre_keys(one_time_keys or {})
        fallback = _pre_keys(fallback_keys or {})
        if len({key.algorithm for key in fallback}) < len(fallback):
            raise invalid_param("There can be only one fallback key for each algorithm")
        if one_time:
            one_time = await self._new_keys(user_id, device_id, one_time)
        if one_time or fallback:
            self._appender.check_in_time()
            await self._store.add(user_id, device_id, one_time, fallback)
        if one_time_keys or fallback_keys:
            # Even if all are known: whoever stored them may have told nobody how many there are.
            rows.append(LogRow(kind="otk", user_id=user_id, device_id=device_id))
        if rows:
            await self._tail.wait_for(await self._appender.append_rows(rows))
        counts, unused = await self._store.counts(user_id, device_id)
        return _render(counts, unused).one_time

    async def _device_keys_row(
        self, user_id: str, device_id: str, device_keys: dict[str, Any]
    ) -> Iterable[LogRow]:
        new = {key: value for key, value in device_keys.items() if key != "unsigned"}
        signed = json_signed_bytes(new)
        stored = await self._store.get(user_id, device_id)
        old = orjson.loads(stored) if stored is not None else None
        if old == new:
            return ()
        # Signatures that others made stay as long as what they signed does.
        resigned = old is not None and json_signed_bytes(old) == signed
        return (
            LogRow(
                kind="device_list",
                user_id=user_id,
                device_id=device_id,
                key="device_keys",
                key2="resigned" if resigned else None,
                body=orjson.dumps(new),
            ),
        )

    async def _new_keys(self, user_id: str, device_id: str, keys: Sequence[PreKey]) -> list[PreKey]:
        """Leave out what is in store already (a retry), and refuse other keys of the same names.

        What was given out since is no longer in store: ``add`` leaves it out.
        """
        given = {(key.algorithm, key.key_id): key for key in keys}
        for old in await self._store.with_same_ids(user_id, device_id, keys):
            new = given.pop((old.algorithm, old.key_id))
            if not _is_same_key(old.key, new.key):
                # Clients find out by this text which of their keys clash.
                raise MatrixError(
                    "M_UNKNOWN",
                    400,
                    f"One time key {old.algorithm}:{old.key_id} already exists. "
                    f"Old key: {old.key.decode()}; new key: {new.key.decode()}",
                )
        counts, _ = await self._store.counts(user_id, device_id)
        if sum(counts.values()) + len(given) > MAX_ONE_TIME_KEYS:
            raise _too_large(f"A device may have at most {MAX_ONE_TIME_KEYS} one-time keys")
        return list(given.values())

    # -- query ---------------------------------------------------------------------------------------

    async def query(self, seen_by: str, wanted: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Give the keys of users, of some of their devices or (an empty list) of all.

        ``seen_by`` is the user who asks. The answer is that of ``POST /keys/query``. Raises 400
        ``M_INVALID_PARAM`` for what is no user ID, and ``M_TOO_LARGE``.
        """
        if len(wanted) > MAX_QUERIED_USERS:
            raise _too_large(f"Ask for the keys of at most {MAX_QUERIED_USERS} users at once")
        local, failures = self._split(wanted)
        found = await self._store.of_users(local, seen_by)
        answer = render_keys(found, seen_by)
        answer["device_keys"] = {
            user_id: _chosen(answer["device_keys"].get(user_id, {}), wanted[user_id]) for user_id in local
        }
        answer["failures"] = failures
        return answer

    # -- claim ---------------------------------------------------------------------------------------

    async def claim(self, wanted: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        """Give out one key for each device, ``{user_id: {device_id: algorithm}}``: a one-time key, else the
        fallback key. The answer is that of ``POST /keys/claim``.
        """
        local, failures = self._split(wanted)
        claims = [
            Claim(user_id, device_id, algorithm)
            for user_id in local
            for device_id, algorithm in wanted[user_id].items()
        ]
        if len(claims) > MAX_CLAIMS:
            raise _too_large(f"Claim at most {MAX_CLAIMS} keys at once")
        keys: dict[str, dict[str, Any]] = {}
        for start in range(0, len(claims), _CLAIMS_AT_ONCE):
            for got in await self.claim_local(claims[start : start + _CLAIMS_AT_ONCE]):
                of_user = keys.setdefault(got.user_id, {})
                of_user[got.device_id] = {f"{got.algorithm}:{got.key_id}": orjson.Fragment(got.key)}
        return {"one_time_keys": keys, "failures": failures}

    async def claim_local(self, claims: Sequence[Claim]) -> list[Claimed]:
        """Give out keys of this server's devices, and tell the devices that they have fewer."""
        if not claims:
            return []
        claimed = await self._store.claim(claims)
        served = {(c.user_id, c.device_id, c.algorithm) for c in claimed}
        missing = [claim for claim in claims if claim not in served]
        if missing:
            claimed += await self._store.fallback(missing)
        if claimed:
            await self._appender.append_rows(
                [LogRow(kind="otk", user_id=c.user_id, device_id=c.device_id) for c in claimed],
                may_be_late=True,
            )
        return claimed

    def _split(self, user_ids: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
        """Give the users of this server, and the servers that can not be asked for the others."""
        local, failures = [], {}
        for user_id in user_ids:
            domain = domain_of(check_user_id(user_id))
            if domain == self._server_name:
                local.append(user_id)
            else:
                failures[domain] = {"status": 503, "message": "This server can not be reached"}
        return local, failures


def render_keys(found: UserKeys, seen_by: str) -> dict[str, Any]:
    """Make the JSON of keys: ``device_keys`` by user and device, ``master_keys`` … by user.

    The user-signing key is only for the user that it belongs to.
    """
    signatures: dict[tuple[str, str], list[KeySignature]] = {}
    for signature in found.signatures:
        signatures.setdefault((signature.target_user_id, signature.target_id), []).append(signature)
    answer: dict[str, Any] = {"device_keys": {}, **{name: {} for name in _ANSWER_KEY.values()}}
    for device in found.devices:
        keys = _signed(device.keys, signatures.get((device.user_id, device.device_id)))
        if device.display_name is not None:
            keys["unsigned"] = {"device_display_name": device.display_name}
        answer["device_keys"].setdefault(device.user_id, {})[device.device_id] = keys
    for key in found.cross_signing:
        if key.usage == "user_signing" and key.user_id != seen_by:
            continue
        added = signatures.get((key.user_id, key.public_key))
        answer[_ANSWER_KEY[key.usage]][key.user_id] = _signed(key.key, added)
    return answer


def _signed(key: bytes, signatures: Sequence[KeySignature] | None) -> dict[str, Any]:
    signed: dict[str, Any] = orjson.loads(key)
    if signatures:
        merged = {user_id: dict(own) for user_id, own in signed.get("signatures", {}).items()}
        for signature in signatures:
            merged.setdefault(signature.signer_user_id, {})[signature.signer_key_id] = signature.signature
        signed["signatures"] = merged
    return signed


def _chosen(devices: Mapping[str, Any], device_ids: Sequence[str]) -> Mapping[str, Any]:
    if not device_ids:
        return devices
    return {device_id: devices[device_id] for device_id in device_ids if device_id in devices}


def check_device_keys(keys: Mapping[str, Any], user_id: str, device_id: str) -> None:
    """Check the form of identity keys, and that they name the device that uploads them.

    The signatures are for clients to verify. Raises 400 ``M_BAD_JSON``, ``M_INVALID_PARAM``, ``M_TOO_LARGE``.
    """
    if keys.get("user_id") != user_id or keys.get("device_id") != device_id:
        raise invalid_param("device_keys must name the user and the device that upload them")
    algorithms = keys.get("algorithms")
    if not isinstance(algorithms, list) or not all(isinstance(name, str) for name in algorithms):
        raise bad_json("device_keys.algorithms must be a list of strings")
    public = keys.get("keys")
    if not isinstance(public, dict) or not all(isinstance(value, str) for value in public.values()):
        raise bad_json("device_keys.keys must be an object of strings")
    if not all(name.partition(":")[2] == device_id for name in public):
        raise invalid_param("The names in device_keys.keys must end with the device ID")
    check_signatures(keys.get("signatures"), "device_keys.signatures")
    if len(orjson.dumps(keys)) > MAX_DEVICE_KEYS_BYTES:
        raise _too_large(f"device_keys may have at most {MAX_DEVICE_KEYS_BYTES} bytes")


def check_signatures(signatures: Any, name: str) -> None:
    """Check that ``signatures`` maps users to key ids to strings. Raises 400 ``M_BAD_JSON``."""
    if not isinstance(signatures, dict) or not all(
        isinstance(own, dict) and all(isinstance(value, str) for value in own.values())
        for own in signatures.values()
    ):
        raise bad_json(f"{name} must map user IDs to key IDs to signatures")


def _pre_keys(keys: Mapping[str, Any]) -> list[PreKey]:
    """Read ``{"<algorithm>:<key_id>": key}``.

    Raises 400 ``M_BAD_JSON``, ``M_INVALID_PARAM``, and 413 ``M_TOO_LARGE``.
    """
    if len(keys) > MAX_ONE_TIME_KEYS:
        raise _too_large(f"At most {MAX_ONE_TIME_KEYS} keys may be uploaded at once")
    read = []
    for name, key in keys.items():
        algorithm, colon, key_id = name.partition(":")
        if not algorithm or not colon or not key_id or not fits(name):
            raise invalid_param("A key is named <algorithm>:<key_id>, at most 255 bytes")
        if isinstance(key, dict):
            if not isinstance(key.get("key"), str):
                raise bad_json(f"The key {name} has no string 'key'")
            check_signatures(key.get("signatures"), f"The signatures of the key {name}")
        elif not isinstance(key, str):
            raise bad_json(f"The key {name} must be a string or an object")
        body = orjson.dumps(key)
        if len(body) > MAX_PRE_KEY_BYTES:
            raise _too_large(f"The key {name} has more than {MAX_PRE_KEY_BYTES} bytes")
        read.append(PreKey(algorithm, key_id, body))
    return read


def _is_same_key(old: bytes, new: bytes) -> bool:
    # Signatures are made anew at each upload, and not every signature is the same twice.
    one, other = orjson.loads(old), orjson.loads(new)
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = ({k: v for k, v in key.items() if k != "signatures"} for key in (one, other))
    return bool(one == other)


def _too_large(message: str) -> MatrixError:
    return MatrixError("M_TOO_LARGE", 413, message)
