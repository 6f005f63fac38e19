-- Can an engine answer right now? Each is asked at most once a second, however many want to know.

local cjson = require "cjson.safe"
local engine = require "gateway.engine"
local errors = require "gateway.errors"
local upstreams = require "gateway.upstreams"

local state = ngx.shared.gateway_state

local health = {}

local SECONDS = 1 -- between two looks
local MISSES = 3 -- looks in a row that may time out: an engine at work may be slow to say so

-- "" when it can, else the reason why not, and whether it was too slow to say.
local function look(one)
    local request = {method = "GET", path = one.health, read_timeout = 2000}
    local response, err = engine.ask(request, one)
    local body
    if response then
        body, err = engine.collect(response)
    end
    if not body then
        return "The engine does not answer: " .. (err or "its answer was cut") .. ".",
            err == "timeout"
    elseif response.status ~= 200 then
        local reason = errors.read(body).message
        return "The engine is not ready: "
            .. (type(reason) == "string" and reason or "status " .. response.status) .. "."
    end
    local data = cjson.decode(body)
    local models = type(data) == "table" and data.object == "list" and data.data
    if models and (models == cjson.null or #models == 0) then
        return "The engine has no model."
    end
    return ""
end

local function check(one)
    local reason, slow = look(one)
    local missed = "missed:" .. one.name
    if not slow then
        state:delete(missed)
    elseif upstreams.reason(one) == "" and state:incr(missed, 1, 0) < MISSES then
        return
    end
    upstreams.mark(one, reason)
end

-- Looks at all engines, unless somebody did so a moment ago.
-- leaving: whether the worker is, which a timer says.
function health.refresh(leaving)
    if leaving then
        return
    end
    local due = state:add("looked", true, SECONDS)
    local threads = {}
    for _, one in ipairs(upstreams.engines()) do
        if due or not upstreams.reason(one) then
            threads[#threads + 1] = ngx.thread.spawn(check, one)
        end
    end
    for _, thread in ipairs(threads) do
        ngx.thread.wait(thread)
    end
end

-- Keeps looking, in one worker or another, where the choice of an engine depends on it.
function health.watch()
    if upstreams.several() then
        ngx.timer.at(0, health.refresh)
        ngx.timer.every(SECONDS, health.refresh)
    end
end

function health.serve()
    health.refresh()
    local problem = upstreams.problem()
    if problem then
        return errors.send(503, {message = problem})
    end
    ngx.header["Content-Type"] = "application/json"
    ngx.say('{"status":"ok"}')
end

return health
