"""The bus of a server of several processes: Redis carries each commit to everybody.

Nothing rests on Redis: what it loses is in PostgreSQL (commits) or is said again soon (typing, presence).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ranvier.config.database import RedisConfig
from ranvier.log import redis_scripts
from ranvier.log.beats import until_beat_s
from ranvier.log.bus import RESET, BatchListener, Ephemeral, EphemeralListener
from ranvier.log.clock import Clock
from ranvier.log.holding import Attention, Holding
from ranvier.log.redis_connection import RedisConnection, RedisUnavailable, address
from ranvier.wire.log_messages import (
    FORMAT,
    SENDER_BYTES,
    decode_batch,
    decode_header,
    encode_batch,
    encode_head,
)
from ranvier.wire.log_rows import Batch

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 1 << 20
"""Larger batches are told of by their positions alone; their rows are read from the database."""

MAX_UNSENT_BYTES: Final = 8 << 20
"""How much may wait for a Redis that is slow; after that, messages are dropped."""

MAX_EPHEMERALS: Final = 250_000
_LOAD_PAGE: Final = 1000
_BEAT_S: Final = 1.0
_RETRY_S: Final = 0.25
_RESTS_S: Final = 0.5
_MUCH_BYTES: Final = 32 * 1024
_ATTENTIVE_S: Final = 2.0
_ECHO_S: Final = 1.0
_TOGETHER: Final = 200
_SMALL: Final = 2

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[str, str, bytes]).decode

BroadcastListener = Callable[[bytes], None]

_TELL_NOW: Final = "tell-now"


class RedisBus:
    """Tell every process of every commit, through Redis.

    ``prefix`` stands before every channel and key, so that servers may share a Redis. ``start`` is to be
    awaited once all listeners are there, ``run`` keeps the connections open.

    What this process commits its own listeners hear at once and not by way of Redis, which is told of no
    commit as long as nobody else subscribed. Ephemerals are heard in the order in which Redis counted them,
    everywhere.

    A message costs a process most by waking it. While nobody waits for anything (``attend``,
    ``relax_unless``) what follows a message is left where it is for half a second at most, and taken all at
    once. Commits that come together are heard as one; ``_TOGETHER`` rows are enough for one. While nobody
    waits elsewhere (``hold_unless``), commits are not even told one by one.
    """

    def __init__(self, config: RedisConfig, *, prefix: str, clock: Clock) -> None:
        self._config = config
        self._prefix = prefix
        self._clock = clock
        self._sender = secrets.token_bytes(SENDER_BYTES)
        self._batch_listeners: list[BatchListener] = []
        self._ephemeral_listeners: list[EphemeralListener] = []
        self._broadcasts: dict[bytes, BroadcastListener] = {}
        self._log_channel = f"{prefix}log".encode()
        self._ephemeral_channel = f"{prefix}ephemeral".encode()
        self._keys = [prefix + name for name in redis_scripts.KEYS]
        self._count, self._epoch = 0, ""
        self._counted = asyncio.Event()
        self._held: list[bytes] | None = None
        self._commands: RedisConnection | None = None
        self._subscription: RedisConnection | None = None
        self._dropped = 0
        self._newest = 0
        self._alone = False
        self._foreign = 0  # commits that others told of
        self._lost_at: float | None = None
        self._complained = False
        self._busy: list[Callable[[], bool]] = []
        self._resting: asyncio.TimerHandle | None = None
        self._attentive_until = 0.0
        self._holding = Holding(self._publish_log)
        self.on_broadcast(_TELL_NOW, lambda _: self._holding.end())

    # -- telling ---------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether messages are coming in."""
        return self._subscription is not None and self._subscription.is_open

    async def publish(self, batch: Batch) -> None:
        """Tell everybody of a committed batch; never fails, and never waits for somebody."""
        self.attend()  # who writes here asks here next
        # To tell wakes Redis, and that the other workers of this machine: who wrote alone is answered before
        # they are busy. (0.03 to 0.05 ms less for a request that was passed on.) Where much is to be applied
        # here first, the others begin meanwhile.
        is_small = len(batch.rows) <= _SMALL
        if not is_small:
            self._tell_others(batch)
        for listener in self._batch_listeners:
            listener(batch)
        if is_small:
            self._tell_others(batch)

    def hold_unless(self, attention: Attention) -> None:
        """Tell of the commits of a quarter second together, while nobody waits for them elsewhere."""
        self._holding.attention = attention

    def _tell_others(self, batch: Batch) -> None:
        self._newest = max(self._newest, batch.last)
        if self._commands is not None and not self._alone:
            self._holding.take(batch)

    def _publish_log(self, batch: Batch) -> None:
        connection = self._commands
        if connection is None or not connection.is_open:
            return  # once it is there again the others are told how far the log goes
        if connection.unsent > MAX_UNSENT_BYTES:
            self._dropped += 1
            return
        message = encode_batch(batch, self._sender)
        if len(message) > MAX_MESSAGE_BYTES or self._dropped:
            message = encode_head(batch.last, self._sender)
        if self._dropped:
            logger.warning("Redis was too slow: %d messages were not sent", self._dropped)
            self._dropped = 0
        connection.tell("PUBLISH", self._log_channel, message)

    async def publish_ephemeral(self, kind: str, key: str, body: bytes) -> Ephemeral | None:
        """Give the next count to something ephemeral and tell everybody. None while Redis is away."""
        connection = self._commands
        if connection is None or not self.connected:
            return None
        self.attend()
        field = f"{kind}\0{key}"
        payload = _pack((kind, key, body))
        words = (secrets.token_hex(4), self._ephemeral_channel, field, payload, MAX_EPHEMERALS)
        try:
            count, epoch = await self._run_script(connection, redis_scripts.PUBLISH, words)
            if await self._heard(count, epoch.decode()):
                return Ephemeral(kind, key, body, count, epoch.decode())
        except RedisUnavailable as error:
            logger.debug("Could not tell of %s of %s: %s", kind, key, error)
        return None

    async def _heard(self, count: int, epoch: str) -> bool:
        """Wait until this process heard it, too, after all that was counted before."""
        try:
            async with asyncio.timeout(_ECHO_S):
                while self._epoch != epoch or self._count < count:
                    if not self.connected:
                        return False
                    self._counted.clear()
                    await self._counted.wait()
        except TimeoutError:
            return False
        return True

    def broadcast(self, name: str, body: bytes) -> None:
        """Tell the other processes something that may be lost; dropped while Redis is away or slow."""
        connection = self._commands
        if connection is not None and connection.unsent <= MAX_UNSENT_BYTES:
            connection.tell("PUBLISH", self._prefix + name, self._sender + body)

    # -- hearing ---------------------------------------------------------------------------------------

    def ephemeral_now(self) -> tuple[int, str]:
        """Give the newest ``(count, epoch)`` that this process knows of."""
        return self._count, self._epoch

    def listen(
        self, batches: BatchListener | None = None, ephemerals: EphemeralListener | None = None
    ) -> None:
        """Have these called, in order of arrival, on the event loop."""
        if batches is not None:
            self._batch_listeners.append(batches)
        if ephemerals is not None:
            self._ephemeral_listeners.append(ephemerals)

    def attend(self) -> None:
        """Bring everything at once for some seconds: somebody waits for it."""
        self._attentive_until = self._clock.monotonic() + _ATTENTIVE_S
        if self._resting is not None:
            self._go_on()
        if self._holding.attention is not None and self._holding.attention.attend():
            self.broadcast(_TELL_NOW, b"")

    def relax_unless(self, is_busy: Callable[[], bool]) -> None:
        """Take messages several at a time whenever everybody who was given here says no, until ``attend``."""
        self._busy.append(is_busy)

    def on_broadcast(self, name: str, listener: BroadcastListener) -> None:
        """Have ``listener`` called with what other processes broadcast under a name; before ``start``."""
        self._broadcasts[(self._prefix + name).encode()] = listener

    def _on_messages(self, messages: list[tuple[bytes, bytes]]) -> None:
        commits: Batch | None = None
        for channel, message in messages:
            if channel == self._log_channel:
                commits = self._join(commits, message)
                continue
            self._hear_commits(commits)
            commits = None
            try:
                if channel == self._ephemeral_channel:
                    self._on_ephemeral(message)
                elif message[:SENDER_BYTES] != self._sender:
                    self._broadcasts[channel](message[SENDER_BYTES:])
            except Exception:
                # One message must not end the hearing of all others.
                logger.exception("A message of %s could not be used", channel.decode(errors="replace"))
        self._hear_commits(commits)
        self._rest_a_while()

    def _join(self, before: Batch | None, message: bytes) -> Batch | None:
        """Read a commit and join it to the one before, if it follows that; else that one is heard now."""
        try:
            header = decode_header(message)
            if header.sender == self._sender:
                return before
            self._foreign += 1
            if self._alone:
                self._end_solitude()
            # What a process of another version wrote is read from the database.
            readable = header.format == FORMAT
            batch = decode_batch(message, header) if readable else Batch(header.last, header.last, [])
        except Exception:
            logger.exception("A commit that was told of could not be read")
            return before
        if before is None:
            return batch
        if before.last == batch.previous and len(before.rows) < _TOGETHER:
            before.rows.extend(batch.rows)  # nobody else knows the list yet
            return Batch(before.previous, batch.last, before.rows)
        self._hear_commits(before)
        return batch

    def _hear_commits(self, batch: Batch | None) -> None:
        if batch is None:
            return
        try:
            for listener in self._batch_listeners:
                listener(batch)
        except Exception:
            logger.exception("Commits up to position %d could not be followed", batch.last)

    def _on_ephemeral(self, message: bytes) -> None:
        if self._held is not None:
            self._held.append(message)
            return
        count_text, epoch_text, payload = message.split(b" ", 2)
        count, epoch = int(count_text), epoch_text.decode()
        if epoch != self._epoch:
            self._begin(epoch)
        if count > self._count:
            self._count = count
            self._hear(Ephemeral(*_unpack(payload), count, epoch))
            self._counted.set()

    def _begin(self, epoch: str) -> None:
        self._count, self._epoch = 0, epoch
        self._hear(Ephemeral(RESET, "", b"", 0, epoch))

    def _hear(self, told: Ephemeral) -> None:
        for listener in self._ephemeral_listeners:
            listener(told)

    # -- connections -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect and hear the present typing and presence; if Redis is away, ``run`` goes on trying."""
        await self._try_open()

    async def run(self) -> None:
        """Keep the connections open, for ever."""
        try:
            while True:
                if not self.connected and not await self._try_open():
                    await asyncio.sleep(_RETRY_S)
                    continue
                await self._watch()
        finally:
            self._close()

    async def _try_open(self) -> bool:
        try:
            await self._open()
        except RedisUnavailable as error:
            self._close()
            if not self._complained:
                self._complained = True
                logger.warning("Redis is not available, trying on: %s", error)
            return False
        except BaseException:
            self._close()
            raise
        self._complained = False
        if self._lost_at is not None:
            logger.info("Redis is back after %.1f s", self._clock.monotonic() - self._lost_at)
            self._lost_at = None
        return True

    async def _open(self) -> None:
        commands = self._commands = await RedisConnection.open(self._config)
        subscription = await RedisConnection.open(self._config, self._on_messages)
        channels = [self._log_channel, self._ephemeral_channel, *self._broadcasts]
        self._held = []
        try:
            for channel in channels:
                await subscription.command("SUBSCRIBE", channel)
            await self._load(commands)
            # Others may not have heard of what was committed meanwhile. And this says whether we may publish.
            await commands.command("PUBLISH", self._log_channel, encode_head(self._newest, self._sender))
        except BaseException:
            subscription.close()
            raise
        self._subscription = subscription
        logger.info("Redis connected: %s", address(self._config))
        logger.info("Redis subscribed: %s", ", ".join(channel.decode() for channel in channels))

    async def _load(self, connection: RedisConnection) -> None:
        """Hear what was said last under each key since this process last heard something."""
        found: list[bytes] = []
        count, epoch = self._count, self._epoch
        while True:
            words = (secrets.token_hex(4), epoch, count, _LOAD_PAGE)
            newest, epoch_now, messages = await self._run_script(connection, redis_scripts.LOAD, words)
            if epoch_now.decode() != epoch:
                found.clear()
                epoch = epoch_now.decode()
            found += messages
            if len(messages) < _LOAD_PAGE:
                break
            count = int(messages[-1].split(b" ", 1)[0])
        # What was told while this was read comes after it.
        held, self._held = self._held or [], None
        if epoch != self._epoch:
            self._begin(epoch)
        self._on_messages([(self._ephemeral_channel, message) for message in found])
        self._count = max(self._count, newest)
        self._on_messages([(self._ephemeral_channel, message) for message in held])

    async def _run_script(self, connection: RedisConnection, script: str, words: tuple[Any, ...]) -> Any:
        return await connection.command("EVAL", script, len(self._keys), *self._keys, *words)

    async def _watch(self) -> None:
        """Return when a connection is lost, or when Redis does not answer on one any more."""
        commands, subscription = self._commands, self._subscription
        assert commands is not None
        assert subscription is not None
        reason = "the connection was closed"
        try:
            while commands.is_open and subscription.is_open:
                if any(is_busy() for is_busy in self._busy):
                    self.attend()  # as long as they wait, others are to know
                pong = subscription.send("PING")
                await self._look_who_listens(commands)
                await subscription.answer(pong)
                await asyncio.wait(
                    (commands.lost, subscription.lost),
                    timeout=until_beat_s(_BEAT_S),
                    return_when=asyncio.FIRST_COMPLETED,
                )
        except RedisUnavailable as error:
            reason = str(error)
        self._lost_at = self._clock.monotonic()
        self._close()
        logger.warning("Redis lost: %s", reason)

    async def _look_who_listens(self, connection: RedisConnection) -> None:
        """Find out whether anybody else hears of commits. Raises RedisUnavailable."""
        foreign = self._foreign
        try:
            _, listening = await connection.command("PUBSUB", "NUMSUB", self._log_channel)
        except RedisUnavailable:
            if not connection.is_open:
                raise
            return  # to ask this may be forbidden
        if self._alone and listening > 1:
            self._end_solitude()
        # Whoever comes says so on that channel; the answer may be from before.
        self._alone = listening <= 1 and foreign == self._foreign

    def _end_solitude(self) -> None:
        """Tell somebody who came of what nobody was told."""
        self._alone = False
        if self._commands is not None:
            self._commands.tell("PUBLISH", self._log_channel, encode_head(self._newest, self._sender))

    def _rest_a_while(self) -> None:
        """Take no message for a while, if nobody waits for one; what comes meanwhile is taken together."""
        subscription = self._subscription
        if (
            subscription is None
            or self._resting is not None
            or subscription.latest_bytes > _MUCH_BYTES  # more of the same lies there, and is taken first
            or not self._busy
            or self._clock.monotonic() <= self._attentive_until
            or any(is_busy() for is_busy in self._busy)
        ):
            return
        subscription.pause()
        self._resting = asyncio.get_running_loop().call_later(until_beat_s(_RESTS_S, shift=0.5), self._go_on)

    def _go_on(self) -> None:
        self._end_rest()
        if self._subscription is not None:
            self._subscription.resume()

    def _end_rest(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def _close(self) -> None:
        self._end_rest()
        self._holding.end()
        for connection in (self._commands, self._subscription):
            if connection is not None:
                connection.close()
        self._commands = self._subscription = None
        self._alone = False
        self._held = None
        self._counted.set()
