-- top(pool, tenants_max) -> JSON: for each class its backlog, its standing among the classes, and the
-- first of its tenants, {user, counter, waiting, running}; parked ones are not among them.
local pool, most = ARGV[1], tonumber(ARGV[2])
local backlog = key('backlog', pool)
local answer, order = {}, class_order(credits_of(pool), waiting_classes(pool))
for _, class in ipairs(CLASSES) do
  local tenants = {}
  local ready = redis.call('ZRANGE', key('ready', pool, class), 0, most - 1, 'WITHSCORES')
  for i = 1, #ready, 2 do
    local user = ready[i]
    tenants[#tenants + 1] = {user = user, counter_ms = tonumber(ready[i + 1]),
      waiting = redis.call('ZCARD', line(pool, class, user, ORDERS[1].name)),
      running = redis.call('HLEN', key('user', user, 'running'))}
  end
  answer[#answer + 1] = {service_class = class,
    jobs = tonumber(redis.call('HGET', backlog, class .. ':jobs') or 0),
    ms = tonumber(redis.call('HGET', backlog, class .. ':ms') or 0),
    credit_ms = fair_field(pool, class, 'credit'), window_ms = fair_field(pool, class, 'window'),
    ready = redis.call('ZCARD', key('ready', pool, class)), tenants = tenants}
end
return cjson.encode({order = order, classes = answer})
