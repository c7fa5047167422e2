-- place(id, pool) -> {how many waiting jobs go before this one, their work (ms), what each running job
-- of the pool has left (ms), …}
-- As of now; rank changes while jobs wait. Only a job among the SEEN with the least work is ranked
-- among those; any other goes where its work puts it, and the job half way there stands for all
-- before it. Runs that only store their clip hold no slot, so they are left out.
local SEEN, RUNNING = 128, 64
local id, pool = ARGV[1], ARGV[2]
local now, line = now_ms(), key('queued', pool, 'work')

-- Where the job's work puts it, from 0; nothing if it does not wait.
local function place_by_work()
  local seq, created, total =
    unpack(redis.call('HMGET', key('job', id), 'seq', 'created_ms', 'est_device_ms'))
  return seq and redis.call('ZRANK', line, string.format(PLACE, seq, created, total, id))
end

local function place_by_rank()
  local places = redis.call('ZRANGE', line, 0, SEEN - 1, 'WITHSCORES')
  local me
  local jobs = {}
  for i = 1, #places, 2 do
    local seq, created, total, other = string.match(places[i], '^(%S+) (%S+) (%S+) (%S+)$')
    local left = tonumber(places[i + 1])
    local job = {seq = tonumber(seq), left = left,
      rank = rank(tonumber(created), tonumber(total), left, now)}
    jobs[#jobs + 1] = job
    me = other == id and job or me
  end
  local ahead, work_ms = 0, 0
  for _, job in ipairs(jobs) do
    if job.rank < me.rank or (job.rank == me.rank and job.seq < me.seq) then
      ahead, work_ms = ahead + 1, work_ms + job.left
    end
  end
  return ahead, work_ms
end

local ahead, work_ms = place_by_work(), 0
if ahead and ahead < SEEN then
  ahead, work_ms = place_by_rank()
elseif ahead then
  local half = math.floor(ahead / 2)
  work_ms = ahead * tonumber(redis.call('ZRANGE', line, half, half, 'WITHSCORES')[2])
end

local answer = {ahead or 0, math.floor(work_ms)}
for _, running in ipairs(redis.call('ZRANGE', key('leased', pool), 0, RUNNING - 1)) do
  local phase, remaining_ms =
    unpack(redis.call('HMGET', key('job', running), 'phase', 'remaining_ms'))
  if phase ~= 'store' then
    table.insert(answer, tonumber(remaining_ms))
  end
end
return answer
