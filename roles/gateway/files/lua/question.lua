-- A request's body, read once for all who look into it: where its members lie, and those of each
-- message. Nothing is decoded or copied, because prompts may be long.

local cjson = require "cjson.safe"
local json = require "gateway.json"

local question = {}

-- What the gateway reads: of a body, and of a message.
local BODY = {
    model = true, messages = true, prompt = true, stream = true, stream_options = true,
    max_tokens = true, max_completion_tokens = true, temperature = true, top_p = true, seed = true,
}
local MESSAGE = {role = true, content = true, reasoning = true, reasoning_content = true}

-- Where the list of messages ends, and each as {members, from, to}; nothing where one is no object,
-- or there are more than anybody has: they would hold the worker up.
local function messages_at(text, at)
    local messages, keys = {}, 0
    local _, to = json.array(text, at, function(from)
        local members, close = json.object(text, from)
        keys = keys + #(members or {})
        messages[#messages + 1] = {members = members, from = from, to = close}
        return keys <= 5 * json.MOST and close or nil
    end)
    if to then
        return to, messages
    end
end

-- Returns nil where the body is no JSON object; else {text, members, close, place, certain}.
-- place: the member of each name, of several the last, as engines have it. certain: no name comes
-- twice or with escapes, nothing comes after the object. The member `messages` has them as `value`.
function question.read(text)
    local members, close = json.object(text, 1, function(key, from)
        if key == "messages" then
            return messages_at(text, from)
        end
    end)
    if not members then
        return nil
    end
    local place, certain = {}, not text:find("%S", close + 1)
    for _, member in ipairs(members) do
        certain = certain and not place[member.key] and not member.key:find("\\", 1, true)
        place[member.key] = member
    end
    return {text = text, members = members, close = close, place = place, certain = certain}
end

-- The text of a member as it was written, or nil.
function question.raw(asked, name)
    local member = asked.place[name]
    return member and asked.text:sub(member.from, member.to)
end

-- The text of a message's content, decoded: a string, or a list of parts.
function question.text_of(content)
    if type(content) ~= "table" then
        return type(content) == "string" and content or ""
    end
    local parts = {}
    for _, part in ipairs(content) do
        parts[#parts + 1] = type(part) == "table" and type(part.text) == "string" and part.text or nil
    end
    return table.concat(parts, "\n")
end

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

local function wrong(message, param)
    return {400, nil, {message = message, param = param}}
end

-- A body must say one thing to everybody who reads it: gateway and engine take different ones of two
-- equal keys, engines know `max_\u0074okens` and (Go's JSON) `Max_Tokens` where the rules do not, and
-- what the rules cannot read at all (another encoding, a byte order mark) an engine may.
-- nil, or what to answer instead: {status, nil, error}. asked: see question.read, nil where it is no
-- JSON object.
function question.refuses(asked)
    if not asked then
        return wrong(("The body is not a JSON object in UTF-8, or is nested deeper than %d levels, "
            .. "or has more than %d keys."):format(json.DEEPEST, json.MOST))
    end
    local problem, param = ambiguous(asked.members, BODY, "")
    if problem then
        return wrong(problem, param)
    end
    local messages = asked.place.messages
    if messages and not messages.value and asked.text:sub(messages.from, messages.from) == "[" then
        return wrong(("messages is no list of JSON objects, or has more than %d, or "
            .. "too many keys."):format(json.MOST),
            "messages")
    end
    for i, message in ipairs(messages and messages.value or {}) do
        problem = ambiguous(message.members, MESSAGE, " in messages[" .. i - 1 .. "]")
        if problem then
            return wrong(problem, "messages")
        end
    end
end

return question
