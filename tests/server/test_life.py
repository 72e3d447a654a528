"""The life of a server as its administrator sees it: start, stop, refusals, and a database that goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ranvier.processes.postgres import EmbeddedPostgres
from ranvier.processes.postmaster import PostmasterStatus
from tests.postgres import fresh_database, private_folder
from tests.redis import until
from tests.server.administrator import (
    PASSWORD,
    command,
    database_settings,
    metrics,
    options,
    ranvier,
    until_metric,
    user_of,
)
from tests.server.http_client import HttpClient, Refused, Unavailable, bodies
from tests.server.process import SERVER_NAME, ServerProcess


@pytest.fixture
async def server() -> AsyncIterator[ServerProcess]:
    """Give a server that is not started yet, in a folder with spaces that only its owner may enter."""
    with private_folder() as parent:
        folder = parent / "a server's folder"
        folder.mkdir(mode=0o700)
        process = ServerProcess(folder)
        try:
            yield process
        finally:
            await process.stop()


@pytest.fixture
async def postgres_of_ones_own() -> AsyncIterator[tuple[EmbeddedPostgres, str]]:
    """Give a running PostgreSQL that the test may stop, and its DSN."""
    with private_folder() as folder:
        postgres = EmbeddedPostgres(folder, settings={"fsync": "off"})
        dsn = await postgres.start()
        try:
            yield postgres, dsn
        finally:
            await postgres.stop()


def postgres_pid(server: ServerProcess) -> int | None:
    """Give the process of the server's PostgreSQL."""
    status = PostmasterStatus.read(server.folder / "data" / "postgres" / "cluster")
    return None if status is None else status.pid


def is_alive(pid: int) -> bool:
    """Tell whether a process runs."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def sends_again(user: HttpClient, room_id: str, body: str) -> str:
    """Send as clients do: again while the server says that it is not able to now."""
    async with asyncio.timeout(30):
        while True:
            with suppress(Unavailable):
                return await user.send(room_id, body, txn_id=body)
            await asyncio.sleep(0.05)


async def can_send(user: HttpClient, room_id: str) -> bool:
    """Tell whether a message is taken, and not answered with 503."""
    with suppress(Unavailable):
        await user.send(room_id, "perhaps")
        return True
    return False


# -- starting and stopping -----------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_answers_who_waits_and_ends_postgres(server: ServerProcess, signum: int) -> None:
    """A restart would break off requests, take half a minute, or leave a PostgreSQL that blocks the next."""
    await server.start()
    async with await user_of(server, "alice") as alice:
        room_id = await alice.create_room()
        await alice.put(f"/v3/presence/{alice.user_id}/status", {"presence": "online"})
        since = (await alice.sync())["next_batch"]
        polls = [asyncio.create_task(alice.sync(since, timeout_ms=30_000)) for _ in range(5)]
        await until_metric(server, "ranvier_sync_waiting", 5)
        postgres = postgres_pid(server)
        assert postgres is not None
        os.kill(server.pid, signum)
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*polls)
            assert await server.stop() == 0
        assert not is_alive(postgres)
        assert "Traceback" not in server.log
        # What was given to those who were sent away is good for the next server.
        await server.start()
        event_id = await alice.send(room_id, "after the restart")
        later = await alice.sync(answers[0]["next_batch"])
        assert later["rooms"]["join"][room_id]["timeline"]["events"][-1]["event_id"] == event_id


async def test_a_stop_comes_to_an_end_while_the_database_stands_still(
    postgres_of_ones_own: tuple[EmbeddedPostgres, str], tmp_path: Path
) -> None:
    """A server whose database hangs could only be stopped by kill -9, which leaves its PostgreSQL behind."""
    _, dsn = postgres_of_ones_own
    server = ServerProcess(tmp_path, {"database": database_settings(dsn), "drain_timeout": "1s"})
    await server.start()
    async with await user_of(server, "alice") as alice:
        room_id = await alice.create_room()
        async with held_log(dsn):
            sending = asyncio.create_task(alice.send(room_id, "never", txn_id="never"))
            await until_metric(server, "ranvier_http_requests_in_flight", 1)
            async with asyncio.timeout(20):
                assert await server.stop() == 0
            with pytest.raises(Unavailable):
                await sending
    assert "Traceback" not in server.log


@asynccontextmanager
async def held_log(dsn: str) -> AsyncIterator[None]:
    """Have every commit to the log wait."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pos FROM log_head FOR UPDATE")
            yield
    finally:
        await connection.close()


