"""The line before the engine: bounded, fair, and right whoever leaves or dies."""

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from gateway_parts import KEYS, reload, until, worker_pids

CHAT = {"model": "tiny-r1", "messages": [{"role": "user", "content": "What is 2+2?"}]}
FIRST, SECOND = (key["key"] for key in KEYS)
ANSWER = b'{"choices":[{"message":{"content":"4"},"finish_reason":"stop"}],"usage":{}}'


class Slow:
    """An engine that holds each request until the test lets one go, and knows who asked what."""

    def __init__(self, stand_in):
        self.stand_in = stand_in
        self.lock = threading.Lock()
        self.running, self.most, self.order = 0, 0, []
        self.tickets = threading.Semaphore(0)
        stand_in.answer = self.answer

    def answer(self, connection):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            let_go = self.held(connection)
        finally:
            # Before it answers: who reads the answer may send the next request at once.
            with self.lock:
                self.running -= 1
        if let_go:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            with contextlib.suppress(OSError):
                connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER)

    def held(self, connection) -> bool:
        """Whether the test let it go; else its client has left."""
        connection.settimeout(0.02)
        while not self.tickets.acquire(timeout=0.02):
            try:
                if connection.recv(1) == b"":
                    return False
            except TimeoutError:
                continue
            except OSError:
                return False
        return True

    def users(self) -> list[str]:
        """Who came to the engine, in order."""
        return [json.loads(body)["user"] for _, body in list(self.stand_in.requests)]

    def let_go(self, count=1):
        for _ in range(count):
            self.tickets.release()


@pytest.fixture
def slow(stand_in):
    engine = Slow(stand_in)
    yield engine
    engine.let_go(1000)


@pytest.fixture(params=[1, 2])
def workers(request) -> int:
    return request.param


COUNTS = """location = /counts { content_by_lua_block {
    local queue = require "gateway.queue"
    ngx.print("[", queue.depth(), ",", queue.running(), "]") } }
"""


def waiting(gateway) -> int:
    return gateway.ask("/counts", key=None).json()[0]


@pytest.fixture
def start_line(start_gateway, slow):
    """start_line(**settings) returns a gateway before the slow engine that tells its counts, and
    bears with a slow Redis, as this machine may be."""

    def start(**settings):
        gateway = start_gateway(slow.stand_in.port, **settings)
        reload(gateway, "(?=location = /healthz)", COUNTS)
        reload(gateway, r'_timeout": 50\b', '_timeout": 5000')
        return gateway

    return start


@pytest.fixture
def ask():
    """ask(gateway, user, key) sends a request and does not wait; its connection."""
    opened = []

    def send(gateway, user, key=FIRST, **more):
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        body = json.dumps(CHAT | {"user": user} | more)
        connection.request("POST", "/v1/chat/completions", body, headers)
        opened.append(connection)
        return connection

    yield send
    for connection in opened:
        connection.close()


def fill(slow, gateway, ask, count, at_engine):
    """So many requests of the first client, one after the other; then so many are at the engine."""
    connections = []
    for number in range(count):
        connections.append(ask(gateway, f"first-{number}"))
        if number < at_engine:
            until(lambda number=number: len(slow.users()) == number + 1)
        else:
            until(lambda number=number: waiting(gateway) == number + 1 - at_engine)
    return connections


def test_no_more_at_the_engine_than_it_takes(start_line, slow, workers):
    gateway = start_line(gateway_engine_requests=3, gateway_workers=workers)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(gateway.chat, user=str(number)) for number in range(20)]
        until(lambda: waiting(gateway) == 17)
        until(lambda: slow.running == 3)
        assert gateway.ask("/counts", key=None).json() == [17, 3]
        slow.let_go(20)
        assert [answer.result().status for answer in answers] == [200] * 20
    assert slow.most == 3


def test_a_real_engine_that_takes_one(start_gateway, llama, workers):
    gateway = start_gateway(llama, gateway_engine_requests=1, gateway_workers=workers)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=FIRST, max_retries=0)

    def one(number):
        if number % 2:
            return client.chat.completions.create(**CHAT, max_tokens=4).usage.completion_tokens
        chunks = list(client.chat.completions.create(**CHAT, max_tokens=4, stream=True))
        return len(chunks)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(16)))


def test_no_limit_no_line(start_gateway, slow, ask):
    gateway = start_gateway(slow.stand_in.port, gateway_engine_requests=0, gateway_queue=1)
    for number in range(20):
        ask(gateway, str(number))
    until(lambda: slow.running == 20)


def test_auto_is_what_the_plan_says(start_gateway, slow, ask):
    gateway = start_gateway(slow.stand_in.port)
    settings = gateway.role.variable("__gateway_lua_settings")
    assert settings["queue"] == {"requests": 256, "waiting": 1024}
    plan = gateway.role.variables["plan_result"] | {"max_num_seqs": 2}
    gateway = start_gateway(slow.stand_in.port, plan_result=plan)
    settings = gateway.role.variable("__gateway_lua_settings")
    assert settings["queue"] == {"requests": 2, "waiting": 64}


