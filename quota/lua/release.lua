-- release(job) -> {state, captured} as whoever settled the hold first left it; {} if there is none
local state, captured = release(ARGV[1])
return {state, captured}
