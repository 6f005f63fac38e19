"""A real gateway, Redis and engine; a stand-in only where bytes must be chosen or a hang made."""

import http.client
import json
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from gateway_parts import ENGINE_KEY, KEYS, USER, Role, listens


class Answer(SimpleNamespace):
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> dict:
        """The error of an OpenAI-shaped body; fails when the shape is another."""
        assert self.headers["Content-Type"] == "application/json", self
        error = self.json()["error"]
        assert set(error) == {"message", "type", "code", "param"}, error
        assert isinstance(error["message"], str), error
        assert isinstance(error["type"], str), error
        assert error["message"] and error["type"], error
        return error


class Gateway:
    """A running gateway and a client for it."""

    def __init__(self, process, port: int, role: Role):
        self.process = process
        self.port = port
        self.role = role
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path, body=None, *, key=KEYS[0]["key"], method=None, seconds=30, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        started = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                content, status = response.read(), response.status
        except urllib.error.HTTPError as failure:
            response, content, status = failure, failure.read(), failure.code
        return Answer(
            status=status,
            headers=response.headers,
            body=content,
            cache=response.headers.get("X-Cache"),
            seconds=time.monotonic() - started,
        )

    def chat(self, prompt="What is 2+2?", **fields):
        headers = {name: fields.pop(name) for name in ("key", "Cache_Control") if name in fields}
        body = {"model": "tiny-r1", "messages": [{"role": "user", "content": prompt}]} | fields
        return self.ask("/v1/chat/completions", body, **headers)

    def open(self, path, body, read=True):
        """A connection that has sent this request, and its response, to be read as it comes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = {"Authorization": f"Bearer {KEYS[0]['key']}", "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        return connection, connection.getresponse() if read else None

    def log(self, lines: int = 1) -> list[dict]:
        """The access log, once it has so many lines: each is written after its answer."""
        deadline = time.monotonic() + 3
        while True:
            text = self.process.log.read_text().splitlines()
            found = [json.loads(line) for line in text if line.startswith("{")]
            if len(found) >= lines:
                return found
            assert time.monotonic() < deadline, text
            time.sleep(0.02)

    def raw(self, data: bytes) -> bytes:
        """Send bytes as they are, return all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def paths(tmp_path) -> dict:
    """The host's folders, made below the test's own."""
    folders = {f"r1_{name}": str(tmp_path / name) for name in ("etc", "run", "log")}
    for name in ("gateway", "redis"):
        (tmp_path / "run" / name).mkdir(parents=True)
    return folders


@pytest.fixture
def redis(background, paths):
    """A real Redis with the role's configuration, and a user who may pause it; its process."""
    role = Role("redis", __redis_user=USER, **paths)
    role.write()
    socket_file = Path(paths["r1_run"]) / "redis/redis.sock"
    pauses = ["--user", "pauses", "on", "nopass", "+client"]
    pauses += ["--hz", "500"]  # the clock that ends a pause
    process = background(role.argv() + pauses, ready=socket_file.is_socket)
    process.socket = socket_file
    yield process
    process.send_signal(signal.SIGCONT)


@pytest.fixture
def start_gateway(background, paths, free_port):
    """start_gateway(engine_port, **settings) returns a running Gateway."""

    def start(engine_port: int, **settings) -> Gateway:
        role = Role(
            "gateway",
            **{
                "gateway_port": free_port(),
                "engine_port": engine_port,
                "gateway_address": "127.0.0.1",
                "secrets_api_keys": KEYS,
                "secrets_engine_key": ENGINE_KEY,
                "__gateway_user": USER,
            }
            | paths
            | settings,
        )
        role.write()
        port = role.variables["gateway_port"]
        address = role.variables["gateway_address"]
        process = background(role.argv(), ready=lambda: listens(port, address))
        return Gateway(process, port, role)

    return start


@pytest.fixture(scope="session")
def llama(llama_server_binary, tiny_gguf, tmp_path_factory, free_port):
    """A real llama-server with the tiny model; its port. One for all tests."""
    port = free_port()
    argv = [llama_server_binary, "--model", tiny_gguf, "--alias", "tiny-r1", "--jinja"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--api-key", ENGINE_KEY]
    argv += ["--ctx-size", "16384", "--parallel", "2", "--threads", "2", "--metrics"]
    log = tmp_path_factory.mktemp("llama") / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen([str(part) for part in argv], stdout=stream, stderr=stream)
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            break
        except OSError:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
    yield port
    process.terminate()
    process.wait(10)


class StandIn:
    """A stand-in for an engine: sends the bytes a test chose, piece by piece, and keeps what it
    was asked. It is no engine: it exists to send what a real one sends once in a while."""

    def __init__(self):
        self.pieces = []  # bytes; numbers: seconds to wait; events to wait for; functions to call
        self.requests = []
        self.health = None  # another answer for GET /health, in whose place the pieces are sent
        self.closed_by_client = threading.Event()
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                data = b""
                while b"\r\n\r\n" not in data:
                    data += self.request.recv(65536)
                head, _, body = data.partition(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                while len(body) < length:
                    body += self.request.recv(65536)
                if outer.health and head.startswith(b"GET /health "):
                    self.request.sendall(outer.health)
                    return
                outer.requests.append((head.decode(), body))
                outer.answer(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 1024

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, connection):
        for piece in self.pieces:
            if isinstance(piece, bytes):
                try:
                    connection.sendall(piece)
                except OSError:
                    self.closed_by_client.set()
                    return
            elif isinstance(piece, threading.Event):
                piece.wait(60)
            elif callable(piece):
                piece()
            else:
                connection.settimeout(piece)
                try:
                    if connection.recv(1) == b"":
                        self.closed_by_client.set()
                        return
                except TimeoutError:
                    pass

    def says(self, body, status="200 OK", kind="application/json"):
        """Answer everything with this body."""
        body = body.encode() if isinstance(body, str) else body
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.pieces = [head.encode() + body]

    def streams(self, *pieces, end=b"0\r\n\r\n"):
        """Answer everything with these pieces, each in a chunk and a packet of its own."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        self.pieces = [head + b"Transfer-Encoding: chunked\r\n\r\n"]
        for piece in pieces:
            if isinstance(piece, bytes):
                piece = b"%x\r\n%s\r\n" % (len(piece), piece)
            self.pieces += [piece, 0.01] if isinstance(piece, bytes) else [piece]
        self.pieces.append(end)


@pytest.fixture
def stand_in():
    engine = StandIn()
    yield engine
    engine.server.shutdown()
    engine.server.server_close()


@pytest.fixture
def gateway(start_gateway, redis, llama):
    """The gateway in front of a real llama-server, with a real Redis."""
    return start_gateway(llama)
