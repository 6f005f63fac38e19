-- The few words of Redis's protocol that the cache needs, over a pooled connection; several of them
-- in one trip. Redis may be down or hung: then it is left alone for a while.

local state = ngx.shared.gateway_state

local redis = {}
local settings

local BREAK_SECONDS = 5 -- how long Redis is left alone after a failure

-- given: {address = "unix:/path" or "host:port", connect_timeout, read_timeout} in milliseconds
function redis.init(given)
    settings = given
    settings.host, settings.port = given.address:match("^([^/]+):(%d+)$")
end

-- Whether Redis is asked at all now.
function redis.up()
    return not state:get("redis_down")
end

local function connect(sock)
    if settings.port then
        return sock:connect(settings.host, tonumber(settings.port))
    end
    return sock:connect(settings.address)
end

local function encode(commands)
    local parts = {}
    for _, words in ipairs(commands) do
        parts[#parts + 1] = "*" .. #words .. "\r\n"
        for _, word in ipairs(words) do
            word = tostring(word)
            parts[#parts + 1] = "$" .. #word .. "\r\n"
            parts[#parts + 1] = word
            parts[#parts + 1] = "\r\n"
        end
    end
    return parts
end

local function reply(sock)
    local line, err = sock:receive()
    if not line then
        return nil, err
    end
    local kind, rest = line:sub(1, 1), line:sub(2)
    if kind == "$" then
        local size = tonumber(rest)
        if size < 0 then
            return ngx.null
        end
        local bytes
        bytes, err = sock:receive(size + 2)
        return bytes and bytes:sub(1, -3), err
    elseif kind == "+" or kind == ":" then
        return rest
    end
    return nil, rest
end

local function talk(sock, commands)
    local ok, err = connect(sock)
    if ok then
        ok, err = sock:send(encode(commands))
    end
    local replies = {}
    for i = 1, ok and #commands or 0 do
        replies[i], err = reply(sock)
        if not replies[i] then
            return nil, err
        end
    end
    return ok and replies, err
end

-- commands: lists of words, which go in one write. Returns a list of the replies (ngx.null for
-- none), or nil.
function redis.pipeline(commands)
    if not redis.up() then
        return nil
    end
    local sock = ngx.socket.tcp()
    sock:settimeouts(settings.connect_timeout, settings.read_timeout, settings.read_timeout)
    local replies, err = talk(sock, commands)
    if replies then
        sock:setkeepalive(60000, 64)
        return replies
    end
    sock:close() -- what still comes belongs to nobody
    ngx.log(ngx.WARN, "Redis: ", err, "; no cache for ", BREAK_SECONDS, " s")
    state:set("redis_down", true, BREAK_SECONDS)
end

-- As redis.pipeline, for a request that need not wait for it, nor for a reply.
function redis.later(commands)
    local function ask()
        redis.pipeline(commands)
    end
    if not ngx.timer.at(0, ask) then -- nginx has as many timers as it may have
        ask()
    end
end

-- The reply to one command, or nil.
function redis.ask(...)
    local replies = redis.pipeline({{...}})
    return replies and replies[1]
end

return redis
