"""ID tokens: what an OpenID provider says of somebody who logged in there.

A token is only ever taken from the provider's token endpoint, over TLS: "the TLS server validation MAY be
used to validate the issuer in place of checking the token signature". So no keys are fetched, and no
signature is looked at; all else is checked.
Source: OpenID Connect Core 1.0, 3.1.3.7.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

import orjson

LEEWAY_S: Final = 120
"""By how much the clocks of a provider and of this server may differ."""

Claims = Mapping[str, Any]


class WrongIdToken(Exception):
    """Say what is wrong with an ID token."""


def check_id_token(
    token: Any,
    *,
    issuer: str,
    client_id: str,
    nonce: str,
    now_s: float,
    logged_in_after_s: float | None = None,
) -> Claims:
    """Give the claims of an ID token that is for this client and this login. Raises WrongIdToken.

    ``logged_in_after_s`` is since when they were to log in there anew, if they were.
    """
    claims = _claims(token)
    # "The Issuer Identifier … MUST exactly match the value of the iss (issuer) Claim."
    if claims.get("iss") != issuer:
        raise WrongIdToken("its issuer is another")
    _check_audience(claims, client_id)
    _check_time(claims, now_s)
    if logged_in_after_s is not None:
        _check_login(claims, logged_in_after_s)
    # "its value … is the same value as the one that was sent in the Authentication Request"
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(_bytes(given), nonce.encode()):
        raise WrongIdToken("it is of another login")
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        raise WrongIdToken("it does not say of whom it is")
    return claims


def _claims(token: Any) -> Claims:
    parts = token.split(".") if isinstance(token, str) else []
    if len(parts) != 3:  # five of them are an encrypted one, which nobody asked for
        raise WrongIdToken("it is no signed token")
    try:
        payload = parts[1].encode("ascii")
        claims = orjson.loads(urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    except (UnicodeEncodeError, binascii.Error, orjson.JSONDecodeError):
        raise WrongIdToken("it can not be read") from None
    if not isinstance(claims, dict):
        raise WrongIdToken("it can not be read")
    return claims


def _check_audience(claims: Claims, client_id: str) -> None:
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or client_id not in audiences:
        raise WrongIdToken("it is for another client")
    # "If the ID Token contains multiple audiences, the Client SHOULD verify that an azp Claim is present",
    # and "if an azp (authorized party) Claim is present … that its client_id is the Claim Value".
    if (len(audiences) > 1 or "azp" in claims) and claims.get("azp") != client_id:
        raise WrongIdToken("it was given to another client")


def _check_time(claims: Claims, now_s: float) -> None:
    expires_s, issued_s = claims.get("exp"), claims.get("iat")
    if not (_is_number(expires_s) and _is_number(issued_s)):
        raise WrongIdToken("it does not say from when until when it is valid")
    if expires_s + LEEWAY_S <= now_s:
        raise WrongIdToken("it has expired")
    if issued_s - LEEWAY_S > now_s:
        raise WrongIdToken("it is from the future: look at the clocks of the provider and of this server")


def _check_login(claims: Claims, after_s: float) -> None:
    # "If the auth_time Claim was requested …, the Client SHOULD check the auth_time Claim value". By max_age
    # it is requested, and yet some leave it out.
    logged_in_s = claims.get("auth_time", after_s)
    if not _is_number(logged_in_s) or logged_in_s + LEEWAY_S < after_s:
        raise WrongIdToken("it is of an earlier login")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
