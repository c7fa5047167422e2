-- reverse(of, ref, amount, reason) -> {outcome, entry, or the most it can be}; an amount of '' is all of it
local of, ref, amount, reason = unpack(ARGV)
local outcome, told = reverse(of, ref, amount ~= '' and amount_of(amount) or nil, reason)
return {outcome, told or ''}
