-- The way of a request: known route, known key, within the limit, cache, engine, answer.

local cjson = require "cjson"
local answer = require "gateway.answer"
local auth = require "gateway.auth"
local cache = require "gateway.cache"
local engine = require "gateway.engine"
local errors = require "gateway.errors"
local flight = require "gateway.flight"
local health = require "gateway.health"
local limit = require "gateway.limit"
local ollama = require "gateway.ollama"
local policy = require "gateway.policy"
local redis = require "gateway.redis"

local main = {}

-- The engine's OpenAI routes. Whatever else an engine has under /v1 (loading adapters, stored
-- answers of other clients) stays out of reach. `choices`: answers that have choices.
local ROUTES = {
    ["/v1/models"] = {method = "GET"},
    ["/v1/chat/completions"] = {method = "POST", choices = true},
    ["/v1/completions"] = {method = "POST", choices = true},
    ["/v1/embeddings"] = {method = "POST"},
    ["/v1/responses"] = {method = "POST"},
    ["/v1/moderations"] = {method = "POST"},
    ["/v1/rerank"] = {method = "POST"},
    ["/v1/audio/speech"] = {method = "POST"},
    ["/v1/audio/transcriptions"] = {method = "POST"},
    ["/v1/audio/translations"] = {method = "POST"},
    ["/v1/images/generations"] = {method = "POST"},
}
local MODEL = {method = "GET"} -- /v1/models/NAME

local function find_route(uri)
    if ROUTES[uri] then
        return ROUTES[uri], uri
    elseif uri:find("^/v1/models/[%w._:@/+-]+$") and not uri:find("..", 1, true) then
        return MODEL, "/v1/models/NAME"
    end
end

function main.init(settings, secrets_file)
    local file = assert(io.open(secrets_file))
    local secrets = cjson.decode(file:read("*a"))
    file:close()
    settings.engine.key = secrets.engine_key
    auth.init(secrets.keys)
    engine.init(settings.engine)
    health.init(settings.engine.health)
    limit.init(settings.rate_limit)
    ollama.init(settings.ollama)
    policy.init(settings.policy)
    answer.init(settings.answer)
    redis.init(settings.redis)
    cache.init(settings.cache)
end

-- The request body, and whether it stayed in memory.
local function read_body()
    ngx.req.read_body()
    local body = ngx.req.get_body_data()
    if body then
        return body, true
    end
    local spilled = ngx.req.get_body_file()
    if not spilled then
        return "", true
    end
    local file = assert(io.open(spilled, "rb"))
    body = file:read("*a")
    file:close()
    return body, false
end

local function fail(err)
    ngx.ctx.failure = err
    ngx.log(ngx.WARN, "the engine failed: ", err)
    return err == "timeout" and 504 or 502
end

local function send(body, type)
    ngx.header["Content-Type"] = type or "application/json"
    ngx.header["Content-Length"] = #body
    ngx.print(body)
end

local function refuse_as_engine(response, request)
    local given = errors.read(engine.collect(response) or "")
    local status = response.status
    if status == 401 or status == 403 or status < 400 then
        ngx.log(ngx.ERR, "the engine answered ", status, ": ", given.message)
        return errors.send(502, {message = "The engine refuses the gateway (" .. status .. ")."})
    elseif status == 500 and (request.content_type or ""):find("json", 1, true)
        and not pcall(cjson.decode, request.body) then
        -- llama.cpp calls it its own failure, which clients would try again.
        return errors.send(400, {message = "The body is not valid JSON: "
            .. tostring(given.message)})
    end
    return errors.send(status, given)
end

-- Lets those go that wait for the same answer.
local function landed()
    local ctx = ngx.ctx
    if ctx.landed then
        ctx.landed(ctx.kept)
        ctx.landed = nil
    end
end

-- keep(bytes): what the client gets, and at its end nil.
local function pass(response, shape, end_with, keep)
    ngx.header["Content-Type"] = response.type
    while true do
        local bytes, err = response.read()
        if not bytes then
            local rest = err and end_with and end_with(fail(err)) or shape(nil)
            if not err and keep then
                keep(rest)
                keep(nil)
            end
            landed()
            if rest ~= "" then
                ngx.print(rest)
            end
            if err and not end_with then
                return ngx.exit(ngx.ERROR) -- a cut answer must look cut
            end
            return
        end
        bytes = shape(bytes)
        if keep then
            keep(bytes)
        end
        if bytes ~= "" then
            ngx.print(bytes)
            if not ngx.flush(true) then
                return
            end
        end
    end
