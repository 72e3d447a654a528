"""A server of two workers that is well, for tests that spoil it and examine it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

import ranvier
from ranvier.cluster.link import LinkServer
from ranvier.cluster.registry import RedisRegistry
from ranvier.config.generate import signing_key_file
from ranvier.deploy import nginx
from ranvier.deploy.check_workers import find_drained
from ranvier.deploy.examine import examine, examine_machine
from ranvier.deploy.findings import Finding
from ranvier.deploy.scene import Scene, load_processes
from ranvier.deploy.settings import Settings
from ranvier.deploy.target import Target
from ranvier.processes.application import client_routes
from ranvier.storage.database import Database
from ranvier.storage.migrations import migrate
from ranvier.wire.members import Member
from tests.postgres import private_folder
from tests.redis import PrivateRedis, make_bus, private_redis, running_bus

PREFIX = "test:"
GROUP = "www-data"
"""A group that every Debian has stands for the group of the sockets."""


@dataclass
class Server:
    """A server that is well, with two workers; tests spoil it."""

    folder: Path
    scene: Scene
    redis: PrivateRedis
    registry: RedisRegistry
    members: dict[str, Member]
    doors: dict[str, asyncio.Server]
    sockets: list[socket.socket] = field(default_factory=list)

    async def findings(self) -> list[Finding]:
        """Examine it while its workers go on announcing themselves."""
        beating = asyncio.create_task(self._beat())
        try:
            self.edit(drained=await find_drained(self.scene))
            return [*examine_machine(self.scene), *[finding async for finding in examine(self.scene)]]
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            for name, member in list(self.members.items()):
                self.members[name] = msgspec.structs.replace(member, beat=member.beat + 1)
                await self.announce(name)
            await asyncio.sleep(0.1)

    async def announce(self, name: str) -> None:
        """Let a worker say that it is there; Redis may be away."""
        member = self.members[name]
        await self.registry.announce(name, msgspec.json.encode(member), 4000)

    def edit(self, **changes: object) -> None:
        """Change what is examined."""
        self.scene = replace(self.scene, **changes)  # type: ignore[arg-type]

    def configure(self, *, main_extra: str = "", worker_extra: str = "") -> None:
        """Write the configuration of both workers anew."""
        common = self.folder / "homeserver.yaml"
        socket_path = self.folder / "run/{}.sock"
        listener = "[{{path: {}, mode: 0660, resources: [{{names: [client, health]}}]}}]\n"
        common.write_text(
            f"server_name: example.org\nsigning_key_path: {self.folder}/signing.key\n"
            f"redis: {{enabled: true, path: {self.redis.config.path}}}\n"
            f"listeners: {listener.format(str(socket_path).format('main'))}" + main_extra
        )
        worker = self.folder / "worker.yaml"
        listeners = f"worker_listeners: {listener.format(str(socket_path).format('w1'))}"
        worker.write_text(worker_extra or f"worker_name: w1\n{listeners}")
        if worker_extra and "worker_listeners" not in worker_extra:
            worker.write_text(worker_extra + listeners)
        processes, _ = load_processes([[common], [common, worker]])
        self.edit(processes=processes)


@asynccontextmanager
async def examined_server(database: str) -> AsyncIterator[Server]:
    """Give a server that is well."""
    pool = Database({"dsn": database}, size=1)
    await migrate(pool, "example.org")
    await pool.close()
    async with private_redis() as redis:
        with private_folder() as folder:
            folder.chmod(0o755)
            target = Target()
            settings = Settings(
                "example.org",
                "example.org",
                workers=("w1",),
                user="www-data",
                group=GROUP,
                redis_user="www-data",
                web_user="www-data",
                socket_dir=folder / "run",
                config_dir=folder,
                data_dir=folder / "data",
                nginx_dir=folder,
            )
            (folder / "run").mkdir()
            os.chown(folder / "run", target.uid("www-data"), target.gid(GROUP))
            (folder / "run").chmod(0o2770)
            signing_key_file(folder / "signing.key").write()
            (folder / "ranvier-upstream.conf").write_text(nginx.upstream_file(settings, client_routes()))
            scene = Scene(
                target=target,
                processes=(),
                settings=settings,
                data_dir=folder,
                dsn=database,
                redis=redis.config,
                prefix=PREFIX,
                names_known=True,
                now_ms=lambda: time.time_ns() // 1_000_000,
                watch_s=0.5,
            )
            registry = RedisRegistry(redis.config, prefix=PREFIX)
            async with (
                running_bus(make_bus(redis.config, PREFIX)),
                running_bus(make_bus(redis.config, PREFIX)),
            ):
                found = Server(folder, scene, redis, registry, {}, {})
                found.configure()
                for name in ("main", "w1"):
                    await _add_worker(found, name)
                yield found
                for sock in found.sockets:
                    sock.close()
                for door in found.doors.values():
                    door.close()
                registry.close()


async def _add_worker(server: Server, name: str) -> None:
    path = server.folder / f"run/{name}.sock"
    server.doors[name] = await asyncio.start_unix_server(_answer, path)
    path.chmod(0o660)
    links = LinkServer(secret="", answer=_nothing, greet=lambda value: None)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(server.folder / f"{name}.link"))
    sock.listen()
    await links.listen(sock)
    server.members[name] = Member(
        name=name,
        instance=f"{name}-1",
        pid=os.getpid(),
        host=os.uname().nodename,
        address=f"unix:{server.folder}/{name}.link",
        version=ranvier.__version__,
    )
    await server.announce(name)


async def _nothing(body: bytes) -> bytes:
    return body


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"versions": []}')
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()
