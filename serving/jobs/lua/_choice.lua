-- Prepended to the scripts that choose a job, or say which would be chosen.
local HEADS = 32
local OVERDUE = 1e15
local SEQ_DIGITS = 12

-- The classes of this pool some of whose tenants may be leased a job.
local function waiting_classes(pool)
  local waiting = {}
  for _, class in ipairs(CLASSES) do
    waiting[class] = redis.call('EXISTS', key('ready', pool, class)) == 1 or nil
  end
  return waiting
end

-- Tenants one of whom goes first: users and their counters, those with the lowest, within a window. The
-- first of them is overdue when too much went to the others: then it is the only one.
local function candidates(pool, class)
  local ready = redis.call('ZRANGE', key('ready', pool, class), 0, CANDIDATES - 1, 'WITHSCORES')
  local width, passed =
    unpack(redis.call('HMGET', key('fair', pool), class .. ':window', class .. ':passed'))
  width = tonumber(width or 0)
  local users, counters = {}, {}
  for i = 1, #ready, 2 do
    local counter = tonumber(ready[i + 1])
    if i > 1 and counter > counters[1] + width then
      break
    end
    users[#users + 1], counters[#counters + 1] = ready[i], counter
  end
  return users, counters, is_overdue(tonumber(passed or 0), width)
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
  local seq, created, total, left, attempts, rows, shape, id_at =
    string.match(place, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) ()')
  local created_ms, total_ms, left_ms = tonumber(created), tonumber(total), tonumber(left)
  return {id = string.sub(place, id_at), seq = tonumber(seq), seat = SEATS[class], class = class, tenant = tenant,
    place = place, attempts = tonumber(attempts), rows = tonumber(rows), shape = shape,
    contender = {created_ms, total_ms, left_ms, SEATS[class]},
    urgency = urgency(created_ms, total_ms, left_ms, now)}
end

-- What is at the heads of a tenant's lines, a line of text for each place.
local function heads_of(pool, class, user, most)
  local seen, heads = {}, {}
  for _, order in ipairs(ORDERS) do
    for _, place in ipairs(redis.call('ZRANGE', line(pool, class, user, order.name), 0, most - 1)) do
      if not seen[place] then
        seen[place], heads[#heads + 1] = true, place
      end
    end
  end
  return table.concat(heads, '\n')
end

-- The same of each of these users. Where many wait, lease after lease looks at the same ones: what was found
-- is kept until a job of theirs comes there or goes.
local function all_heads(pool, class, users)
  local most = math.max(1, math.floor(HEADS / (#users) ^ 1.25))
  local heads, names = {}, {}
  if most == 1 then
    for i, user in ipairs(users) do
      names[i] = heads_key(pool, class, user)
    end
    heads = redis.call('MGET', unpack(names))
  end
  for i, user in ipairs(users) do
    if not heads[i] then
      heads[i] = heads_of(pool, class, user, most)
      if most == 1 then
        redis.call('SET', names[i], heads[i])
      end
    end
  end
  return heads
end

-- Gives the first few jobs of a class that wait, one at each call, whoever goes first first. Of each tenant
-- only the heads of its lines are looked at, the fewer the more tenants there are (HEADS of one, the first
-- of CANDIDATES). Of each only its rank is worked out before its turn comes: all that a lease makes beside
-- is garbage, whose collection other leases wait for.
local function each_waiting(pool, class, now)
  local users, counters, overdue = candidates(pool, class)
  local heads = all_heads(pool, class, users)
  -- By number: the rank, whose, and where in the tenant's text. Patterns take a third of a lease, so they see
  -- no more of it than they must: the seq has SEQ_DIGITS.
  local ranks, owners, starts = {}, {}, {}
  for i = 1, #users do
    local start = 1
    while start do
      local created, total, left = string.match(heads[i], '^%d* (%d+) (%d+) (%d+)', start + SEQ_DIGITS)
      local total_ms = tonumber(total)
      local rank = urgency(tonumber(created), total_ms, left == total and total_ms or tonumber(left), now)
      local n = #ranks + 1
      ranks[n], owners[n], starts[n] = i == 1 and overdue and rank - OVERDUE or rank, i, start
      local line_end = string.find(heads[i], '\n', start, true)
      start = line_end and line_end + 1
    end
  end
  local function place_at(n)
    local text, start = heads[owners[n]], starts[n]
    return string.sub(text, start, (string.find(text, '\n', start, true) or 0) - 1)
  end
  return function()
    local first
    for n, rank in ipairs(ranks) do
      local least = first and ranks[first] or math.huge
      -- A place begins with the seq.
      if rank < least or (rank == least and rank < math.huge and place_at(n) < place_at(first)) then
        first = n
      end
    end
    if first then
      local i = owners[first]
      local place = place_at(first)
      ranks[first] = math.huge
      local tenant = {user = users[i], counter = counters[i], least = counters[1], is_least = i == 1}
      return waiting_job(place, tenant, class, now)
    end
  end
end
