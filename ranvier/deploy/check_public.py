"""Does the web server answer clients, and with what the server says?"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from ranvier.config.listeners import Listener
from ranvier.deploy.check_answers import connect
from ranvier.deploy.check_units import runs_nginx
from ranvier.deploy.findings import Finding, error, note, ok, warning
from ranvier.deploy.scene import Scene
from ranvier.deploy.settings import Settings

_PATH: Final = "/_matrix/client/versions"
_TIMEOUT_S: Final = 5.0
_MAX_ANSWER: Final = 1 << 20
_ADVICE: Final = "see `nginx -t`, the site of this host and nginx's error log"


@dataclass(frozen=True)
class _Answer:
    """What a web server said, or why it said nothing. ``workers`` is what those say that answer at all."""

    name: str
    port: int
    tls: bool
    workers: Sequence[Any]
    status: int = 0
    said: Any = None
    failed: OSError | None = None

    @property
    def is_of_homeserver(self) -> bool:
        """Tell whether a Matrix homeserver says this, be it another one."""
        return self.status == 200 and isinstance(self.said, dict) and "versions" in self.said

    @property
    def is_well(self) -> bool:
        """Tell whether it is what the server says."""
        return self.is_of_homeserver and (not self.workers or self.said in self.workers)

    @property
    def lacks_workers(self) -> bool:
        """Tell whether the web server is right but reaches nobody who could answer."""
        return self.status in (502, 503, 504)

    @property
    def is_elsewhere(self) -> bool:
        """Tell whether it sends clients to another address."""
        return 300 <= self.status < 400


async def check_public(scene: Scene) -> AsyncIterator[Finding]:
    """Ask for the versions of the specification as a client does, on this machine.

    A person may have given the site a certificate, or another web server may have the ports.
    """
    settings = scene.settings
    if settings is None or scene.public is None:
        return
    workers = await _told_by_workers(scene, settings)
    answer = await _answer(settings, scene.public, workers, tls=settings.certificate is not None)
    if not answer.is_well and scene.public_tls is not None:
        other = await _answer(settings, scene.public_tls, workers, tls=True)
        if other.is_well or (answer.is_elsewhere and not isinstance(other.failed, ConnectionRefusedError)):
            answer = other
    found = _judged(settings, answer)
    doubtful = found.severity == "error" and not answer.lacks_workers
    reason = _not_ours(scene, settings) if doubtful else None
    yield found if reason is None else note("public", found.message, f"{reason}: {found.advice}")
    if answer.is_well and scene.processes:
        for finding in _base_url(scene.config.server.public_baseurl, settings.public_name, answer):
            yield finding


def _base_url(url: str | None, public_name: str, answer: _Answer) -> Iterator[Finding]:
    """Compare what clients are told with where they are answered; TLS may also be another machine's."""
    told = urlsplit(url or "")
    if url is not None and (told.hostname != public_name.lower() or (answer.tls and told.scheme == "http")):
        scheme = "https" if answer.tls else told.scheme
        yield warning(
            "public-baseurl",
            f"clients are told to use {url}, and are answered at {scheme}://{public_name}/",
            "set public_baseurl to that where it is given (files of conf.d go over homeserver.yaml), then "
            "restart the workers, one after the other",
        )


def _not_ours(scene: Scene, settings: Settings) -> str | None:
    """Say why it is for a person to know who answers clients; None where `ranvier deploy` has seen to it."""
    if scene.systemctl is not None and not runs_nginx(scene.systemctl):
        return "nginx does not run, and another web server may answer elsewhere"
    path = settings.nginx_dir / "ranvier.conf"
    text = scene.target.read(path)
    if text is not None and not scene.record.wrote(path, text):
        return f"{path} was edited by hand, and may answer elsewhere"
    return None


async def _told_by_workers(scene: Scene, settings: Settings) -> list[Any]:
    """Give what is said by each worker that answers clients."""

    async def told_by(listener: Listener) -> Any:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                status, said = await _get(await connect(scene, listener), settings.public_name)
        except OSError:
            return None  # told already
        return said if status == 200 else None

    of_clients = [
        listener
        for process in scene.processes
        for listener in process.listeners
        if "client" in listener.resources and not listener.tls and (listener.path or listener.bind_addresses)
    ]
    return [it for it in await asyncio.gather(*map(told_by, of_clients)) if it is not None]


async def _answer(
    settings: Settings, place: tuple[str, int], workers: Sequence[Any], *, tls: bool
) -> _Answer:
    host, port = place
    name = f"{settings.public_name} at port {port}"
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            status, said = await _ask(settings.public_name, host, port, tls=tls)
    except OSError as failed:  # among them ssl.SSLError and TimeoutError
        return _Answer(name, port, tls, workers, failed=failed)
    return _Answer(name, port, tls, workers, status, said)


def _judged(settings: Settings, answer: _Answer) -> Finding:
    name, status, failed = answer.name, answer.status, answer.failed
    match failed:
        case ConnectionRefusedError():
            return note(
                "public",
                f"no web server answers on port {answer.port} of this machine",
                f"another machine has to answer as {settings.public_name}, or start nginx",
            )
        case ssl.SSLError():
            return error("public", f"no TLS can be spoken with {name}: {failed}", _ADVICE)
        case TimeoutError():
            return error("public", f"{name} does not answer in {_TIMEOUT_S:.0f} s", _ADVICE)
        case OSError():
            return error("public", f"{name} cannot be reached: {failed}", _ADVICE)
    if answer.is_elsewhere:
        return note("public", f"{name} sends clients elsewhere (status {status})")
    if answer.is_well:
        return ok("public", f"{name} answers clients")
    if answer.is_of_homeserver:
        advice = "another site of nginx has this host (`nginx -T`): disable it, then systemctl reload nginx"
        return error("public", f"another homeserver answers as {name}", advice)
    if answer.lacks_workers:
        return error("public", f"{name} reaches no worker (status {status})", _ADVICE)
    return error(
        "public",
        f"{name} does not answer for this server: status {status} for {_PATH}",
        "another site may have this host, or `ranvier deploy` was not run: " + _ADVICE,
    )


async def _ask(public_name: str, host: str, port: int, *, tls: bool) -> tuple[int, Any]:
    """Give the web server's status, and what it says. Raises ``OSError``."""
    context = None
    if tls:
        # Whom the certificate is for, clients judge; here it is asked who answers.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    named = public_name if tls else None
    return await _get(
        await asyncio.open_connection(host, port, ssl=context, server_hostname=named), public_name
    )


async def _get(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], host: str) -> tuple[int, Any]:
    """Give status and JSON value, if it is one. HTTP/1.0, so that the body is all that comes.

    Raises ``OSError``.
    """
    reader, writer = connection
    try:
        writer.write(f"GET {_PATH} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        answer = bytearray()
        while len(answer) < _MAX_ANSWER and (piece := await reader.read(65536)):
            answer += piece
    finally:
        writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    try:
        return status, json.loads(body)
    except ValueError:
        return status, None
