-- Empties a hot copy and puts a load token into it, unless another load is running. KEYS[1] the
-- copy; ARGV: nonce of 16 bytes, longest load in milliseconds, expiry in seconds. A load token is
-- byte 2, the nonce, and the time of Redis's clock in milliseconds: all readers share this clock.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A key of another type is an error here and is removed below.
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
local load_token = '\2' .. ARGV[1] .. string.format('%.0f', now)
redis.call('ZADD', KEYS[1], '-inf', load_token)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return load_token
