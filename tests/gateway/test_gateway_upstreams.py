"""Several real engines behind one gateway, and a cloud that stands in for them."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gateway_parts import ENGINE_KEY

CLOUD_KEY = "key-of-the-cloud"
EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
CUT = b"Content-Length: 90\r\n\r\n{"
ENDLESS = {"stream": True, "ignore_eos": True, "max_tokens": 4000}


def healthy(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
        return True
    except OSError:
        return False


class Engine:
    """A real llama-server of a test's own, that can be killed and started again."""

    def __init__(self, background, binary, model, port, key=ENGINE_KEY):
        self.port, self.key = port, key
        argv = [binary, "--model", model, "--alias", "tiny-r1", "--jinja", "--host", "127.0.0.1"]
        argv += ["--port", port, "--api-key", key, "--parallel", "2"]
        argv += ["--ctx-size", "8192"]
        argv += ["--threads", "1", "--metrics"]
        self.start = lambda: background(argv, ready=lambda: healthy(port))
        self.process = self.start()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def metric(self, name: str) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/metrics",
            headers={"Authorization": f"Bearer {self.key}"},
        )
        with urllib.request.urlopen(request, timeout=5) as response:
            text = response.read().decode()
        return int(float(re.search(rf"^llamacpp:{name} (\S+)$", text, re.MULTILINE).group(1)))


@pytest.fixture
def start_engine(background, llama_server_binary, tiny_gguf, free_port):
    def start(**options) -> Engine:
        return Engine(background, llama_server_binary, tiny_gguf, free_port(), **options)

    return start


@pytest.fixture
def healthy_stand_in(stand_in):
    stand_in.health = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    return stand_in


def upstream(name, engine, **more) -> dict:
    return {"name": name, "address": "127.0.0.1", "port": engine.port} | more


def wait_for(condition, what, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def served(answer) -> str:
    assert answer.status == 200, answer
    return answer.headers["X-Upstream"]


def conversations(number):
    return [f"Conversation {index}: what is 2+2?" for index in range(number)]


def error_log(gateway) -> str:
    return gateway.process.log.read_text()


def reloaded(gateway, **changes):
    """Reload the gateway with other settings, and wait until the old workers take no more."""
    before = workers(gateway)
    gateway.role.variables |= changes
    gateway.role.write()
    subprocess.run(gateway.role.service()["reload"], check=True, capture_output=True)
    wait_for(lambda: workers(gateway) - before, "no new worker")
    time.sleep(0.3)


def workers(gateway) -> set[int]:
    argv = ["pgrep", "-P", str(gateway.process.pid)]
    return {int(pid) for pid in subprocess.run(argv, capture_output=True, text=True).stdout.split()}


def test_one_engine_alone_is_not_named(gateway):
    answer = gateway.chat(temperature=0, max_tokens=5)
    assert answer.status == 200
    assert "X-Upstream" not in answer.headers
    config = (Path(gateway.role.variables["r1_etc"]) / "gateway/nginx.conf").read_text()
    assert "resolver" not in config and "lua_ssl" not in config


def test_turns_of_a_conversation_stay_on_one_engine(start_gateway, start_engine):
    """Proved by the engines' own count of the tokens that they had to read."""
    engines = {"engine": start_engine(), "b": start_engine(), "c": start_engine()}
    others = [upstream(name, engines[name]) for name in "bc"]
    gateway = start_gateway(engines["engine"].port, gateway_upstreams=others, gateway_workers=2)
    homes = Counter()
    for question in conversations(12):
        messages = [
            {"role": "system", "content": "Be brief. " * 20},
            {"role": "user", "content": question},
        ]
        first = gateway.chat(messages=messages, max_tokens=8)
        home = served(first)
        homes[home] += 1
        read = {name: engine.metric("prompt_tokens_total") for name, engine in engines.items()}
        said = first.json()["choices"][0]["message"]
        for turn in ("And 3+3?", "And 4+4?"):
            messages += [said, {"role": "user", "content": turn}]
            assert served(gateway.chat(messages=messages, max_tokens=8)) == home
        now = {name: engine.metric("prompt_tokens_total") for name, engine in engines.items()}
        assert {name for name in engines if now[name] > read[name]} == {home}
        first_turn = first.json()["usage"]["prompt_tokens"]
        assert now[home] - read[home] < 2 * first_turn, "the beginning was read again"
    assert set(homes) == set(engines), homes
    # Another client's conversation has a home of its own; the same client's always the same.
    assert served(gateway.chat(conversations(1)[0], max_tokens=4)) == served(
        gateway.chat(conversations(1)[0], max_tokens=4)
    )


def test_few_conversations_move_when_an_engine_goes_and_come_back(start_gateway, start_engine):
    engines = [start_engine() for _ in range(3)]
    others = [upstream("b", engines[1]), upstream("c", engines[2])]
    gateway = start_gateway(engines[0].port, gateway_upstreams=others)

    def homes():
        return [served(gateway.chat(question, max_tokens=2)) for question in conversations(15)]

    before = homes()
    engines[2].kill()
    without = homes()
    assert "c" not in without
    assert all(was == "c" or was == now for was, now in zip(before, without, strict=True))
    engines[2].process = engines[2].start()
    wait_for(lambda: homes() == before, "the engine that is back gets nothing")
    assert "upstream c: The engine does not answer" in error_log(gateway)
    assert "upstream c: answers again" in error_log(gateway)


@pytest.fixture
def two_that_hang(start_gateway, healthy_stand_in):
    """A gateway with two engines that begin each answer and do not end it."""

    def start(workers):
        healthy_stand_in.streams(EVENT, 60)
        return start_gateway(
            healthy_stand_in.port,
            gateway_upstreams=[upstream("b", healthy_stand_in)],
            gateway_workers=workers,
        )

    return start


class Streams:
    """Running requests of one conversation, and where they run."""

    def __init__(self, gateway):
        self.gateway, self.running, self.homes = gateway, [], []

    def open(self, number):
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        for _ in range(number):
            pair = self.gateway.open("/v1/chat/completions", body)
            self.running.append(pair)
            self.homes.append(pair[1].headers["X-Upstream"])
        return self.homes[-number:]

    def leave(self):
        for connection, response in self.running:
            response.close()
            connection.close()
        self.running = []


def test_a_busy_engine_loses_its_conversations_to_the_least_busy(two_that_hang):
    streams = Streams(two_that_hang(workers=2))
    homes = streams.open(6)
    # The home keeps it as long as it has at most one more than 1.25 x the mean.
    assert homes[0] == homes[1] == homes[2] != homes[3], homes
    assert sorted(Counter(homes).values()) == [1, 5], homes
    streams.leave()

    def starts_again():
        again = streams.open(4)
        streams.leave()
        return again == homes[:4]

    wait_for(starts_again, "a count did not go down")


def test_counts_are_right_after_a_killed_worker(two_that_hang):
    gateway = two_that_hang(workers=1)
    before = Streams(gateway).open(4)
    (worker,) = workers(gateway)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: workers(gateway) - {worker}, "no new worker")
    assert Streams(gateway).open(4) == before


