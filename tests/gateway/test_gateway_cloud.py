"""A cloud that stands in for the own engine. Here it is a real llama-server behind nginx with TLS,
at a name that a small name server knows; only what hangs is a stand-in."""

import json
import os
import re
import socketserver
import subprocess
import threading
from pathlib import Path

import pytest
from gateway_parts import GROUP, PLAN, USER, listens
from test_gateway_upstreams import EVENT, healthy_stand_in, start_engine, wait_for  # noqa: F401

CLOUD_KEY = "key-of-the-cloud"
ASK = {"temperature": 0, "max_tokens": 60}

NGINX = """
pid {folder}/pid;
error_log stderr warn;
events {{}}
http {{
    log_format json escape=json
        '{{"host":"$http_host","uri":"$request_uri","body":"$request_body"}}';
    access_log {folder}/access.log json;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u;
    scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.crt;
        ssl_certificate_key {folder}/server.key;
        location /compatible-mode/v1/ {{
            proxy_pass http://127.0.0.1:{engine}/v1/;
            proxy_buffering off;
        }}
        location /closes/v1/ {{ proxy_pass http://127.0.0.1:{engine}/; return 444; }}
    }}
}}
"""
OPENSSL = """
set -e
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=a test's authority" \
    -keyout ca.key -out ca.crt
openssl req -newkey rsa:2048 -nodes -subj /CN=cloud.test -keyout server.key -out server.csr
echo subjectAltName=DNS:cloud.test > names
openssl x509 -req -days 2 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial \
    -extfile names -out server.crt
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cloud-tls")
    subprocess.run(["sh", "-c", OPENSSL], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def name_server():
    """Says that every name is 127.0.0.1; its address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            query, answer_to = self.request
            question = query[12 : query.index(b"\0", 12) + 5]
            head = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1"
            answer_to.sendto(head + question + record, self.client_address)

    server = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def start_cloud(background, certificates, tmp_path, free_port):
    """start_cloud(port of what answers): its port; what it was asked is in its `log()`."""

    class Cloud:
        def __init__(self, engine_port):
            self.port, self.folder = free_port(), tmp_path / "cloud"
            self.folder.mkdir()
            for file in certificates.iterdir():
                (self.folder / file.name).write_bytes(file.read_bytes())
            config = self.folder / "nginx.conf"
            config.write_text(NGINX.format(folder=self.folder, port=self.port, engine=engine_port))
            user = f" user {USER} {GROUP};" if os.getuid() == 0 else ""
            argv = ["/usr/sbin/nginx", "-c", config, "-g", "daemon off;" + user]
            background(argv, ready=lambda: listens(self.port))

        def log(self):
            lines = (self.folder / "access.log").read_text().splitlines()
            return [json.loads(line) for line in lines]

    return Cloud


@pytest.fixture
def start(start_gateway, name_server, certificates):
    """start(engine_port, cloud's port, **settings of the cloud) returns a Gateway."""

    def start(engine_port, cloud_port, host="cloud.test", trusted=None, plan=PLAN, **cloud):
        prefix = cloud.pop("prefix", "compatible-mode")
        given = {
            "base_url": f"https://{host}:{cloud_port}/{prefix}/v1",
            "key": CLOUD_KEY,
            "models": {"tiny-r1": "deepseek-reasoner"},
            "tokens_per_day": 100000,
        }
        return start_gateway(
            engine_port,
            gateway_cloud=given | cloud,
            gateway_keep_on_premises=False,
            gateway_trusted_ca=str(certificates / "ca.crt") if trusted is None else trusted,
            __gateway_nameservers=[name_server],
            plan_result=plan,
        )

    return start


@pytest.fixture
def cloud(start_cloud, start_engine):  # noqa: F811
    return start_cloud(start_engine(key=CLOUD_KEY).port)


def log_of(gateway):
    return gateway.process.log.read_text()


