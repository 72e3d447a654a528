"""What Redis runs in one go for the ephemeral counter: nobody sees half of it.

Three keys: ``count`` (the newest count), ``epoch`` (made anew whenever Redis lost its memory, or a part of
it) and two indexes of what was said last under each key: ``said`` (hash: field to message) and ``order``
(sorted set: field by count). Messages are ``count epoch payload`` with blanks between.
"""

from __future__ import annotations

from typing import Final

KEYS: Final = ("ephemeral:count", "ephemeral:epoch", "ephemeral:said", "ephemeral:order")

_BEGIN: Final = """
  epoch = ARGV[1]
  redis.call('DEL', KEYS[3], KEYS[4])
  redis.call('SET', KEYS[1], 0)
  redis.call('SET', KEYS[2], epoch)
"""

# The counter and the epoch belong together: if one of them is gone, both begin anew.
_EPOCH: Final = f"""
local epoch = redis.call('GET', KEYS[2])
if not epoch or redis.call('EXISTS', KEYS[1]) == 0 then
{_BEGIN}
end
"""

PUBLISH: Final = (
    _EPOCH
    + """
local count = redis.call('INCR', KEYS[1])
local message = count .. ' ' .. epoch .. ' ' .. ARGV[4]
redis.call('HSET', KEYS[3], ARGV[3], message)
redis.call('ZADD', KEYS[4], count, ARGV[3])
local over = redis.call('ZCARD', KEYS[4]) - ARGV[5]
if over > 0 then
  local popped = redis.call('ZPOPMIN', KEYS[4], over)
  for i = 1, #popped, 2 do redis.call('HDEL', KEYS[3], popped[i]) end
end
redis.call('PUBLISH', ARGV[2], message)
return {count, epoch}
"""
)
"""Arguments: epoch to use if there is none, channel, field, payload, most fields. Answer: count, epoch."""

# What a Redis counts that came back from an older dump would seem to be known.
_WENT_BACK: Final = f"""
if epoch == ARGV[2] and tonumber(redis.call('GET', KEYS[1])) < tonumber(ARGV[3]) then
{_BEGIN}
end
"""

LOAD: Final = (
    _EPOCH
    + _WENT_BACK
    + """
local after = epoch == ARGV[2] and ARGV[3] or 0
local fields = redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. after, '+inf', 'LIMIT', 0, ARGV[4])
local messages = #fields > 0 and redis.call('HMGET', KEYS[3], unpack(fields)) or {}
return {tonumber(redis.call('GET', KEYS[1])), epoch, messages}
"""
)
"""Arguments: epoch to use if there is none, epoch and count that are known, most messages.

Answer: the newest count, the epoch, and the oldest messages after the known count (or from the beginning
of another epoch), in order.
"""
