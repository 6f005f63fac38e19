-- What Ollama's OpenAI routes do otherwise than a client may expect: they cut a prompt that is longer
-- than the context without a word, and list models by names that end in `:latest`.

local cjson = require "cjson.safe"
local engine = require "gateway.engine"
local errors = require "gateway.errors"
local question = require "gateway.question"
local upstreams = require "gateway.upstreams"

local ollama = {}
local settings

-- given: {context (tokens)}; empty for another engine.
function ollama.init(given)
    settings = next(given) and given
end

-- The question in the words of Ollama's own route, which can say "too long" and takes no list of
-- parts.
local function native(body)
    local asked = cjson.decode(body)
    if type(asked) ~= "table" then
        return nil
    end
    local request = {
        model = asked.model, truncate = false, stream = false, options = {num_predict = 1},
    }
    if type(asked.messages) == "table" then
        request.messages = {}
        for i, message in ipairs(asked.messages) do
            request.messages[i] = {role = message.role, content = question.text_of(message.content)}
        end
        return "/api/chat", cjson.encode(request)
    elseif type(asked.prompt) == "string" then
        request.prompt = asked.prompt
        return "/api/generate", cjson.encode(request)
    end
end

-- What Ollama says against the prompt's length, or nil. A token has at least one byte, so a body
-- of fewer bytes than the context has tokens always fits and is not asked about. Asking costs
-- little: the prompt is read once, the request that follows finds it read.
local function too_long(body)
    if #body <= settings.context then
        return nil
    end
    local path, question = native(body)
    local response = path and engine.ask({
        method = "POST", path = path, content_type = "application/json", body = question,
    }, upstreams.any())
    local said = response and errors.read(engine.collect(response) or "").message
    if response and response.status == 400 and type(said) == "string"
        and said:find("context length", 1, true) then
        return said
    end
end

-- nil, or what to answer to a request that cannot be answered whole: {status, nil, error}.
function ollama.refuses(body)
    local problem = settings and too_long(body)
    return problem and {400, nil, {
        message = ("The prompt is longer than the context of %d tokens: %s"):format(
            settings.context, problem),
        code = "context_length_exceeded", param = "messages",
    }}
end

-- The list of models, or one, by the names that requests use.
function ollama.plain_names(body)
    return settings and (body:gsub('("id"%s*:%s*"[^"]*):latest"', '%1"')) or body
end

return ollama
