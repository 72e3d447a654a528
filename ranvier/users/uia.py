"""User-interactive authentication: prove in one or more stages that one may do what was asked.

A session is known to the client by its id and to the database by the id's hash. It is bound to one operation
by one user, holds on every worker, and is used up when the operation takes place.
Source: client-server API, "User-Interactive Authentication API".
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import nacl.exceptions
import nacl.secret
import orjson

from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError, bad_json, forbidden, invalid_param
from ranvier.storage.access_tokens import AccessTokenStore
from ranvier.storage.identities import IdentityStore
from ranvier.storage.uia_sessions import UiaSession, UiaSessionStore
from ranvier.users.accounts import Account, Accounts
from ranvier.users.login import typed_name
from ranvier.users.registration_tokens import RegistrationTokens
from ranvier.users.requester import Requester

PASSWORD, DUMMY, REGISTRATION_TOKEN = "m.login.password", "m.login.dummy", "m.login.registration_token"
SSO = "m.login.sso"
SESSION_TIMEOUT_MS = 15 * 60 * 1000
MAX_KEPT_BODY = 4096
MAX_SESSION_ID_LENGTH = 100

_USERS_OPERATION = re.compile(r"(.+) [A-Z]+ [0-9a-f]{64} (@.+)", re.DOTALL)

Flows = Sequence[tuple[str, ...]]
CheckPassword = Callable[[str, str], Awaitable[tuple[Account, str]]]


class UiaRequest(Protocol):
    """What is looked at of a request."""

    @property
    def method(self) -> str:
        """HTTP method."""

    @property
    def path(self) -> str:
        """Raw path."""

    @property
    def requester_or_none(self) -> Requester | None:
        """Who asks, if anybody is known yet."""


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """What came out of an authentication.

    ``body`` is the request's without ``auth``, ``registration_token`` the one that was given in its stage,
    ``password_hash`` that of the password that was given just now.
    """

    body: Mapping[str, Any]
    registration_token: str | None = None
    password_hash: str | None = None


class _Shown(NamedTuple):
    """What was shown in one stage."""

    registration_token: str | None = None
    password_hash: str | None = None


class Question(msgspec.Struct, frozen=True):
    """What a user is to confirm."""

    what: str
    user_id: str


class AuthenticationNeededError(MatrixError):
    """Ask the client for the next stage (401); with ``errcode`` and ``error`` only if a stage failed."""

    def __init__(
        self, session: str, flows: Flows, completed: Sequence[str], failure: MatrixError | None = None
    ) -> None:
        message = failure.message if failure is not None else "Authentication is needed"
        super().__init__(failure.errcode if failure is not None else "M_FORBIDDEN", 401, message)
        self._failed = failure is not None
        self.fields = {
            "session": session,
            "flows": [{"stages": list(stages)} for stages in flows],
            "params": {},
            "completed": list(completed),
        }

    def body(self) -> dict[str, Any]:
        """Give the JSON object that the client gets."""
        return super().body() if self._failed else dict(self.fields)


class Uia:
    """Ask for and check the stages of authentication.

    ``grace_ms``: how long after one such authentication a session need not do another, where that is allowed.
    Who logs in by one of ``sso_providers`` may prove it there as well.
    """

    def __init__(
        self,
        *,
        store: UiaSessionStore,
        tokens: AccessTokenStore,
        accounts: Accounts,
        registration_tokens: RegistrationTokens,
        identities: IdentityStore,
        check_password: CheckPassword,
        clock: Clock,
        password_enabled: bool = True,
        grace_ms: int = 0,
        sso_providers: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._accounts = accounts
        self._registration_tokens = registration_tokens
        self._identities = identities
        self._sso_providers = sso_providers
        self._check_password = check_password
        self._clock = clock
        self._password_enabled = password_enabled
        self._grace_ms = grace_ms

    async def require(
        self,
        request: UiaRequest,
        body: Mapping[str, Any],
        operation: str,
        *,
        flows: Flows | None = None,
        keep_body: bool = False,
        may_skip: bool = False,
    ) -> Passed:
        """Return when the client has passed all stages of a flow; else raise 401 with what is to be done.

        ``operation`` names what is being done ("delete a device"): a session holds for it alone, on the same
        path and by the same user. Without ``flows`` the user proves who they are with their password. With
        ``keep_body`` a later request may consist of the session alone (see ``first_body``). With
        ``may_skip`` the question is left out within ``grace_ms`` after another.
        Raises also ``M_FORBIDDEN`` for a user who has nothing to prove it with, and ``M_LIMIT_EXCEEDED``.
        """
        auth = body.get("auth")
        rest = {key: value for key, value in body.items() if key != "auth"}
        requester = request.requester_or_none
        if auth is None and may_skip and await self._is_fresh(requester):
            return Passed(body=rest)
        attempt = _Attempt(
            operation=_identity(request, operation),
            flows=flows if flows is not None else await self._user_flows(requester),
            body=rest,
            kept=rest if keep_body else None,
        )
        passed = await self._attempt(attempt, auth, requester)
        if self._grace_ms and requester is not None and requester.access_token_id is not None:
            await self._tokens.set_reauthenticated_ts(requester.access_token_id, self._clock.now_ms())
        return passed

    async def first_body(
        self, request: UiaRequest, body: Mapping[str, Any], operation: str
    ) -> Mapping[str, Any]:
        """Give a request's body, or that of the first request if this one has only ``auth``."""
        auth = body.get("auth")
        if not isinstance(auth, Mapping) or len(body) > 1:
            return body
        session_id = _session_id(auth)
        session = await self._find(session_id, _identity(request, operation))
        if session_id is None or session is None or session.body is None:
            return body
        return {**_unseal(session_id, session.body), "auth": auth}

    async def question(self, session_id: str) -> Question | None:
        """Give what a session asks of a user; None if it asks nothing, or nothing any more."""
        session = await self._live(session_id)
        match = None if session is None else _USERS_OPERATION.fullmatch(session.operation)
        return None if match is None else Question(match[1], match[2])

    async def confirm(self, session_id: str) -> None:
        """Know that the user of a session has proved at their provider that it is they."""
        session = await self._live(session_id)
        if session is not None and SSO not in session.completed:
            await self._store.complete(_hash(session_id), [*session.completed, SSO], None)

    async def _attempt(self, attempt: _Attempt, auth: Any, requester: Requester | None) -> Passed:
        if auth is None:
            raise await self._ask_anew(attempt)
        if not isinstance(auth, Mapping):
            raise bad_json("'auth' must be an object")
        session_id = _session_id(auth)
        session = await self._find(session_id, attempt.operation)
        if session_id is not None and session is None:
            raise await self._ask_anew(attempt, forbidden("This session is not known or has expired"))
        completed = list(session.completed) if session is not None else []
        used_token = session.registration_token if session is not None else None
        stage, shown = auth.get("type"), _Shown()
        if stage is not None and stage not in completed:
            try:
                shown = await self._check_stage(attempt, stage, completed, auth, requester)
            except MatrixError as failure:
                if failure.status == 429:
                    raise
                raise await self._ask(attempt, session_id, completed, failure) from None
            used_token = shown.registration_token or used_token
            completed.append(stage)
            if tuple(completed) not in attempt.flows:
                raise await self._note(attempt, session_id, completed, used_token)
        if tuple(completed) not in attempt.flows:
            raise await self._ask(attempt, session_id, completed, None)
        # Whoever removes the session may go on: one authentication is good for one operation.
        if session_id is not None and not await self._store.finish(_hash(session_id)):
            raise await self._ask_anew(attempt, forbidden("This session has been used already"))
        return Passed(body=attempt.body, registration_token=used_token, password_hash=shown.password_hash)

    async def _check_stage(
        self,
        attempt: _Attempt,
        stage: Any,
        completed: Sequence[str],
        auth: Mapping[str, Any],
        requester: Requester | None,
    ) -> _Shown:
        """Check one stage, and give what was shown in it. Raises what is wrong with it."""
        # "the flow's stages must be completed in order"
        if not any(flow[: len(completed) + 1] == (*completed, stage) for flow in attempt.flows):
            raise MatrixError("M_UNRECOGNIZED", 401, "This stage is not what is asked for now")
        if stage == PASSWORD:
            return _Shown(password_hash=await self._check_user_password(auth, requester))
        if stage == REGISTRATION_TOKEN:
            token = auth.get("token")
            if not await self._registration_tokens.is_valid(token):
                raise MatrixError("M_UNAUTHORIZED", 401, "Invalid registration token")
            return _Shown(registration_token=str(token))
        if stage == SSO:
            raise MatrixError("M_UNAUTHORIZED", 401, "This stage is done in a browser, at its fallback page")
        return _Shown()

    async def _check_user_password(self, auth: Mapping[str, Any], requester: Requester | None) -> str:
        assert requester is not None
        password = auth.get("password")
        if not isinstance(password, str):
            raise invalid_param("'password' must be a string")
        # Some clients leave out whom it is about: there is only one possibility.
        about_me = auth.get("identifier") is None and auth.get("user") is None
        name = requester.user_id if about_me else typed_name(auth)
        account, password_hash = await self._check_password(name, password)
        if account.user_id != requester.user_id:
            raise forbidden("This is the password of another user")
        return password_hash

    async def _user_flows(self, requester: Requester | None) -> Flows:
        assert requester is not None
        user_id = requester.user_id
        flows = []
        if self._password_enabled and await self._accounts.has_password(user_id):
            flows.append((PASSWORD,))
        if self._sso_providers and await self._identities.providers_of(user_id, self._sso_providers):
            flows.append((SSO,))
        if not flows:
            raise forbidden("This account has no way to confirm who is using it")
        return flows

    async def _is_fresh(self, requester: Requester | None) -> bool:
        if not self._grace_ms or requester is None or requester.access_token_id is None:
            return False
        last_ts = await self._tokens.reauthenticated_ts(requester.access_token_id)
        return last_ts is not None and self._clock.now_ms() - last_ts < self._grace_ms

    async def _find(self, session_id: str | None, operation: str) -> UiaSession | None:
        session = None if session_id is None else await self._live(session_id)
        return None if session is None or session.operation != operation else session

    async def _live(self, session_id: str) -> UiaSession | None:
        session = await self._store.get(_hash(session_id))
        if session is None or self._clock.now_ms() - session.created_ts > SESSION_TIMEOUT_MS:
            return None
        return session

    async def _ask_anew(
        self, attempt: _Attempt, failure: MatrixError | None = None
    ) -> AuthenticationNeededError:
        return await self._ask(attempt, None, (), failure)

    async def _ask(
        self, attempt: _Attempt, session_id: str | None, completed: Sequence[str], failure: MatrixError | None
    ) -> AuthenticationNeededError:
        if session_id is None:
            session_id = await self._start(attempt)
        return AuthenticationNeededError(session_id, attempt.flows, completed, failure)

    async def _note(
        self, attempt: _Attempt, session_id: str | None, completed: Sequence[str], used_token: str | None
    ) -> AuthenticationNeededError:
        if session_id is None:
            session_id = await self._start(attempt)
        await self._store.complete(_hash(session_id), completed, used_token)
        return AuthenticationNeededError(session_id, attempt.flows, completed)

    async def _start(self, attempt: _Attempt) -> str:
        session_id = secrets.token_urlsafe(18)
        sealed = None if attempt.kept is None else _seal(session_id, attempt.kept)
        await self._store.start(_hash(session_id), attempt.operation, self._clock.now_ms(), sealed)
        return session_id


