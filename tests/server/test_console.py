"""The page at ``/_ranvier/`` and ``ranvier status``: what an administrator sees of the cluster and may do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ranvier.users.access_tokens import ACCESS, new_token
from tests.cluster.services import tcp_port_of
from tests.postgres import private_folder
from tests.redis import private_redis
from tests.server.administrator import PASSWORD, database_settings, options, ranvier
from tests.server.browser import Page, browser_page, find_chromium
from tests.server.http_client import HttpClient, Refused
from tests.server.process import ServerProcess

STATUS = "/_ranvier/api/status"
PLOTS = ("pace", "latency", "requests")
FIGURES = [
    *("CPU", "Memory", "Requests/s", "Active rooms", "Rows behind", "Loop lag", "Syncs waiting"),
    *("Commit", "In flight"),
]
needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed here")


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """Give a tab of a browser."""
    with private_folder() as folder:
        async with browser_page(folder) as tab:
            yield tab


async def administrator(server: ServerProcess, name: str) -> HttpClient:
    """Make an administrator and log them in."""
    made = await ranvier("register-user", "--admin", "--password", PASSWORD, name, *options(server))
    assert made.status == 0, made.output
    return await HttpClient(server.url).login(name, PASSWORD)


async def log_in(page: Page, server: ServerProcess, token: str | None) -> None:
    """Open the page and give it a token."""
    await page.open(f"{server.url}/_ranvier/")
    await page.until("document.activeElement.id === 'token'")
    await page.type(token or "")
    await page.click("#login button")


async def ask_privately(
    socket: Path, method: str = "GET", path: str = STATUS, **headers: str
) -> tuple[int, Any]:
    """Ask on a private socket; give status and answer."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
        session.request(method, f"http://localhost{path}", headers=headers) as response,
    ):
        return response.status, await response.json()


async def test_only_administrators_see_it(server: ServerProcess, users: list[HttpClient]) -> None:
    """If this fails, a stranger or a user can read how the server is built, or restart it."""
    with pytest.raises(Refused) as refused:
        await HttpClient(server.url).get(STATUS)
    assert (refused.value.status, refused.value.errcode) == (401, "M_MISSING_TOKEN")
    for method, path in (("GET", STATUS), ("POST", "/_ranvier/api/workers/main/restart")):
        with pytest.raises(Refused) as refused:
            await users[0].request(method, path)
        assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")


async def test_figures_of_one_process(server: ServerProcess) -> None:
    """If this fails, an administrator of a small server sees nothing, or other figures than are true."""
    async with await administrator(server, "boss_of_figures") as boss:
        room_id = await boss.create_room()
        await boss.send(room_id, "hello")
        async with asyncio.timeout(20):
            while not (found := await boss.get(STATUS, history="true"))["workers"][0]["rooms_held"]:
                await asyncio.sleep(0.1)
        (worker,) = found["workers"]
        assert (worker["name"], worker["pid"], worker["state"]) == ("main", server.pid, "live")
        assert worker["lag"] == 0
        assert worker["memory_bytes"] > 10_000_000
        assert worker["rooms"] >= 1
        assert found["log"]["head"] == found["database"]["pos"] > 0
        assert found["database"]["reachable"]
        assert found["redis"] is None
        assert any(rows > 0 for _, rows, *_ in found["history"])
        assert "history" not in await boss.get(STATUS)
        with pytest.raises(Refused, match="one process"):
            await boss.post("/_ranvier/api/workers/main/restart")
        with pytest.raises(Refused) as refused:
            await boss.post("/_ranvier/api/workers/nobody/drain")
        assert refused.value.status == 404


