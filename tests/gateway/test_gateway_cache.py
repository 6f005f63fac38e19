"""The answer cache: right first, and never in the way."""

import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gateway_parts import KEYS, USER, Role, listens

COMPLETE = '{"choices":[{"message":{"content":"4"},"finish_reason":"stop"}],"nr":%d}'


def entries(redis) -> int:
    """Answers, once the word is gone that there is none to wait for."""
    deadline = time.monotonic() + 3
    while count := int(command(redis, "DBSIZE")):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return count


def command(redis, *words) -> str:
    argv = ["redis-cli", "-s", str(redis.socket), *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def counting(stand_in):
    """A stand-in whose answers differ each time, so that a cached one can be told."""

    original = stand_in.answer

    def answer(connection):
        stand_in.says(COMPLETE % len(stand_in.requests))
        original(connection)

    stand_in.answer = answer
    return stand_in


def test_the_second_time_the_same_bytes(gateway):
    first = gateway.chat(temperature=0)
    second = gateway.chat(temperature=0)
    assert (first.cache, second.cache) == ("MISS", "HIT")
    assert first.body == second.body
    assert first.headers["Content-Type"] == second.headers["Content-Type"]
    assert first.headers["X-Request-Id"] != second.headers["X-Request-Id"]
    assert second.json()["choices"][0]["message"]["reasoning_content"]


def test_completions_route(gateway):
    body = {"prompt": "2+2", "max_tokens": 3, "seed": 7}
    first, second = (gateway.ask("/v1/completions", body) for _ in range(2))
    assert (first.cache, second.cache) == ("MISS", "HIT")
    assert first.body == second.body


def test_an_entry_belongs_to_key_route_and_bytes(start_gateway, redis, counting):
    gateway = start_gateway(counting.port)
    body = b'{"prompt":"x","messages":[],"temperature":0}'
    seen = set()
    for ask in (
        lambda: gateway.ask("/v1/chat/completions", body),
        lambda: gateway.ask("/v1/chat/completions", body, key=KEYS[1]["key"]),
        lambda: gateway.ask("/v1/completions", body),
        lambda: gateway.ask("/v1/chat/completions?x=1", body),
        lambda: gateway.ask("/v1/chat/completions", body.replace(b"[]", b"[ ]")),
        lambda: gateway.ask("/v1/chat/completions", body.replace(b"x", b"y")),
    ):
        first, second = ask(), ask()
        assert (first.cache, second.cache) == ("MISS", "HIT")
        assert first.body == second.body
        seen.add(first.body)
    assert len(seen) == 6


def test_order_and_form_of_the_question_make_no_other_entry(start_gateway, redis, counting):
    gateway = start_gateway(counting.port)
    first = gateway.ask("/v1/chat/completions", b'{"prompt":"x","messages":[],"temperature":0}')
    for body in (
        b' {"temperature" : 0,"messages":[], "prompt":"x" }',
        b'{"stream":false,"prompt":"x","messages":[],"temperature":0,"stream_options":null}',
    ):
        again = gateway.ask("/v1/chat/completions", body)
        assert (again.cache, again.body) == ("HIT", first.body)


def chunks(answer) -> list:
    lines = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def told(answer) -> tuple:
    """Thought, answer, end and usage of either form."""
    if answer.body.startswith(b"{"):
        data = answer.json()
        message = data["choices"][0]["message"]
        thought, end = message["reasoning_content"], data["choices"][0]["finish_reason"]
        return thought, message["content"], end, data["usage"]["completion_tokens"]
    parts = [choice for chunk in chunks(answer) for choice in chunk["choices"]]
    text = {
        key: "".join(part["delta"].get(key) or "" for part in parts)
        for key in ("reasoning_content", "content")
    }
    usage = [chunk["usage"]["completion_tokens"] for chunk in chunks(answer) if chunk.get("usage")]
    return *text.values(), parts[-1]["finish_reason"], usage[-1] if usage else None


USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("first", [{}, USAGE, {"stream": True}])
def test_one_entry_serves_all_forms(gateway, first):
    """A real engine's answer, asked for whole and as a stream, with its usage and without."""
    asked = gateway.chat(temperature=0, **first)
    assert asked.cache == "MISS"
    bodies = {}
    for other in ({}, USAGE, {"stream": True}):
        answer = gateway.chat(temperature=0, **other)
        assert answer.cache == "HIT"
        bodies[str(other)] = answer.body
        assert told(answer)[:3] == told(asked)[:3]
        assert (told(answer)[3] or 0) > 0 or other == {"stream": True}
        kind = "text/event-stream" if other else "application/json"
        assert answer.headers["Content-Type"].startswith(kind)
    assert bodies[str(first)] == asked.body
    assert told(gateway.chat(temperature=0, stream=True))[3] is None
    for other in ({}, USAGE, {"stream": True}):
        assert gateway.chat(temperature=0, **other).body == bodies[str(other)]


def test_a_stream_that_told_no_usage_serves_streams_alone(start_gateway, stand_in, redis):
    gateway = start_gateway(stand_in.port)
    stand_in.streams((PIECE % '"stop"' + "data: [DONE]\n\n").encode())
    asked, again = (gateway.chat(temperature=0, stream=True) for _ in range(2))
    assert (asked.cache, again.cache) == ("MISS", "HIT")
    assert asked.body == again.body
    assert gateway.chat(temperature=0).cache == "MISS", "its usage is not known"
    assert gateway.chat(temperature=0, **USAGE).cache == "MISS", "its usage is not known"


def test_what_would_lose_something_is_asked_again(start_gateway, stand_in, redis):
    gateway = start_gateway(stand_in.port)
    for more in ({"tool_calls": [{"id": "1"}]}, {"audio": {"id": "1"}}):
        message = {"role": "assistant", "content": "4", **more}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        stand_in.says(json.dumps({"object": "chat.completion", "choices": choices}))
        assert gateway.chat(seed=len(message), **more).cache == "MISS"
        assert gateway.chat(seed=len(message), **more).cache == "HIT"
        assert gateway.chat(seed=len(message), stream=True, **more).cache == "MISS"


PIECE = (
    'data: {"object":"chat.completion.chunk","choices":'
    '[{"index":0,"delta":{"content":"4"},"finish_reason":%s}]}\n\n'
)
ENDS = [
    (PIECE % "null" + PIECE % '"stop"', b"0\r\n\r\n", "no last word"),
    (PIECE % "null" + "data: [DONE]\n\n", b"0\r\n\r\n", "no finish"),
    (PIECE % '"abort"' + "data: [DONE]\n\n", b"0\r\n\r\n", "broken off"),
    (PIECE % '"stop"' + 'data: {"error":"x"}\n\ndata: [DONE]\n\n', b"0\r\n\r\n", "an error"),
    (PIECE % '"stop"' + "data: [DONE]\n\n", b"", "cut"),
]


@pytest.mark.parametrize(("stream", "end", "why"), ENDS, ids=lambda value: str(value)[-12:])
def test_a_stream_that_is_not_whole_is_not_kept(start_gateway, stand_in, redis, stream, end, why):
    stand_in.streams(stream.encode(), end=end)
    gateway = start_gateway(stand_in.port)
    assert [gateway.chat(seed=1, stream=True).cache for _ in range(2)] == ["MISS", "MISS"], why


@pytest.fixture
def slow(stand_in):
    """A stand-in that takes half a second, whose answers differ each time."""
    original = stand_in.answer

    def answer(connection):
        stand_in.says(COMPLETE % len(stand_in.requests))
        stand_in.pieces.insert(0, 0.5)
        original(connection)

    stand_in.answer = answer
    return stand_in


def test_one_engine_call_for_identical_questions_at_once(start_gateway, redis, slow):
    """Also where two gateways share a Redis."""
    gateways = [start_gateway(slow.port), start_gateway(slow.port)]
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda i: gateways[i % 2].chat(temperature=0), range(24)))
    assert len(slow.requests) == 1
    assert {answer.body for answer in found} == {found[0].body}
    assert [answer.cache for answer in found].count("MISS") == 1
    assert max(answer.seconds for answer in found) < 3


