"""What a client gets from a real engine through the gateway, and what the engine sees."""

import json
import socket
import time
import urllib.request

import openai
import pytest
from gateway_parts import ENGINE_KEY, KEYS


@pytest.fixture
def client(gateway):
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS[0]["key"], max_retries=0)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ASK = [{"role": "user", "content": "What is 2+2?"}]


@pytest.mark.parametrize("options", [None, {"include_usage": False}])
def test_usage_is_counted_and_told_only_to_who_asks(gateway, llama, options):
    fields = {} if options is None else {"stream_options": options}
    answer = gateway.chat(stream=True, temperature=0, **fields)
    assert answer.status == 200, answer
    assert b'"usage"' not in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b"\n\n\n" not in answer.body
    refused = gateway.chat(stream=True, stream_options=3)
    assert refused.status in (200, 400), refused  # the engine's word, not the gateway's failure


def test_openai_client_keeps_a_conversation(client):
    messages = list(ASK)
    for question in ("9.11 and 9.8, which is greater?", "What is 2+2?"):
        answer = client.chat.completions.create(model="tiny-r1", messages=messages, temperature=0)
        said = answer.choices[0].message.content
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": question}]
    answer = client.chat.completions.create(model="tiny-r1", messages=messages, temperature=0)
    assert answer.usage.prompt_tokens > 30


def test_other_routes(gateway, client):
    assert client.models.list().data[0].id == "tiny-r1"
    text = client.completions.create(model="tiny-r1", prompt="2+2", max_tokens=5, temperature=0)
    assert text.usage.completion_tokens == 5
    answer = gateway.ask("/v1/embeddings", {"model": "tiny-r1", "input": "x"})
    assert answer.cache == "BYPASS"
    assert answer.error["message"]  # this llama-server was started without embeddings


def test_stream_is_not_buffered(start_gateway, stand_in):
    event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    stand_in.streams(event, 0.6, event, 0.6, b"data: [DONE]\n\n")
    gateway = start_gateway(stand_in.port)
    started = time.monotonic()
    _, response = gateway.open("/v1/chat/completions", {"stream": True})
    times = []
    while line := response.readline():
        if line.startswith(b"data"):
            times.append(time.monotonic() - started)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["X-Cache"] == "BYPASS"
    assert times[0] < 0.4 < 0.6 < times[1] < 1.1 < times[2]


def test_stream_does_not_wait_for_the_client_to_acknowledge(start_gateway, stand_in):
    event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    stand_in.streams(*[event] * 100, b"data: [DONE]\n\n")
    gateway = start_gateway(stand_in.port)
    arrivals = 0
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            b"Authorization: Bearer key-of-default\r\n\r\n{}"
        )
        received = b""
        while b"[DONE]" not in received:
            # As over a real network: the kernel acknowledges after 40 ms, not at once.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            received += connection.recv(65536)
            arrivals += 1
    assert arrivals > 60  # about 30 where small packets wait


def test_broken_json_is_the_clients_fault(gateway):
    for body in (b'{"messages":', b"{", b"nonsense"):
        answer = gateway.ask("/v1/chat/completions", body)
        assert answer.status == 400
        assert "not a JSON object" in answer.error["message"]
    for messages in (b'{"role":}', b"5", b"[]"):
        answer = gateway.ask("/v1/chat/completions", b'{"messages":[%s]}' % messages)
        assert answer.status == 400
        assert "messages is no list of JSON objects" in answer.error["message"]
    answer = gateway.ask("/v1/chat/completions", b'{"messages":[{"role":"user","content":"\\x"}]}')
    assert answer.status == 400
    assert "not valid JSON" in answer.error["message"]


def test_engine_gets_its_own_key_and_the_same_bytes(start_gateway, stand_in):
    stand_in.says('{"choices":[]}')
    gateway = start_gateway(stand_in.port)
    body = b'{ "model" : "x",  "n":9007199254740993, "temperature":1, "top_p":1, "max_tokens":9 }'
    gateway.ask("/v1/chat/completions?a=b%20c", body, Cookie="secret", X_Forwarded_For="1.2.3.4")
    head, received = stand_in.requests[0]
    assert received == body
    assert head.startswith("POST /v1/chat/completions?a=b%20c HTTP/1.1\r\n")
    assert f"Authorization: Bearer {ENGINE_KEY}\r\n" in head
    assert "key-of-default" not in head and "secret" not in head and "1.2.3.4" not in head


@pytest.mark.parametrize("size", [2_000, 500_000])
def test_long_prompts_arrive_whole(start_gateway, stand_in, size):
    stand_in.says('{"choices":[]}')
    gateway = start_gateway(stand_in.port)
    answer = gateway.chat("é" * size)
    assert answer.status == 200
    assert json.loads(stand_in.requests[0][1])["messages"][0]["content"] == "é" * size


def processing(port: int) -> int:
    """How many requests the real llama-server works on, by its own metrics."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {ENGINE_KEY}"}
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        for line in response.read().decode().splitlines():
            if line.startswith("llamacpp:requests_processing "):
                return int(float(line.split()[1]))
    raise AssertionError("llama-server has no such metric")


def test_client_that_leaves_stops_the_engine(gateway, llama):
    endless = {"messages": ASK, "stream": True, "ignore_eos": True, "max_tokens": 8000}
    connection, response = gateway.open("/v1/chat/completions", endless)
    response.readline()
    assert processing(llama) == 1
    response.close()
    connection.close()
    left = time.monotonic()
    while processing(llama):
        assert time.monotonic() - left < 2, "the engine works on for nobody"
        time.sleep(0.02)


def test_client_that_leaves_before_the_answer(start_gateway, stand_in):
    stand_in.pieces = [5]
    gateway = start_gateway(stand_in.port)
    connection, _ = gateway.open("/v1/chat/completions", {}, read=False)
    time.sleep(0.2)
    connection.close()
    assert stand_in.closed_by_client.wait(1)
    assert gateway.log()[-1]["status"] == 499


def test_engine_that_dies_in_mid_stream(start_gateway, stand_in):
    event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    stand_in.streams(event, end=b"")
    gateway = start_gateway(stand_in.port)
    answer = gateway.chat(stream=True)
    events = answer.body.decode().strip().split("\n\n")
    assert events[0] == event.decode().strip()
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["code"] == "engine_unavailable"
    assert "[DONE]" not in events
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS[0]["key"], max_retries=0)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="x", messages=ASK, stream=True))


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"Content-Length: 90\r\n\r\n{"],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Type: app"],
        [b"SSH-2.0-OpenSSH\r\n"],
        [],
    ],
)
def test_engine_that_dies_in_mid_answer(start_gateway, stand_in, pieces):
    stand_in.pieces = pieces
    answer = start_gateway(stand_in.port).chat()
    assert (answer.status, answer.error["code"]) == (502, "engine_unavailable")


def test_answer_in_small_packets(start_gateway, stand_in):
    body = b'{"choices":[{"finish_reason":"stop","message":{"content":"hi"}}]}'
    whole = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    whole += b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nTrailer: x\r\n\r\n"
    stand_in.pieces = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    assert start_gateway(stand_in.port).chat().body == body
