"""What a run of the bench writes, and where; and when it says that it cannot measure."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.client import WrongAnswerError
from bench.servers.ranvier_workers import RanvierWorkers, Workers
from bench.workers import scenarios


class _Looked(RanvierWorkers):
    """Three workers, looked at again and again; ``[]`` stands for a look that fails."""

    def __init__(self, *writers: Sequence[str]) -> None:
        self.count = 3
        self._looks = list(writers)

    def look(self) -> Workers:
        writers = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        names = ("worker1", "worker2", "worker3") if writers else ()
        return {name: {"pid": int(name[-1]), "takes_rooms": name in writers} for name in names}


async def test_the_writer_is_looked_for_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench would end with a traceback where PostgreSQL was slow once, or two wrote for a while."""
    monkeypatch.setattr(scenarios, "_LOOK_S", 0.01)
    server = _Looked([], ["worker1", "worker2"], ["worker2"])
    assert await scenarios.find_writer(server) == ("worker2", {"worker1": 1, "worker2": 2, "worker3": 3})


@pytest.mark.parametrize("writers", [[], ["worker1", "worker3"]])
async def test_without_one_writer_the_bench_says_so_and_goes_on(
    writers: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is measured after it would be missing: this error is one that it notes down."""
    monkeypatch.setattr(scenarios, "_LOOK_S", 0.01)
    monkeypatch.setattr(scenarios, "_GIVE_UP_S", 0.05)
    with pytest.raises(WrongAnswerError, match="one worker is to write"):
        await scenarios.find_writer(_Looked(writers))
