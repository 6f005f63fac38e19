-- Every error as OpenAI-shaped JSON: the gateway's own, nginx's own and the engine's.

local cjson = require "cjson.safe"

local errors = {}

-- status: {type, code, message}
local KNOWN = {
    [400] = {"invalid_request_error", "bad_request", "The request is not valid HTTP."},
    [401] = {"invalid_request_error", "invalid_api_key", "The API key is missing or wrong."},
    [403] = {"invalid_request_error", "forbidden", "Not allowed from this address."},
    [404] = {"invalid_request_error", "not_found", "There is no such route."},
    [405] = {"invalid_request_error", "method_not_allowed", "This route takes another method."},
    [408] = {"invalid_request_error", "request_timeout", "The request did not arrive in time."},
    [413] = {"invalid_request_error", "request_too_large", "The request body is too large."},
    [414] = {"invalid_request_error", "uri_too_long", "The URL is too long."},
    [415] = {"invalid_request_error", "unsupported_media_type", "Send plain, uncompressed JSON."},
    [429] = {"rate_limit_error", "rate_limit_exceeded", "Too many requests for this API key."},
    [500] = {"server_error", "internal_error", "The gateway failed. Its log says why."},
    [501] = {"server_error", "not_implemented", "The gateway does not support this."},
    [502] = {"server_error", "engine_unavailable", "The model's engine does not answer."},
    [503] = {"server_error", "engine_unavailable", "The model's engine is not ready."},
    [504] = {"server_error", "engine_timeout", "The model's engine took too long."},
}

local function known(status)
    return KNOWN[status] or (status < 500 and KNOWN[400] or KNOWN[500])
end

local function text(value)
    return type(value) == "string" and value ~= "" and value or nil
end

-- given: any of message, type, code, param; the rest comes from the status.
function errors.body(status, given)
    local default = known(status)
    given = given or {}
    return ('{"error":{"message":%s,"type":%s,"code":%s,"param":%s}}'):format(
        cjson.encode(text(given.message) or default[3]),
        cjson.encode(text(given.type) or default[1]),
        cjson.encode(text(given.code) or default[2]),
        cjson.encode(text(given.param) or cjson.null))
end

function errors.send(status, given)
    local body = errors.body(status, given)
    ngx.ctx.shaped = true
    ngx.status = status
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Content-Length"] = #body
    ngx.print(body)
end

-- refused: {status, seconds until another try makes sense (nil: none does), fields}
function errors.refuse(refused)
    if refused[2] then
        ngx.header["Retry-After"] = math.max(math.ceil(refused[2] - 0.001), 1)
    end
    return errors.send(refused[1], refused[3])
end

-- What an engine said in its own words, as the fields of errors.body.
function errors.read(body)
    local answer = cjson.decode(body)
    if type(answer) ~= "table" then
        return {}
    end
    local fields = answer.error
    if type(fields) == "string" then
        return {message = fields}
    end
    return type(fields) == "table" and fields or answer
end

-- nginx's own error pages (413, 400 for a broken header, ...) become JSON as well.
function errors.header_filter()
    local status = ngx.status
    if status >= 400 and not ngx.ctx.shaped then
        ngx.ctx.page = errors.body(status)
        ngx.header["Content-Type"] = "application/json"
        ngx.header["Content-Length"] = #ngx.ctx.page
    end
end

function errors.body_filter()
    local page = ngx.ctx.page
    if page then
        ngx.arg[1] = page
        ngx.arg[2] = true
        ngx.ctx.page = ""
    end
end

return errors
