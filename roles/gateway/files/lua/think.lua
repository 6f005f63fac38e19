-- What engines leave in the text of an answer: the chain of thought between tags, and special
-- tokens of the template at its end. Text only; JSON is the module answer's.

local think = {}

local OPEN, CLOSE = "<think>", "</think>"
-- Ends of a turn in the templates of DeepSeek, Qwen and Llama.
local TOKENS = {
    "<｜end▁of▁sentence｜>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>",
}

local function token_at(text, at)
    for _, token in ipairs(TOKENS) do
        if text:sub(at, at + #token - 1) == token then
            return token
        end
    end
end

-- Whether a token, or the closing tag, begins with this.
local function begins(rest)
    if CLOSE:sub(1, #rest) == rest then
        return true
    end
    for _, token in ipairs(TOKENS) do
        if token:sub(1, #rest) == rest then
            return true
        end
    end
    return false
end

-- Whether all from here on may turn out to be tokens at the end of the text.
local function may_end(text, at)
    while at <= #text do
        local after = text:match("^%s+()", at)
        if not after then
            local token = token_at(text, at)
            if not token then
                return begins(text:sub(at))
            end
            after = at + #token
        end
        at = after
    end
    return true
end

-- Where that begins; one past the text where nothing may.
local function end_from(text, pattern)
    local at = 1
    while true do
        at = text:find(pattern, at)
        if not at then
            return #text + 1
        elseif may_end(text, at) then
            return at
        end
        at = text:match("^%s+()", at) or at + 1
    end
end

-- The text without the tokens that it ends with.
function think.without_tokens(text)
    while true do
        local stop = #text -- by hand: a pattern that looks for the end takes its time
        while stop > 0 and text:find("^%s", stop) do
            stop = stop - 1
        end
        local body, found = text:sub(1, stop), nil
        for _, token in ipairs(TOKENS) do
            if body:sub(-#token) == token then
                found = body:sub(1, -#token - 1)
            end
        end
        if not found then
            return text
        end
        text = found
    end
end

local function trimmed(text)
    return text:match("^%s*(.-)%s*$")
end

-- A whole text as thought and answer, or nil where it holds no thought. The opening tag may be
-- missing, because R1's template gives it.
function think.split(text)
    local start = text:match("^%s*<think>()") or 1
    local close, stop = text:find(CLOSE, start, true)
    if close then
        return trimmed(text:sub(start, close - 1)), text:sub(stop + 1):match("^%s*(.*)$")
    elseif start > 1 then
        return trimmed(text:sub(start)), ""
    end
end

-- The same of a text that arrives in pieces: a function that takes the next one and whether it is
-- the last, and returns what is now known of the thought and of the answer. What may still become
-- a tag or a token is held back.
-- unopened: the engine leaves the thought in the text without an opening tag.
function think.pieces(unopened)
    local phase, held, blank = "start", "", false

    local function start(text, last)
        local after = text:match("^%s*<think>()")
        if after then
            phase, blank = "thought", true
            return text:sub(after)
        end
        local word = text:match("^%s*(.*)$")
        if not last and OPEN:sub(1, #word) == word then
            held = text
            return nil
        end
        phase, blank = unopened and "thought" or "answer", unopened
        return text
    end

    -- Takes spaces off where a thought or, after it, an answer begins.
    local function without_blank(text)
        if blank then
            text = text:match("^%s*(.*)$")
            blank = text == ""
        end
        return text
    end

    local function thought(text, last)
        text = without_blank(text)
        local close, stop = text:find(CLOSE, 1, true)
        if close then
            phase, blank = "answer", true
            return text:sub(1, close - 1):match("^(.-)%s*$"), text:sub(stop + 1)
        elseif last then
            return trimmed(think.without_tokens(text)), ""
        end
        local from = end_from(text, "[%s<]")
        held = text:sub(from)
        return text:sub(1, from - 1), nil
    end

    local function said(text, last)
        text = without_blank(text)
        if last then
            return think.without_tokens(text)
        end
        local from = end_from(text, "<")
        held = text:sub(from)
        return text:sub(1, from - 1)
    end

    return function(text, last)
        local reasoned = ""
        text, held = held .. text, ""
        if phase == "start" then
            text = start(text, last)
            if not text then
                return "", ""
            end
        end
        if phase == "thought" then
            reasoned, text = thought(text, last)
            if not text then
                return reasoned, ""
            end
        end
        return reasoned, phase == "answer" and said(text, last) or text
    end, function() -- the engine told its thought itself: all that comes is the answer
        if phase == "start" then
            phase = "answer"
        end
    end
end

return think
