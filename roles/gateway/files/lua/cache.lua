-- Answers kept in Redis: only what would come out the same again, only for the same client, route
-- and question, whole or as a stream. Redis may be down or hung; then the cache steps aside.

local cjson = require "cjson.safe"
local hash = require "gateway.hash"
local question = require "gateway.question"
local redis = require "gateway.redis"
local transcript = require "gateway.transcript"
local zip = require "gateway.zip"

-- What was found lately, for all workers: it saves a popular answer the way to Redis, which is 40 %
-- of a hit. So short, because other gateways may store a newer answer.
local near = ngx.shared.gateway_near
local NEAR_SECONDS, NEAR_BYTES = 5, 65536

local cache = {}
local settings

local FORMAT = "4" -- of key and value; a new one leaves old entries behind
-- The forms of an answer: whole, and as events, of which one may tell the usage.
local JSON, EVENTS = ":json", ":events"
local OTHER = {[JSON] = EVENTS, [EVENTS] = JSON}
local TYPES = {[JSON] = "application/json", [EVENTS] = "text/event-stream"}
local LONG = 1024 -- bytes from which on a value goes into the key as its digest
local PACKED_FROM = 4096 -- bytes from which on packing saves more than it costs

-- given: {ttl (s), max_bytes, model (digest), sampled}
-- sampled: answers are kept also where the engine might say something else the next time.
function cache.init(given)
    settings = given
end

-- "up", or "down" for a while after a failure.
function cache.state()
    return redis.up() and "up" or "down"
end

-- Seeds that llama.cpp takes as "random" do not count.
local function fixed_seed(raw)
    return raw and raw:find("^%d+$") and tonumber(raw) < 4294967295
end

-- How the answer was asked for (form, and whether its events tell the usage); nil where that is not
-- known here.
local function form_of(asked)
    if question.raw(asked, "stream") ~= "true" then
        return JSON
    end
    local usage = false
    local options = cjson.decode(question.raw(asked, "stream_options") or "{}")
    for name, given in pairs(type(options) == "table" and options or {}) do
        if name ~= "include_usage" then
            return nil
        end
        usage = given == true
    end
    return EVENTS, usage
end

