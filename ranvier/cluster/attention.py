"""Whether anybody waits, at another worker, for what this one commits.

To tell of a commit wakes Redis and each worker, which costs more than what is told. Where nobody waits at any
of them the commits of a moment are told together (``log.holding``). Who begins to wait first says so in the
memory of this machine, and then has those who hold something back tell it.
"""

from __future__ import annotations

from ranvier.cluster.head_board import HeadBoard
from ranvier.cluster.lately import Lately
from ranvier.cluster.members import Members


class Attention:
    """Say that somebody waits here, and know whether somebody does elsewhere.

    Workers of other machines and of older releases do not say it in this memory: where one is, or was lately,
    or nobody knows who is there, nothing is held back.
    """

    def __init__(self, board: HeadBoard, members: Members) -> None:
        self._board = board
        self._members = members
        self._silent = Lately(members, lambda it: not it.says_attention or it.heads != members.own.heads)

    def attend(self) -> bool:
        """Say that somebody waits here for a while; True if others may hold back what they wait for."""
        return self._board.attend()

    def hold(self) -> bool:
        """Say that something is held back here; False if somebody waits at another worker, or may."""
        return self._members.knows_all and not self._silent.any and self._board.hold()

    def release(self) -> None:
        """Say that nothing is held back here."""
        self._board.release()
