-- A request's body, read once for all who look into it: where its members lie, and those of each
-- message. Nothing is decoded or copied, because prompts may be long.

local json = require "gateway.json"

local question = {}

-- Where the list of messages ends, and each as {members, from, to}; nothing where one is no object.
local function messages_at(text, at)
    local messages = {}
    local _, to = json.array(text, at, function(from)
        local members, close = json.object(text, from)
        messages[#messages + 1] = {members = members, from = from, to = close}
        return close
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

return question
