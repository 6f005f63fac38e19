-- What R1 needs of a request and clients do not know: sampling, no system prompt, no earlier
-- thoughts, an end. The rules of the deployed model are data (gateway_policy); a request may leave
-- some out, or ask for more, in its header X-R1-Policy. Whatever no rule touches is sent on byte for
-- byte as the client wrote it.

local cjson = require "cjson.safe"
local json = require "gateway.json"
local think = require "gateway.think"

local policy = {}
local settings = {}

local BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
local LENGTHS = {"max_tokens", "max_completion_tokens"}

-- given: any of sampling ({name = value}), system_prompt ("move"), history ("strip"), max_tokens
-- and max_tokens_ceiling (numbers). A rule that is not there is off.
function policy.init(given)
    settings = given
end

-- The names of the rules for one request: all of the model's, but for those that its header leaves
-- out ("-history", "off" for all), and those that it asks for ("+boxed").
local function wanted(header)
    local rules = {}
    for name in pairs(settings) do
        rules[name] = true
    end
    for sign, name in (header or ""):gmatch("([+-]?)([%a_]+)") do
        if sign == "" and name == "off" then
            rules = {}
        elseif sign == "-" then
            rules[name] = nil
        elseif sign == "+" and (settings[name] or name == "boxed") then
            rules[name] = true
        end
    end
    return rules
end

local function encode(value)
    return (cjson.encode(value):gsub("\\/", "/"))
end

-- A message as its members in order, where it lies, and its role.
local function read(text, at)
    local members, to = json.object(text, at)
    if not members then
        return nil
    end
    local message = {raw = {}, from = at, to = to}
    for i, member in ipairs(members) do
        message.raw[i] = {key = member.key, raw = text:sub(member.from, member.to)}
        if member.key == "role" then
            message.role = cjson.decode(message.raw[i].raw)
        end
    end
    return message
end

-- Decoded only where a rule asks for it: it may be long.
local function content_of(message)
    for _, member in ipairs(message.raw) do
        if member.key == "content" then
            return cjson.decode(member.raw)
        end
    end
end

local function set_content(message, content)
    message.changed = true
    for _, member in ipairs(message.raw) do
        if member.key == "content" then
            member.raw = encode(content)
        end
    end
end

local function written(message)
    local members = {}
    for i, member in ipairs(message.raw) do
        members[i] = '"' .. member.key .. '":' .. member.raw
    end
    return "{" .. table.concat(members, ",") .. "}"
end

