"""The first three checks of an event that another server sent: its form, its signatures, its hash.

Source: server-server API, "Checks performed on receipt of a PDU", steps 1 to 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from ranvier.spec.errors import MatrixError
from ranvier.spec.event import Event
from ranvier.spec.event_format import check_format, is_create
from ranvier.spec.event_hashes import check_content_hash, essential_bytes, event_id_of
from ranvier.spec.redaction import redact
from ranvier.spec.room_versions import RoomVersion
from ranvier.spec.signatures import VerifyKey, key_ids_of, required_signers, signature_of

_PIECE: Final = 10  # so many forms are checked before the loop serves others
_MAX_KEYS: Final = 4  # signatures of one server on one event that are looked at
_IN_POOL: Final = 8  # so many signatures are worth a thread


class KeyRequest(NamedTuple):
    """Ask for a server's key; ``at_ms`` is the time at which it must have been valid, where that counts."""

    server_name: str
    key_id: str
    at_ms: int | None


class KeyRing(Protocol):
    """Know the signing keys of servers, fetching them where it must."""

    async def verify_keys(self, wanted: Collection[KeyRequest]) -> Mapping[KeyRequest, VerifyKey]:
        """Give those of the keys that can be had; never raises for one that can not."""


class Dropped(NamedTuple):
    """Say that a PDU is not to be looked at further; ``event_id`` is None if it has none."""

    event_id: str | None
    reason: str


class _Signature(NamedTuple):
    signed: bytes
    signature: bytes
    key: VerifyKey


@dataclass(slots=True)
class _Candidate:
    pdu: dict[str, Any]
    event_id: str
    essential: bytes
    wanted: dict[str, list[KeyRequest]] = field(default_factory=dict)


async def check_pdus(
    pdus: Sequence[object],
    *,
    room_id: str,
    version: RoomVersion,
    keys: KeyRing,
    pool: Executor,
    with_create: bool = False,
) -> list[Event | Dropped]:
    """Check form, signatures and content hash of PDUs of one room; give the event of each that passes.

    An event whose content hash is wrong is given in its redacted form. ``unsigned`` is left out: it is the
    word of whoever passed the event on. A create event is dropped unless ``with_create``. Eight signatures
    or more are verified in ``pool`` (they release the GIL).
    """
    results: list[Event | Dropped | _Candidate] = []
    for start in range(0, len(pdus), _PIECE):
        results.extend(
            _check_form(pdu, room_id, version, with_create) for pdu in pdus[start : start + _PIECE]
        )
        await asyncio.sleep(0)
    candidates = [result for result in results if isinstance(result, _Candidate)]
    wanted = {request for c in candidates for requests in c.wanted.values() for request in requests}
    found = await keys.verify_keys(wanted) if wanted else {}
    genuine = await _verify([list(_signatures(c, found)) for c in candidates], pool)
    by_candidate = dict(zip(map(id, candidates), genuine, strict=True))
    return [
        _finish(result, by_candidate[id(result)], version) if isinstance(result, _Candidate) else result
        for result in results
    ]


def _check_form(sent: object, room_id: str, version: RoomVersion, with_create: bool) -> Dropped | _Candidate:
    try:
        pdu = dict(check_format(sent, version))
    except MatrixError as error:
        return Dropped(None, error.message)
    pdu.pop("unsigned", None)
    essential = essential_bytes(pdu, version)
    event_id = pdu["event_id"] if version.event_id_in_pdu else event_id_of(essential, version)
    if (reason := _unfit(pdu, event_id, room_id, with_create)) is not None:
        return Dropped(event_id, reason)
    candidate = _Candidate(pdu, event_id, essential)
    at_ms = pdu["origin_server_ts"] if version.enforce_key_validity else None
    try:
        for server in required_signers(pdu, version):
            key_ids = key_ids_of(pdu, server)[:_MAX_KEYS]
            candidate.wanted[server] = [KeyRequest(server, key_id, at_ms) for key_id in key_ids]
    except MatrixError as error:
        return Dropped(event_id, error.message)
    return candidate


def _unfit(pdu: dict[str, Any], event_id: str, room_id: str, with_create: bool) -> str | None:
    named = pdu.get("room_id", "!" + event_id[1:])
    if named != room_id:
        return "The event is of another room"
    # NOTSPEC: PostgreSQL's text holds no NUL. No client sends one in these.
    if any("\0" in text for text in (pdu["type"], pdu.get("state_key", ""), pdu["sender"], event_id)):
        return "The event has a NUL in its type or its keys"
    # NOTSPEC: the rules of versions before 12 allow a second create event, on which a second history of the
    # same room could be built. What follows nothing that we know can not be placed in the room.
    if is_create(pdu):
        return None if with_create else "The room has its create event"
    if not pdu["prev_events"]:
        return "The event follows no other"
    return None


def _signatures(candidate: _Candidate, found: Mapping[KeyRequest, VerifyKey]) -> Iterator[list[_Signature]]:
    """Give, for each server that must have signed, the signatures of which one must be genuine."""
    for server, requests in candidate.wanted.items():
        usable = []
        for request in requests:
            if (key := found.get(request)) is None:
                continue
            try:
                signature = signature_of(candidate.pdu, server, request.key_id)
            except MatrixError:
                continue  # not Base64: as good as not there
            usable.append(_Signature(candidate.essential, signature, key))
        yield usable


async def _verify(events: Sequence[list[list[_Signature]]], pool: Executor) -> list[bool]:
    if sum(len(servers) for servers in events) < _IN_POOL:
        return _are_genuine(events)
    loop = asyncio.get_running_loop()
    half = (len(events) + 1) // 2
    parts = [events[:half], events[half:]]
    done = await asyncio.gather(*(loop.run_in_executor(pool, _are_genuine, part) for part in parts))
    return [genuine for part in done for genuine in part]


def _are_genuine(events: Sequence[list[list[_Signature]]]) -> list[bool]:
    return [
        all(any(s.key.is_valid(s.signed, s.signature) for s in server) for server in servers)
        for servers in events
    ]


def _finish(candidate: _Candidate, genuine: bool, version: RoomVersion) -> Event | Dropped:
    if not genuine:
        return Dropped(candidate.event_id, "A signature is missing or wrong, or its key can not be had")
    pdu = candidate.pdu
    # "Passes hash checks, otherwise it is redacted before being processed further."
    if not check_content_hash(pdu):
        pdu = redact(pdu, version)
    return Event(pdu, candidate.event_id, version)
