-- learn(pool, format, device, observed, window, cells_max, models_max) -> the cost model after it
-- A replica says what it observed since it last did: one figure for each stage and size, and how
-- good its predictions were. All replicas of a device class write into one cost model, each figure
-- behind those of the others, so nobody's learning is lost; serving/plan/costs.py reads it.
-- Repeated after a lost answer the figures count twice, which moves no median far.
local pool, format, device = ARGV[1], ARGV[2], ARGV[3]
local observed, window = cjson.decode(ARGV[4]), tonumber(ARGV[5])
local cells_max, models_max = tonumber(ARGV[6]), tonumber(ARGV[7])
local costs, field, now = key('costs', pool), format .. ' ' .. device, now_ms()

local function push(list, value)
  table.insert(list, value)
  while #list > window do
    table.remove(list, 1)
  end
end

-- Removes the entries with the smallest (at, name) as long as there are more than max.
local function keep_latest(entries, max, remove)
  table.sort(entries, function(a, b) return a.at < b.at or (a.at == b.at and a.name < b.name) end)
  for i = 1, #entries - max do
    remove(entries[i].name)
  end
end

local function merged_into(text)
  local known = text and cjson.decode(text) or {format = format, folds = 0, cells = {}, errors = {}}
  assert(known.format == format)
  known.folds, known.at = known.folds + 1, now
  for stage, sizes in pairs(observed.cells) do
    local cells, entries = known.cells[stage] or {}, {}
    known.cells[stage] = cells
    for size, seconds in pairs(sizes) do
      cells[size] = cells[size] or {s = {}}
      cells[size].at = known.folds
      push(cells[size].s, seconds)
    end
    for size, cell in pairs(cells) do
      table.insert(entries, {name = size, at = cell.at})
    end
    keep_latest(entries, cells_max, function(size) cells[size] = nil end)
  end
  for stage, figures in pairs(observed.errors) do
    local errors = known.errors[stage] or {n = 0, recent = {}}
    known.errors[stage] = errors
    errors.n = errors.n + figures[1]
    push(errors.recent, figures)
  end
  return cjson.encode(known)
end

local readable, merged = pcall(merged_into, redis.call('HGET', costs, field))
if not readable then  -- damaged: what is observed now is what is known
  merged = merged_into(false)
end
redis.call('HSET', costs, field, merged)

if redis.call('HLEN', costs) > models_max then
  local entries, all = {}, redis.call('HGETALL', costs)
  for i = 1, #all, 2 do
    local ok, at = pcall(function() return cjson.decode(all[i + 1]).at end)
    table.insert(entries, {name = all[i], at = ok and tonumber(at) or 0})
  end
  keep_latest(entries, models_max, function(name) redis.call('HDEL', costs, name) end)
end
return merged
