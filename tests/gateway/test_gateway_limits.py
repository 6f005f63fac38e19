"""What each client may: requests and tokens per minute, running requests, models; and strangers."""

import http.client
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from gateway_parts import KEYS, reload, until, worker_pids

CHAT = {"model": "tiny-r1", "messages": [{"role": "user", "content": "What is 2+2?"}]}
SECOND = KEYS[1]["key"]
WHOLE = (
    '{"choices":[{"message":{"content":"4"},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":%d,"completion_tokens":%d}}'
)
PIECE = b'data: {"choices":[{"index":0,"delta":{"content":"4"}}]}\n\n'


def client_of(gateway, **more):
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS[0]["key"], **more)


def left(answer, kind) -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{kind}"])


@pytest.fixture(params=[1, 2])
def workers(request) -> int:
    return request.param


def test_no_limit_no_headers(gateway):
    answer = gateway.chat()
    assert answer.status == 200
    assert not [name for name in answer.headers if name.lower().startswith("x-ratelimit")]


def test_requests_per_minute(start_gateway, llama):
    gateway = start_gateway(llama, gateway_limits={"requests_per_minute": 3})
    answers = [gateway.ask("/v1/models") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert [left(answer, "requests") for answer in answers] == [2, 1, 0, 0]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
    assert "x-ratelimit-limit-tokens" not in answers[0].headers
    assert answers[0].headers["x-ratelimit-reset-requests"] == "20.0s"
    refused = answers[3]
    assert refused.error["code"] == "rate_limit_exceeded"
    assert refused.error["type"] == "requests"
    assert "requests per minute: limit 3, left 0, asked 1" in refused.error["message"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 20
    assert gateway.ask("/v1/models", key=SECOND).status == 200
    assert gateway.ask("/v1/models", key="wrong").status == 401
    assert gateway.ask("/healthz", key=None).status == 200


def test_the_limit_is_exact_over_many_at_once(start_gateway, stand_in, workers):
    stand_in.says(WHOLE % (1, 1))
    limits = {"requests_per_minute": 40}
    gateway = start_gateway(stand_in.port, gateway_limits=limits, gateway_workers=workers)
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: gateway.ask("/v1/models"), range(80)))
    refilled = (time.monotonic() - started) * 40 / 60
    passed = sum(answer.status == 200 for answer in answers)
    assert 40 <= passed <= 40 + refilled + 0.01
    assert {answer.status for answer in answers} == {200, 429}


def test_a_bucket_refills_evenly_and_openais_client_waits_for_it(start_gateway, llama):
    gateway = start_gateway(llama, gateway_limits={"requests_per_minute": 30})
    while gateway.ask("/v1/models").status == 200:
        pass
    with pytest.raises(openai.RateLimitError, match="requests per minute") as refused:
        client_of(gateway, max_retries=0).models.list()
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.response.headers["retry-after"] in ("1", "2")
    raw = client_of(gateway, max_retries=4).models.with_raw_response.list()
    assert raw.retries_taken >= 1
    assert raw.headers["x-ratelimit-limit-requests"] == "30"
    assert raw.parse().data[0].id == "tiny-r1"


def seconds_of(reset: str) -> float:
    minutes, _, seconds = reset.rstrip("s").rpartition("m")
    return 60 * int(minutes or 0) + float(seconds)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_as_the_engine_counts_them(start_gateway, llama, stream):
    """Of 60 tokens a minute one comes back each second: so many seconds as tokens were used."""
    gateway = start_gateway(llama, gateway_limits={"tokens_per_minute": 60})
    asked = {"max_tokens": 20}
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    started = time.monotonic()
    text = gateway.ask("/v1/chat/completions", CHAT | asked).body.decode()
    total = json.loads(text.split("data: ")[-2] if stream else text)["usage"]["total_tokens"]
    gateway.log(1)
    reset = gateway.ask("/v1/models").headers["x-ratelimit-reset-tokens"]
    assert total - (time.monotonic() - started) - 0.1 < seconds_of(reset) <= total + 0.1


