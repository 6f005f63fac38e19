-- Who asks? Keys are known by their SHA-256 only.

local hash = require "gateway.hash"

local auth = {}
local keys = {}

-- list: {{name = ..., sha256 = hex}, ...}
function auth.init(list)
    for i, key in ipairs(list) do
        keys[i] = {name = key.name, digest = hash.from_hex(key.sha256)}
    end
end

-- The client's name, or nil and what is wrong. Takes the same time whichever key matches.
function auth.client(authorization)
    local token = authorization and authorization:match("^[Bb]earer +(%S+)$")
    if not token then
        return nil, "No API key given: send the header 'Authorization: Bearer KEY'."
    end
    local digest = hash.sha256(token)
    local name
    for _, key in ipairs(keys) do
        if hash.equal(key.digest, digest) then
            name = key.name
        end
    end
    return name, "This API key is not known here."
end

return auth