-- All that is asked for but for the form, in an order of its own, as it was written: big numbers
-- are not told apart once they are decoded.
local function substance(asked)
    local names = {}
    for name in pairs(asked.place) do
        names[#names + 1] = name ~= "stream" and name ~= "stream_options" and name or nil
    end
    table.sort(names)
    local parts = {}
    for _, name in ipairs(names) do
        local from, to = asked.place[name].from, asked.place[name].to
        local size = to - from + 1
        parts[#parts + 1] = #name .. ":" .. name .. (size < LONG and "=" or "#") .. size .. ":"
        parts[#parts + 1] = size < LONG and asked.text:sub(from, to)
            or hash.sha256(asked.text, from, to)
    end
    return table.concat(parts)
end

-- What a client says in Cache-Control.
function cache.wishes(control)
    control = (control or ""):lower()
    local function says(word)
        return control:find(word, 1, true) ~= nil
    end
    return {
        no_store = says("no-store"), -- neither from the cache nor into it
        no_cache = says("no-cache"), -- not from the cache, but into it
        only = says("only-if-cached"), -- from the cache or not at all
        max_age = tonumber(control:match("max%-age%s*=%s*\"?(%d+)")), -- seconds
    }
end

-- What is asked of the cache, or nil when this request is none of its business. Both forms of an
-- answer have the same key: what is asked for as a stream may have been stored whole.
-- asked: see question.read; wishes: see cache.wishes.
function cache.entry(client, route, content_type, wishes, asked)
    if settings.ttl == 0 or wishes.no_store or not asked
        or not asked.certain -- which of two values the engine takes is not known here
        or not (content_type or ""):lower():find("application/json", 1, true) then
        return nil
    end
    if not settings.sampled and tonumber(question.raw(asked, "temperature")) ~= 0
        and not fixed_seed(question.raw(asked, "seed")) then
        return nil
    end
    local form, usage = form_of(asked)
    if not form then
        return nil
    end
    local parts = {}
    for i, part in ipairs({FORMAT, client, route, settings.model, substance(asked)}) do
        parts[i] = #part .. ":" .. part
    end
    local key = "r1:" .. hash.hex(hash.sha256(table.concat(parts)))
    return {
        key = key, form = form, usage = usage, type = TYPES[form],
        no_cache = wishes.no_cache, max_age = wishes.max_age, only = wishes.only,
    }
end

-- A stored answer: {body, at (when it came, s), from, to (where the event with the usage lies in it;
-- 0, 0 for none), policy}. In Redis it is a line of these, with the size of a packed body, and the
-- body.
local function written(found)
    local packed = #found.body >= PACKED_FROM and zip.pack(found.body)
    return ("%.3f %d %d %d %s\n"):format(found.at, packed and #found.body or 0,
        found.from, found.to, found.policy) .. (packed or found.body)
end

-- The stored answer, or nil where there is none, it is too old or damaged.
local function read(entry, value)
    if not value or value == ngx.null then
        return nil
    end
    local at, size, from, to, policy, start =
        value:match("^(%d+%.%d+) (%d+) (%d+) (%d+) ([^\n]*)\n()")
    at, size = tonumber(at), tonumber(size)
    if not at or ngx.now() - at >= (entry.max_age or settings.ttl) or size > settings.max_bytes then
        return nil
    end
    local body = value:sub(start)
    if size > 0 then
        body = zip.unpack(body, size)
    end
    return body and {
        body = body, at = at, from = tonumber(from), to = tonumber(to), policy = policy,
    }
end

-- What a client gets of a stored answer of its form, or nil where that lacks the usage it wants.
local function replay(entry, found)
    local body = found.body
    if entry.form == EVENTS and entry.usage and found.to == 0 then
        return nil
    elseif entry.form == EVENTS and not entry.usage and found.to > 0 then
        body = body:sub(1, found.from - 1) .. body:sub(found.to + 1)
    end
    return {
        body = body, type = entry.type, policy = found.policy,
        age = math.max(0, math.floor(ngx.now() - found.at)),
    }
end

local function store(entry, found)
    local seconds = math.max(1, math.ceil(found.at + settings.ttl - ngx.now()))
    return {"SET", entry.key .. entry.form, written(found), "EX", seconds}
end

-- Keeps this near; false where it is too large. value: as Redis has it.
local function hold(name, value)
    return #value <= NEAR_BYTES and near:set(name, value, NEAR_SECONDS)
end

-- The answer of the other form in this one, or nil where something would get lost.
local function converted(entry, other)
    local body, from, to
    if entry.form == EVENTS then
        body, from, to = transcript.events(other.body)
    elseif other.to > 0 then
        body = transcript.answer(other.body)
    end
    return body and {
        body = body, at = other.at, from = from or 0, to = to or 0, policy = other.policy,
    }
end

-- To be called when another answer has been stored.
local function forget(entry)
    near:delete(entry.key .. JSON)
    near:delete(entry.key .. EVENTS)
end

-- The answer {body, type, policy, age (s)} that was found or stored here a moment ago, or nil.
function cache.near(entry)
    local own = read(entry, near:get(entry.key .. entry.form))
    return own and replay(entry, own)
end

-- The answer in whatever form Redis has it, or nil. commands: what Redis is asked just before, in
-- the same trip; their replies are returned, too.
function cache.look(entry, commands)
    commands[#commands + 1] = {"GET", entry.key .. entry.form}
    commands[#commands + 1] = {"GET", entry.key .. OTHER[entry.form]}
    local replies = redis.pipeline(commands) or {}
    local other = read(entry, table.remove(replies))
    local value = table.remove(replies)
    local own = read(entry, value)
    local found = own and replay(entry, own)
    if found then
        hold(entry.key .. entry.form, value)
    elseif other then
        other = converted(entry, other)
        found = other and replay(entry, other)
        if found then
            redis.pipeline({store(entry, other)}) -- the next time it is there as it is asked for
            forget(entry)
        end
    end
    return found, replies
end

-- Whether an answer of so many bytes may be kept.
function cache.takes(size)
    return size <= settings.max_bytes
end

-- Stores an answer. Call it before the client gets the answer, so that its next request finds it
-- here; or, on another gateway, finds its lock, which goes when the answer is in Redis. What is not
-- kept here must be in Redis first, which reads a long command in several turns, and may serve
-- another connection between them.
-- usage: the event that tells the usage of a stream, where it is known; it is kept also for a client
-- who does not get it, for those who ask otherwise. Returns whether the answer is kept.
function cache.put(entry, body, policy, usage)
    local from, to = 0, 0
    if usage and entry.usage then
        from, to = body:find(usage, 1, true)
    elseif usage then
        local last = body:match(".*()data: ?%[DONE%]")
        if last then
            from, to = last, last + #usage - 1
            body = body:sub(1, last - 1) .. usage .. body:sub(last)
        end
    end
    if not cache.takes(#body) then
        return false
    end
    local commands = {store(entry, {
        body = body, at = ngx.now(), from = from or 0, to = to or 0, policy = policy,
    })}
    local new = entry.no_cache or entry.max_age -- another answer may be there
    if new then
        commands[2] = {"DEL", entry.key .. OTHER[entry.form]}
    end
    commands[#commands + 1] = entry.unlock
    if not new and redis.up() and hold(entry.key .. entry.form, commands[1][3]) then
        redis.later(commands)
        return true
    end
    local replies = redis.pipeline(commands)
    forget(entry)
    return replies ~= nil
end

return cache
