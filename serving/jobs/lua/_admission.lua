-- Prepended to the scripts that admit jobs or say whether they would: what a user has and may.

-- Jobs of this user that wait, wherever.
local function queued_of(user)
  local n = 0
  for _, jobs in ipairs(redis.call('HVALS', key('user', user, 'lines'))) do
    n = n + jobs
  end
  return n
end

-- Whether the jobs of this pool that go before relaxed ones take longer to drain than surge_ms.
local function surges(pool, surge_ms)
  local burst, standard =
    unpack(redis.call('HMGET', key('backlog', pool), 'burst:ms', 'standard:ms'))
  local backlog_ms = (burst or 0) + (standard or 0)
  surge_ms = tonumber(surge_ms)
  return backlog_ms > surge_ms
    and backlog_ms / math.max(1, redis.call('ZCARD', key('replicas', pool))) > surge_ms
end

-- What there is to know of a user's limits: the day and what of it was used, where there are days; the
-- rate, where it is bounded; whether the pool surges. '' is none.
local function limits_now(user, pool, now, days, per_minute, surge_ms)
  local generations, gpu_ms, day, ends, paid, fresh, rate = 0, 0
  if days ~= '' then
    day, ends = day_of(days, now)
  end
  if day or per_minute ~= '' then
    generations, gpu_ms, paid, fresh = used_of(user, day)
    if per_minute ~= '' then
      rate = rate_of(paid, tonumber(per_minute), now)
    end
  end
  return {day = day, ends = ends, generations = generations, gpu_ms = gpu_ms, fresh = fresh, rate = rate,
    surges = surge_ms ~= '' and surges(pool, surge_ms)}
end

-- As Allowance.of reads them, numbers in one string: generations used, device ms used, when the day ends (ms) or -1,
-- submissions left or -1, in how long all are there again (ms), whether the pool surges.
local function limits_told(limits)
  local left, refill_ms = -1, 0
  if limits.rate then
    left, refill_ms = rate_left(limits.rate)
  end
  return string.format('%d %d %d %d %d %d', limits.generations, limits.gpu_ms,
    limits.ends or -1, left, refill_ms, limits.surges and 1 or 0)
end
