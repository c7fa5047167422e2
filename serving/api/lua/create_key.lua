-- create_key(id, sha256, user, scopes, tier): a new key, and its user's record if there is none.
-- A tier of '' leaves the user's as it is. Returns the key's hash.
local id, sha256, user, scopes, tier = unpack(ARGV)
introduce(user)
if tier ~= '' then
  set_tier(user, tier)
end
redis.call('HSET', key('apikey', id), 'user', user, 'scopes', scopes, 'sha256', sha256,
  'created_at', math.floor(now_ms() / 1000))
redis.call('SADD', key('apikeys'), id)
return redis.call('HGETALL', key('apikey', id))
