"""Filters: uploaded ones by their ids, inline ones as they are, parsed once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import msgspec
import orjson

from ranvier.spec.errors import MatrixError, bad_json, invalid_param, not_found
from ranvier.spec.filters import NO_FILTER, Filter, parse_filter
from ranvier.storage.filters import FilterStore

MAX_FILTERS: Final = 1000
"""Filters that one user may upload; equal ones count once."""
MAX_BYTES: Final = 64 * 1024
"""Size of one filter, canonical JSON."""
_MAX_ID: Final = 18
_MAX_CACHED_BYTES: Final = 4 << 20


class Filters:
    """Store filters and give them parsed, none of which takes more than ``timeline_limit`` events of a room.

    Filters never change, so what was parsed once stays true; up to ``max_bytes`` of definitions are kept.
    """

    def __init__(
        self, *, store: FilterStore, timeline_limit: int = 100, max_bytes: int = _MAX_CACHED_BYTES
    ) -> None:
        self._store = store
        self._timeline_limit = timeline_limit
        self._max_bytes = max_bytes
        self._bytes = 0
        self._parsed: OrderedDict[tuple[str, str], tuple[Filter, int]] = OrderedDict()

    async def add(self, user_id: str, definition: Any) -> str:
        """Store a filter and give its id.

        Raises 400 ``M_BAD_JSON`` or ``M_INVALID_PARAM`` for a broken one, 413 ``M_TOO_LARGE``.
        """
        parse_filter(definition)
        document = orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)
        if len(document) > MAX_BYTES:
            raise MatrixError("M_TOO_LARGE", 413, f"A filter may have at most {MAX_BYTES} bytes")
        filter_id = await self._store.find(user_id, document)
        if filter_id is None:
            if await self._store.count(user_id) >= MAX_FILTERS:
                raise MatrixError("M_TOO_LARGE", 413, f"A user may have at most {MAX_FILTERS} filters")
            filter_id = await self._store.add(user_id, document)
        return str(filter_id)

    async def definition(self, user_id: str, filter_id: str) -> bytes:
        """Give a stored filter as it was uploaded, JSON. Raises 404 ``M_NOT_FOUND``."""
        document = None
        if filter_id.isascii() and filter_id.isdigit() and len(filter_id) <= _MAX_ID:
            document = await self._store.get(user_id, int(filter_id))
        if document is None:
            raise not_found("No such filter")
        return document

    async def get(self, user_id: str, wanted: str | None) -> Filter:
        """Give the filter that a query parameter names: an id, inline JSON, or nothing.

        Raises 400 ``M_INVALID_PARAM`` for an unknown id, ``M_NOT_JSON`` or ``M_BAD_JSON`` for broken JSON.
        """
        if not wanted:
            return NO_FILTER
        # "a filter_id … cannot start with a { as this character is used to determine if the filter
        # provided is inline JSON"
        inline = wanted.startswith("{")
        key = ("" if inline else user_id, wanted)
        known = self._parsed.get(key)
        if known is not None:
            self._parsed.move_to_end(key)
            return known[0]
        if inline:
            document = wanted.encode()
            parsed = self._capped(parse_filter(_decode(document)))
        else:
            try:
                document = await self.definition(user_id, wanted)
            except MatrixError:
                raise invalid_param("The filter parameter names no filter of yours") from None
            parsed = self._capped(parse_filter(orjson.loads(document)))
        self._keep(key, parsed, len(document))
        return parsed

    def held(self, user_id: str, wanted: str | None) -> Filter | None:
        """Give the filter that a query parameter names if it is in memory."""
        if not wanted:
            return NO_FILTER
        known = self._parsed.get(("" if wanted.startswith("{") else user_id, wanted))
        return None if known is None else known[0]

    def _capped(self, parsed: Filter) -> Filter:
        timeline = parsed.room.timeline
        if timeline.limit is None or timeline.limit <= self._timeline_limit:
            return parsed
        replace = msgspec.structs.replace
        return replace(
            parsed, room=replace(parsed.room, timeline=replace(timeline, limit=self._timeline_limit))
        )

    def _keep(self, key: tuple[str, str], parsed: Filter, size: int) -> None:
        size += len(key[1]) + 500
        if size > self._max_bytes // 8 or key in self._parsed:
            return
        self._parsed[key] = (parsed, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, dropped) = self._parsed.popitem(last=False)
            self._bytes -= dropped


def _decode(document: bytes) -> Any:
    try:
        return msgspec.json.decode(document)
    except RecursionError:
        raise bad_json("The filter is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MatrixError("M_NOT_JSON", 400, f"The filter is not JSON: {error}") from None
