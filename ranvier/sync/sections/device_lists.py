"""Users whose keys a client should ask for anew, and those whom it need not follow any more."""

from __future__ import annotations

import orjson

from ranvier.sync.context import SyncContext
from ranvier.users.device_lists import DeviceLists


class DeviceListsSection:
    """The key ``device_lists``: "only present on an incremental sync"."""

    def __init__(self, device_lists: DeviceLists) -> None:
        self._device_lists = device_lists

    async def initial(self, context: SyncContext) -> bytes | None:
        """Give nothing: a client that begins asks for all keys that it needs."""
        return None

    async def since(self, context: SyncContext) -> bytes | None:
        """Give ``changed`` and ``left``."""
        assert context.since is not None
        changed, left = await self._device_lists.since(context.user_id, context.since.pos)
        if not changed and not left:
            return None
        # In no order: a client that was away for long is told of all members of its rooms.
        return orjson.dumps({"changed": list(changed), "left": list(left)})