def test_another_one_asks_when_the_first_leaves(start_gateway, redis, slow):
    gateway = start_gateway(slow.port)
    body = json.dumps({"messages": [], "temperature": 0}).encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as first:
        head = f"Authorization: Bearer {KEYS[0]['key']}\r\nContent-Type: application/json\r\n"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{head}"
        first.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.2)
        with ThreadPoolExecutor(4) as pool:
            asks = [pool.submit(gateway.ask, "/v1/chat/completions", body) for _ in range(4)]
            time.sleep(0.1)
            first.close()
            found = [ask.result() for ask in asks]
    assert len(slow.requests) == 2, "the one who left, and one of the four"
    assert len({answer.body for answer in found}) == 1
    assert max(answer.seconds for answer in found) < 2


def test_a_gateway_that_dies_holds_nobody_up_for_long(start_gateway, redis, slow):
    command(redis, "CONFIG", "SET", "save", "")
    dead, alive = start_gateway(slow.port), start_gateway(slow.port)
    with ThreadPoolExecutor(2) as pool:
        lost = pool.submit(dead.chat, temperature=0)
        time.sleep(0.2)
        left = pool.submit(alive.chat, temperature=0)
        time.sleep(0.1)
        workers = children(dead.process.pid)
        dead.process.kill()  # first, else it starts another worker
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        assert left.result().status == 200
        assert left.result().seconds < 8
        with pytest.raises(OSError):
            lost.result()


