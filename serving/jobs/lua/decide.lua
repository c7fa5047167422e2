-- decide(line, history_max, pool, decision, …) -> now
-- What the autoscaler decided, as JSON objects: the last decision of each pool, and one line about
-- all of them for the history. Each is given the time, as its first field, at_ms. A pool that is not
-- named any more is forgotten. Repeated after a lost answer, the history has the line twice.
local now = now_ms()

local function stamped(object)
  return string.format('{"at_ms":%.0f,%s', now, string.sub(object, 2))
end

redis.call('DEL', key('autoscale'))
for i = 3, #ARGV, 2 do
  redis.call('HSET', key('autoscale'), ARGV[i], stamped(ARGV[i + 1]))
end
redis.call('LPUSH', key('autoscale', 'history'), stamped(ARGV[1]))
redis.call('LTRIM', key('autoscale', 'history'), 0, ARGV[2] - 1)
return now
