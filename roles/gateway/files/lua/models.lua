-- The models that a client may use, where it may not use all.

local cjson = require "cjson.safe"
local json = require "gateway.json"
local limit = require "gateway.limit"
local question = require "gateway.question"

local models = {}

-- The names a client may use, as a set, or nil for all.
local function allowed(client)
    local names = limit.of(client).models
    if not names or #names == 0 then
        return nil
    end
    local set = {}
    for _, name in ipairs(names) do
        set[name] = true
    end
    return set
end

-- What to answer where there is no such model: {status, nil, error}.
function models.unknown(name)
    return {404, nil, {
        message = ("The model '%s' does not exist, or this API key may not use it."):format(name),
        code = "model_not_found",
        param = "model",
    }}
end

local UNNAMED = {400, nil, {
    message = "This API key may use some models only: name one in 'model', in a body of JSON.",
    param = "model",
}}

-- One model of a list as the engine wrote it, or nil: not every engine has a route for one.
function models.one(body, name)
    local data = cjson.decode(body)
    local list = type(data) == "table" and data.data
    for i, model in ipairs(type(list) == "table" and list or {}) do
        if type(model) == "table" and model.id == name then
            return json.value(body, json.array(body, (json.member(body, 1, "data")))[i])
        end
    end
end

-- nil when the client may use the model that the path or the body names, else {status, nil, error}.
-- asked: the body, see question.read.
function models.refuses(client, path, asked)
    local names = allowed(client)
    if not names then
        return nil
    end
    local wanted = path:match("^/v1/models/(.+)$")
    if wanted or path == "/v1/models" then
        return wanted and not names[wanted] and models.unknown(wanted) or nil
    elseif not asked or not asked.certain then -- which of two an engine takes is not known here
        return UNNAMED
    end
    local found = cjson.decode(question.raw(asked, "model") or "null")
    if type(found) ~= "string" then
        return UNNAMED
    end
    return not names[found] and models.unknown(found) or nil
end

-- The list of models without those that the client may not use; the rest stays as it is.
function models.listed(client, body)
    local names = allowed(client)
    local data = names and cjson.decode(body)
    if type(data) ~= "table" then
        return body
    end
    local edits = {}
    for key, title in pairs({data = "id", models = "model"}) do -- llama.cpp has both lists
        local list = data[key]
        if type(list) == "table" and #list > 0 then
            local kept = {}
            local from, to = json.member(body, 1, key)
            local places = json.array(body, from)
            for i, model in ipairs(list) do
                if type(model) == "table" and names[model[title] or model.name] then
                    kept[#kept + 1] = json.value(body, places[i])
                end
            end
            edits[#edits + 1] = {
                from = from, to = to, text = "[" .. table.concat(kept, ",") .. "]",
            }
        end
    end
    return json.apply(body, edits)
end

return models
