"""Rate limits: token buckets by the names that administrators know (``rc_message``, ``rc_login.address``)."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ranvier.http.request import Request
from ranvier.spec.errors import MatrixError

MAX_BUCKETS = 100_000

Counted = Callable[[str, str, float, float], None]


@dataclass(frozen=True, slots=True)
class Rate:
    """Allow ``per_second`` actions a second in the long run, and ``burst_count`` at once.

    A ``per_second`` of 0 allows the burst and then nothing until the process restarts.
    """

    per_second: float
    burst_count: float


def limit_exceeded(retry_after_ms: int) -> MatrixError:
    """Say that the client asks too often (429 ``M_LIMIT_EXCEEDED``); a Retry-After header comes of the field.

    Source: client-server API, "Rate limiting".
    """
    return MatrixError("M_LIMIT_EXCEEDED", 429, "Too many requests", retry_after_ms=retry_after_ms)


class RateLimiter:
    """Count what each key did. A limit without a configured rate limits nothing.

    The counts live in this process. Where there are several, ``counted`` is called with each count (limit,
    key, cost, burst) and ``count_elsewhere`` takes those of the others; see ``cluster.rate_limits``.
    """

    def __init__(
        self, rates: Mapping[str, Rate], *, max_buckets: int = MAX_BUCKETS, counted: Counted | None = None
    ) -> None:
        self._counted = counted
        self._rates = dict(rates)
        self._max_buckets = max_buckets
        # When each bucket will be empty, by limit and key, the least recently used first. That is all that a
        # token bucket needs: what is in it now is (empty_at - now) * per_second.
        self._empty_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def __len__(self) -> int:
        """Give the number of buckets held."""
        return len(self._empty_at)

    def change_rates(self, rates: Mapping[str, Rate]) -> None:
        """Go by other rates from now on. What was counted stays counted, but for limits that changed."""
        changed = {name for name, rate in self._rates.items() if rates.get(name) != rate}
        for bucket in [it for it in self._empty_at if it[0] in changed]:
            del self._empty_at[bucket]
        self._rates = dict(rates)

    def check(self, name: str, key: str, now: float, cost: float = 1.0, *, count: bool = True) -> None:
        """Let an action pass and count it, or refuse it. Raises 429 ``M_LIMIT_EXCEEDED``.

        ``now`` is in seconds of a clock that never goes back. With ``count`` false the action is only
        looked at (``rc_login.failed_attempts`` is counted after the failure, by ``count``).
        """
        rate = self._rates.get(name)
        if rate is None:
            return
        per_second = max(rate.per_second, 1e-9)
        empty_at = max(self._empty_at.get((name, key), now), now)
        room_s = rate.burst_count / per_second - (empty_at - now)
        missing_s = cost / per_second - room_s
        if missing_s > 1e-9:
            raise limit_exceeded(retry_after_ms=min(math.ceil(missing_s * 1000), 2**53 - 1))
        if count:
            self.count(name, key, now, cost)

    def count(self, name: str, key: str, now: float, cost: float = 1.0) -> None:
        """Count an action that took place, whether there was room for it or not."""
        self.count_elsewhere(name, key, cost, now)
        if self._counted is not None and (rate := self._rates.get(name)) is not None:
            self._counted(name, key, cost, rate.burst_count)

    def count_elsewhere(self, name: str, key: str, cost: float, now: float) -> None:
        """Count what another process let pass, so that all of them together allow one burst."""
        rate = self._rates.get(name)
        if rate is None:
            return
        per_second = max(rate.per_second, 1e-9)
        empty_at = max(self._empty_at.get((name, key), now), now) + cost / per_second
        # What several let pass at once beyond the burst has to be waited for.
        self._keep((name, key), empty_at, now)

    def _keep(self, bucket: tuple[str, str], empty_at: float, now: float) -> None:
        self._empty_at[bucket] = empty_at
        self._empty_at.move_to_end(bucket)
        # Two looks per count keep the map free of empty buckets without ever walking it.
        for _ in range(2):
            oldest = next(iter(self._empty_at))
            if self._empty_at[oldest] > now and len(self._empty_at) <= self._max_buckets:
                break
            del self._empty_at[oldest]
            if not self._empty_at:
                break

    def check_request(self, request: Request, now: float) -> None:
        """Apply the limit that a request's route names, per user or, without a user, per address."""
        name = request.route.limit
        if name is None:
            return
        requester = request.requester_or_none
        if requester is None:
            self.check(name, address_key(request.ip), now)
        elif requester.rate_limited:
            self.check(name, requester.user_id, now)


def address_key(ip: str) -> str:
    """Give the key under which an address is counted: one household's IPv6 network (/64) is one key."""
    if ":" not in ip:
        return ip
    try:
        return str(ipaddress.ip_network((ip.partition("%")[0], 64), strict=False))
    except ValueError:
        return ip
