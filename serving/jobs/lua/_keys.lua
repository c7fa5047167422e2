-- Prepended to every script of this room: the keys of the queue, and the time.
--
-- Every script is called with KEYS[1] = the cell's hash tag, such as "{reelserve}", and builds
-- the other keys from it: a lease cannot know beforehand which job it will touch. The tag puts
-- all keys of a cell in one slot. Time is always Redis's own.
--
-- <cell>:schema               string  version of this layout; a process of another one refuses
-- <cell>:seq                  string  order of submission, grows by one with each job
-- <cell>:fence                string  grows by one with each lease of any job
-- <cell>:seen                 string  when a replica or an ingress last spoke (ms)
-- <cell>:ahead                string  by how much our clock is ahead of Redis's, which was set back (ms)
-- <cell>:tiers                hash    default: the tier of users who have none; <tier>:weight,
--                                     <tier>:running_jobs (absent: no limit). JobQueue.apply_tiers writes it
-- <cell>:job:<id>             hash    the job; serving/jobs/job.py lists the fields
-- <cell>:user:<user>          hash    tier, created_at; serving/api/users.py writes it
-- <cell>:user:<user>:jobs     zset    ids of the user's videos by seq
-- <cell>:user:<user>:audio    zset    the same of what is spoken: these ids begin with audio_
-- <cell>:user:<user>:running  hash    by id those that are leased; '': as small as a set of numbers
-- <cell>:user:<user>:inline   hash    the same of those that are streamed as they are made: _inline.lua
-- <cell>:user:<user>:lines    hash    by "<pool> <class>" how many of them wait there
-- <cell>:parked               set     users some of whose jobs wait, as many as may are running
-- <cell>:same:<user>:<sha256> string  the job made of this body last, for a short while
-- <cell>:idempotent:<user>:<key> string "<sha256> <id>": the job that was made of this body; for a day
-- <cell>:answer:<user>:<key>  string  what was answered then
-- <cell>:pools                set     pools that ever had a job
-- <cell>:queued:<pool>        zset    queued job ids by seq: who waits, and who has waited longest
-- <cell>:line:<pool>:<class>:<user>:<order> zset "<seq> <created> <total> <left> <attempts> <rows> <shape>
--                                     <id>" of a user's jobs of a class that wait, by an order of _rank.lua,
--                                     whose score is fixed while they wait; equal scores go by seq
-- <cell>:heads:<pool>:<class>:<user> string what a lease found at the heads of these lines, each behind a HEAD
--                                     (_choice.lua); gone as soon as a job comes there or goes
-- <cell>:counters:<pool>:<class> zset users by what they were leased over their weight (ms): _fair.lua
-- <cell>:floors:<pool>:<class> zset  the same users by what their counter was lifted to last
-- <cell>:ready:<pool>:<class> zset    those of them who have a job that waits and may be leased
-- <cell>:fair:<pool>          hash    <class>:credit (ms), <class>:reached (the highest that the least
--                                     counter ever was), <class>:window, <class>:passed,
--                                     <class>:lifted (what a counter was lifted to last), <class>:tidied
-- <cell>:backlog:<pool>       hash    <class>:jobs and <class>:ms of those that wait; <class>:saved_ms, what
--                                     checkpoints saved of these; <class>:ended_jobs and <class>:ended_ms
--                                     (as estimated) of those that ended: with those that are leased,
--                                     all that ever arrived
-- <cell>:leased:<pool>        zset    job ids in progress, by the time their lease ends (ms)
-- <cell>:ended:<pool>         hash    how many jobs reached each terminal state
-- <cell>:tallies:<pool>       hash    sums of what its replicas counted: prompt_cache_hits,
--                                     prompt_cache_misses
-- <cell>:counts:<pool>        hash    how often else what happened: yielded, preempted, lease_lost,
--                                     resumed, resumed_from_memory (of those), checkpoint_corrupt,
--                                     checkpoint_foreign, checkpoint_missing
-- <cell>:refused:<pool>       hash    by reason how many submissions were refused; replayed: not refused,
--                                     but answered with the job that was there
-- <cell>:steps:<pool>         hash    denoising steps that were for nothing: lost (with a lease, or with a
--                                     checkpoint that could not be used), redone (after a yield)
-- <cell>:times:<pool>         hash    histograms. <class>:<name>:<bucket> is how many took no more than so
--                                     many seconds, and more than the bucket below (or inf);
--                                     <class>:<name>:sum what they took together (ms). _measures.lua
-- <cell>:objectives:<pool>    hash    <class>:first_step_ms (absent: no objective), <class>:factor.
--                                     JobQueue.apply_objectives writes it
-- <cell>:slo:<pool>           hash    <class>:<objective>:attained and :missed, jobs
-- <cell>:starts:<pool>        hash    replicas that became ready, and that failed to; failures: the failed
--                                     ones since the last that became ready; when the last failed
--                                     (failed_ms), and of what (error)
-- <cell>:startups:<pool>      list    what the latest starts took (ms), the newest first
-- <cell>:starting:<pool>      zset    ids of replicas that load their weights, by when they started (ms)
-- <cell>:emptying:<pool>      string  "<replica> <until>": takes no more until then (ms), so that a job can
--                                     run alone
-- <cell>:costs:<pool>         hash    what the pool's work takes, learned: by "<format> <device class>"
--                                     one cost model as JSON; learn.lua bounds both
-- <cell>:autoscale            hash    by pool the autoscaler's last decision as JSON: at_ms, and what
--                                     serving/jobs/decisions.py lists
-- <cell>:autoscale:history    list    of its decisions, the newest first, short, one line for all pools
-- <cell>:expiring             zset    ids of ended jobs, by the time they are forgotten (ms)
-- <cell>:garbage              zset    ids whose files are of no use any more, by when that was
-- <cell>:gone:<id>            string  "<seq> <user>" of a job that was forgotten, for an hour: so that
--                                     deleting it again and listing on from it both work
-- <cell>:last_lease:<replica> string  "<token> <id> <fence> <victim>": what its last lease call got,
--                                     and which run goes for it, or -
-- <cell>:replica:<id>         hash    a live replica, with its state (starting, idle, busy, draining); goes by
--                                     itself when the replica is silent
-- <cell>:replicas:<pool>      zset    ids of the pool's replicas that have started, by when they began to (ms)
-- <cell>:idle:<pool>          zset    ids of replicas that run nothing, by when they last said so (ms)
-- <cell>:wake:<pool>          channel "<now> <created> <total> <remaining> <seat>" (ms) of a job that
--                                     waits: replicas with a free slot should lease
-- <cell>:drop:<pool>          channel "<id> <fence>": stop this run, its fence is no longer valid
local cell = KEYS[1]
local SILENCE_MS, SLOWER_MS = 3000, 300