async def test_what_was_begun_is_finished_when_the_server_stops(server: ServerProcess) -> None:
    """Of messages that are sent during a restart some would be lost though their senders were told 200."""
    await server.start()
    async with await user_of(server, "alice") as alice:
        room_id = await alice.create_room()
        since = (await alice.sync())["next_batch"]
        sent: list[str] = []

        async def talk(number: int) -> None:
            with suppress(Refused, OSError, EOFError):
                while True:
                    body = f"{number} {len(sent)}"
                    await alice.send(room_id, body)
                    sent.append(body)

        talkers = [asyncio.create_task(talk(number)) for number in range(8)]
        await until_metric(server, "ranvier_log_position", 100)
        assert await server.stop() == 0
        for talker in talkers:
            talker.cancel()
        await asyncio.gather(*talkers, return_exceptions=True)
        assert "Traceback" not in server.log
        await server.start()
        answer = await alice.sync(since, filter='{"room":{"timeline":{"limit":1000}}}')
        heard = set(bodies(answer, room_id))
        timeline = answer["rooms"]["join"][room_id]["timeline"]
        if timeline["limited"]:
            page = await alice.get(
                f"/v3/rooms/{room_id}/messages", dir="b", limit=1000, **{"from": timeline["prev_batch"]}
            )
            heard |= {event["content"].get("body", "") for event in page["chunk"]}
        assert heard >= set(sent)


async def test_ctrl_c_during_the_start_leaves_nothing_behind(server: ServerProcess) -> None:
    """A start that was broken off would leave a PostgreSQL running and the data folder in use."""
    async with command("up", *options(server)) as process:
        async with asyncio.timeout(20):
            while postgres_pid(server) is None:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            output, _ = await process.communicate()
        assert process.returncode == 0
        assert b"Traceback" not in output
    assert postgres_pid(server) is None
    await server.start()


async def test_users_are_made_whether_the_server_runs_or_not(server: ServerProcess) -> None:
    """A newcomer could not make the first user, or only at the right moment."""
    await server.start()
    made = await ranvier("register-user", *options(server), "--admin", "--password", PASSWORD, "alice")
    assert made.status == 0, made.output
    async with HttpClient(server.url) as alice:
        await alice.login("alice", PASSWORD)
    await server.stop()
    made = await ranvier("register-user", *options(server), "--password", PASSWORD, "bob")
    assert made.status == 0, made.output
    again = await ranvier("register-user", *options(server), "--password", PASSWORD, "bob")
    assert again.status == 1
    assert "There is a user @bob:test.localhost already" in again.output
    assert postgres_pid(server) is None
    await server.start()
    async with HttpClient(server.url) as bob:
        await bob.login("bob", PASSWORD)


async def test_a_user_is_made_while_the_server_starts(server: ServerProcess) -> None:
    """Who types the second command right after the first would be told that the data folder is in use."""
    async with command("up", *options(server)) as process:
        async with asyncio.timeout(20):
            while not (server.folder / "data" / "postgres" / "lock").exists():
                await asyncio.sleep(0.01)
        made = await ranvier("register-user", *options(server), "--password", PASSWORD, "alice")
        assert made.status == 0, made.output
        async with HttpClient(server.url) as alice, asyncio.timeout(30):
            while not await alice.is_up():
                await asyncio.sleep(0.02)
            await alice.login("alice", PASSWORD)
        process.terminate()
        async with asyncio.timeout(20):
            await process.communicate()
        assert process.returncode == 0


# -- refusals ------------------------------------------------------------------------------------------


async def test_what_another_server_uses_is_refused_in_a_sentence(server: ServerProcess) -> None:
    """A second start by mistake would disturb the first server, or end in a page of traceback."""
    await server.start()
    second = await ranvier("up", *options(server))
    assert second.status == 1
    assert second.output.splitlines()[-1].startswith("Error: the data folder")
    assert "is in use by another running Ranvier" in second.output
    with private_folder() as elsewhere:
        other = await ranvier("up", "--data", elsewhere / "data", "--port", str(server.port))
        assert other.status == 1
        assert other.output.splitlines()[-1] == f"Error: 127.0.0.1 port {server.port}: Address already in use"
        assert not (elsewhere / "data/postgres/cluster/postmaster.pid").exists()
    async with HttpClient(server.url) as client:
        assert await client.is_up()


async def test_a_start_that_fails_leaves_no_socket(server: ServerProcess) -> None:
    """A proxy would find a socket where nobody answers, as one of two listeners could not be opened."""
    path = server.folder / "client.sock"
    listener = {"type": "http", "path": str(path), "resources": [{"names": ["client"]}]}
    server.write_config(listeners=[listener, *server.config["listeners"]])
    with socket.create_server(("127.0.0.1", server.port)):
        refused = await ranvier("up", *options(server))
    assert f"127.0.0.1 port {server.port}: Address already in use" in refused.output
    assert f"Listening on {path}" in refused.output
    assert not path.exists()


