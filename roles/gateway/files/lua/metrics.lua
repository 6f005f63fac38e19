-- Figures for Prometheus, and one line of JSON on stdout for each request. Neither holds a prompt, an
-- answer or a key. Labels have few values: clients are those of api_keys, a model is one that is
-- served or that the settings name, or "other".

local cjson = require "cjson.safe"
local ffi = require "ffi"
local cache = require "gateway.cache"
local health = require "gateway.health"
local queue = require "gateway.queue"
local upstreams = require "gateway.upstreams"

ffi.cdef "long write(int descriptor, const void *bytes, size_t count);"

local counters = ngx.shared.gateway_metrics

local metrics = {}
local models = {} -- as labels, by their names in JSON

local LOST = "gateway_metrics_lost_total"

-- Bounds of buckets in seconds: of whole answers and of the way to their first words; of one token.
local LONG = {0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
local SHORT = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1}

-- What is counted as requests end.
local COUNTERS = {
    {"gateway_requests_total", "Requests by client, model, route, status and cache result."},
    {"gateway_tokens_total", "Tokens by client, model and kind, as the engine counted them. Those"
        .. " of reasoning are among those of completions, where the engine tells them."},
    {LOST, "Figures that found no room in the gateway's memory."},
}
local HISTOGRAMS = {
    {"gateway_engine_seconds", LONG, "Seconds from the question to the last byte of the engine."},
    {"gateway_time_to_first_token_seconds", LONG, "Seconds from the question to the first text of a"
        .. " stream, thought or answer."},
    {"gateway_time_to_answer_token_seconds", LONG, "Seconds from the question to the first text of a"
        .. " stream that is no thought."},
    {"gateway_time_per_output_token_seconds", SHORT, "Seconds between two tokens of a stream, after"
        .. " the first."},
}
-- What upstreams tell of themselves under this name, a line for each.
local function of_upstreams(what)
    local lines = {}
    for i, one in ipairs(upstreams.state()) do
        lines[i] = {('{upstream="%s"}'):format(one.name), one[what]}
    end
    return lines
end

-- What is read when somebody asks: a function that returns {labels or "", value} for each line.
local GAUGES = {
    {"gateway_requests_running", "Requests at the engines.", function()
        return {{"", queue.running()}}
    end},
    {"gateway_requests_waiting", "Requests in line before the engines.", function()
        return {{"", queue.depth()}}
    end},
    {"gateway_upstream_up", "Whether an engine, or the cloud, can answer.", function()
        health.refresh()
        return of_upstreams("up")
    end},
    {"gateway_upstream_running", "Requests at each, where there are several.", function()
        return upstreams.several() and of_upstreams("running") or {}
    end},
    {"gateway_redis_up", "Whether the cache can be used.", function()
        return {{"", cache.state() == "up" and 1 or 0}}
    end},
    {"gateway_connections", "Connections of clients.", function()
        return {{"", ngx.var.connections_active}}
    end},
}

-- names: of the models that become labels.
function metrics.init(names)
    for _, name in ipairs(names) do
        local raw = cjson.encode(name)
        local label = name:gsub('[\\"]', "\\%0"):gsub("\n", "\\n")
        models[raw], models[(raw:gsub("\\/", "/"))] = label, label
    end
    counters:safe_add(LOST, 0) -- while there is room
end

-- A figure that is there is never given up for a new one.
local function add(name, value)
    local _, err = counters:incr(name, value)
    if err == "not found" then
        local ok
        ok, err = counters:safe_add(name, value)
        if ok then
            return
        elseif err == "exists" then -- another worker was faster
            _, err = counters:incr(name, value)
        end
    end
    if err then
        counters:incr(LOST, 1)
    end
end

local function observe(name, bounds, seconds)
    local bucket = "+Inf"
    for _, bound in ipairs(bounds) do
        if seconds <= bound then
            bucket = bound
            break
        end
    end
    add(name .. " " .. bucket, 1)
    add(name .. " sum", seconds)
end