end

local function plain(bytes)
    return bytes or ""
end

local function error_event(status)
    return "data: " .. errors.body(status) .. "\n\n"
end

-- Collects a stream for the cache, which takes it when it is whole.
local function collector(entry, finished)
    local parts, size = {}, 0
    return function(bytes)
        if not bytes then
            if parts and finished() then
                ngx.ctx.kept = cache.put(entry, table.concat(parts), ngx.ctx.policy)
            end
            return
        end
        size = size + #bytes
        if parts and not cache.takes(size) then
            parts = nil
        elseif parts then
            parts[#parts + 1] = bytes
        end
    end
end

local function relay(request, route, entry)
    ngx.ctx.asked = ngx.now()
    local response, err = engine.ask(request)
    if not response then
        return errors.send(fail(err))
    elseif response.status >= 300 then
        return refuse_as_engine(response, request)
    end
    ngx.status = response.status
    if response.type:find("text/event-stream", 1, true) then
        ngx.header["Cache-Control"] = "no-cache"
        ngx.header["X-Accel-Buffering"] = "no"
        if not route.choices then
            return pass(response, plain, error_event)
        end
        local shape, finished = answer.stream()
        local keep = entry and entry.type == "text/event-stream" and collector(entry, finished)
        return pass(response, shape, error_event, keep)
    elseif not response.type:find("json", 1, true) then
        return pass(response, plain) -- speech, ...
    end
    local body
    body, err = engine.collect(response)
    ngx.update_time()
    ngx.ctx.answered = ngx.now()
    if not body then
        return errors.send(fail(err))
    end
    local complete = false
    if route.choices then
        body, complete = answer.whole(body)
    elseif route.method == "GET" then
        body = ollama.plain_names(body)
    end
    if complete and entry and entry.type == "application/json" and response.status == 200 then
        ngx.ctx.kept = cache.put(entry, body, ngx.ctx.policy)
    end
    landed()
    return send(body)
end

local function serve()
    local ctx, var = ngx.ctx, ngx.var
    local client, problem = auth.client(var.http_authorization)
    if not client then
        ngx.header["WWW-Authenticate"] = 'Bearer realm="deepseek-r1"'
        return errors.send(401, {message = problem})
    end
    ctx.client = client
    local route, name = find_route(var.uri)
    if not route then
        return main.not_found()
    end
    ctx.route = name
    local method = ngx.req.get_method()
    if method ~= route.method and not (method == "HEAD" and route.method == "GET") then
        ngx.header["Allow"] = route.method
        return errors.send(405)
    elseif var.http_content_encoding then
        return errors.send(415)
    end
    local wait = limit.wait(client)
    if wait then
        ngx.header["Retry-After"] = wait
        return errors.send(429)
    end

    local path = var.uri .. (var.args and "?" .. var.args or "")
    local body, in_memory = read_body()
    local asked = var.http_x_r1_policy
    local entry = route.choices and in_memory and cache.entry(client, path .. " " .. (asked or ""),
        var.http_content_type, var.http_cache_control, body) or nil
    local stored
    stored, ctx.cache, ctx.policy = cache.get(entry)
    ngx.header["X-Cache"] = ctx.cache
    if not stored and ctx.cache == "MISS" then
        stored, ctx.landed = flight.enter(entry.key, function()
            local found
            found, ctx.cache, ctx.policy = cache.get(entry)
            return found
        end, engine.patience())
        ngx.header["X-Cache"] = ctx.cache
    end
    if stored then
        ngx.header["X-R1-Policy"] = ctx.policy
        return send(stored, entry.type)
    end
    if route.choices then
        local applied
        body, applied = policy.apply(body, asked, name == "/v1/chat/completions")
        ctx.policy = #applied > 0 and table.concat(applied, ", ") or "none"
        ngx.header["X-R1-Policy"] = ctx.policy
        local problem = ollama.refuses(body)
        if problem then
            return errors.send(400, {
                message = problem, code = "context_length_exceeded", param = "messages",
            })
        end
    end
    return relay({
        method = route.method,
        path = path,
        content_type = var.http_content_type,
        accept = var.http_accept,
        body = body,
    }, route, ctx.cache == "MISS" and entry)
end

function main.serve()
    serve()
    landed()
end

function main.not_found()
    return errors.send(404)
end

return main
