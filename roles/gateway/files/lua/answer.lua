-- One answer format, whichever engine serves: the chain of thought in `reasoning_content` and, by
-- its newer name, in `reasoning`, beside `content`; no special tokens at the end; finish reasons in
-- OpenAI's words; errors in mid-stream as error events. Engines say `reasoning_content` (llama.cpp,
-- DeepSeek), `reasoning` (Ollama, vLLM), or leave <think>...</think> in the content.

local cjson = require "cjson.safe"
local blank = require "gateway.blank"
local errors = require "gateway.errors"
local json = require "gateway.json"
local think = require "gateway.think"

local answer = {}
local settings = {}

local NAMES = {"reasoning_content", "reasoning"}
-- Other words for why an answer ended; `cut`: it is not whole, so it is not kept.
local FINISH = {
    eos = "stop", eos_token = "stop", end_turn = "stop", stop_sequence = "stop",
    max_tokens = "length",
}
local CUT = {abort = "length", insufficient_system_resource = "length"}

-- given: {unopened}, whether the engine leaves a thought without its opening tag in the content.
function answer.init(given)
    settings = given
end

local function encode(text)
    -- cjson escapes each slash, which JSON allows but nobody expects.
    return (cjson.encode(text):gsub("\\/", "/"))
end

local function filled(value)
    return type(value) == "string" and value ~= ""
end

-- The name under which a message or delta tells its thought.
local function told_as(part)
    return filled(part[NAMES[1]]) and NAMES[1] or filled(part[NAMES[2]]) and NAMES[2]
end

-- Both names for a thought, as changes {key = raw JSON} for json.set.
local function named(changes, part, raw)
    for _, name in ipairs(NAMES) do
        if not filled(part[name]) then
            changes[name] = raw
        end
    end
end

-- What to change in a message, or in a choice of the completions route.
-- raw(key) gives a member's text as the engine wrote it. fold: see answer.whole.
local function of_whole(part, raw, fold)
    local changes = {}
    local told = told_as(part)
    if told then
        named(changes, part, raw(told))
    end
    for _, key in ipairs({"content", "text"}) do
        local before = part[key]
        if type(before) == "string" then
            local after = think.without_tokens(before)
            local thought, said = nil, nil
            if key == "content" and not told then
                thought, said = think.split(after)
            end
            if thought then
                named(changes, part, encode(thought))
                after = said
            end
            if fold and key == "content" then
                after = blank.fold(after)
            end
            if after ~= before then
                changes[key] = encode(after)
            end
        end
    end
    return changes
end

-- What to change in a delta, or in a choice of the completions route's stream.
-- choice: what is known of this choice so far, {take, told, folded}. seen: see answer.stream.
local function of_piece(part, raw, choice, last, seen)
    local changes = {}
    local told = told_as(part)
    if told then
        choice.told()
        named(changes, part, raw(told))
    end
    seen.pieces = seen.pieces + (told and 1 or 0)
    local key = type(part.text) == "string" and "text" or "content"
    local before = type(part[key]) == "string" and part[key] or ""
    if before ~= "" or last then
        local thought, said = choice.take(before, last)
        if choice.folded and key == "content" then
            said = choice.folded(said, last)
        end
        if thought ~= "" then
            named(changes, {}, encode(thought))
        end
        if said ~= before then
            changes[key] = encode(said)
        end
        seen.pieces = seen.pieces + (before ~= "" and 1 or 0)
        seen.said = seen.said or said ~= ""
    end
    if filled(part.refusal) or type(part.tool_calls) == "table" then
        seen.pieces, seen.said = seen.pieces + 1, true
    end
    return changes
end

-- Returns the text with its choices in the one format, and whether every choice is finished.
-- change(part, raw, choice, last): of_whole or of_piece.
local function reshape(text, data, change)
    local finished = #data.choices > 0
    local edits = {}
    local places
    for i, choice in ipairs(data.choices) do
        if type(choice) ~= "table" then
            return text, false
        end
        local reason = choice.finish_reason
        local last = type(reason) == "string"
        finished = finished and last and not CUT[reason]
        local part = choice.message or choice.delta
        local inside = type(part) == "table" and (choice.message and "message" or "delta")
        local function place(within)
            places = places or json.array(text, (json.member(text, 1, "choices")))
            return within and json.member(text, places[i], within) or places[i]
        end
        local changes = change(inside and part or choice, function(key)
            return text:sub(json.member(text, place(inside), key))
        end, choice, last)
        local word = last and (FINISH[reason] or CUT[reason])
        if word and not inside then
            changes.finish_reason = encode(word)
        elseif word then
            json.set(text, place(), {finish_reason = encode(word)}, edits)
        end
        if next(changes) then
            json.set(text, place(inside), changes, edits)
        end
    end
    if #edits > 0 then
        text = json.apply(text, edits)
    end
    return text, finished