local function title(lines, name, kind, help)
    lines[#lines + 1] = ("# HELP %s %s"):format(name, help)
    lines[#lines + 1] = ("# TYPE %s %s"):format(name, kind)
end

local function line(lines, name, value)
    lines[#lines + 1] = name .. " " .. tostring(value)
end

local function histogram(lines, name, bounds)
    local count = 0
    for i = 1, #bounds + 1 do
        local bound = bounds[i] or "+Inf"
        count = count + (counters:get(name .. " " .. bound) or 0)
        line(lines, ('%s_bucket{le="%s"}'):format(name, bound), count)
    end
    line(lines, name .. "_sum", counters:get(name .. " sum") or 0)
    line(lines, name .. "_count", count)
end

function metrics.text()
    local lines = {}
    local names = counters:get_keys(0)
    table.sort(names)
    for _, counter in ipairs(COUNTERS) do
        title(lines, counter[1], "counter", counter[2])
        for _, name in ipairs(names) do
            if name:match("^[^{]*") == counter[1] then
                line(lines, name, counters:get(name))
            end
        end
    end
    for _, known in ipairs(HISTOGRAMS) do
        title(lines, known[1], "histogram", known[3])
        histogram(lines, known[1], known[2])
    end
    for _, gauge in ipairs(GAUGES) do
        title(lines, gauge[1], "gauge", gauge[2])
        local ok, found = pcall(gauge[3])
        if not ok then -- the rest is still worth reading
            ngx.log(ngx.ERR, "metrics: ", gauge[1], ": ", found)
        end
        for _, read in ipairs(ok and found or {}) do
            line(lines, gauge[1] .. read[1], read[2])
        end
    end
    return table.concat(lines, "\n") .. "\n"
end

-- In a container: lets the host itself in, whose requests come from the default gateway. Docker
-- leaves the addresses of other machines as they are.
function metrics.host_only()
    for line in io.lines("/proc/net/route") do
        local d, c, b, a = line:match("^%S+%s+00000000%s+(%x%x)(%x%x)(%x%x)(%x%x)%s")
        if a and ngx.var.remote_addr == ("%d.%d.%d.%d"):format(
            tonumber(a, 16), tonumber(b, 16), tonumber(c, 16), tonumber(d, 16)) then
            return ngx.exit(ngx.OK)
        end
    end
    return ngx.exit(403)
end

local function number(value)
    return type(value) == "number" and value > 0 and value < 1e9 and value or nil
end

-- {kind = tokens}, as far as the engine told them; of a stream that the client left, as many of the
-- answer as came, about.
local function tokens_of(ctx)
    local usage = ctx.usage
    if not usage then
        return {completion = number(ctx.pieces)}
    end
    local details = usage.completion_tokens_details
    return {
        prompt = number(usage.prompt_tokens),
        completion = number(usage.completion_tokens),
        reasoning = type(details) == "table" and number(details.reasoning_tokens) or nil,
    }
end

-- What the engine took for an answer; times as relay noted them.
local function observe_engine(ctx, tokens)
    observe("gateway_engine_seconds", LONG, (ctx.answered or ngx.now()) - ctx.asked)
    if ctx.first then
        observe("gateway_time_to_first_token_seconds", LONG, ctx.first - ctx.asked)
        local count = tokens.completion or 0
        if ctx.answered and count > 1 then
            observe("gateway_time_per_output_token_seconds", SHORT,
                (ctx.answered - ctx.first) / (count - 1))
        end
    end
    if ctx.said then
        observe("gateway_time_to_answer_token_seconds", LONG, ctx.said - ctx.asked)
    end
end

local function milliseconds(seconds)
    return seconds and math.floor(seconds * 1000 + 0.5) / 1000
end

-- Runs once at the end of every request, also of those that nginx itself refused.
function metrics.log()
    local var, ctx = ngx.var, ngx.ctx
    local cached = ctx.cache or "-"
    local model = ctx.model and (models[ctx.model] or "other") or "-"
    add(('gateway_requests_total{client="%s",model="%s",route="%s",status="%s",cache="%s"}'):format(
        ctx.client or "-", model, ctx.route or "other", var.status, cached), 1)
    local tokens = tokens_of(ctx)
    for kind, count in pairs(tokens) do
        add(('gateway_tokens_total{client="%s",model="%s",kind="%s"}'):format(
            ctx.client, model, kind), count)
    end
    if ctx.asked then
        observe_engine(ctx, tokens)
    end
    local entry = cjson.encode({
        time = var.time_iso8601,
        id = var.request_id,
        address = var.remote_addr,
        client = ctx.client,
        method = var.request_method,
        path = (var.uri or ""):sub(1, 200):gsub("[\128-\255]", "?"),
        model = model,
        status = tonumber(var.status),
        bytes = tonumber(var.bytes_sent),
        seconds = tonumber(var.request_time),
        first_token_seconds = ctx.first and milliseconds(ctx.first - ctx.asked),
        prompt_tokens = tokens.prompt,
        completion_tokens = tokens.completion,
        cache = cached,
        upstream = ctx.upstream,
        error = ctx.failure,
    }) .. "\n"
    ffi.C.write(1, entry, #entry)
end

return metrics
