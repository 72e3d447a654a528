"""Does the web server answer clients, and with what the server says?"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from typing import Final

from ranvier.deploy.findings import Finding, error, note, ok
from ranvier.deploy.scene import Scene
from ranvier.deploy.settings import Settings

_PATH: Final = "/_matrix/client/versions"
_TIMEOUT_S: Final = 5.0
_MAX_ANSWER: Final = 1 << 20
_ADVICE: Final = "see `nginx -t`, the site of this host and nginx's error log"


async def check_public(scene: Scene) -> AsyncIterator[Finding]:
    """Ask for the versions of the specification as a client does, on this machine."""
    settings = scene.settings
    if settings is None or scene.public is None:
        return
    host, port = scene.public
    name = f"{settings.public_name} at port {port}"
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            status, body = await _ask(settings, host, port)
    except ConnectionRefusedError:
        yield note(
            "public",
            f"no web server answers on port {port} of this machine",
            f"another machine has to answer as {settings.public_name}, or start nginx",
        )
    except ssl.SSLError as failed:
        yield error("public", f"no TLS can be spoken with {name}: {failed}", _ADVICE)
    except TimeoutError:
        yield error("public", f"{name} does not answer in {_TIMEOUT_S:.0f} s", _ADVICE)
    except OSError as failed:
        yield error("public", f"{name} cannot be reached: {failed}", _ADVICE)
    else:
        yield _judged(name, status, body)


def _judged(name: str, status: int, body: bytes) -> Finding:
    if 300 <= status < 400:
        return note("public", f"{name} sends clients elsewhere (status {status})")
    if status == 200 and _has_versions(body):
        return ok("public", f"{name} answers clients")
    if status in (502, 503, 504):
        return error("public", f"{name} reaches no worker (status {status})", _ADVICE)
    return error(
        "public",
        f"{name} does not answer for this server: status {status} for {_PATH}",
        "another site may have this host, or `ranvier deploy` was not run: " + _ADVICE,
    )


def _has_versions(body: bytes) -> bool:
    try:
        answer = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and "versions" in answer


async def _ask(settings: Settings, host: str, port: int) -> tuple[int, bytes]:
    """Give status and body. HTTP/1.0, so that the body is all that comes. Raises ``OSError``."""
    context = None
    if settings.certificate is not None:
        # Whom the certificate is for, clients judge; here it is asked who answers.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    named = settings.public_name if context is not None else None
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=named)
    try:
        writer.write(f"GET {_PATH} HTTP/1.0\r\nHost: {settings.public_name}\r\n\r\n".encode())
        said = bytearray()
        while len(said) < _MAX_ANSWER and (piece := await reader.read(65536)):
            said += piece
    finally:
        writer.close()
    head, _, body = bytes(said).partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0, body
