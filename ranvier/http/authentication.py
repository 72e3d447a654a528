"""Who asks: from the access token of a request to its ``Requester``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol
from urllib.parse import parse_qsl

from ranvier.http.route import Auth
from ranvier.spec.errors import MatrixError
from ranvier.users.requester import Requester, unknown_token, user_locked

__all__ = ["Authenticator", "RequestAuthentication", "missing_token", "unknown_token"]


class Authenticator(Protocol):
    """Know the access tokens."""

    async def authenticate(self, token: str) -> Requester:
        """Give the holder of a token, be they locked. Raises ``unknown_token`` (401)."""

    def key(self, token: str) -> bytes:
        """Give what a token is known by in memory."""

    def known(self, key: bytes) -> Requester | None:
        """Give the holder of a valid token, by its key, if that is in memory."""


def missing_token() -> MatrixError:
    """Say that the request needs an access token and has none (401 ``M_MISSING_TOKEN``)."""
    return MatrixError("M_MISSING_TOKEN", 401, "Missing access token")


class RequestAuthentication:
    """Apply a route's ``auth`` to a request."""

    def __init__(self, authenticator: Authenticator, *, allow_query_token: bool = False) -> None:
        self._authenticator = authenticator
        self._allow_query_token = allow_query_token

    async def identify(
        self, auth: Auth, headers: Iterable[tuple[bytes, bytes]], query_string: bytes
    ) -> Requester | None:
        """Give who asks, or None where nobody has to.

        Raises ``M_MISSING_TOKEN``, ``M_UNKNOWN_TOKEN``, ``M_USER_LOCKED``, ``M_GUEST_ACCESS_FORBIDDEN`` and,
        for an endpoint of administrators, ``M_FORBIDDEN``.
        """
        if auth is Auth.NONE:
            return None
        token = self._token(headers, query_string)
        if token is None:
            if auth is Auth.OPTIONAL:
                return None
            raise missing_token()
        requester = await self._authenticator.authenticate(token)
        if requester.locked and auth is not Auth.LOCKED:
            raise user_locked()
        if requester.is_guest and (auth is Auth.USER or auth is Auth.ADMIN):
            raise MatrixError("M_GUEST_ACCESS_FORBIDDEN", 403, "Guests may not do this")
        if auth is Auth.ADMIN and not requester.is_admin:
            raise MatrixError("M_FORBIDDEN", 403, "You are not a server admin")
        return requester

    def key(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
        """Give what a request's token is known by; None where there is none in the headers."""
        token = self._token(headers, b"")
        return None if token is None else self._authenticator.key(token)

    def known(self, auth: Auth, key: bytes) -> Requester | None:
        """Give who asks, by the key of their token, if they are in memory and may; else ask ``identify``."""
        if auth is not Auth.USER and auth is not Auth.GUEST:
            return None
        requester = self._authenticator.known(key)
        if requester is None or requester.locked or (requester.is_guest and auth is Auth.USER):
            return None
        return requester

    def _token(self, headers: Iterable[tuple[bytes, bytes]], query_string: bytes) -> str | None:
        """Find the token. Source: client-server API, "Using access tokens"."""
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) > 1:
            raise MatrixError("M_MISSING_TOKEN", 401, "More than one Authorization header")
        if given:
            scheme, _, token = given[0].partition(b" ")
            if scheme.lower() != b"bearer" or not token.strip():
                raise MatrixError("M_MISSING_TOKEN", 401, "The Authorization header holds no Bearer token")
            try:
                return token.strip().decode("ascii")
            except UnicodeDecodeError:
                raise unknown_token() from None
        if self._allow_query_token and b"access_token" in query_string:
            return _query_token(query_string)
        return None


def _query_token(query_string: bytes) -> str | None:
    fields = parse_qsl(query_string.decode("utf-8", "replace"))
    tokens = [value for name, value in fields if name == "access_token"]
    return tokens[0] if len(tokens) == 1 else None