def test_the_cloud_answers_where_the_own_engine_cannot(start, cloud, start_engine, redis):  # noqa: F811
    own = start_engine()
    gateway = start(own.port, cloud.port)
    first = gateway.chat(**ASK, Cache_Control="no-store")
    assert first.headers["X-Upstream"] == "engine"
    assert gateway.ask("/healthz", key=None).status == 200
    own.kill()
    answers = [gateway.chat(**ASK) for _ in range(2)]
    for answer in answers:
        assert (answer.status, answer.headers["X-Upstream"]) == (200, "cloud"), answer
        assert answer.cache == "BYPASS"
        message = answer.json()["choices"][0]["message"]
        assert message == first.json()["choices"][0]["message"]
        assert message["reasoning"] == message["reasoning_content"]
        assert answer.headers["X-R1-Policy"] == first.headers["X-R1-Policy"]
    streamed = gateway.chat(stream=True, **ASK)
    assert streamed.headers["X-Upstream"] == "cloud"
    assert streamed.body.endswith(b"data: [DONE]\n\n") and b'"reasoning"' in streamed.body
    assert gateway.ask("/healthz", key=None).status == 200
    own.process = own.start()
    wait_for(lambda: gateway.chat().headers["X-Upstream"] == "engine", "it is not back")
    back = gateway.chat(**ASK)
    assert (back.cache, back.headers["X-Upstream"]) == ("MISS", "engine")
    seen = cloud.log()
    assert {line["host"] for line in seen} == {f"cloud.test:{cloud.port}"}
    assert {line["uri"] for line in seen} == {"/compatible-mode/v1/chat/completions"}
    assert {json.loads(line["body"])["model"] for line in seen} == {"deepseek-reasoner"}
    assert "cloud" in {line.get("upstream") for line in gateway.log()}


def test_the_clouds_key_is_in_the_secrets_only(start, start_cloud, start_engine, free_port):  # noqa: F811
    """Also where the cloud refuses it, with words of its own."""
    cloud = start_cloud(start_engine(key="another-key").port)
    gateway = start(free_port(), cloud.port)
    answer = gateway.chat()
    assert answer.status == 502
    assert "refuses the gateway (401)" in answer.error["message"]
    assert CLOUD_KEY not in log_of(gateway) and "answered 401" in log_of(gateway)
    folder = Path(gateway.role.variables["r1_etc"]) / "gateway"
    files = {path.name: path for path in folder.iterdir() if CLOUD_KEY in path.read_text()}
    assert set(files) == {"secrets.json"}
    assert oct(files["secrets.json"].stat().st_mode)[-3:] == "640"


@pytest.mark.parametrize("wrong", [{"host": "other.test"}, {"trusted": ""}])
def test_a_wrong_certificate_gets_no_prompt(start, cloud, free_port, wrong):
    gateway = start(free_port(), cloud.port, **wrong)
    assert gateway.chat().status == 502
    assert cloud.log() == []
    assert re.search("the cloud failed: .*certificate", log_of(gateway))


def test_the_days_budget(start, cloud, free_port):
    """One answer takes about 60 tokens of 400, and may take 150 and its prompt."""
    gateway = start(free_port(), cloud.port, tokens_per_day=400)
    used, answers = 0, 0
    while (answer := gateway.chat(temperature=0, max_tokens=150)).status == 200:
        usage = answer.json()["usage"]
        used += usage["prompt_tokens"] + usage["completion_tokens"]
        answers += 1
        assert used <= 400
    assert answers > 1, "what was not used was not given back"
    assert answer.status == 502
    assert "budget does not allow this request" in answer.error["message"]
    assert "of 400 a day" in answer.error["message"]
    wait_for(lambda: len(cloud.log()) == answers, "it was asked what was refused")
    for trick in ({"n": -9}, {"max_tokens": -9}, {"n": 1e300}, {"max_tokens": None}):
        refused = gateway.chat(**{"temperature": 0, "max_tokens": 150} | trick)
        assert "budget does not allow" in refused.error["message"], trick
    refused = gateway.ask("/v1/chat/completions", b'{"model":"tiny-r1","n":1e999}')
    assert "budget does not allow" in refused.error["message"]
    assert len(cloud.log()) == answers
    small = gateway.chat("x", temperature=0, max_tokens=1)
    assert small.status == 200, "a trick has emptied the purse, or filled it"


