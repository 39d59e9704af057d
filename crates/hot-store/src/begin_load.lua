-- Empties a hot copy and leaves an intent in it, unless another load is under way.
-- KEYS[1] the copy; ARGV: nonce of 16 bytes, longest load in milliseconds, expiry in seconds.
-- An intent is byte 2, the nonce, and the milliseconds of Redis's clock: the one clock that all
-- readers share.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A key of another type is an error here and is emptied below.
local members = redis.pcall('ZRANGE', KEYS[1], '-inf', '-inf', 'BYSCORE')
for _, member in ipairs(members) do
    if string.byte(member) == 2 then
        local age = now - (tonumber(string.sub(member, 18)) or 0)
        if age >= 0 and age < tonumber(ARGV[2]) then
            return false
        end
    end
end
redis.call('UNLINK', KEYS[1])
local intent = '\2' .. ARGV[1] .. string.format('%.0f', now)
redis.call('ZADD', KEYS[1], '-inf', intent)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return intent
