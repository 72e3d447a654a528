"""All endpoints of a process with all that they need: the one place where everything is put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

from ranvier.client_api import (
    account,
    account_data,
    account_moderation,
    aliases,
    context,
    create_room,
    devices,
    directory,
    discovery,
    filters,
    key_backup,
    keys,
    login,
    membership,
    messages,
    notifications,
    presence,
    profiles,
    push_rules,
    receipts,
    registration,
    relations,
    room_events,
    room_state,
    room_summary,
    room_upgrade,
    send,
    sync,
    tags,
    to_device,
    typing,
)
from ranvier.cluster.rate_limits import SharedCounts
from ranvier.config import Config
from ranvier.http.app import Application
from ranvier.http.authentication import RequestAuthentication
from ranvier.http.limits import Rate, RateLimiter
from ranvier.http.loop_lag import LoopLag
from ranvier.http.metrics import HEALTH_ROUTES, METRICS_ROUTES, Metrics
from ranvier.http.request_log import RequestLog
from ranvier.http.route import Route, bind
from ranvier.processes.accounts import AccountParts, build_accounts
from ranvier.processes.core import Core
from ranvier.processes.database_time import DatabaseTimes
from ranvier.processes.encryption import build_encryption
from ranvier.processes.ephemeral import build_ephemeral
from ranvier.processes.gauges import ProcessGauges
from ranvier.processes.room_parts import build_rooms
from ranvier.processes.sync_parts import build_sync
from ranvier.processes.user_data import build_user_data
from ranvier.rooms.guests import GuestEviction

CLIENT_API: Sequence[ModuleType] = (
    account,
    account_data,
    account_moderation,
    aliases,
    context,
    create_room,
    devices,
    directory,
    discovery,
    filters,
    key_backup,
    keys,
    login,
    membership,
    messages,
    notifications,
    presence,
    profiles,
    push_rules,
    receipts,
    registration,
    relations,
    room_events,
    room_state,
    room_summary,
    room_upgrade,
    send,
    sync,
    tags,
    to_device,
    typing,
)
"""Every area of the client-server API that has endpoints here."""


def client_routes() -> list[Route]:
    """Give every route of the client-server API."""
    return [route for module in CLIENT_API for route in module.ROUTES]


async def build_application(
    config: Config,
    core: Core,
    times: DatabaseTimes,
    request_log: RequestLog,
    *,
    shared_counts: SharedCounts | None = None,
) -> tuple[Application, Callable[[], None]]:
    """Build the application, and what tells it that the process is about to stop.

    ``shared_counts`` is there where several processes keep the same rate limits.
    """
    limiter = RateLimiter(
        {name: Rate(rate.per_second, rate.burst_count) for name, rate in config.rate_limits.items()},
        counted=shared_counts.count if shared_counts is not None else None,
    )
    if shared_counts is not None:
        shared_counts.listen(
            lambda name, key, cost: limiter.count_elsewhere(name, key, cost, core.clock.monotonic())
        )

    def limit(name: str, key: str) -> None:
        limiter.check(name, key, core.clock.monotonic())

    users = build_user_data(core, config)
    rooms = build_rooms(
        core,
        config,
        profile_of=users.profiles.get,
        invites_blocked=users.account_data.invites_blocked,
        limit=limit,
    )

    async def depart(user_id: str, erase: bool) -> None:
        await rooms.membership.leave_all(user_id)

    accounts = build_accounts(core, config, clock=core.clock, limiter=limiter, depart=depart)
    encryption = build_encryption(core)
    ephemeral = build_ephemeral(core, config)
    sync_parts = build_sync(
        core, config, rooms=rooms, users=users, encryption=encryption, ephemeral=ephemeral
    )
    guests = GuestEviction(
        server_name=config.server.server_name,
        rooms=core.rooms,
        writer=core.writer,
        tail=core.tail,
        guests_among=accounts.accounts.guests_among,
    )
    await ephemeral.presence.start()
    metrics = Metrics()
    metrics.registry.register(ProcessGauges(core, sync_parts.notifier))
    loop_lag = LoopLag()
    metrics.registry.register(loop_lag)
    parts: dict[str, Any] = {
        **_named(core),
        **_named(users),
        **_named(rooms),
        **_named(accounts),
        **_named(encryption),
        **_named(ephemeral),
        **_named(sync_parts),
        "config": config,
        "limiter": limiter,
        "metrics": metrics,
        "ready": lambda: not sync_parts.notifier.closed,
        "rooms_config": config.rooms,
        "server_name": config.server.server_name,
    }
    for work in (
        accounts.deactivation.run,
        accounts.last_seen.run,
        accounts.expiry.run,
        sync_parts.notifier.run,
        users.profile_changes.run,
        encryption.inboxes.run,
        ephemeral.presence.run,
        ephemeral.typing_users.run,
        guests.run,
        loop_lag.run,
    ):
        core.run_always(work())
    return (
        Application(
            {
                "client": bind(client_routes(), parts),
                "health": bind(HEALTH_ROUTES, parts),
                "metrics": bind(METRICS_ROUTES, parts),
            },
            authentication=RequestAuthentication(
                accounts.access_tokens, allow_query_token=config.sessions.allow_access_token_in_query
            ),
            limiter=limiter,
            metrics=metrics,
            database_time=times,
            request_log=request_log,
            seen=accounts.last_seen.note,
        ),
        lambda: _drain(sync_parts.notifier.close, accounts),
    )


def _named(parts: Any) -> dict[str, object]:
    return {field.name: getattr(parts, field.name) for field in fields(parts)}


def _drain(close_notifier: Callable[[], None], accounts: AccountParts) -> None:
    close_notifier()
    accounts.passwords.close()
