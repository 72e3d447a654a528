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
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import msgspec
import nacl.exceptions
import nacl.secret

from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError
from ranvier.users.identities import Identity

LIFETIME_S: Final = 600
GRANTING_S: Final = 120
AGAIN_S: Final = 30
MAX_COOKIE: Final = 4096
SLOTS: Final = "0123"
"""Of the logins that a browser keeps: web servers take 8 kB of cookies, and any page can begin logins."""
_STATE: Final = re.compile(f"[{SLOTS}][A-Za-z0-9_-]{{43}}")

Headers = Sequence[tuple[bytes, bytes]]

Kind = Literal["login", "confirm", "name", "client"]


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a login is: at the provider, to log in or to confirm something, or at one of the questions after.

    ``state``, ``nonce`` and ``verifier`` are what this login was begun with at the provider.
    ``redirect_url`` is where the client waits, ``uia_session`` what is to be confirmed, ``identity`` who is
    to choose a name, and ``user_id`` who is to say whether the client gets access.
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
    user_id: str = ""

    @property
    def begun_ts(self) -> int:
        """When this step was begun."""
        return self.expires_ts - LIFETIME_S * 1000


class LoginLost(MatrixError):
    """Say that a login was begun elsewhere, or too long ago (400)."""

    def __init__(self) -> None:
        super().__init__(
            "M_UNKNOWN", 400, "This login was begun in another browser, or too long ago. Begin it anew."
        )


class SealedSteps:
    """Begin logins, and keep them in cookies. ``key`` has 32 bytes.

    Where all is ``secure`` no other host can set the cookies, which browsers see to by their names (RFC
    6265bis, 4.1.3.2) if they are for every path; elsewhere they are for ``path`` and what is below.
    """

    def __init__(self, *, key: bytes, clock: Clock, path: str, secure: bool) -> None:
        self._box = nacl.secret.SecretBox(key)
        self._clock = clock
        self._prefix = "__Host-ranvier_sso_" if secure else "ranvier_sso_"
        where = "Path=/; Secure" if secure else f"Path={path}"
        self._attributes = f"{where}; HttpOnly; SameSite=Lax"

    def begin(
        self, kind: Kind, provider: str, headers: Headers, *, redirect_url: str = "", uia_session: str = ""
    ) -> Step:
        """Begin a login of who asks with some cookies, beside those that are in them."""
        return Step(
            kind=kind,
            provider=provider,
            state=self._free_slot(headers) + secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            # "a minimum length of 43 characters and a maximum length of 128 characters" (RFC 7636, 4.1)
            verifier=secrets.token_urlsafe(32),
            expires_ts=self._clock.now_ms() + LIFETIME_S * 1000,
            redirect_url=redirect_url,
            uia_session=uia_session,
        )

    def choosing(self, step: Step, identity: Identity) -> Step:
        """Give the step after that at the provider, for who is to choose a name."""
        return self._after(step, kind="name", identity=identity)

    def granting(self, step: Step, user_id: str) -> Step:
        """Give the last step, for who is to say whether the client gets access."""
        return self._after(step, GRANTING_S, kind="client", user_id=user_id)

    def granted(self, step: Step) -> Step:
        """Give the same step for a moment more: for a second click, while the first one's answer comes."""
        return self._after(step, AGAIN_S, kind="client", user_id=step.user_id)

    def _after(self, step: Step, lifetime_s: int = LIFETIME_S, **what: Any) -> Step:
        return Step(
            provider=step.provider,
            state=step.state,
            expires_ts=self._clock.now_ms() + lifetime_s * 1000,
            redirect_url=step.redirect_url,
            **what,
        )

    def cookie(self, step: Step) -> str:
        """Give the Set-Cookie that keeps a step; it takes the place of an earlier one of the same login."""
        sealed = urlsafe_b64encode(self._box.encrypt(msgspec.json.encode(step))).decode().rstrip("=")
        return f"{self._name(step.state)}={sealed}; Max-Age={LIFETIME_S}; {self._attributes}"

    def no_cookie(self, step: Step) -> str:
        """Give the Set-Cookie that ends a login."""
        return f"{self._name(step.state)}=; Max-Age=0; {self._attributes}"

    def find(self, state: str, headers: Headers, *kinds: Kind) -> Step:
        """Give the step of the login with a state, from the cookies of who asks. Raises LoginLost."""
        if _STATE.fullmatch(state) is None:
            raise LoginLost
        for sealed in _cookies(headers, self._name(state)):
            step = self._open(sealed)
            # By its beginning it is found, and only by all of it is it the same.
            if step is not None and step.kind in kinds and hmac.compare_digest(step.state, state):
                if step.expires_ts <= self._clock.now_ms():
                    raise LoginLost
                return step
        raise LoginLost

    def _free_slot(self, headers: Headers) -> str:
        """Give a slot that is free, else the one whose login has been open for longest."""
        ends = {slot: self._ends_ts(slot, headers) for slot in SLOTS}
        return secrets.choice([slot for slot in SLOTS if ends[slot] == min(ends.values())])

    def _ends_ts(self, slot: str, headers: Headers) -> int:
        steps = map(self._open, _cookies(headers, self._name(slot)))
        return max((step.expires_ts for step in steps if step is not None), default=0)

    def _name(self, state: str) -> str:
        return self._prefix + state[:1]

    def _open(self, sealed: bytes) -> Step | None:
        if len(sealed) > MAX_COOKIE:
            return None
        try:
            plain = self._box.decrypt(urlsafe_b64decode(sealed + b"=" * (-len(sealed) % 4)))
            return msgspec.json.decode(plain, type=Step)
        except (ValueError, binascii.Error, nacl.exceptions.CryptoError, msgspec.DecodeError):
            return None


def _cookies(headers: Headers, name: str) -> Iterable[bytes]:
    wanted = name.encode()
    for header, value in headers:
        if header == b"cookie":
            for pair in value.split(b";"):
                key, _, content = pair.partition(b"=")
                if key.strip() == wanted:
                    yield content.strip()
