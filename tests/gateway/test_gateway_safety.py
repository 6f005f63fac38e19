"""What a hostile or broken client may send to the door: whatever it is, the gateway lives on, the
engine sees what was asked and nothing else, other clients notice nothing, the log keeps quiet."""

import json
import re
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from gateway_parts import ENGINE_KEY, KEYS, until

AUTH = b"Authorization: Bearer key-of-default\r\n"
JSON = b"Content-Type: application/json\r\n"
ROUTE = "/v1/chat/completions"
QUESTION = b'{"model":"tiny-r1","messages":[{"role":"user","content":"2+2?"}]}'
SAID = {
    "object": "chat.completion",
    "model": "tiny-r1",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}
    ],
}


def request(body=QUESTION, *headers, line=b"POST /v1/chat/completions HTTP/1.1", length=True):
    """The bytes of a request; the last header closes the connection."""
    head = line + b"\r\nHost: x\r\n" + AUTH + JSON + b"".join(part + b"\r\n" for part in headers)
    if length:
        head += b"Content-Length: %d\r\n" % len(body)
    return head + b"\r\n" + body


def exchange(gateway, data, seconds=10):
    """Send bytes, and return what comes until the gateway closes. Sending may fail half-way, where
    the gateway has refused already; a client that stays open gets a closing request behind."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=seconds) as connection:
        with suppress(OSError):
            connection.sendall(data)
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
        return received


def closing(data):
    """The same request, after which the gateway closes."""
    return data.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n", 1)


def statuses(received):
    return [int(found) for found in re.findall(rb"HTTP/1\.[01] (\d\d\d) ", received)]


def workers(gateway):
    pid = gateway.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.fixture
def door(start_gateway, stand_in):
    """A gateway before an engine that records what it is asked. At the end of each test it must be
    the same processes that answer, the log must be one JSON a line, and no Lua code have failed."""
    stand_in.says(json.dumps(SAID))
    gateway = start_gateway(stand_in.port, gateway_cache_ttl=0)
    gateway.engine = stand_in
    gateway.policy = gateway.role.variable("__gateway_policy")
    before = until(lambda: workers(gateway))
    yield gateway
    stand_in.says(json.dumps(SAID))
    answer = gateway.chat()
    assert (answer.status, answer.json()["choices"][0]["message"]["content"]) == (200, "4")
    assert workers(gateway) == before and before
    text = gateway.process.log.read_text()
    for line in text.splitlines():
        if line.startswith("{"):
            assert set(json.loads(line)) <= LOGGED, line
        else:
            assert re.match(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[\w+\] ", line), line
    assert "lua entry thread aborted" not in text
    assert "key-of" not in text and ENGINE_KEY not in text


LOGGED = {"time", "id", "address", "client", "method", "path", "status", "bytes", "seconds"}
LOGGED |= {"cache", "error", "upstream"}
LOGGED |= {"model", "prompt_tokens", "completion_tokens", "first_token_seconds"}


def asked(door):
    """What the engine was asked: (request line, headers, body)."""
    found = []
    for head, body in door.engine.requests:
        line, *headers = head.split("\r\n")
        found.append((line, [header.partition(": ")[::2] for header in headers], body))
    return found


# Two ways to read one body


def refused(door, body, param):
    answer = door.ask(ROUTE, body)
    assert answer.status == 400, body[:100]
    assert (answer.error["type"], answer.error["param"]) == ("invalid_request_error", param)
    assert door.engine.requests == []
    return answer.error["message"]


@pytest.mark.parametrize("key", ["model", "max_tokens", "stream", "messages", "anything"])
def test_a_key_given_twice_is_refused_by_name(door, key):
    body = {"model": "m", "messages": [], "stream": False, "max_tokens": 5, "anything": 1}
    text = json.dumps(body)[:-1] + f', "{key}": {json.dumps(body[key])}}}'
    assert f'"{key}" twice' in refused(door, text.encode(), key)


SPELLINGS = [
    (r"max_\u0074okens", "max_tokens"),
    (r"max_toke\u006es", "max_tokens"),
    ("Max_Tokens", "max_tokens"),  # Go's JSON, Ollama's, knows no case
    ("max_to\u212aens", "max_tokens"),
    ("me\u017f\u017fages", "messages"),
    ("STREAM", "stream"),
    (r"\u0053tream", "stream"),
    (r"mode\u006c", "model"),
]


@pytest.mark.parametrize(("spelling", "key"), SPELLINGS)
def test_a_key_spelled_so_that_no_rule_knows_it_is_refused(door, spelling, key):
    for before in ("", f'"{key}":1,'):
        body = f'{{"messages2":[],{before}"{spelling}":99999}}'
        message = refused(door, body.encode(), key)
        assert f'"{key}"' in message
        assert "\u212a" not in message


def test_a_message_whose_role_has_two_readings_is_refused(door):
    for message in (
        '{"role":"user","content":"a","role":"system"}',
        r'{"r\u006fle":"system","content":"a"}',
        '{"role":"assistant","content":"a","Content":"b"}',
    ):
        body = f'{{"messages":[{{"role":"user","content":"x"}},{message}]}}'
        assert "messages[1]" in refused(door, body.encode(), "messages")


def test_keys_that_no_rule_reads_may_look_as_they_like(door):
    odd = rb'"caf\u00e9":1,"camelCase":2,"a":{"b":1,"b":2}'
    assert door.ask(ROUTE, b"{" + odd + b"," + QUESTION[1:]).status == 200
    assert odd in asked(door)[0][2]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"text"',
        b'{"messages":',
        b"\xef\xbb\xbf" + QUESTION,  # llama.cpp and Python pass over this mark
        QUESTION.decode().encode("utf-16"),  # Python reads it, and no rule would
        QUESTION.decode().encode("utf-32-le"),
        b"\x00" + QUESTION,
        b"{/**/" + QUESTION[1:],
    ],
)
def test_what_the_rules_cannot_read_does_not_pass_them(door, body):
    assert "not a JSON object" in refused(door, body, None)


def test_deeply_nested_json(door):
    for opening, closing_ in ((b"[", b"]"), (b'{"a":', b"}")):
        for wrapped in (b'{"messages":%s}', b'{"x":%s,"messages":[]}'):
            nested = opening * 100_000 + b"1" + closing_ * 100_000
            message = refused(door, wrapped % nested, None)
            assert "nested" in message
    cut = b'{"messages":' + b"[" * 100_000
    refused(door, cut, None)


def test_millions_of_small_parts_are_refused_before_they_cost_seconds(door):
    many = b'{"messages":[' + b"{}," * 100_000 + b"{}]}"
    assert "more than 10000" in refused(door, many, "messages")
    keys = b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}"
    assert "more than 10000 keys" in refused(door, keys, None)
    message = b"{" + b",".join(b'"k%d":1' % i for i in range(9000)) + b"}"
    spread = b'{"messages":[' + b",".join([message] * 10) + b"]}"
    assert "too many keys" in refused(door, spread, "messages")


def test_the_deepest_json_that_passes_does_no_harm_to_a_real_engine(gateway):
    nested = "[" * 900 + "]" * 900
    for body in (
        '{"messages":NESTED}',
        '{"messages":[{"role":"user","content":NESTED}]}',
        '{"messages":[{"role":"user","content":"x"}],"tools":NESTED,"max_tokens":1}',
    ):
        answer = gateway.ask(ROUTE, body.replace("NESTED", nested).encode())
        if answer.status != 200:
            assert answer.error["message"]
    assert gateway.chat(max_tokens=1).status == 200


def test_bytes_that_are_no_text(door, gateway):
    for raw in (b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"a\x00b", b"\x01", b"\x7f"):
        body = QUESTION.replace(b"2+2?", raw)
        door.ask(ROUTE, body)
        assert raw in asked(door)[-1][2]
        real = gateway.ask(ROUTE, body.replace(b"{", b'{"max_tokens":1,', 1))
        assert real.status == 200 or real.error["message"]
    assert gateway.chat(max_tokens=1).status == 200


def test_a_body_over_the_limit(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port, gateway_max_body="1m")
    big = b'{"messages":[{"role":"user","content":"' + b"x" * 3_000_000 + b'"}]}'
    head, _, body = exchange(gateway, closing(request(big))).partition(b"\r\n\r\n")
    assert statuses(head) == [413]
    assert json.loads(body)["error"]["code"] == "request_too_large"
    assert re.search(rb"X-Request-Id: [0-9a-f]{32}\b", head)
    assert stand_in.requests == []


# Smuggling: what the engine is asked is what each answer belongs to

HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + AUTH + b"\r\n"


def chunked(*headers, body=QUESTION, size=None, end=b"0\r\n\r\n"):
    size = size or b"%x" % len(body)
    return request(size + b"\r\n" + body + b"\r\n" + end, *headers, length=False)


TE = b"Transfer-Encoding: chunked"
SMUGGLING = {
    "CL.TE": request(b"0\r\n\r\n" + HIDDEN, TE),
    "TE.CL": chunked(TE, b"Content-Length: 4"),
    "two lengths": request(QUESTION + HIDDEN, b"Content-Length: %d" % len(QUESTION)),
    "two same lengths": request(QUESTION, b"Content-Length: %d" % len(QUESTION)),
    "length list": request(QUESTION, b"Content-Length: 5, 5", length=False),
    "signed length": request(QUESTION, b"Content-Length: +5", length=False),
    "hex length": request(QUESTION, b"Content-Length: 0x5", length=False),
    "negative length": request(QUESTION, b"Content-Length: -1", length=False),
    "huge length": request(QUESTION, b"Content-Length: 99999999999999999999", length=False),
    "TE xchunked": chunked(b"Transfer-Encoding: xchunked"),
    "TE list": chunked(b"Transfer-Encoding: identity, chunked"),
    "TE chunked, identity": chunked(b"Transfer-Encoding: chunked, identity"),
    "TE twice": chunked(TE, TE),
    "TE twice, one odd": chunked(TE, b"Transfer-Encoding: x"),
    "TE quoted": chunked(b'Transfer-Encoding: "chunked"'),
    "TE vertical tab": chunked(b"Transfer-Encoding: \x0bchunked"),
    "bad chunk size": chunked(TE, size=b"zz"),
    "huge chunk size": chunked(TE, size=b"f" * 17),
    "negative chunk": chunked(TE, size=b"-1"),
    "HTTP/1.0 with TE": chunked(TE).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_a_body_of_two_lengths_is_refused_and_the_connection_closed(door, name):
    received = exchange(door, SMUGGLING[name] + HIDDEN)
    assert len(statuses(received)) == 1, received
    assert statuses(received)[0] in (400, 413, 501), received
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert asked(door) == []


ODD_BUT_ONE = {
    "TE in capitals": chunked(b"tRANSFER-eNCODING:  CHUNKED "),
    "extension": chunked(TE, size=b'%x;a="b;c"' % len(QUESTION)),
    "leading zeros": chunked(TE, size=b"000000%x" % len(QUESTION)),
    "trailers": chunked(TE, end=b"0\r\nX-Policy: off\r\nAuthorization: Bearer x\r\n\r\n"),
    "bare line feeds": request().replace(b"\r\n", b"\n"),
}


@pytest.mark.parametrize("name", ODD_BUT_ONE)
def test_an_odd_body_reaches_the_engine_once_and_in_one_form(door, name):
    received = exchange(door, ODD_BUT_ONE[name] + closing(HIDDEN))
    assert statuses(received) == [200, 200], received
    (line, headers, body), (second, _, nothing) = asked(door)
    assert (line, second) == (f"POST {ROUTE} HTTP/1.1", "GET /v1/models HTTP/1.1")
    assert json.loads(body)["messages"] == json.loads(QUESTION)["messages"]
    names = [name.lower() for name, _ in headers]
    assert names.count("content-length") == 1 and "transfer-encoding" not in names
    assert dict(headers)["Content-Length"] == str(len(body))
    assert nothing == b""


def test_pipelined_requests_are_answered_one_by_one_in_order(door):
    bodies = [QUESTION.replace(b"2+2?", b"question %d" % i) for i in range(20)]
    last = closing(request(bodies[-1]))
    received = exchange(door, b"".join(map(request, bodies[:-1])) + last)
    assert statuses(received) == [200] * 20
    told = [json.loads(body)["messages"][0]["content"] for _, _, body in asked(door)]
    assert told == [f"question {i}" for i in range(20)]


REFUSED = {
    401: request(HIDDEN).replace(b"key-of-default", b"wrong", 1),
    404: request(HIDDEN, line=b"POST /v1/nothing HTTP/1.1"),
    405: request(HIDDEN, line=b"POST /v1/models HTTP/1.1"),
    415: request(HIDDEN, b"Content-Encoding: gzip"),
    400: request(HIDDEN),
}


@pytest.mark.parametrize("status", REFUSED)
def test_the_body_of_a_refused_request_is_no_request(door, status):
    received = exchange(door, REFUSED[status] + closing(HIDDEN))
    assert statuses(received) in ([status, 200], [status])
    assert len(asked(door)) == len(statuses(received)) - 1


# Headers and paths


def test_the_engine_gets_only_the_headers_that_the_gateway_writes(door):
    sent = [
        b"Accept: text/plain",
        b"X-Request-Id: mine",
        b"X-R1-Policy: off\tEvil: 1",
        b"X-Forwarded-For: 1.2.3.4",
        b"Cookie: a=b",
        b"Connection: keep-alive, Authorization",
        b"Upgrade: websocket",
        b"Expect: 100-continue",
        b"X_Odd: 1",
    ]
    received = exchange(door, request(QUESTION, *sent) + closing(HIDDEN))
    assert [status for status in statuses(received) if status != 100] == [200, 200], received
    _, headers, _ = asked(door)[0]
    names = ["Host", "Authorization", "Accept", "X-Request-Id", "Connection", "Content-Type"]
    assert [name for name, _ in headers] == [*names, "Content-Length"]
    assert dict(headers)["Authorization"] == f"Bearer {ENGINE_KEY}"


INJECTIONS = [
    b"a\rEvil: 1",
    b"a\x00b",
    b"a\r\r\nEvil: 1",
    b"\xe2\x80\xa8Evil: 1",
    b"a%0d%0aEvil: 1",
]
INJECTIONS += [
    b"a\\r\\nEvil: 1",
    b"\xe5\x98\x8a\xe5\x98\x8dEvil: 1",
    b'","evil":"1',
    b"a\x0bb\x0cc",
]
NAMES = [b"Accept", b"Content-Type", b"X-R1-Policy", b"X-Request-Id", b"Cache-Control", b"Host"]


@pytest.mark.parametrize("name", NAMES)
def test_no_header_value_becomes_a_header_of_its_own(door, name):
    for value in INJECTIONS:
        data = request(QUESTION, name + b": " + value)
        if name in (b"Host", b"Content-Type"):
            data = re.sub(rb"%s: [^\r]*\r\n" % name, b"", data, count=1)
        received = exchange(door, re.sub(rb"\r\n", b"\r\nConnection: close\r\n", data, count=1))
        head, _, _ = received.partition(b"\r\n\r\n")
        assert statuses(received)[0] in (200, 400), (value, received)
        assert not re.search(rb"(?im)^evil", head)
    for head, _ in door.engine.requests:
        assert not re.search(r"(?im)(^|\r)evil", head), head
        assert head.count("\r") == head.count("\n") == head.count("\r\n") and "\x00" not in head


PATHS = [
    (b"/v1/models/a%0d%0aEvil:%201", 404),
    (b"/v1/models%20HTTP/1.1%0d%0aEvil:%201", 404),
    (b"/v1/models/a%00b", 400),
    (b"/v1/models/..%2f..%2fprops", 404),
    (b"/v1/%2e%2e/props", 404),
    (b"/v1/../props", 404),
    (b"/v1/models/%252e%252e/props", 404),
    (b"/v1/models\\..\\..\\props", 404),
    (b"/../../props", 400),
    (b"/v1/models;/../../props", 404),
    (b"/V1/models", 404),
    (b"http://evil/v1/../props", 404),
    (b"/v1/models/\xff\xfe", 404),
    (b'/v1/","evil":"1', 404),
    (b"//v1//models", 200),
    (b"/v1/./models#x", 200),
    (b"http://evil/v1/models", 200),
    (b"/v1/models?a=%0d%0aEvil:%201&b=%00", 200),
    (b"/v1/models?" + b"a" * 3000, 200),
]


@pytest.mark.parametrize(("path", "status"), PATHS)
def test_a_path_reaches_a_known_route_or_nothing(door, path, status):
    data = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + AUTH + b"\r\n"
    received = exchange(door, closing(data))
    assert statuses(received) == [status], received
    assert b"vil" not in received.partition(b"\r\n\r\n")[0]
    for line, headers, _ in asked(door):
        assert re.fullmatch(r"GET /v1/models(\?\S*)? HTTP/1\.1", line)
        assert "Evil" not in dict(headers)
    assert len(asked(door)) == (status == 200)


@pytest.mark.parametrize("odd", [b"a b", b"a HTTP/1.1", b"a\x01b", b"a\x0bb", b"a\x7fb"])
def test_a_query_with_blanks_never_reaches_the_engine(door, odd):
    data = b"GET /v1/models?" + odd + b" HTTP/1.1\r\nHost: x\r\n" + AUTH + b"\r\n"
    assert statuses(exchange(door, closing(data)))[:1] == [400]
    assert asked(door) == []


def test_other_versions_and_methods(door):
    old = exchange(door, request(line=b"POST /v1/chat/completions HTTP/1.0"))
    assert statuses(old) == [200] and b"Transfer-Encoding" not in old
    for line, allowed in [
        (b"HTTP/0.9", (400, 404)),
        (b"GET /v1/models HTTP/2.0", (400, 505)),
        (b"PRI * HTTP/2.0", (400, 405, 505)),
        (b"OPTIONS * HTTP/1.1", (400, 405)),
        (b"OPTIONS /v1/models HTTP/1.1", (405,)),
        (b"TRACE /v1/models HTTP/1.1", (405,)),
        (b"CONNECT evil:80 HTTP/1.1", (400, 405)),
        (b"PUT /v1/models HTTP/1.1", (405,)),
        (b"get /v1/models HTTP/1.1", (400, 405)),
        (b"HEAD /v1/chat/completions HTTP/1.1", (405,)),
    ]:
        engine = len(asked(door))
        received = exchange(door, closing(request(b"", line=line)))
        assert statuses(received)[:1] and statuses(received)[0] in allowed, (line, received)
        assert len(asked(door)) == engine
    assert exchange(door, closing(request(b"", line=b"HEAD /v1/models HTTP/1.1"))).endswith(
        b"\r\n\r\n"
    )


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * 40_000 + b"\r\n",
        b"".join(b"X%d: %s\r\n" % (i, b"b" * 90) for i in range(1500)),
    ],
)
def test_headers_too_long_or_too_many(door, headers):
    received = exchange(door, request(QUESTION, headers[:-2]))
    assert statuses(received) == [400]
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"
    assert asked(door) == []


# Slow clients


def test_slow_clients_hold_nobody_up(door):
    """Headers that never end, bodies that never come, many at once: others are served, nothing of
    theirs reaches the engine, and each has an end."""
    assert "client_header_timeout 15s;" in door.role.rendered("nginx.conf.j2")
    held = []
    for i in range(200):
        connection = socket.create_connection(("127.0.0.1", door.port), timeout=10)
        whole = request(QUESTION)
        connection.sendall(whole[: len(whole) - 30] if i % 2 else whole[:60])
        held.append(connection)
    for _ in range(3):
        assert door.chat().status == 200
        for i, connection in enumerate(held):
            connection.sendall(b" " if i % 2 else b"X-A: b\r\n"[:1])
    assert len(asked(door)) == 3
    for connection in held:
        connection.close()
    door.log(103)


def test_slow_headers_and_bodies_are_ended(start_gateway, stand_in):
    """The time is nginx's own; shortened here, so that the test need not wait for it."""
    stand_in.says(json.dumps(SAID))
    gateway = start_gateway(stand_in.port, gateway_cache_ttl=0)
    config = Path(gateway.role.variables["r1_etc"]) / "gateway/nginx.conf"
    text = config.read_text()
    for name in ("client_header_timeout", "client_body_timeout"):
        text, count = re.subn(rf"{name} \d+s;", f"{name} 1s;", text)
        assert count == 1
    config.write_text(text)
    old = set(workers(gateway))
    reload(gateway)
    wait_for(lambda: not old & set(workers(gateway)))
    whole = request(QUESTION)
    for sent, head in ((whole[:60], (b"", b"HTTP/1.1 408")), (whole[:-5], (b"", b"HTTP/1.1 408"))):
        received = exchange(gateway, sent, seconds=20)
        assert received[:12] in head, received
    assert stand_in.requests == []
    assert gateway.chat().status == 200


