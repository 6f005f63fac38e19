-- The way of a request: known route, known key, within the limit, cache, rules, engine.

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
local question = require "gateway.question"
local redis = require "gateway.redis"
local relay = require "gateway.relay"

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
    if route.choices then
        local problem, param = question.problem(body, name == "/v1/chat/completions")
        if problem then
            return errors.send(400, {message = problem, param = param})
        end
    end
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
        return relay.send(stored, entry.type)
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
    local hide_usage
    if route.choices then
        body, hide_usage = policy.with_usage(body)
    end
    return relay.answer({
        method = route.method,
        path = path,
        content_type = var.http_content_type,
        accept = var.http_accept,
        body = body,
        hide_usage = hide_usage,
    }, route, ctx.cache == "MISS" and entry)
end

function main.serve()
    serve()
    relay.landed()
end

function main.not_found()
    return errors.send(404)
end

return main
