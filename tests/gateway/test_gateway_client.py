"""OpenAI's own client, through the gateway; before Ollama and vLLM it is in their own tests."""

import json

import openai
import openai_client
import pytest
from gateway_parts import KEYS

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}


def client_of(gateway):
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS[0]["key"], max_retries=0)


def test_llama_server(gateway):
    openai_client.check(gateway.url, KEYS[0]["key"])


def chunk(delta: dict, finish=None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    data = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps(data | {'choices': [choice]})}\n\n".encode()


def test_tool_calls_of_a_stream_come_as_they_are(start_gateway, stand_in):
    """As vLLM sends them: after the thought, the arguments in pieces."""

    def call(**function):
        return {"tool_calls": [{"index": 0, "function": function}]}

    first = call(name="add", arguments="")
    first["tool_calls"][0] |= {"id": "call_9", "type": "function"}
    pieces = ['{"a": 2,', ' "b": ', '"</think>"}']
    sent = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning": "I add."}),
        chunk(first),
        *(chunk(call(arguments=piece)) for piece in pieces),
        chunk({}, "tool_calls"),
        b"data: [DONE]\n\n",
    ]
    stand_in.streams(*sent)
    gateway = start_gateway(stand_in.port)
    asked = openai_client.asked(tools=[TOOL], stream=True)
    chunks = list(client_of(gateway).chat.completions.create(**asked))
    calls = [one for part in chunks for one in part.choices[0].delta.tool_calls or []]
    assert (calls[0].id, calls[0].function.name) == ("call_9", "add")
    assert "".join(one.function.arguments for one in calls) == "".join(pieces)
    assert chunks[1].choices[0].delta.reasoning_content == "I add."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    raw = gateway.ask("/v1/chat/completions", asked).body
    assert all(event in raw for event in sent[2:]), "byte for byte"


def test_logprobs_come_as_they_are(start_gateway, stand_in):
    token = {"token": "4", "logprob": -0.000012345678901234567, "bytes": [52], "top_logprobs": []}
    choice = {"index": 0, "delta": {"content": "4"}, "finish_reason": None}
    choice["logprobs"] = {"content": [token], "refusal": None}
    event = f'data: {{"id":"c","choices":[{json.dumps(choice)}]}}\n\n'.encode()
    stand_in.streams(event, chunk({}, "stop"), b"data: [DONE]\n\n")
    gateway = start_gateway(stand_in.port)
    raw = gateway.ask("/v1/chat/completions", openai_client.asked(logprobs=True, stream=True)).body
    assert event in raw


def test_an_error_in_mid_stream_is_raised(start_gateway, stand_in):
    failure = {"error": {"message": "out of memory", "code": 500, "type": "InternalServerError"}}
    stand_in.streams(chunk({"content": "4"}), f"data: {json.dumps(failure)}\n\n".encode())
    gateway = start_gateway(stand_in.port)
    stream = client_of(gateway).chat.completions.create(**openai_client.asked(stream=True))
    assert next(stream).choices[0].delta.content == "4"
    with pytest.raises(openai.APIError, match="out of memory"):
        list(stream)


def test_a_limit_is_raised(start_gateway, stand_in):
    stand_in.says('{"choices":[]}')
    gateway = start_gateway(stand_in.port, gateway_limits={"requests_per_minute": 1})
    client = client_of(gateway)
    client.chat.completions.create(**openai_client.asked())
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**openai_client.asked())
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"]
