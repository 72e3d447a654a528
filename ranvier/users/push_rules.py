"""Users' push rules: stored, compiled for evaluation, and changed one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import orjson

from ranvier.log.append import Appender
from ranvier.log.tail import Tail
from ranvier.spec.push_rule_edits import decode_rules, encode_rules, to_client
from ranvier.spec.push_rules import NO_USER_RULES, CompiledRules, UserPushRules, compile_rules
from ranvier.storage.push_rules import PushRuleStore
from ranvier.users.edits import Edits
from ranvier.users.followed import FollowedByUser
from ranvier.wire.log_rows import LogRow

PUSH_RULES: Final = "push_rules"


class RulesOfUser(NamedTuple):
    """A user's rules as stored and as compiled; ``pos`` is the log position of the last change (0: none)."""

    rules: UserPushRules
    compiled: CompiledRules
    pos: int


class PushRules:
    """Know and change users' push rules: in memory for active users, true to the log."""

    def __init__(self, *, store: PushRuleStore, appender: Appender, tail: Tail) -> None:
        self._store = store
        self._appender = appender
        self._tail = tail
        self._edits = Edits()
        # Rules of one's own take some 100 kB when there are very many of them.
        self._users = FollowedByUser(tail=tail, concerns=is_push_rules, load=self._load, max_users=5000)

    async def of(self, user_id: str) -> RulesOfUser:
        """Give a user's rules."""
        return await self._users.of(user_id)

    def held(self, user_id: str) -> RulesOfUser | None:
        """Give a user's rules if they are in memory."""
        return self._users.held(user_id)

    async def edit(self, user_id: str, change: Callable[[UserPushRules], UserPushRules]) -> None:
        """Replace a user's rules by what ``change`` makes of them (see ``spec.push_rule_edits``).

        Returns when this process tells of it. Raises what ``change`` raises; then nothing is changed.
        """

        async def edit() -> None:
            before = await self._load(user_id)
            rules = change(before.rules)
            if rules == before.rules:
                return
            row = LogRow(kind=PUSH_RULES, user_id=user_id, key2=str(before.pos), body=encode_rules(rules))
            await self._tail.wait_for(await self._appender.append_rows([row]))

        await self._edits.make(user_id, edit)

    async def _load(self, user_id: str) -> RulesOfUser:
        stored = await self._store.get(user_id)
        if stored is None:
            return RulesOfUser(NO_USER_RULES, compile_rules(NO_USER_RULES), 0)
        rules = decode_rules(stored[0])
        return RulesOfUser(rules, compile_rules(rules), stored[1])


def is_push_rules(row: LogRow) -> bool:
    """Tell whether a row of the log changes a user's push rules."""
    return row.kind == PUSH_RULES


def rules_content(rules: UserPushRules, user_id: str) -> bytes:
    """Give the content of the account data ``m.push_rules``, JSON."""
    return orjson.dumps(to_client(rules, user_id))
