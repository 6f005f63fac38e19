-- Of several identical questions at the same time one is put to the engine: who asks it holds a
-- lock in Redis, which gateways may share; the others wait for its answer in the cache. Where it
-- leaves, fails or dies, another one takes its place.

local redis = require "gateway.redis"

local flight = {}

local LEASE_MS = 5000 -- how long a lock outlives its holder
local STEPS = {0.01, 0.02, 0.04, 0.05} -- seconds between two looks, the last for good
-- Waiters find this where the answer was none to keep: then each asks for itself, at once.
local OPEN, OPEN_MS = "open", 2000

-- Whether the lock is still this holder's. It may pass on right after: then two ask the engine,
-- and both get an answer.
local function holds(lock, token)
    return redis.ask("GET", lock) == token
end

local function release(lock, token, kept)
    if not holds(lock, token) then
        return
    elseif kept then
        redis.ask("DEL", lock)
    else
        redis.ask("SET", lock, OPEN, "PX", OPEN_MS)
    end
end

local function lead(lock, token)
    local thread = ngx.thread.spawn(function()
        repeat
            ngx.sleep(LEASE_MS / 3000)
        until not holds(lock, token)
            or redis.ask("SET", lock, token, "XX", "PX", LEASE_MS) ~= "OK"
    end)
    -- nginx watches a client only where somebody wants to know that it left.
    ngx.on_abort(function()
        release(lock, token, true) -- another one may try
        ngx.exit(499)
    end)
    -- kept: whether the answer is in the cache now.
    return function(kept)
        ngx.thread.kill(thread)
        release(lock, token, kept)
    end
end

-- look(): the answer from the cache, or nil. Returns an answer that came while this one waited; or
-- nil and, for the one that is to ask the engine for all, what to call when that is done.
function flight.enter(key, look, seconds)
    local lock, token = key .. ":lock", ngx.var.request_id
    local deadline = ngx.now() + seconds
    for attempt = 1, math.huge do
        local taken = redis.ask("SET", lock, token, "NX", "PX", LEASE_MS)
        if taken == "OK" then
            local answer = attempt > 1 and look() -- it came between the last look and the lock
            if answer then
                release(lock, token, true)
                return answer
            end
            return nil, lead(lock, token)
        elseif taken ~= ngx.null or redis.ask("GET", lock) == OPEN then
            return nil -- Redis fails, or there is nothing to wait for
        end
        ngx.sleep(STEPS[math.min(attempt, #STEPS)])
        local answer = look()
        if answer then
            return answer
        elseif ngx.now() > deadline then
            return nil
        end
    end
end

return flight
