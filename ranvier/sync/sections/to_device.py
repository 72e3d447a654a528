"""Messages to the device that syncs."""

from __future__ import annotations

from ranvier.sync.context import SyncContext
from ranvier.users.to_device import ToDeviceInboxes


class ToDeviceSection:
    """The key ``to_device``. Asking for it acknowledges what came before ``since``."""

    def __init__(self, inboxes: ToDeviceInboxes) -> None:
        self._inboxes = inboxes

    async def initial(self, context: SyncContext) -> bytes | None:
        """Give all messages that wait for the device."""
        return await self._receive(context, 0, in_tail=False)

    async def since(self, context: SyncContext) -> bytes | None:
        """Give the messages that ``since`` does not acknowledge."""
        assert context.since is not None
        return await self._receive(context, context.since.pos, in_tail=context.in_tail)

    async def _receive(self, context: SyncContext, since: int, *, in_tail: bool) -> bytes | None:
        if context.device_id is None:
            return None
        device = (context.user_id, context.device_id)
        events = await self._inboxes.receive(device, since, context.upto.pos, in_tail=in_tail)
        return b'{"events":[%b]}' % b",".join(events) if events else None
