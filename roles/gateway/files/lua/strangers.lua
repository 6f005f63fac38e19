-- Who comes without a key, or with a wrong one, is limited by address, so that nobody tries keys by
-- the thousand. A key that was right lately stays right, also beside them: many clients may share an
-- address. All this is in a memory of its own, which forgets the oldest: it never holds what counts
-- for a client.

local hash = require "gateway.hash"

local seen = ngx.shared.gateway_addresses

local strangers = {}

local FAILURES = 30 -- per minute and address
local WINDOW = 60 -- seconds
local REMEMBERED = 86400 -- seconds that a key counts as right

-- An IPv6 network is one address: who has one has all of it.
local function address()
    local bytes = ngx.var.binary_remote_addr
    return #bytes == 16 and bytes:sub(1, 8) or bytes
end

local function mark(authorization)
    return "right " .. hash.sha256(authorization)
end

-- By the minutes of the clock.
local function failures(from)
    return "failures " .. math.floor(ngx.time() / WINDOW) .. " " .. from
end

-- nil, or {status, seconds to wait, error} for an address with too many failures.
function strangers.refuses(authorization)
    local from = address()
    if (seen:get(failures(from)) or 0) < FAILURES
        or authorization and seen:get(mark(authorization)) then
        return nil
    end
    return {429, WINDOW - ngx.time() % WINDOW, {
        message = ("Too many requests without a known API key from this address: %d in a minute.")
            :format(FAILURES),
        code = "too_many_failures",
    }}
end

function strangers.failed()
    seen:incr(failures(address()), 1, 0, WINDOW)
end

function strangers.known(authorization)
    local right = mark(authorization)
    if not seen:get(right) then
        seen:set(right, true, REMEMBERED)
    end
end

return strangers
