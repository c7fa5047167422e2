-- decided(lines_max) -> now, {pool, decision, …}, the newest lines of the history
local lines = tonumber(ARGV[1])
return {now_ms(), redis.call('HGETALL', key('autoscale')),
  lines > 0 and redis.call('LRANGE', key('autoscale', 'history'), 0, lines - 1) or {}}
