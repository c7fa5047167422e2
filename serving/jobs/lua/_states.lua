-- Prepended to every script of this room: what each transition of a job does.

-- Progress stays on record until the next lease. holder: the replica that has its checkpoint in
-- memory, or ''. The job is as old as it was, and has only the work left that its checkpoint does not
-- save.
local function requeue(id, pool, holder)
  redis.call('ZREM', key('leased', pool), id)
  redis.call('HSET', key('job', id), 'state', 'queued', 'queued_ms', now_ms(), 'phase', '',
    'remaining_ms', 0, 'holder', holder)
  unlease_class(id, pool)
  enqueue(id, pool)
end

-- What a job that ended did not use of its day's allowance. One that was made counts with what it took, and
-- so does one that was cancelled once it had begun; of one that we failed nothing counts.
local function give_back_allowance(id, state)
  local user, day, est, spent = unpack(redis.call('HMGET', key('job', id), 'user', 'day',
    'est_device_ms', 'spent_ms'))
  if day then
    spent = tonumber(spent or 0)
    local counts = state == 'completed' or (state == 'cancelled' and spent > 0)
    unuse(user, day, counts and 0 or 1, est - (counts and spent or 0))
  end
end

-- What was held for a job that ended is taken if it was made, and else given back. Of one that was heard
-- while it was made, what that costs is taken when its listener left.
local function settle_credits(id, state)
  local credits, made = unpack(redis.call('HMGET', key('job', id), 'credits', 'made_credits'))
  if not credits then
    return
  elseif state == 'completed' then
    capture(id, tonumber(credits))
  elseif state == 'cancelled' and tonumber(made or 0) > 0 then
    capture(id, tonumber(made))
    redis.call('HSET', key('job', id), 'credits', made)
  else
    release(id)
    redis.call('HSET', key('job', id), 'credits', 0)
  end
end

-- The one place that writes a terminal state. Checkpoints and previews of a job that made no clip
-- are of no use; those of one that did are removed by whoever stored the clip.
local function finish(id, pool, state, name, value)
  local now = now_ms()
  dequeue(id, pool)
  if redis.call('ZREM', key('leased', pool), id) == 1 then
    settle(id, pool)
  end
  give_back_allowance(id, state)
  settle_credits(id, state)
  measure_end(id, pool, state, now)
  local expires = now + tonumber(job_field(id, 'retention_ms'))
  redis.call('HSET', key('job', id), 'state', state, 'finished_ms', now, 'expires_ms', expires,
    'phase', '', 'remaining_ms', 0, name, value)
  redis.call('HDEL', key('job', id), 'checkpoint', 'checkpoint_step', 'preview', 'preview_step')
  redis.call('ZADD', key('expiring'), expires, id)
  redis.call('HINCRBY', key('ended', pool), state, 1)
  if state ~= 'completed' and not job_field(id, 'inline') then
    redis.call('ZADD', key('garbage'), now, id)
  end
end

-- Tell the replica that runs this job, if any, that its fence is no longer valid.
local function drop_run(id, pool)
  local fence = job_field(id, 'fence')
  if fence then
    redis.call('PUBLISH', key('drop', pool), id .. ' ' .. fence)
  end
end

-- Of the steps that a run has done, those that its checkpoint does not save.
local function unsaved_steps(id, step)
  return tonumber(step or 0) - tonumber(job_field(id, 'checkpoint_step') or 0)
end

-- Forget an ended job. Its files are garbage from now on.
local function forget(id)
  local user, seq, inline = unpack(redis.call('HMGET', key('job', id), 'user', 'seq', 'inline'))
  redis.call('ZREM', key('expiring'), id)
  redis.call('DEL', key('job', id))
  if inline then
    return  -- it has no files, and is in no list
  end
  redis.call('SET', key('gone', id), seq .. ' ' .. user, 'EX', 3600)
  redis.call('ZREM', list_of(user, id), id)
  redis.call('ZADD', key('garbage'), now_ms(), id)
end

-- The replica that ran this job is gone: it returns to its place, or ends as failed with
-- lost_error once it was tried attempts_max times, or has lost its listener.
local function lose(id, pool, attempts_max, lost_error)
  drop_run(id, pool)
  count(pool, 'lease_lost')
  waste_steps(pool, 'lost', unsaved_steps(id, job_field(id, 'step')))
  if tonumber(job_field(id, 'attempts')) >= attempts_max or job_field(id, 'inline') then
    finish(id, pool, 'failed', 'error', lost_error)
  else
    -- What its checkpoint does not save is done again, and not at the tenant's expense.
    settle(id, pool, true)
    requeue(id, pool, '')
  end
end

-- Whoever speaks leaves the time. Replicas and ingresses do so every second or two, so when nobody
-- did for longer, Redis itself was away: that time does not count against any lease.
local function speak()
  local now = now_ms()
  local silence = now - (spoken_ms or now)
  spoken_ms = now
  redis.call('SET', key('seen'), string.format('%d', now))
  if ahead_ms > 0 then
    ahead_ms = math.max(0, ahead_ms - math.min(silence / 10, SLOWER_MS))
    redis.call('SET', key('ahead'), ahead_ms)
  end
  if silence <= SILENCE_MS then
    return
  end
  for _, pool in ipairs(redis.call('SMEMBERS', key('pools'))) do
    for _, id in ipairs(redis.call('ZRANGE', key('leased', pool), 0, -1)) do
      lease_until(id, pool, tonumber(job_field(id, 'lease_until_ms')) + silence)
    end
  end
end

-- Take back the jobs of this pool whose lease ran out.
local function reap(pool, attempts_max, lost_error)
  speak()
  local lapsed =
    redis.call('ZRANGEBYSCORE', key('leased', pool), '-inf', string.format('%d', now_ms()), 'LIMIT', '0', '100')
  for _, id in ipairs(lapsed) do
    lose(id, pool, attempts_max, lost_error)
  end
end