async def test_page_lets_nothing_foreign_in(server: ServerProcess) -> None:
    """If this fails, a browser would run or load what is not the server's own on the administrators' page."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}/_ranvier") as response:
            assert response.url.path == "/_ranvier/"
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            text = await response.text()
        for foreign in ("http:", "https:", " style=", " onclick="):
            assert foreign not in text
        for name, status in (("console.js", 200), ("console.css", 200), ("..%2Fconsole.py", 404), ("x", 404)):
            async with session.get(f"{server.url}/_ranvier/page/{name}") as response:
                assert response.status == status
                assert status == 404 or response.headers["X-Content-Type-Options"] == "nosniff"


async def test_private_socket(server: ServerProcess) -> None:
    """If this fails, other users of the machine, or another page in a browser that uses a tunnel, come in."""
    socket = server.folder / "data" / "run" / "main.http"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    status, found = await ask_privately(socket, **{"X-Ranvier-Console": "1"})
    assert (status, found["answered_by"]) == (200, "main")
    assert (await ask_privately(socket))[0] == 403
    assert (await ask_privately(socket, "POST", "/_ranvier/api/workers/main/restart"))[0] == 403
    for path in ("/metrics", "/_ranvier/metrics"):
        assert (await ask_privately(socket, path=path))[0] == 403
    for host, expected in (("evil.example", 403), ("127.0.0.1:8080", 200), ("[::1]:8080", 200)):
        assert (await ask_privately(socket, **{"X-Ranvier-Console": "1", "Host": host}))[0] == expected


async def test_status_in_a_terminal(server: ServerProcess) -> None:
    """If this fails, an administrator in a terminal, or their script, does not see the workers."""
    shown = await ranvier("status", *options(server))
    assert shown.status == 0, shown.output
    assert "PostgreSQL: reachable" in shown.output
    assert any(line.startswith("main ") and str(server.pid) in line for line in shown.output.splitlines())
    told = json.loads((await ranvier("status", "--json", *options(server))).output)
    assert [(it["name"], it["pid"], it["lag"]) for it in told["workers"]] == [("main", server.pid, 0)]
    assert {"roles", "version", "load", "memory_bytes", "loop_lag_ms"} <= told["workers"][0].keys()


async def test_status_of_nothing() -> None:
    """If this fails, an administrator reads a traceback where the server just does not run."""
    with private_folder() as folder:
        (folder / "data").mkdir()
        shown = await ranvier("status", *options(ServerProcess(folder)))
    assert shown.status == 1
    assert "no server answers" in shown.output
    assert "Traceback" not in shown.output


@needs_chromium
async def test_page_in_a_browser(server: ServerProcess, page: Page, users: list[HttpClient]) -> None:
    """If this fails, the page does not come up in a browser, does not say what is wrong, or stands still."""
    async with await administrator(server, "boss_with_browser") as boss:
        await log_in(page, server, "a token that nobody has")
        await page.until("!document.getElementById('notice').hidden")
        await log_in(page, server, users[0].token)
        await page.until("document.getElementById('notice').innerText.includes('admin')")
        assert await page.run("document.getElementById('main').hidden")
        await log_in(page, server, boss.token)
        await page.until("document.querySelector('[data-worker=main] .state')?.textContent === 'live'")
        assert await page.run("document.querySelectorAll('.worker button:not([hidden])').length") == 0
        text = await page.run("document.querySelector('.worker').innerText")
        assert str(server.pid) in text
        assert "every role" in text
        labels = await page.run("[...document.querySelectorAll('.worker dt')].map((it) => it.textContent)")
        assert labels == FIGURES
        values = await page.run("[...document.querySelectorAll('.worker dd')].map((it) => it.textContent)")
        assert len(values) == len(FIGURES)
        assert all(value[:1].isdigit() for value in values), values
        plots = {name: f"document.querySelector('#{name} path.first').getAttribute('d')" for name in PLOTS}
        before = {name: await page.run(script) for name, script in plots.items()}
        room_id = await boss.create_room(name="<img src=x onerror=alert(1)>")
        for number in range(20):
            await boss.send(room_id, f"message {number}")
        for name, script in plots.items():
            await page.until(f"{script} !== {json.dumps(before[name])}")
        await page.until("!document.getElementById('pace-now').textContent.startsWith('0 rows')")
        for width, dark in ((390, True), (1200, False)):
            await page.resize(width, 800, dark=dark)
            assert await page.run("document.documentElement.scrollWidth") <= width
    unexpected = [it for it in page.complaints if "status of 401" not in it and "status of 403" not in it]
    assert unexpected == []


@needs_chromium
async def test_page_that_is_looked_at_again(server: ServerProcess, page: Page) -> None:
    """If this fails, a page that says "trying again" does not, once another one was looked at meanwhile."""
    async with await administrator(server, "boss_who_looks_away") as boss:
        await log_in(page, server, boss.token)
        await page.until("document.querySelectorAll('.worker').length === 1")
        await page.command("Network.enable")
        await page.command("Network.setBlockedURLs", urls=["*/_ranvier/api/*"])
        hide = "Object.defineProperty(document, 'hidden', {value: true, writable: true})"
        await page.command("Page.addScriptToEvaluateOnNewDocument", source=hide)
        await page.open(f"{server.url}/_ranvier/")
        await page.until("document.getElementById('notice').innerText.includes('trying again')")
        await page.command("Network.setBlockedURLs", urls=[])
        await page.run("document.hidden = false; document.dispatchEvent(new Event('visibilitychange'))")
        await page.until("document.querySelectorAll('.worker').length === 1")


@needs_chromium
async def test_page_forgets_a_token(server: ServerProcess, page: Page) -> None:
    """If this fails, the next token vanishes from the field, or figures are shown to who should not see."""
    async with await administrator(server, "boss_who_leaves") as boss:
        await log_in(page, server, boss.token)
        await page.until("document.querySelectorAll('.worker').length === 1")
        await page.click("#leave")
        await page.until("document.activeElement.id === 'token'")
        await page.type("pasted")
        await page.run("new Promise((done) => setTimeout(done, 1500))")  # longer than from poll to poll
        assert await page.run("document.getElementById('token').value") == "pasted"
        assert await page.run("document.getElementById('main').hidden")


@needs_chromium
async def test_page_while_the_server_is_away(page: Page) -> None:
    """If this fails, who watches takes old figures for new ones, or has to load the page again."""
    with private_folder() as folder:
        server = ServerProcess(folder)
        try:
            await server.start()
            async with await administrator(server, "boss") as boss:
                await log_in(page, server, boss.token)
                await page.until("document.querySelectorAll('.worker').length === 1")
                server.kill()
                await page.until("document.body.classList.contains('stale')")
                assert "does not answer" in await page.run("document.getElementById('notice').innerText")
                await server.start()
                await page.until("!document.body.classList.contains('stale')")
                await page.until(f"document.querySelector('.worker').innerText.includes('{server.pid}')")
                assert await page.run("document.getElementById('notice').hidden")
        finally:
            await server.stop()


@needs_chromium
async def test_drain_and_restart_with_a_click(page: Page) -> None:
    """If this fails, an administrator cannot take a worker out or start it anew, or does so by accident."""
    with private_folder() as folder:
        server = ServerProcess(folder, arguments=["--workers", "2"])
        try:
            await server.start()
            await _drain_and_restart(server, page)
        finally:
            await server.stop()


@needs_chromium
async def test_who_is_silent_or_gone_is_seen(page: Page, database: str) -> None:
    """If this fails, old figures pass for new ones, and a worker that died is just not to be seen.

    And who opens the page because PostgreSQL is away learns nothing from it, or takes a Redis for one that is
    away which only keeps its figures to itself.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(private_folder())
        redis = await stack.enter_async_context(private_redis())
        assert redis.config.path is not None
        base_away, redis_away = AsyncExitStack(), AsyncExitStack()
        for away in (base_away, redis_away):
            await stack.enter_async_context(away)
        settings = database_settings(database)
        args = settings["args"]
        postgres = Path(args["host"]) / f".s.PGSQL.{args['port']}"
        args |= {"host": "127.0.0.1", "port": await base_away.enter_async_context(tcp_port_of(postgres))}
        args["sslmode"] = "disable"
        redis_port = await redis_away.enter_async_context(tcp_port_of(redis.config.path))
        bus = {"enabled": True, "host": "127.0.0.1", "port": redis_port}
        server = ServerProcess(folder, {"database": settings, "redis": bus}, ["--workers", "3"])
        stack.push_async_callback(server.stop)
        await server.start()
        async with await administrator(server, "boss") as boss:
            await log_in(page, server, boss.token)
        await page.until("document.querySelectorAll('.worker').length === 3")
        os.kill(server.pid, signal.SIGTTOU)
        summary = "document.getElementById('summary').innerText"
        third = "document.querySelector('[data-worker=worker3] .state')"
        await page.until(f"{third}.innerText.startsWith('gone')")
        await page.until(f"{summary}.includes('2 workers, 1 gone')")
        await redis.ask("ACL", "SETUSER", "default", "-info")
        await page.until("document.getElementById('redis').innerText.includes('reachable: its figures')")
        await redis_away.aclose()
        await page.until("document.getElementById('redis').innerText.includes('not reachable')")
        await page.until(f"{summary}.includes('1 not heard of')")
        states = await page.run("[...document.querySelectorAll('.worker .state')].map((it) => it.innerText)")
        assert any(state.startswith("not heard of for") for state in states[:2])
        assert "no Redis" in states[:2]
        trouble = await page.run("document.getElementById('trouble').innerText")
        assert trouble.startswith("Redis: not reachable; worker1: ")
        assert "worker3" not in trouble
        assert states[2].startswith("gone for")  # it was drained, so that is not bad

        await page.click("#leave")
        await base_away.aclose()
        await log_in(page, server, new_token(ACCESS, boss.user_id))  # one that no worker has in memory
        notice = "document.getElementById('notice').innerText"
        await page.until(f"{notice}.includes('PostgreSQL is not reachable')")
        assert "ssh -L" in await page.run(notice)
        private = folder / "data" / "run" / "worker1.http"
        async with asyncio.timeout(20):  # what was found is kept for a second
            while (found := await _stores(private)) != (False, False):
                assert found[1] is False
                await asyncio.sleep(0.1)


