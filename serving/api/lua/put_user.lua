-- put_user(user, tier, only_new): the user's tier, '' for the default one; with only_new = '1' a
-- user who has a record already keeps it as it is. Returns the user's hash.
local user, tier, only_new = unpack(ARGV)
if introduce(user) or only_new ~= '1' then
  set_tier(user, tier)
end
return redis.call('HGETALL', key('user', user))