def children(pid) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_an_answer_that_is_not_kept_lets_all_others_go(start_gateway, redis, stand_in):
    """Not one after the other."""
    stand_in.says('{"error":{"message":"no"}}', "500 Oops")
    stand_in.pieces.insert(0, 0.4)
    gateway = start_gateway(stand_in.port)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: gateway.chat(temperature=0), range(6)))
    assert {answer.status for answer in found} == {500}
    assert max(answer.seconds for answer in found) < 1.5


def test_a_stream_and_a_whole_answer_wait_for_each_other(gateway):
    with ThreadPoolExecutor(4) as pool:
        asks = [{}, USAGE, {}, USAGE]
        found = list(pool.map(lambda more: gateway.chat(temperature=0, **more), asks))
    assert len({told(answer)[:2] for answer in found}) == 1
    assert [answer.cache for answer in found].count("MISS") == 1


def test_another_model_never_finds_the_answers(start_gateway, redis, counting):
    one = start_gateway(counting.port, gateway_model_digest="one")
    assert [one.chat(seed=1).cache for _ in range(2)] == ["MISS", "HIT"]
    one.process.terminate()
    one.process.wait()
    two = start_gateway(counting.port, gateway_model_digest="two")
    assert two.chat(seed=1).cache == "MISS"


# None: refused before the cache is asked.
CACHED = [
    ('{"temperature":0}', True),
    ('{"temperature":0.0,"stream":false}', True),
    ('{ "temperature" : 0e3 , "stream" : null }', True),
    ('{"seed":0}', True),
    ('{"seed":42,"temperature":0.9}', True),
    ('{"messages":[{"content":"\\"stream\\":true, }{"}],"temperature":0}', True),
    ("{}", False),
    ('{"temperature":0.1}', False),
    ('{"temperature":"0"}', False),
    ('{"temperature":null}', False),
    ('{"seed":null}', False),
    ('{"seed":-1}', False),
    ('{"seed":4294967295}', False),
    ('{"temperature":0,"stream":true,"stream_options":{"x":1}}', False),
    ('{"options":{"temperature":0}}', False),
    ('{"temperature":0,"temperature":1}', None),
    ('{"temperature":0,"temp\\u0065rature":1}', None),
    ('{"temperature":0} x', False),
    ('{"temperature":0', None),
    ('[{"temperature":0}]', None),
    ('"temperature"', None),
    ("", None),
    ('{"temperature":0,"x":"' + "\\", None),
    ("[" * 100000, None),
    ('{"temperature":0,"x":' + "[" * 100000 + "]" * 100000 + "}", None),
]


def test_what_is_cached(start_gateway, redis, counting):
    gateway = start_gateway(counting.port)
    for body, cached in CACHED:
        answers = [gateway.ask("/v1/chat/completions", body.encode()) for _ in range(2)]
        seen = [answer.cache for answer in answers]
        if cached is None:
            assert [answer.status for answer in answers] == [400, 400], body[:99]
            continue
        assert seen == (["MISS", "HIT"] if cached else ["BYPASS", "BYPASS"]), body[:99]
        assert (answers[0].body == answers[1].body) is cached


