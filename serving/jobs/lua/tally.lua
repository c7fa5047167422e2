-- tally(pool, name, times, …) -> 1
-- A replica counted this since it last said so.
for i = 2, #ARGV, 2 do
  redis.call('HINCRBY', key('tallies', ARGV[1]), ARGV[i], ARGV[i + 1])
end
return 1
