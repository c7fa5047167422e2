-- capture(job, amount) -> {state, captured} as whoever settled the hold first left it; {} if there is none;
-- {'much', what was held} if the amount is more. An amount of 0 takes nothing, as release does.
local job, amount = unpack(ARGV)
local state, captured = capture(job, amount == '0' and 0 or amount_of(amount))
return {state, captured}
