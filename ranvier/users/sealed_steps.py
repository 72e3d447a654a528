"""What is known of a login that is under way, between one request of a browser and the next.

It is in the browser's own cookie, sealed with a key that all workers share. So a login costs the server
nothing until it comes back, each of its requests may reach another worker, and none has to live for long.
"""

from __future__ import annotations

import binascii
import hmac
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
import nacl.exceptions
import nacl.secret

from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError
from ranvier.users.identities import Identity

LIFETIME_S: Final = 600
MAX_COOKIE: Final = 4096
_STATE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_NAMED_BY: Final = 12

Kind = Literal["login", "confirm", "name"]


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a login is: at the provider, to log in or to confirm something, or at the choice of a name.

    ``state``, ``nonce`` and ``verifier`` are what this login was begun with at the provider.
    ``redirect_url`` is where the client waits, ``uia_session`` what is to be confirmed, and ``identity`` who
    is to choose a name.
    """

    kind: Kind
    provider: str
    state: str
    expires_ts: int
    nonce: str = ""
    verifier: str = ""
    redirect_url: str = ""
    uia_session: str = ""
    identity: Identity | None = None


class LoginLost(MatrixError):
    """Say that a login was begun elsewhere, or too long ago (400)."""

    def __init__(self) -> None:
        super().__init__(
            "M_UNKNOWN", 400, "This login was begun in another browser, or too long ago. Begin it anew."
        )


class SealedSteps:
    """Begin logins, and keep them in cookies for ``path``. ``key`` has 32 bytes."""

    def __init__(self, *, key: bytes, clock: Clock, path: str, secure: bool) -> None:
        self._box = nacl.secret.SecretBox(key)
        self._clock = clock
        self._attributes = f"Path={path}; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"

    def begin(self, kind: Kind, provider: str, *, redirect_url: str = "", uia_session: str = "") -> Step:
        """Begin a login."""
        return Step(
            kind=kind,
            provider=provider,
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            # "a minimum length of 43 characters and a maximum length of 128 characters" (RFC 7636, 4.1)
            verifier=secrets.token_urlsafe(32),
            expires_ts=self._clock.now_ms() + LIFETIME_S * 1000,
            redirect_url=redirect_url,
            uia_session=uia_session,
        )

    def choosing(self, step: Step, identity: Identity) -> Step:
        """Give the step after that at the provider, for who is to choose a name."""
        return Step(
            kind="name",
            provider=step.provider,
            state=step.state,
            expires_ts=self._clock.now_ms() + LIFETIME_S * 1000,
            redirect_url=step.redirect_url,
            identity=identity,
        )

    def cookie(self, step: Step) -> str:
        """Give the Set-Cookie that keeps a step; it takes the place of an earlier one of the same login."""
        sealed = urlsafe_b64encode(self._box.encrypt(msgspec.json.encode(step))).decode().rstrip("=")
        return f"{_name(step.state)}={sealed}; Max-Age={LIFETIME_S}; {self._attributes}"

    def no_cookie(self, step: Step) -> str:
        """Give the Set-Cookie that ends a login."""
        return f"{_name(step.state)}=; Max-Age=0; {self._attributes}"

    def find(self, state: str, headers: Iterable[tuple[bytes, bytes]], *kinds: Kind) -> Step:
        """Give the step of the login with a state, from the cookies of who asks. Raises LoginLost."""
        if _STATE.fullmatch(state) is None:
            raise LoginLost
        for sealed in _cookies(headers, _name(state)):
            step = self._open(sealed)
            # By its beginning it is found, and only by all of it is it the same.
            if step is not None and step.kind in kinds and hmac.compare_digest(step.state, state):
                if step.expires_ts <= self._clock.now_ms():
                    raise LoginLost
                return step
        raise LoginLost

    def _open(self, sealed: bytes) -> Step | None:
        if len(sealed) > MAX_COOKIE:
            return None
        try:
            plain = self._box.decrypt(urlsafe_b64decode(sealed + b"=" * (-len(sealed) % 4)))
            return msgspec.json.decode(plain, type=Step)
        except (ValueError, binascii.Error, nacl.exceptions.CryptoError, msgspec.DecodeError):
            return None


def _name(state: str) -> str:
    """Name the cookie of one login, so that several in one browser do not end each other."""
    return f"ranvier_sso_{state[:_NAMED_BY]}"


def _cookies(headers: Iterable[tuple[bytes, bytes]], name: str) -> Iterable[bytes]:
    wanted = name.encode()
    for header, value in headers:
        if header == b"cookie":
            for pair in value.split(b";"):
                key, _, content = pair.partition(b"=")
                if key.strip() == wanted:
                    yield content.strip()
