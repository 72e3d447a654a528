"""All endpoints of a process with all that they need: the one place where everything is put together."""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ranvier import client_api
from ranvier.admin_api import console as console_api
from ranvier.cluster.rate_limits import SharedCounts
from ranvier.config import Config
from ranvier.http.app import Application
from ranvier.http.authentication import RequestAuthentication
from ranvier.http.limits import Rate, RateLimiter
from ranvier.http.loop_lag import PERIOD_S, LoopLag
from ranvier.http.metrics import HEALTH_ROUTES, METRICS_ROUTES, Metrics
from ranvier.http.request_log import RequestLog
from ranvier.http.route import Route, bind
from ranvier.log.pruning import LogPruning
from ranvier.processes.accounts import AccountParts, build_accounts
from ranvier.processes.console import ConsoleParts, build_console
from ranvier.processes.core import Core
from ranvier.processes.database_time import DatabaseTimes
from ranvier.processes.encryption import EncryptionParts, build_encryption
from ranvier.processes.ephemeral import EphemeralParts, build_ephemeral
from ranvier.processes.gauges import ProcessGauges
from ranvier.processes.room_parts import build_auto_join, build_rooms
from ranvier.processes.sso import build_sso
from ranvier.processes.sync_parts import SyncParts, build_sync
from ranvier.processes.user_data import UserParts, build_user_data
from ranvier.rooms.guests import GuestEviction
from ranvier.rooms.purge import RoomPurge
from ranvier.rooms.redaction_retention import RedactionRetention
from ranvier.storage.erasure import ErasureStore
from ranvier.storage.redaction_retention import RedactionRetentionStore
from ranvier.storage.room_purges import RoomPurgeStore
from ranvier.users.erasure import Erasure
from ranvier.users.profiles import DISPLAYNAME
from ranvier.users.returning import ReturningUsers


def client_routes() -> list[Route]:
    """Give every route of the client-server API: the ``ROUTES`` of each module of ``client_api``."""
    names = sorted(module.name for module in pkgutil.iter_modules(client_api.__path__, "ranvier.client_api."))
    modules = [importlib.import_module(name) for name in names]
    return [route for module in modules for route in getattr(module, "ROUTES", ())]


@dataclass(frozen=True)
class Built:
    """What ``build_application`` makes: ``drain`` is to be called when the process is about to stop."""

    application: Application
    drain: Callable[[], None]
    console: ConsoleParts
    returning_users: ReturningUsers


async def build_application(
    config: Config,
    core: Core,
    times: DatabaseTimes,
    request_log: RequestLog,
    *,
    shared_counts: SharedCounts | None = None,
) -> Built:
    """Build the application and what its process has to do with.

    ``shared_counts`` is there where several processes keep the same rate limits.
    """
    limiter = _limiter(config, core, shared_counts)

    def limit(name: str, key: str) -> None:
        limiter.check(name, key, core.clock.monotonic())

    async def depart(user_id: str, erase: bool) -> None:
        await erasure.say_farewell(user_id)
        await rooms.membership.leave_all(user_id)
        await erasure.remove(user_id, erase=erase)

    users = build_user_data(core, config)
    rooms = build_rooms(
        core,
        config,
        profile_of=users.profiles.get,
        invites_blocked=users.account_data.invites_blocked,
        limit=limit,
    )
    new_users = asyncio.Event()
    accounts = build_accounts(
        core,
        config,
        clock=core.clock,
        limiter=limiter,
        depart=depart,
        on_registered=new_users.set,
    )
    sso = await build_sso(
        core,
        config,
        accounts,
        clock=core.clock,
        signing_key=core.identity.signing_key,
        set_display_name=lambda user_id, name: users.profiles.set_field(user_id, DISPLAYNAME, name),
    )
    auto_join = build_auto_join(core, config, accounts, rooms, new_users)
    encryption = build_encryption(core)
    ephemeral = build_ephemeral(core, config)
    erasure = Erasure(store=ErasureStore(core.database), set_presence=ephemeral.presence.set)
    sync = build_sync(core, config, rooms=rooms, users=users, encryption=encryption, ephemeral=ephemeral)
    metrics = Metrics()
    parts: dict[str, Any] = {"config": config, "limiter": limiter, "metrics": metrics, "sso": sso}
    parts |= {"rooms_config": config.rooms, "server_name": config.server.server_name}
    parts |= {"ready": lambda: not sync.notifier.closed, "behind_rows": lambda: core.follower.behind}
    for group in (core, users, rooms, accounts, encryption, ephemeral, sync):
        parts |= _named(group)
    core.keep_doing("joining new users to rooms", auto_join.run)
    loop_lag = _run_always(core, config, metrics, users, accounts, encryption, ephemeral, sync)
    console = build_console(
        core,
        config,
        sync.notifier,
        loop_lag,
        lambda: (application.answered, application.answered_for_others, application.in_flight),
    )
    core.keep_doing("counting", lambda: console.figures.run(console.overview.record))
    parts |= _named(console)
    application = Application(
        {
            "client": bind(client_routes(), parts),
            "health": bind(HEALTH_ROUTES, parts),
            "metrics": bind(METRICS_ROUTES, parts),
            "admin": bind(console_api.ROUTES, parts),
            "console": bind(console_api.PRIVATE_ROUTES, parts),
            "console_metrics": bind(console_api.PRIVATE_METRICS_ROUTES, parts),
        },
        authentication=RequestAuthentication(
            accounts.access_tokens, allow_query_token=config.sessions.allow_access_token_in_query
        ),
        limiter=limiter,
        metrics=metrics,
        database_time=times,
        request_log=request_log,
        seen=accounts.last_seen.note,
    )
    core.closing.append(accounts.passwords.close)
    return Built(application, sync.notifier.close, console, ephemeral.returning_users)


