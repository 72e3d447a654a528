"""Drive matrix-js-sdk in Node: one process, any number of devices, JSON lines between."""

import asyncio
import itertools
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.clients.homeserver import Homeserver

JS_FOLDER = Path(__file__).parent / "js"
COMMAND_TIMEOUT_S = 90
STDOUT_LIMIT_BYTES = 64 * 1024 * 1024


class JsError(Exception):
    """A command failed inside matrix-js-sdk; the text is the JavaScript error with its stack."""


class JsDriver:
    """The Node process that hosts the devices."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            answer = json.loads(line)
            future = self._waiting.pop(answer["id"])
            if future.done():
                continue
            if "error" in answer:
                future.set_exception(JsError(answer["error"]))
            else:
                future.set_result(answer["result"])
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(JsError("the Node process ended"))

    async def run(self, command: str, args: dict[str, Any], device: str | None = None) -> Any:
        """Run one command and return its result; raises `JsError`, or `TimeoutError` when Node hangs."""
        assert self._process.stdin is not None
        request: dict[str, Any] = {"id": next(self._ids), "command": command, "args": args}
        if device is not None:
            request["device"] = device
        future = asyncio.get_running_loop().create_future()
        self._waiting[request["id"]] = future
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        return await asyncio.wait_for(future, COMMAND_TIMEOUT_S)

    async def register(self, homeserver: Homeserver, localpart: str) -> "JsDevice":
        """Make an account with a first device, not yet syncing."""
        password = secrets.token_hex(8)
        session = await self.run(
            "register", {"url": homeserver.url, "username": localpart, "password": password}
        )
        return await self._open(homeserver, session, password)

    async def log_in(self, homeserver: Homeserver, user_id: str, password: str) -> "JsDevice":
        """Give an account one more device, not yet syncing."""
        session = await self.run("login", {"url": homeserver.url, "username": user_id, "password": password})
        return await self._open(homeserver, session, password)

    async def _open(self, homeserver: Homeserver, session: dict[str, Any], password: str) -> "JsDevice":
        name = f"{session['user_id']}/{session['device_id']}"
        keys = {key: session[key] for key in ("user_id", "device_id", "access_token")}
        await self.run("open", {**keys, "url": homeserver.url, "password": password, "name": name})
        return JsDevice(self, name, keys["user_id"], keys["device_id"], keys["access_token"], password)

    async def close(self) -> None:
        """End the Node process."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reader


class JsDevice:
    """One device in matrix-js-sdk."""

    def __init__(
        self, driver: JsDriver, name: str, user_id: str, device_id: str, access_token: str, password: str
    ) -> None:
        self._driver = driver
        self._name = name
        self.user_id = user_id
        self.device_id = device_id
        self.access_token = access_token
        self.password = password

    async def run(self, command: str, **args: Any) -> Any:
        """Run a method of `Device` in js/device.mjs."""
        return await self._driver.run(command, args, self._name)

    async def wait(self, **wanted: Any) -> dict[str, Any]:
        """Return the first thing seen, past or future, that has these values; raises `JsError` after 30 s."""
        seen: dict[str, Any] = await self.run("wait", wanted=wanted)
        return seen

    async def message(self, room_id: str, body: str, **content: Any) -> str:
        """Send a text message, encrypted where the room is, and return its event ID."""
        event_id: str = await self.run(
            "send", room_id=room_id, content={"msgtype": "m.text", "body": body, **content}
        )
        return event_id

    async def trusts(self, user_id: str, device_id: str, **wanted: bool) -> None:
        """Wait until user_verified, device_signed, device_verified or ready are as wanted."""
        await self.run("trusts", user_id=user_id, device_id=device_id, wanted=wanted)

    async def sees_message(self, event_id: str, body: str) -> dict[str, Any]:
        """Wait until the event is there and readable, with this text."""
        event = await self.wait(kind="event", event_id=event_id, failed=False)
        assert event["content"]["body"] == body
        return event


@asynccontextmanager
async def js_driver() -> AsyncIterator[JsDriver]:
    """Start Node; js/node_modules must be there (`npm ci` in js/)."""
    process = await asyncio.create_subprocess_exec(
        "node",
        "driver.mjs",
        cwd=JS_FOLDER,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=STDOUT_LIMIT_BYTES,
    )
    driver = JsDriver(process)
    try:
        yield driver
    finally:
        await driver.close()