def test_other_routes_and_content_types_are_not_cached(start_gateway, redis, counting):
    gateway = start_gateway(counting.port)
    for path, kind in (
        ("/v1/embeddings", "application/json"),
        ("/v1/chat/completions", "text/plain"),
    ):
        for _ in range(2):
            answer = gateway.ask(path, b'{"temperature":0}', Content_Type=kind)
            assert answer.cache == "BYPASS"


@pytest.mark.parametrize("control", ["no-store", "no-cache, no-store", "max-age=0, No-Store"])
def test_client_may_forbid_it(start_gateway, redis, counting, control):
    gateway = start_gateway(counting.port)
    assert gateway.chat(temperature=0, Cache_Control=control).cache == "BYPASS"
    first = gateway.chat(temperature=0)
    assert first.cache == "MISS"
    assert gateway.chat(temperature=0, Cache_Control=control).cache == "BYPASS"
    assert gateway.chat(temperature=0).body == first.body


def test_a_client_may_want_a_new_answer(start_gateway, redis, counting):
    gateway = start_gateway(counting.port)
    old = gateway.chat(temperature=0)
    new = gateway.chat(temperature=0, Cache_Control="no-cache")
    after = gateway.chat(temperature=0)
    assert (new.cache, after.cache) == ("BYPASS", "HIT")
    assert old.body != new.body == after.body


def test_a_new_answer_is_the_answer_in_every_form(start_gateway, redis, stand_in):
    gateway = start_gateway(stand_in.port)
    message = {"role": "assistant", "content": "old"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    usage = {"completion_tokens": 1}
    for word in ("old", "new"):
        message["content"] = word
        answer = {"object": "chat.completion", "choices": choices, "usage": usage}
        stand_in.says(json.dumps(answer))
        gateway.chat(seed=1, Cache_Control="no-cache")
        stream = gateway.chat(seed=1, stream=True)
        assert stream.cache == "HIT"
        assert f'"{word}"'.encode() in stream.body


def test_age_and_how_old_an_answer_may_be(start_gateway, redis, counting):
    gateway = start_gateway(counting.port)
    first = gateway.chat(temperature=0)
    assert first.headers["Age"] is None
    time.sleep(1.1)
    again = gateway.chat(temperature=0, Cache_Control="max-age=600")
    assert (again.cache, again.body) == ("HIT", first.body)
    assert int(again.headers["Age"]) >= 1
    assert gateway.chat("new", temperature=0).cache == "MISS"
    assert gateway.chat("new", temperature=0, Cache_Control="max-age=0").cache == "MISS"
    newer = gateway.chat(temperature=0, Cache_Control="max-age=1")
    assert (newer.cache, newer.body == first.body) == ("MISS", False)
    assert gateway.chat(temperature=0).body == newer.body


def test_another_form_is_as_old_as_the_answer(start_gateway, redis, stand_in):
    choices = [{"index": 0, "message": {"content": "4"}, "finish_reason": "stop"}]
    stand_in.says(json.dumps({"object": "chat.completion", "choices": choices}))
    gateway = start_gateway(stand_in.port)
    gateway.chat(temperature=0)
    time.sleep(1.1)
    for _ in range(2):
        stream = gateway.chat(temperature=0, stream=True)
        assert stream.cache == "HIT"
        assert int(stream.headers["Age"]) >= 1


def test_only_if_cached(start_gateway, redis, counting):
    gateway = start_gateway(counting.port)
    for fields in ({"temperature": 0}, {"temperature": 1}):
        answer = gateway.chat(**fields, Cache_Control="only-if-cached")
        assert answer.status == 504
        assert answer.error["code"] == "not_cached"
        assert "no answer to this is stored" in answer.error["message"]
    assert counting.requests == []
    stored = gateway.chat(temperature=0)
    answer = gateway.chat(temperature=0, Cache_Control="only-if-cached")
    assert (answer.cache, answer.body) == ("HIT", stored.body)


def test_what_may_come_out_otherwise_is_kept_if_the_operator_says_so(
    start_gateway, redis, counting
):
    gateway = start_gateway(counting.port, gateway_cache_sampled=True)
    for fields in ({}, {"temperature": 1}, {"seed": -1}):
        first, second = gateway.chat(**fields), gateway.chat(**fields)
        assert (first.cache, second.cache, first.body) == ("MISS", "HIT", second.body)


def test_a_client_left_out_of_the_cache(start_gateway, redis, counting):
    clients = {"second": {"cache": False}, "default": {"cache": True}, "other": {}}
    gateway = start_gateway(counting.port, gateway_clients=clients)
    assert [gateway.chat(seed=1).cache for _ in range(2)] == ["MISS", "HIT"]
    key = KEYS[1]["key"]
    assert {gateway.chat(seed=1, key=key).cache for _ in range(2)} == {"BYPASS"}


NOT_KEPT = [
    ('{"choices":[{"message":{"content":"4"},"finish_reason":null}]}', "200 OK"),
    ('{"choices":[{"finish_reason":"stop"},{"finish_reason":null}]}', "200 OK"),
    ('{"choices":[]}', "200 OK"),
    ('{"choices":[{"finish_reason":"stop"}],"error":{"message":"x"}}', "200 OK"),
    ('{"choices":[{"finish_reason":"stop"}]', "200 OK"),
    (COMPLETE % 1, "201 Created"),
    (COMPLETE % 1, "500 Oops"),
    (COMPLETE % 1, "400 Bad Request"),
    (COMPLETE % 1, "302 Found"),
]


def test_unfinished_and_failed_answers_are_not_kept(start_gateway, redis, stand_in):
    gateway = start_gateway(stand_in.port)
    for body, status in NOT_KEPT:
        stand_in.says(body, status)
        assert [gateway.chat(temperature=0).cache for _ in range(2)] == ["MISS", "MISS"], body
    assert entries(redis) == 0


def test_truncated_answers_are_not_kept(start_gateway, redis, stand_in):
    body = (COMPLETE % 1).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    gateway = start_gateway(stand_in.port)
    for cut in (
        head + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body,
        head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body),
        head + b"\r\n" + body[:-5],
    ):
        stand_in.pieces = [cut]
        gateway.chat(temperature=0)
    assert entries(redis) == 0


