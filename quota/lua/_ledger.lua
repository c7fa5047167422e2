-- Prepended to the scripts that spend credits, behind the keys: the ledger, and holding a price.
--
-- Amounts are integers, in milli-credits. Each entry moves some from accounts to others and adds up to
-- zero. The stream is the truth; everything else here can be made again from it (reelserve ledger
-- verify), and from the archives, and only post changes it.
--
-- <cell>:ledger               stream  the entries. Fields without a colon say what it is: type, user,
--                                     at_ms, ref (its own, unique), of (what it is about: a ref or a
--                                     job), kind, priority, expires_ms, reason. Fields with a colon are
--                                     accounts and what they gained:
--                                       grant:<ref>  what is left of a grant
--                                       hold:<job>   set aside for a job
--                                       debt:<user>  0 or less: what the user owes
--                                       cell:issued  0 or less: what all users were ever given
--                                       cell:earned  what was made for it
--                                       cell:expired what nobody used in time
-- <cell>:ledger:accounts      hash    issued, earned, expired
-- <cell>:ledger:sums          hash    held: by all users, now; released: given back from holds, ever
-- <cell>:ledger:verified      hash    the last verification, which no script reads: at_s, differences (how many)
-- <cell>:ledger:archived      hash    the newest archive: number, last (the id of the last entry that is in the
--                                     archives and no longer in the stream), sha256, entries (in all of them)
-- <cell>:ledger:books:<sha256> hash   the books as of then: quota/books.py has the records
-- <cell>:ledger:staged:<token> hash   the same of an archive to come, while they are written; goes by itself
-- <cell>:entries:<user>       list    ids of the user's latest entries, the newest first
-- <cell>:credits:<user>       hash    available (expired grants that are not yet booked included),
--                                     held, debt (0 or more)
-- <cell>:grants:<user>        zset    grants that have something left, in the order they are used:
--                                     "<priority> <expires_ms> <created_ms> <ref>", all scores 0
-- <cell>:grants_expiring      zset    refs of grants that have something left, by when that expires (ms)
-- <cell>:credit:<ref>         hash    whatever has a ref of its own. type, user, entry, amount; of a
--                                     grant also kind, left, expired, reversed, expires_ms, place (as
--                                     above); of a reversal of (the grant), expired (of that,
--                                     before it was reversed), restored (1: undone)
-- <cell>:hold:<job>           hash    user, amount, parts ("<ref> <amount> …"), entry, state (held,
--                                     captured, released), captured; goes a while after it was settled
local AMOUNT_MAX = 9007199254740991
local NEVER_MS = 999999999999999
local GRANTS_MAX, ENTRIES_KEPT = 1000, 1000

-- As text, all digits of it; 0 is added because there is a -0, too.
local function whole(amount)
  return string.format('%d', amount + 0)
end

-- An amount as it was given; anything else is a defect of the caller.
local function amount_of(text)
  local amount = tonumber(text)
  assert(amount and amount > 0 and amount <= AMOUNT_MAX and amount % 1 == 0, 'not an amount')
  return amount
end

-- Whether a grant is among those that are left to use.
local function list_grant(ref, user)
  local left, place, expires_ms =
    unpack(redis.call('HMGET', key('credit', ref), 'left', 'place', 'expires_ms'))
  if left == '0' then
    redis.call('ZREM', key('grants', user), place)
    redis.call('ZREM', key('grants_expiring'), ref)
  else
    redis.call('ZADD', key('grants', user), 0, place)
    if tonumber(expires_ms) < NEVER_MS then
      redis.call('ZADD', key('grants_expiring'), expires_ms, ref)
    end
  end
end

