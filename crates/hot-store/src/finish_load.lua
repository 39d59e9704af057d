-- Fills a hot copy, if the load that began it is still the last one and its key still lives.
-- KEYS[1] the copy; ARGV: intent, mark, expiry in seconds, then score and member of each row.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return 0
end
-- Rows before the mark: should a command fail, nothing vouches for what is there.
-- Lua passes at most some 8 000 values to a function; 500 rows are 1 000.
for first = 4, #ARGV, 1000 do
    redis.call('ZADD', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
redis.call('ZADD', KEYS[1], '-inf', ARGV[2])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
