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
-- <cell>:queued:<pool>        zset    queued job ids by seq: the oldest goes first, and a job
--                                     that comes back keeps its place
-- <cell>:leased:<pool>        zset    job ids in progress, by the time their lease ends (ms)
-- <cell>:ended:<pool>         hash    how many jobs reached each terminal state
-- <cell>:counts:<pool>        hash    how often else what happened: yielded, lease_lost, resumed,
--                                     checkpoint_corrupt, checkpoint_foreign, checkpoint_missing
-- <cell>:expiring             zset    ids of ended jobs, by the time they are forgotten (ms)
-- <cell>:garbage              zset    ids whose files are of no use any more, by when that was
-- <cell>:gone:<id>            string  "<seq> <user>" of a job that was forgotten, for an hour: so that
--                                     deleting it again and listing on from it both work
-- <cell>:last_lease:<replica> string  "<token> <id> <fence>": what its last lease call got
-- <cell>:replica:<id>         hash    a live replica; goes by itself when the replica is silent
-- <cell>:replicas:<pool>      zset    ids of the pool's replicas, by when they started (ms)
-- <cell>:wake:<pool>          channel a job is waiting: replicas with a free slot should lease
-- <cell>:drop:<pool>          channel "<id> <fence>": stop this run, its fence is no longer valid
local cell = KEYS[1]
local SILENCE_MS = 3000

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

-- Back into the queue at its old place. Progress stays on record until the next lease.
local function requeue(id, pool)
  redis.call('ZREM', key('leased', pool), id)
  redis.call('HSET', key('job', id), 'state', 'queued', 'phase', '', 'remaining_ms', 0)
  redis.call('ZADD', key('queued', pool), job_field(id, 'seq'), id)
  redis.call('PUBLISH', key('wake', pool), id)
end

-- The one place that writes a terminal state. Checkpoints of a job that made no clip are of no
-- use; those of one that did are removed by whoever stored the clip.
local function finish(id, pool, state, name, value)
  local now = now_ms()
  redis.call('ZREM', key('queued', pool), id)
  redis.call('ZREM', key('leased', pool), id)
  local expires = now + tonumber(job_field(id, 'retention_ms'))
  redis.call('HSET', key('job', id), 'state', state, 'finished_ms', now, 'expires_ms', expires,
    'phase', '', 'remaining_ms', 0, name, value)
  redis.call('HDEL', key('job', id), 'checkpoint', 'checkpoint_step')
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
    requeue(id, pool)
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