async def test_a_server_on_another_servers_database_is_refused(server: ServerProcess) -> None:
    """After a mistake in the configuration every user would be a stranger to the server's own rooms."""
    await server.start()
    await server.stop()
    path = server.folder / "homeserver.yaml"
    path.write_text(path.read_text().replace(SERVER_NAME, "other.example"))
    refused = await ranvier("up", *options(server))
    assert refused.status == 1
    assert "Traceback" not in refused.output
    assert f"belongs to '{SERVER_NAME}', not to 'other.example'" in refused.output
    assert postgres_pid(server) is None


async def test_a_signing_key_is_made_once(server: ServerProcess) -> None:
    """A key that was lost would be replaced in silence by one that no other server trusts."""
    await server.start()
    key = server.folder / "data" / "signing.key"
    kept = key.rename(server.folder / "kept.key")
    os.kill(server.pid, signal.SIGHUP)
    await until(lambda: "the old one stays" in server.log)
    await (await user_of(server, "alice")).create_room()
    await server.stop()
    lost = await ranvier("up", *options(server))
    assert lost.output.splitlines()[-1].startswith(f"Error: there is no signing key {key}")
    assert not key.exists()
    key.touch()
    empty = await ranvier("up", *options(server))
    assert f"Error: the signing key {key} cannot be used" in empty.output
    assert "Traceback" not in lost.output + empty.output
    kept.rename(key)
    await server.start()


async def test_of_two_folders_with_one_database_one_makes_the_key(
    server: ServerProcess, database: str
) -> None:
    """Two machines of one server would sign with different keys, and nobody be told."""
    settings = {"database": database_settings(database)}
    server.write_config(**settings)
    await server.start()
    with private_folder() as folder:
        other = ServerProcess(folder, settings)
        refused = await ranvier("up", *options(other))
        assert refused.status == 1
        assert f"there is no signing key {folder / 'data' / 'signing.key'}" in refused.output
        assert not (folder / "data" / "signing.key").exists()


async def test_every_mistake_of_a_configuration_is_told_at_once(server: ServerProcess) -> None:
    """An administrator would mend one line, start, and find the next, again and again."""
    path = server.folder / "homeserver.yaml"
    path.write_text("server_name: not a name\nlog_level: LOUD\nlisteners: 8008\nno_such_key: 1\n")
    refused = await ranvier("up", *options(server))
    assert refused.status == 1
    for key in ("server_name", "log_level", "listeners", "no_such_key"):
        assert key in refused.output
    assert refused.output.splitlines()[-1] == "Error: the configuration has 3 errors"


# -- a database of the administrator's -----------------------------------------------------------------


async def test_a_database_of_ones_own(postgres: str) -> None:
    """Who runs PostgreSQL already could not use it, or would get a second one."""
    with private_folder() as folder:
        async with fresh_database(postgres) as dsn:
            server = ServerProcess(folder, {"database": database_settings(dsn)})
            try:
                await server.start()
                async with await user_of(server, "alice") as alice:
                    await alice.create_room()
                made = await ranvier("register-user", *options(server), "--password", PASSWORD, "bob")
                assert made.status == 0, made.output
                assert not (folder / "data" / "postgres").exists()
            finally:
                await server.stop()


@pytest.mark.parametrize("change", [{"dbname": "missing"}, {"user": "nobody_known"}, {"port": 5999}])
async def test_a_database_that_cannot_be_used_is_named(postgres: str, change: dict[str, Any]) -> None:
    """A mistyped name would end in a page of traceback, or in silence."""
    with private_folder() as folder:
        settings = database_settings(postgres)
        settings["args"].update(change)
        server = ServerProcess(folder, {"database": settings})
        refused = await ranvier("up", *options(server))
        assert refused.status == 1
        assert "Traceback" not in refused.output
        last = refused.output[refused.output.index("Error: ") :]
        assert str(next(iter(change.values()))) in last


