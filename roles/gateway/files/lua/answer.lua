-- One answer format, whichever engine serves: the chain of thought in `reasoning_content` beside
-- `content`, no special tokens at the end. Engines say `reasoning_content` (llama.cpp),
-- `reasoning` (Ollama, vLLM), or leave <think>...</think> in the content.

local cjson = require "cjson.safe"
local json = require "gateway.json"

local answer = {}

local END_TOKEN = "<｜end▁of▁sentence｜>"

local function encode(text)
    -- cjson escapes each slash, which JSON allows but nobody expects.
    return (cjson.encode(text):gsub("\\/", "/"))
end

-- Two texts, reasoning and answer; the opening tag may be missing, because R1's template gives it.
local function split_think(text)
    local start = text:match("^%s*<think>()") or 1
    local close, stop = text:find("</think>", start, true)
    if close then
        return text:sub(start, close - 1):match("^%s*(.-)%s*$"), text:sub(stop + 1):match("^%s*(.*)$")
    elseif start > 1 then
        return text:sub(start):match("^%s*(.-)%s*$"), ""
    end
end

local function strip_end_token(text)
    local body = text:match("^(.-)%s*$")
    while body:sub(-#END_TOKEN) == END_TOKEN do
        body = body:sub(1, -#END_TOKEN - 1)
        text = body
    end
    return text
end

-- What to change in a message, a delta or (of the completions route) a choice: {key = raw JSON}.
-- raw(key) gives a member's text as the engine wrote it.
local function changes_for(part, raw, whole)
    local changes, found = {}, false
    local reasoned = part.reasoning_content
    if type(reasoned) ~= "string" and type(part.reasoning) == "string" then
        reasoned = part.reasoning
        changes.reasoning_content, found = raw("reasoning"), true
    end
    for _, key in ipairs({"content", "text"}) do
        local before = part[key]
        if type(before) == "string" then
            local after = strip_end_token(before)
            if whole and key == "content" and (type(reasoned) ~= "string" or reasoned == "") then
                local thought, said = split_think(after)
                if thought then
                    changes.reasoning_content, after = encode(thought), said
                end
            end
            if after ~= before then
                changes[key], found = encode(after), true
            end
        end
    end
    return found and changes
end

-- Returns the text with its choices in the one format, and whether every choice is finished.
local function reshape(text, data, whole)
    local finished = #data.choices > 0
    local edits = {}
    local places
    for i, choice in ipairs(data.choices) do
        if type(choice) ~= "table" then
            return text, false
        end
        finished = finished and type(choice.finish_reason) == "string"
        local part = choice.message or choice.delta
        local inside = type(part) == "table" and (choice.message and "message" or "delta")
        local at
        local function place()
            places = places or json.array(text, (json.member(text, 1, "choices")))
            at = at or (inside and json.member(text, places[i], inside) or places[i])
            return at
        end
        local changes = changes_for(inside and part or choice, function(key)
            return text:sub(json.member(text, place(), key))
        end, whole)
        if changes then
            json.set(text, place(), changes, edits)
        end
    end
    if #edits > 0 then
        text = json.apply(text, edits)
    end
    return text, finished
end

-- A whole JSON answer of a route with choices. Returns its text in the one format, and whether
-- it is complete: valid, without an error, every choice finished.
function answer.whole(text)
    local data = cjson.decode(text)
    if type(data) ~= "table" or type(data.choices) ~= "table" then
        return text, false
    end
    local shaped, finished = reshape(text, data, true)
    return shaped, finished and (data.error == nil or data.error == cjson.null)
end

local function event(lines)
    if not lines:find('"reasoning"', 1, true) and not lines:find("sentence", 1, true) then
        return lines
    end
    return (lines:gsub("(data: ?)([^\r\n]+)", function(field, text)
        local data = cjson.decode(text)
        if type(data) == "table" and type(data.choices) == "table" then
            return field .. reshape(text, data, false)
        end
    end))
end

-- A function that takes a stream's bytes as they come and returns the whole events among them,
-- in the one format. Called with nil, it returns what is left.
function answer.stream()
    local rest = ""
    return function(bytes)
        if not bytes then
            return rest
        end
        rest = rest .. bytes
        local out, from = {}, 1
        while true do
            local _, stop = rest:find("\n\r?\n", from)
            if not stop then
                break
            end
            out[#out + 1] = event(rest:sub(from, stop))
            from = stop + 1
        end
        rest = rest:sub(from)
        return table.concat(out)
    end
end

return answer
