"""What is told and not kept: who types, who is online; built on the core."""

from __future__ import annotations

from dataclasses import dataclass

from ranvier.config import Config
from ranvier.processes.core import Core
from ranvier.storage.presence import PresenceStore
from ranvier.users.presence import Presence
from ranvier.users.presence_states import PresenceStates
from ranvier.users.returning import ReturningUsers
from ranvier.users.shown_presence import ShownPresence
from ranvier.users.typing import TypingUsers


@dataclass(frozen=True)
class EphemeralParts:
    """The objects, under the names that endpoints ask for."""

    presence: Presence
    presence_states: PresenceStates
    presence_store: PresenceStore
    returning_users: ReturningUsers
    shown_presence: ShownPresence
    typing_users: TypingUsers


def build_ephemeral(core: Core, config: Config) -> EphemeralParts:
    """Build presence and typing. ``run`` of each is to run always."""
    states = PresenceStates(bus=core.bus)
    store = PresenceStore(core.database)
    return EphemeralParts(
        presence=Presence(
            config=config.presence,
            states=states,
            store=store,
            tail=core.tail,
            clock=core.clock,
            process=config.worker.name,
        ),
        presence_states=states,
        presence_store=store,
        returning_users=ReturningUsers(
            config=config.presence,
            states=states,
            store=store,
            clock=core.clock,
            process=config.worker.name,
        ),
        shown_presence=ShownPresence(
            config=config.presence,
            states=states,
            store=store,
            memberships=core.memberships,
            rooms=core.rooms,
            clock=core.clock,
        ),
        typing_users=TypingUsers(
            bus=core.bus, tail=core.tail, memberships=core.memberships, clock=core.clock
        ),
    )
