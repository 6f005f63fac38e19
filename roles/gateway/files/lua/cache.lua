-- Answers kept in Redis: only what would come out the same again, only for the same client, route
-- and question, whole or as a stream. Redis may be down or hung; then the cache steps aside.

local cjson = require "cjson.safe"
local hash = require "gateway.hash"
local json = require "gateway.json"
local redis = require "gateway.redis"
local transcript = require "gateway.transcript"

local state = ngx.shared.gateway_state

local cache = {}
local settings

local FORMAT = "3" -- of key and value; a new one leaves old entries behind
-- The forms of an answer: whole, as events, as events of which the last tells the usage.
local JSON, EVENTS, WITH_USAGE = ":json", ":events", ":usage"
local TYPES = {
    [JSON] = "application/json", [EVENTS] = "text/event-stream", [WITH_USAGE] = "text/event-stream",
}
local BREAK_SECONDS = 5 -- how long Redis is left alone after a failure

-- given: {ttl (s), max_bytes, model (digest)}
function cache.init(given)
    settings = given
end

-- Seeds that llama.cpp takes as "random" do not count.
local function fixed_seed(raw)
    return raw and raw:find("^%d+$") and tonumber(raw) < 4294967295
end

-- How the answer was asked for, and all else in an order of its own; nil where the engine would
-- not answer the same way again.
local function asked(body)
    local members, close = json.object(body)
    if not members or body:find("%S", close + 1) then
        return nil
    end
    local value, names = {}, {}
    for i, member in ipairs(members) do
        if value[member.key] or member.key:find("\\", 1, true) then
            return nil -- which of two the engine takes is not known here
        end
        value[member.key] = body:sub(member.from, member.to)
        names[i] = member.key
    end
    if tonumber(value.temperature) ~= 0 and not fixed_seed(value.seed) then
        return nil
    end
    local form = JSON
    if value.stream == "true" then
        form = EVENTS
        local options = value.stream_options and cjson.decode(value.stream_options) or {}
        for name, given in pairs(type(options) == "table" and options or {}) do
            if name ~= "include_usage" then
                return nil
            end
            form = given == true and WITH_USAGE or form
        end
    end
    table.sort(names)
    local parts = {}
    for _, name in ipairs(names) do
        if name ~= "stream" and name ~= "stream_options" then
            local raw = value[name]
            parts[#parts + 1] = #name .. ":" .. name .. #raw .. ":"
            parts[#parts + 1] = raw
        end
    end
    return form, table.concat(parts)
end

local function broken(err)
    ngx.log(ngx.WARN, "Redis: ", err, "; no cache for ", BREAK_SECONDS, " s")
    state:set("redis_down", true, BREAK_SECONDS)
end

-- What is asked of the cache, or nil when this request is none of its business. One entry serves
-- both forms of an answer: what is asked for as a stream may have been stored whole.
function cache.entry(client, route, content_type, control, body)
    control = (control or ""):lower()
    if settings.ttl == 0 or not body or control:find("no-store", 1, true)
        or control:find("no-cache", 1, true)
        or not (content_type or ""):lower():find("application/json", 1, true) then
        return nil
    end
    local form, rest = asked(body)
    if not form then
        return nil
    end
    local parts = {}
    for i, part in ipairs({FORMAT, client, route, settings.model, hash.sha256(rest)}) do
        parts[i] = #part .. ":" .. part
    end
    local key = "r1:" .. hash.hex(hash.sha256(table.concat(parts)))
    return {key = key, form = form, type = TYPES[form]}
end

local function stored(entry, form)
    local value, err = redis.ask("GET", entry.key .. form)
    if not value then
        broken(err)
        return nil, true
    elseif value ~= ngx.null then
        local policy, answer = value:match("^([^\n]*)\n(.*)$")
        return answer, policy
    end
end

-- The answer in another form than it was stored in.
local function converted(entry)
    for _, form in ipairs({JSON, WITH_USAGE}) do
        local answer, policy = nil, nil
        if form ~= entry.form then
            answer, policy = stored(entry, form)
        end
        if policy == true then
            return nil, true
        elseif answer then
            local whole = form == JSON and answer or transcript.answer(answer)
            answer = whole
            if whole and entry.form ~= JSON then
                answer = transcript.events(whole, entry.form == WITH_USAGE)
            end
            if answer then
                cache.put(entry, answer, policy) -- the next time it is there as it is asked for
                return answer, policy
            end
        end
    end
end

-- Returns the stored answer or nil, what to say in X-Cache, and in X-R1-Policy.
function cache.get(entry)
    if not entry or state:get("redis_down") then
        return nil, "BYPASS"
    end
    local answer, policy = stored(entry, entry.form)
    if not answer and policy ~= true then
        answer, policy = converted(entry)
    end
    if policy == true then
        return nil, "BYPASS"
    end
    return answer, answer and "HIT" or "MISS", policy
end

-- Whether an answer of so many bytes may be kept.
function cache.takes(size)
    return size <= settings.max_bytes
end

-- Stores an answer. Call it before the client gets the answer, so that its next request finds it:
-- Redis reads a long command in several turns, and may serve another connection between them.
-- Returns whether it is kept.
function cache.put(entry, answer, policy)
    if not cache.takes(#answer) then
        return false
    end
    local value = policy .. "\n" .. answer
    local ok, err = redis.ask("SET", entry.key .. entry.form, value, "EX", settings.ttl)
    if not ok then
        broken(err)
    end
    return ok ~= nil
end

return cache
