-- Prepended to every script; touches no key. serving/plan/fair.py in Lua: what each function means
-- is said there, and a test holds the two equal to the last bit.
local CLASSES = {'burst', 'standard', 'relaxed'}
local SEATS = {burst = 0, standard = 1, relaxed = 2}
local CANDIDATES = 16
local WINDOW_DECAY = 1 - 1 / 1024
local PATIENCE = 4
local OWED_SEAT = -1
local NEXT = 1 / 1024

-- waiting: {class = true}.
local function class_order(credits, waiting)
  local owed, others = {}, {}
  for _, class in ipairs(CLASSES) do
    if waiting[class] then
      local line = (credits[class] or 0) > 0 and owed or others
      line[#line + 1] = class
    end
  end
  for _, class in ipairs(others) do
    owed[#owed + 1] = class
  end
  return owed
end

local function after_lease(credits, waiting, leased, charge_ms, shares)
  local after = {}
  for _, class in ipairs(CLASSES) do
    local credit = credits[class] or 0
    if class == leased then
      credit = math.max(credit, 0) - charge_ms
    elseif not waiting[class] then
      credit = math.min(credit, 0)
    end
    if waiting[class] then
      credit = credit + shares[class] * charge_ms
    end
    after[class] = credit
  end
  return after
end

-- counter and least may be nil.
local function lifted(counter, least, reached, last, width)
  local floor = least or reached
  if floor <= last and last < floor + math.max(width, 1) then
    floor = last + NEXT
  end
  return counter and math.max(counter, floor) or floor
end

local function woken(counter, least, reached, width)
  return math.max(counter, (least or reached) - width)
end

-- floor may be nil.
local function corrected(counter, by, floor)
  return floor and math.max(counter + by, math.min(counter, floor)) or counter + by
end

local function window(before_ms, charge_ms, weight)
  return math.max(before_ms * WINDOW_DECAY, charge_ms / math.max(weight, 1))
end

local function passed_over(before_ms, charge_ms, weight, is_least)
  return is_least and 0 or before_ms + charge_ms / math.max(weight, 1)
end

local function is_overdue(passed_ms, width)
  return passed_ms > PATIENCE * width
end