end

-- A whole JSON answer of a route with choices. Returns its text in the one format, whether it is
-- complete (valid, without an error, every choice finished), and its usage.
-- fold: whether runs of blank lines become one.
function answer.whole(text, fold)
    local data = cjson.decode(text)
    if type(data) ~= "table" or type(data.choices) ~= "table" then
        return text, false
    end
    local shaped, finished = reshape(text, data, function(part, raw)
        return of_whole(part, raw, fold)
    end)
    local usage = type(data.usage) == "table" and data.usage or nil
    return shaped, finished and (data.error == nil or data.error == cjson.null), usage
end

-- An engine's error in the middle of a stream, as an error event.
local function failure(data)
    local given = type(data.error) == "table" and data.error or {message = data.error}
    local status = tonumber(given.code)
    return errors.body(status and status >= 400 and status < 600 and status or 500, given)
end

-- The events of one stream in the one format. hide_usage, fold, seen: see answer.stream.
local function events(hide_usage, fold, seen)
    local choices, envelope = {}, {}
    local cut, closed = false, false -- an error or an end that is none; the stream's last word
    local alone -- whether the event at hand tells the usage and nothing else

    local function choice_of(index)
        index = type(index) == "number" and index or 0
        if not choices[index] then
            local take, told = think.pieces(settings.unopened)
            choices[index] = {take = take, told = told, folded = fold and blank.folded()}
        end
        return choices[index]
    end

    local function change(part, raw, choice, last)
        local known = choice_of(choice.index)
        known.over = known.over or last
        cut = cut or last and CUT[choice.finish_reason] ~= nil
        return of_piece(part, raw, known, last, seen)
    end

    local function data_line(field, text)
        local data = cjson.decode(text)
        if type(data) ~= "table" then
            return nil
        elseif data.error and data.error ~= cjson.null then
            cut = true
            return field .. failure(data)
        elseif type(data.choices) == "table" then
            envelope = data
            if type(data.usage) == "table" then
                seen.usage = data.usage
                alone = #data.choices == 0
            end
            return field .. reshape(text, data, change)
        end
    end

    -- What is held back of choices that the engine never finished.
    local function rest()
        local out = {}
        for index, choice in pairs(choices) do
            if not choice.over then
                cut = true
                local thought, said = choice.take("", true)
                said = choice.folded and choice.folded(said, true) or said
                local delta = {content = said ~= "" and said or nil}
                for _, name in ipairs(NAMES) do
                    delta[name] = thought ~= "" and thought or nil
                end
                if next(delta) then
                    out[#out + 1] = "data: " .. encode({
                        id = envelope.id, object = envelope.object, created = envelope.created,
                        model = envelope.model,
                        choices = {{index = index, delta = delta, finish_reason = cjson.null}},
                    }) .. "\n\n"
                end
                choice.over = true
            end
        end
        return table.concat(out)
    end

    return function(lines)
        if lines:find("^data: ?%[DONE%]") then
            closed = true
            return rest() .. lines
        end
        alone = false
        lines = lines:gsub("(data: ?)([^\r\n]+)", data_line)
        if alone then
            seen.usage_event = lines
        end
        return alone and hide_usage and "" or lines
    end, rest, function()
        return closed and not cut and next(choices) ~= nil
    end
end

-- One stream in the one format, as it comes.
-- hide_usage: the event that tells the usage is left out, because the client did not ask for it.
-- fold: whether runs of blank lines become one.
-- Returns {take, complete, seen}. take(bytes) returns the whole events among all that came so far;
-- take(nil), at the end, what is left. complete() says whether every choice is finished, without an
-- error, and the last word said. seen, as the stream goes on: pieces (of text, so far), said
-- (whether one was no thought), usage (as the engine counted), usage_event (that tells only it).
function answer.stream(hide_usage, fold)
    local seen = {pieces = 0}
    local shaped, held, complete = events(hide_usage, fold, seen)
    local rest = ""
    local function take(bytes)
        if not bytes then
            return rest:find("^data: ?%[DONE%]") and held() .. rest or rest .. held()
        end
        rest = rest .. bytes
        local out, from = {}, 1
        while true do
            local _, stop = rest:find("\n\r?\n", from)
            if not stop then
                break
            end
            out[#out + 1] = shaped(rest:sub(from, stop))
            from = stop + 1
        end
        rest = rest:sub(from)
        return table.concat(out)
    end
    return {take = take, complete = complete, seen = seen}
end

return answer