local function text_of(content)
    if type(content) ~= "table" then
        return type(content) == "string" and content or ""
    end
    local parts = {}
    for _, part in ipairs(content) do
        parts[#parts + 1] = type(part) == "table" and type(part.text) == "string" and part.text or nil
    end
    return table.concat(parts, "\n")
end

-- The same content with a text before it, or after it.
local function joined(before, content, after)
    if type(content) ~= "table" then
        local texts = {}
        for _, text in ipairs({before or "", type(content) == "string" and content or "", after or ""}) do
            texts[#texts + 1] = text ~= "" and text or nil
        end
        return table.concat(texts, "\n\n")
    end
    local parts = before and {{type = "text", text = before}} or {}
    for _, part in ipairs(content) do
        parts[#parts + 1] = part
    end
    parts[#parts + 1] = after and {type = "text", text = after} or nil
    return parts
end

-- Instructions go into the first turn of the user, which is where R1 reads them.
local function without_system(messages)
    local told, kept = {}, {}
    for _, message in ipairs(messages) do
        if message.role == "system" or message.role == "developer" then
            told[#told + 1] = text_of(content_of(message))
        else
            kept[#kept + 1] = message
        end
    end
    if #told == 0 then
        return messages, false
    end
    local before = table.concat(told, "\n\n")
    for _, message in ipairs(kept) do
        if message.role == "user" then
            set_content(message, joined(before, content_of(message)))
            return kept, true
        end
    end
    table.insert(kept, 1, {changed = true, role = "user", raw = {
        {key = "role", raw = '"user"'}, {key = "content", raw = encode(before)},
    }})
    return kept, true
end

-- Thoughts of earlier turns only take room, and lead R1 astray.
local function without_thoughts(messages)
    local found = false
    for _, message in ipairs(messages) do
        if message.role == "assistant" then
            local kept = {}
            for _, member in ipairs(message.raw) do
                if member.key ~= "reasoning_content" and member.key ~= "reasoning" then
                    kept[#kept + 1] = member
                end
            end
            message.changed = message.changed or #kept < #message.raw
            message.raw = kept
            local content = content_of(message)
            local thought, said = nil, nil
            if type(content) == "string" then
                thought, said = think.split(content)
            end
            if thought then
                set_content(message, said)
            end
            found = found or message.changed
        end
    end
    return found
end

local function with_advice(messages)
    for i = #messages, 1, -1 do
        if messages[i].role == "user" then
            set_content(messages[i], joined(nil, content_of(messages[i]), BOXED))
            return true
        end
    end
    return false
end

-- Changes the messages of a body; returns their new text, or nil where nothing changes.
local function messages_of(text, from, rules, applied)
    local messages, places = {}, json.array(text, from)
    for i, at in ipairs(places or {}) do
        messages[i] = read(text, at)
        if not messages[i] then
            return nil -- the engine says what is wrong with it
        end
    end
    local changed = false
    local function note(name, done)
        applied[#applied + 1] = done and name or nil
        changed = changed or done
    end
    if rules.history then
        note("history", without_thoughts(messages))
    end
    if rules.system_prompt then
        local done
        messages, done = without_system(messages)
        note("system_prompt", done)
    end
    if rules.boxed then
        note("boxed", with_advice(messages))
    end
    if not changed then
        return nil
    end
    local parts = {}
    for i, message in ipairs(messages) do
        parts[i] = message.changed and written(message) or text:sub(message.from, message.to)
    end
    return "[" .. table.concat(parts, ",") .. "]"
end

-- The body as the model needs it, and the names of the rules that changed it.
-- chat: it has messages.
function policy.apply(body, header, chat)
    local members = json.object(body)
    local rules = wanted(header)
    if not members or not next(rules) then
        return body, {}
    end
    local places, changes, applied = {}, {}, {}
    for _, member in ipairs(members) do
        places[member.key] = member
    end
    if rules.sampling then
        for name, value in pairs(settings.sampling) do
            if not places[name] then
                changes[name] = encode(value)
                applied[1] = "sampling"
            end
        end
    end
    local asked = false
    for _, name in ipairs(LENGTHS) do
        local place = places[name]
        local number = place and tonumber(body:sub(place.from, place.to))
        asked = asked or number ~= nil
        if number and rules.max_tokens_ceiling and number > settings.max_tokens_ceiling then
            changes[name] = encode(settings.max_tokens_ceiling)
            applied[#applied + 1] = "max_tokens_ceiling"
        end
    end
    if rules.max_tokens and not asked then
        changes.max_tokens = encode(settings.max_tokens)
        applied[#applied + 1] = "max_tokens"
    end
    local messages = chat and places.messages
        and messages_of(body, places.messages.from, rules, applied)
    changes.messages = messages or nil
    if not next(changes) then
        return body, applied
    end
    local edits = {}
    json.set(body, 1, changes, edits)
    return json.apply(body, edits), applied
end

-- The body of a stream, asking for its usage, which limits, metrics and cache need; and whether the
-- client itself did not ask for it.
function policy.with_usage(body)
    local from, to = json.member(body, 1, "stream")
    if not from or body:sub(from, to) ~= "true" then
        return body, false
    end
    local options = {}
    from, to = json.member(body, 1, "stream_options")
    if from and body:sub(from, to) ~= "null" then
        options = cjson.decode(body:sub(from, to))
        if type(options) ~= "table" or options.include_usage then
            return body, false -- asked for, or wrong, which the engine says
        end
    end
    options.include_usage = true
    local edits = {}
    json.set(body, 1, {stream_options = encode(options)}, edits)
    return json.apply(body, edits), true
end

return policy
