-- Prepended to the scripts that measure how long jobs take and whether that was as promised.

-- One more observation of a pool's histogram: wait (submission to first lease, noted with the first step,
-- or the end: leases are to be short), first_step (to the first denoising step), done (to the stored clip).
local function note_time(pool, class, name, ms)
  local BUCKETS_S = {0.5, 1, 2, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600}
  local bucket = 'inf'
  for _, most_s in ipairs(BUCKETS_S) do
    if ms <= 1000 * most_s then
      bucket = most_s
      break
    end
  end
  local times, start = key('times', pool), class .. ':' .. name .. ':'
  redis.call('HINCRBY', times, start .. bucket, 1)
  redis.call('HINCRBY', times, start .. 'sum', string.format('%d', ms))
end

-- A job ended; what its hash says is what it was until now. One that was cancelled promised nothing more.
-- Of one that was made and never told of its first step, that was when it ended, at the latest.
local function measure_end(id, pool, state, now)
  local class, created, est, started, first = unpack(redis.call('HMGET', key('job', id), 'class',
    'created_ms', 'est_device_ms', 'started_ms', 'first_step_ms'))
  redis.call('HINCRBY', key('backlog', pool), class .. ':ended_jobs', 1)
  redis.call('HINCRBY', key('backlog', pool), class .. ':ended_ms', est)
  if started and not first then
    note_time(pool, class, 'wait', started - created)
  end
  if state == 'cancelled' then
    return
  end
  local completed = state == 'completed'
  if completed then
    if not first then
      note_time(pool, class, 'first_step', now - created)
    end
    note_time(pool, class, 'done', now - created)
  end
  first = tonumber(first or now)
  local within_ms, factor =
    unpack(redis.call('HMGET', key('objectives', pool), class .. ':first_step_ms', class .. ':factor'))
  local function note(objective, attained)
    local outcome = completed and attained and ':attained' or ':missed'
    redis.call('HINCRBY', key('slo', pool), class .. ':' .. objective .. outcome, 1)
  end
  if within_ms then
    note('first_step', first - created <= tonumber(within_ms))
  end
  if factor then
    note('done', now - first <= factor * est)
  end
end

-- The pool has a replica less on its way: this one will not become ready. Counted once.
local function fail_start(pool, replica, error)
  if redis.call('ZREM', key('starting', pool), replica) == 1 then
    redis.call('HINCRBY', key('starts', pool), 'failed', 1)
    redis.call('HINCRBY', key('starts', pool), 'failures', 1)
    redis.call('HSET', key('starts', pool), 'failed_ms', now_ms(), 'error', error)
  end
end

-- Steps that were done and will have to be done again, or never will.
local function waste_steps(pool, how, steps)
  if steps > 0 then
    redis.call('HINCRBY', key('steps', pool), how, steps)
  end
end
