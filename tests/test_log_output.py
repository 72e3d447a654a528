"""What the administrator finds in the log."""

from __future__ import annotations

import asyncio
import io
import logging
import re

from ranvier.processes.logs import LogOutput

_LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} %s requests: %s\n"


async def test_lines_of_requests_look_like_all_others_and_none_is_lost() -> None:
    """An administrator's tools could not read the log, or the last lines before a stop would be missing."""
    stream = io.StringIO()
    output = LogOutput(stream)
    write_line = output.line_writer("requests")
    async with output.gathering():
        for number in range(3):
            write_line(logging.INFO, f"line {number}")
        assert not stream.getvalue()
    expected = "".join(_LINE % ("INFO   ", f"line {number}") for number in range(3))
    assert re.fullmatch(expected, stream.getvalue())
    write_line(logging.INFO, "late")
    assert stream.getvalue().endswith("late\n")


async def test_lines_are_written_soon() -> None:
    """Somebody who follows the log would see nothing on a quiet server."""
    stream = io.StringIO()
    output = LogOutput(stream)
    async with output.gathering(), asyncio.timeout(10):
        output.line_writer("requests")(logging.INFO, "one")
        while not stream.getvalue():
            await asyncio.sleep(0.02)


async def test_warnings_do_not_wait_and_lines_keep_their_order() -> None:
    """A crash would take the lines along that tell of its cause, or they would be in a confusing order."""
    stream = io.StringIO()
    output = LogOutput(stream)
    write_line = output.line_writer("requests")
    handler = logging.StreamHandler(output)
    async with output.gathering():
        write_line(logging.INFO, "one")
        write_line(logging.WARNING, "two")
        assert stream.getvalue().count("\n") == 2
        write_line(logging.INFO, "three")
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "four", None, None))
        lines = stream.getvalue().splitlines()
        assert [line.split()[-1] for line in lines] == ["one", "two", "three", "four"]


async def test_many_lines_at_once_are_bounded() -> None:
    """A flood of requests would fill the memory with the lines about them."""
    stream = io.StringIO()
    output = LogOutput(stream)
    write_line = output.line_writer("requests")
    async with output.gathering():
        for _ in range(100):
            write_line(logging.INFO, "x" * 1000)
        assert len(stream.getvalue()) > 60_000