-- The one writer: appends an entry and lets the balances follow. fields and postings are names and values;
-- empty fields and postings of nothing are left out. Returns the entry's id.
local function post(kind, user, fields, postings)
  local entry, sum = {'type', kind, 'user', user, 'at_ms', whole(now_ms())}, 0
  for i = 1, #fields, 2 do
    if fields[i + 1] ~= '' then
      entry[#entry + 1], entry[#entry + 2] = fields[i], fields[i + 1]
    end
  end
  for i = 1, #postings, 2 do
    sum = sum + postings[i + 1]
    if postings[i + 1] ~= 0 then
      entry[#entry + 1], entry[#entry + 2] = postings[i], whole(postings[i + 1])
    end
  end
  assert(sum == 0, 'a posting does not add up to zero')
  local id = redis.call('XADD', key('ledger'), '*', unpack(entry))
  redis.call('LPUSH', key('entries', user), id)
  redis.call('LTRIM', key('entries', user), 0, ENTRIES_KEPT - 1)
  local credits = key('credits', user)
  for i = 1, #postings, 2 do
    local account, name = string.match(postings[i], '^(%a+):(.*)$')
    local amount = whole(postings[i + 1])
    if amount == '0' then
      amount = nil
    elseif account == 'grant' then
      redis.call('HINCRBY', credits, 'available', amount)
      redis.call('HINCRBY', key('credit', name), 'left', amount)
      list_grant(name, user)
    elseif account == 'hold' then
      redis.call('HINCRBY', credits, 'held', amount)
      redis.call('HINCRBY', key('ledger', 'sums'), 'held', amount)
    elseif account == 'debt' then
      redis.call('HINCRBY', credits, 'debt', whole(-postings[i + 1]))
    else
      redis.call('HINCRBY', key('ledger', 'accounts'), name, amount)
    end
  end
  return id
end

local function debt_of(user)
  return tonumber(redis.call('HGET', key('credits', user), 'debt') or 0)
end

-- Which of a user's grants pay for an amount: {ref, part, …}, and what they have together, up to it.
-- Nothing of what has expired, whether that is booked yet or not.
local function burn(user, amount)
  local parts, sum, now = {}, 0, now_ms()
  for _, place in ipairs(redis.call('ZRANGE', key('grants', user), 0, GRANTS_MAX - 1)) do
    local expires_ms, ref = string.match(place, '^%d+ (%d+) %d+ (%S+)$')
    if tonumber(expires_ms) > now then
      local left = tonumber(redis.call('HGET', key('credit', ref), 'left'))
      local part = math.min(left, amount - sum)
      parts[#parts + 1], parts[#parts + 2] = ref, part
      sum = sum + part
      if sum == amount then
        break
      end
    end
  end
  return parts, sum
end

-- What a user may spend, up to an amount: nothing while there is a debt, which comes second.
local function spendable(user, amount)
  local debt = debt_of(user)
  if debt > 0 then
    return 0, debt
  end
  local _, sum = burn(user, amount)
  return sum, 0
end

-- Sets a price aside for a job. Returns true, also when that was done before; or false and why: 'reused'
-- (the job holds something else), 'settled' (it held this), 'debt' or 'short', with what the user owes
-- or has.
local function hold(user, job, amount)
  local was_user, was_amount, was =
    unpack(redis.call('HMGET', key('hold', job), 'user', 'amount', 'state'))
  if was_user then
    if was_user ~= user or was_amount ~= whole(amount) then
      return false, 'reused', 0
    end
    return was == 'held', 'settled', 0
  end
  local debt = debt_of(user)
  if debt > 0 then
    return false, 'debt', debt
  end
  local parts, sum = burn(user, amount)
  if sum < amount then
    return false, 'short', sum
  end
  local postings, told = {'hold:' .. job, amount}, {}
  for i = 1, #parts, 2 do
    postings[#postings + 1], postings[#postings + 2] = 'grant:' .. parts[i], -parts[i + 1]
    told[i], told[i + 1] = parts[i], whole(parts[i + 1])
  end
  local entry = post('hold', user, {'of', job}, postings)
  redis.call('HSET', key('hold', job), 'user', user, 'amount', whole(amount), 'state', 'held',
    'captured', 0, 'parts', table.concat(told, ' '), 'entry', entry)
  return true
end
