"""Figures on /metrics, read by Prometheus' own parser, and the line in the log for each request."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_parts import KEYS, PLAN, reload, until, worker_pids
from prometheus_client.parser import text_string_to_metric_families

CHAT = {"model": "tiny-r1", "messages": [{"role": "user", "content": "x"}], "max_tokens": 50}


def figures(gateway) -> dict:
    """{(name, labels as a sorted tuple): value}; the parser refuses what Prometheus would."""
    answer = gateway.ask("/metrics", key=None)
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"
    families = list(text_string_to_metric_families(answer.body.decode()))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation and family.type != "unknown" for family in families)
    samples = [sample for family in families for sample in family.samples]
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples
    }
    assert len(found) == len(samples), "one line for each name and its labels"
    return found


def total(found: dict, name: str, **labels) -> float:
    return sum(
        value
        for (known, its), value in found.items()
        if known == name and labels.items() <= dict(its).items()
    )


def settled(gateway, name: str, value: float, **labels) -> dict:
    """A request is counted right after its answer."""
    until(lambda: total(figures(gateway), name, **labels) == value)
    return figures(gateway)


def test_requests_and_tokens_of_a_real_engine(gateway):
    usage = gateway.chat(temperature=0).json()["usage"]
    gateway.chat(temperature=0)
    gateway.chat(temperature=0, key=KEYS[1]["key"])
    gateway.ask("/v1/models", key="wrong")
    found = settled(gateway, "gateway_requests_total", 1, status="401")
    count = "gateway_requests_total"
    own = {"client": "default", "model": "tiny-r1", "route": "/v1/chat/completions"}
    assert total(found, count, **own, status="200", cache="MISS") == 1
    assert total(found, count, **own, status="200", cache="HIT") == 1
    assert total(found, count, client="second", cache="MISS") == 1
    assert total(found, count, client="-", model="-", status="401", cache="-") == 1
    tokens = {
        kind: total(found, "gateway_tokens_total", client="default", model="tiny-r1", kind=kind)
        for kind in ("prompt", "completion")
    }
    assert tokens == {
        "prompt": usage["prompt_tokens"],
        "completion": usage["completion_tokens"],
    }, "a hit costs none"
    assert total(found, "gateway_engine_seconds_count") == 2
    assert total(found, "gateway_engine_seconds_bucket", le="600") == 2
    assert total(found, "gateway_engine_seconds_bucket", le="+Inf") == 2
    assert 0 < total(found, "gateway_engine_seconds_sum") < 60
    assert total(found, "gateway_time_to_first_token_seconds_count") == 0, "none was a stream"


def test_times_of_a_stream(start_gateway, stand_in):
    def event(delta, finish=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()

    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    usage["completion_tokens_details"] = {"reasoning_tokens": 2}
    last = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode()
    stand_in.streams(
        event({"reasoning_content": "a"}), 0.3, event({"reasoning_content": "b"}), 0.3,
        event({"content": "c"}), 0.3, event({}, "stop"), last, b"data: [DONE]\n\n",
    )  # fmt: skip
    gateway = start_gateway(stand_in.port)
    assert gateway.ask("/v1/chat/completions", CHAT | {"stream": True}).status == 200
    found = settled(gateway, "gateway_engine_seconds_count", 1)
    first, said, each, whole = (
        total(found, f"gateway_{name}_seconds_sum")
        for name in (
            "time_to_first_token",
            "time_to_answer_token",
            "time_per_output_token",
            "engine",
        )
    )
    assert 0 <= first <= said <= whole
    assert said > 0.59, "which the engine waited before its answer"
    assert whole > 0.89
    assert each == pytest.approx((whole - first) / 2, abs=0.05)
    assert total(found, "gateway_tokens_total", kind="reasoning") == 2
    (line,) = [line for line in gateway.log() if line["path"] == "/v1/chat/completions"]
    assert (line["model"], line["prompt_tokens"], line["completion_tokens"]) == ("tiny-r1", 7, 3)
    assert line["first_token_seconds"] == pytest.approx(first, abs=0.002)


def test_names_that_clients_make_up_are_no_labels(start_gateway, stand_in):
    stand_in.says('{"choices":[]}')
    gateway = start_gateway(stand_in.port)
    for number in range(300):
        gateway.ask("/v1/chat/completions", CHAT | {"model": f'm{number}"\n'})
        gateway.ask(f"/v1/models/m{number}")
        gateway.ask(f"/v1/x{number}", key=f"k{number}")
    found = settled(gateway, "gateway_requests_total", 300, model="other")
    assert len([name for name, _ in found if name == "gateway_requests_total"]) < 12
    assert total(found, "gateway_metrics_lost_total") == 0


def test_ten_thousand_names_are_one_label(start_gateway, stand_in):
    stand_in.says('{"choices":[]}')
    gateway = start_gateway(stand_in.port)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(
            lambda i: gateway.ask("/v1/chat/completions", CHAT | {"model": f"made-up-{i}"}).status,
            range(10_000),
        )
        assert set(answers) == {200}
    found = settled(gateway, "gateway_requests_total", 10_000, model="other")
    assert len(found) < 90
    assert total(found, "gateway_metrics_lost_total") == 0
    log = gateway.process.log.read_text()
    assert "made-up" not in log and "made-up" not in str(found)


def test_names_that_the_operator_gives_are_labels(start_gateway, stand_in):
    stand_in.says('{"choices":[]}')
    odd = 'a/"b"\\'
    gateway = start_gateway(
        stand_in.port, plan_result=PLAN | {"served_model_name": odd},
        gateway_limits={"models": [odd, "a"]}, gateway_clients={"second": {"models": ["b"]}},
    )  # fmt: skip
    for model in (odd, "a", "b", "c"):
        gateway.ask("/v1/chat/completions", CHAT | {"model": model})
    as_php = json.dumps(CHAT | {"model": odd}).replace("a/", r"a\/")
    gateway.ask("/v1/chat/completions", as_php.encode())
    found = settled(gateway, "gateway_requests_total", 5, client="default")
    for model, status, count in ((odd, 200, 2), ("a", 200, 1), ("b", 404, 1), ("other", 404, 1)):
        own = {"client": "default", "model": model, "status": str(status)}
        assert total(found, "gateway_requests_total", **own) == count, model


@pytest.mark.parametrize("odd", ["-5", "1e999", "null", '"7"', "{}", "1e300"])
def test_a_count_that_is_none_spoils_no_sum(start_gateway, stand_in, odd):
    gateway = start_gateway(stand_in.port)
    body = '{"choices":[{"message":{"content":"4"}}],"usage":'
    body += '{"prompt_tokens":%s,"completion_tokens":%s,"completion_tokens_details":%s}}'
    for told in ((odd, odd, f'{{"reasoning_tokens":{odd}}}'), (3, 3, '{"reasoning_tokens":3}'),
                 (1, 1, odd)):  # fmt: skip
        stand_in.says(body % told)
        answer = gateway.ask("/v1/chat/completions", CHAT)
        assert answer.body.decode() == body % told, "the client is told what the engine told"
    found = settled(gateway, "gateway_requests_total", 3, status="200", client="default")
    kinds = ("prompt", "completion", "reasoning")
    assert [total(found, "gateway_tokens_total", kind=kind) for kind in kinds] == [4, 4, 3]


def test_a_stream_that_the_client_leaves(start_gateway, stand_in):
    """What came of it counts; what takes until its end is not known."""
    event = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    stand_in.streams(event, event, threading.Event())
    gateway = start_gateway(stand_in.port)
    connection, response = gateway.open("/v1/chat/completions", CHAT | {"stream": True})
    for _ in range(3):
        response.readline()
    response.close()
    connection.close()
    found = settled(gateway, "gateway_requests_total", 1, client="default")
    assert total(found, "gateway_tokens_total", model="tiny-r1", kind="completion") == 2
    assert total(found, "gateway_tokens_total", kind="prompt") == 0
    assert total(found, "gateway_time_to_first_token_seconds_count") == 1
    assert total(found, "gateway_time_per_output_token_seconds_count") == 0


def test_what_goes_on_now(start_gateway, redis, stand_in):
    may_end = threading.Event()
    stand_in.streams(b"data: {}\n\n", may_end)
    gateway = start_gateway(stand_in.port, gateway_engine_requests=1)
    first, _ = gateway.open("/v1/chat/completions", CHAT | {"stream": True})
    second, _ = gateway.open("/v1/chat/completions", CHAT | {"stream": True}, read=False)
    found = settled(gateway, "gateway_requests_waiting", 1)
    assert total(found, "gateway_requests_running") == 1
    assert total(found, "gateway_connections") >= 3
    assert total(found, "gateway_redis_up") == 1
    redis.kill()
    redis.wait()
    assert gateway.chat(temperature=0, key="wrong").status == 401
    third, _ = gateway.open(
        "/v1/chat/completions", CHAT | {"stream": True, "temperature": 0}, read=False
    )
    settled(gateway, "gateway_redis_up", 0)
    may_end.set()
    for connection in (first, second, third):
        connection.close()
    settled(gateway, "gateway_requests_running", 0)
    settled(gateway, "gateway_requests_waiting", 0)


def test_upstreams_up_and_down(start_gateway, stand_in, free_port):
    stand_in.says("{}")
    gateway = start_gateway(stand_in.port)
    settled(gateway, "gateway_upstream_up", 1, upstream="engine")
    gateway = start_gateway(free_port())
    assert ("gateway_upstream_up", (("upstream", "engine"),)) in figures(gateway)
    assert total(figures(gateway), "gateway_upstream_up") == 0


def test_each_of_several_engines(start_gateway, stand_in, free_port):
    stand_in.health = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    may_end = threading.Event()
    stand_in.streams(b'data: {"choices":[]}\n\n', may_end)
    down = {"name": "b", "address": "127.0.0.1", "port": free_port(), "health": "/health"}
    gateway = start_gateway(stand_in.port, gateway_upstreams=[down])
    connection, response = gateway.open("/v1/chat/completions", CHAT | {"stream": True})
    response.readline()
    found = figures(gateway)
    for what in ("up", "running"):
        assert total(found, f"gateway_upstream_{what}", upstream="engine") == 1
        assert total(found, f"gateway_upstream_{what}", upstream="b") == 0
    may_end.set()
    connection.close()


def test_a_figure_that_fails_leaves_the_others(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port)
    broken = 'require("gateway.queue").depth = function() error("oh") end '
    reload(gateway, "init_worker_by_lua_block {", "init_worker_by_lua_block { " + broken)
    found = figures(gateway)
    assert ("gateway_requests_waiting", ()) not in found
    assert ("gateway_requests_running", ()) in found and ("gateway_redis_up", ()) in found
    assert "gateway_requests_waiting" in gateway.process.log.read_text()


def test_workers_and_reloads_count_together(start_gateway, stand_in):
    stand_in.says('{"choices":[]}')
    gateway = start_gateway(stand_in.port, gateway_workers=2)
    for _ in range(40):
        gateway.ask("/v1/chat/completions", CHAT)
    settled(gateway, "gateway_requests_total", 40, status="200", client="default")
    reload(gateway)
    for _ in range(10):
        gateway.ask("/v1/chat/completions", CHAT)
    settled(gateway, "gateway_requests_total", 50, status="200", client="default")
    assert len(worker_pids(gateway)) == 2


def test_a_full_memory_keeps_what_it_has_and_says_so(start_gateway, stand_in):
    """Labels are bounded, so use does not fill this memory: here it is far too small."""
    stand_in.says('{"data":[]}')
    clients = [{"name": f"client-{number}", "key": f"key-{number}"} for number in range(200)]
    gateway = start_gateway(stand_in.port, secrets_api_keys=clients)
    reload(gateway, "gateway_metrics 1m", "gateway_metrics 32k")
    for client in clients:
        assert gateway.ask("/v1/models", key=client["key"]).status == 200
    until(lambda: total(figures(gateway), "gateway_metrics_lost_total") > 0)
    found = figures(gateway)
    assert total(found, "gateway_requests_total", client="client-0") == 1
    assert total(found, "gateway_requests_total", client="client-199") == 0