class _Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One request that needs authentication."""

    operation: str
    flows: Flows
    body: Mapping[str, Any]
    kept: Mapping[str, Any] | None


def _identity(request: UiaRequest, operation: str) -> str:
    requester = request.requester_or_none
    user_id = requester.user_id if requester is not None else ""
    # The path may be long, and says little to a reader of the database.
    path = hashlib.sha256(request.path.encode()).hexdigest()
    return f"{operation} {request.method} {path} {user_id}"


def _session_id(auth: Mapping[str, Any]) -> str | None:
    session_id = auth.get("session")
    if session_id is None or session_id == "":
        return None
    if not isinstance(session_id, str) or len(session_id) > MAX_SESSION_ID_LENGTH:
        raise invalid_param("'auth.session' must be the session that the server gave")
    return session_id


def _hash(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).digest()


def _box(session_id: str) -> nacl.secret.SecretBox:
    key = hashlib.blake2b(session_id.encode("utf-8", "surrogatepass"), digest_size=32, person=b"uia body")
    return nacl.secret.SecretBox(key.digest())


def _seal(session_id: str, body: Mapping[str, Any]) -> bytes | None:
    """Encrypt a body under the session id, which is not stored: it may hold a new password."""
    plain = orjson.dumps(body)
    return bytes(_box(session_id).encrypt(plain)) if 2 < len(plain) <= MAX_KEPT_BODY else None


def _unseal(session_id: str, sealed: bytes) -> dict[str, Any]:
    try:
        body: dict[str, Any] = orjson.loads(_box(session_id).decrypt(sealed))
    except (nacl.exceptions.CryptoError, ValueError) as error:
        raise RuntimeError("a stored session can not be read") from error
    return body
