"""``ranvier status`` when something is not as it should be: it says what, and scripts see it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from ranvier.cli.status import _rendered
from ranvier.cluster.descriptions import natural_order
from tests.cluster.cluster_process import ClusterProcess
from tests.cluster.machine import Machine
from tests.cluster.services import tcp_port_of
from tests.postgres import private_folder
from tests.redis import private_redis
from tests.server.administrator import Outcome, command, database_settings, options, ranvier
from tests.server.process import ServerProcess


def redis_pid(cluster: ClusterProcess) -> int:
    """Give the process of the Redis that a server runs for itself."""
    return int((cluster.folder / "data" / "redis" / "redis.pid").read_text())


def test_names_are_in_the_order_of_people() -> None:
    """Of forty workers the one that is looked for would not be where it is looked for."""
    names = ["worker10", "worker2", "b", "worker1", "7"]
    assert sorted(names, key=natural_order) == ["7", "b", "worker1", "worker2", "worker10"]


def test_the_ill_come_first_where_not_all_are_seen() -> None:
    """Of fifty workers the one that is silent would be below the end of the terminal, for ever."""
    worker = {"state": "live", "silent": False, "bus_connected": True, "heard_s_ago": 9.0, "pid": 1}
    worker |= {"roles": [], "version": "1", "load": 0.1, "memory_bytes": 1, "lag": 0, "loop_lag_ms": 0.0}
    worker |= {"requests_per_s": 0.0, "rooms": 0, "commit_ms": None, "uptime_s": 1.0}
    workers = [{**worker, "name": f"worker{number}"} for number in range(1, 51)]
    workers[36]["silent"] = True
    store = {"reachable": True}
    log = {"head": 1, "rows_per_s": 0.0, "commits_per_s": 0.0, "commit_ms": None, "delivery_ms": None}
    found = {"server_name": "example.org", "answered_by": "worker1", "log": log, "workers": workers}
    found |= {"database": store, "redis": store}

    def shown(height: int | None) -> list[str]:
        console = Console(width=150, color_system=None)
        with console.capture() as capture:
            console.print(_rendered(found, console.width, height))
        return [line.split()[0] for line in capture.get().splitlines() if line.startswith("worker")][1:]

    in_order = [worker["name"] for worker in workers]
    assert shown(60) == shown(None) == in_order
    assert shown(24) == ["worker37", *(name for name in in_order if name != "worker37")]


async def test_status_while_redis_and_a_worker_stand_still() -> None:
    """An administrator would read that there are no workers while all of them serve."""
    with private_folder() as folder:
        cluster = ClusterProcess(folder, 3)
        stopped: list[int] = []
        try:
            await cluster.start()
            workers = await cluster.workers()
            assert (await ranvier("status", *options(cluster))).status == 0
            stopped = [redis_pid(cluster), workers["worker1"]["pid"]]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            shown = await ranvier("status", "--json", *options(cluster))
            assert shown.status == 1
            told = json.loads(shown.output)
            assert [it["name"] for it in told["workers"]] == ["worker1", "worker2", "worker3"]
            assert told["answered_by"] in ("worker2", "worker3")
            assert not told["redis"]["reachable"]
            assert told["database"]["reachable"]
            # Nobody hears of the others any more, so what is told of them is old.
            async with asyncio.timeout(20):
                while not all(it["silent"] or it["name"] == told["answered_by"] for it in told["workers"]):
                    told = json.loads((await ranvier("status", "--json", *options(cluster))).output)
            table = await ranvier("status", *options(cluster))
            assert "Redis: not reachable" in table.output
            assert "silent" in table.output
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            await cluster.stop()


async def status_of(machine: Machine) -> Outcome:
    """Ask as an administrator of a machine."""
    config = machine.folder / "homeserver.yaml"
    return await ranvier("status", "--json", "--data", machine.data, "--config", config)


async def test_status_says_by_its_end_whether_somebody_serves(database: str) -> None:
    """A script would take a server that is down for one that is well, or meet figures that have moved."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(private_redis())
        assert redis.config.path is not None
        away = await stack.enter_async_context(AsyncExitStack())
        port = await away.enter_async_context(tcp_port_of(redis.config.path))
        settings = {
            "database": database_settings(database),
            "redis": {"enabled": True, "host": "127.0.0.1", "port": port},
        }
        folder = stack.enter_context(private_folder())
        machine = Machine(folder, "m1", "127.0.0.2", settings, "a secret of the tests")
        stack.callback(machine.close)
        machine.start()
        await machine.ready()
        inside, outside = await status_of(machine), await _from_elsewhere(machine)
        assert (inside.status, outside.status) == (0, 0)
        told, seen = json.loads(inside.output), json.loads(outside.output)
        assert (told["answered_by"], seen["answered_by"]) == ("m1", None)
        assert told.keys() == seen.keys()
        for part in ("log", "database", "redis"):
            assert told[part].keys() == seen[part].keys()
        assert told["workers"][0].keys() == seen["workers"][0].keys()
        assert seen["workers"][0]["name"] == "m1"
        assert machine.process is not None
        machine.process.terminate()
        assert await machine.end() == 0
        ended = await status_of(machine)
        assert (ended.status, json.loads(ended.output)["workers"]) == (1, [])
        await away.aclose()
        alone = await status_of(machine)
        assert (alone.status, json.loads(alone.output)["redis"]["reachable"]) == (1, False)