async def _stores(socket: Path) -> tuple[bool, bool]:
    """Ask whether PostgreSQL and Redis are reachable."""
    status, found = await ask_privately(socket, **{"X-Ranvier-Console": "1"})
    assert status == 200
    return found["database"]["reachable"], found["redis"]["reachable"]


async def _drain_and_restart(server: ServerProcess, page: Page) -> None:
    async with await administrator(server, "boss_of_workers") as boss:
        rooms = [await boss.create_room() for _ in range(6)]
        await log_in(page, server, boss.token)
        await page.until("document.querySelectorAll('.worker').length === 2")
        await page.until("document.getElementById('redis').innerText.includes('reachable')")
        card = "document.querySelector('[data-worker=worker2]')"
        text = await page.until(f"{card}.innerText")
        await page.click("[data-worker=worker2] [data-action=drain]")
        await page.until("document.getElementById('ask').open")
        await page.click("#ask-no")
        await page.until("!document.getElementById('ask').open")
        assert (await _workers(boss))["worker2"]["state"] == "live"

        await page.click("[data-worker=worker2] [data-action=drain]")
        await page.click("#ask-yes")
        await page.until(f"{card}.querySelector('.state').textContent === 'draining'")
        for room_id in rooms:
            await boss.send(room_id, "still heard")
        workers = await _workers(boss)
        assert (workers["worker1"]["rooms"], workers["worker2"]["rooms"]) == (6, 0)
        # Who would take over from the last one that takes requests?
        assert await page.until("document.querySelector('[data-worker=worker1] [data-action=drain]').hidden")

        pid = workers["worker2"]["pid"]
        assert str(pid) in text
        await page.click("[data-worker=worker2] [data-action=restart]")
        await page.click("#ask-yes")
        await page.until(
            f"{card}?.querySelector('.state').textContent === 'live' && !{card}.innerText.includes('{pid}')"
        )
        await boss.send(rooms[0], "and on")
        assert "INFO    [front] ranvier.processes.supervisor: Worker worker2 ended (status 75)" in server.log
        told = json.loads((await ranvier("status", "--json", *options(server))).output)
        assert [it["name"] for it in told["workers"]] == ["worker1", "worker2"]


async def _workers(boss: HttpClient) -> dict[str, Any]:
    return {it["name"]: it for it in (await boss.get(STATUS))["workers"]}
