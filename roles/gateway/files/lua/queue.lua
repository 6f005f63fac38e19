-- The line before the engine. As many requests as the engine answers side by side go through, the
-- rest wait; who is next is the client with the fewest requests at the engine, of several the one
-- whose last start is longest ago, and within a client who came first. Each worker keeps its own
-- waiting requests in lines by client, and tells the others the first of each line.

local gauge = require "gateway.gauge"

local queue = {}
local slots, places = 0, 0
local lines = {} -- client: its waiting requests in this worker, {ticket}
local held = 1 -- seconds that a request is at the engine, about

-- The first of a line looks often, who stands further back less so.
local STEP, LONGEST_STEP = 0.005, 0.05 -- seconds

-- given: {requests (at the engine, at the same time; 0: no limit), waiting (at most)}
function queue.init(given)
    slots, places = given.requests, given.waiting
end

function queue.depth()
    return gauge.sum("waiting")
end

function queue.running()
    return gauge.sum("running")
end

local function add(what, client, number)
    gauge.add(what, number)
    gauge.add(what .. " of " .. client, number)
end

-- Tells the other workers who is first in each line.
local function tell()
    local firsts = {}
    for client, line in pairs(lines) do
        firsts[#firsts + 1] = line[1].ticket .. " " .. client
    end
    gauge.say("firsts", firsts[1] and table.concat(firsts, "\n"))
end

local function take_out(waiter)
    local line = lines[waiter.client]
    for place, other in ipairs(line) do
        if other == waiter then
            table.remove(line, place)
            lines[waiter.client] = line[1] and line or nil
            add("waiting", waiter.client, -1)
            return place == 1 and tell()
        end
    end
end

-- Whether a comes before b; each {requests at the engine, last start, ticket}.
local function before(a, b)
    for i = 1, 3 do
        if a[i] ~= b[i] then
            return a[i] < b[i]
        end
    end
    return false
end

-- The ticket of the request that is next.
local function next_ticket()
    local best
    for _, pid in ipairs(gauge.workers()) do
        for ticket, client in (gauge.said("firsts", pid) or ""):gmatch("(%d+) ([^\n]*)") do
            local rank = {
                gauge.sum("running of " .. client), gauge.noted("start of " .. client),
                tonumber(ticket),
            }
            if not best or before(rank, best) then
                best = rank
            end
        end
    end
    return best and best[3]
end

local function start(waiter)
    add("running", waiter.client, 1)
    gauge.note("start of " .. waiter.client, gauge.count("starts"))
    waiter.started = ngx.now()
end

local function start_when_next(waiter)
    if queue.running() < slots and next_ticket() == waiter.ticket then
        take_out(waiter)
        start(waiter)
    end
end

-- Starts, or joins the line. Returns whether there was room. A client that has none waiting always
-- finds a place, however many another one has there.
local function join(waiter)
    local waiting = queue.depth()
    if slots == 0 or waiting == 0 and queue.running() < slots then
        start(waiter)
    elseif waiting >= places and gauge.sum("waiting of " .. waiter.client) > 0 then
        return false
    else
        waiter.ticket = gauge.count("tickets")
        local line = lines[waiter.client] or {}
        line[#line + 1] = waiter
        lines[waiter.client] = line
        add("waiting", waiter.client, 1)
        if #line == 1 then
            tell()
        end
        start_when_next(waiter)
    end
    return true
end

local function lined_up()
    local count = 0
    for _ in pairs(lines) do
        count = count + 1
    end
    return count
end

-- Seconds after which a place should be free.
local function turn()
    return math.min(math.max(held * queue.depth() / slots, 1), 60)
end

-- Waits until the client's request may go to the engine. Returns nil then, or what to answer
-- instead: {status, seconds to wait, error}.
-- patience: seconds to wait at most.
function queue.enter(client, patience)
    local waiter = {client = client}
    local came = ngx.now()
    if not gauge.alone(join, waiter) then
        return {503, turn(), {
            message = ("Too many requests wait for the model: %d."):format(queue.depth()),
            code = "queue_full",
        }}
    end
    ngx.ctx.queued = waiter
    while not waiter.started do
        if ngx.now() - came > patience then
            queue.leave()
            return {503, turn(), {
                message = ("The request waited %d seconds for the model."):format(patience),
                code = "queue_timeout",
            }}
        end
        local behind = waiter.ticket - lines[client][1].ticket
        ngx.sleep(math.min(STEP * (behind + lined_up()), LONGEST_STEP))
        if lines[client][1] == waiter and queue.running() < slots then
            gauge.alone(start_when_next, waiter)
        end
    end
end

-- Ends the request's time in line or at the engine. May be called more than once.
function queue.leave()
    local waiter = ngx.ctx.queued
    if not waiter then
        return
    end
    ngx.ctx.queued = nil
    if waiter.started then
        add("running", waiter.client, -1)
        held = held + (ngx.now() - waiter.started - held) / 8
    else
        take_out(waiter)
    end
end

return queue