def test_old_and_new_workers_are_counted_together(two_that_hang):
    gateway = two_that_hang(workers=1)
    before = Streams(gateway)
    homes = before.open(4)
    reloaded(gateway)
    assert len(workers(gateway)) == 2  # the old one still carries the streams
    homes += Streams(gateway).open(2)
    assert sorted(Counter(homes).values()) == [1, 5], homes


def test_an_engine_killed_under_load_costs_no_answer_that_had_not_begun(
    start_gateway, start_engine, redis
):
    """Whole answers begin at their end: of those, none may be lost or wrong."""
    engines = {"engine": start_engine(), "b": start_engine()}
    others = [upstream("b", engines["b"])]
    gateway = start_gateway(engines["engine"].port, gateway_upstreams=others, gateway_workers=2)
    alone = start_gateway(engines["engine"].port)
    questions = [f"{index}+1?" for index in range(40)]
    expected = {
        question: alone.chat(question, temperature=0, max_tokens=60, Cache_Control="no-store")
        for question in questions[:10]
    }

    def ask(index):
        question = questions[index % 10]
        answer = gateway.chat(question, temperature=0, max_tokens=60, Cache_Control="no-store")
        right = expected[question].json()["choices"][0]["message"]
        return answer.status, answer.status == 200 and answer.json()["choices"][0][
            "message"
        ] == right

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, index) for index in range(120)]
        wait_for(lambda: engines["b"].metric("requests_processing") > 0, "b has nothing to do")
        engines["b"].kill()
        results = Counter(one.result() for one in asked)
    assert results == {(200, True): 120}
    engines["b"].process = engines["b"].start()
    wait_for(
        lambda: "b" in {served(gateway.chat(q, max_tokens=2)) for q in questions[:10]},
        "b gets nothing",
    )


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ([], {200}),  # closed without a byte
        ([b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}"], {200}),
        ([b"HTTP/1.1 2"], {200, 502}),
        ([b"HTTP/1.1 200 OK\r\nContent-Type: app"], {200, 502}),
        ([b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + CUT], {200, 502}),
        ([b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n{}"], {200, 500}),
    ],
)
def test_only_what_cannot_have_begun_goes_to_the_next(
    start_gateway, healthy_stand_in, start_engine, pieces, statuses
):
    healthy_stand_in.pieces = pieces
    gateway = start_gateway(
        start_engine().port, gateway_upstreams=[upstream("b", healthy_stand_in)]
    )
    found = Counter()
    for question in conversations(20):
        answer = gateway.chat(question, max_tokens=2)
        found[answer.status] += 1
        assert answer.status == 200 or answer.error["message"]
    assert set(found) == statuses
    if statuses != {200}:
        assert len(healthy_stand_in.requests) == 20 - found[200]
    assert healthy_stand_in.requests


def test_a_stream_that_began_is_not_begun_again(start_gateway, start_engine, healthy_stand_in):
    healthy_stand_in.streams(EVENT, end=b"")
    gateway = start_gateway(
        start_engine().port, gateway_upstreams=[upstream("b", healthy_stand_in)]
    )
    answers = [gateway.chat(q, stream=True, max_tokens=2) for q in conversations(20)]
    cut = [answer.body.decode() for answer in answers if answer.headers["X-Upstream"] == "b"]
    assert cut and len(cut) == len(healthy_stand_in.requests)
    for body in cut:
        error = json.loads(body.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
        assert error["code"] == "engine_unavailable"


def test_drain(start_gateway, start_engine, healthy_stand_in):
    end = threading.Event()
    healthy_stand_in.streams(EVENT, end, b"data: [DONE]\n\n")
    engine, b = start_engine(), upstream("b", healthy_stand_in)
    gateway = start_gateway(engine.port, gateway_upstreams=[b])
    running = []
    for question in conversations(20):
        body = {"messages": [{"role": "user", "content": question}], "stream": True}
        running.append(gateway.open("/v1/chat/completions", body))
        if running[-1][1].headers["X-Upstream"] == "b":
            break
    reloaded(gateway, gateway_upstreams=[b | {"drain": True}])
    assert served(gateway.chat(question)) == "engine"  # the conversation has moved
    assert {served(gateway.chat(q, max_tokens=2)) for q in conversations(10)} == {"engine"}
    end.set()
    for connection, response in running:
        assert response.read().endswith(b"data: [DONE]\n\n")
        connection.close()


def test_the_own_engine_can_be_drained(start_gateway, start_engine):
    engine, b = start_engine(), start_engine()
    gateway = start_gateway(engine.port, gateway_upstreams=[upstream("b", b)], gateway_drain=True)
    assert {served(gateway.chat(q, max_tokens=2)) for q in conversations(10)} == {"b"}
    assert gateway.ask("/healthz", key=None).status == 200
    b.kill()
    wait_for(lambda: gateway.ask("/healthz", key=None).status == 503, "nobody can answer")
    assert gateway.chat("x").status == 502
    assert engine.metric("prompt_tokens_total") == 0


def test_healthz_as_long_as_one_can_answer(start_gateway, start_engine):
    engines = [start_engine(), start_engine()]
    gateway = start_gateway(engines[0].port, gateway_upstreams=[upstream("b", engines[1])])
    assert gateway.ask("/healthz", key=None).status == 200
    engines[0].kill()
    for _ in range(3):
        time.sleep(0.7)
        assert gateway.ask("/healthz", key=None).status == 200
    engines[1].kill()
    wait_for(lambda: gateway.ask("/healthz", key=None).status == 503, "it says that it can answer")
    assert "does not answer" in gateway.ask("/healthz", key=None).error["message"]
    engines[1].process = engines[1].start()
    wait_for(lambda: gateway.ask("/healthz", key=None).status == 200, "it is not back")


def test_each_engine_gets_its_own_key(start_gateway, start_engine):
    engines = {"engine": start_engine(), "b": start_engine(key="another-key-for-b")}
    gateway = start_gateway(
        engines["engine"].port,
        gateway_upstreams=[upstream("b", engines["b"], key="another-key-for-b")],
    )
    assert {served(gateway.chat(q, max_tokens=2)) for q in conversations(10)} == {"engine", "b"}
    folder = Path(gateway.role.variables["r1_etc"]) / "gateway"
    assert [p.name for p in folder.iterdir() if "another-key" in p.read_text()] == ["secrets.json"]


def test_state_for_metrics(start_gateway, healthy_stand_in, free_port):
    healthy_stand_in.streams(EVENT, 60)
    gateway = start_gateway(
        free_port(), gateway_upstreams=[upstream("b", healthy_stand_in)], gateway_workers=2
    )
    config = Path(gateway.role.variables["r1_etc"]) / "gateway/nginx.conf"
    lua = 'ngx.print(require("cjson").encode(require("gateway.upstreams").state()))'
    door = "location = /state { content_by_lua_block { " + lua + " } }"
    config.write_text(config.read_text().replace("location /v1/", door + "location /v1/"))
    subprocess.run(gateway.role.service()["reload"], check=True, capture_output=True)
    wait_for(lambda: gateway.ask("/state").status == 200, "no such door")
    streams = Streams(gateway)
    streams.open(3)

    def says(running):
        found = [{"name": "engine", "up": 0, "running": 0}]
        found.append({"name": "b", "up": 1, "running": running})
        return lambda: gateway.ask("/state").json() == found

    wait_for(says(3), "not what runs")
    streams.leave()
    wait_for(says(0), "not what runs")