def test_nothing_is_kept_for_a_client_that_left(start_gateway, redis, stand_in):
    stand_in.says(COMPLETE % 1)
    stand_in.pieces.insert(0, 0.3)
    gateway = start_gateway(stand_in.port)
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            b"key-of-default\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n"
            b'{"temperature":0}'
        )
        time.sleep(0.1)
    time.sleep(0.5)
    assert gateway.log()[-1]["status"] == 499
    assert entries(redis) == 0


def test_sizes(start_gateway, redis, stand_in):
    gateway = start_gateway(stand_in.port, gateway_cache_max_kib=100)
    for kib, kept in ((90, True), (110, False)):
        stand_in.says('{"choices":[{"finish_reason":"stop","text":"%s"}]}' % ("x" * kib * 1024))
        answers = [gateway.chat(str(kib), temperature=0) for _ in range(2)]
        assert [a.cache for a in answers] == ["MISS", "HIT" if kept else "MISS"]
        assert answers[0].body == answers[1].body
    assert gateway.chat("x" * 2_000_000, temperature=0).cache == "BYPASS"  # spilled to a file


@pytest.mark.parametrize("text", ["short", "x" * 100_000])
def test_the_next_request_finds_the_answer_of_a_slow_redis(start_gateway, redis, stand_in, text):
    """Also on another gateway."""
    gateways = [start_gateway(stand_in.port) for _ in range(2)]
    stand_in.says(json.dumps({"choices": [{"finish_reason": "stop", "text": text}]}))
    pause = ("CLIENT", "PAUSE", "30", "WRITE")  # milliseconds; reads go on
    words = ("--user", "pauses", "--pass", "any", "--no-auth-warning", *pause)
    for number in range(5):
        assert command(redis, *words) == "OK"
        asked = [gateways[i].chat(str(number), temperature=0).cache for i in (0, 0, 1, 1)]
        assert asked == ["MISS", "HIT", "HIT", "HIT"]
    assert len(stand_in.requests) == 5


def test_entries_expire(start_gateway, redis, counting):
    gateway = start_gateway(counting.port, gateway_cache_ttl=1)
    assert [gateway.chat(seed=1).cache for _ in range(2)] == ["MISS", "HIT"]
    time.sleep(1.1)
    assert gateway.chat(seed=1).cache == "MISS"


def test_cache_switched_off(start_gateway, redis, counting):
    gateway = start_gateway(counting.port, gateway_cache_ttl=0)
    assert {gateway.chat(seed=1).cache for _ in range(2)} == {"BYPASS"}


