"""Each promise broken by the stand-in fails its own check, with a text that helps."""

import socket
import ssl
import threading

import pytest


def failed(checks):
    return [name for name, check in checks.items() if not check["passed"]]


def test_all_pass_when_nothing_is_wrong(ask):
    checks = ask()
    assert failed(checks) == [], checks
    assert list(checks) == [
        "health",
        "models",
        "no_key",
        "wrong_key",
        "completion",
        "reasoning",
        "stream",
        "cache",
        "error_shape",
        "admin_closed",
        "ports_closed",
    ]


def test_a_second_run_does_not_meet_the_first_ones_cache(ask):
    assert failed(ask()) == failed(ask()) == []


@pytest.mark.parametrize(
    ("faults", "names", "texts"),
    [
        ({"model": "other"}, ["models"], ["serves other, not tiny-r1", "deploy again"]),
        ({"open": 1}, ["no_key", "wrong_key"], ["/v1/models: 200", "lets anyone in"]),
        (
            {"plain_errors": 1},
            ["no_key", "wrong_key", "error_shape", "admin_closed"],
            ["not an OpenAI-shaped error", "deepseek-r1 logs gateway"],
        ),
        (
            {"engine_down": 1},
            ["completion", "reasoning", "stream", "cache"],
            ["502", "the engine does not answer", "deepseek-r1 logs engine"],
        ),
        (
            {"content": ""},
            ["completion"],
            ["finish_reason stop, content ''", "chat template"],
        ),
        (
            {"thought": ""},
            ["reasoning", "stream"],
            ["no reasoning_content", "reasoning parser", "deepseek-r1 logs engine"],
        ),
        (
            {"content": "4<｜end▁of▁sentence｜>"},
            ["reasoning", "stream"],
            ["content holds '<｜end▁of▁sentence｜>'", "chat template"],
        ),
        (
            {"content": "Let me see.</think>4", "thought": ""},
            ["reasoning", "stream"],
            ["content holds '</think>'"],
        ),
        (
            {"burst": 1000},
            ["stream"],
            ["of them apart", "buffers the stream", "proxy"],
        ),
        (
            {"burst": 16, "pause": 0.03},
            ["stream"],
            ["of them apart, the first after 0.", "buffers the stream"],
        ),
        ({"cut": 1}, ["stream"], ["no [DONE]", "cut the stream"]),
        ({"text_first": 1}, ["stream"], ["content came before the end"]),
        (
            {"never_hits": 1},
            ["cache"],
            ["X-Cache MISS", "then MISS", "cannot reach Redis", "deepseek-r1 logs redis"],
        ),
        ({"other_bytes": 1}, ["cache"], ["other bytes"]),
        ({"admin": 1}, ["admin_closed"], ["POST", "/api/pull: 404", "admin verbs"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_fault_fails_its_check(ask, stand_in, faults, names, texts):
    stand_in.faults.update(faults)
    checks = ask()
    assert failed(checks) == names, checks
    detail = checks[names[0]]["detail"]
    assert stand_in.url in detail
    assert "Likely cause: " in detail
    assert "Next: " in detail
    for text in texts:
        assert text in detail


def test_it_waits_for_the_engine(ask, stand_in):
    stand_in.faults["loading"] = 3
    checks = ask(ready_timeout=10)
    assert failed(checks) == []
    assert "ready after" in checks["health"]["detail"]


def test_it_stops_waiting_and_says_why(ask, stand_in):
    stand_in.faults["loading"] = 10**6
    checks = ask(ready_timeout=1)
    detail = checks["health"]["detail"]
    assert "503" in detail
    assert "the engine is loading the model" in detail
    assert "verify_ready_timeout" in detail
    assert checks["health"]["seconds"] < 3


def test_an_answer_cut_while_thinking_passes_and_says_so(ask, stand_in):
    stand_in.faults.update(finish="length", content="")
    checks = ask()
    assert checks["completion"]["passed"]
    assert "cut at verify_max_tokens=512 while thinking" in checks["completion"]["detail"]


def test_a_model_without_reasoning_is_not_asked_for_it(ask, stand_in):
    stand_in.faults["thought"] = ""
    assert failed(ask(reasoning=False)) == []


@pytest.mark.parametrize("question", ["refused", "name", "tls"])
def test_a_door_that_cannot_be_reached(ask, stand_in, free_port, question):
    url, texts = {
        "refused": (
            f"http://127.0.0.1:{free_port()}",
            ["connection refused", "deepseek-r1 status", "deepseek-r1 logs gateway"],
        ),
        "name": ("http://no-such-host.invalid", ["cannot be resolved", "verify_host"]),
        "tls": (stand_in.url.replace("http", "https"), ["TLS handshake failed", "gateway_tls"]),
    }[question]
    checks = ask(url=url, ready_timeout=1)
    for text in [f"GET {url}/healthz", *texts]:
        assert text in checks["health"]["detail"]
    assert "not tried" in checks["cache"]["detail"]
    assert "see the check health" in checks["cache"]["detail"]


def test_a_door_that_never_answers(ask):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        checks = ask(url=f"http://127.0.0.1:{port}", ready_timeout=0)
    assert "no answer within" in checks["health"]["detail"]
    assert "firewall" in checks["health"]["detail"]


def test_tls_with_and_without_its_authority(ask, stand_in, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    stand_in.socket = context.wrap_socket(stand_in.socket, server_side=True)
    url = stand_in.url.replace("http", "https")
    assert failed(ask(url=url, ca=certificate[0].read_text())) == []
    detail = ask(url=url)["health"]["detail"]
    assert "TLS certificate is refused (self-signed certificate)" in detail
    other = ask(url=url.replace("127.0.0.1", "localhost"), ca=certificate[0].read_text())
    assert "Hostname mismatch" in other["health"]["detail"]
    assert "verify_host" in other["health"]["detail"]


def test_an_open_port_is_found_and_a_loopback_one_is_not(ask, verify):
    addresses = verify.own_addresses()
    if not addresses:
        pytest.skip("this machine has loopback addresses only")
    with (
        socket.create_server(("0.0.0.0", 0)) as wide,
        socket.create_server(("127.0.0.1", 0)) as narrow,
    ):
        ports = [server.getsockname()[1] for server in (wide, narrow)]
        checks = ask(closed_ports=ports)
    detail = checks["ports_closed"]["detail"]
    assert failed(checks) == ["ports_closed"]
    assert f":{ports[0]} are accepted" in detail
    assert str(ports[1]) not in detail
    assert f"ss -ltnp 'sport = :{ports[0]}'" in detail
    assert "verify_closed_ports" in detail


def test_closed_ports_are_named(ask, verify, free_port):
    port = free_port()
    detail = ask(closed_ports=[port])["ports_closed"]["detail"]
    for text in verify.own_addresses() and [*verify.own_addresses(), str(port)]:
        assert text in detail


def test_no_detail_ever_shows_the_key(ask, stand_in):
    stand_in.faults["content"] = "The key is " + stand_in.key
    details = [check["detail"] for check in ask().values()]
    assert any("The key is (the key)" in detail for detail in details)
    assert not any(stand_in.key in detail for detail in details)


def test_threads_are_gone(ask):
    before = threading.active_count()
    ask(closed_ports=[1, 2, 3])
    assert threading.active_count() <= before + 1


GIB = 1024**3


@pytest.mark.parametrize(
    ("measured", "gpu", "passed", "text"),
    [
        ({"processes": {"1": {}}, "bytes": GIB}, False, True, "1.00 GiB of main memory"),
        ({"processes": {"1": {}}, "bytes": 3 * GIB}, False, False, "the plan allows 2.00 GiB"),
        ({"processes": {}, "bytes": 0}, False, False, "no process of user r1-engine"),
        ({"failed": True, "msg": "no python"}, False, False, "no python"),
        ({"processes": {"1": {}}, "bytes": 1, "gpu_bytes": None}, True, False, "runs on the CPU"),
        ({"processes": {"1": {}}, "bytes": 1, "gpu_bytes": GIB}, True, True, "the fullest GPU"),
    ],
)
def test_memory_against_the_plan(action, measured, gpu, passed, text):
    memory = {"user": "r1-engine", "gpu": gpu, "planned_bytes": 2 * GIB}
    result, detail = action.judge_memory(measured, memory)
    assert result is passed
    assert text in detail
    assert passed or measured.get("failed") or "deepseek-r1 logs engine" in detail
