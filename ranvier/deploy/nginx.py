"""The web server's configuration, derived from the declarations of the endpoints.

Any worker answers any request, so one upstream would do. The map only sends requests for one room (or of one
user) to the same worker, which has it in memory; when that worker is away, another one is asked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from ranvier.deploy.settings import Settings
from ranvier.http.route import PLACED_BY_USER, PLACED_WITH_WRITERS, Route

_PARAMETER: Final = re.compile(r"\{([a-z_][a-z0-9_]*)(\.\.\.)?\}")
_LISTEN_IPV6: Final = re.compile(r"^ *listen \[::\]:.*\n", re.MULTILINE)
_PUBLIC: Final = ("/_matrix/", "/.well-known/", "/_ranvier", "/_synapse/client/")
"""What clients and browsers ask for; also the administrators' page, for its API wants their token."""
_UPSTREAM: Final = """\
# Written by `ranvier deploy`, which replaces it when workers come or go.

# What a request is about: a room, a user of the path, or whoever asks.
map $http_authorization $ranvier_asker {{
    default $http_authorization;
    "" $remote_addr;
}}
map $uri $ranvier_key {{
    default "asker $ranvier_asker";
{keys}}}

# Any worker answers any request; the same key goes to the same one while it is there.
upstream ranvier {{
    hash $ranvier_key consistent;
{servers}    keepalive 32;
}}
"""
# A client may poll for ten minutes: nginx, which counts from before the worker does, waits for longer.
# What nginx sends to another worker, since the first one died before it answered, has the same X-Request-Id.
_PROXY: Final = """\
        proxy_pass http://ranvier;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Request-Id $request_id;
        proxy_connect_timeout 2s;
        proxy_read_timeout 11m;
"""
_SERVER: Final = """\
# Written by `ranvier deploy`, which leaves it alone once it was edited.
{redirect}
server {{
{listen}    server_name {public_name};

    client_max_body_size {body};
    gzip on;
    gzip_proxied any;
    gzip_types application/json;
{locations}}}
"""
_REDIRECT: Final = """
server {{
    listen 80;
    listen [::]:80;
    server_name {public_name};
{challenge}
    location / {{
        return 301 https://$host$request_uri;
    }}
}}
"""
_CHALLENGE: Final = """
    # Where `certbot certonly --webroot -w /var/www/html` shows that the host is this one.
    location /.well-known/acme-challenge/ {
        root /var/www/html;
    }
"""


def public_routes() -> list[Route]:
    """Give what the web server is asked for: the client-server API, and the administrators' page."""
    from ranvier.admin_api import console  # noqa: PLC0415 (slow, and --help needs it not)
    from ranvier.processes.application import client_routes  # noqa: PLC0415

    return [*client_routes(), *console.ROUTES]


def upstream_file(settings: Settings, routes: Sequence[Route], names: Iterable[str] | None = None) -> str:
    """Give ``ranvier-upstream.conf``: which of the workers ``names`` (None: of all) gets what."""
    keys = "".join(f'    "~{pattern}" "{kind} ${variable}";\n' for kind, variable, pattern in _keys(routes))
    servers = "".join(
        f"    server unix:{settings.socket(name)} max_fails=3 fail_timeout=2s;\n"
        for name in (settings.names if names is None else names)
    )
    return _UPSTREAM.format(keys=keys, servers=servers)


def server_file(settings: Settings, routes: Sequence[Route], *, ipv6: bool = True) -> str:
    """Give ``ranvier.conf``: where the web server answers, by IPv6 or without, and with what."""
    redirect, challenge = "", _CHALLENGE
    if settings.certificate is not None:
        redirect, challenge = _REDIRECT.format(public_name=settings.public_name, challenge=_CHALLENGE), ""
    text = _SERVER.format(
        redirect=redirect,
        listen=_listen(settings),
        public_name=settings.public_name,
        body=_megabytes(max(route.max_body for route in routes)),
        locations="".join([challenge, *_locations(routes)]),
    )
    return text if ipv6 else _LISTEN_IPV6.sub("", text)


def has_tls(site: str) -> bool:
    """Tell whether a site that a person edited has a certificate."""
    return re.search(r"^\s*ssl_certificate\s", site, re.MULTILINE) is not None


def _listen(settings: Settings) -> str:
    if settings.certificate is None:
        return "    listen 80;\n    listen [::]:80;\n"
    return (
        "    listen 443 ssl http2;\n    listen [::]:443 ssl http2;\n"
        f"    ssl_certificate {settings.certificate};\n"
        f"    ssl_certificate_key {settings.certificate_key};\n"
    )


def _locations(routes: Sequence[Route]) -> Iterable[str]:
    paths = sorted(path for route in routes for path in route.paths)
    public = {_location(path): path.startswith(_PUBLIC) for path in paths}
    for location in sorted(public):
        local = "" if public[location] else _LOCAL
        yield f"\n    location {location} {{\n{local}{_PROXY}    }}\n"


_LOCAL: Final = """\
        # For administrators on this machine.
        allow 127.0.0.1;
        allow ::1;
        deny all;
"""


def _location(path: str) -> str:
    """Give the location of a path: all below ``/_matrix/``, so that errors are JSON, else a part of its own.

    What has no more than one part is exactly that: below ``/_ranvier/`` there are also metrics, for nobody.
    """
    if path.startswith("/_matrix/"):
        return "/_matrix/"
    parts = path.split("/")
    return f"= {path}" if len(parts) <= 3 else "/".join(parts[:3]) + "/"


def _keys(routes: Iterable[Route]) -> list[tuple[str, str, str]]:
    """Give (kind, variable, pattern) for the paths that name what they are placed by.

    Paths with the same beginning are one pattern, and so are beginnings with the same ends.
    """
    ends: dict[tuple[str, str], set[str]] = defaultdict(set)
    for route in routes:
        if route.placed_by in (None, PLACED_BY_USER, PLACED_WITH_WRITERS):
            continue
        for path in route.paths:
            before, _, after = path.partition(f"{{{route.placed_by}}}")
            ends[route.placed_by or "", _expression(before)].add(_expression(after))
    beginnings: dict[tuple[str, frozenset[str]], set[str]] = defaultdict(set)
    for (name, before), afters in ends.items():
        beginnings[name, frozenset(afters)].add(before)
    return sorted(
        (name, f"ranvier_{name}", f"^{_any(befores)}(?<ranvier_{name}>[^/]+){_any(afters)}$")
        for (name, afters), befores in beginnings.items()
    )


def _any(patterns: Iterable[str]) -> str:
    alternatives = sorted(patterns)
    return alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"


def _expression(path: str) -> str:
    """Give a regular expression for a path with ``{parameters}``."""
    pieces, at = [], 0
    for match in _PARAMETER.finditer(path):
        pieces += [re.escape(path[at : match.start()]), ".*" if match[2] else "[^/]+"]
        at = match.end()
    return "".join([*pieces, re.escape(path[at:])])


def _megabytes(size_bytes: int) -> str:
    return f"{-(-size_bytes // (1 << 20))}m"
