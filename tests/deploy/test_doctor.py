"""``ranvier doctor``: on real files, PostgreSQL and Redis, each fault is planted and then found."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from ranvier.cli.main import main
from ranvier.config.database import RedisConfig
from ranvier.config.generate import signing_key_file
from ranvier.deploy.findings import exit_status
from ranvier.storage.database import Database
from ranvier.wire.members import DRAINING
from tests.deploy.examined_server import GROUP, Server
from tests.server.process import free_port

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and groups can be set by root only")


async def test_a_server_that_is_well_is_said_to_be_well(server: Server) -> None:
    """Administrators would stop to read what the doctor says."""
    findings = await server.findings()
    # PostgreSQL of the tests does not wait for the disk, and that is found, too.
    wrong = [it for it in findings if it.severity not in ("ok", "note")]
    assert [it.check for it in wrong] == ["database-durability"], "\n".join(map(str, findings))
    well = {it.check for it in findings if it.severity == "ok"}
    assert well >= {"database", "redis", "socket-folder", "signing-key", "worker", "answer", "log-pace"}
    assert "database-full-pages" in {it.check for it in findings if it.severity == "note"}
    assert exit_status([it for it in findings if it.check != "database-durability"]) == 0


Plant = Callable[[Server], Awaitable[None] | None]


def _folder_mode(server: Server) -> None:
    (server.folder / "run").chmod(0o755)


def _folder_group(server: Server) -> None:
    os.chown(server.folder / "run", -1, 0)
    (server.folder / "run").chmod(0o2770)


def _folder_owner(server: Server) -> None:
    os.chown(server.folder / "run", 0, -1)
    (server.folder / "run").chmod(0o2770)


def _no_folder(server: Server) -> None:
    (server.folder / "run").rename(server.folder / "away")


def _socket_mode(server: Server) -> None:
    (server.folder / "run/w1.sock").chmod(0o600)


def _socket_group(server: Server) -> None:
    os.chown(server.folder / "run/w1.sock", 0, 0)


def _socket_missing(server: Server) -> None:
    (server.folder / "run/w1.sock").unlink()


def _socket_stale(server: Server) -> None:
    path = server.folder / "run/w1.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    os.chown(path, 0, server.scene.target.gid(GROUP))
    path.chmod(0o660)


def _socket_full(server: Server) -> None:
    path = server.folder / "run/w1.sock"
    path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(0)
    path.chmod(0o660)
    server.sockets.append(listening)
    while True:
        waiting = socket.socket(socket.AF_UNIX)
        server.sockets.append(waiting)
        waiting.setblocking(False)
        try:
            waiting.connect(str(path))
        except BlockingIOError:
            return


def _socket_path_too_long(server: Server) -> None:
    folder = server.folder / "run" / ("x" * 100)
    folder.mkdir()
    (server.folder / "run/w1.sock").rename(folder / "w1.sock")
    server.configure(
        worker_extra=f"worker_name: w1\nworker_listeners: [{{path: {folder}/w1.sock, mode: 0660}}]\n"
    )


def _socket_is_a_file(server: Server) -> None:
    (server.folder / "run/w1.sock").unlink()
    (server.folder / "run/w1.sock").touch()


async def _frozen(server: Server) -> None:
    path = server.folder / "run/w1.sock"
    path.unlink()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server.doors["w1"] = await asyncio.start_unix_server(silent, path)
    path.chmod(0o660)


def _no_member(server: Server) -> None:
    assert server.scene.settings is not None
    server.edit(settings=replace(server.scene.settings, web_user="daemon"))


def _no_user(server: Server) -> None:
    assert server.scene.settings is not None
    server.edit(settings=replace(server.scene.settings, redis_user="nobody-of-this-name"))


def _proxy(server: Server) -> None:
    path = server.folder / "ranvier-upstream.conf"
    path.write_text(path.read_text().replace("w1.sock", "w2.sock"))


def _other_socket(server: Server) -> None:
    path = server.folder / "run/main.sock"
    (server.folder / "run/w1.sock").rename(server.folder / "run/w1-new.sock")
    listener = f"{{path: {path.with_name('w1-new.sock')}, mode: 0660, resources: [{{names: [client]}}]}}"
    server.configure(worker_extra=f"worker_name: w1\nworker_listeners: [{listener}]\n")


def _other_web_server(server: Server) -> None:
    (server.folder / "ranvier-upstream.conf").unlink()


def _left_over(server: Server) -> None:
    (server.folder / "workers").mkdir()
    (server.folder / "workers/w1.yaml").touch()
    (server.folder / "workers/w7.yaml").touch()


def _run_folder(server: Server) -> None:
    (server.folder / "data/run").mkdir(parents=True)


def _no_address(server: Server) -> None:
    server.configure(worker_extra="worker_name: w1\nworker_listeners: [{port: 9, bind_addresses: []}]\n")


def _no_key(server: Server) -> None:
    (server.folder / "signing.key").unlink()


def _broken_key(server: Server) -> None:
    (server.folder / "signing.key").write_text("")


def _open_key(server: Server) -> None:
    (server.folder / "signing.key").chmod(0o644)


async def _redis_down(server: Server) -> None:
    await server.redis.server.stop()


async def _redis_tcp(server: Server) -> None:
    await server.redis.ask("CONFIG", "SET", "port", free_port())


async def _redis_tcp_untold(server: Server) -> None:
    await _redis_tcp(server)
    await server.redis.ask("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-config")
    server.edit(redis=replace(server.redis.config, username="limited", password="secret"))


def _redis_not_told(server: Server) -> None:
    assert server.scene.settings is not None
    settings = replace(server.scene.settings, redis_config=server.folder / "redis.conf")
    settings.redis_config.write_text("port 6379\n")
    server.edit(settings=settings, redis=RedisConfig(path=settings.redis_socket))


async def _redis_tls(server: Server) -> None:
    pem, key = server.folder / "cert.pem", server.folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
         "-keyout", str(key), "-out", str(pem)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    key.chmod(0o644)
    files = ("tls-cert-file", str(pem), "tls-key-file", str(key), "tls-ca-cert-file", str(pem))
    await server.redis.ask("CONFIG", "SET", *files, "tls-port", free_port())


async def _redis_evicts_by_tcp(server: Server) -> None:
    port = free_port()
    await server.redis.ask("CONFIG", "SET", "port", port)
    await server.redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "maxmemory", "1gb")
    server.edit(redis=RedisConfig(host="127.0.0.1", port=port))


async def _redis_forbids(server: Server) -> None:
    rules = ("on", ">secret", "allkeys", "allchannels", "+@all", "-smembers", "-time", "-info")
    await server.redis.ask("ACL", "SETUSER", "limited", *rules)
    server.edit(redis=replace(server.redis.config, username="limited", password="secret"))


async def _redis_password(server: Server) -> None:
    server.edit(redis=replace(server.redis.config, password="wrong"))
    await server.redis.ask("CONFIG", "SET", "requirepass", "right")


def _redis_mode(server: Server) -> None:
    assert server.redis.config.path is not None
    server.redis.config.path.chmod(0o777)


async def _redis_evicts(server: Server) -> None:
    await server.redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")


async def _gone(server: Server) -> None:
    del server.members["w1"]
    await server.registry.withdraw("w1")


def _deaf(server: Server) -> None:
    server.members["w1"] = msgspec.structs.replace(server.members["w1"], bus_connected=False)


def _unsubscribed(server: Server) -> None:
    for name in ("extra1", "extra2"):
        server.members[name] = msgspec.structs.replace(server.members["w1"], name=name)


async def _lagging(server: Server) -> None:
    assert server.scene.dsn is not None
    database = Database({"dsn": server.scene.dsn}, size=1)
    await database.execute("UPDATE log_head SET pos = pos + 5000")
    await database.close()


def _still(server: Server) -> None:
    member = server.members["w1"]
    server.members["w1"] = msgspec.structs.replace(member, beat=7)

    async def announce(name: str) -> None:
        told = server.members[name] if name != "w1" else msgspec.structs.replace(member, beat=7)
        await server.registry.announce(name, msgspec.json.encode(told), 4000)

    server.announce = announce  # type: ignore[method-assign]


def _two_of_one_name(server: Server) -> None:
    async def announce(name: str) -> None:
        told = server.members[name]
        if name == "w1":
            told = msgspec.structs.replace(told, instance=f"w1-{told.beat}")
        await server.registry.announce(name, msgspec.json.encode(told), 4000)

    server.announce = announce  # type: ignore[method-assign]


def _two_configured(server: Server) -> None:
    server.configure(worker_extra="worker_name: main\n")


def _versions(server: Server) -> None:
    server.members["w1"] = msgspec.structs.replace(server.members["w1"], version="0.0.1")


def _all_old(server: Server) -> None:
    for name, member in server.members.items():
        server.members[name] = msgspec.structs.replace(member, version="0.0.1")


def _old_elsewhere(server: Server) -> None:
    member = server.members["w1"]
    server.members["w1"] = msgspec.structs.replace(member, version="0.0.1", host="elsewhere", address="tcp:")


def _other_roles(server: Server) -> None:
    server.configure(worker_extra="worker_name: w1\nworker_roles: [federation_sender, background]\n")


def _wrong_secret(server: Server) -> None:
    server.configure(main_extra="worker_replication_secret: other\n")


def _secrets_differ(server: Server) -> None:
    server.configure(worker_extra="worker_name: w1\nworker_replication_secret: other\n")


def _unreachable(server: Server) -> None:
    (server.folder / "w1.link").unlink()


def _nowhere(server: Server) -> None:
    address = f"unix:{server.folder}/{'x' * 120}"
    server.members["w1"] = msgspec.structs.replace(server.members["w1"], address=address)


def _socket_twice(server: Server) -> None:
    path = server.folder / "run/main.sock"
    server.configure(worker_extra=f"worker_name: w1\nworker_listeners: [{{path: {path}, mode: 0660}}]\n")


def _no_redis(server: Server) -> None:
    server.edit(redis=None)


def _database_down(server: Server) -> None:
    server.edit(dsn=f"postgresql://ranvier@/ranvier?host={server.folder}")


def _no_database(server: Server) -> None:
    assert server.scene.dsn is not None
    server.edit(dsn=server.scene.dsn.replace("/test_", "/absent_"))


async def _other_owner(server: Server) -> None:
    await _sql(server, "UPDATE server SET server_name = 'other.org'")


async def _old_schema(server: Server) -> None:
    await _sql(server, "DELETE FROM schema_migrations WHERE name = '0001_log'")


async def _sql(server: Server, statement: str) -> None:
    assert server.scene.dsn is not None
    database = Database({"dsn": server.scene.dsn}, size=1)
    await database.execute(statement)
    await database.close()


def _clock(server: Server) -> None:
    server.edit(now_ms=lambda: time.time_ns() // 1_000_000 + 60_000)


FAULTS: list[tuple[str, str, Plant]] = [
    ("socket-folder-mode", "error", _folder_mode),
    ("socket-folder-group", "error", _folder_group),
    ("socket-folder-owner", "error", _folder_owner),
    ("socket-folder", "error", _no_folder),
    ("socket-mode", "error", _socket_mode),
    ("socket-group", "error", _socket_group),
    ("socket-missing", "error", _socket_missing),
    ("socket-stale", "error", _socket_stale),
    ("socket-full", "error", _socket_full),
    ("socket-refused", "error", _socket_path_too_long),
    ("socket-kind", "error", _socket_is_a_file),
    ("worker-no-answer", "error", _frozen),
    ("group-member", "error", _no_member),
    ("user-missing", "error", _no_user),
    ("proxy", "warning", _proxy),
    ("proxy", "warning", _other_socket),
    ("proxy", "note", _other_web_server),
    ("left-over", "note", _left_over),
    ("run-folder", "error", _run_folder),
    ("listener-nowhere", "error", _no_address),
    ("signing-key", "error", _no_key),
    ("signing-key", "error", _broken_key),
    ("signing-key-open", "warning", _open_key),
    ("redis-down", "error", _redis_down),
    ("redis-tcp-open", "error", _redis_tcp),
    ("redis-tcp-open", "error", _redis_tcp_untold),
    ("redis-tcp-open", "error", _redis_tls),
    ("redis-include", "error", _redis_not_told),
    ("redis-password", "error", _redis_password),
    ("redis-socket-mode", "warning", _redis_mode),
    ("redis-eviction", "warning", _redis_evicts),
    ("redis-eviction", "warning", _redis_evicts_by_tcp),
    ("redis-missing", "error", _no_redis),
    ("workers-hidden", "error", _redis_forbids),
    ("worker-missing", "error", _gone),
    ("worker-not-subscribed", "error", _deaf),
    ("worker-not-subscribed", "error", _unsubscribed),
    ("worker-lagging", "error", _lagging),
    ("worker-frozen", "error", _still),
    ("name-twice", "error", _two_of_one_name),
    ("name-twice", "error", _two_configured),
    ("worker-versions", "warning", _versions),
    ("worker-versions", "warning", _old_elsewhere),
    ("worker-roles", "warning", _other_roles),
    ("worker-secret", "error", _wrong_secret),
    ("secret-differs", "error", _secrets_differ),
    ("worker-unreachable", "error", _unreachable),
    ("worker-unreachable", "error", _nowhere),
    ("socket-twice", "error", _socket_twice),
    ("database-down", "error", _database_down),
    ("database-down", "error", _no_database),
    ("database-owner", "error", _other_owner),
    ("schema", "warning", _old_schema),
    ("clock-skew", "error", _clock),
]


@pytest.mark.parametrize(("check", "severity", "plant"), FAULTS, ids=[plant.__name__ for *_, plant in FAULTS])
async def test_a_planted_fault_is_found(
    server: Server, monkeypatch: pytest.MonkeyPatch, check: str, severity: str, plant: Plant
) -> None:
    """An administrator would look for hours for what is wrong."""
    done = plant(server)
    if done is not None:
        await done
    findings = await server.findings()
    found = [it for it in findings if it.check == check and it.severity == severity]
    assert found, "\n".join(map(str, findings))
    assert all(it.advice for it in findings if it.severity in ("warning", "error"))
    assert exit_status(findings) >= {"note": 0, "warning": 1, "error": 2}[severity]


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (_socket_full, "restart it"),
        (_socket_path_too_long, "107 bytes"),
        (_proxy, "run `ranvier deploy`"),
        (_other_socket, "let it answer clients on"),
        (_all_old, "systemctl restart ranvier.service; systemctl restart ranvier-worker@w1.service"),
        (_old_elsewhere, "bring all machines to one version"),
        (_other_roles, "systemctl reload ranvier-worker@w1.service"),
    ],
)
async def test_the_advice_is_for_what_is_wrong(
    server: Server, plant: Callable[[Server], None], words: str
) -> None:
    """An administrator would do what is said, and nothing would change."""
    plant(server)
    assert words in " ".join(it.advice for it in await server.findings())


async def test_a_worker_that_was_drained_is_no_fault(server: Server) -> None:
    """An administrator would be told to start a worker that runs and has no clients on purpose."""
    _socket_missing(server)
    server.doors["w1"].close()
    server.members["w1"] = msgspec.structs.replace(server.members["w1"], state=DRAINING)
    await server.announce("w1")
    findings = {it.check: it for it in await server.findings() if it.severity != "ok"}
    findings = {check: it for check, it in findings.items() if not check.startswith("database-")}
    assert list(findings) == ["worker-draining"], "\n".join(map(str, findings.values()))
    assert findings["worker-draining"].severity == "note"
    assert "systemctl restart ranvier-worker@w1.service" in findings["worker-draining"].advice


async def test_a_worker_whose_file_has_a_mistake_is_known(server: Server) -> None:
    """An administrator would look for the file of a worker that has one, beside being told of its mistake."""
    server.edit(processes=server.scene.processes[:1])
    stranger = msgspec.structs.replace(server.members["w1"], name="stranger")
    server.members["stranger"] = stranger
    unknown = [it.message for it in await server.findings() if it.check == "worker-unknown"]
    assert unknown == ["the worker stranger runs and has no configuration here"]


async def test_workers_may_use_one_database_each_in_its_own_way(server: Server) -> None:
    """A worker with fewer connections would be said to have another database."""
    args = "worker_name: w1\ndatabase: {{args: {{dbname: {}, cp_max: {}}}}}\n"
    for dbname, cp_max, is_told in (("ranvier", 5, False), ("other", 10, True)):
        server.configure(
            main_extra="database: {args: {dbname: ranvier}}\n", worker_extra=args.format(dbname, cp_max)
        )
        assert is_told == ("database-differs" in {it.check for it in await server.findings()})


async def test_a_database_of_a_wrong_kind_is_found(server: Server, postgres: str) -> None:
    """Indexes would break with an update of the system, and messages could not be stored."""
    admin = Database({"dsn": postgres}, size=1)
    name = f"wrong_{os.getpid()}"
    await admin.execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    try:
        server.edit(dsn=postgres.replace("/ranvier?", f"/{name}?"))
        found = {it.check: it for it in await server.findings()}
        assert found["database-encoding"].severity == "error"
        assert found["schema"].severity == "note"
        other = Database({"dsn": server.scene.dsn}, size=1)
        await other.execute("CREATE TABLE rooms (room_id text)")
        await other.execute("CREATE TABLE schema_migrations (version text)")  # as many programs have
        await other.close()
        found = {it.check: it for it in await server.findings()}
        assert "has the table rooms" in found["database-owner"].message
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


def test_the_command_reads_its_files_and_tells_machines(tmp_path: Path) -> None:
    """A monitoring script could not see that the server is ill."""
    signing_key_file(tmp_path / "signing.key").write()
    yaml = tmp_path / "homeserver.yaml"
    yaml.write_text(f"server_name: example.org\nlisteners: [{{path: {tmp_path}/a.sock}}]\nsigning_kee: x\n")
    result = CliRunner().invoke(main, ["doctor", "--data", str(tmp_path), "--json"])
    told = json.loads(result.output)
    assert (result.exit_code, told["status"]) == (2, "errors")
    checks = {finding["check"]: finding for finding in told["findings"]}
    assert "signing_kee" in checks["config"]["message"]
    assert checks["config"]["severity"] == "warning"
    assert checks["database-down"]["advice"]
    yaml.write_text("server_name: 7\n")
    result = CliRunner().invoke(main, ["doctor", "--config-path", str(yaml)])
    assert result.exit_code == 2
    assert "homeserver.yaml:1: error: server_name" in result.output
    assert "1 error" in result.output
