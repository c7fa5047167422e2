-- observe(pool) -> the pool at one moment: {now_ms, queued, leased, backlog, {in flight by class: {jobs,
-- ms, ms as estimated at submission}, …}, {parked by class: {jobs, ms}, …}, {age of the oldest that may be
-- leased, by class, or -1 (ms), …}, ended, counts, tallies, refused, steps,
-- times, slo, starts, startups, {a replica's hash, …}}
-- Hashes are flat lists of names and values; classes are in their order. In flight is what is left of
-- the jobs that are leased, by their estimates. Parked is what waits for users who run as many jobs as
-- they may: PARKED_MAX of them, drawn anew each time, stand for all, and a job of the class's mean for each
-- of theirs. To find the oldest in each class the first OLDEST_MAX that wait are looked at; of a class that is
-- not among them, none is older than the last of these.
local OLDEST_MAX, PARKED_MAX = 512, 512
local pool, now = ARGV[1], now_ms()

local function in_flight()
  local jobs, left, whole_ms = {}, {}, {}
  for _, id in ipairs(redis.call('ZRANGE', key('leased', pool), 0, -1)) do
    local class, charged, spent, est =
      unpack(redis.call('HMGET', key('job', id), 'class', 'charged_ms', 'spent_ms', 'est_device_ms'))
    jobs[class] = (jobs[class] or 0) + 1
    left[class] = (left[class] or 0) + math.max(0, (charged or 0) - (spent or 0))
    whole_ms[class] = (whole_ms[class] or 0) + est
  end
  local found = {}
  for i, class in ipairs(CLASSES) do
    found[i] = {jobs[class] or 0, math.floor(left[class] or 0), whole_ms[class] or 0}
  end
  return found
end

local function parked()
  local users, jobs, found = redis.call('SRANDMEMBER', key('parked'), PARKED_MAX), {}, {}
  for _, user in ipairs(users) do
    for _, class in ipairs(CLASSES) do
      local n = redis.call('HGET', key('user', user, 'lines'), pool .. ' ' .. class)
      jobs[class] = (jobs[class] or 0) + (n or 0)
    end
  end
  local each = #users > 0 and redis.call('SCARD', key('parked')) / #users or 0
  for i, class in ipairs(CLASSES) do
    local all, ms = unpack(redis.call('HMGET', key('backlog', pool), class .. ':jobs', class .. ':ms'))
    all, ms = tonumber(all or 0), tonumber(ms or 0)
    local n = math.min(all, math.floor((jobs[class] or 0) * each))
    found[i] = {n, n > 0 and math.floor(ms * n / all) or 0}
  end
  return found
end

local function oldest()
  local ages, wanted, age = {}, 0, -1
  for _, class in ipairs(CLASSES) do
    local waits = tonumber(redis.call('HGET', key('backlog', pool), class .. ':jobs') or 0) > 0
    ages[class], wanted = not waits and -1 or nil, wanted + (waits and 1 or 0)
  end
  local ids = wanted > 0 and redis.call('ZRANGE', key('queued', pool), 0, OLDEST_MAX - 1) or {}
  for _, id in ipairs(ids) do
    local class, created, user = unpack(redis.call('HMGET', key('job', id), 'class', 'created_ms', 'user'))
    age = math.max(0, now - created)
    if not ages[class] and redis.call('SISMEMBER', key('parked'), user) == 0 then
      ages[class], wanted = age, wanted - 1
      if wanted == 0 then
        break
      end
    end
  end
  local found = {}
  for i, class in ipairs(CLASSES) do
    found[i] = ages[class] or (#ids == OLDEST_MAX and age or -1)
  end
  return found
end

local replicas = {}
for _, kind in ipairs({'replicas', 'starting'}) do
  for _, replica in ipairs(redis.call('ZRANGE', key(kind, pool), 0, -1)) do
    local said = redis.call('HGETALL', key('replica', replica))
    if #said > 0 then  -- one that fell silent has no hash any more
      replicas[#replicas + 1] = said
    end
  end
end
local function hash(kind)
  return redis.call('HGETALL', key(kind, pool))
end
return {now, redis.call('ZCARD', key('queued', pool)), redis.call('ZCARD', key('leased', pool)),
  hash('backlog'), in_flight(), parked(), oldest(), hash('ended'), hash('counts'), hash('tallies'),
  hash('refused'), hash('steps'), hash('times'), hash('slo'), hash('starts'),
  redis.call('LRANGE', key('startups', pool), 0, -1), replicas}