async def test_while_postgres_is_away_reading_goes_on_and_writing_is_taken_up_again(
    postgres_of_ones_own: tuple[EmbeddedPostgres, str], tmp_path: Path
) -> None:
    """An upgrade of PostgreSQL would log everybody out, lose messages, or need a restart of the server."""
    postgres, dsn = postgres_of_ones_own
    server = ServerProcess(tmp_path, {"database": database_settings(dsn)})
    try:
        await server.start()
        async with await user_of(server, "alice") as alice, await user_of(server, "bob") as bob:
            room_id = await alice.create_room()
            await bob.join(room_id)
            await alice.send(room_id, "before")
            known = await alice.sync((await alice.sync())["next_batch"])
            since = (await bob.sync())["next_batch"]
            poll = asyncio.create_task(bob.sync(since, timeout_ms=30_000))
            await until_metric(server, "ranvier_sync_waiting", 1)
            await postgres.stop()
            for _ in range(20):
                with pytest.raises(Unavailable) as refused:
                    await alice.send(room_id, "meanwhile", txn_id="meanwhile")
                assert refused.value.errcode == "M_UNKNOWN"
            assert (await bob.get("/v3/account/whoami"))["user_id"] == bob.user_id
            assert (await bob.get("/v3/joined_rooms"))["joined_rooms"] == [room_id]
            assert "next_batch" in await alice.sync(known["next_batch"])
            assert (await metrics(server.url))["ranvier_database_reachable"] == 0
            assert not poll.done()
            await postgres.start()
            await sends_again(alice, room_id, "meanwhile")
            assert bodies(await poll, room_id) == ["meanwhile"]
            assert (await metrics(server.url))["ranvier_database_reachable"] == 1
        assert "Traceback" not in server.log
        assert server.log.count("PostgreSQL can not be reached") == 1
        await postgres.stop()
        assert await server.stop() == 0
    finally:
        await server.stop()


async def test_a_postgres_that_was_restarted_is_not_noticed(
    postgres_of_ones_own: tuple[EmbeddedPostgres, str], tmp_path: Path
) -> None:
    """The first requests after a restart of PostgreSQL would fail though it is back long since."""
    postgres, dsn = postgres_of_ones_own
    server = ServerProcess(tmp_path, {"database": database_settings(dsn)})
    try:
        await server.start()
        async with await user_of(server, "alice") as alice:
            room_id = await alice.create_room()
            await postgres.stop()
            await postgres.start()
            await alice.send(room_id, "after")
            assert (await alice.sync())["rooms"]["join"].keys() == {room_id}
        assert "Traceback" not in server.log
    finally:
        await server.stop()


async def test_a_postgres_that_refuses_for_a_while_ends_nothing(
    postgres_of_ones_own: tuple[EmbeddedPostgres, str], tmp_path: Path
) -> None:
    """The server would end when its database is a standby for a moment, or breaks a statement off."""
    _, dsn = postgres_of_ones_own
    server = ServerProcess(tmp_path, {"database": database_settings(dsn)})
    connection = await asyncpg.connect(dsn)
    try:
        await server.start()
        async with await user_of(server, "alice") as alice:
            room_id = await alice.create_room()
            await connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            await connection.execute("SELECT pg_reload_conf()")
            async with asyncio.timeout(20):
                while await can_send(alice, room_id):  # PostgreSQL reads its settings a little later
                    await asyncio.sleep(0.05)
            await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await connection.execute("SELECT pg_reload_conf()")
            await sends_again(alice, room_id, "between")
            async with connection.transaction(), asyncio.timeout(20):
                await connection.execute("LOCK TABLE log_head")
                while "Can not read the log" not in server.log:
                    await connection.execute("SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted")
                    await asyncio.sleep(0.05)
            await sends_again(alice, room_id, "after")
        assert "Traceback" not in server.log
    finally:
        await connection.close()
        await server.stop()


# -- the embedded database, and parts that fail ----------------------------------------------------------


async def test_the_servers_own_postgres_is_started_again(server: ServerProcess) -> None:
    """When the system kills PostgreSQL for want of memory the server would be of no use until restarted."""
    await server.start()
    async with await user_of(server, "alice") as alice:
        room_id = await alice.create_room()
        since = (await alice.sync())["next_batch"]
        poll = asyncio.create_task(alice.sync(since, timeout_ms=30_000))
        await until_metric(server, "ranvier_sync_waiting", 1)
        killed = postgres_pid(server)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(30):
            while is_alive(killed) or postgres_pid(server) in (None, killed):
                await asyncio.sleep(0.02)
        await sends_again(alice, room_id, "after")
        assert bodies(await poll, room_id) == ["after"]
    assert "The embedded PostgreSQL ended (status -9); starting it again" in server.log
    assert "Traceback" not in server.log
    assert await server.stop() == 0


async def test_a_server_whose_part_fails_for_good_ends(server: ServerProcess) -> None:
    """A broken server would stay, answer nothing useful, and nothing would restart it."""
    await server.start()
    killed = postgres_pid(server)
    assert killed is not None
    with (server.folder / "data/postgres/cluster/postgresql.conf").open("a") as conf:
        conf.write("no_such_setting = 1\n")
    os.kill(killed, signal.SIGKILL)
    assert await server.wait() == 1
    assert "Error: PostgreSQL does not start" in server.log
    assert "no_such_setting" in server.log
