-- archive(number, previous, last, sha256, entries, staged, books, next) -> 'done', or 'other' and nothing is done
-- Trims the entries up to the id last, next being the first one that may stay, once they are in an archive:
-- the one with this number and SHA-256 that follows the one whose SHA-256 is previous ('' before the first).
-- entries: how many are archived then, in all. staged: where the books of then are, whole: as many records.
-- Safe to repeat; whatever else was archived meanwhile, nothing is trimmed that it does not have.
local number, previous, last, sha256, entries, staged, books, next_id = unpack(ARGV)
staged = key('ledger', 'staged', staged)
local was_number, was = unpack(redis.call('HMGET', key('ledger', 'archived'), 'number', 'sha256'))
if was == sha256 then
  redis.call('UNLINK', staged)
  return 'done'
elseif (was or '') ~= previous or tonumber(number) ~= tonumber(was_number or 0) + 1
  or redis.call('HLEN', staged) ~= tonumber(books)
  or #redis.call('XRANGE', key('ledger'), last, last) == 0 then
  return 'other'
end
redis.call('PERSIST', staged)
redis.call('RENAME', staged, key('ledger', 'books', sha256))
redis.call('HSET', key('ledger', 'archived'), 'number', number, 'last', last, 'sha256', sha256,
  'entries', entries)
redis.call('XTRIM', key('ledger'), 'MINID', next_id)
if was then
  redis.call('UNLINK', key('ledger', 'books', was))
end
return 'done'
