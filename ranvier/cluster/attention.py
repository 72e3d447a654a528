"""Whether anybody waits, at another worker, for what this one commits.

To tell of a commit wakes Redis and each worker, which costs more than what is told. Where nobody waits at any
of them the commits of a moment are told together (``RedisBus.hold_unless``). Who begins to wait first says so
in the memory of this machine, and then has those who hold something back tell it.
"""

from __future__ import annotations

from ranvier.cluster.head_board import HeadBoard
from ranvier.cluster.members import Members


class Attention:
    """Say that somebody waits here, and know whether somebody does elsewhere."""

    def __init__(self, board: HeadBoard, members: Members) -> None:
        self._board = board
        self._members = members
        self._all_say = True
        members.listen(self._on_change)

    def attend(self) -> bool:
        """Say that somebody waits here for a while; True if others may not have known until now."""
        return self._board.attend()

    def is_elsewhere(self) -> bool:
        """Tell whether somebody waits at another worker, or may: not all say it in this memory."""
        return not self._all_say or not self._members.knows_all or self._board.is_attended()

    def _on_change(self) -> None:
        heads = self._members.own.heads
        self._all_say = all(it.says_attention and it.heads == heads for it in self._members.others())
