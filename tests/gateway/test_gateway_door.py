"""Who gets in, what is answered to those who do not, and what is out of reach."""

import json
import socket

import pytest
from gateway_parts import ENGINE_KEY, KEYS

CHAT = {"model": "tiny-r1", "messages": [{"role": "user", "content": "What is 2+2?"}]}


def test_a_key_opens_the_door(gateway):
    answer = gateway.ask("/v1/models")
    assert answer.status == 200
    assert answer.json()["data"][0]["id"] == "tiny-r1"
    assert len(answer.headers["X-Request-Id"]) == 32
    assert gateway.ask("/v1/models", method="HEAD").body == b""


def test_without_a_known_key_nobody_gets_in(gateway):
    for key in (None, "wrong", "key-of-default x", "key-of-defaul", ENGINE_KEY):
        answer = gateway.ask("/v1/chat/completions", CHAT, key=key)
        assert answer.status == 401
        assert answer.error["code"] == "invalid_api_key"
        assert answer.error["type"] == "invalid_request_error"
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_key_is_taken_from_the_header_only(gateway):
    assert gateway.ask("/v1/models?api_key=key-of-default", key=None).status == 401
    assert gateway.ask("/v1/models", key=None, X_Api_Key=KEYS[0]["key"]).status == 401
    basic = gateway.ask("/v1/models", key=None, Authorization=f"Basic {KEYS[0]['key']}")
    assert basic.status == 401


OLLAMA = ["tags", "pull", "delete", "create", "chat", "version"]
LLAMACPP = ["props", "slots", "slots/0?action=erase", "completion", "health", "lora-adapters"]
OTHERS = ["/v1/load_lora_adapter", "/v1/responses/resp_1", "/v1/chat/completions/x"]
AROUND = ["/v1/../api/tags", "/v1/%2e%2e/props", "/v1/..%2fprops", "//props", "/metrics/", "/v1"]
AROUND += ["/v1/models/../../props", "/v1/models/..%2f..%2fprops", "/v1/models/%3f", "/"]
PATHS = [f"/api/{verb}" for verb in OLLAMA] + [f"/{verb}" for verb in LLAMACPP] + OTHERS + AROUND


def test_everything_but_the_openai_routes_is_404(gateway):
    for path in PATHS:
        for body in (None, {"name": "tiny-r1"}):
            answer = gateway.ask(path, body)
            assert (path, answer.status) == (path, 404)
            assert answer.error["code"] == "not_found"


def test_wrong_method(gateway):
    answer = gateway.ask("/v1/chat/completions")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert answer.error["code"] == "method_not_allowed"
    assert gateway.ask("/v1/models", method="DELETE").status == 405
    assert b" 405 " in gateway.raw(b"TRACE /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")


def test_body_too_large(start_gateway, llama):
    gateway = start_gateway(llama, gateway_max_body="1k")
    answer = gateway.ask("/v1/chat/completions", CHAT | {"user": "x" * 2000})
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"
    chunked = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Authorization: Bearer key-of-default\r\n\r\n7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n"
    )
    head, _, body = gateway.raw(chunked).partition(b"\r\n\r\n")
    assert b" 413 " in head
    assert json.loads(body)["error"]["code"] == "request_too_large"


NOT_HTTP = [
    (b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"),
    (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
    (b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri_too_long"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40000 + b"\r\n\r\n", 400, "bad_request"),
    (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "bad_request",
    ),
    (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: x\r\n\r\n", 501, "not_implemented"),
]


def test_what_nginx_refuses_by_itself_is_json_too(gateway):
    for request, status, code in NOT_HTTP:
        head, _, body = gateway.raw(request).partition(b"\r\n\r\n")
        assert f" {status} ".encode() in head.split(b"\r\n")[0]
        assert b"Content-Type: application/json" in head
        assert b"X-Request-Id: " in head
        assert json.loads(body)["error"]["code"] == code


def test_compressed_request_is_refused(gateway):
    answer = gateway.ask("/v1/chat/completions", b"...", Content_Encoding="gzip")
    assert answer.status == 415
    assert answer.error["code"] == "unsupported_media_type"


def test_health(gateway):
    answer = gateway.ask("/healthz", key=None)
    assert (answer.status, answer.json()) == (200, {"status": "ok"})


def test_health_while_the_model_loads(start_gateway, stand_in):
    stand_in.says(
        '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
        status="503 Service Unavailable",
    )
    answer = start_gateway(stand_in.port).ask("/healthz", key=None)
    assert answer.status == 503
    assert "Loading model" in answer.error["message"]


def test_health_of_an_engine_without_a_model(start_gateway, stand_in):
    stand_in.says('{"object":"list","data":null}')
    gateway = start_gateway(stand_in.port, gateway_engine_health="/v1/models")
    assert "no model" in gateway.ask("/healthz", key=None).error["message"]
    assert stand_in.requests[0][0].startswith("GET /v1/models HTTP/1.1\r\n")


def test_health_asks_the_engine_at_most_once_a_second(start_gateway, stand_in):
    stand_in.says('{"status":"ok"}')
    gateway = start_gateway(stand_in.port)
    for _ in range(10):
        assert gateway.ask("/healthz", key=None).status == 200
    assert len(stand_in.requests) < 4


def test_engine_gone(start_gateway, free_port):
    gateway = start_gateway(free_port())
    answer = gateway.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.error["code"]) == (502, "engine_unavailable")
    health = gateway.ask("/healthz", key=None)
    assert (health.status, health.error["code"]) == (503, "engine_unavailable")
    assert "refused" in health.error["message"]


def test_engine_hangs(start_gateway, stand_in):
    stand_in.pieces = [30]
    gateway = start_gateway(stand_in.port, gateway_read_timeout=1)
    answer = gateway.ask("/v1/chat/completions", CHAT)
    assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
    assert 0.9 < answer.seconds < 3
    assert stand_in.closed_by_client.wait(2)


def test_metrics_are_for_loopback_and_those_named(start_gateway, stand_in):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    for allowed, status in ([], 403), ([f"{address}/32"], 200):
        gateway = start_gateway(
            stand_in.port, gateway_address=address, gateway_metrics_allow=allowed
        )
        gateway.url = f"http://{address}:{gateway.port}"
        answer = gateway.ask("/metrics", key=None)
        assert answer.status == status
        if status == 403:
            assert answer.error["code"] == "forbidden"


def test_log_has_no_prompt_answer_or_key(gateway):
    gateway.chat("What is 2+2?", temperature=0)
    gateway.ask("/v1/models?key=key-of-default", key="wrong")
    gateway.raw(b"GET / HTTP/1.1\r\n\r\n")
    chat, refused, bad = gateway.log(3)
    text = gateway.process.log.read_text()
    assert (chat["client"], chat["status"], chat["cache"]) == ("default", 200, "MISS")
    assert (refused["status"], refused["path"], "client" in refused) == (401, "/v1/models", False)
    assert bad["status"] == 400
    assert len({line["id"] for line in gateway.log()}) == len(gateway.log())
    for secret in ("2+2", "key-of", "sum of"):
        assert secret not in text
