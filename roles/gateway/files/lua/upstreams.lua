-- Which engine answers, where there are more than one. A conversation stays where its beginning is
-- in the prefix cache, unless that engine has much more to do than the others. Who does not answer
-- is left out until it does, and who is drained gets nothing new. Where no engine can answer, or all
-- are busy, the cloud may (cloud.lua). With one engine and no cloud all this is passed over.

local cloud = require "gateway.cloud"
local engine = require "gateway.engine"
local gauge = require "gateway.gauge"
local json = require "gateway.json"

local state = ngx.shared.gateway_state

local upstreams = {}
local engines, slots = {}, 1
local several = false

local MARK, RUNNING = "mark:", "running:"
-- How much more than the mean an engine may have to do and still keep its conversations.
local MORE, AND_ONE = 1.25, 1
local PROMPT_BYTES = 1024 -- that tell one text to complete from another

-- own: the host's engine, {address, port, key, health}. given: {engines (further ones, each with
-- name, address, port, tls, drain, health), drain (the own one), slots (requests that an engine runs
-- at a time; 0: any number)}. keys: of the further engines by name; without one, the own engine's.
function upstreams.init(own, given, keys)
    own.name, own.drain, own.host = "engine", given.drain, own.address .. ":" .. own.port
    engines, slots = {own}, given.slots
    for i, one in ipairs(given.engines) do
        one.port = tonumber(one.port)
        one.host = one.address .. ":" .. one.port
        one.key = keys[one.name] or own.key
        one.health = one.health or own.health
        engines[i + 1] = one
    end
    several = #engines > 1 or cloud.is_there()
end

function upstreams.several()
    return several
end

function upstreams.engines()
    return engines
end

-- What a look at an engine, or a request, has found: "" where it answers, else why not.
function upstreams.mark(one, reason)
    local before = state:get(MARK .. one.name)
    if before == reason then
        return
    end
    state:set(MARK .. one.name, reason)
    if several and ((before or "") == "") ~= (reason == "") then
        ngx.log(ngx.WARN, "upstream ", one.name, ": ", reason == "" and "answers again" or reason)
    end
end

-- "" where it answers, else why not; nil before the first look.
function upstreams.reason(one)
    return state:get(MARK .. one.name)
end

-- Why no one can answer, or nil where one can.
function upstreams.problem()
    local problem
    for _, one in ipairs(engines) do
        local reason = one.drain and "It is drained." or upstreams.reason(one)
        if reason == "" then
            return nil
        end
        problem = problem or reason
    end
    if not (cloud.is_there() and cloud.up()) then
        return problem or "Not looked at yet."
    end
end

-- What stays the same over the turns of a conversation: all up to the user's first.
local function beginning(body)
    local from, to = json.member(body, 1, "messages")
    if not from then
        from, to = json.member(body, 1, "prompt")
        return from and body:sub(from, math.min(to, from + PROMPT_BYTES))
    end
    local parts = {}
    for i, at in ipairs(json.array(body, from) or {}) do
        local members, close = json.object(body, at)
        if not members then
            return nil
        end
        parts[i] = body:sub(at, close)
        for _, member in ipairs(members) do
            if member.key == "role" and body:sub(member.from, member.to) == '"user"' then
                return table.concat(parts)
            end
        end
    end
    return #parts > 0 and table.concat(parts) or nil
end

-- The engine for a request of this conversation (nil: none), of those not tried yet; nil where
-- there is none. any: also of those that did not answer. Each conversation has an order of engines
-- of its own, so that few move when one goes.
local function pick(conversation, tried, any)
    local home, least, total, number = nil, nil, 0, 0
    local salt = conversation or ngx.var.request_id
    for _, one in ipairs(engines) do
        if not one.drain and not tried[one] and (any or (upstreams.reason(one) or "") == "") then
            local found = {
                one = one, running = gauge.sum(RUNNING .. one.name),
                rank = ngx.md5_bin(salt .. one.name),
            }
            total, number = total + found.running, number + 1
            if not home or found.rank > home.rank then
                home = found
            end
            if not least or found.running < least.running
                or found.running == least.running and found.rank > least.rank then
                least = found
            end
        end
    end
    if not home then
        return nil
    elseif conversation and home.running <= total / number * MORE + AND_ONE then
        return home.one
    end
    return least.one