async def _from_elsewhere(machine: Machine) -> Outcome:
    """Ask where no worker has a private socket."""
    config = machine.folder / "homeserver.yaml"
    (machine.folder / "elsewhere").mkdir()
    return await ranvier("status", "--json", "--data", machine.folder / "elsewhere", "--config", config)


class Watched:
    """What a command writes, as it comes."""

    def __init__(self, descriptor: int) -> None:
        self.text = ""
        self._descriptor = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:
            data = b""  # a terminal whose other end is gone
        if not data:
            self.close()
        self.text += data.decode(errors="replace")

    async def until(self, *wanted: str) -> None:
        """Wait until it has written these, all after what was waited for before."""
        async with asyncio.timeout(30):
            while not all(it in self.text for it in wanted):
                await asyncio.sleep(0.05)
        self.text = ""

    def close(self) -> None:
        """Read no more."""
        asyncio.get_running_loop().remove_reader(self._descriptor)


async def test_watching_goes_on_while_the_server_is_away(own_server: ServerProcess) -> None:
    """Who watches a restart would be left with an error, just when it becomes interesting."""
    await own_server.start()
    async with AsyncExitStack() as stack:
        outer, inner = pty.openpty()
        stack.callback(os.close, outer)
        terminal = await asyncio.create_subprocess_exec(
            *_watch(own_server), stdin=inner, stdout=inner, stderr=inner, env={**os.environ, "COLUMNS": "150"}
        )
        os.close(inner)
        stack.push_async_callback(_end, terminal)
        shown = Watched(outer)
        stack.callback(shown.close)
        lines = await stack.enter_async_context(command("status", "--watch", "--json", *options(own_server)))
        await shown.until("PostgreSQL: reachable", f"{own_server.pid}")
        await _told_of(lines, own_server.pid)
        await own_server.stop()
        await shown.until("no server answers")
        async with asyncio.timeout(30):
            while "error" not in (told := await _line(lines)):
                pass
        assert told["workers"] == []
        await own_server.start()
        await shown.until("PostgreSQL: reachable", f"{own_server.pid}")
        await _told_of(lines, own_server.pid)
        assert terminal.returncode is None


def _watch(server: ServerProcess) -> list[str | Path]:
    return [sys.executable, "-m", "ranvier.cli", "status", "--watch", *options(server)]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def _told_of(watching: asyncio.subprocess.Process, pid: int) -> None:
    """Wait for a line with this server alone: before it are older ones, and those of looks that failed."""
    async with asyncio.timeout(30):
        while [it["pid"] for it in (await _line(watching))["workers"]] != [pid]:
            pass


async def _line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        found: dict[str, Any] = json.loads(await process.stdout.readline())
    return found
