-- Runs of blank lines, which R1's distilled models like to make, become one blank line. What stands
-- between code fences stays as it is.

local blank = {}

local LINE_BYTES = 200 -- of a line that are looked at for a fence

-- The fence that a line opens: its marks, or nil. It may stand in a quotation or a list.
local function opened(line)
    local rest = line:gsub("^[%s>]*", "")
    rest = rest:gsub("^[-*+]%s+", ""):gsub("^%d+[.)]%s+", "")
    local marks, info = rest:match("^(```+)(.*)$")
    if marks and not info:find("`", 1, true) then -- else it is code within a line
        return marks
    end
    return rest:match("^~~~+")
end

local function closes(line, fence)
    local marks = line:match("^[%s>]*([`~]+)%s*$")
    return marks and marks:sub(1, #fence) == fence
end

-- For one text that comes in pieces: a function that takes the next one and whether it is the last,
-- and returns what is now known of the folded text.
function blank.folded()
    local line = "" -- what came of this one
    local ends = 0 -- of lines, since the last one that is not blank
    local held = "" -- spaces of a line that goes if it is blank
    local fence -- that is open

    return function(text, last)
        local out = {}
        for part, ended in text:gmatch("([^\n]*)(\n?)") do
            local blank = not part:find("%S")
            if blank and ends >= 2 and not fence then
                held = held .. part
            else
                out[#out + 1] = held .. part
                held = ""
            end
            ends = blank and ends or 0
            if #line < LINE_BYTES then
                line = line .. part:sub(1, LINE_BYTES)
            end
            if ended ~= "" then
                out[#out + 1] = (ends < 2 or fence) and "\n" or nil
                ends, held = ends + 1, ""
                if not fence then
                    fence = opened(line)
                elseif closes(line, fence) then
                    fence = nil
                end
                line = ""
            end
        end
        return table.concat(out) .. (last and held or "")
    end
end

-- The same of a whole text.
function blank.fold(text)
    return blank.folded()(text, true)
end

return blank
