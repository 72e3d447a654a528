"""Which endpoint answers which path, and how endpoints are declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranvier.http.request import Request
from ranvier.http.route import Route, bind, versions
from ranvier.http.router import MethodNotAllowedError, Router
from ranvier.spec.errors import MatrixError


async def handler(request: Request) -> bytes:
    return b"{}"


def router(*paths: str) -> Router:
    return Router(bind([Route("GET", path, handler, name=path) for path in paths], {}))


TABLE = router(
    "/v3/sync",
    "/v3/rooms/{room_id}/state",
    "/v3/rooms/{room_id}/state/{event_type}",
    "/v3/rooms/{room_id}/state/{event_type}/{state_key}",
    "/v3/rooms/public/{x}/y/z",
    "/v3/profile/{user_id}/{field}",
    "/v3/profile/{user_id}/displayname",
    "/v3/pushrules/",
    "/v3/pushrules/global/",
    "/v3/pushrules/{scope}/{kind}",
    "/files/{name...}",
    "/files/index",
)


@pytest.mark.parametrize(
    ("path", "name", "params"),
    [
        ("/v3/sync", "/v3/sync", {}),
        ("/v3/%73ync", "/v3/sync", {}),
        ("/v3/rooms/!a/state", "/v3/rooms/{room_id}/state", {"room_id": "!a"}),
        (
            "/v3/rooms/!a/state/m/",
            "/v3/rooms/{room_id}/state/{event_type}/{state_key}",
            {"room_id": "!a", "event_type": "m", "state_key": ""},
        ),
        (
            "/v3/rooms/!a/state/m/a%2Fb",
            "/v3/rooms/{room_id}/state/{event_type}/{state_key}",
            {"room_id": "!a", "event_type": "m", "state_key": "a/b"},
        ),
        # 'public' is a literal elsewhere, yet may be a room's name.
        ("/v3/rooms/public/state", "/v3/rooms/{room_id}/state", {"room_id": "public"}),
        ("/v3/rooms/public/q/y/z", "/v3/rooms/public/{x}/y/z", {"x": "q"}),
        ("/v3/profile/@a/displayname", "/v3/profile/{user_id}/displayname", {"user_id": "@a"}),
        ("/v3/profile/@a/other", "/v3/profile/{user_id}/{field}", {"user_id": "@a", "field": "other"}),
        ("/v3/pushrules/", "/v3/pushrules/", {}),
        ("/v3/pushrules/global/", "/v3/pushrules/global/", {}),
        ("/v3/pushrules/global/room", "/v3/pushrules/{scope}/{kind}", {"scope": "global", "kind": "room"}),
        ("/files/a/b/c", "/files/{name...}", {"name": "a/b/c"}),
        ("/files/index", "/files/index", {}),
    ],
)
def test_paths(path: str, name: str, params: dict[str, str]) -> None:
    """A request would reach the wrong endpoint, or none."""
    found = TABLE.find("GET", path)
    assert (found.bound.route.name, found.params) == (name, params)


@pytest.mark.parametrize(
    "path", ["/", "", "/v3", "/v3/sync/", "//v3/sync", "/v3/rooms", "/v3/pushrules", "/v4/sync"]
)
def test_unknown_paths(path: str) -> None:
    """A client could not tell that the server lacks something."""
    with pytest.raises(MatrixError) as caught:
        TABLE.find("GET", path)
    assert (caught.value.status, caught.value.errcode) == (404, "M_UNRECOGNIZED")


def test_other_methods() -> None:
    """A client could not tell a wrong method from a feature that the server lacks."""
    with pytest.raises(MethodNotAllowedError) as caught:
        TABLE.find("PUT", "/v3/profile/@a/displayname")
    assert (caught.value.status, caught.value.allow) == (405, "GET, OPTIONS")


def test_a_literal_with_another_method_does_not_hide_a_parameter() -> None:
    """One endpoint more would make another one disappear."""
    table = Router(bind([Route("GET", "/a/b", handler), Route("PUT", "/a/{x}", handler)], {}))
    assert table.find("PUT", "/a/b").params == {"x": "b"}


@given(st.text(alphabet="/abv3%{}.F0\x7f é", max_size=30))
def test_any_path(path: str) -> None:
    """Some path would be a 500."""
    try:
        TABLE.find("GET", "/" + path)
    except MatrixError as error:
        status = error.status
    else:
        status = 200
    assert status in (200, 400, 404, 405)


def test_two_endpoints_on_one_path() -> None:
    """One of the two would never be called."""
    with pytest.raises(ValueError, match="both GET /a"):
        router("/a", "/a")


@pytest.mark.parametrize("path", ["a", "/{x}/{x}"])
def test_bad_declarations(path: str) -> None:
    """A mistake in a declaration would only show when a user meets it."""
    with pytest.raises(ValueError, match="bad path"):
        Route("GET", path, handler)


def test_placement_names_a_parameter() -> None:
    """Requests for one room would be spread over all workers."""
    with pytest.raises(ValueError, match="placed by"):
        Route("GET", "/{room_id}", handler, placed_by="roomid")
    assert Route("GET", "/{room_id}", handler, placed_by="user").placed_by == "user"


def test_versions() -> None:
    """Older clients would not find the endpoint."""
    paths = versions("v3", "r0")("/sync")
    assert Route("GET", paths, handler).paths == ("/_matrix/client/v3/sync", "/_matrix/client/r0/sync")


class Store:
    """A part."""


class OtherStore:
    """Another part."""


async def needs(request: Request, *, store: Store, pause_s: float = 1.0) -> bytes:
    return repr((type(store).__name__, pause_s)).encode()


async def optional(request: Request, *, store: Store | None, ready: Callable[[], bool]) -> bytes:
    return b"{}"


async def test_parts_are_given_by_name() -> None:
    """No endpoint would work."""
    (bound,) = bind([Route("GET", "/a", needs)], {"store": Store(), "unused": 1})
    assert await bound.run(None) == b"('Store', 1.0)"
    (bound,) = bind([Route("GET", "/a", needs)], {"store": Store(), "pause_s": 2.5})
    assert await bound.run(None) == b"('Store', 2.5)"
    bind([Route("GET", "/a", optional)], {"store": None, "ready": lambda: True})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "no part named 'store'"),
        ({"store": OtherStore()}, "store is a OtherStore"),
        ({"store": None}, "store is a NoneType"),
        ({"store": Store(), "pause_s": "x"}, "pause_s is a str"),
    ],
)
def test_wrong_parts_fail_at_start(parts: dict[str, Any], message: str) -> None:
    """A mistake in the wiring would only show when a user meets it."""
    with pytest.raises(TypeError, match=message):
        bind([Route("GET", "/a", needs)], parts)
