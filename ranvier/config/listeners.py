"""``listeners``: where the server answers, and with what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranvier.config.reader import Section, WrongValueError, text, texts

RESOURCES = ("client", "federation", "media", "metrics", "health", "replication", "console")
_PRIVATE = frozenset({"console", "metrics", "health"})
_FOR_WORKERS = frozenset({"replication", "health"})
_ALIASES = {"keys": "federation", "openid": "federation"}
_POINTLESS = {"static": "it serves no static pages", "consent": "it has no consent pages"}
# What this version has endpoints for, and what it does not.
_ANSWERED = frozenset({"client", "metrics", "replication", "console"})
_SILENT = frozenset({"federation", "media", *_ALIASES})
_ALL_ADDRESSES = ("::", "0.0.0.0")


@dataclass(frozen=True)
class Listener:
    """One place where requests come in: a TCP port on some addresses, or a UNIX socket (``path``).

    ``mode`` are the socket's permission bits. ``resources`` are names of ``RESOURCES``.
    """

    resources: frozenset[str]
    port: int = 0
    bind_addresses: tuple[str, ...] = ()
    path: Path | None = None
    mode: int = 0o666
    tls: bool = False
    x_forwarded: bool = False

    @property
    def definition(self) -> str:
        """Give all of it in a line, by which another process finds the same listener and no other one."""
        where = str(self.path) if self.path is not None else f"{','.join(self.bind_addresses)} {self.port}"
        how = f"mode={self.mode:o} tls={self.tls} x_forwarded={self.x_forwarded}"
        return f"{where} {how} {','.join(sorted(self.resources))}"


DEFAULT_LISTENER = Listener(
    frozenset({"client", "federation", "media", "health"}), port=8008, bind_addresses=("127.0.0.1",)
)


def is_for_workers(listener: Listener) -> bool:
    """Tell whether a listener is there for other workers alone."""
    return _are_for_workers(listener.resources)


def _are_for_workers(resources: frozenset[str]) -> bool:
    return "replication" in resources and resources <= _FOR_WORKERS


def _default_mode(resources: frozenset[str]) -> int:
    # Who may open these acts as any user, or ends workers, and is asked for nothing.
    return 0o600 if _are_for_workers(resources) or "console" in resources else 0o666


def read_listeners(root: Section, key: str = "listeners") -> tuple[Listener, ...]:
    """Read the listeners; two of them on one place are an error."""
    found = [listener for section in root.sections(key) if (listener := _read_listener(section))]
    for place in _given_twice(place for listener in found for place in _places(listener)):
        root.error(key, f"two listeners use {place}")
    return tuple(found)


def _read_listener(section: Section) -> Listener | None:
    kind = section.choice("type", ("http", "metrics", "manhole"), "http")
    if kind == "manhole":
        section.ignore(dict.fromkeys(section.names(), ""), "Ranvier has no manhole; this has no effect")
        return None
    path = section.path("path")
    port = section.integer("port", 0, minimum=1, maximum=65535)
    resources = frozenset({"metrics", "health"}) if kind == "metrics" else _read_resources(section)
    address = section.optional_text("bind_address")
    addresses = section.texts("bind_addresses", (address,) if address else _ALL_ADDRESSES)
    listener = Listener(
        resources=resources,
        port=port,
        bind_addresses=() if path else addresses,
        path=path,
        mode=section.take("mode", _mode, _default_mode(resources)),
        tls=section.boolean("tls", False),
        x_forwarded=section.boolean("x_forwarded", path is not None),
    )
    if path is not None and (section.has("port") or section.has("bind_addresses") or listener.tls):
        section.error("path", "a listener has either a path or a port with bind_addresses and tls")
    elif path is None and not section.has("port"):
        section.error("port", "expected a port, or a path for a UNIX socket")
    if "console" in resources and (path is None or not resources <= _PRIVATE):
        section.error(
            "resources",
            "console asks nobody who they are: expected a UNIX socket (path) of its own, with nothing else "
            "than metrics and health (administrators with an access token find it at every client listener)",
        )
    section.ignore(
        {"additional_resources": "", "request_id_header": "", "tag": ""}, "Ranvier has no use for this"
    )
    section.finish()
    return listener


def _read_resources(section: Section) -> frozenset[str]:
    names: set[str] = {"health"}
    for resource in section.sections("resources"):
        names.update(resource.take("names", _resource_names, frozenset()))
        for name in sorted(_POINTLESS.keys() & names):
            resource.warn("names", f"Ranvier answers nothing for {name}: {_POINTLESS[name]}")
        resource.ignore({"compress": ""}, "left to the reverse proxy; this has no effect")
        resource.finish()
    if not section.has("resources"):
        return DEFAULT_LISTENER.resources
    if names & _SILENT and not names & _ANSWERED:
        section.warn(
            "resources", "this version answers nothing for other servers and for media: only health is left"
        )
    return frozenset(_ALIASES.get(name, name) for name in names - _POINTLESS.keys())


def _resource_names(value: Any) -> frozenset[str]:
    known = (*RESOURCES, *_ALIASES, *_POINTLESS)
    names = texts(value)
    if not set(names) <= set(known):
        raise WrongValueError("names among " + ", ".join(known))
    return frozenset(names)


def _mode(value: Any) -> int:
    # YAML 1.1 reads 0660 as an octal number; in quotes it comes as a text.
    try:
        mode = value if isinstance(value, int) and not isinstance(value, bool) else int(text(value), 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise WrongValueError("permission bits such as 0660")
    return mode


def _places(listener: Listener) -> list[str]:
    if listener.path is not None:
        return [str(listener.path)]
    return [f"port {listener.port} on {address}" for address in listener.bind_addresses]


def _given_twice(places: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [place for place in places if place in seen or seen.add(place)]  # type: ignore[func-returns-value]
