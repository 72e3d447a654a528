"""Long polls that wait without a task: most of what a busy server holds are clients for whom nothing happens.

A poll is one small object that the notifier knows. When something is said in a room, its answer is made in
the notifier's turn (``sync.plain``), without waiting for anything. Whatever is not that simple, here or when
it wakes, is left to the assembler, in a task.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from ranvier.rooms.memberships import Membership, Memberships
from ranvier.spec.filters import Filter
from ranvier.sync.notifier import Notifier
from ranvier.sync.plain import PlainNews, is_plain_filter
from ranvier.users.filters import Filters
from ranvier.users.presence import OpenSync, Presence
from ranvier.users.requester import Requester
from ranvier.wire.tokens import Token, parse_token

_MOMENT_S: Final = 0.1


class Asked(NamedTuple):
    """The parameters of ``/sync`` that a client that polls repeats; ``filter`` as it was given."""

    filter: str | None
    timeout_s: float
    set_presence: str
    state_after: bool


class LongPoll:
    """One request that waits."""

    __slots__ = (
        "_device_id",
        "_filter",
        "_group",
        "_left",
        "_open",
        "_polls",
        "_resume",
        "_since",
        "_state_after",
        "_timeout_s",
        "_woken",
        "rooms",
        "user_id",
    )

    def __init__(
        self,
        polls: LongPolls,
        user_id: str,
        device_id: str | None,
        rooms: Mapping[str, Membership],
        filter: Filter,
        since: Token,
        asked: Asked,
        open_sync: OpenSync,
    ) -> None:
        self.user_id = user_id
        self.rooms = rooms
        self._device_id = device_id
        self._polls = polls
        self._filter = filter
        self._since = since
        self._timeout_s = asked.timeout_s
        self._state_after = asked.state_after
        self._open = open_sync
        self._woken = False
        self._left = False
        self._group: set[LongPoll] = set()
        self._resume: Callable[[], bool] | None = None

    def wait(self, resume: Callable[[], bool]) -> None:
        """Begin to wait for news, or the end of the time that the client gives."""
        self._resume = resume
        self._group = self._polls.timeouts.enter(self, self._timeout_s)
        self._polls.notifier.add(self)

    def wake(self) -> None:
        """Answer soon, in the notifier's turn."""
        if not self._woken:
            self._woken = True
            self._polls.notifier.give(self._end)

    def answer(self) -> bytes | None:
        """Give the answer if it is a plain one."""
        return self._polls.plain.answer(
            self.user_id, self._device_id, self._since, self._filter, state_after=self._state_after
        )

    def leave(self) -> None:
        """End the wait without an answer."""
        if self._left:
            return
        self._left = True
        self._group.discard(self)
        self._polls.notifier.remove(self)
        self._polls.presence.sync_ends(self.user_id, self._open)

    def _end(self) -> bool:
        if self._left:
            return True
        self.leave()
        assert self._resume is not None
        return self._resume()


class _Timeouts:
    """End polls whose time is over, those of one moment together: a timer for each would cost more."""

    def __init__(self) -> None:
        self._groups: dict[int, set[LongPoll]] = {}

    def enter(self, poll: LongPoll, timeout_s: float) -> set[LongPoll]:
        """Wake a poll after some seconds, and at most ``_MOMENT_S`` later, unless it leaves the group."""
        loop = asyncio.get_running_loop()
        moment = math.ceil((loop.time() + timeout_s) / _MOMENT_S)
        group = self._groups.get(moment)
        if group is None:
            group = self._groups[moment] = set()
            loop.call_at(moment * _MOMENT_S, self._wake, moment)
        group.add(poll)
        return group

    def _wake(self, moment: int) -> None:
        for poll in self._groups.pop(moment):
            poll.wake()


class RepeatedPoll:
    """What one client asks again and again, each time from where it is then."""

    __slots__ = ("_asked", "_filter", "_polls")

    def __init__(self, polls: LongPolls, asked: Asked) -> None:
        self._polls = polls
        self._asked = asked
        self._filter: Filter | None = None

    def begin(self, requester: Requester, since: bytes) -> bytes | LongPoll | None:
        """Give the answer, or the poll that is to wait; None if the assembler has to see to it.

        Raises 400 ``M_INVALID_PARAM`` for a broken token.
        """
        polls, user_id = self._polls, requester.user_id
        if self._filter is None:  # what has an id never changes
            self._filter = polls.plain_filter(user_id, self._asked.filter)
            if self._filter is None:
                return None
        return polls.begin(
            user_id, requester.device_id, parse_token(since.decode("ascii")), self._asked, self._filter
        )


class LongPolls:
    """Answer incremental syncs at once or let them wait, where everything that they hang on is in memory."""

    def __init__(
        self,
        *,
        notifier: Notifier,
        memberships: Memberships,
        filters: Filters,
        presence: Presence,
        plain: PlainNews,
    ) -> None:
        self.notifier = notifier
        self.presence = presence
        self.plain = plain
        self.timeouts = _Timeouts()
        self._memberships = memberships
        self._filters = filters

    def plain_filter(self, user_id: str, wanted: str | None) -> Filter | None:
        """Give the filter that a query names if it is in memory and plain."""
        found = self._filters.held(user_id, wanted)
        return found if found is not None and is_plain_filter(found) else None

    def begin(
        self, user_id: str, device_id: str | None, since: Token, asked: Asked, filter_: Filter
    ) -> bytes | LongPoll | None:
        """Give the answer, or the poll that is to wait; None if the assembler has to see to it."""
        rooms = self._memberships.held(user_id)
        if rooms is None or self.notifier.closed:
            return None
        answer = None
        if not self.plain.is_quiet(user_id, rooms, since):
            answer = self.plain.answer(user_id, device_id, since, filter_, state_after=asked.state_after)
            if answer is None:
                return None
        open_sync = self.presence.sync_begins(user_id, device_id, asked.set_presence)
        if open_sync is None:
            return None
        if answer is None:
            return LongPoll(self, user_id, device_id, rooms, filter_, since, asked, open_sync)
        self.presence.sync_ends(user_id, open_sync)
        return answer
