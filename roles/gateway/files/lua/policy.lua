-- What R1 needs of a request and clients do not know: sampling, no system prompt, no earlier
-- thoughts, an end. The rules of the deployed model are data (gateway_policy); a request may leave
-- some out, or ask for more, in its header X-R1-Policy. Whatever no rule touches is sent on byte for
-- byte as the client wrote it.

local cjson = require "cjson.safe"
local json = require "gateway.json"
local question = require "gateway.question"
local think = require "gateway.think"

local policy = {}
local settings = {}

local BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
local LENGTHS = {"max_tokens", "max_completion_tokens"}

-- given: any of sampling ({name = value}), system_prompt ("move"), history ("strip"), blank_lines
-- ("fold"), max_tokens and max_tokens_ceiling (numbers). A rule that is not there is off.
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

-- A member's text: a new one, or as it was written.
local function raw_of(text, member)
    return member.raw or text:sub(member.from, member.to)
end

local function role_of(text, message)
    local role
    for _, member in ipairs(message.members) do
        if member.key == "role" then
            role = cjson.decode(raw_of(text, member))
        end
    end
    return role
end

-- Decoded only where a rule asks for it: it may be long.
local function content_of(text, message)
    for _, member in ipairs(message.members) do
        if member.key == "content" then
            return cjson.decode(raw_of(text, member))
        end
    end
end

local function set_content(message, content)
    message.changed = true
    for _, member in ipairs(message.members) do
        if member.key == "content" then
            member.raw = encode(content)
        end
    end
end

local function written(text, message)
    local members = {}
    for i, member in ipairs(message.members) do
        members[i] = '"' .. member.key .. '":' .. raw_of(text, member)
    end
    return "{" .. table.concat(members, ",") .. "}"
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
local function without_system(text, messages)
    local told, kept = {}, {}
    for _, message in ipairs(messages) do
        if message.role == "system" or message.role == "developer" then
            told[#told + 1] = question.text_of(content_of(text, message))
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
            set_content(message, joined(before, content_of(text, message)))
            return kept, true
        end
    end
    table.insert(kept, 1, {changed = true, role = "user", members = {
        {key = "role", raw = '"user"'}, {key = "content", raw = encode(before)},
    }})
    return kept, true
end

-- Thoughts of earlier turns only take room, and lead R1 astray.
local function without_thoughts(text, messages)
    local found = false
    for _, message in ipairs(messages) do
        if message.role == "assistant" then
            local kept = {}
            for _, member in ipairs(message.members) do
                if member.key ~= "reasoning_content" and member.key ~= "reasoning" then
                    kept[#kept + 1] = member
                end
            end
            message.changed = message.changed or #kept < #message.members
            message.members = kept
            local content = content_of(text, message)
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

local function with_advice(text, messages)
    for i = #messages, 1, -1 do
        if messages[i].role == "user" then
            set_content(messages[i], joined(nil, content_of(text, messages[i]), BOXED))
            return true
        end
    end
    return false
end

-- Changes the messages of a text; returns their new text, or nil where nothing changes.
local function messages_of(text, messages, rules, applied)
    for _, message in ipairs(messages) do
        message.role = role_of(text, message)
    end
    local changed = false
    local function note(name, done)
        applied[#applied + 1] = done and name or nil
        changed = changed or done
    end
    if rules.history then
        note("history", without_thoughts(text, messages))
    end
    if rules.system_prompt then
        local done
        messages, done = without_system(text, messages)
        note("system_prompt", done)
    end
    if rules.boxed then
        note("boxed", with_advice(text, messages))
    end
    if not changed then
        return nil
    end
    local parts = {}
    for i, message in ipairs(messages) do
        parts[i] = message.changed and written(text, message) or text:sub(message.from, message.to)
    end
    return "[" .. table.concat(parts, ",") .. "]"
end

-- What the rules change in a question: {name = raw JSON}, and the names of those that do.
local function ruled(asked, header, chat)
    local rules, changes, applied = wanted(header), {}, {}
    if rules.sampling then
        for name, value in pairs(settings.sampling) do
            if not asked.place[name] then
                changes[name] = encode(value)
                applied[1] = "sampling"
            end
        end
    end
    local told = false
    for _, name in ipairs(LENGTHS) do
        local number = tonumber(question.raw(asked, name))
        told = told or number ~= nil
        if number and rules.max_tokens_ceiling and number > settings.max_tokens_ceiling then
            changes[name] = encode(settings.max_tokens_ceiling)
            applied[#applied + 1] = "max_tokens_ceiling"
        end
    end
    if rules.max_tokens and not told then
        changes.max_tokens = encode(settings.max_tokens)
        applied[#applied + 1] = "max_tokens"
    end
    local fold = chat and rules.blank_lines ~= nil
    applied[#applied + 1] = fold and "blank_lines" or nil
    -- Where it is no list of messages, the engine says what is wrong with it.
    local messages = chat and asked.place.messages and asked.place.messages.value
    changes.messages = messages and messages_of(asked.text, messages, rules, applied) or nil
    return changes, applied, fold
end

-- What makes a stream tell its usage, which limits, metrics and cache need: the new options in
-- JSON; or nil, where it is none, the client asked for it itself, or asked for what is wrong.
local function usage_options(asked)
    local options = question.raw(asked, "stream_options") or "null"
    if question.raw(asked, "stream") ~= "true" then
        return nil
    end
    options = options == "null" and {} or cjson.decode(options)
    if type(options) ~= "table" or options.include_usage then
        return nil
    end
    options.include_usage = true
    return encode(options)
end

-- The body as the model needs it, the names of the rules that apply, whether it is a stream that is
-- to hide its usage from the client, who did not ask for it, and whether the answer's blank lines
-- are to be folded.
-- asked: see question.read. chat: it has messages.
function policy.apply(asked, header, chat)
    local changes, applied, fold = ruled(asked, header, chat)
    changes.stream_options = usage_options(asked)
    if not next(changes) then
        return asked.text, applied, false, fold
    end
    local edits = {}
    json.change(asked.members, asked.close, changes, edits)
    return json.apply(asked.text, edits), applied, changes.stream_options ~= nil, fold
end

return policy
