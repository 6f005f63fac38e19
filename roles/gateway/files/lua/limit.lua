-- Requests per minute and client, counted in whole minutes of the clock.

local counts = ngx.shared.gateway_limits

local limit = {}
local per_minute = 0

function limit.init(requests)
    per_minute = requests
end

-- nil when the client may ask now, else the seconds to wait.
function limit.wait(client)
    if per_minute == 0 then
        return nil
    end
    local now = ngx.time()
    local minute = client .. ":" .. math.floor(now / 60)
    counts:add(minute, 0, 120)
    local count = counts:incr(minute, 1)
    if count and count > per_minute then
        return 60 - now % 60
    end
end

return limit
