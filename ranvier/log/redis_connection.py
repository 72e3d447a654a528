"""One connection to Redis: pipelined commands, or a subscription.

Thin on purpose: every process hears of every commit, so what a message costs here is paid once for each
event and process. Source: Redis serialization protocol (RESP2).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from ranvier.config.database import RedisConfig

CONNECT_TIMEOUT_S = 2.0

Word = str | bytes | int
MessageListener = Callable[[list[tuple[bytes, bytes]]], None]
"""Called with the channels and messages that came together, in order."""


class RedisUnavailable(Exception):
    """Say that Redis can not be reached, does not answer in time, or refuses what is asked."""


class RedisConnection(asyncio.Protocol):
    """Send commands without waiting for the answers of those before; hear what was subscribed to."""

    def __init__(self, on_messages: MessageListener | None = None) -> None:
        self._on_messages = on_messages
        self._reader = hiredis.Reader(replyError=RedisUnavailable)
        # Who waits for each answer, in order; None for an answer that nobody wants.
        self._waiting: deque[asyncio.Future[Any] | None] = deque()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self.latest_bytes = 0
        """How much came with the latest piece: where that is little, nothing more lies there."""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the connection is closed, by whomever. Not to be cancelled."""

    @classmethod
    async def open(cls, config: RedisConfig, on_messages: MessageListener | None = None) -> RedisConnection:
        """Connect and log in. Raises RedisUnavailable."""
        connection = cls(on_messages)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection._connect(config)
                if config.password is not None:
                    login = [config.username, config.password] if config.username else [config.password]
                    await connection.send("AUTH", *login)
                if config.dbid:
                    await connection.send("SELECT", config.dbid)
                await connection.send("PING")
        except (OSError, TimeoutError, RedisUnavailable) as error:
            connection.close()
            reason = "no answer" if isinstance(error, TimeoutError) else str(error)
            raise RedisUnavailable(f"{address(config)}: {reason}") from error
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connect(self, config: RedisConfig) -> None:
        loop = asyncio.get_running_loop()
        if config.path is not None:
            await loop.create_unix_connection(lambda: self, str(config.path))
            return
        context = _tls(config) if config.use_tls else None
        await loop.create_connection(lambda: self, config.host, config.port, ssl=context)

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and not self.lost.done()

    @property
    def unsent(self) -> int:
        """How many bytes wait for Redis to take them."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def send(self, *words: Word) -> asyncio.Future[Any]:
        """Send a command; the future gets its answer, or RedisUnavailable."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self.is_open:
            future.set_exception(RedisUnavailable("the connection is closed"))
        else:
            self._write(words, future)
        return future

    def tell(self, *words: Word) -> None:
        """Send a command whose answer nobody wants; nothing happens on a closed connection."""
        if self.is_open:
            self._write(words, None)

    async def command(self, *words: Word, timeout_s: float = 1.0) -> Any:
        """Send a command and wait for its answer. Raises RedisUnavailable; closes if no answer came."""
        return await self.answer(self.send(*words), timeout_s)

    async def answer(self, sent: asyncio.Future[Any], timeout_s: float = 1.0) -> Any:
        """Wait for the answer to what was sent. Raises RedisUnavailable; closes if none came."""
        try:
            async with asyncio.timeout(timeout_s):
                return await sent
        except TimeoutError:
            self.close()
            raise RedisUnavailable(f"no answer within {timeout_s:g} s") from None

    def pause(self) -> None:
        """Leave what Redis sends where it is until ``resume``."""
        if self.is_open and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Take what Redis sends."""
        if self.is_open and self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end(RedisUnavailable("the connection was closed"))

    def _write(self, words: tuple[Word, ...], future: asyncio.Future[Any] | None) -> None:
        assert self._transport is not None
        self._waiting.append(future)
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]

    def _end(self, error: RedisUnavailable) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        while self._waiting:
            future = self._waiting.popleft()
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # nobody may be left to look at it

    # -- asyncio.Protocol ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits."""
        self._end(RedisUnavailable(str(exc) if exc else "Redis closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Take answers and messages apart."""
        self.latest_bytes = len(data)
        reader, on_messages = self._reader, self._on_messages
        messages: list[tuple[bytes, bytes]] = []
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if on_messages is not None and type(reply) is list and reply[0] == b"message":
                    messages.append((reply[1], reply[2]))
                else:
                    self._answer(reply)
        except hiredis.ProtocolError as error:
            self._end(RedisUnavailable(f"this is not Redis: {error}"))
            self.close()
        if on_messages is not None and messages:
            on_messages(messages)

    def _answer(self, reply: Any) -> None:
        future = self._waiting.popleft() if self._waiting else None
        if future is None or future.done():
            return
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)


def address(config: RedisConfig) -> str:
    """Name where Redis is, for the log."""
    return f"unix:{config.path}" if config.path is not None else f"{config.host}:{config.port}"


def _tls(config: RedisConfig) -> ssl.SSLContext:
    files = [config.ca_file, config.ca_path, config.certificate_file, config.private_key_file]
    try:
        context = ssl.create_default_context(cafile=config.ca_file, capath=config.ca_path)
        if config.certificate_file is not None:
            context.load_cert_chain(config.certificate_file, config.private_key_file)
    except OSError as error:  # it names none of them
        named = ", ".join(str(file) for file in files if file is not None)
        raise RedisUnavailable(f"cannot use {named}: {error.strerror or error}") from error
    return context
