-- Counters for Prometheus, and one line of JSON on stdout for each request. Neither holds a
-- prompt, an answer or a key.

local cjson = require "cjson"
local ffi = require "ffi"

ffi.cdef "long write(int descriptor, const void *bytes, size_t count);"

local counters = ngx.shared.gateway_metrics

local metrics = {}

local BUCKETS = {0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}

local HELP = {
    {"gateway_requests_total", "counter", "Requests by route, status and cache result."},
    {"gateway_engine_seconds", "histogram", "Seconds the engine took, to the last byte."},
}

local function add(name, value)
    counters:incr(name, value, 0)
end

function metrics.observe_engine(seconds)
    for _, bound in ipairs(BUCKETS) do
        if seconds <= bound then
            add(('gateway_engine_seconds_bucket{le="%s"}'):format(bound), 1)
        end
    end
    add('gateway_engine_seconds_bucket{le="+Inf"}', 1)
    add("gateway_engine_seconds_sum", seconds)
    add("gateway_engine_seconds_count", 1)
end

function metrics.text()
    local lines = {}
    local names = counters:get_keys(0)
    table.sort(names)
    for _, help in ipairs(HELP) do
        lines[#lines + 1] = ("# HELP %s %s"):format(help[1], help[3])
        lines[#lines + 1] = ("# TYPE %s %s"):format(help[1], help[2])
        for _, name in ipairs(names) do
            if name:sub(1, #help[1]) == help[1] then
                lines[#lines + 1] = name .. " " .. tostring(counters:get(name))
            end
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

-- Runs once at the end of every request, also of those that nginx itself refused.
function metrics.log()
    local var, ctx = ngx.var, ngx.ctx
    local route, cached = ctx.route or "other", ctx.cache or "-"
    add(('gateway_requests_total{route="%s",status="%s",cache="%s"}'):format(
        route, var.status, cached), 1)
    if ctx.asked then
        metrics.observe_engine((ctx.answered or ngx.now()) - ctx.asked)
    end
    local line = cjson.encode({
        time = var.time_iso8601,
        id = var.request_id,
        address = var.remote_addr,
        client = ctx.client,
        method = var.request_method,
        path = (var.uri or ""):sub(1, 200):gsub("[\128-\255]", "?"),
        status = tonumber(var.status),
        bytes = tonumber(var.bytes_sent),
        seconds = tonumber(var.request_time),
        cache = cached,
        upstream = ctx.upstream,
        error = ctx.failure,
    }) .. "\n"
    ffi.C.write(1, line, #line)
end

return metrics
