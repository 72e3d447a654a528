"""Clients that know by which connection each of their requests goes, and that quietly repeat nothing."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from tests.chaos.processes import peer_of
from tests.cluster.cluster_process import HoppingClient
from tests.server.http_client import HttpClient


@dataclass
class Way:
    """By which connection a request went last: from this TCP port, or to this process's UNIX socket."""

    port: int = 0
    pid: int = 0


_ANEW: Final = 0.1

_way: ContextVar[Way] = ContextVar("way")


@contextmanager
def noting_way(way: Way) -> Iterator[Way]:
    """Note by which connection a request of this task goes."""
    token = _way.set(way)
    try:
        yield way
    finally:
        _way.reset(token)


class Through(HttpClient):
    """Ask whoever the front chooses, now and then anew, and tell of each request that fails."""

    def __init__(self, url: str, *, seed: int) -> None:
        super().__init__(url)
        self._chance = random.Random(seed)
        self._sessions: list[aiohttp.ClientSession] = []

    async def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Send a request and give the answer. Raises Refused."""
        if self._session is None or self._chance.random() < _ANEW:
            # What is under way on the connections of before comes to its end there.
            self._session = _candid(_Tcp(limit=0))
            self._sessions.append(self._session)
        return await super().request(method, path, body, **query)

    async def close(self) -> None:
        """Close its connections."""
        for session in self._sessions:
            await session.close()
        self._session = None


class Direct(HoppingClient):
    """Ask workers directly and at random, so that several are asked to write into one room at once.

    It knows that workers come and go: where nobody listens, it asks the next.
    """

    async def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Send a request and give the answer. Raises Refused."""
        for where in self.sockets:
            if where not in self._sessions:
                self._sessions[where] = _candid(_Unix(str(where), limit=0))
        while True:
            try:
                return await super().request(method, path, body, **query)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.02)


class _Noting(aiohttp.BaseConnector):
    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        """Give a connection, and note which it is."""
        connection = await super().connect(req, traces, timeout)
        way = _way.get(None)
        if way is not None:
            transport = connection.transport
            assert transport is not None
            sock = transport.get_extra_info("socket")
            if sock.family == socket.AF_UNIX:
                way.port, way.pid = 0, peer_of(sock)
            else:
                way.port, way.pid = transport.get_extra_info("sockname")[1], 0
        return connection


class _Tcp(_Noting, aiohttp.TCPConnector):
    pass


class _Unix(_Noting, aiohttp.UnixConnector):
    pass


def _candid(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    """Make a session that does not quietly repeat requests that failed."""
    session = aiohttp.ClientSession(connector=connector)
    session._retry_connection = False
    return session
