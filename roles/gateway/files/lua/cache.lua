-- Answers kept in Redis: only what would come out the same again, only for the same client,
-- route and bytes. Redis may be down or hung; then the cache steps aside.

local hash = require "gateway.hash"
local json = require "gateway.json"
local redis = require "gateway.redis"

local state = ngx.shared.gateway_state

local cache = {}
local settings

local FORMAT = "2" -- of key and value; a new one leaves old entries behind
local BREAK_SECONDS = 5 -- how long Redis is left alone after a failure

-- given: {ttl (s), max_bytes, model (digest)}
function cache.init(given)
    settings = given
end

-- Seeds that llama.cpp takes as "random" do not count.
local function fixed_seed(raw)
    return raw and raw:find("^%d+$") and tonumber(raw) < 4294967295
end

-- Would the engine answer this body the same way again, in one piece?
local function deterministic(body)
    local members, close = json.object(body)
    if not members or body:find("%S", close + 1) then
        return false
    end
    local value = {}
    for _, member in ipairs(members) do
        if value[member.key] or member.key:find("\\", 1, true) then
            return false -- which of two the engine takes is not known here
        end
        value[member.key] = body:sub(member.from, member.to)
    end
    return value.stream ~= "true"
        and (tonumber(value.temperature) == 0 or fixed_seed(value.seed))
end

local function broken(err)
    ngx.log(ngx.WARN, "Redis: ", err, "; no cache for ", BREAK_SECONDS, " s")
    state:set("redis_down", true, BREAK_SECONDS)
end

-- The entry's name, or nil when this request is none of the cache's business.
function cache.key(client, route, content_type, control, body)
    control = (control or ""):lower()
    if settings.ttl == 0 or not body or control:find("no-store", 1, true)
        or control:find("no-cache", 1, true)
        or not (content_type or ""):lower():find("application/json", 1, true)
        or not deterministic(body) then
        return nil
    end
    local parts = {}
    for i, part in ipairs({FORMAT, client, route, settings.model, hash.sha256(body)}) do
        parts[i] = #part .. ":" .. part
    end
    return "r1:" .. hash.hex(hash.sha256(table.concat(parts)))
end

-- Returns the stored answer or nil, what to say in X-Cache, and in X-R1-Policy.
function cache.get(key)
    if not key or state:get("redis_down") then
        return nil, "BYPASS"
    end
    local value, err = redis.ask("GET", key)
    if not value then
        broken(err)
        return nil, "BYPASS"
    elseif value == ngx.null then
        return nil, "MISS"
    end
    local policy, answer = value:match("^([^\n]*)\n(.*)$")
    return answer, "HIT", policy
end

-- Stores an answer. Call it before the client gets the answer, so that its next request finds it:
-- Redis reads a long command in several turns, and may serve another connection between them.
function cache.put(key, answer, policy)
    if #answer > settings.max_bytes then
        return
    end
    local value = policy .. "\n" .. answer
    local ok, err = redis.ask("SET", key, value, "EX", settings.ttl)
    if not ok then
        broken(err)
    end
end

return cache
