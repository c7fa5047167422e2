-- Prepended to every script of this room: the keys of the queue, and what each transition does.
--
-- Every script is called with KEYS[1] = the cell's hash tag, such as "{reelserve}", and builds
-- the other keys from it: a lease cannot know beforehand which job it will touch. The tag puts
-- all keys of a cell in one slot. Time is always Redis's own.
--
-- <cell>:seq                  string  order of submission, grows by one with each job
-- <cell>:fence                string  grows by one with each lease of any job
-- <cell>:job:<id>             hash    the job; serving/jobs/job.py lists the fields
-- <cell>:user:<user>:jobs     zset    the user's job ids by seq
-- <cell>:pools                set     pools that ever had a job
-- <cell>:queued:<pool>        zset    queued job ids by seq: the oldest goes first, and a job
--                                     that comes back keeps its place
-- <cell>:leased:<pool>        zset    job ids in progress, by the time their lease ends (ms)
-- <cell>:ended:<pool>         hash    how many jobs reached each terminal state
-- <cell>:wake:<pool>          channel a job is waiting: replicas with a free slot should lease
-- <cell>:drop:<pool>          channel "<id> <fence>": stop this run, its fence is no longer valid
local cell = KEYS[1]

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

-- True while this fence may write to the job: it is in progress under exactly this lease.
-- A deleted job has no state, so its fence is stale too.
local function fence_holds(id, fence)
  local got = redis.call('HMGET', key('job', id), 'state', 'fence')
  return got[1] == 'in_progress' and got[2] == fence
end

-- Back into the queue at its old place. Progress stays on record until the next lease.
local function requeue(id, pool)
  redis.call('ZREM', key('leased', pool), id)
  redis.call('HSET', key('job', id), 'state', 'queued', 'phase', '', 'remaining_ms', 0)
  redis.call('ZADD', key('queued', pool), job_field(id, 'seq'), id)
  redis.call('PUBLISH', key('wake', pool), id)
end

-- The one place that writes a terminal state.
local function finish(id, pool, state, name, value)
  redis.call('ZREM', key('queued', pool), id)
  redis.call('ZREM', key('leased', pool), id)
  redis.call('HSET', key('job', id), 'state', state, 'finished_ms', now_ms(),
    'phase', '', 'remaining_ms', 0, name, value)
  redis.call('HINCRBY', key('ended', pool), state, 1)
end

-- Tell the replica that runs this job, if any, that its fence is no longer valid.
local function drop_run(id, pool)
  local fence = job_field(id, 'fence')
  if fence then
    redis.call('PUBLISH', key('drop', pool), id .. ' ' .. fence)
  end
end
