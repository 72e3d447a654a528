"""What makes a process one of several: built on the core, around the application."""

from __future__ import annotations

import errno
import logging
import os
import platform
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

import ranvier
from ranvier.cluster.absences import Absences
from ranvier.cluster.attention import Attention
from ranvier.cluster.claims import RoomClaims
from ranvier.cluster.currency import Currency
from ranvier.cluster.forwarding import ForwardedHere, Forwarding
from ranvier.cluster.head_board import HeadBoard
from ranvier.cluster.link import LinkServer
from ranvier.cluster.links import Links
from ranvier.cluster.members import Members, NameTakenError, RegistryLostError
from ranvier.cluster.overview import ClusterWorkers
from ranvier.cluster.placement import Placement
from ranvier.cluster.registry import RedisRegistry
from ranvier.cluster.relief import Relief
from ranvier.cluster.writers import Writers
from ranvier.config import Config
from ranvier.config.database import RedisConfig
from ranvier.config.listeners import is_for_workers
from ranvier.config.server import SPREAD_ALWAYS
from ranvier.http.forwarding import ForwardedRequests, Neighbours
from ranvier.http.listeners import UnixAddress, remove_socket_file, tcp_socket, unix_socket
from ranvier.log.redis_bus import RedisBus
from ranvier.processes.application import Built
from ranvier.processes.core import Core
from ranvier.processes.predecessor import once_free
from ranvier.processes.start_error import StartError
from ranvier.wire.figures import Figures
from ranvier.wire.members import Member

logger = logging.getLogger(__name__)

_HTTP_RESOURCES: Final = ("client", "admin", "health", "metrics")


class WorkerSockets:
    """The sockets at which other workers come in."""

    def __init__(self, all: Sequence[socket.socket]) -> None:
        self.all = all
        paths = [Path(sock.getsockname()) for sock in all if sock.family == socket.AF_UNIX]
        self._files = [(path, path.stat().st_ino) for path in paths]

    def remove_files(self) -> None:
        """Remove their files; to be done while they are open.

        Once they are closed, the number of a file tells nothing: a successor's may be given the same.
        """
        while self._files:
            remove_socket_file(*self._files.pop())

    def close(self) -> None:
        """Close them."""
        self.remove_files()
        for sock in self.all:
            sock.close()


@dataclass(frozen=True)
class ClusterParts:
    """The objects that know of other workers. ``start`` and ``stop`` are to be awaited in order."""

    members: Members
    writers: Writers
    links: Links
    server: LinkServer
    registry: RedisRegistry
    workers: ClusterWorkers
    absences: Absences
    sockets: WorkerSockets

    async def start(self, core: Core) -> None:
        """Announce this worker and greet the others. Raises StartError."""
        try:
            await self.members.start()
        except NameTakenError as error:
            raise StartError(str(error)) from error
        except RegistryLostError as error:
            # Redis only makes it fast: without it each worker does all by itself.
            logger.warning("This worker cannot be announced: %s", error)
        await self.links.start()
        core.run_always(self.members.run())
        core.run_always(self.writers.run())
        core.run_always(self.links.run())
        core.run_always(self.absences.run())

    async def drain(self) -> None:
        """Have nothing placed here any more."""
        await self.members.drain()

    async def stop(self, grace_s: float) -> None:
        """Finish what other workers asked for, and leave."""
        self.sockets.remove_files()
        await self.server.stop(grace_s)
        await self.members.leave()
        self.links.close()
        self.registry.close()


def key_prefix(config: Config) -> str:
    """Give what stands before every key and channel of this server in Redis."""
    return f"ranvier:{config.server.server_name}:"


