-- Prepended to every script of this room: the keys of the queue, and what each transition does.
--
-- Every script is called with KEYS[1] = the cell's hash tag, such as "{reelserve}", and builds
-- the other keys from it: a lease cannot know beforehand which job it will touch. The tag puts
-- all keys of a cell in one slot. Time is always Redis's own.
--
-- <cell>:schema               string  version of this layout; a process of another one refuses
-- <cell>:seq                  string  order of submission, grows by one with each job
-- <cell>:fence                string  grows by one with each lease of any job
-- <cell>:seen                 string  when a replica or an ingress last spoke (ms)
-- <cell>:job:<id>             hash    the job; serving/jobs/job.py lists the fields
-- <cell>:user:<user>:jobs     zset    the user's job ids by seq
-- <cell>:pools                set     pools that ever had a job
-- <cell>:queued:<pool>        zset    queued job ids by seq: who waits, and who has waited longest
-- <cell>:queued:<pool>:<order> zset   "<seq> <created_ms> <total_ms> <id>" of the same jobs by an order of _rank.lua, whose
--                                     score is fixed while they wait; equal scores go by seq
-- <cell>:leased:<pool>        zset    job ids in progress, by the time their lease ends (ms)
-- <cell>:ended:<pool>         hash    how many jobs reached each terminal state
-- <cell>:tallies:<pool>       hash    sums of what its replicas counted: prompt_cache_hits,
--                                     prompt_cache_misses
-- <cell>:counts:<pool>        hash    how often else what happened: yielded, preempted, lease_lost,
--                                     resumed, resumed_from_memory (of those), checkpoint_corrupt,
--                                     checkpoint_foreign, checkpoint_missing
-- <cell>:emptying:<pool>      string  the replica that takes no more, so that a job can run alone
-- <cell>:costs:<pool>         hash    what the pool's work takes, learned: by "<format> <device class>"
--                                     one cost model as JSON; learn.lua bounds both
-- <cell>:expiring             zset    ids of ended jobs, by the time they are forgotten (ms)
-- <cell>:garbage              zset    ids whose files are of no use any more, by when that was
-- <cell>:gone:<id>            string  "<seq> <user>" of a job that was forgotten, for an hour: so that
--                                     deleting it again and listing on from it both work
-- <cell>:last_lease:<replica> string  "<token> <id> <fence> <victim>": what its last lease call got,
--                                     and which run goes for it, or -
-- <cell>:replica:<id>         hash    a live replica; goes by itself when the replica is silent
-- <cell>:replicas:<pool>      zset    ids of the pool's replicas, by when they started (ms)
-- <cell>:idle:<pool>          zset    ids of replicas that run nothing, by when they last said so (ms)
-- <cell>:wake:<pool>          channel "<now> <created> <total> <remaining>" (ms) of a job that waits:
--                                     replicas with a free slot should lease
-- <cell>:drop:<pool>          channel "<id> <fence>": stop this run, its fence is no longer valid
local cell = KEYS[1]
local SILENCE_MS = 3000
local PLACE = '%016.0f %s %s %s'

local function key(...)
  return cell .. ':' .. table.concat({...}, ':')
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function job_field(id, name)
  return redis.call('HGET', key('job', id), name)
end

local function count(pool, name)
  redis.call('HINCRBY', key('counts', pool), name, 1)
end

-- True while this fence may write to the job: it is in progress under exactly this lease.
-- A deleted job has no state, so its fence is stale too.
local function fence_holds(id, fence)
  local got = redis.call('HMGET', key('job', id), 'state', 'fence')
  return got[1] == 'in_progress' and got[2] == fence
end

local function lease_until(id, pool, until_ms)
  redis.call('HSET', key('job', id), 'lease_until_ms', until_ms)
  redis.call('ZADD', key('leased', pool), until_ms, id)
end

