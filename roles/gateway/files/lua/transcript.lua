-- One finished answer in two forms: whole JSON, and the events of a stream. A form is made of the
-- other one only where nothing gets lost on the way: what is not known here makes it impossible.

local cjson = require "cjson.safe"

local transcript = {}

local NAMES = {"reasoning_content", "reasoning"}
-- Members that are carried over, and those that say nothing when they are empty.
local CHOICE = {index = true, finish_reason = true, message = true, delta = true, text = true}
local PART = {role = true, content = true, reasoning_content = true, reasoning = true}

local function empty(value)
    return value == nil or value == cjson.null or value == "" or value == false
        or type(value) == "table" and next(value) == nil
end

-- Whether a table has nothing but the known members and empty ones.
local function plain(part, known)
    for key, value in pairs(part) do
        if not known[key] and not empty(value) then
            return false
        end
    end
    return true
end

local function encode(value)
    return (cjson.encode(value):gsub("\\/", "/"))
end

local function copy(from, leave_out)
    local to = {}
    for key, value in pairs(from) do
        if not leave_out[key] then
            to[key] = value
        end
    end
    return to
end

local HEAD = {"id", "object", "created", "model", "system_fingerprint"}

local function head_of(data, object)
    local head = {}
    for _, key in ipairs(HEAD) do
        head[key] = data[key]
    end
    head.object = object
    return head
end

local OBJECTS = {["chat.completion"] = "chat.completion.chunk", text_completion = "text_completion"}
local WHOLE = {["chat.completion.chunk"] = "chat.completion", text_completion = "text_completion"}

-- The events of a whole answer, or nil; and from where to where the event is that tells its usage,
-- where that is known.
function transcript.events(text)
    local data = cjson.decode(text)
    local object = type(data) == "table" and OBJECTS[data.object]
    if not object or type(data.choices) ~= "table" or #data.choices == 0 then
        return nil
    end
    local out, size = {}, 0
    local function event(choices, more)
        local chunk = head_of(data, object)
        chunk.choices = choices
        for key, value in pairs(more or {}) do
            chunk[key] = value
        end
        local text = encode(chunk)
        if not choices then -- cjson would write an empty object
            text = text:sub(1, -2) .. ',"choices":[]}'
        end
        out[#out + 1] = "data: " .. text .. "\n\n"
        size = size + #out[#out]
    end
    local chat = object ~= "text_completion"
    for i, choice in ipairs(data.choices) do
        local message = choice.message
        if not plain(choice, CHOICE) or chat ~= (type(message) == "table")
            or message and not plain(message, PART) then
            return nil
        end
        local index = choice.index or i - 1
        local function delta(part)
            event({{index = index, delta = part, finish_reason = cjson.null}})
        end
        if chat then
            delta({role = message.role or "assistant", content = ""})
            local thought = {}
            for _, name in ipairs(NAMES) do
                thought[name] = not empty(message[name]) and message[name] or nil
            end
            if next(thought) then
                delta(thought)
            end
            if not empty(message.content) then
                delta({content = message.content})
            end
        elseif not empty(choice.text) then
            event({{index = index, text = choice.text, finish_reason = cjson.null}})
        end
    end
    local ends = {}
    for i, choice in ipairs(data.choices) do
        ends[i] = {index = choice.index or i - 1, finish_reason = choice.finish_reason}
        ends[i][chat and "delta" or "text"] = chat and {} or ""
    end
    local rest = copy(data, {usage = true, choices = true})
    rest.object = nil
    event(ends, rest)
    local before = size
    if not empty(data.usage) then
        event(nil, {usage = data.usage})
    end
    out[#out + 1] = "data: [DONE]\n\n"
    return table.concat(out), size > before and before + 1 or nil, size > before and size or nil
end

local function add(choice, name, text)
    if type(text) == "string" then
        choice[name] = (choice[name] or "") .. text
    end
end

-- The whole answer of a finished stream that told its usage, or nil.
function transcript.answer(text)
    local choices, most, data = {}, -1, {}
    for line in text:gmatch("data: ?([^\r\n]+)") do
        local chunk = line ~= "[DONE]" and cjson.decode(line) or {choices = {}}
        if type(chunk) ~= "table" or type(chunk.choices) ~= "table" then
            return nil
        end
        for _, choice in ipairs(chunk.choices) do
            local delta = type(choice.delta) == "table" and choice.delta or {}
            if not plain(choice, CHOICE) or not plain(delta, PART) then
                return nil
            end
            local index = choice.index or 0
            most = math.max(most, index)
            local known = choices[index] or {}
            choices[index] = known
            known.role = known.role or delta.role
            for _, name in ipairs({"content", NAMES[1], NAMES[2]}) do
                add(known, name, delta[name])
            end
            add(known, "text", choice.text)
            known.finish_reason = not empty(choice.finish_reason) and choice.finish_reason
                or known.finish_reason
        end
        for key, value in pairs(chunk) do
            if key ~= "choices" and not empty(value) then
                data[key] = value
            end
        end
    end
    local object = WHOLE[data.object or ""]
    if not object or not data.usage or most < 0 then
        return nil
    end
    data.object, data.choices = object, {}
    for index = 0, most do
        local known = choices[index]
        if not known then
            return nil
        end
        local choice = {index = index, finish_reason = known.finish_reason}
        if object == "text_completion" then
            choice.text = known.text or ""
        else
            choice.message = {role = known.role or "assistant", content = known.content or ""}
            for _, name in ipairs(NAMES) do
                choice.message[name] = known[name]
            end
        end
        data.choices[index + 1] = choice
    end
    return encode(data)
end

return transcript
