-- balance(user) -> {spendable, held, debt, {grant, …}}: its grants that have something left, in the order they
-- are used, each as {ref, kind, amount, left, priority, created_ms, expires_ms or ''}
local user, grants, now = ARGV[1], {}, now_ms()
for _, place in ipairs(redis.call('ZRANGE', key('grants', user), 0, GRANTS_MAX - 1)) do
  local priority, expires_ms, created_ms, ref = string.match(place, '^(%d+) (%d+) (%d+) (%S+)$')
  if tonumber(expires_ms) > now then
    local got = redis.call('HMGET', key('credit', ref), 'kind', 'amount', 'left')
    grants[#grants + 1] = {ref, got[1], got[2], got[3], priority, created_ms,
      tonumber(expires_ms) < NEVER_MS and expires_ms or ''}
  end
end
local left, debt = spendable(user, AMOUNT_MAX)
return {whole(left), redis.call('HGET', key('credits', user), 'held') or '0', whole(debt), grants}
