-- The way of a request: known key, known route, within the limits, cache, line, rules, engine.

local cjson = require "cjson"
local answer = require "gateway.answer"
local auth = require "gateway.auth"
local cache = require "gateway.cache"
local cloud = require "gateway.cloud"
local engine = require "gateway.engine"
local errors = require "gateway.errors"
local flight = require "gateway.flight"
local limit = require "gateway.limit"
local metrics = require "gateway.metrics"
local models = require "gateway.models"
local ollama = require "gateway.ollama"
local policy = require "gateway.policy"
local queue = require "gateway.queue"
local question = require "gateway.question"
local redis = require "gateway.redis"
local relay = require "gateway.relay"
local strangers = require "gateway.strangers"
local upstreams = require "gateway.upstreams"

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
    cloud.init(settings.cloud, secrets.cloud_key)
    upstreams.init(settings.engine, settings.upstreams, secrets.upstream_keys)
    limit.init(settings.limits)
    metrics.init(settings.models)
    ollama.init(settings.ollama)
    policy.init(settings.policy)
    queue.init(settings.queue)
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

-- The client's name; nil where it was refused.
local function known_client(authorization)
    local refused = strangers.refuses(authorization)
    if refused then
        return errors.refuse(refused)
    end
    local client, problem = auth.client(authorization)
    if client then
        strangers.known(authorization)
        return client
    end
    strangers.failed()
    ngx.header["WWW-Authenticate"] = 'Bearer realm="deepseek-r1"'
    errors.send(401, {message = problem})
end

-- The route and its name; nil where it was refused.
local function known_route()
    local route, name = find_route(ngx.var.uri)
    if not route then
        return main.not_found()
    end
    ngx.ctx.route = name
    local method = ngx.req.get_method()
    if method ~= route.method and not (method == "HEAD" and route.method == "GET") then
        ngx.header["Allow"] = route.method
        return errors.send(405)
    elseif ngx.var.http_content_encoding then
        return errors.send(415)
    end
    return route, name
end

-- Answers from the cache, if it can. Returns whether the request is done; if not, where its answer
-- is to be kept, if it is.
local function from_cache(client, path, asked, rules)
    local ctx, var = ngx.ctx, ngx.var
    local wishes = cache.wishes(var.http_cache_control)
    local entry = asked and limit.of(client).cache ~= false and cache.entry(
        client, path .. " " .. (rules or ""), var.http_content_type, wishes, asked) or nil
    local found
    ctx.cache = "BYPASS"
    if entry and not entry.no_cache then
        found, ctx.landed = flight.enter(entry, engine.patience())
        ctx.cache = found and "HIT" or cache.state() == "up" and "MISS" or "BYPASS"
    end
    ngx.header["X-Cache"] = ctx.cache
    if found then
        ctx.policy = found.policy
        ngx.header["X-R1-Policy"] = found.policy
        ngx.header["Age"] = found.age
        relay.send(found.body, found.type)
        return true
    elseif wishes.only then
        errors.send(504, {
            message = "Cache-Control says only-if-cached, and no answer to this is stored.",
            type = "invalid_request_error", code = "not_cached",
        })
        return true
    end
    return false, entry
end

local function serve()
    local ctx, var = ngx.ctx, ngx.var
    local client = known_client(var.http_authorization)
    ctx.client = client
    local route, name
    if client then
        route, name = known_route()
    end
    if not route then
        return
    end
    local asks = route.method == "POST"
    local refused = limit.enter(client, asks)
    if refused then
        return errors.refuse(refused)
    end

    local path = var.uri .. (var.args and "?" .. var.args or "")
    local rules = var.http_x_r1_policy
    local body, in_memory = read_body()
    local asked = asks and question.read(body) or nil
    ctx.model = asked and question.raw(asked, "model")
    refused = route.choices and question.refuses(asked) or models.refuses(client, var.uri, asked)
    if refused then
        return errors.refuse(refused)
    end
    local done, entry = from_cache(client, path, route.choices and in_memory and asked, rules)
    if done then
        return
    end

    refused = asks and (limit.ask(client, var.http_content_type, body)
        or not upstreams.spills({path = path, body = body})
            and queue.enter(client, engine.patience()))
    if refused then
        return errors.refuse(refused)
    end
    local hide_usage, fold
    if route.choices then
        local applied
        body, applied, hide_usage, fold = policy.apply(asked, rules,
            name == "/v1/chat/completions")
        ctx.policy = #applied > 0 and table.concat(applied, ", ") or "none"
        ngx.header["X-R1-Policy"] = ctx.policy
        refused = ollama.refuses(body)
        if refused then
            return errors.refuse(refused)
        end
    end
    local model = route == MODEL and var.uri:match("^/v1/models/(.+)$") or nil
    return relay.answer({
        method = route.method,
        path = model and "/v1/models" or path,
        model = model,
        content_type = var.http_content_type,
        accept = var.http_accept,
        body = body,
        hide_usage = hide_usage,
        fold = fold,
    }, route, entry)
end

function main.serve()
    serve()
    relay.landed()
    queue.leave()
end

-- Runs once at the end of every request, whatever ended it.
function main.log()
    upstreams.left()
    queue.leave()
    limit.leave()
    metrics.log()
end

function main.not_found()
    return errors.send(404)
end

return main
