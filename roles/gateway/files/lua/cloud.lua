-- A service in the cloud that stands in for the own engines, if the operator lets prompts leave the
-- premises: chat only, models by its own names, and no more than so many tokens a day. A request
-- takes all tokens it may need from the day's budget before it is sent, and gives back the rest.

local cjson = require "cjson.safe"
local engine = require "gateway.engine"
local json = require "gateway.json"

local state = ngx.shared.gateway_state

local cloud = {}
local settings, target

local CHAT = "/v1/chat/completions"
local BYTES_PER_TOKEN = 2 -- of a prompt; most have more
local DAY = 86400
local REST_SECONDS = 5 -- how long it is left alone after it could not be reached
local TRIES = 2 -- only the first may fail, and only before the first byte

-- given: {base_url, models ({ours = theirs}), when, first_byte (ms), tokens_per_day, max_tokens
-- (of an answer that has no limit)}, empty for none.
function cloud.init(given, key)
    if not next(given) then
        return
    end
    local host, port, prefix = given.base_url:match("^https://([^/:]+):?(%d*)(.-)/?$")
    settings = given
    target = {
        name = "cloud", address = host, port = tonumber(port) or 443, tls = true, key = key,
        host = host .. (port ~= "" and ":" .. port or ""), prefix = prefix,
        first_byte = given.first_byte,
    }
end

function cloud.is_there()
    return target ~= nil
end

local function purse()
    return "cloud:" .. ngx.utctime():sub(1, 10)
end

-- Whether it could be reached, as far as known, and the day's budget is not used up.
function cloud.up()
    return not state:get("cloud_down") and (state:get(purse()) or 0) < settings.tokens_per_day
end

local function number(body, name)
    local from, to = json.member(body, 1, name)
    return from and tonumber(body:sub(from, to))
end

-- The cloud's name for the model, or nil and why it does not answer this request.
local function name_there(request)
    if request.path:match("^[^?]*") ~= CHAT then
        return nil, "the cloud is for chat only"
    elseif state:get("cloud_down") then
        return nil, "the cloud could not be reached a moment ago"
    end
    local from, to = json.member(request.body, 1, "model")
    local name = from and cjson.decode(request.body:sub(from, to))
    local theirs = type(name) == "string" and settings.models[name]
    return theirs or nil, "the cloud has no such model"
end

-- Whether it takes this request while all engines are busy.
function cloud.overflows(request)
    return target and settings.when == "overflow" and cloud.up() and name_there(request) ~= nil
end

-- The body in the cloud's words, and the most tokens that it can cost: of the prompt, and of the
-- answers.
local function translated(body, name)
    local changes = {model = cjson.encode(name)}
    local most = math.max(number(body, "max_tokens") or 0,
        number(body, "max_completion_tokens") or 0)
    if most <= 0 then
        most = settings.max_tokens
        changes.max_tokens = cjson.encode(most)
    end
    local edits = {}
    json.set(body, 1, changes, edits)
    return json.apply(body, edits), math.ceil(#body / BYTES_PER_TOKEN),
        most * math.max(number(body, "n") or 1, 1)
end

-- Takes tokens from the day's budget: returns what it is that is to be settled, or nil.
local function take(prompt, said)
    local name, tokens = purse(), prompt + said
    if not (tokens <= settings.tokens_per_day) then
        return nil -- also what is no number at all
    elseif state:incr(name, tokens, 0, 2 * DAY) > settings.tokens_per_day then
        state:incr(name, -tokens)
        return nil
    end
    return {name = name, prompt = prompt, tokens = tokens}
end

-- At the end of a request: gives back to the budget what it did not need.
function cloud.settle()
    local ctx = ngx.ctx
    local taken, usage = ctx.taken, ctx.usage
    if not taken then
        return
    end
    local used = taken.tokens
    if taken.refused then
        used = 0
    elseif usage and tonumber(usage.completion_tokens) then
        used = (tonumber(usage.prompt_tokens) or taken.prompt) + usage.completion_tokens
    elseif (ctx.pieces or 0) > 0 then
        used = taken.prompt + ctx.pieces -- the client left a stream
    end
    state:incr(taken.name, used - taken.tokens)
    ctx.taken = nil
end

-- Asks the cloud: see engine.ask. A third value says to the client why it was not asked.
function cloud.ask(request)
    local name, why = name_there(request)
    if not name then
        return nil, why
    end
    local body, prompt, said = translated(request.body, name)
    local taken = take(prompt, said)
    if not taken then
        return nil, "the cloud's budget does not allow it", ("No engine can answer, and the cloud's"
            .. " budget does not allow this request: it may take %.0f tokens, of %d a day."
            ):format(prompt + said, settings.tokens_per_day)
    end
    ngx.ctx.taken = taken
    local question = setmetatable({body = body}, {__index = request})
    local response, err, begun
    for _ = 1, TRIES do
        response, err, begun = engine.ask(question, target)
        if response or begun then
            break
        end
    end
    if response then
        response.foreign = true
        taken.refused = response.status >= 300
    else
        taken.refused = not begun
        ngx.log(ngx.WARN, "the cloud failed: ", err, "; left alone for ", REST_SECONDS, " s")
        state:set("cloud_down", true, REST_SECONDS)
        cloud.settle()
    end
    return response, err
end

return cloud
