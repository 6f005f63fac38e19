-- What each client may: requests and tokens per minute, and requests that run at the same time.
-- The first two are buckets that hold a minute's worth and refill evenly. A bucket is one number,
-- the time at which it will be full again; a full one is not stored.

local gauge = require "gateway.gauge"

local buckets = ngx.shared.gateway_limits

local limit = {}
local all, clients = {}, {}

local MINUTE = 60
local KINDS = {requests = "requests_per_minute", tokens = "tokens_per_minute"}
local BYTES_PER_TOKEN = 4 -- of a question, about

-- given: {all = {requests_per_minute, tokens_per_minute, concurrent_streams, models, cache},
-- clients = {name = what is different for this one}}; a limit of 0 is none.
function limit.init(given)
    all = given.all
    for name, different in pairs(given.clients) do
        local own = {}
        for key, value in pairs(all) do
            own[key] = value
        end
        for key, value in pairs(different) do
            own[key] = value
        end
        clients[name] = own
    end
end

-- The client's settings, as in limit.init.
function limit.of(client)
    return clients[client] or all
end

-- Takes `cost` out of a bucket when it holds so much, or whatever it holds where `owed`: what was
-- already used may be more than was there.
-- Returns how much is left, seconds until it is full, and seconds until the cost would be there.
local function take(key, per_minute, cost, owed)
    local now = ngx.now()
    local each = MINUTE / per_minute
    local full = math.max(buckets:get(key) or 0, now)
    local wait = full + cost * each - now - MINUTE
    if (owed or wait < 0.001) and cost ~= 0 then
        full = math.max(full + cost * each, now)
        if full > now then
            buckets:set(key, full, full - now + 1)
        else
            buckets:delete(key)
        end
        wait = 0
    end
    return math.max(math.floor((MINUTE - (full - now)) / each + 0.001), 0), full - now, wait
end

local function duration(seconds)
    local tenths = math.ceil(seconds * 10 - 0.01)
    local minutes = math.floor(tenths / 600)
    return (minutes > 0 and minutes .. "m" or "") .. ("%.1fs"):format(tenths / 10 - 60 * minutes)
end

-- Spends `cost` of the client's requests or tokens and says what is left, as OpenAI does. Returns
-- nil and what was spent (nil where there is no limit), or what to answer instead: {status, seconds
-- to wait, error}.
local function spend(client, kind, cost)
    local per_minute = limit.of(client)[KINDS[kind]] or 0
    if per_minute == 0 then
        return nil
    end
    -- What exceeds a whole minute's worth passes when nothing was used before.
    cost = math.min(cost, per_minute)
    local left, full, wait
    gauge.alone(function()
        left, full, wait = take(client .. ":" .. kind, per_minute, cost)
    end)
    ngx.header["x-ratelimit-limit-" .. kind] = per_minute
    ngx.header["x-ratelimit-remaining-" .. kind] = left
    ngx.header["x-ratelimit-reset-" .. kind] = duration(full)
    if wait < 0.001 then
        return nil, cost
    end
    return {429, wait, {
        message = ("Rate limit reached for this API key on %s per minute: limit %d, left %d, "
            .. "asked %d. Try again in %s."):format(kind, per_minute, left, cost, duration(wait)),
        type = kind,
    }}
end

-- One more running request of the client, to be taken back by limit.leave.
local function run(client)
    local most = limit.of(client).concurrent_streams or 0
    if most == 0 then
        return nil
    end
    local name = "requests of " .. client
    local free = gauge.alone(function()
        if gauge.sum(name) >= most then
            return false
        end
        gauge.add(name, 1)
        return true
    end)
    if free then
        ngx.ctx.runs = name
        return nil
    end
    return {429, 1, {
        message = ("Rate limit reached for this API key on requests at the same time: limit %d. "
            .. "Try again when one has ended."):format(most),
        type = "concurrent_streams",
    }}
end

-- Whether the client may ask now: nil, or {status, seconds to wait, error}.
-- asks: whether it wants an answer of the model, which counts as running.
function limit.enter(client, asks)
    local refused = asks and run(client) or spend(client, "requests", 1)
    if not refused then
        spend(client, "tokens", 0) -- for the headers
    end
    return refused
end

-- The same before a question goes to the engine; its tokens are known only about, until limit.leave.
function limit.ask(client, content_type, body)
    local json = (content_type or ""):find("json", 1, true)
    local about = json and math.ceil(#body / BYTES_PER_TOKEN) or 0
    local refused, cost = spend(client, "tokens", about)
    if not refused then
        ngx.ctx.reserved = cost
    end
    return refused
end

local function number(value)
    return type(value) == "number" and value > 0 and value < 1e9 and value or 0
end

-- What the answer cost. As the engine counted, or about; nothing where the engine failed.
local function used(ctx)
    local usage = ctx.usage
    if usage then
        return number(usage.prompt_tokens) + number(usage.completion_tokens)
    elseif not ctx.asked or ngx.status >= 400 and ngx.status ~= 499 then
        return 0
    end
    return ctx.reserved + (ctx.pieces or 0)
end

-- Runs once at the end of every request, whatever ended it.
function limit.leave()
    local ctx = ngx.ctx
    if ctx.runs then
        gauge.add(ctx.runs, -1)
    end
    if ctx.reserved then
        local difference = used(ctx) - ctx.reserved
        local per_minute = limit.of(ctx.client).tokens_per_minute
        gauge.alone(take, ctx.client .. ":tokens", per_minute, difference, true)
    end
end

return limit
