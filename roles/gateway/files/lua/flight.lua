-- Of several identical questions at the same time one is put to the engine: who asks it holds a
-- lock in Redis, which gateways may share; the others wait for its answer in the cache. Where it
-- leaves, fails or dies, another one takes its place.

local cache = require "gateway.cache"
local redis = require "gateway.redis"

local flight = {}

local LEASE_MS = 5000 -- how long a lock outlives its holder
local STEPS = {0.01, 0.02, 0.04, 0.05} -- seconds between two looks, the last for good
-- Waiters find this where the answer was none to keep: then each asks for itself, at once.
local OPEN, OPEN_MS = "open", 2000

-- A lock that ran out may be another one's when it is given back. Then one more asks the engine;
-- nobody gets another answer for it.
local function lead(entry, lock, token)
    local thread = ngx.thread.spawn(function()
        local holder
        repeat
            ngx.sleep(LEASE_MS / 3000)
            holder = redis.ask("GET", lock) -- nil where Redis failed: perhaps not the next time
            if holder == token then
                redis.ask("SET", lock, token, "XX", "PX", LEASE_MS)
            end
        until holder and holder ~= token
    end)
    entry.unlock = {"DEL", lock} -- goes with the answer
    -- nginx watches a client only where somebody wants to know that it left.
    ngx.on_abort(function()
        redis.ask("DEL", lock) -- another one may try
        ngx.exit(499)
    end)
    -- kept: whether the answer is in the cache now.
    return function(kept)
        ngx.thread.kill(thread)
        if not kept then
            redis.ask("SET", lock, OPEN, "PX", OPEN_MS)
        end
    end
end

-- Returns an answer as cache.near does, which was stored or came while this one waited; or nil and,
-- for the one that is to ask the engine for all, what to call when that is done.
-- seconds: how long to wait for another one's answer.
function flight.enter(entry, seconds)
    local near = cache.near(entry)
    if near or entry.only then
        return near or (cache.look(entry, {}))
    end
    local lock, token = entry.key .. ":lock", ngx.var.request_id
    local deadline = ngx.now() + seconds
    for attempt = 1, math.huge do
        -- First the lock, then the look: an answer comes before its lock goes.
        local found, replies = cache.look(entry, {
            {"SET", lock, token, "NX", "PX", LEASE_MS}, {"GET", lock},
        })
        local taken, holder = replies[1], replies[2]
        if found then
            if taken == "OK" then
                redis.later({{"DEL", lock}})
            end
            return found
        elseif taken == "OK" then
            return nil, lead(entry, lock, token)
        elseif taken ~= ngx.null or holder == OPEN or ngx.now() > deadline then
            return nil -- Redis fails, or there is nothing to wait for
        end
        ngx.sleep(STEPS[math.min(attempt, #STEPS)])
    end
end

return flight