def test_first_come_first_served_within_a_client(start_line, slow, ask, workers):
    gateway = start_line(gateway_engine_requests=1, gateway_workers=workers)
    fill(slow, gateway, ask, 8, at_engine=1)
    for number in range(1, 8):
        slow.let_go()
        until(lambda number=number: len(slow.users()) == number + 1)
    assert slow.users() == [f"first-{number}" for number in range(8)]


def test_a_client_with_many_waiting_does_not_hold_back_another(start_line, slow, ask, workers):
    gateway = start_line(
        gateway_engine_requests=2,
        gateway_queue=200,
        gateway_workers=workers,
    )
    fill(slow, gateway, ask, 2, at_engine=2)
    for number in range(2, 102):
        ask(gateway, f"first-{number}")
    until(lambda: waiting(gateway) == 100)
    ask(gateway, "second", SECOND)
    until(lambda: waiting(gateway) == 101)
    slow.let_go()
    until(lambda: len(slow.users()) == 3)
    assert slow.users()[2] == "second"


def test_clients_take_turns(start_line, slow, ask, workers):
    gateway = start_line(gateway_engine_requests=1, gateway_workers=workers)
    fill(slow, gateway, ask, 5, at_engine=1)
    for number in range(4):
        ask(gateway, f"second-{number}", SECOND)
    until(lambda: waiting(gateway) == 8)
    for count in range(2, 10):
        slow.let_go()
        until(lambda count=count: len(slow.users()) == count)
    assert [user.split("-")[0] for user in slow.users()] == ["first"] + ["second", "first"] * 4


def test_a_full_line(start_line, slow, ask, workers):
    gateway = start_line(
        gateway_engine_requests=1,
        gateway_queue=3,
        gateway_workers=workers,
    )
    fill(slow, gateway, ask, 4, at_engine=1)
    refused = gateway.chat(user="too many")
    assert (refused.status, refused.error["code"]) == (503, "queue_full")
    assert refused.error["type"] == "server_error"
    assert "Too many requests wait for the model: 3." in refused.error["message"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    ask(gateway, "second", SECOND)  # but its first one finds a place
    until(lambda: waiting(gateway) == 4)
    assert gateway.chat(user="second too", key=SECOND).status == 503
    slow.let_go()
    until(lambda: len(slow.users()) == 2)
    assert slow.users()[1] == "second"


def test_openais_client_tries_again(start_line, slow, ask):
    gateway = start_line(gateway_engine_requests=1, gateway_queue=1)
    fill(slow, gateway, ask, 2, at_engine=1)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=FIRST, max_retries=0)
    with pytest.raises(openai.InternalServerError, match="wait for the model"):
        client.chat.completions.create(**CHAT, user="x")
    slow.let_go(3)
    again = client.with_options(max_retries=3).chat.completions.create(**CHAT, user="x")
    assert again.choices[0].message.content == "4"


def test_who_waits_too_long_is_told_so(start_line, slow, ask):
    gateway = start_line(gateway_engine_requests=1, gateway_read_timeout=2)
    ask(gateway, "first")
    until(lambda: len(slow.users()) == 1)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda n: gateway.chat(user=str(n)), range(3)))
    codes = {answer.error["code"] for answer in answers}
    assert {answer.status for answer in answers} <= {503, 504}
    assert "queue_timeout" in codes
    told = next(answer for answer in answers if answer.status == 503)
    assert "waited 2 seconds" in told.error["message"]
    assert told.headers["Retry-After"]


def test_who_leaves_the_line_is_not_asked_for(start_line, slow, ask, workers):
    gateway = start_line(gateway_engine_requests=1, gateway_workers=workers)
    connections = fill(slow, gateway, ask, 4, at_engine=1)
    connections[1].close()
    connections[3].close()
    until(lambda: [line["status"] for line in gateway.log()].count(499) == 2)
    ask(gateway, "first-4")
    for count in (2, 3):
        slow.let_go()
        until(lambda count=count: len(slow.users()) == count)
    assert slow.users() == ["first-0", "first-2", "first-4"]


def test_who_leaves_the_engine_makes_room(start_line, slow, ask, workers):
    gateway = start_line(gateway_engine_requests=1, gateway_workers=workers)
    connections = fill(slow, gateway, ask, 2, at_engine=1)
    connections[0].close()
    until(lambda: slow.users() == ["first-0", "first-1"])


def test_hits_and_followers_do_not_wait(start_line, redis, slow, ask):
    gateway = start_line(gateway_engine_requests=1, gateway_queue=2)
    slow.let_go()
    same = {"temperature": 0, "max_tokens": 5}
    assert gateway.chat(user="a", **same).cache == "MISS"
    ask(gateway, "blocks")
    until(lambda: len(slow.users()) == 2)
    assert gateway.chat(user="a", **same).cache == "HIT"
    # Ten identical questions take one place in line, or most of them would be refused.
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(gateway.chat, user="b", **same) for _ in range(10)]
        until(lambda: waiting(gateway) == 1)
        assert not any(answer.done() for answer in answers)
        slow.let_go(2)
        answers = [answer.result() for answer in answers]
    assert {answer.status for answer in answers} == {200}
    assert sorted(answer.cache for answer in answers) == ["HIT"] * 9 + ["MISS"]
    assert slow.users() == ["a", "blocks", "b"]


