"""What is found out once of a request that comes again and again, and is the same each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ranvier.http.body import announced_length
from ranvier.http.exchange import Exchange
from ranvier.http.heads import cut_since
from ranvier.http.reported import reported
from ranvier.http.request import user_agent
from ranvier.http.route import BoundRoute, Repeated

if TYPE_CHECKING:
    from ranvier.http.app import Edge

SEEN_EVERY_S: Final = 1.0
"""A client that polls is noted once in this time."""


class Known:
    """What is the same for all requests with one head: the endpoint, the key of the token, who asks.

    ``ip`` is empty where it is the connection's. ``seen_s`` is when the client was seen last.
    """

    __slots__ = ("agent", "bound", "ip", "repeated", "seen_s", "token_key")

    def __init__(self, bound: BoundRoute, repeated: Repeated, token_key: bytes, ip: str, agent: str) -> None:
        self.bound = bound
        self.repeated = repeated
        self.token_key = token_key
        self.ip = ip
        self.agent = agent
        self.seen_s = -SEEN_EVERY_S


def get_to_know(edge: Edge, exchange: Exchange) -> tuple[Known, bytes] | None:
    """Find out what is the same for all requests with this head, if they may be answered at once.

    It comes with the value of ``since``.
    """
    bound = edge.router.find_exact(exchange.method, exchange.raw_path)
    if bound is None or bound.at_once is None or bound.route.limit is not None:
        return None
    cut = cut_since(exchange.query_string)
    if cut is None or announced_length(exchange.headers) != 0:
        return None
    before, since, after = cut
    repeated = bound.at_once(before + after)
    if repeated is None:
        return None
    key = edge.application.authentication.key(exchange.headers)
    if key is None:
        return None
    exchange.stay()
    ip = reported(exchange.headers)[0] or exchange.ip if edge.x_forwarded else ""
    return Known(bound, repeated, key, ip, user_agent(exchange.headers)), since
