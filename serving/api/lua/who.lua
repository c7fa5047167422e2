-- who(id, sha256, end_user): whose secret this is. Returns {user, scopes, tier}, the tier being
-- that of <user>/<end_user> if an end user is named, or nil if the secret is not valid (any more).
local id, sha256, end_user = unpack(ARGV)
local record = key('apikey', id)
local user, scopes, current, previous, until_ms, unused = unpack(redis.call('HMGET', record,
  'user', 'scopes', 'sha256', 'previous_sha256', 'previous_until_ms', 'unused'))
if sha256 == current then
  if unused then
    -- Once in a rotation. A Redis that will not write now must not refuse the caller for it.
    redis.pcall('HDEL', record, 'unused')
  end
elseif sha256 ~= previous or now_ms() >= tonumber(until_ms) then
  return false
end
local tenant = end_user == '' and user or user .. '/' .. end_user
return {user, scopes, redis.call('HGET', key('user', tenant), 'tier')}
