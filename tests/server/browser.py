"""A headless Chromium, driven over its DevTools protocol: enough to look at a page and to click."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Find the program; None where it is not installed."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class PageError(AssertionError):
    """Say that a script of the test's failed in the page."""


class Page:
    """One tab. What its console and its security policy complained of is in ``complaints``."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening = asyncio.create_task(self._listen())
        self.complaints: list[str] = []

    async def close(self) -> None:
        """Stop listening."""
        self._listening.cancel()
        with suppress(asyncio.CancelledError):
            await self._listening

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and give its result."""
        id = next(self._ids)
        self._answers[id] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": id, "method": method, "params": params})
        try:
            async with asyncio.timeout(30):
                answer = await self._answers[id]
        finally:
            del self._answers[id]
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        """Go to a URL."""
        await self.command("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """Give the value of an expression in the page."""
        result = await self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise PageError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    async def until(self, script: str, timeout_s: float = 30.0) -> Any:
        """Wait until an expression in the page is true and give its value."""
        value: Any = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with suppress(PageError):  # the page is on its way to another one
                        if value := await self.run(script):
                            return value
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.run("document.body.innerText")
            raise AssertionError(f"not so in time: {script}\nthe page: {text}\n{self.complaints}") from None

    async def click(self, selector: str) -> None:
        """Click, as a mouse does, on the middle of what a selector finds first."""
        found = json.dumps(selector)
        place = await self.until(
            f"(() => {{ const it = document.querySelector({found}); if (!it) return null;"
            "it.scrollIntoView({block: 'center'}); const r = it.getBoundingClientRect();"
            "return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.command(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.command("Input.insertText", text=text)

    async def resize(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Take the size of a screen, light or dark."""
        await self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        """Save the page, all of it, as PNG."""
        size = (await self.command("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = await self.command(
            "Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    async def _listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if told.get("id") in self._answers:
                self._answers[told["id"]].set_result(told)
            elif told.get("method") == "Log.entryAdded":
                self.complaints.append(told["params"]["entry"]["text"])
            elif told.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["params"]["exceptionDetails"])[:1000])


@asynccontextmanager
async def browser_page(folder: Path, environment: Mapping[str, str] | None = None) -> AsyncIterator[Page]:
    """Give a tab of a browser that keeps its profile in ``folder`` and is ended afterwards."""
    program = find_chromium()
    assert program is not None, "there is no Chromium here"
    profile = Path(tempfile.mkdtemp(prefix="chromium-", dir=folder))
    process = await asyncio.create_subprocess_exec(
        program,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--no-proxy-server"),
        *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder), **(environment or {})},
        start_new_session=True,
    )
    try:
        port = await _debugging_port(profile, process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tab = next(it for it in await response.json() if it["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                try:
                    for domain in ("Page", "Runtime", "Log"):
                        await page.command(f"{domain}.enable")
                    yield page
                finally:
                    await page.close()
    finally:
        process.terminate()
        await process.wait()
        await _end_group(process.pid)


async def _end_group(pid: int) -> None:
    """End what a browser that is gone started itself: it would go on writing into the profile."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while True:
                os.killpg(pid, 0)
                await asyncio.sleep(0.02)


async def _debugging_port(profile: Path, process: asyncio.subprocess.Process) -> int:
    """Wait until the browser has written where it listens."""
    async with asyncio.timeout(60):
        while True:
            assert process.returncode is None, f"Chromium ended with status {process.returncode}"
            with suppress(FileNotFoundError, IndexError, ValueError):
                return int((profile / "DevToolsActivePort").read_text().splitlines()[0])
            await asyncio.sleep(0.05)
