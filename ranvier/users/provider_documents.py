"""The discovery documents of providers: where what is to be found, and what they can do.

Source: OpenID Connect Discovery 1.0, 4.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from ranvier.log.clock import Clock
from ranvier.spec.errors import MatrixError
from ranvier.users.provider_http import ProviderFailed, ProviderHttp

logger = logging.getLogger(__name__)

ANEW_S: Final = 3600.0
AFTER_FAILURE_S: Final = 5.0
WITH_OLDER_S: Final = 60.0


class ProviderDocument:
    """The document of one provider: fetched when it is needed, and once an hour, by one for all who wait.

    A failure is everybody's for some seconds. If there is an older document, it does until the next attempt.
    """

    def __init__(self, *, issuer: str, http: ProviderHttp, clock: Clock) -> None:
        self._issuer = issuer
        self._http = http
        self._clock = clock
        self._found: Mapping[str, Any] = {}
        self._failure = ""
        self._fetch_at = clock.monotonic()
        self._one = asyncio.Lock()

    async def get(self) -> Mapping[str, Any]:
        """Give the document. Raises ProviderFailed if there never was one."""
        async with self._one:
            if self._clock.monotonic() >= self._fetch_at:
                await self._renew()
        if not self._found:
            raise ProviderFailed(self._failure)
        return self._found

    async def _renew(self) -> None:
        try:
            self._found = await self._fetch()
            wait_s = ANEW_S
        except MatrixError:  # too many ask at the moment
            if not self._found:
                raise
            wait_s = AFTER_FAILURE_S
        except ProviderFailed as failure:
            self._failure = str(failure)
            wait_s = WITH_OLDER_S if self._found else AFTER_FAILURE_S
            if self._found:
                logger.warning("The older document of %s is used: %s", self._issuer, failure)
        self._fetch_at = self._clock.monotonic() + wait_s

    async def _fetch(self) -> Mapping[str, Any]:
        found = await self._http.get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        # "The issuer value returned MUST be identical to the Issuer URL that was … used"
        if found.get("issuer") != self._issuer:
            raise ProviderFailed("its discovery document is of another issuer")
        return found
