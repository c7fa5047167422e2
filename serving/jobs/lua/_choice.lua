-- Prepended to the scripts that choose a job, or say which would be chosen.
local HEADS = 32
local OVERDUE = 1e15

-- The classes of this pool some of whose tenants may be leased a job.
local function waiting_classes(pool)
  local waiting = {}
  for _, class in ipairs(CLASSES) do
    waiting[class] = redis.call('EXISTS', key('ready', pool, class)) == 1 or nil
  end
  return waiting
end

-- Tenants one of whom goes first: {user, counter} of those with the lowest counters, within a window. The
-- first of them is overdue when too much went to the others: then it is the only one.
local function candidates(pool, class)
  local ready = redis.call('ZRANGE', key('ready', pool, class), 0, CANDIDATES - 1, 'WITHSCORES')
  local width, passed =
    unpack(redis.call('HMGET', key('fair', pool), class .. ':window', class .. ':passed'))
  local least, tenants = tonumber(ready[2] or 0), {}
  width = tonumber(width or 0)
  local overdue = is_overdue(tonumber(passed or 0), width)
  for i = 1, #ready, 2 do
    local counter = tonumber(ready[i + 1])
    if counter > least + width then
      break
    end
    tenants[#tenants + 1] = {user = ready[i], counter = counter, least = least, is_least = i == 1,
      overdue = i == 1 and overdue}
  end
  return tenants
end

-- A job as rank sees it, and more of its fields; nothing if there is none.
local function contender(id, now, remaining_ms, seat, ...)
  local got = redis.call('HMGET', key('job', id), 'created_ms', 'est_device_ms', 'left_device_ms',
    'seq', 'seat', ...)
  if not got[1] then
    return
  end
  local created_ms, total_ms = tonumber(got[1]), tonumber(got[2])
  remaining_ms, seat = remaining_ms or tonumber(got[3] or total_ms), seat or tonumber(got[5] or 0)
  local job = {id = id, seq = tonumber(got[4]), seat = seat,
    contender = {created_ms, total_ms, remaining_ms, seat},
    urgency = urgency(created_ms, total_ms, remaining_ms, now)}
  return job, unpack(got, 6)
end

-- As rank sees it.
local function waiting_job(place, tenant, class, now)
  local seq, created, total, left, id = string.match(place, '^(%d+) (%d+) (%d+) (%d+) (.+)$')
  local created_ms, total_ms, left_ms = tonumber(created), tonumber(total), tonumber(left)
  return {id = id, seq = tonumber(seq), seat = SEATS[class], class = class, tenant = tenant,
    place = place,
    contender = {created_ms, total_ms, left_ms, SEATS[class]},
    urgency = urgency(created_ms, total_ms, left_ms, now)}
end

-- And what else a lease asks of it.
local function described(job)
  local rows, queued_ms, attempts
  job.shape, rows, queued_ms, job.holder, attempts, job.spent_ms, job.step =
    unpack(redis.call('HMGET', key('job', job.id), 'shape', 'rows', 'queued_ms', 'holder', 'attempts',
      'spent_ms', 'checkpoint_step'))
  job.rows, job.attempts = tonumber(rows), tonumber(attempts or 0)
  job.queued_ms = tonumber(queued_ms or job.contender[1])
  return job
end

-- Gives the first few jobs of a class that wait, one at each call, whoever goes first first. Of each tenant
-- only the heads of its lines are looked at, the fewer the more tenants there are (HEADS of one, the first
-- of CANDIDATES); and a job's hash only when it is its turn.
local function each_waiting(pool, class, now)
  local tenants, seen, heads = candidates(pool, class), {}, {}
  local last = math.max(1, math.floor(HEADS / (#tenants) ^ 1.25)) - 1
  for _, tenant in ipairs(tenants) do
    for _, order in ipairs(ORDERS) do
      local places = redis.call('ZRANGE', line(pool, class, tenant.user, order.name), 0, last)
      for _, place in ipairs(places) do
        if not seen[place] then
          local created, total, left = string.match(place, '^%d+ (%d+) (%d+) (%d+)')
          seen[place] = true
          local rank = urgency(tonumber(created), tonumber(total), tonumber(left), now)
          heads[#heads + 1] = {tenant.overdue and rank - OVERDUE or rank, place, tenant}
        end
      end
    end
  end
  return function()
    local first
    for i, head in ipairs(heads) do
      local least = first and heads[first]
      -- A place begins with the seq.
      if not first or head[1] < least[1] or (head[1] == least[1] and head[2] < least[2]) then
        first = i
      end
    end
    if first then
      local head = table.remove(heads, first)
      return described(waiting_job(head[2], head[3], class, now))
    end
  end
end
