-- rotate_key(id, sha256, grace_ms): the key's secret is a new one from now on; the one before
-- works until the grace ends. Returns the key's hash, or nil if there is no such key.
--
-- A secret that nobody has called with is replaced and not kept: its answer was lost, perhaps, and
-- whoever rotates again must not end the one that is in use.
local id, sha256, grace_ms = unpack(ARGV)
local record = key('apikey', id)
local current, until_ms, unused =
  unpack(redis.call('HMGET', record, 'sha256', 'previous_until_ms', 'unused'))
if not current then
  return false
end
if current ~= sha256 then  -- else this command is repeated
  local now = now_ms()
  if not (unused and now < tonumber(until_ms)) then
    redis.call('HSET', record, 'previous_sha256', current)
  end
  redis.call('HSET', record, 'sha256', sha256, 'previous_until_ms', now + grace_ms, 'unused', 1)
end
return redis.call('HGETALL', record)
