-- From the engine to the client: one question is put to it, its answer passed on in the one format
-- as it comes, and what came is noted in ngx.ctx for log, metrics and limits:
--   asked, answered   when the question was put, when the answer had come whole (s)
--   first, said       when the first text came, and the first that is no thought (s)
--   usage             {prompt_tokens, completion_tokens, ...} as the engine counted
--   pieces            pieces of text of a stream, about as many as tokens
--   kept              whether the answer is in the cache
--   failure           what was wrong with the engine

local cjson = require "cjson"
local answer = require "gateway.answer"
local cache = require "gateway.cache"
local engine = require "gateway.engine"
local errors = require "gateway.errors"
local models = require "gateway.models"
local ollama = require "gateway.ollama"
local upstreams = require "gateway.upstreams"

local relay = {}

local function fail(err)
    ngx.ctx.failure = err
    ngx.log(ngx.WARN, "request ", ngx.var.request_id, ": the engine failed: ", err)
    return err == "timeout" and 504 or 502
end

-- A whole answer.
function relay.send(body, type)
    ngx.header["Content-Type"] = type or "application/json"
    ngx.header["Content-Length"] = #body
    ngx.print(body)
end

local function refuse_as_engine(response, request)
    local given = errors.read(engine.collect(response) or "")
    local status = response.status
    if status == 401 or status == 403 or status < 400 then
        -- Not in its own words, which may quote the prompt.
        ngx.log(ngx.ERR, "request ", ngx.var.request_id, ": the engine answered ", status)
        return errors.send(502, {message = "The engine refuses the gateway (" .. status .. ")."})
    elseif status == 500 and (request.content_type or ""):find("json", 1, true)
        and not pcall(cjson.decode, request.body) then
        -- llama.cpp calls it its own failure, which clients would try again.
        return errors.send(400, {message = "The body is not valid JSON: "
            .. tostring(given.message)})
    end
    return errors.send(status, given)
end

-- The engine has nothing more to do: lets those go that wait for the same answer.
function relay.landed()
    local ctx = ngx.ctx
    upstreams.left()
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
            if not err then
                ngx.update_time()
                ngx.ctx.answered = ngx.now()
            end
            local rest = err and end_with and end_with(fail(err)) or shape(nil)
            if not err and keep then
                keep(rest)
                keep(nil)
            end
            relay.landed()
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

-- The stream's bytes in the one format, and what they tell noted as they come.
local function noting(stream)
    local ctx, seen = ngx.ctx, stream.seen
    return function(bytes)
        local out = stream.take(bytes)
        if seen.pieces > 0 and not (ctx.first and ctx.said) then
            ngx.update_time()
            ctx.first = ctx.first or ngx.now()
            ctx.said = ctx.said or seen.said and ngx.now() or nil
        end
        ctx.pieces, ctx.usage = seen.pieces, seen.usage
        return out
    end
end

-- Collects a stream for the cache, which takes it when it is whole.
local function collector(entry, stream)
    local parts, size = {}, 0
    return function(bytes)
        if not bytes then
            if parts and stream.complete() then
                ngx.ctx.kept = cache.put(entry, table.concat(parts), ngx.ctx.policy,
                    stream.seen.usage_event)
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

-- route: {choices, method}. request: see engine.ask; and hide_usage, where the client did not ask
-- for the usage of its stream; fold, see answer.whole; model, the one that is wanted of the list.
-- entry: where the answer is to be kept, if it is.
function relay.answer(request, route, entry)
    local ctx = ngx.ctx
    ctx.asked = ngx.now()
    local response, err, message = upstreams.ask(request)
    if not response then
        return errors.send(fail(err), {message = message})
    end
    if response.foreign then -- another model's answer
        entry, ctx.cache = nil, "BYPASS"
        ngx.header["X-Cache"] = ctx.cache
    end
    if response.status >= 300 then
        return refuse_as_engine(response, request)
    end
    ngx.status = response.status
    if response.type:find("text/event-stream", 1, true) then
        ngx.header["Cache-Control"] = "no-cache"
        ngx.header["X-Accel-Buffering"] = "no"
        if not route.choices then
            return pass(response, plain, error_event)
        end
        local stream = answer.stream(request.hide_usage, request.fold)
        local keep = entry and entry.type == "text/event-stream"
            and collector(entry, stream)
        return pass(response, noting(stream), error_event, keep)
    elseif not response.type:find("json", 1, true) then
        return pass(response, plain) -- speech, ...
    end
    local body
    body, err = engine.collect(response)
    ngx.update_time()
    ctx.answered = ngx.now()
    if not body then
        return errors.send(fail(err))
    end
    local complete = false
    if route.choices then
        body, complete, ctx.usage = answer.whole(body, request.fold)
    elseif route.method == "GET" then
        body = models.listed(ctx.client, ollama.plain_names(body))
        if request.model then
            body = models.one(body, request.model)
            if not body then
                return errors.refuse(models.unknown(request.model))
            end
        end
    end
    if complete and entry and entry.type == "application/json" and response.status == 200 then
        ctx.kept = cache.put(entry, body, ctx.policy)
    end
    relay.landed()
    return relay.send(body)
end

return relay