def wait_for(happened):
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def reload(gateway):
    """Do what the service's reload does, and wait until the old workers take nothing new."""
    before = set(workers(gateway))
    command = [str(part) for part in gateway.role.service()["reload"]]
    subprocess.run(command, check=True, timeout=10)

    def leaves(pid):
        return "shutting down" in Path(f"/proc/{pid}/cmdline").read_text()

    wait_for(lambda: set(workers(gateway)) - before)
    wait_for(lambda: all(map(leaves, before & set(workers(gateway)))))


def test_a_client_that_reads_slowly_holds_nobody_up(door):
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * 20_000)
    door.engine.streams(*[event] * 100, b"data: [DONE]\n\n")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.settimeout(20)
    slow.connect(("127.0.0.1", door.port))
    slow.sendall(closing(request(QUESTION.replace(b"{", b'{"stream":true,', 1))))
    assert slow.recv(100).startswith(b"HTTP/1.1 200")
    door.engine.says(json.dumps(SAID))
    for _ in range(5):
        assert door.chat().status == 200
    received = b"".join(iter(lambda: slow.recv(65536), b""))
    slow.close()
    assert received.count(b"x" * 20_000) == 100
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# Keys change while answers run


def test_a_reload_with_another_key_cuts_no_stream(start_gateway, stand_in, paths):
    """The old key opens nothing any more, but what it began ends whole."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n'
    stand_in.streams(event % 1, 2.0, event % 2, b"data: [DONE]\n\n")
    gateway = start_gateway(stand_in.port, gateway_cache_ttl=0)
    connection, response = gateway.open(ROUTE, json.loads(QUESTION) | {"stream": True})
    assert b'"1"' in response.readline()
    stand_in.says(json.dumps(SAID))

    new = [{"name": "default", "key": "key-of-default-after-rotation"}]
    old = set(workers(gateway))
    gateway.role.variables["secrets_api_keys"] = new
    gateway.role.write()
    reload(gateway)
    for gone in KEYS:
        assert gateway.ask("/v1/models", key=gone["key"]).error["code"] == "invalid_api_key"
    assert gateway.chat(key=new[0]["key"]).status == 200
    assert old & set(workers(gateway)), "the stream still runs"

    rest = response.read()
    assert b'"2"' in rest and rest.endswith(b"data: [DONE]\n\n")
    connection.close()
    wait_for(lambda: not old & set(workers(gateway)))


# What the logs hold

SECRET = "the-prompt-nobody-may-read"


def test_no_error_puts_a_prompt_or_an_answer_into_the_log(start_gateway, stand_in):
    gateway = start_gateway(stand_in.port, gateway_cache_ttl=0, gateway_read_timeout=1)
    ask = json.loads(QUESTION) | {"messages": [{"role": "user", "content": SECRET}]}
    told = json.dumps({"error": {"message": f"cannot read '{SECRET}'", "code": 1}})
    statuses = []

    def see(body=ask, path=ROUTE, **headers):
        statuses.append(gateway.ask(path, body, **headers).status)

    for status in ("400 x", "401 x", "403 x", "302 x", "404 x", "500 x", "503 x"):
        stand_in.says(told, status=status)
        see()
        see(b'{"model":"m","messages":["' + SECRET.encode())
        see(b'{"messages":[{"content":"' + SECRET.encode() + b'"],"a"}')
    for words in (json.dumps({"error": {"message": {SECRET: SECRET}}}), f'["{SECRET}"]', SECRET):
        for status in ("401 x", "302 x", "500 x"):
            stand_in.says(words, status=status)
            see()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    for pieces in (
        [SECRET.encode() + b"\r\n\r\n"],
        [b"HTTP/1.1 200 " + SECRET.encode()],
        [head + b"Content-Length: 99\r\n\r\n" + SECRET.encode()],
        [head + b"Transfer-Encoding: chunked\r\n\r\n" + SECRET.encode() + b"\r\n"],
        [3],
    ):
        stand_in.pieces = pieces
        see()
    stand_in.streams(f"data: {told}\n\n".encode())
    see(ask | {"stream": True})
    stand_in.streams(f"data: {SECRET}\n\n".encode(), 3)
    see(ask | {"stream": True})
    see(ask, key="wrong-" + SECRET)
    see(ask | {"model": SECRET, SECRET: 1})
    see(json.dumps(ask).replace('"role"', f'"{SECRET}":1,"{SECRET}":2,"role"').encode())
    see(ask, X_R1_Policy=SECRET, User_Agent=SECRET, X_Request_Id=SECRET)
    see(json.dumps(ask).encode() + b" " * 2_000_000)  # too large for memory
    see(json.dumps(ask).encode() + b" " * 20_000_000)
    assert {200, 400, 401, 413, 500, 502, 503, 504} <= set(statuses)
    gateway.log(len(statuses))
    assert SECRET not in gateway.process.log.read_text()
    assert "aborted" not in gateway.process.log.read_text()


def test_one_id_for_answer_log_and_engine(start_gateway, stand_in):
    """A client's own X-Request-Id is not taken: each request has one that is nobody else's."""
    gateway = start_gateway(stand_in.port, gateway_cache_ttl=0, gateway_read_timeout=1)
    stand_in.says(json.dumps(SAID))
    ids = []
    for mine in ("mine", "x" * 500, '","evil":"1', "0" * 32):
        answer = gateway.ask(ROUTE, QUESTION, X_Request_Id=mine)
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])
        ids.append(answer.headers["X-Request-Id"])
        assert f"X-Request-Id: {ids[-1]}\r\n" in stand_in.requests[-1][0] + "\r\n"
        assert mine not in (stand_in.requests[-1][0], answer.headers["X-Request-Id"])
    stand_in.pieces = []
    for failing in (b"", b"401", b"302"):
        stand_in.says("{}", status=failing.decode() + " x") if failing else None
        ids.append(gateway.ask(ROUTE, QUESTION).headers["X-Request-Id"])
        assert f"request {ids[-1]}" in gateway.process.log.read_text()
    for own in (b"GET / HTTP/1.1\r\n\r\n", b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n"):
        ids += re.findall(rb"X-Request-Id: ([0-9a-f]{32})", exchange(gateway, own))
    ids = [found if isinstance(found, str) else found.decode() for found in ids]
    assert len(set(ids)) == 9
    assert {line["id"] for line in gateway.log(9)} == set(ids)