def test_redis_holds_no_readable_names(gateway, redis):
    gateway.chat(temperature=0)
    lines = subprocess.run(
        ["redis-cli", "-s", str(redis.socket), "KEYS", "*"], capture_output=True, text=True
    ).stdout
    assert "NOPERM" in lines
    assert entries(redis) == 1


def without_cache(gateway, times: int) -> list[float]:
    return [gateway.chat(temperature=0.5, max_tokens=1).seconds for _ in range(times)]


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_redis_may_fail_at_any_time(start_gateway, redis, counting, how, capsys):
    gateway = start_gateway(counting.port)
    assert [gateway.chat(temperature=0).cache for _ in range(2)] == ["MISS", "HIT"]
    usual = statistics.median(without_cache(gateway, 20))
    if how == "killed":
        redis.kill()
        redis.wait()
    else:
        redis.send_signal(signal.SIGSTOP)
    answers = [gateway.chat(f"another {number}", temperature=0) for number in range(10)]
    added = max(answer.seconds for answer in answers) - usual
    with capsys.disabled():
        print(f"\nRedis {how}: at most {added * 1000:.1f} ms added to a request", end=" ")
    assert {answer.status for answer in answers} == {200}
    assert {answer.cache for answer in answers} == {"BYPASS"}
    assert added < 0.150
    assert statistics.median(a.seconds for a in answers) - usual < 0.020
    if how == "hung":
        redis.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 10
        while gateway.chat("another 0", temperature=0).cache != "HIT":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert gateway.chat(temperature=0).body == gateway.chat(temperature=0).body


def test_what_was_just_found_does_not_need_redis(start_gateway, redis, counting):
    gateway = start_gateway(counting.port, gateway_workers=2)
    first, _, _ = (gateway.chat(temperature=0) for _ in range(3))
    redis.kill()
    redis.wait()
    again = gateway.chat(temperature=0)
    assert (again.cache, again.body) == ("HIT", first.body)
    time.sleep(5.1)
    assert gateway.chat(temperature=0).cache == "BYPASS", "not for long: another one may be stored"


@pytest.fixture
def small_redis(background, paths):
    """A Redis that holds no more than 4 MB, its own needs included."""
    role = Role("redis", __redis_user=USER, redis_maxmemory="4mb", **paths)
    role.write()
    socket_file = Path(paths["r1_run"]) / "redis/redis.sock"
    process = background(role.argv(), ready=socket_file.is_socket)
    process.socket = socket_file
    return process