def test_tokens_run_out(start_gateway, stand_in):
    stand_in.says(WHOLE % (500, 1500))
    gateway = start_gateway(stand_in.port, gateway_limits={"tokens_per_minute": 1000})
    first, second = gateway.chat(), gateway.chat()
    assert (first.status, second.status) == (200, 429)
    about = -(-len(json.dumps(CHAT)) // 4)
    assert left(first, "tokens") == 1000 - about
    assert second.error["type"] == "tokens"
    assert second.error["code"] == "rate_limit_exceeded"
    message = f"tokens per minute: limit 1000, left 0, asked {about}. Try again in 1m"
    assert message in second.error["message"]
    assert second.headers["x-ratelimit-remaining-tokens"] == "0"
    assert 110 < seconds_of(second.headers["x-ratelimit-reset-tokens"]) <= 120
    assert 60 < int(second.headers["Retry-After"]) <= 70
    assert len(stand_in.requests) == 1
    assert gateway.ask("/v1/models").status == 200  # asks for no token
    assert gateway.chat(key=SECOND).status == 200


def test_a_failure_of_the_engine_costs_no_tokens(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port, gateway_limits={"tokens_per_minute": 1000})
    for status in ("400 Bad Request", "500 Internal Server Error"):
        stand_in.says('{"error":{"message":"no"}}', status=status)
        gateway.chat("x" * 2000)
    stand_in.says('{"data":[]}')
    gateway.log(2)
    assert left(gateway.ask("/v1/models"), "tokens") == 1000


def test_a_stream_that_the_client_leaves_costs_what_came(start_gateway, stand_in):
    stand_in.streams(*[PIECE] * 50, 30)
    gateway = start_gateway(stand_in.port, gateway_limits={"tokens_per_minute": 60})
    body = json.dumps(CHAT | {"stream": True})
    connection, response = gateway.open("/v1/chat/completions", CHAT | {"stream": True})
    for _ in range(100):
        assert response.readline()
    connection.close()
    response.close()
    assert stand_in.closed_by_client.wait(5)
    gateway.log(1)
    refused = gateway.chat()
    assert refused.status == 429
    spent = -(-len(body) // 4) + 50
    assert 50 < seconds_of(refused.headers["x-ratelimit-reset-tokens"]) <= spent


def test_an_answer_from_the_cache_is_a_request_but_costs_no_tokens(start_gateway, redis, stand_in):
    stand_in.says(WHOLE % (500, 5000))
    limits = {"requests_per_minute": 10, "tokens_per_minute": 1000}
    gateway = start_gateway(stand_in.port, gateway_limits=limits)
    first, hit = (gateway.chat(temperature=0) for _ in range(2))
    assert (first.cache, hit.cache) == ("MISS", "HIT")
    assert (left(first, "requests"), left(hit, "requests")) == (9, 8)
    assert (hit.status, left(hit, "tokens")) == (200, 0)
    assert gateway.chat(temperature=1).status == 429


def test_a_question_above_the_limit_passes_when_nothing_was_used(start_gateway, stand_in):
    stand_in.says(WHOLE % (10, 10))
    gateway = start_gateway(stand_in.port, gateway_limits={"tokens_per_minute": 100})
    assert gateway.chat("x" * 4000).status == 200


def test_what_is_different_for_a_client(start_gateway, redis, llama):
    gateway = start_gateway(
        llama,
        gateway_limits={"requests_per_minute": 2, "tokens_per_minute": 50_000},
        gateway_clients={"second": {"requests_per_minute": 0, "cache": False}},
    )
    answers = [gateway.chat(temperature=0, key=SECOND) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.cache for answer in answers] == ["BYPASS", "BYPASS", "BYPASS"]
    assert "x-ratelimit-limit-requests" not in answers[0].headers
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "50000"
    answers = [gateway.chat(temperature=0) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.cache for answer in answers[:2]] == ["MISS", "HIT"]


def hang(gateway, count, key=KEYS[0]["key"]):
    """So many requests that the stand-in does not answer; their connections."""
    connections = []
    for number in range(count):
        body = CHAT | {"user": str(number)}
        connections.append(gateway.open("/v1/chat/completions", body, read=False)[0])
    return connections


def test_concurrent_requests(start_gateway, stand_in, workers):
    stand_in.pieces = [60]
    limits = {"concurrent_streams": 3}
    gateway = start_gateway(stand_in.port, gateway_limits=limits, gateway_workers=workers)
    connections = hang(gateway, 3)
    until(lambda: len(stand_in.requests) == 3)
    refused = gateway.chat()
    assert refused.status == 429
    assert refused.error["code"] == "rate_limit_exceeded"
    assert refused.error["type"] == "concurrent_streams"
    assert "at the same time: limit 3" in refused.error["message"]
    assert refused.headers["Retry-After"] == "1"
    stand_in.says(WHOLE % (1, 1))
    assert gateway.chat(key=SECOND).status == 200
    assert gateway.ask("/v1/models").status == 200  # a list is no stream
    connections[0].close()  # a client that leaves
    until(lambda: gateway.chat().status == 200)
    for connection in connections:
        connection.close()


def test_concurrent_requests_end_with_their_worker(start_gateway, stand_in, workers):
    stand_in.pieces = [60]
    limits = {"concurrent_streams": 4}
    gateway = start_gateway(stand_in.port, gateway_limits=limits, gateway_workers=workers)
    connections = hang(gateway, 4)
    until(lambda: len(stand_in.requests) == 4)
    assert gateway.chat().status == 429
    stand_in.says(WHOLE % (1, 1))
    before = worker_pids(gateway)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(worker_pids(gateway) - before) == workers)
    answers = []

    def answered():
        try:
            answers.append(gateway.chat())
        except OSError:
            return False
        return answers[-1].status == 200

    until(answered)
    for connection in connections:
        connection.close()


def test_concurrent_requests_over_a_reload(start_gateway, stand_in, workers):
    stand_in.pieces = [60]
    limits = {"concurrent_streams": 2}
    gateway = start_gateway(stand_in.port, gateway_limits=limits, gateway_workers=workers)
    connections = hang(gateway, 2)
    until(lambda: len(stand_in.requests) == 2)
    before = worker_pids(gateway)
    gateway.process.send_signal(signal.SIGHUP)
    until(lambda: len(worker_pids(gateway) - before) == workers)
    stand_in.says(WHOLE % (1, 1))
    time.sleep(0.3)  # the old workers no longer take connections
    assert gateway.chat().status == 429  # what runs in the old workers counts
    connections[0].close()
    until(lambda: gateway.chat().status == 200)
    connections[1].close()
    until(lambda: not before & worker_pids(gateway))
    assert gateway.chat().status == 200


def test_the_minute_goes_on_over_a_reload(start_gateway, llama):
    gateway = start_gateway(llama, gateway_limits={"requests_per_minute": 2})
    assert [gateway.ask("/v1/models").status for _ in range(3)] == [200, 200, 429]
    reload(gateway)
    assert gateway.ask("/v1/models").status == 429


def test_models_a_client_may_use(start_gateway, llama, redis):
    gateway = start_gateway(
        llama, gateway_clients={"default": {"models": ["other"]}, "second": {"models": ["tiny-r1"]}}
    )
    refused = gateway.chat(temperature=0)
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")
    assert refused.error["param"] == "model"
    assert "'tiny-r1' does not exist, or this API key may not use it" in refused.error["message"]
    listed = gateway.ask("/v1/models").json()
    assert (listed["data"], listed["models"], listed["object"]) == ([], [], "list")
    assert gateway.ask("/v1/models/tiny-r1").error["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="may not use it"):
        client_of(gateway).chat.completions.create(**CHAT)
    assert gateway.chat(temperature=0, key=SECOND).status == 200
    both = gateway.ask("/v1/models", key=SECOND).json()
    assert [both[key][0][name] for key, name in (("data", "id"), ("models", "model"))] == (
        ["tiny-r1", "tiny-r1"]
    )


MESSAGES = b'"messages":[{"role":"user","content":"x"}]'


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"model":"tiny-r1",%s}', 200, ""),
        (b'{"model":"other",%s}', 404, "'other' does not exist, or this API key may not use it"),
        (b'{"model":"tiny-r1","model":"other",%s}', 400, 'the key "model" twice'),
        (b'{"model":"other","model":"tiny-r1",%s}', 400, 'the key "model" twice'),
        (b'{"model":"tiny-r1","mod\\u0065l":"other",%s}', 400, 'the key "model" twice'),
        (b'{"model":"tin\\u0079-r1",%s}', 200, ""),
        (b"{%s}", 400, "name one in 'model'"),
        (b'{"model":null,%s}', 400, "name one in 'model'"),
        (b'{"model":["tiny-r1"],%s}', 400, "name one in 'model'"),
        (b'{"model":"tiny-r1",%s}{"model":"other"}', 400, "name one in 'model'"),
        (b"[{%s}]", 400, "not a JSON object"),
        (b"x%s", 400, "not a JSON object"),
    ],
)
def test_no_way_around_the_allowed_models(start_gateway, stand_in, body, status, said):
    stand_in.says(WHOLE % (1, 1))
    gateway = start_gateway(stand_in.port, gateway_limits={"models": ["tiny-r1"]})
    answer = gateway.ask("/v1/chat/completions", body % MESSAGES)
    assert answer.status == status
    assert len(stand_in.requests) == (status == 200)
    if status != 200:
        assert said in answer.error["message"]