def test_a_leader_waits_longer_than_its_lock_lasts(start_line, redis, slow, ask):
    gateway = start_line(gateway_engine_requests=1)
    ask(gateway, "blocks")
    until(lambda: len(slow.users()) == 1)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(gateway.chat, user="b", temperature=0) for _ in range(4)]
        time.sleep(7)
        slow.let_go(2)
        assert sorted(a.result().cache for a in answers) == ["HIT"] * 3 + ["MISS"]
    assert slow.users() == ["blocks", "b"]


def test_when_a_leader_leaves_the_line_a_follower_takes_its_place(start_line, redis, slow, ask):
    gateway = start_line(gateway_engine_requests=1)
    ask(gateway, "blocks")
    until(lambda: len(slow.users()) == 1)
    leader = ask(gateway, "b", temperature=0)
    until(lambda: waiting(gateway) == 1)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(gateway.chat, user="b", temperature=0) for _ in range(4)]
        time.sleep(0.5)
        leader.close()
        until(lambda: any(line["status"] == 499 for line in gateway.log()))
        until(lambda: waiting(gateway) == 1)
        slow.let_go(2)
        assert sorted(a.result().cache for a in answers) == ["HIT"] * 3 + ["MISS"]
    assert slow.users() == ["blocks", "b"]


def test_a_killed_worker_takes_its_places_with_it(start_line, slow, ask, workers):
    gateway = start_line(
        gateway_engine_requests=2,
        gateway_queue=3,
        gateway_workers=workers,
    )
    fill(slow, gateway, ask, 5, at_engine=2)
    before = worker_pids(gateway)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(worker_pids(gateway) - before) == workers)
    until(lambda: slow.running == 0)  # the engine sees them leave
    came = len(slow.users())
    for number in range(5):
        ask(gateway, f"after-{number}")
    until(lambda: len(slow.users()) == came + 2)
    until(lambda: waiting(gateway) == 3)
    assert gateway.chat(user="too many").status == 503
    slow.let_go(5)
    until(lambda: len(slow.users()) == came + 5)
    assert slow.most <= 2 * 2


def test_one_killed_worker_of_two(start_line, slow, ask):
    gateway = start_line(gateway_engine_requests=2, gateway_workers=2)
    fill(slow, gateway, ask, 10, at_engine=2)
    before = worker_pids(gateway)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(worker_pids(gateway)) == 2 and worker_pids(gateway) != before)
    slow.let_go(100)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: gateway.chat(user=f"after-{n}"), range(16)))
    assert {answer.status for answer in answers} == {200}
    assert slow.most <= 4


def test_workers_killed_again_and_again_leave_no_count_behind(start_line, slow, ask):
    gateway = start_line(
        gateway_engine_requests=2,
        gateway_queue=8,
        gateway_workers=2,
        gateway_limits={"concurrent_streams": 6},
    )
    stop = threading.Event()

    def load(key):
        while not stop.is_set():
            with contextlib.suppress(OSError):  # its worker was killed
                gateway.chat(key=key)

    threads = [threading.Thread(target=load, args=(key,)) for key in (FIRST, SECOND) * 4]
    for thread in threads:
        thread.start()
    for _ in range(8):
        slow.let_go(20)
        time.sleep(0.1)
        before = worker_pids(gateway)
        os.kill(min(before), signal.SIGKILL)
        until(lambda before=before: len(worker_pids(gateway) - before) == 1)
    stop.set()
    slow.let_go(1000)
    for thread in threads:
        thread.join()
    while slow.tickets.acquire(blocking=False):
        pass
    until(lambda: slow.running == 0)
    came = len(slow.stand_in.requests)
    for number in range(6):
        ask(gateway, f"after-{number}")
    until(lambda: len(slow.stand_in.requests) == came + 2)
    until(lambda: waiting(gateway) == 4)
    assert gateway.chat().status == 429  # six run, two of them at the engine
    assert len(slow.stand_in.requests) == came + 2
    slow.let_go(6)
    until(lambda: len(slow.stand_in.requests) == came + 6)


def test_a_reload_cuts_nobody_in_line(start_line, slow, workers):
    gateway = start_line(gateway_engine_requests=2, gateway_workers=workers)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(gateway.chat, user=f"old-{n}") for n in range(8)]
        until(lambda: slow.running == 2 and waiting(gateway) == 6)
        before = worker_pids(gateway)
        gateway.process.send_signal(signal.SIGHUP)
        until(lambda: len(worker_pids(gateway) - before) == workers)
        time.sleep(0.3)
        answers += [pool.submit(gateway.chat, user=f"new-{n}") for n in range(8)]
        until(lambda: waiting(gateway) == 14)  # over both generations
        assert slow.running == 2
        slow.let_go(16)
        assert [answer.result().status for answer in answers] == [200] * 16
    assert slow.most == 2
    # Those of the old workers came first, they hold the lower numbers.
    assert {user.split("-")[0] for user in slow.users()[:8]} == {"old"}
    until(lambda: not before & worker_pids(gateway))
