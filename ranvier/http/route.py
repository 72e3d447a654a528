"""Endpoints as data: ``ROUTES`` lists that the router, the proxy rules and the docs are derived from.

A module of endpoints declares ``ROUTES`` at its top level and stays pure data; ``bind`` gives each
handler the objects that it names, once, at start.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Protocol

from ranvier.users.requester import Requester

DEFAULT_MAX_BODY = 1024 * 1024
PLACED_BY_USER = "user"
PLACED_WITH_WRITERS = "writers"
ONCE_ID = "once_id"
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH"})
_PARAMETER = re.compile(r"\{([a-z_][a-z0-9_]*)(\.\.\.)?\}")

# Any callable: its first parameter is the Request, its keyword-only ones are filled by ``bind``.
Handler = Callable[..., Awaitable[Any]]
# The same, but its first parameter is the query without the value of ``since``, and it waits for nothing.
AtOnce = Callable[..., "Repeated | None"]


class Repeated(Protocol):
    """A request that comes again and again, each time with another ``since``."""

    def begin(self, requester: Requester, since: bytes) -> bytes | Parked | None:
        """Give the answer as JSON, or what stands for the request while it waits; None for the handler.

        It changes nothing that the handler would not change in the same way again. Raises MatrixError.
        """


class Parked(Protocol):
    """A request that waits without a task of its own: nothing but this object stands for it."""

    def wait(self, resume: Callable[[], bool]) -> None:
        """Begin to wait; ``resume`` is called once, on the event loop, when the wait is over.

        It tells whether the answer is made: if not, a task does it.
        """

    def answer(self) -> bytes | None:
        """Give the answer after the wait; None if the handler is to make it."""

    def leave(self) -> None:
        """End the wait: whoever asked is gone. ``resume`` is not called any more."""


class Auth(Enum):
    """Say who may call an endpoint."""

    NONE = "none"  # nobody is asked for a token
    OPTIONAL = "optional"  # a token is checked when there is one
    USER = "user"  # registered users
    GUEST = "guest"  # registered users and guests
    LOCKED = "locked"  # the same, even if their account is locked (logging out)
    ADMIN = "admin"  # server administrators


@dataclass(frozen=True, slots=True)
class Route:
    """Declare one endpoint.

    ``path`` is one path or several that mean the same (see ``versions``); ``{name}`` takes one segment, and a
    last ``{name...}`` all that remain. ``placed_by`` is the path parameter (or ``"user"``) whose worker
    is best asked; ``"writers"`` means any that rooms are placed on. ``limit`` names the rate limit applied
    before the handler runs, per user or, without a user, per address. ``max_body`` is in bytes.
    ``long_poll`` marks a handler that waits and is cancelled when its client goes away; others always finish
    what they began. ``name`` (the handler's own by default) is what metrics and logs call the endpoint.
    ``follows`` is false for what says nothing of the log: it is answered by a worker that is behind, too.
    ``once`` marks what is to be done once although a proxy in front sends it to one worker after the other:
    its handler finds what the proxy calls the request among the pieces of the path, as ``ONCE_ID``, where it
    calls it something.

    ``at_once`` is for what is asked for most: a plain function that reads what such a request always says,
    and gives what is then tried before the handler, each time, without a task; None where that is no use.
    """

    method: str
    path: str | tuple[str, ...]
    handler: Handler
    auth: Auth = Auth.USER
    placed_by: str | None = None
    limit: str | None = None
    max_body: int = DEFAULT_MAX_BODY
    long_poll: bool = False
    follows: bool = True
    once: bool = False
    at_once: AtOnce | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", getattr(self.handler, "__name__", "unnamed"))
        if self.method not in _METHODS:
            raise ValueError(f"{self.name}: unknown method {self.method!r}")
        for path in self.paths:
            self._check_path(path)

    def _check_path(self, path: str) -> None:
        names = parameters(path)
        if not path.startswith("/") or len(set(names)) != len(names):
            raise ValueError(f"{self.name}: bad path {path!r}")
        if self.placed_by not in (None, PLACED_BY_USER, PLACED_WITH_WRITERS, *names):
            raise ValueError(f"{self.name}: placed by {self.placed_by!r}, which is not in {path!r}")

    @property
    def paths(self) -> tuple[str, ...]:
        """Give every path of the endpoint, the preferred one first."""
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclass(frozen=True, slots=True)
class BoundRoute:
    """Hold a route and its handler with the objects that it needs: call ``run(request)``."""

    route: Route
    run: Callable[..., Awaitable[Any]]
    at_once: AtOnce | None = None


def parameters(path: str) -> tuple[str, ...]:
    """Give the names of the parameters in a path, from left to right."""
    return tuple(match[1] for match in _PARAMETER.finditer(path))


def versions(*names: str, prefix: str = "/_matrix/client/") -> Callable[[str], tuple[str, ...]]:
    """Make a function that puts every version's prefix before a path.

    ``V3 = versions("v3", "r0")``, then ``Route("GET", V3("/sync"), …)``. The preferred version comes first.
    """

    def paths(path: str) -> tuple[str, ...]:
        return tuple(f"{prefix}{name}{path}" for name in names)

    return paths


def bind(routes: Iterable[Route], parts: Mapping[str, object]) -> list[BoundRoute]:
    """Give each handler the parts that its keyword-only parameters name.

    Raises ``TypeError`` when a part is missing (and the parameter has no default) or is of another class
    than the annotation says.
    """
    return [
        BoundRoute(
            route,
            _with_parts(route, route.handler, parts),
            None if route.at_once is None else _with_parts(route, route.at_once, parts),
        )
        for route in routes
    ]


def _with_parts(route: Route, handler: Callable[..., Any], parts: Mapping[str, object]) -> Callable[..., Any]:
    signature = inspect.signature(handler)
    wanted = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    chosen: dict[str, object] = {}
    for parameter in wanted:
        if parameter.name in parts:
            part = parts[parameter.name]
            _check_part(route, handler, parameter, part)
            chosen[parameter.name] = part
        elif parameter.default is inspect.Parameter.empty:
            raise TypeError(f"{route.name}: no part named {parameter.name!r}")
    return partial(handler, **chosen) if chosen else handler


def _check_part(
    route: Route, handler: Callable[..., Any], parameter: inspect.Parameter, part: object
) -> None:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = _resolve(annotation, handler)
    if not _fits(part, annotation):
        raise TypeError(f"{route.name}: {parameter.name} is a {type(part).__name__}, not {annotation}")


def _resolve(annotation: str, handler: Callable[..., Any]) -> Any:
    """Find what an annotation written as text means; a name imported only for type checks stays text."""
    inner = inspect.unwrap(handler)
    namespace = getattr(inner, "__globals__", None) or vars(sys.modules[inner.__module__])
    try:
        return eval(annotation, namespace)
    except NameError:
        return annotation


def _fits(part: object, annotation: Any) -> bool:
    """Tell whether a part is an instance of the annotation, as far as that can be told at run time."""
    if annotation is inspect.Parameter.empty or annotation is Any:
        return True
    if isinstance(annotation, str):
        names = {re.sub(r"\[.*", "", name).strip().rpartition(".")[2] for name in annotation.split("|")}
        return bool(names & {cls.__name__ for cls in type(part).__mro__}) or (
            part is None and "None" in names
        )
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_fits(part, option) for option in typing.get_args(annotation))
    cls = typing.get_origin(annotation) or annotation
    if cls is None:
        return part is None
    if not isinstance(cls, type) or (
        getattr(cls, "_is_protocol", False) and not getattr(cls, "_is_runtime_protocol", False)
    ):
        return True
    return isinstance(part, cls)
