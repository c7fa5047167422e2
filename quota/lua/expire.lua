-- expire(most) -> how many grants were booked as expired now, at most so many
local due = redis.call('ZRANGEBYSCORE', key('grants_expiring'), '-inf', now_ms(), 'LIMIT', 0, ARGV[1])
for _, ref in ipairs(due) do
  expire(ref)
end
return #due
