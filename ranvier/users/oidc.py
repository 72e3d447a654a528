"""A provider of OpenID Connect, or of OAuth 2.0 alone: where a browser is sent, and who came back.

Source: OpenID Connect Core 1.0, 3.1 (authorization code flow) and 5.3 (userinfo); OpenID Connect Discovery
1.0; RFC 6749, 4.1; RFC 7636 (PKCE); RFC 9207 (the issuer in the answer).
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from ranvier.config.sso import BASIC, POST, OidcProvider, is_safe_endpoint
from ranvier.log.clock import Clock
from ranvier.spec.unpadded_base64 import encode_urlsafe_base64
from ranvier.users.id_token import Claims, WrongIdToken, check_id_token
from ranvier.users.provider_documents import ProviderDocument
from ranvier.users.provider_http import ProofRefused, ProviderFailed, ProviderHttp
from ranvier.users.sealed_steps import Step

_MAX_CODE: Final = 4096


class OidcClient:
    """What this server is to one provider. People come back from there to ``redirect_uri``."""

    def __init__(self, *, config: OidcProvider, redirect_uri: str, http: ProviderHttp, clock: Clock) -> None:
        self.config = config
        self._redirect_uri = redirect_uri
        self._http = http
        self._clock = clock
        self._document = ProviderDocument(issuer=config.issuer, http=http, clock=clock)

    async def login_url(self, step: Step) -> str:
        """Give where a browser is sent to log in. Raises ProviderFailed."""
        config = self.config
        query = {
            "response_type": "code",
            "client_id": config.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(config.scopes),
            "state": step.state,
        }
        if config.gives_id_token:
            query["nonce"] = step.nonce
            if step.kind == "confirm":
                # "force reauthentication, even if … already authenticated" (3.1.2.1). Not all heed both.
                query |= {"prompt": "login", "max_age": "0"}
        if await self._uses_pkce():
            # "code_challenge = BASE64URL-ENCODE(SHA256(ASCII(code_verifier)))"
            digest = hashlib.sha256(step.verifier.encode("ascii")).digest()
            query |= {"code_challenge": encode_urlsafe_base64(digest), "code_challenge_method": "S256"}
        endpoint = await self._endpoint("authorization_endpoint", config.authorization_endpoint)
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    async def claims(self, step: Step, code: str, issuer: str | None) -> Claims:
        """Give what the provider says of who came back with a code. Raises ProviderFailed.

        ``issuer`` is who the answer says it is from, where it does.
        """
        await self._check_issuer(issuer)
        if not code or len(code) > _MAX_CODE:
            raise ProofRefused("there is no code in its answer")
        tokens = await self._exchange(step, code)
        claims: Claims = {}
        if self.config.gives_id_token:
            claims = self._check(tokens, step)
        if self.config.asks_userinfo:
            claims = await self._with_userinfo(claims, tokens)
        return claims

    async def _check_issuer(self, issuer: str | None) -> None:
        # "If clients receive an authorization response without the iss parameter from an authorization server
        # that does indicate its support …, the client MUST reject the response." (RFC 9207, 2.4)
        if issuer is None and (await self._metadata()).get("authorization_response_iss_parameter_supported"):
            raise ProofRefused("it is not named in the answer")
        if issuer is not None and issuer != self.config.issuer:
            raise ProofRefused("the answer is another provider's")

    async def _exchange(self, step: Step, code: str) -> Mapping[str, Any]:
        """Exchange a code for tokens. Source: RFC 6749, 4.1.3 and 2.3.1 (who the client is)."""
        config = self.config
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": self._redirect_uri}
        headers: dict[str, str] = {}
        if await self._uses_pkce():
            fields["code_verifier"] = step.verifier
        if config.client_auth_method == BASIC:
            pair = f"{quote_plus(config.client_id)}:{quote_plus(config.client_secret or '')}"
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        else:
            fields["client_id"] = config.client_id
            if config.client_auth_method == POST:
                fields["client_secret"] = config.client_secret or ""
        endpoint = await self._endpoint("token_endpoint", config.token_endpoint)
        return await self._http.post(endpoint, fields, headers)

    def _check(self, tokens: Mapping[str, Any], step: Step) -> Claims:
        config = self.config
        try:
            return check_id_token(
                tokens.get("id_token"),
                issuer=config.issuer,
                client_id=config.client_id,
                nonce=step.nonce,
                now_s=self._clock.now_ms() / 1000,
                logged_in_after_s=step.begun_ts / 1000 if step.kind == "confirm" else None,
            )
        except WrongIdToken as error:
            raise ProofRefused(f"its ID token can not be used: {error}") from None

    async def _with_userinfo(self, claims: Claims, tokens: Mapping[str, Any]) -> Claims:
        token = tokens.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise ProofRefused("it gives no access token")
        endpoint = await self._endpoint("userinfo_endpoint", self.config.userinfo_endpoint)
        found = await self._http.get(endpoint, {"Authorization": f"Bearer {token}"})
        # "The sub Claim in the UserInfo Response MUST be verified to exactly match" that of the ID token.
        if "sub" in claims and found.get("sub") != claims["sub"]:
            raise ProofRefused("its userinfo is of somebody else")
        return {**claims, **found}

    async def _uses_pkce(self) -> bool:
        if self.config.pkce_method != "auto":
            return self.config.pkce_method == "always"
        # Who knows nothing of it ignores it: "The authorization server MUST ignore unrecognized request
        # parameters." (RFC 6749, 3.1)
        methods = (await self._metadata()).get("code_challenge_methods_supported")
        return methods is None or (isinstance(methods, list) and "S256" in methods)

    async def _endpoint(self, name: str, configured: str | None) -> str:
        """Give an endpoint: the one of the configuration, else of the discovery document."""
        if configured is not None:
            return configured
        found = (await self._metadata()).get(name)
        # One elsewhere names nothing on this machine.
        is_near = self.config.issuer.startswith("http://")
        if not isinstance(found, str) or not is_safe_endpoint(found, may_be_near=is_near):
            raise ProviderFailed(f"its discovery document names no {name} with https://")
        return found

    async def _metadata(self) -> Mapping[str, Any]:
        """Give the discovery document; nothing if there is none to be used."""
        return await self._document.get() if self.config.discover else {}
