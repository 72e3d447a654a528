"""Work in many pieces, and the collector of garbage, leave the event loop to others."""

from __future__ import annotations

import asyncio
import gc
import weakref

from ranvier.log.turns import Turns
from ranvier.processes.garbage import collect_garbage, settle


async def test_others_get_their_turn_between_pieces() -> None:
    """While many users sync for the first time nobody else would be answered."""
    turns, done = Turns(2), list[str]()

    async def work(name: str) -> None:
        async for some in turns.slices(range(6), 2):
            done.append(f"{name}{list(some)}")

    async def other() -> None:
        for _ in range(4):
            done.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(*(work(name) for name in "abcd"), other())
    pieces = [piece for piece in done if piece != "other"]
    assert sorted(pieces) == sorted(f"{name}{part}" for name in "abcd" for part in ([0, 1], [2, 3], [4, 5]))
    assert pieces.index("d[0, 1]") < pieces.index("a[2, 3]"), "who came first must not keep all turns"
    assert done.index("other", 1) < done.index("c[0, 1]")
    assert max(map(len, "".join("o" if piece == "other" else "p" for piece in done[:8]).split("o"))) <= 2


async def test_little_work_does_not_wait() -> None:
    """Each small answer would take a turn of the event loop longer."""
    turns = Turns(1)
    blocked = asyncio.create_task(turns.take())
    assert [list(some) async for some in turns.slices([1, 2], 2)] == [[1, 2]]
    assert not blocked.done()
    await blocked


async def test_who_gave_up_takes_nobodys_turn() -> None:
    """A client that went away would hold up those who came after it."""
    turns = Turns(1)
    first, second = asyncio.create_task(turns.take()), asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(5):
        await second


class _Node:
    def __init__(self) -> None:
        self.me = self


async def test_garbage_goes_in_the_end() -> None:
    """A server's memory would grow for ever with what nobody needs any more."""
    thresholds = gc.get_threshold()
    running = asyncio.create_task(collect_garbage())
    await asyncio.sleep(0)
    assert gc.get_freeze_count() > 0
    old = weakref.ref(_Node())
    gc.freeze()
    assert old() is not None
    settle()
    assert old() is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert gc.get_threshold() == thresholds
    assert gc.get_freeze_count() == 0


async def test_work_that_fails_does_not_keep_others_waiting() -> None:
    """One client whose answer cannot be made would leave all who wait without theirs, for ever."""
    turns, done, failed = Turns(1), asyncio.Event(), list[object]()

    def fail() -> bool:
        raise RuntimeError("this one")

    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context["exception"]))
    turns.give(fail)
    turns.give(lambda: done.set() or True)  # type: ignore[func-returns-value]
    async with asyncio.timeout(5):
        await done.wait()
    assert [str(error) for error in failed] == ["this one"]
