"""One request as a handler sees it: parameters, headers, body and who asks, parsed when asked for."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, cast, overload
from urllib.parse import parse_qsl

import msgspec

from ranvier.http.json_body import parse
from ranvier.http.route import Route
from ranvier.spec.errors import bad_json, invalid_param, missing_param
from ranvier.users.requester import Requester

MAX_QUERY_FIELDS = 200
# The limits of a signed 64-bit number: what the database's bigint and every client can hold.
MAX_INT = 2**63 - 1
_LONGEST_NUMBER = 20

T = TypeVar("T")


class Required:
    """Mark a parameter that has no default."""


REQUIRED = Required()


class Request:
    """Hold one request. Made by the application; in tests by hand with what the handler looks at.

    ``path`` and ``query_string`` are raw, ``params`` the decoded pieces of the path.
    ``ip`` is the client's address (from X-Forwarded-For where the listener says so; empty on a UNIX socket),
    ``scheme`` http or https. ``began_s`` is when its head was complete, by ``time.perf_counter``.
    """

    __slots__ = (
        "_headers",
        "_query",
        "_raw_headers",
        "began_s",
        "body",
        "id",
        "ip",
        "method",
        "params",
        "path",
        "query_string",
        "requester_or_none",
        "route",
        "scheme",
    )

    def __init__(
        self,
        method: str,
        path: str,
        route: Route,
        *,
        params: dict[str, str] | None = None,
        query_string: bytes = b"",
        headers: list[tuple[bytes, bytes]] | None = None,
        ip: str = "",
        scheme: str = "http",
        body: bytes = b"",
        requester: Requester | None = None,
        request_id: str = "",
        began_s: float | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.route = route
        self.params: dict[str, str] = params if params is not None else {}
        self.query_string = query_string
        self.ip = ip
        self.scheme = scheme
        self.body = body
        self.requester_or_none = requester
        self.id = request_id
        self.began_s = time.perf_counter() if began_s is None else began_s
        self._raw_headers = headers if headers is not None else []
        self._headers: dict[str, str] | None = None
        self._query: dict[str, list[str]] | None = None

    @property
    def age_s(self) -> float:
        """Give the seconds since its head was complete."""
        return time.perf_counter() - self.began_s

    @property
    def user(self) -> Requester:
        """Give the user who asks; there always is one where the route's ``auth`` demands one."""
        requester = self.requester_or_none
        assert requester is not None, f"{self.route.name} has no user: its route asks for none"
        return requester

    @property
    def headers(self) -> Mapping[str, str]:
        """Give the headers by lower-case name; repeated ones are joined with commas."""
        if self._headers is None:
            headers: dict[str, str] = {}
            for raw_name, raw_value in self._raw_headers:
                name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            self._headers = headers
        return self._headers

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Give the headers as they came, with lower-case names."""
        return self._raw_headers

    @property
    def user_agent(self) -> str:
        """Give the client's name of itself, empty where it has none."""
        return user_agent(self._raw_headers)

    @property
    def query(self) -> Mapping[str, list[str]]:
        """Give the decoded query: every value of every name, in order.

        Raises ``M_INVALID_PARAM`` for text that is not UTF-8 or holds a NUL, and for too many fields.
        """
        if self._query is None:
            self._query = parse_query(self.query_string)
        return self._query

    @overload
    def str_param(self, name: str) -> str: ...
    @overload
    def str_param(self, name: str, default: T) -> str | T: ...
    def str_param(self, name: str, default: Any = REQUIRED) -> Any:
        """Give a query parameter; the first if it comes several times. Raises ``M_MISSING_PARAM``."""
        values = self.query.get(name)
        if values is not None:
            return values[0]
        if default is REQUIRED:
            raise missing_param(f"Missing query parameter '{name}'")
        return default

    @overload
    def int_param(self, name: str, *, minimum: int = 0, maximum: int = MAX_INT) -> int: ...
    @overload
    def int_param(self, name: str, default: T, minimum: int = 0, maximum: int = MAX_INT) -> int | T: ...
    def int_param(self, name: str, default: Any = REQUIRED, minimum: int = 0, maximum: int = MAX_INT) -> Any:
        """Give a whole number. Raises ``M_INVALID_PARAM`` for another text or a number outside the bounds.

        A caller that wants to cap a number rather than refuse it uses ``min`` on the answer.
        """
        text = self.str_param(name, None if default is not REQUIRED else REQUIRED)
        if not isinstance(text, str):
            return default
        # int() also takes underscores, spaces, other scripts' digits and texts of any length: none is meant.
        if len(text) > _LONGEST_NUMBER or not text.isascii() or not text.removeprefix("-").isdigit():
            raise invalid_param(f"Query parameter '{name}' must be an integer")
        value = int(text)
        if not minimum <= value <= maximum:
            raise invalid_param(f"Query parameter '{name}' must be between {minimum} and {maximum}")
        return value

    def bool_param(self, name: str, default: bool = False) -> bool:
        """Give a truth value, written ``true`` or ``false``. Raises ``M_INVALID_PARAM`` for another text."""
        text = self.str_param(name, None)
        if text is None:
            return default
        if text not in ("true", "false"):
            raise invalid_param(f"Query parameter '{name}' must be 'true' or 'false'")
        return text == "true"

    def list_param(self, name: str) -> list[str]:
        """Give every value of a parameter that may come several times; none is an empty list."""
        return self.query.get(name, [])

    def choice_param(self, name: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """Give a parameter that must be one of some words; without a default it is required."""
        text = self.str_param(name) if default is None else self.str_param(name, default)
        if text not in choices:
            raise invalid_param(f"Query parameter '{name}' must be one of: {', '.join(choices)}")
        return text

    def json(self, shape: type[T], *, allow_empty: bool = False) -> T:
        """Read the body into a msgspec struct (or another type that msgspec knows).

        With ``allow_empty`` no body counts as ``{}``. Raises ``M_NOT_JSON`` or ``M_BAD_JSON``; the message
        names the field that is wrong.
        """
        body = self.body or (b"{}" if allow_empty else b"")
        parse(body)
        try:
            value: T = _decoder(cast(Hashable, shape)).decode(body)
        except msgspec.DecodeError as error:
            raise bad_json(str(error)) from None
        return value

    def json_object(self, *, allow_empty: bool = False) -> dict[str, Any]:
        """Read the body as a JSON object. Raises ``M_NOT_JSON``, and ``M_BAD_JSON`` for another value."""
        value = parse(self.body or (b"{}" if allow_empty else b""))
        if type(value) is not dict:
            raise bad_json("Body must be a JSON object")
        return value


def user_agent(headers: list[tuple[bytes, bytes]]) -> str:
    """Give a client's name of itself, empty where it has none."""
    # Asked for on every request: no reason to decode all headers.
    for name, value in headers:
        if name == b"user-agent":
            return value.decode("latin-1")
    return ""


@cache
def _decoder(shape: Hashable) -> msgspec.json.Decoder[Any]:
    """Make a decoder once: it costs a millisecond, and there are as many as shapes in the code."""
    return msgspec.json.Decoder(cast(Any, shape))


def parse_query(query_string: bytes) -> dict[str, list[str]]:
    """Decode a query: every value of every name, in order. Raises ``M_INVALID_PARAM``, as ``query`` does."""
    query: dict[str, list[str]] = {}
    if not query_string:
        return query
    try:
        fields = parse_qsl(
            query_string.decode("utf-8"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except ValueError:
        raise invalid_param(f"Query is not UTF-8 or has more than {MAX_QUERY_FIELDS} fields") from None
    for name, value in fields:
        if "\0" in value:  # no text of PostgreSQL holds it
            raise invalid_param(f"Query parameter '{name[:100]}' holds the character NUL")
        query.setdefault(name, []).append(value)
    return query