def test_a_stream_that_the_client_leaves_is_counted(start, cloud, free_port):
    gateway = start(free_port(), cloud.port, tokens_per_day=4200)
    body = {"model": "tiny-r1", "messages": [{"role": "user", "content": "x"}], "stream": True}
    connection, response = gateway.open(
        "/v1/chat/completions", body | {"ignore_eos": True, "max_tokens": 4000}
    )
    response.readline()
    # All that it may take is taken from the budget while it runs.
    assert gateway.chat(max_tokens=1000).status == 502
    response.close()
    connection.close()
    wait_for(lambda: gateway.chat(max_tokens=60).status == 200, "nothing was given back")


def test_a_cloud_that_does_not_begin_in_time(start, start_cloud, stand_in, free_port):
    stand_in.pieces = [60]
    cloud = start_cloud(stand_in.port)
    gateway = start(free_port(), cloud.port, first_byte_seconds=1)
    answer = gateway.chat()
    assert (answer.status, answer.error["code"]) == (504, "engine_timeout")
    assert 1 <= answer.seconds < 30
    assert len(stand_in.requests) == 1, "it may have begun: asked once"
    assert gateway.chat().status == 502  # it is left alone for a while
    assert len(stand_in.requests) == 1


def test_once_more_before_the_first_byte(start, start_cloud, stand_in, free_port):
    cloud = start_cloud(stand_in.port)
    gateway = start(free_port(), cloud.port, prefix="closes")
    assert gateway.chat().status == 502
    assert len(cloud.log()) == 2


def test_only_chats_with_a_model_that_is_mapped(start, cloud, free_port):
    gateway = start(free_port(), cloud.port)
    assert gateway.chat(model="another").status == 502
    assert gateway.ask("/v1/completions", {"model": "tiny-r1", "prompt": "x"}).status == 502
    assert gateway.ask("/v1/models").status == 502
    assert cloud.log() == []


@pytest.mark.parametrize("when", ["failover", "overflow"])
def test_what_comes_while_all_are_busy(start, cloud, healthy_stand_in, when):  # noqa: F811
    """It waits in line for the engine, or goes to the cloud, whichever was set."""
    may_end = threading.Event()
    healthy_stand_in.streams(EVENT, may_end, EVENT, b"data: [DONE]\n\n")
    gateway = start(healthy_stand_in.port, cloud.port, when=when, plan=PLAN | {"max_num_seqs": 1})
    body = {"model": "tiny-r1", "messages": [{"role": "user", "content": "x"}], "stream": True}
    first, busy = gateway.open("/v1/chat/completions", body | {"max_tokens": 5})
    assert busy.headers["X-Upstream"] == "engine"
    second, _ = gateway.open("/v1/chat/completions", body | {"max_tokens": 5}, read=False)
    if when == "failover":
        second.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.sock.recv(1)
        second.sock.settimeout(10)
        may_end.set()
    answer = second.getresponse()
    assert answer.headers["X-Upstream"] == {"failover": "engine", "overflow": "cloud"}[when]
    may_end.set()
    assert b"[DONE]" in busy.read() and b"[DONE]" in answer.read()
    first.close()
    second.close()


def test_nothing_leaves_the_premises_unless_allowed(start_gateway, free_port):
    """Also where the settings were not checked."""
    gateway = start_gateway(
        free_port(),
        gateway_cloud={"base_url": "https://cloud.test/v1", "key": CLOUD_KEY}
        | {"models": {"tiny-r1": "x"}, "tokens_per_day": 1000},
    )
    config = (Path(gateway.role.variables["r1_etc"]) / "gateway/nginx.conf").read_text()
    assert "cloud.test" not in config
    assert gateway.chat().status == 502