def test_strangers_are_limited_by_address(start_gateway, stand_in, workers):
    stand_in.says(WHOLE % (1, 1))
    gateway = start_gateway(
        stand_in.port, gateway_limits={"requests_per_minute": 60}, gateway_workers=workers
    )
    assert gateway.chat().status == 200
    wrong = [gateway.ask("/v1/models", key=f"wrong-{number}") for number in range(40)]
    wrong += [gateway.ask("/v1/models", key=None) for _ in range(40)]
    statuses = [answer.status for answer in wrong]
    assert set(statuses) == {401, 429}
    assert 30 <= statuses.count(401) <= 60  # the minute may have changed between
    refused = next(answer for answer in wrong if answer.status == 429)
    assert refused.error["code"] == "too_many_failures"
    assert "30 in a minute" in refused.error["message"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    # A key that was right before gets in, and has paid for nothing of this.
    answer = gateway.chat()
    assert answer.status == 200
    assert left(answer, "requests") >= 58
    assert gateway.ask("/healthz", key=None).status in (200, 503)


def test_many_addresses_cannot_lift_a_clients_limit(start_gateway, stand_in):
    """They fill a memory of their own, here a small one, which forgets the oldest."""
    stand_in.says('{"data":[]}')
    gateway = start_gateway(stand_in.port, gateway_limits={"requests_per_minute": 1})
    reload(gateway, "gateway_addresses 1m;", "gateway_addresses 16k;")

    def knock(address):
        source = (address, 0)
        connection = http.client.HTTPConnection(
            "127.0.0.1", gateway.port, 10, source_address=source
        )
        connection.request("GET", "/v1/models", headers={"Authorization": "Bearer wrong"})
        status = connection.getresponse().status
        connection.close()
        return status

    assert [gateway.ask("/v1/models").status for _ in range(2)] == [200, 429]
    until(lambda: knock("127.0.0.2") == 429)
    for number in range(500):
        assert knock(f"127.1.{number // 250}.{1 + number % 250}") == 401
    assert knock("127.0.0.2") == 401  # forgotten
    assert gateway.ask("/v1/models").status == 429  # not forgotten