end

-- Whether the cloud takes this request ({path, body}) because each engine runs all it can. Then it
-- needs no place in the line before them.
function upstreams.spills(request)
    if slots == 0 or not cloud.overflows(request) then
        return false
    end
    for _, one in ipairs(engines) do
        if not one.drain and (upstreams.reason(one) or "") == ""
            and gauge.sum(RUNNING .. one.name) < slots then
            return false
        end
    end
    return true
end

local function enter(name)
    local ctx = ngx.ctx
    ctx.upstream, ctx.running = name, name
    gauge.add(RUNNING .. name, 1)
end

local function leave()
    local ctx = ngx.ctx
    gauge.add(RUNNING .. ctx.running, -1)
    ctx.upstream, ctx.running = nil, nil
end

local function ask_cloud(request)
    enter("cloud")
    local response, err, message = cloud.ask(request)
    if not response then
        leave()
    end
    return response, err, message
end

-- Tries engines one after another, as long as none can have begun to answer. Returns a response; or
-- nil, what happened and whether one may have begun; fourth, an engine's "not ready".
local function ask_engines(request, conversation, tried, any)
    local err, refusal
    while true do
        local one = pick(conversation, tried, any)
        if not one then
            return nil, err, false, refusal
        end
        tried[one] = true
        enter(one.name)
        local response, problem, begun = engine.ask(request, one)
        if response and response.status ~= 503 then
            upstreams.mark(one, "")
            return response
        end
        leave()
        if begun then
            return nil, problem, true
        end
        err, refusal = problem or err, response or refusal
        upstreams.mark(one, "The engine " .. (response and "is not ready."
            or "does not answer: " .. problem .. "."))
    end
end

local function choose(request)
    local response, err, begun, refusal, message
    if upstreams.spills(request) then
        response = ask_cloud(request)
        if response then
            return response
        end
    end
    local words = #engines > 1 and beginning(request.body or "")
    local conversation = words and ngx.md5_bin(ngx.ctx.client .. "\n" .. words)
    local tried = {}
    response, err, begun, refusal = ask_engines(request, conversation, tried)
    if response or begun then
        return response, err
    end
    if cloud.is_there() then
        local why
        response, why, message = ask_cloud(request)
        if response then
            return response
        end
        err = why == "timeout" and why or err or why
    end
    local late, later, _, still = ask_engines(request, conversation, tried, true)
    return late or refusal or still, err or later or "all engines are drained", message
end

-- Puts a request to the engine that is to answer it: see engine.ask. Where none does, a third value
-- may say to the client why.
function upstreams.ask(request)
    if not several then
        return engine.ask(request, engines[1])
    end
    local response, err, message = choose(request)
    ngx.header["X-Upstream"] = response and ngx.ctx.upstream
    return response, err, message
end

-- An engine that answers, for a question beside the request itself.
function upstreams.any()
    return several and pick(nil, {}) or engines[1]
end

-- When the answer has come, and at the end of every request.
function upstreams.left()
    local ctx = ngx.ctx
    if ctx.running then
        cloud.settle()
        gauge.add(RUNNING .. ctx.running, -1)
        ctx.running = nil
    end
end

-- For metrics: {name, up (1 or 0), running}. Of a single engine, what the last look at its health
-- found; its requests are not counted here.
function upstreams.state()
    local list = {}
    for i, one in ipairs(engines) do
        list[i] = {
            name = one.name, up = upstreams.reason(one) == "" and 1 or 0,
            running = gauge.sum(RUNNING .. one.name),
        }
    end
    if cloud.is_there() then
        list[#list + 1] = {
            name = "cloud", up = cloud.up() and 1 or 0, running = gauge.sum(RUNNING .. "cloud"),
        }
    end
    return list
end

return upstreams