def noise(size: int) -> str:
    """Text that does not get shorter when it is packed by much."""
    return random.Random(size).randbytes(size // 2).hex()


def test_a_full_redis_makes_room(start_gateway, small_redis, stand_in):
    gateway = start_gateway(stand_in.port)
    stand_in.says(json.dumps({"choices": [{"finish_reason": "stop", "text": noise(50_000)}]}))
    answers = [gateway.chat(f"nr {number}", temperature=0) for number in range(200)]
    assert {(answer.status, answer.cache) for answer in answers} == {(200, "MISS")}
    assert gateway.chat("nr 199", temperature=0).cache == "HIT"
    assert 0 < int(command(small_redis, "DBSIZE")) < 200, "the oldest made room"


def test_long_answers_are_packed(start_gateway, redis, stand_in):
    gateway = start_gateway(stand_in.port)
    for size, packed in ((3000, False), (300_000, True)):
        text = "two words " * (size // 10)
        answer = json.dumps({"choices": [{"finish_reason": "stop", "text": text}]})
        stand_in.says(answer)
        before = memory(redis)
        found = [gateway.chat(str(size), temperature=0) for _ in range(2)]
        assert [each.cache for each in found] == ["MISS", "HIT"]
        assert {each.body.decode() for each in found} == {answer}
        if packed:
            assert memory(redis) - before < size / 3


def memory(redis) -> int:
    return int(re.search(r"used_memory_dataset:(\d+)", command(redis, "INFO", "memory")).group(1))


DAMAGE = [
    lambda value: value[:-20],
    lambda value: value.replace(b"\n", b"\nx", 1),
    lambda value: value[:-10] + b"0123456789",
    lambda value: re.sub(rb" \d+", b" 77", value, count=1),
    lambda value: re.sub(rb" \d+", b" 999999999999", value, count=1),
    lambda value: value.partition(b"\n")[0],
    lambda value: b"",
    lambda value: b"x" * 99,
]


@pytest.mark.parametrize("damage", range(len(DAMAGE)))
def test_a_damaged_entry_is_none(start_gateway, background, free_port, stand_in, tmp_path, damage):
    port = free_port()
    argv = ["/usr/bin/redis-server", "--port", port, "--bind", "127.0.0.1", "--save", ""]
    background(argv, ready=lambda: listens(port), cwd=tmp_path)
    other, gateway = (
        start_gateway(stand_in.port, gateway_redis=f"127.0.0.1:{port}") for _ in range(2)
    )
    stand_in.says('{"choices":[{"finish_reason":"stop","text":"%s"}]}' % ("two words " * 2000))
    assert [one.chat(temperature=0).cache for one in (other, other)] == ["MISS", "HIT"]

    def ask(*words) -> bytes:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
            connection.sendall(b"*%d\r\n" % len(words) + parts)
            file = connection.makefile("rb")
            line = file.readline()
            return file.read(int(line[1:])) if line.startswith(b"$") else line

    ask_names = ["redis-cli", "-p", str(port), "KEYS", "r1:*:json"]
    (name,) = subprocess.run(ask_names, capture_output=True, check=True).stdout.split()
    value = ask(b"GET", name)
    damaged = DAMAGE[damage](value)
    assert damaged != value
    assert ask(b"SET", name, damaged) == b"+OK\r\n"
    found = [gateway.chat(temperature=0) for _ in range(2)]
    assert [(answer.status, answer.cache) for answer in found] == [(200, "MISS"), (200, "HIT")]


def test_redis_that_was_never_there(start_gateway, counting):
    gateway = start_gateway(counting.port)
    for _ in range(3):
        answer = gateway.chat(temperature=0)
        assert (answer.status, answer.cache) == (200, "BYPASS")


def test_redis_over_tcp(start_gateway, counting, background, free_port, tmp_path):
    port = free_port()
    argv = ["/usr/bin/redis-server", "--port", port, "--bind", "127.0.0.1", "--save", ""]

    def ready():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    background(argv, ready=ready, cwd=tmp_path)
    gateway = start_gateway(counting.port, gateway_redis=f"127.0.0.1:{port}")
    assert [gateway.chat(temperature=0).cache for _ in range(2)] == ["MISS", "HIT"]


def test_many_at_once(start_gateway, redis, counting):
    """Every client gets its own answer, from several workers."""
    gateway = start_gateway(counting.port, gateway_workers=2)

    def ask(number):
        prompt = f"question {number % 20}"
        answer = gateway.chat(prompt, temperature=0)
        return prompt, answer.status, json.loads(answer.body)["nr"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(400)))
    assert {status for _, status, _ in answers} == {200}
    asked = {}
    for number, (_, body) in enumerate(counting.requests, 1):
        asked.setdefault(json.loads(body)["messages"][0]["content"], set()).add(number)
    for prompt, _, number in answers:
        assert number in asked[prompt]
    assert len(counting.requests) < 100 + os.cpu_count()


def test_no_answer_of_a_burst_is_lost(start_gateway, redis, stand_in):
    """nginx drops what many requests leave to be done later, unless it may have enough timers."""
    burst, patient = 500, {"__gateway_redis_patience": 5000, "gateway_engine_requests": 1000}
    gateway = start_gateway(stand_in.port, gateway_workers=1, **patient)
    all_asked = threading.Event()
    stand_in.says(COMPLETE % 1)
    stand_in.pieces.insert(0, all_asked)
    with ThreadPoolExecutor(burst) as pool:
        asks = [pool.submit(gateway.chat, str(i), temperature=0) for i in range(burst)]
        deadline = time.monotonic() + 60
        while len(stand_in.requests) < burst:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pause = ("CLIENT", "PAUSE", "2000", "WRITE")  # milliseconds
        words = ("--user", "pauses", "--pass", "any", "--no-auth-warning", *pause)
        assert command(redis, *words) == "OK"
        all_asked.set()
        assert {ask.result().cache for ask in asks} == {"MISS"}
    time.sleep(2)
    other = start_gateway(stand_in.port)
    assert {other.chat(str(i), temperature=0).cache for i in range(burst)} == {"HIT"}
