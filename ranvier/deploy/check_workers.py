"""Is every worker there, does it hear the others, and how far behind is it?"""

from __future__ import annotations

import asyncio
import platform
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Final

import ranvier
from ranvier.cluster.descriptions import natural_order
from ranvier.cluster.link import connect
from ranvier.deploy.findings import Finding, error, note, ok, warning
from ranvier.deploy.guard import guarded_async
from ranvier.deploy.scene import Scene
from ranvier.deploy.system import other_program
from ranvier.deploy.system_files import service_of
from ranvier.log.redis_connection import RedisConnection, RedisUnavailable
from ranvier.storage import log
from ranvier.storage.database import Database
from ranvier.wire.members import DRAINING, Member, decode_members

LAG_ERROR: Final = 1000
_REACH_S: Final = 2.0


async def check_workers(scene: Scene, database: Database | None) -> AsyncIterator[Finding]:
    """Look at the announcements twice, and at each worker's door. Raises what the database raises."""
    if scene.redis is None:
        return
    head = await log.head(database) if database is not None else 0
    try:
        connection = await RedisConnection.open(scene.redis)
    except RedisUnavailable:
        return  # told already
    try:
        before, _ = await _look(connection, scene.prefix)
        await asyncio.sleep(scene.watch_s)
        after, subscribed = await _look(connection, scene.prefix)
    except RedisUnavailable as failed:
        yield error(
            "workers-hidden",
            f"Redis does not tell who the workers are: {failed}",
            "if it runs, allow its user SMEMBERS, MGET and PUBSUB, and all keys and channels (ACL SETUSER)",
        )
        return
    finally:
        connection.close()
    if database is not None:
        pace = (await log.head(database) - head) / scene.watch_s
        yield ok("log-pace", f"the log is at {head} and grows by {pace:.1f} rows a second")
    for finding in (
        *_missing(scene, after),
        *_subscriptions(after, subscribed),
        *_each(scene, before, after, head),
        *_roles(scene, after),
        *_versions(scene, list(after.values())),
    ):
        yield finding
    for member in after.values():
        async for finding in guarded_async(f"the worker {member.name}", _door(scene, member)):
            yield finding


async def find_drained(scene: Scene) -> frozenset[str]:
    """Give the workers that say that they are drained; none where Redis does not tell."""
    if scene.redis is None:
        return frozenset()
    try:
        connection = await RedisConnection.open(scene.redis)
        try:
            members, _ = await _look(connection, scene.prefix)
        finally:
            connection.close()
    except RedisUnavailable:
        return frozenset()  # told by other checks
    return frozenset(name for name, member in members.items() if member.state == DRAINING)


async def _look(connection: RedisConnection, prefix: str) -> tuple[dict[str, Member], int]:
    """Give who announces themselves, by name, and how many hear of commits. Raises RedisUnavailable."""
    names: list[bytes] = await connection.command("SMEMBERS", f"{prefix}members")
    values: list[bytes | None] = []
    if names:
        values = await connection.command("MGET", *(f"{prefix}member:{name.decode()}" for name in names))
    _, count = await connection.command("PUBSUB", "NUMSUB", f"{prefix}log")
    members = decode_members([value for value in values if value is not None])
    members.sort(key=lambda member: natural_order(member.name))
    return {member.name: member for member in members}, int(count)


def _missing(scene: Scene, members: Mapping[str, Member]) -> Iterator[Finding]:
    names = {process.name for process in scene.processes} if scene.names_known else set()
    for name in sorted(names - members.keys()):
        yield error(
            "worker-missing",
            f"the worker {name} does not run, or does not reach Redis",
            "see `systemctl status` and its log, and start it",
        )
    # Whose file has a mistake, which is told, is not unknown.
    known = {*names, *(scene.settings.names if scene.settings is not None else ())}
    for name in sorted(members.keys() - known) if names else []:
        yield note("worker-unknown", f"the worker {name} runs and has no configuration here")


def _subscriptions(members: Mapping[str, Member], subscribed: int) -> Iterator[Finding]:
    deaf = [member.name for member in members.values() if not member.bus_connected]
    for name in deaf:
        yield error(
            "worker-not-subscribed",
            f"the worker {name} is not subscribed to Redis: it learns of messages later, from the database",
            f"look for `Redis lost` in its log; restart {name} if it does not come back by itself",
        )
    if not deaf and subscribed < len(members):
        yield error(
            "worker-not-subscribed",
            f"only {subscribed} of {len(members)} workers are subscribed to Redis",
            "look for `Redis lost` in their logs",
        )


