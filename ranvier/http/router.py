"""From a raw path to the endpoint that answers it: a trie of path segments."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote

from ranvier.http.route import BoundRoute, parameters
from ranvier.spec.errors import MatrixError

_KNOWN_SEGMENTS: Final = 4096
_KNOWN_LENGTH: Final = 300


class Match(NamedTuple):
    """Say which endpoint answers, and the decoded pieces of the path by their names."""

    bound: BoundRoute
    params: dict[str, str]


class MethodNotAllowedError(MatrixError):
    """Say that the path is known but not with this method (405); ``allow`` says which are."""

    def __init__(self, allow: Iterable[str]) -> None:
        super().__init__("M_UNRECOGNIZED", 405, "Unrecognized request: this path does not take this method")
        self.allow = ", ".join(sorted([*allow, "OPTIONS"]))


class _Node:
    """Stand for one place in the paths: what may follow, and the endpoints that end here, by method."""

    __slots__ = ("ends", "literals", "parameter", "rest")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.rest: _Node | None = None
        self.ends: dict[str, tuple[BoundRoute, tuple[str, ...]]] = {}


class Router:
    """Find endpoints. A literal segment wins over a parameter, a parameter over ``{name...}``."""

    def __init__(self, routes: Iterable[BoundRoute]) -> None:
        self._root = _Node()
        self._exact: dict[tuple[str, bytes], BoundRoute] = {}
        self._named: dict[tuple[str, str], BoundRoute | None] = {}
        for bound in routes:
            name = bound.route.method, bound.route.name
            self._named[name] = bound if name not in self._named else None
            for path in bound.route.paths:
                self._add(path, bound)
                if "{" not in path:
                    self._exact[bound.route.method, path.encode()] = bound

    def _add(self, path: str, bound: BoundRoute) -> None:
        node = self._root
        for segment in path[1:].split("/"):
            if segment.endswith("...}"):
                node.rest = node.rest or _Node()
                node = node.rest
            elif segment.startswith("{"):
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        method = bound.route.method
        if method in node.ends:
            raise ValueError(
                f"{bound.route.name} and {node.ends[method][0].route.name} are both {method} {path}"
            )
        node.ends[method] = (bound, parameters(path))

    def find_exact(self, method: str, raw_path: bytes) -> BoundRoute | None:
        """Find an endpoint whose path has no parameters and came as it is declared, cheaply."""
        return self._exact.get((method, raw_path))

    def named(self, method: str, name: str) -> BoundRoute | None:
        """Find an endpoint by its name, if no other has that."""
        return self._named.get((method, name))

    def find(self, method: str, raw_path: str) -> Match:
        """Find who answers a method and a raw (still percent-encoded) path.

        Raises 404 ``M_UNRECOGNIZED`` for an unknown path, 405 for another method, 400 for bad UTF-8 and NUL.
        Source: client-server API, "Common error codes".
        """
        # Split before decoding: '%2F' inside an identifier belongs to its segment.
        segments = raw_path[1:].split("/")
        if "%" in raw_path:
            if "%00" in raw_path:  # no text of PostgreSQL holds it
                raise bad_path()
            segments = _decode(segments)
        node = self._root
        values: list[str] = []
        for segment in segments:
            following = node.literals.get(segment)
            if following is not None and (node.parameter is not None or node.rest is not None):
                return self._search(method, segments)  # the literal may lead nowhere
            if following is None:
                following = node.parameter
                if following is None or node.rest is not None:
                    return self._search(method, segments)
                values.append(segment)
            node = following
        end = node.ends.get(method)
        if end is None:
            return self._search(method, segments)
        return Match(end[0], dict(zip(end[1], values, strict=True)))

    def _search(self, method: str, segments: list[str]) -> Match:
        """Try every way through the trie, the most literal first; ``find`` needs it for few paths only."""
        allowed: list[str] = []
        open_ways: list[tuple[_Node, int, tuple[str, ...]]] = [(self._root, 0, ())]
        while open_ways:
            node, at, values = open_ways.pop()
            if at == len(segments):
                end = node.ends.get(method)
                if end is not None:
                    return Match(end[0], dict(zip(end[1], values, strict=True)))
                allowed += node.ends
                continue
            if node.rest is not None:
                open_ways.append((node.rest, len(segments), (*values, "/".join(segments[at:]))))
            if node.parameter is not None:
                open_ways.append((node.parameter, at + 1, (*values, segments[at])))
            literal = node.literals.get(segments[at])
            if literal is not None:
                open_ways.append((literal, at + 1, values))
        if allowed:
            raise MethodNotAllowedError(set(allowed))
        raise MatrixError("M_UNRECOGNIZED", 404, "Unrecognized request")


def _unquote(segment: str) -> str:
    return _unquote_known(segment) if len(segment) <= _KNOWN_LENGTH else unquote(segment, errors="strict")


@lru_cache(_KNOWN_SEGMENTS)
def _unquote_known(segment: str) -> str:
    # Mostly the id of a room in which somebody writes, again and again.
    return unquote(segment, errors="strict")


def _decode(segments: list[str]) -> list[str]:
    try:
        return [_unquote(segment) if "%" in segment else segment for segment in segments]
    except UnicodeDecodeError:
        raise bad_path() from None


def bad_path() -> MatrixError:
    """Say that the path is not UTF-8 once it is decoded, or holds a NUL (400 ``M_INVALID_PARAM``)."""
    return MatrixError("M_INVALID_PARAM", 400, "The path is not valid UTF-8, or holds the character NUL")
