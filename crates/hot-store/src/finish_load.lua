-- Fills a hot copy if its load token is still there. The token is gone if the key was removed, or
-- if another load has begun. KEYS[1] the copy; ARGV: load token, marker, expiry in seconds, then
-- score and member of each row.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return 0
end
-- Rows before the marker: if a command fails, there is no marker and the copy is not used.
-- Lua passes at most about 8 000 values to a function; 500 rows are 1 000 values.
for first = 4, #ARGV, 1000 do
    redis.call('ZADD', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
redis.call('ZADD', KEYS[1], '-inf', ARGV[2])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
