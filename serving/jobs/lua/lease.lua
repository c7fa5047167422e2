-- lease(pool, replica, lease_ms, token, attempts_max, lost_error, room) -> {now_ms, victim, the
-- job's hash}, or {} if there is no job for this replica now. Reaps first, so that a lost job is
-- there to be had. The token is new for each call: the same one again is a call whose answer was
-- lost, and gets the same answer.
--
-- room is what the replica has room for, as JSON (serving/jobs/room.py). The classes are looked at in
-- the order that fairness gives them, and in each the waiting jobs in the order of their rank; the
-- first that is of use here is leased:
--   an idle replica takes any;
--   a busy one takes a job that can share the forward of the run that leads there, or that ranks
--   before all of them and so leads itself; any other stays for the first replica that gets free;
--   a full one does so in the place of its run that ranks last, if that is worth it. victim names
--   this run. It keeps its lease until the replica has stopped it and handed it back.
-- A job with one attempt left has lost all others with a replica: it runs alone, so that it takes
-- nobody with it if it is the reason. The first busy replica with a free slot at which its turn comes
-- empties for it, and asks for no other while it runs it.
-- For HOLD_MS after it was queued, a job is left to an idle replica if there is one (unless it
-- costs this one next to nothing), and to the one that still has its latents in memory. Of idle ones the
-- oldest goes first, one job to each: scaling down removes the newest, which should have nothing to lose.
local HOLD_MS, RUNNING, OLDER, EMPTYING_MS = 500, 64, 64, 10000
-- Else Lua now and then sweeps all its memory within one or two leases, which take milliseconds more. At this it
-- does a fifth as much at a time, the least it can, and its memory grows from one megabyte to a few.
collectgarbage('setstepmul', 40)
local pool, replica, lease_ms, token = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local attempts_max, room = tonumber(ARGV[5]), cjson.decode(ARGV[7])

local last = redis.call('GET', key('last_lease', replica)) or ''
local last_token, last_id, last_fence, last_victim = string.match(last, '^(%S+) (%S+) (%d+) (%S+)$')
if last_token == token then
  if not fence_holds(last_id, last_fence) then
    -- The job went meanwhile, so nobody will ask its victim to leave: it stays.
    local id, fence = string.match(last_victim, '^(%S+)/(%d+)$')
    if id and job_field(id, 'leaving') == fence then
      redis.call('HDEL', key('job', id), 'leaving')
      redis.call('HINCRBY', key('job', id), 'preempted', -1)
    end
    return {}
  end
  return {now_ms(), last_victim, redis.call('HGETALL', key('job', last_id))}
end
reap(pool, attempts_max, ARGV[6])
local now = now_ms()

-- The first few jobs of a class that wait, by rank.
local function waiting(class)
  local next_waiting = each_waiting(pool, class, now)
  return function()
    local job = next_waiting()
    if job then
      job.alone = job.attempts > 0 and job.attempts + 1 >= attempts_max
    end
    return job
  end
end

-- The runs of this replica, by rank; and whether one is on its way out, so that its slot gets free.
local function resident()
  local runs, leaving = {}, false
  for _, each in ipairs(room.runs) do
    local fence = tostring(each.fence)
    local run, state, held, shape, rows, leased_ms, preempted, leaves =
      contender(each.id, now, each.left_ms, nil, 'state', 'fence', 'shape', 'rows', 'leased_ms',
        'preempted', 'leaving')
    if state == 'in_progress' and held == fence then
      leaving = leaving or leaves == fence
      run.fence, run.shape, run.rows = each.fence, shape, tonumber(rows)
      run.ran_ms, run.preempted = now - tonumber(leased_ms), tonumber(preempted or 0)
      run.denoises, run.switch_ms = each.denoises, each.switch_ms
      runs[#runs + 1] = run
    else
      leaving = true
    end
  end
  table.sort(runs, goes_first)
  return runs, leaving
end

local function is_idle(other)
  local said = redis.call('ZSCORE', key('idle', pool), other)
  return said and now - said <= SILENCE_MS
end

local function another_is_idle()
  local n = redis.call('ZCOUNT', key('idle', pool), now - SILENCE_MS, '+inf')
  return n > (is_idle(replica) and 1 or 0)
end

-- How many replicas are idle that are older than this one; of the oldest OLDER.
local function older_idle()
  local n = 0
  for _, other in ipairs(redis.call('ZRANGE', key('replicas', pool), 0, OLDER - 1)) do
    if other == replica then
      break
    end
    n = n + (is_idle(other) and 1 or 0)
  end
  return n
end

-- 'cheap' or 'dear' if the job would be run at once among these runs. One that has no steps left is
-- soon out of the way.
local function joins(job, runs)
  local lead, rows = nil, 0
  for _, run in ipairs(runs) do
    if run.denoises then
      lead = lead or run
      rows = rows + (run.shape == lead.shape and run.rows or 0)
    end
  end
  if lead and lead.shape == job.shape then
    local limits = room.shapes[job.shape]
    if rows + job.rows <= limits.cheap then
      return 'cheap'
    elseif rows + job.rows <= limits.most then
      return 'dear'
    end
  end
  return (not lead or goes_first(job, lead)) and 'dear'
end

local for_older
-- Only here is a waiting job's hash read: few of those that are looked at come as far.
local function left_to_another(job, runs, how)
  local queued_ms
  queued_ms, job.holder, job.spent_ms, job.step, job.started_ms = unpack(redis.call('HMGET', key('job', job.id),
    'queued_ms', 'holder', 'spent_ms', 'checkpoint_step', 'started_ms'))
  if now - (tonumber(queued_ms) or job.contender[1]) >= HOLD_MS then
    return false
  end
  local held = job.holder and job.holder ~= '' and job.holder ~= replica
  if #runs > 0 then
    return held or (how ~= 'cheap' and another_is_idle())
  elseif held then
    return is_idle(job.holder)
  elseif job.holder == replica then
    return false
  end
  for_older = (for_older or older_idle()) - 1
  return for_older >= 0
end

local function empties_here()
  local by, till = string.match(redis.call('GET', key('emptying', pool)) or '', '^(%S+) (%d+)$')
  if by and by ~= replica and now < tonumber(till) then
    return false
  end
  redis.call('SET', key('emptying', pool), string.format('%s %d', replica, now + EMPTYING_MS))
  return true
end

local classes, credits = waiting_classes(pool), credits_of(pool)

local function first_that_joins(runs)
  for _, class in ipairs(class_order(credits, classes)) do
    for job in waiting(class) do
      job.seat = credits[class] > 0 and OWED_SEAT or job.seat
      if job.alone and (#runs > 0 or room.delivering > 0) then
        if empties_here() then
          return
        end
      else
        local how = joins(job, runs)
        if how and not left_to_another(job, runs, how) then
          return job
        end
      end
    end
  end
end

-- When the next slot of this pool gets free by itself. A run that only stores its clip has none.
local function free_in_ms()
  local least
  for _, id in ipairs(redis.call('ZRANGE', key('leased', pool), 0, RUNNING - 1)) do
    local remaining_ms, phase, fence, leaves =
      unpack(redis.call('HMGET', key('job', id), 'remaining_ms', 'phase', 'fence', 'leaving'))
    if phase ~= 'store' and leaves ~= fence then
      least = math.min(least or math.huge, tonumber(remaining_ms))
    end
  end
  return least or 0
end

-- The run that ranks last of those that may be preempted, and the others.
local function last_run(runs)
  local victim
  local others = {}
  for i = #runs, 1, -1 do
    local run = runs[i]
    if not victim and run.denoises and run.ran_ms >= room.quantum_ms
        and run.preempted < PREEMPTIONS_MAX then
      victim = run
    else
      table.insert(others, 1, run)
    end
  end
  return victim, others
end

-- The job to run in the place of which run, or nothing. That a class is owed is no reason to preempt.
local function swap(runs)
  local victim, others = last_run(runs)
  local free_ms
  for _, class in ipairs(CLASSES) do
    local could = victim and SEATS[class] <= victim.seat
    for job in could and waiting(class) or function() end do
      if job.alone or not goes_first(job, victim) then
        break
      end
      free_ms = free_ms or free_in_ms()
      local worth = worth_preempting(job.contender, victim.contender, now, free_ms, victim.ran_ms,
        victim.preempted, room.quantum_ms, victim.switch_ms)
      if worth and joins(job, others) and not left_to_another(job, runs, 'dear') then
        return job, victim
      end
    end
  end
end

local function hand_over(job, victim)
  local id, class, left = job.id, job.class, job.contender[3]
  take_out(id, pool, job.place, left, job.tenant.user, class, job.contender[2])
  local weight = charge(id, pool, class, job.tenant, left, classes, credits, room.shares)
  redis.call('ZREM', key('idle', pool), replica)
  local fence = string.format('%d', redis.call('INCR', key('fence')))
  local now_text, until_ms = string.format('%d', now), string.format('%d', now + lease_ms)
  redis.call('HSET', key('job', id), 'state', 'in_progress', 'replica', replica,
    'fence', fence, 'phase', 'encode', 'leased_ms', now_text, 'lease_until_ms', until_ms, 'holder', '',
    'seat', credits[class] > 0 and OWED_SEAT or SEATS[class], 'remaining_ms', left,
    'step', job.step or '0', 'attempts', job.attempts + 1, 'started_ms', job.started_ms or now_text,
    'charged_ms', left + (job.spent_ms or 0), 'weight', weight)
  redis.call('ZADD', key('leased', pool), until_ms, id)
  redis.call('SET', key('last_lease', replica),
    table.concat({token, id, fence, victim}, ' '), 'EX', '3600')
  return {now, victim, redis.call('HGETALL', key('job', id))}
end

local runs, leaving = resident()

local function choose()
  if room.free > 0 then
    return first_that_joins(runs)
  elseif not leaving then
    return swap(runs)
  end
end

local job, victim = choose()
-- A tier may allow less by now than when its tenants were put among the ready.
local parked = 0
while job and not may_run_another(job.tenant.user) do
  park_or_wake(job.tenant.user)
  parked = parked + 1
  if parked == CANDIDATES then
    return {}
  end
  classes = waiting_classes(pool)
  job, victim = choose()
end
if not job then
  return {}
end
if not victim then
  return hand_over(job, '-')
end
redis.call('HINCRBY', key('job', victim.id), 'preempted', 1)
redis.call('HSET', key('job', victim.id), 'leaving', victim.fence)
count(pool, 'preempted')
return hand_over(job, victim.id .. '/' .. victim.fence)
