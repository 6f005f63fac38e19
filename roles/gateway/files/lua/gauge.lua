-- How much of something goes on right now, over all workers. Each counts for itself, and what a
-- worker counted goes with it: after a kill the sums are right again.

local ffi = require "ffi"

ffi.cdef "int kill(int pid, int signal);"

local counts = ngx.shared.gateway_gauges

local ESRCH = 3 -- there is no such process; any other refusal means that there is

local gauge = {}
local mine

local function alive(pid)
    return ffi.C.kill(pid, 0) == 0 or ffi.errno() ~= ESRCH
end

-- A new worker may have the number of one that was killed.
local function start()
    mine = ":" .. ngx.worker.pid()
    for _, key in ipairs(counts:get_keys(0)) do
        if key:sub(-#mine) == mine then
            counts:delete(key)
        end
    end
end

-- n: 1 where something begins, -1 where it ends, in the same worker.
function gauge.add(name, n)
    if not mine then
        start()
    end
    counts:incr(name .. mine, n, 0)
end

function gauge.sum(name)
    local sum = 0
    for _, key in ipairs(counts:get_keys(0)) do
        local whose, pid = key:match("^(.*):(%d+)$")
        if whose == name and alive(tonumber(pid)) then
            sum = sum + (counts:get(key) or 0)
        elseif whose == name then
            counts:delete(key)
        end
    end
    return sum
end

return gauge
