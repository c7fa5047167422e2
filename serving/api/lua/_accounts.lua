-- Prepended to every script of this room: the keys of users and of their API keys.
--
-- Every script is called with KEYS[1] = the cell's hash tag, such as "{reelserve}", and builds
-- the other keys from it. Time is always Redis's own, so that every ingress agrees on it.
--
-- <cell>:apikey:<id>   hash    user, scopes (with spaces between; absent: generate read), sha256 of
--                              its secret, created_at (s). Once it was rotated: previous_sha256, which
--                              works until previous_until_ms, and unused while nobody has called with
--                              the current secret
-- <cell>:apikeys       set     ids of the keys
-- <cell>:admin_key     string  SHA-256 of the admin key that `reelserve up` made
-- <cell>:user:<user>   hash    created_at (s); tier (absent: the default one)
-- <cell>:users         zset    the users that have such a hash, by when it was made (ms)
local cell = KEYS[1]

local function key(...)
  return cell .. ':' .. table.concat({...}, ':')
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Make a user's record unless there is one; true if there was none. Scores only grow, whatever the
-- clock does: a page of users that begins after the last one seen misses nobody.
local function introduce(user)
  local now = now_ms()
  if redis.call('HSETNX', key('user', user), 'created_at', math.floor(now / 1000)) == 0 then
    return false
  end
  local last = redis.call('ZRANGE', key('users'), -1, -1, 'WITHSCORES')[2]
  redis.call('ZADD', key('users'), math.max(now, (tonumber(last) or 0) + 1), user)
  return true
end

-- '' is the default tier.
local function set_tier(user, tier)
  if tier == '' then
    redis.call('HDEL', key('user', user), 'tier')
  else
    redis.call('HSET', key('user', user), 'tier', tier)
  end
end