def _each(
    scene: Scene, before: Mapping[str, Member], after: Mapping[str, Member], head: int
) -> Iterator[Finding]:
    for name, member in after.items():
        old = before.get(name, member)
        if old.instance != member.instance:
            yield error(
                "name-twice",
                f"two processes announce themselves as {name}: {old.pid} on {old.host}, "
                f"{member.pid} on {member.host}",
                "give one of them another worker_name, unless it was just restarted",
            )
        elif name in before and old.beat == member.beat:
            yield error(
                "worker-frozen",
                f"the worker {name} (process {member.pid} on {member.host}) stands still",
                f"see what it does (`py-spy dump --pid {member.pid}`), then restart it",
            )
        behind = head - member.pos
        if behind > 0:
            told = error if behind >= LAG_ERROR else warning
            yield told(
                "worker-lagging",
                f"the worker {name} is {behind} rows behind the log",
                f"it uses {member.load:.0%} of a core: add a worker, or restart it if it does not catch up",
            )
        elif member.state == DRAINING:
            yield note(
                "worker-draining",
                f"the worker {name} was drained, or stops: clients do not come to it",
                f"if it goes on running, this ends it: {_restart(scene, [name])}",
            )
        else:
            yield ok("worker", f"the worker {name} is at {member.pos}, {member.load:.0%} of a core")


def _roles(scene: Scene, members: Mapping[str, Member]) -> Iterator[Finding]:
    """See whether workers have read the roles that their files give them."""
    for process in scene.processes:
        member = members.get(process.name)
        if member is None or set(member.roles) == set(process.config.worker.roles):
            continue
        reload = f"systemctl reload {service_of(member.name)}" if scene.settings else "send it SIGHUP"
        yield warning(
            "worker-roles",
            f"the worker {member.name} goes on with other roles than {process.source} gives it",
            f"{reload}, or restart it",
        )


def _versions(scene: Scene, members: Sequence[Member]) -> Iterator[Finding]:
    others: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for member in members:
        if member.version != ranvier.__version__:
            others[member.host == platform.node(), member.version].append(member.name)
    for (is_here, version), names in others.items():
        advice = _update(scene, names) if is_here else "bring all machines to one version"
        yield warning(
            "worker-versions",
            f"not of the version that is installed here ({ranvier.__version__}), but {version}: "
            f"{', '.join(names)}",
            advice,
        )


def _update(scene: Scene, names: Sequence[str]) -> str:
    """Say how to have workers run this version."""
    own = other_program(scene.settings) if scene.settings is not None else None
    return (f"`ranvier deploy --program {own}`; " if own is not None else "") + _restart(scene, names)


def _restart(scene: Scene, names: Sequence[str]) -> str:
    """Say how to restart workers, each when the one before is back."""
    if scene.settings is None:
        return f"restart {', '.join(names)}, one after the other"
    return "; ".join(f"systemctl restart {service_of(name)}" for name in names)


async def _door(scene: Scene, member: Member) -> AsyncIterator[Finding]:
    if member.address.startswith("unix:") and member.host != platform.node():
        return
    secret = scene.config.worker.replication_secret or ""
    try:
        async with asyncio.timeout(_REACH_S):
            link = await connect(member.address, secret=secret, announcement=b"", lost=lambda: None)
        link.close()
    except PermissionError:
        yield error(
            "worker-door",
            f"the worker {member.name} cannot be reached by others: {member.address} may not be opened",
            "run this as root; if it is then said again, let all workers run as one user",
        )
    except OSError as failed:
        if type(failed) is ConnectionError:  # connected, and let go without a welcome
            yield error(
                "worker-secret",
                f"the worker {member.name} refuses the secret of this configuration",
                "set the same worker_replication_secret for all workers and restart them",
            )
            return
        yield error(
            "worker-unreachable",
            f"the worker {member.name} cannot be reached by others at {member.address}: "
            f"{str(failed) or 'no answer'}",
            f"if {member.host} can be reached from here, restart the worker {member.name}",
        )
