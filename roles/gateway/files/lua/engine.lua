-- A small HTTP/1.1 client for engines: hands the answer on as it arrives, never buffers.
-- A new connection for each request: when the client leaves, closing it stops the engine's work.

local engine = {}
local settings

-- given: {connect_timeout, read_timeout} in milliseconds
function engine.init(given)
    settings = given
end

-- Seconds that an answer may take to come.
function engine.patience()
    return settings.read_timeout / 1000
end

local PIECE = 65536

-- What has arrived, up to `most` bytes.
local function receive(sock, most)
    if sock.receiveany then
        return sock:receiveany(most)
    end
    -- Before 0.10.14 (Ubuntu 22.04) there is only waiting for all. Streams come in small chunks,
    -- so that makes no difference to them.
    local bytes, err, part = sock:receive(most)
    if not bytes and part and part ~= "" then
        return part
    end
    return bytes, err
end

local function counted(sock, left)
    return function()
        if left == 0 then
            return nil
        end
        local bytes, err = receive(sock, math.min(left, PIECE))
        if not bytes then
            return nil, err
        end
        left = left - #bytes
        return bytes
    end
end

local function chunked(sock)
    local chunk, first = counted(sock, 0), true
    return function()
        local bytes, err = chunk()
        if bytes or err then
            return bytes, err
        end
        if not first then
            sock:receive(2)
        end
        first = false
        local line
        line, err = sock:receive()
        local digits = line and line:match("^%x+")
        local size = digits and tonumber(digits, 16)
        if not size then
            return nil, err or "bad chunk"
        end
        chunk = counted(sock, size)
        return chunk()
    end
end

local function until_close(sock)
    return function()
        local bytes, err = receive(sock, PIECE)
        if not bytes then
            return nil, err ~= "closed" and err or nil
        end
        return bytes
    end
end

-- Returns status and headers; or nil, an error, and whether the answer may have begun.
local function read_head(sock)
    local line, err, part = sock:receive()
    if not line then
        return nil, err, err == "timeout" or part ~= ""
    end
    local status = tonumber(line:match("^HTTP/1%.[01] (%d%d%d)"))
    if not status then
        return nil, "not HTTP", true
    end
    local headers = {}
    while true do
        line, err = sock:receive()
        if not line then
            return nil, err, true
        elseif line == "" then
            return status, headers
        end
        local name, value = line:match("^([^:%s]+):%s*(.-)%s*$")
        if name then
            headers[name:lower()] = value
        end
    end
end

-- A connection, encrypted where the target wants that, or nil and an error.
-- patience: until the first byte of the answer (ms).
local function connect(target, patience)
    local started = ngx.now()
    local sock = ngx.socket.tcp()
    local first = math.min(settings.connect_timeout, patience)
    sock:settimeouts(first, patience, patience)
    local ok, err = sock:connect(target.address, target.port)
    if ok and target.tls then
        ok, err = sock:sslhandshake(false, target.address, true)
        -- A handshake that fails without a wait is said to be done; but its connection is closed.
        if ok and not sock:getreusedtimes() then
            ok, err = nil, "its certificate is not trusted, or for another name"
        end
    end
    if ok and target.first_byte then
        ngx.update_time()
        patience = math.max(patience - (ngx.now() - started) * 1000, 1)
        sock:settimeouts(first, patience, patience)
    end
    return ok and sock, err
end

-- request: {method, path, content_type, accept, body, read_timeout}
-- target: {address, port, host (as its header says), key}, and where it needs them: tls (true, with
-- a certificate for its address), prefix (in the place of /v1), first_byte (most ms until then).
-- Returns {status, type, read}, where read() gives the next bytes, nil at the end, or nil and an
-- error. Or nil, an error ("timeout" or what happened instead), and whether the answer may have
-- begun: where not, another engine may be asked.
function engine.ask(request, target)
    local read_timeout = request.read_timeout or settings.read_timeout
    local sock, err = connect(target, target.first_byte or read_timeout)
    if not sock then
        return nil, err, false
    end
    local body = request.body or ""
    local path = target.prefix and target.prefix .. request.path:sub(#"/v1" + 1) or request.path
    local head = {
        request.method, " ", path, " HTTP/1.1\r\n",
        "Host: ", target.host, "\r\n",
        "Authorization: Bearer ", target.key, "\r\n",
        "Accept: ", request.accept or "*/*", "\r\n",
        "X-Request-Id: ", ngx.get_phase() ~= "timer" and ngx.var.request_id or "-", "\r\n",
        "Connection: close\r\n",
    }
    if request.content_type then
        head[#head + 1] = "Content-Type: " .. request.content_type .. "\r\n"
    end
    if request.method ~= "GET" then
        head[#head + 1] = "Content-Length: " .. #body .. "\r\n"
    end
    -- An engine may refuse before it has read all: its answer counts, not the failed send.
    sock:send({head, "\r\n", body})
    local status, headers, begun
    repeat
        status, headers, begun = read_head(sock)
    until not status or status >= 200
    if not status then
        return nil, headers, begun
    end
    sock:settimeouts(settings.connect_timeout, read_timeout, read_timeout)
    local read
    if (headers["transfer-encoding"] or ""):lower() == "chunked" then
        read = chunked(sock)
    elseif status == 204 or status == 304 then
        read = counted(sock, 0)
    elseif headers["content-length"] then
        read = counted(sock, tonumber(headers["content-length"]) or 0)
    else
        read = until_close(sock)
    end
    return {status = status, type = headers["content-type"] or "", read = read}
end

-- The whole body, or nil and an error when it is cut.
function engine.collect(response)
    local parts = {}
    while true do
        local bytes, err = response.read()
        if bytes then
            parts[#parts + 1] = bytes
        elseif err then
            return nil, err
        else
            return table.concat(parts)
        end
    end
end

return engine
