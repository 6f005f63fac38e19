-- Numbers of things that live in a worker process, such as running requests, summed over all
-- workers, also of two generations during a reload. Each worker writes its own share only, so that
-- the share of one that was killed can be left out.

local ffi = require "ffi"

ffi.cdef [[
int kill(int pid, int signal);
int sched_yield(void);
]]

local shares = ngx.shared.gateway_gauges

local gauge = {}

local LEASE = 0.1 -- seconds after which a lock is nobody's: its holder was killed
local LOOK = 1 -- seconds between two looks for the dead

local me -- this process
local own = {} -- this worker's share by name
local known, pids = nil, {} -- the list of workers as stored, and as a table
local looked = 0 -- when this worker last looked for the dead
local alone = false -- whether this worker has the lock

local function workers()
    local list = shares:get("workers") or ""
    if list ~= known then
        known, pids = list, {}
        for pid in list:gmatch("%d+") do
            pids[#pids + 1] = pid
        end
    end
    return pids
end

-- Takes the dead off the list, and this worker onto it.
local function renew()
    local alive, gone = {me}, {}
    for _, pid in ipairs(workers()) do
        if pid ~= me then
            local list = ffi.C.kill(tonumber(pid), 0) == 0 and alive or gone
            list[#list + 1] = pid
        end
    end
    table.sort(alive)
    shares:set("workers", table.concat(alive, " "))
    return gone
end

-- Deletes what these workers said.
local function forget(gone)
    for _, name in ipairs(gone[1] and shares:get_keys(0) or {}) do
        for _, pid in ipairs(gone) do
            if name:sub(-#pid - 1) == " " .. pid then
                shares:delete(name)
            end
        end
    end
end

local function look_for_dead()
    if math.abs(ngx.now() - looked) >= LOOK then
        looked = ngx.now()
        forget(renew())
    end
end

-- Runs work(...) while no other worker runs its, and returns what it returns (one value). It must
-- neither wait nor take long: the others spin meanwhile.
function gauge.alone(work, ...)
    while true do
        local ok, err = shares:add("lock", me, LEASE)
        if ok or err ~= "exists" then
            break
        end
        ffi.C.sched_yield()
        ngx.update_time() -- else the lock of a dead one would never end
    end
    alone = true
    local ok, result = pcall(look_for_dead)
    if ok then
        ok, result = pcall(work, ...)
    end
    alone = false
    shares:delete("lock")
    if not ok then
        error(result, 0)
    end
    return result
end

local function nothing() end

-- The worker processes, as a list of their ids (text); a dead one is on it for a second at most.
function gauge.workers()
    if not alone and math.abs(ngx.now() - looked) >= LOOK then
        gauge.alone(nothing)
    end
    return workers()
end

-- What this worker says under a name, or nil; gauge.said(name, pid) is what another one says.
function gauge.say(name, value)
    if value == nil then
        shares:delete(name .. " " .. me)
    else
        shares:set(name .. " " .. me, value)
    end
end

function gauge.said(name, pid)
    return shares:get(name .. " " .. pid)
end

-- Adds to this worker's share; nothing is stored for a share of zero.
function gauge.add(name, number)
    local share = (own[name] or 0) + number
    own[name] = share ~= 0 and share or nil
    gauge.say(name, own[name])
end

-- Over all workers.
function gauge.sum(name)
    local sum = 0
    for _, pid in ipairs(gauge.workers()) do
        sum = sum + (pid == me and own[name] or pid ~= me and gauge.said(name, pid) or 0)
    end
    return sum
end

-- One number for all workers, that outlives them: gauge.note sets it, gauge.noted gives it or 0;
-- gauge.count gives the next of a sequence 1, 2, 3, ...
function gauge.note(name, number)
    shares:set(name, number)
end

function gauge.noted(name)
    return shares:get(name) or 0
end

function gauge.count(name)
    return shares:incr(name, 1, 0)
end

-- Runs in each worker when it starts.
function gauge.start()
    me = tostring(ngx.worker.pid())
    gauge.alone(forget, {me}) -- what a dead one of the same id may have left
end

return gauge
