"""OpenAI's own client, through the gateway; before Ollama and vLLM it is in their own tests."""

import json
from pathlib import Path

import openai
import openai_client
import pytest
from gateway_parts import KEYS
from openai_client import TOOL

# What a real llama-server with SmolLM2 135M said when it had to call a function.
RECORDED = Path(__file__).parent / "recorded"


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


def test_a_tool_call_and_its_result(start_gateway, stand_in):
    """The call comes to the client byte for byte; the engine gets it back with its result."""
    body = (RECORDED / "tool_call.json").read_bytes()
    stand_in.says(body)
    client = client_of(start_gateway(stand_in.port)).chat.completions
    asked = openai_client.asked(tools=[TOOL], tool_choice="required")
    raw = client.with_raw_response.create(**asked)
    assert raw.content == body
    choice = raw.parse().choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    messages = [
        *asked["messages"],
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    client.create(**openai_client.asked(messages=messages, tools=[TOOL]))
    first, second = (json.loads(received) for _, received in stand_in.requests)
    assert first["tool_choice"] == "required" and first["tools"] == second["tools"] == [TOOL]
    assert second["messages"] == messages


def test_a_tool_call_in_a_stream(start_gateway, stand_in):
    body = (RECORDED / "tool_call.sse").read_bytes()
    stand_in.streams(*[event + b"\n\n" for event in body.rstrip().split(b"\n\n")])
    gateway = start_gateway(stand_in.port)
    asked = openai_client.asked(tools=[TOOL], tool_choice="required")
    assert gateway.ask("/v1/chat/completions", asked | {"stream": True}).body == body
    with client_of(gateway).chat.completions.stream(**asked) as events:
        choice = events.get_final_completion().choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "Rome"}


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


# what the engine answers, and what the client raises
FAILURES = {
    "400 Bad Request": openai.BadRequestError,
    "404 Not Found": openai.NotFoundError,
    "422 Odd": openai.UnprocessableEntityError,
    "429 Busy": openai.RateLimitError,
    "500 Oops": openai.InternalServerError,
    "503 Busy": openai.InternalServerError,
    "401 Unauthorized": openai.InternalServerError,  # the gateway's key: no fault of the client
}


def test_failures_of_engines_are_the_clients_exceptions(start_gateway, stand_in):
    client = client_of(start_gateway(stand_in.port))
    for status, exception in FAILURES.items():
        stand_in.says('{"error":{"message":"it broke"}}', status)
        for stream in (False, True):
            with pytest.raises(exception) as caught:
                client.chat.completions.create(**openai_client.asked(stream=stream))
            assert type(caught.value) is exception
            assert isinstance(caught.value.code, str) and isinstance(caught.value.type, str)


def test_no_engine_is_the_servers_error(start_gateway, free_port):
    client = client_of(start_gateway(free_port()))
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**openai_client.asked())
    assert (caught.value.status_code, caught.value.code) == (502, "engine_unavailable")


def test_a_model_that_is_not_allowed_is_not_found(start_gateway, stand_in):
    client = client_of(start_gateway(stand_in.port, gateway_limits={"models": ["tiny-r1"]}))
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**openai_client.asked(model="other"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
