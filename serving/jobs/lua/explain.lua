-- explain(id, jobs_max) -> JSON, or '' if there is no such job: where it stands among those that wait,
-- and what goes first as things stand: classes in their order, and in each the first jobs by rank.
local id, most = ARGV[1], tonumber(ARGV[2])
local state, pool, class, user = unpack(redis.call('HMGET', key('job', id), 'state', 'pool', 'class', 'user'))
if not state then
  return ''
end
local now = now_ms()
local answer = {id = id, state = state, pool = pool, service_class = class, user = user}
if state ~= 'queued' then
  return cjson.encode(answer)
end
local classes = waiting_classes(pool)
local least = redis.call('ZRANGE', key('ready', pool, class), 0, 0, 'WITHSCORES')[2]
local me = contender(id, now, nil, SEATS[class])
local queued_ms, attempts = unpack(redis.call('HMGET', key('job', id), 'queued_ms', 'attempts'))
answer.order = class_order(credits_of(pool), classes)
answer.credit_ms, answer.window_ms = fair_field(pool, class, 'credit'), fair_field(pool, class, 'window')
answer.counter_ms, answer.least_ms = counter_of(pool, class, user) or 0, tonumber(least or 0)
answer.seat, answer.urgency_ms = me.seat, me.urgency
answer.parked = redis.call('ZSCORE', key('ready', pool, class), user) == false
answer.running = redis.call('HLEN', key('user', user, 'running'))
answer.own_before = redis.call('ZRANK', line(pool, class, user, ORDERS[1].name),
  (place_of(id))) or 0
answer.queued_ms, answer.attempts = now - (queued_ms or me.contender[1]), tonumber(attempts or 0)
answer.replicas = redis.call('ZCARD', key('replicas', pool))
local before = {}
for _, other in ipairs(answer.order) do
  for job in each_waiting(pool, other, now) do
    if job.id == id or #before == most then
      break
    end
    before[#before + 1] = {id = job.id, service_class = other, user = job.tenant.user,
      counter_ms = counter_of(pool, other, job.tenant.user), urgency_ms = job.urgency, left_ms = job.contender[3]}
  end
  if other == class then
    break
  end
end
answer.before = before
return cjson.encode(answer)
