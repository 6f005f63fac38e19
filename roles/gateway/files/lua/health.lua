-- Can the engine answer right now? Asked at most once a second, however many want to know.

local cjson = require "cjson.safe"
local engine = require "gateway.engine"
local errors = require "gateway.errors"

local state = ngx.shared.gateway_state

local health = {}
local path

function health.init(given)
    path = given
end

-- nil when it can, else the reason why not.
local function look()
    local response, err = engine.ask({method = "GET", path = path, read_timeout = 2000})
    local body = response and engine.collect(response)
    if not body then
        return "The engine does not answer: " .. (err or "its answer was cut") .. "."
    elseif response.status ~= 200 then
        local reason = errors.read(body).message
        return "The engine is not ready: "
            .. (type(reason) == "string" and reason or "status " .. response.status) .. "."
    end
    local data = cjson.decode(body)
    local models = type(data) == "table" and data.object == "list" and data.data
    if models and (models == cjson.null or #models == 0) then
        return "The engine has no model."
    end
end

function health.serve()
    local reason = state:get("health")
    if not reason then
        reason = look() or ""
        state:set("health", reason, 1)
    end
    if reason ~= "" then
        return errors.send(503, {message = reason})
    end
    ngx.header["Content-Type"] = "application/json"
    ngx.say('{"status":"ok"}')
end

return health
