-- A body must say one thing to everybody who reads it: gateway and engine take different ones of two
-- equal keys, engines know `max_\u0074okens` and (Go's JSON) `Max_Tokens` where the rules do not, and
-- what the rules cannot read at all (another encoding, a byte order mark) an engine may.

local cjson = require "cjson.safe"
local json = require "gateway.json"

local question = {}

-- What the gateway reads: of a body, and of a message.
local BODY = {
    model = true, messages = true, prompt = true, stream = true, stream_options = true,
    max_tokens = true, max_completion_tokens = true, temperature = true, top_p = true, seed = true,
}
local MESSAGE = {role = true, content = true, reasoning = true, reasoning_content = true}

-- The key as any engine may read it: without escapes, in small letters. Go takes the long s and the
-- Kelvin sign for s and k.
local function folded(key)
    local name = key:find("\\", 1, true) and cjson.decode('"' .. key .. '"') or key
    if name:find("[\197\226]") then
        name = name:gsub("\197\191", "s"):gsub("\226\132\170", "k")
    end
    return name:lower()
end

-- What is wrong with the keys of an object, and which one it is; or nil.
local function ambiguous(members, known, place)
    local seen = {}
    for _, member in ipairs(members) do
        local name = folded(member.key)
        if seen[name] then
            return ('The body has the key "%s" twice%s: give it once.'):format(name, place), name
        elseif name ~= member.key and known[name] then
            return ('The body spells the key "%s" in another way%s: write it plainly.'):format(
                name, place), name
        end
        seen[name] = true
    end
end

-- Why the body of a question for choices is refused and the parameter at fault, or nil.
-- chat: it has messages.
function question.problem(body, chat)
    local members = json.object(body)
    if not members then
        return ("The body is not a JSON object in UTF-8, or is nested deeper than %d levels, or has "
            .. "more than %d keys."):format(json.DEEPEST, json.MOST)
    end
    local problem, param = ambiguous(members, BODY, "")
    local from = not problem and chat and json.member(body, 1, "messages")
    local messages, keys = from and json.array(body, from), 0
    if from and not messages and body:sub(from, from) == "[" then
        return ("messages is broken, or has more than %d elements."):format(json.MOST), "messages"
    end
    for i, at in ipairs(messages or {}) do
        local message = json.object(body, at) or {}
        keys = keys + #message
        if keys > 5 * json.MOST then
            return "The messages have too many keys.", "messages"
        end
        problem = ambiguous(message, MESSAGE, " in messages[" .. i - 1 .. "]")
        if problem then
            return problem, "messages"
        end
    end
    return problem, param
end

return question