def rates_of(config: Config) -> dict[str, Rate]:
    """Give the configured rate limits."""
    return {name: Rate(rate.per_second, rate.burst_count) for name, rate in config.rate_limits.items()}


def _limiter(config: Config, core: Core, shared_counts: SharedCounts | None) -> RateLimiter:
    limiter = RateLimiter(
        rates_of(config),
        counted=shared_counts.count if shared_counts is not None else None,
    )
    if shared_counts is not None:
        shared_counts.listen(
            lambda name, key, cost: limiter.count_elsewhere(name, key, cost, core.clock.monotonic())
        )
    return limiter


def _run_always(
    core: Core,
    config: Config,
    metrics: Metrics,
    users: UserParts,
    accounts: AccountParts,
    encryption: EncryptionParts,
    ephemeral: EphemeralParts,
    sync: SyncParts,
) -> LoopLag:
    """Start the work that goes on for as long as the process serves; give what measures the event loop."""
    guests = GuestEviction(
        writer=core.writer,
        tail=core.tail,
        guests_in=accounts.accounts.guests_in,
        rooms_with_guests=accounts.accounts.rooms_with_guests,
    )
    loop_lag = LoopLag(float(os.environ.get("RANVIER_LOOP_LAG_PERIOD_S", PERIOD_S)))
    metrics.registry.register(ProcessGauges(config.worker.name, core, sync.notifier))
    metrics.registry.register(loop_lag)
    room_purge = RoomPurge(
        store=RoomPurgeStore(core.database),
        appender=core.appender,
        clock=core.clock,
        retention_ms=config.rooms.forgotten_room_retention_period_ms,
    )
    redaction_retention = RedactionRetention(
        store=RedactionRetentionStore(core.database),
        retention_ms=config.rooms.redaction_retention_period_ms,
    )
    core.run_once("expiry", accounts.expiry.run)
    core.run_fenced("forgotten rooms", room_purge.run)
    core.run_fenced("redacted events", redaction_retention.run)
    core.run_fenced(
        "old rows of the log", LogPruning(database=core.database, transactions=core.transactions).run
    )
    core.run_once("profile changes", users.profile_changes.run)
    core.run_fenced("user directory", users.user_directory_upkeep.run)
    for name, work in {
        "deactivation": accounts.deactivation.run,
        "noting who is seen": accounts.last_seen.run,
        "keeping unread counts": users.unread.keeping.run,
        "waking who shares rooms": sync.notifier.run,
        "emptying inboxes": encryption.inboxes.run,
        "presence": ephemeral.presence.run,
        "waiting for returning users": ephemeral.returning_users.run,
        "typing": ephemeral.typing_users.run,
        "letting guests leave": guests.run,
        "measuring the event loop": loop_lag.run,
    }.items():
        core.keep_doing(name, work)
    return loop_lag


def _named(parts: Any) -> dict[str, object]:
    return {field.name: getattr(parts, field.name) for field in fields(parts)}
