-- usage(user, pools with their surge_ms as JSON [[pool, ms or null], …], per_minute, days) -> {limits, running,
-- queued, {1 where the pool surges, else 0, …}}; '' is none
local user, pools, surging = ARGV[1], cjson.decode(ARGV[2]), {}
for i, pool in ipairs(pools) do
  surging[i] = pool[2] ~= cjson.null and surges(pool[1], pool[2]) and 1 or 0
end
return {limits_told(limits_now(user, '', now_ms(), ARGV[4], ARGV[3], '')),
  redis.call('HLEN', key('user', user, 'running')), queued_of(user), surging}