-- Strings are joined in one go, which takes a tenth of table.concat.
local function key(a, b, c, d, e)
  if not b then
    return cell .. ':' .. a
  elseif not c then
    return cell .. ':' .. a .. ':' .. b
  elseif not d then
    return cell .. ':' .. a .. ':' .. b .. ':' .. c
  end
  return cell .. ':' .. a .. ':' .. b .. ':' .. c .. ':' .. d .. (e and ':' .. e or '')
end

-- Redis's clock, but for one thing: it never runs backwards. When Redis's is set back, ours goes on
-- from where it was; it waits when Redis's is set forward again, and else runs a little slower until
-- they agree (speak). So a lease ends when it should, and no day begins twice.
local the_time, spoken_ms, ahead_ms
local function now_ms()
  if the_time then
    return the_time
  end
  local time = redis.call('TIME')
  local said = redis.call('MGET', key('seen'), key('ahead'))
  spoken_ms, ahead_ms = tonumber(said[1] or nil), tonumber(said[2] or 0)
  local seen = spoken_ms or 0
  local now = math.floor(time[1] * 1000 + time[2] / 1000 + ahead_ms)
  local back = 0
  if now < seen - SLOWER_MS then
    back = now - seen
  elseif ahead_ms > 0 and now - seen > SILENCE_MS then
    back = math.min(ahead_ms, now - seen)
  end
  if back ~= 0 then
    ahead_ms = ahead_ms - back
    redis.call('SET', key('ahead'), ahead_ms)
  end
  the_time = math.max(math.floor(now - back), seen)
  return the_time
end

-- The list of what a user has of the kind that a job makes.
local function list_of(user, id)
  return key('user', user, string.sub(id, 1, 6) == 'audio_' and 'audio' or 'jobs')
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
