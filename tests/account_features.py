"""A server with only what users keep for themselves, for the tests of these endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from ranvier.client_api import account_data as account_data_api
from ranvier.client_api import filters as filters_api
from ranvier.client_api import profiles as profiles_api
from ranvier.client_api import push_rules as push_rules_api
from ranvier.client_api import tags as tags_api
from ranvier.http.app import Application
from ranvier.http.authentication import RequestAuthentication
from ranvier.http.limits import RateLimiter
from ranvier.http.listeners import Listener, ListenerSettings, TcpAddress
from ranvier.http.metrics import Metrics
from ranvier.http.route import Route, bind
from ranvier.spec.filters import NO_FILTER, Filter
from ranvier.storage.account_data import AccountDataStore
from ranvier.storage.filters import FilterStore
from ranvier.storage.profiles import ProfileStore
from ranvier.storage.push_rules import PushRuleStore
from ranvier.sync.context import SyncContext
from ranvier.users.account_data import AccountData, IgnoredUsers
from ranvier.users.filters import Filters
from ranvier.users.profile_changes import ProfileChanges
from ranvier.users.profiles import ProfileRules, Profiles
from ranvier.users.push_rules import PushRules
from ranvier.users.requester import Requester
from ranvier.users.tags import Tags
from ranvier.wire.tokens import Token
from tests.core import SERVER_NAME, Core, running_core
from tests.http.edge import Answer, Client, Edge, Waiting, client

ALICE, BOB, GUEST = "@alice:example.org", "@bob:example.org", "@1:example.org"
HOLDERS = {
    "alice": Requester(ALICE, "PHONE"),
    "bob": Requester(BOB, "WEB"),
    "guest": Requester(GUEST, "WEB", is_guest=True),
    "suspended": Requester(ALICE, "PHONE", suspended=True),
}
ROUTES: list[Route] = [
    *account_data_api.ROUTES,
    *tags_api.ROUTES,
    *push_rules_api.ROUTES,
    *filters_api.ROUTES,
    *profiles_api.ROUTES,
]
PREFIX = "/_matrix/client/v3"


class Tokens:
    """Know the tokens of ``HOLDERS``."""

    async def authenticate(self, token: str) -> Requester:
        return HOLDERS[token]


@dataclass
class Features:
    """What users keep for themselves, on a core, and a client of each user."""

    core: Core
    account_data: AccountData
    account_data_store: AccountDataStore
    ignored: IgnoredUsers
    tags: Tags
    push_rules: PushRules
    filters: Filters
    profiles: Profiles
    profile_changes: ProfileChanges
    http: Client

    async def ask(self, user: str | None, method: str, path: str, body: Any = None) -> Answer:
        """Make a request under /_matrix/client/v3."""
        headers = {} if user is None else {"Authorization": f"Bearer {user}"}
        raw = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        return await self.http.ask(method, PREFIX + path, raw, **headers)

    async def ok(self, user: str | None, method: str, path: str, body: Any = None) -> Any:
        """Make a request that must succeed, and give its JSON."""
        answer = await self.ask(user, method, path, body)
        assert answer.status == 200, answer.json
        return answer.json

    async def refused(self, user: str | None, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Make a request that must fail, and give status and error code."""
        answer = await self.ask(user, method, path, body)
        return answer.status, answer.json["errcode"]

    def context(
        self,
        user_id: str,
        joined: list[str],
        *,
        since: int | None = None,
        filter: Filter = NO_FILTER,
        in_tail: bool = True,
    ) -> SyncContext:
        """Give the context of a sync answer up to now."""
        return SyncContext(
            user_id=user_id,
            device_id="PHONE",
            filter=filter,
            since=None if since is None else Token(since),
            upto=Token(self.core.tail.pos),
            joined=joined,
            newly_joined=frozenset(joined) if since is None else frozenset(),
            left=frozenset(),
            in_tail=in_tail and since is not None,
        )


async def make_accounts(core: Core) -> None:
    """Make the accounts of the users of these tests, where there are none."""
    for user_id in (ALICE, BOB, GUEST):
        await core.database.execute(
            "INSERT INTO accounts (user_id, created_ts) VALUES ($1, 0) ON CONFLICT DO NOTHING", user_id
        )


@asynccontextmanager
async def running_features(
    dsn: str, *, profile_rules: Mapping[str, Any] | None = None
) -> AsyncIterator[Features]:
    """Run the core and these endpoints on a database."""
    async with running_core(dsn) as core:
        await make_accounts(core)
        store = AccountDataStore(core.database)
        account_data = AccountData(store=store, appender=core.appender, tail=core.tail)
        tags = Tags(store=store, account_data=account_data)
        push_rules = PushRules(store=PushRuleStore(core.database), appender=core.appender, tail=core.tail)
        filters = Filters(store=FilterStore(core.database))
        profile_store = ProfileStore(core.database)
        profiles = Profiles(
            store=profile_store,
            appender=core.appender,
            tail=core.tail,
            memberships=core.memberships,
            rules=ProfileRules(SERVER_NAME, **(profile_rules or {})),
        )
        profile_changes = ProfileChanges(
            store=profile_store, memberships=core.memberships, writer=core.writer, tail=core.tail
        )
        parts = {
            "account_data": account_data,
            "tags": tags,
            "push_rules": push_rules,
            "filters": filters,
            "profiles": profiles,
        }
        async with _serving(parts) as http:
            yield Features(
                core=core,
                account_data=account_data,
                account_data_store=store,
                ignored=IgnoredUsers(store=store, tail=core.tail),
                tags=tags,
                push_rules=push_rules,
                filters=filters,
                profiles=profiles,
                profile_changes=profile_changes,
                http=http,
            )


@asynccontextmanager
async def _serving(parts: Mapping[str, object]) -> AsyncIterator[Client]:
    metrics = Metrics()
    application = Application(
        {"client": bind(ROUTES, parts)},
        authentication=RequestAuthentication(Tokens()),
        limiter=RateLimiter({}),
        metrics=metrics,
    )
    listener = Listener(
        ListenerSettings((TcpAddress("127.0.0.1", 0),)), application.endpoint(("client",), x_forwarded=False)
    )
    await listener.start()
    try:
        async with client(Edge(application, listener, Waiting(), metrics, [True])) as http:
            yield http
    finally:
        await listener.stop(grace_s=2)
