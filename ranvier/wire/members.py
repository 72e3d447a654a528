"""What one worker tells of itself to all others, and to the commands that look at the cluster."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from ranvier.wire.figures import Figures

BACKGROUND: Final = "background"
"""The role of those who do what one worker at a time has to do."""

CLIENT_ROLES: Final = ("client", "sync")
"""The roles of those whom the web server asks."""

ROLES: Final = (
    "client",
    "sync",
    "federation_in",
    "federation_sender",
    "media",
    "push",
    "appservice",
    BACKGROUND,
)
"""What a worker may be sent; by default each is sent everything."""

LIVE: Final = "live"
DRAINING: Final = "draining"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as it announces itself, in JSON, under ``<prefix>member:<name>``.

    ``address`` is where other workers reach it (``unix:/path`` or ``tcp:host:port``), ``instance``
    differs between two lives of one name, ``heads`` names the memory in which the workers of one machine
    tell the newest position (see ``cluster.head_board``), ``says_attention`` that it says there, too, whether
    anybody waits at it (older releases do not), ``writers`` is how many of them rooms are
    placed on (0: on all; see ``cluster.writers``), ``fronted`` says that connections can be moved to it,
    ``for_clients`` that clients find it, ``restarts`` that something starts it again when it ends.
    ``beat`` counts its announcements, ``pos`` is how far it has followed the log, ``load`` the share of
    one core that it used lately.
    """

    name: str
    instance: str
    pid: int
    host: str
    address: str
    heads: str = ""
    says_attention: bool = False
    roles: tuple[str, ...] = ROLES
    version: str = ""
    state: str = LIVE
    started_ts: int = 0
    beat: int = 0
    pos: int = 0
    load: float = 0.0
    writers: int = 0
    fronted: bool = False
    for_clients: bool = True
    restarts: bool = False
    memory_bytes: int = 0
    requests: int = 0
    connections: int = 0
    bus_connected: bool = True
    figures: Figures = Figures()

    def takes(self, role: str) -> bool:
        """Tell whether this worker is to be sent what belongs to a role."""
        return self.state == LIVE and role in self.roles


_decoder = msgspec.json.Decoder(Member)


def decode_members(values: Collection[bytes]) -> list[Member]:
    """Read announcements; what this version cannot read is left out: a newer worker may have written it."""
    members = []
    for value in values:
        try:
            members.append(_decoder.decode(value))
        except msgspec.DecodeError:
            continue
    return members