@asynccontextmanager
async def cluster_parts(
    config: Config,
    core: Core,
    built: Built,
    *,
    redis: RedisConfig,
    bus: RedisBus,
    folder: Path,
    board: HeadBoard,
    fronted: bool,
) -> AsyncIterator[ClusterParts]:
    """Build the parts and listen for other workers, where they are not told of yet."""
    application, console = built.application, built.console
    secret = config.worker.replication_secret or ""
    sockets = WorkerSockets(
        await once_free(config, partial(_sockets, config, folder, fronted=fronted), fronted=fronted)
    )
    registry = RedisRegistry(redis, prefix=key_prefix(config))
    own = msgspec.structs.replace(
        _own(config, _address(sockets.all[0]), board.identity, core.clock.now_ms()),
        fronted=fronted,
        for_clients=fronted or _listens_for_clients(config),
    )

    def figures() -> dict[str, int | bool | Figures]:
        return {
            "pos": core.tail.pos,
            "requests": application.answered,
            "connections": core.database.used,
            "bus_connected": bus.connected,
            "figures": console.figures.now,
        }

    members = Members(own, registry, figures)
    bus.hold_unless(Attention(board, members))
    writers = Writers(members, always=config.server.spread_rooms == SPREAD_ALWAYS)
    placement = Placement(members)
    links = Links(members=members, secret=secret)
    currency = Currency(
        board=board, members=members, tail=core.tail, database=core.database, hurry=core.follower.hurry
    )
    forwarding = Forwarding(placement=placement, links=links, own_name=own.name)
    requests = ForwardedRequests(
        application=application,
        router=application.endpoint(_HTTP_RESOURCES).router,
        currency=currency,
        tail=core.tail,
    )
    here = ForwardedHere(perform=requests.perform)
    claims = core.writer.claims = RoomClaims(own_name=own.name, tell=links.notify)
    server = LinkServer(secret=secret, answer=here.answer, greet=members.greet, notice=claims.hear)
    application.neighbours = Neighbours(
        currency=currency,
        forwarding=forwarding,
        placement=placement,
        writers=writers,
        relief=Relief(members),
        rooms=core.rooms,
        tail=core.tail,
        clock=core.clock,
        standstill=core.writer.standstill,
    )
    workers = ClusterWorkers(
        members=members, placement=placement, forwarding=forwarding, redis=redis, end=_end_this_process
    )
    console.overview.workers = workers
    absences = Absences(
        members=members,
        placement=placement,
        left_by=built.returning_users.left_by,
        take_over=built.returning_users.take_over,
    )
    try:
        for sock in sockets.all:
            await server.listen(sock)
        yield ClusterParts(
            members=members,
            writers=writers,
            links=links,
            server=server,
            registry=registry,
            workers=workers,
            absences=absences,
            sockets=sockets,
        )
    finally:
        registry.close()
        sockets.close()


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _own(config: Config, address: str, heads: str, now_ms: int) -> Member:
    return Member(
        name=config.worker.name,
        instance=secrets.token_hex(8),
        pid=os.getpid(),
        host=platform.node(),
        address=address,
        heads=heads,
        says_attention=True,
        roles=config.worker.roles,
        version=ranvier.__version__,
        started_ts=now_ms,
    )


def _listens_for_clients(config: Config) -> bool:
    return any("client" in it.resources for it in config.own_listeners)


def _sockets(config: Config, folder: Path, *, fronted: bool) -> list[socket.socket]:
    """Bind where other workers come in: where the configuration says, else in the folder of this machine.

    Those that have a front share one configuration, and what it says could be bound by one of them only.
    """
    found: list[socket.socket] = []
    wanted = () if fronted else config.own_listeners
    for listener in wanted:
        if not is_for_workers(listener):
            if "replication" in listener.resources:
                logger.warning("replication has no part in a listener for others; it needs one of its own")
            continue
        if listener.tls:
            raise StartError(
                f"replication on port {listener.port} cannot have TLS: leave tls out where the network is "
                "private, or lead it through a tunnel"
            )
        if listener.path is not None:
            found.append(_listening(unix_socket(UnixAddress(listener.path, listener.mode))))
        else:
            for host in listener.bind_addresses:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                found.append(_listening(tcp_socket(family, (host, listener.port))))
    if not found:
        found.append(_listening(_socket_of_name(config.worker.name, folder, fronted=fronted)))
    return found


def _socket_of_name(name: str, folder: Path, *, fronted: bool) -> socket.socket:
    try:
        return unix_socket(UnixAddress(folder / f"{name}.sock", 0o600))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or fronted:  # whose name was given by the front, and is free soon
            raise
        raise StartError(
            f"another worker named {name} is running here; each needs a worker_name, or --name, of its own"
        ) from error


def _listening(sock: socket.socket) -> socket.socket:
    sock.listen(128)
    return sock


def _address(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = name[0] if name[0] not in ("0.0.0.0", "::") else platform.node()
    return f"tcp:[{host}]:{name[1]}" if ":" in host else f"tcp:{host}:{name[1]}"
