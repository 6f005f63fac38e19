-- Finds and replaces values inside JSON text without decoding it, so that all the rest (big
-- numbers, empty arrays, order, spacing) stays byte for byte what the engine wrote.
-- All functions return nil where the text is not the JSON they expect.

local find, byte, sub = string.find, string.byte, string.sub

local json = {}

-- Levels of arrays and objects; what is nested deeper is taken for no JSON, as cjson does.
json.DEEPEST = 1000
-- Members of one object or array that are listed; a million of them would hold a worker for seconds.
json.MOST = 10000

-- at: the opening quote. Returns the closing one: the next that has no odd number of backslashes
-- before it. (A plain search is compiled to machine code; one by pattern is not.)
local function string_end(text, at)
    local from = at
    while true do
        at = find(text, '"', at + 1, true)
        if not at then
            return nil
        end
        local before = at - 1
        while before > from and byte(text, before) == 92 do
            before = before - 1
        end
        if (at - before) % 2 == 1 then
            return at
        end
    end
end

-- Returns the last byte of the value that starts at `at`.
local function value_end(text, at)
    local first = byte(text, at)
    if first == 34 then
        return string_end(text, at)
    end
    if first ~= 123 and first ~= 91 then
        local _, stop = find(text, "^[%w.+-]+", at)
        return stop
    end
    local depth = 0
    while at do
        local char = byte(text, at)
        if char == 34 then
            at = string_end(text, at)
            if not at then
                return nil
            end
        elseif char == 123 or char == 91 then
            depth = depth + 1
            if depth > json.DEEPEST then
                return nil
            end
        else
            depth = depth - 1
            if depth == 0 then
                return at
            end
        end
        at = find(text, '["%[%]{}]', at + 1)
    end
end

local function next_char(text, at)
    at = find(text, "[^ \t\r\n]", at)
    return at, at and sub(text, at, at)
end

-- The object whose brace stands at `at`: a list of {key, from, to} and its closing brace.
-- `key` is as written, escapes and all.
-- read(key, from), where given: reads a value by itself and returns where it ends and what it is
-- (the member's `value`), or nothing.
function json.object(text, at, read)
    local members = {}
    local char
    at, char = next_char(text, at or 1)
    if char ~= "{" then
        return nil
    end
    at, char = next_char(text, at + 1)
    if char == "}" then
        return members, at
    end
    while char == '"' do
        local quote = string_end(text, at)
        if not quote then
            return nil
        end
        local key = sub(text, at + 1, quote - 1)
        at, char = next_char(text, quote + 1)
        if char ~= ":" then
            return nil
        end
        local from = next_char(text, at + 1)
        local to, value = nil, nil
        if read and from then
            to, value = read(key, from)
        end
        to = to or from and value_end(text, from)
        if not to then
            return nil
        end
        members[#members + 1] = {key = key, from = from, to = to, value = value}
        if #members > json.MOST then
            return nil
        end
        at, char = next_char(text, to + 1)
        if char == "}" then
            return members, at
        elseif char ~= "," then
            return nil
        end
        at, char = next_char(text, at + 1)
    end
end

-- The array whose bracket stands at `at`: a list of positions where its elements start, and its
-- closing bracket. read(from), where given: reads an element and returns where it ends.
function json.array(text, at, read)
    local elements = {}
    local char
    at, char = next_char(text, at)
    if char ~= "[" then
        return nil
    end
    at, char = next_char(text, at + 1)
    while at and char ~= "]" do
        elements[#elements + 1] = at
        if #elements > json.MOST then
            return nil
        end
        local to
        if read then
            to = read(at)
        else
            to = value_end(text, at)
        end
        if not to then
            return nil
        end
        at, char = next_char(text, to + 1)
        if char == "," then
            at, char = next_char(text, at + 1)
        end
    end
    return elements, at
end

-- The value that starts at `at`.
function json.value(text, at)
    return sub(text, at, value_end(text, at))
end

-- Where the value of `key` lies in the object at `at`; of several, the last, as cjson has it.
function json.member(text, at, key)
    local from, to
    for _, member in ipairs(json.object(text, at) or {}) do
        if member.key == key then
            from, to = member.from, member.to
        end
    end
    return from, to
end

-- Adds to `edits` what sets the members `changes` ({key = raw JSON}) of an object that has these
-- members and this closing brace.
function json.change(members, close, changes, edits)
    local missing = {}
    for key, raw in pairs(changes) do
        missing[key] = raw
    end
    for _, member in ipairs(members) do
        if changes[member.key] then
            edits[#edits + 1] = {from = member.from, to = member.to, text = changes[member.key]}
            missing[member.key] = nil
        end
    end
    local last = #members > 0 and members[#members].to or close - 1
    local added = {}
    for key, raw in pairs(missing) do
        added[#added + 1] = '"' .. key .. '":' .. raw
    end
    table.sort(added)
    if #added > 0 then
        local comma = #members > 0 and "," or ""
        edits[#edits + 1] = {
            from = last + 1, to = last, text = comma .. table.concat(added, ","),
        }
    end
end

-- The same of the object at `at`.
function json.set(text, at, changes, edits)
    local members, close = json.object(text, at)
    json.change(members, close, changes, edits)
end

function json.apply(text, edits)
    table.sort(edits, function(a, b) return a.from < b.from end)
    local parts, at = {}, 1
    for _, edit in ipairs(edits) do
        parts[#parts + 1] = sub(text, at, edit.from - 1)
        parts[#parts + 1] = edit.text
        at = edit.to + 1
    end
    parts[#parts + 1] = sub(text, at)
    return table.concat(parts)
end

return json