-- Into every order of the queue. A job that comes back is as old as it was, and has only the work
-- left that its checkpoint does not save.
local function enqueue(id, pool)
  local got = redis.call('HMGET', key('job', id), 'seq', 'created_ms', 'est_device_ms',
    'left_device_ms')
  local seq, created, total, left = unpack(got)
  local now = now_ms()
  redis.call('HSET', key('job', id), 'state', 'queued', 'queued_ms', now)
  redis.call('ZADD', key('queued', pool), seq, id)
  local scores = order_scores(tonumber(created), tonumber(total), tonumber(left))
  for i, order in ipairs(ORDERS) do
    redis.call('ZADD', key('queued', pool, order.name), scores[i],
      string.format(PLACE, seq, created, total, id))
  end
  redis.call('PUBLISH', key('wake', pool), table.concat({now, created, total, left}, ' '))
end

-- Out of every order, if it waits.
local function dequeue(id, pool)
  redis.call('ZREM', key('queued', pool), id)
  local seq, created, total =
    unpack(redis.call('HMGET', key('job', id), 'seq', 'created_ms', 'est_device_ms'))
  local place = string.format(PLACE, seq, created, total, id)
  for _, order in ipairs(ORDERS) do
    redis.call('ZREM', key('queued', pool, order.name), place)
  end
end

-- Progress stays on record until the next lease. holder: the replica that has its checkpoint in
-- memory, or ''.
local function requeue(id, pool, holder)
  redis.call('ZREM', key('leased', pool), id)
  redis.call('HSET', key('job', id), 'phase', '', 'remaining_ms', 0, 'holder', holder)
  enqueue(id, pool)
end

-- The one place that writes a terminal state. Checkpoints and previews of a job that made no clip
-- are of no use; those of one that did are removed by whoever stored the clip.
local function finish(id, pool, state, name, value)
  local now = now_ms()
  dequeue(id, pool)
  redis.call('ZREM', key('leased', pool), id)
  local expires = now + tonumber(job_field(id, 'retention_ms'))
  redis.call('HSET', key('job', id), 'state', state, 'finished_ms', now, 'expires_ms', expires,
    'phase', '', 'remaining_ms', 0, name, value)
  redis.call('HDEL', key('job', id), 'checkpoint', 'checkpoint_step', 'preview', 'preview_step')
  redis.call('ZADD', key('expiring'), expires, id)
  redis.call('HINCRBY', key('ended', pool), state, 1)
  if state ~= 'completed' then
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

-- Forget an ended job. Its files are garbage from now on.
local function forget(id)
  local user = job_field(id, 'user')
  redis.call('SET', key('gone', id), job_field(id, 'seq') .. ' ' .. user, 'EX', 3600)
  redis.call('ZREM', key('user', user, 'jobs'), id)
  redis.call('ZREM', key('expiring'), id)
  redis.call('DEL', key('job', id))
  redis.call('ZADD', key('garbage'), now_ms(), id)
end

-- The replica that ran this job is gone: it returns to its place, or ends as failed with
-- lost_error once it was tried attempts_max times.
local function lose(id, pool, attempts_max, lost_error)
  drop_run(id, pool)
  count(pool, 'lease_lost')
  if tonumber(job_field(id, 'attempts')) >= attempts_max then
    finish(id, pool, 'failed', 'error', lost_error)
  else
    requeue(id, pool, '')
  end
end

-- Whoever speaks leaves the time. Replicas and ingresses do so every second or two, so when nobody
-- did for longer, Redis itself was away: that time does not count against any lease.
local function speak(now)
  local silence = now - tonumber(redis.call('GET', key('seen')) or now)
  redis.call('SET', key('seen'), now)
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
  local now = now_ms()
  speak(now)
  local lapsed = redis.call('ZRANGEBYSCORE', key('leased', pool), '-inf', now, 'LIMIT', 0, 100)
  for _, id in ipairs(lapsed) do
    lose(id, pool, attempts_max, lost_error)
  end
end
