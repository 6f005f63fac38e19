-- The few words of Redis's protocol that the cache needs, over a pooled connection.

local redis = {}
local settings

-- given: {address = "unix:/path" or "host:port", connect_timeout, read_timeout} in milliseconds
function redis.init(given)
    settings = given
    settings.host, settings.port = given.address:match("^([^/]+):(%d+)$")
end

local function connect(sock)
    if settings.port then
        return sock:connect(settings.host, tonumber(settings.port))
    end
    return sock:connect(settings.address)
end

local function encode(words)
    local parts = {"*", #words, "\r\n"}
    for _, word in ipairs(words) do
        word = tostring(word)
        parts[#parts + 1] = "$" .. #word .. "\r\n"
        parts[#parts + 1] = word
        parts[#parts + 1] = "\r\n"
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

-- The reply to a command (ngx.null for none), or nil and an error.
function redis.ask(...)
    local sock = ngx.socket.tcp()
    sock:settimeouts(settings.connect_timeout, settings.read_timeout, settings.read_timeout)
    local value
    local ok, err = connect(sock)
    if ok then
        ok, err = sock:send(encode({...}))
    end
    if ok then
        value, err = reply(sock)
    end
    if value then
        sock:setkeepalive(60000, 64)
    else
        sock:close() -- what still comes belongs to nobody
    end
    return value, err
end

return redis
