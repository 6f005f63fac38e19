"""The module's checks, a clone to play in, and a stand-in whose faults can be switched on."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

KEY = "b7Qx9TzLr2mWc5VnKp8sHd4fJgY6uEa3"
MODEL = "tiny-r1"
THOUGHT = "The user asks for the sum of 2 and 2. 2+2 equals 4."
TEXT = "2 + 2 = 4."
PLAN = {
    "engine": "llamacpp",
    "model": "tiny-r1",
    "served_model_name": "tiny-r1",
    "memory": {"total_bytes": 64 * 1024**3},
}


def load(path):
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The real gateway, Redis and engine, as the gateway's own tests start them.
_parts = load(Path(__file__).parents[1] / "gateway/conftest.py")
llama, paths, redis, start_gateway = _parts.llama, _parts.paths, _parts.redis, _parts.start_gateway


@pytest.fixture(scope="session")
def verify(repo):
    return load(repo / "roles/verify/library/verify_endpoint.py")


@pytest.fixture(scope="session")
def action(repo):
    return load(repo / "roles/verify/action_plugins/verify_endpoint.py")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def setup(self):
        super().setup()
        self.faults, self.cache = self.server.faults, self.server.cache

    def reply(self, status, document, **headers):
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def fail(self, status, message="no"):
        error = {"message": message, "type": "error", "code": None, "param": None}
        if "plain_errors" in self.faults:
            return self.reply(status, {"error": message})
        return self.reply(status, {"error": error})

    def route(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/healthz":
            if self.faults.get("loading", 0) > 0:
                self.faults["loading"] -= 1
                return self.fail(503, "the engine is loading the model")
            return self.reply(200, {"status": "ok"})
        if self.headers.get("Authorization") != f"Bearer {KEY}" and "open" not in self.faults:
            return self.fail(401)
        if self.path.startswith("/api/") and "admin" in self.faults:
            return self.reply(404, {"error": "model '' not found"})
        if self.path == "/v1/models":
            return self.reply(200, {"data": [{"id": self.faults.get("model", MODEL)}]})
        if self.path != "/v1/chat/completions":
            return self.fail(404)
        try:
            request = json.loads(body)
        except ValueError:
            return self.fail(400)
        if "engine_down" in self.faults:
            return self.fail(502, "the engine does not answer")
        return self.stream() if request.get("stream") else self.complete(body)

    do_GET = do_POST = do_DELETE = route

    def complete(self, body):
        if body in self.cache and "never_hits" not in self.faults:
            other = b" " if "other_bytes" in self.faults else b""
            return self.reply(200, self.cache[body] + other, X_Cache="HIT")
        message = {
            "role": "assistant",
            "content": self.faults.get("content", TEXT),
            "reasoning_content": self.faults.get("thought", THOUGHT),
        }
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        choice |= {"finish_reason": self.faults.get("finish", "stop")}
        document = {"choices": [choice], "usage": {"completion_tokens": 30}, "at": time.time()}
        self.cache[body] = json.dumps(document).encode()
        return self.reply(200, self.cache[body], X_Cache="MISS")

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        deltas = [{"reasoning_content": part} for part in self.faults.get("thought", THOUGHT)]
        texts = [{"content": part} for part in self.faults.get("content", TEXT)]
        deltas = texts + deltas if "text_first" in self.faults else deltas + texts
        events = [f"data: {json.dumps({'choices': [{'delta': d}]})}\n\n" for d in deltas]
        if "cut" not in self.faults:
            events.append("data: [DONE]\n\n")
        burst, pause = self.faults.get("burst", 1), self.faults.get("pause", 0.002)
        for start in range(0, len(events), burst):
            time.sleep(pause * len(events[start : start + burst]))
            self.wfile.write("".join(events[start : start + burst]).encode())
        self.close_connection = True


@pytest.fixture
def stand_in():
    """Stand-in for gateway and engine: its attribute `faults` says what it does wrong."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.faults, server.cache = {}, {}
    server.key = KEY
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(verify, stand_in):
    """Run all checks against the stand-in; return {name: check}."""

    def run(**more):
        params = {
            "url": stand_in.url,
            "api_key": KEY,
            "ca": "",
            "model": MODEL,
            "reasoning": True,
            "cache": True,
            "question": "What is 2+2?",
            "max_tokens": 512,
            "ready_timeout": 2,
            "request_timeout": 10,
            "closed_ports": [],
            **more,
        }
        return {check["name"]: check for check in verify.run_checks(params)}

    return run


@pytest.fixture
def clone(repo, tmp_path):
    """A copy of what verify needs, so that no test writes into this clone."""
    shutil.copy(repo / "ansible.cfg", tmp_path)
    shutil.copytree(repo / "playbooks", tmp_path / "playbooks")
    for role in ("settings", "verify", "report"):
        shutil.copytree(repo / "roles" / role, tmp_path / "roles" / role)
    (tmp_path / "hosts").write_text(
        "local ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n"
    )
    return tmp_path


@pytest.fixture
def deployed(clone):
    """The clone after a deploy on host `local`."""
    for path, text in {
        "secrets/local/api_key": KEY + "\n",
        "reports/local/deployed.json": json.dumps(PLAN),
    }.items():
        (clone / path).parent.mkdir(parents=True)
        (clone / path).write_text(text)
        (clone / path).chmod(0o600)
    return clone


@pytest.fixture
def play(clone):
    def run(*args, playbook="playbooks/verify.yml", **settings):
        # No process of the stand-in runs as the engine's user.
        settings["__verify_memory"] = {"user": "root", "planned_bytes": 64 * 1024**3}
        command = [Path(sys.executable).parent / "ansible-playbook", playbook]
        command += ["-i", "hosts", "-l", "local", "-e", json.dumps(settings), *args]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(clone / "ansible.cfg")}
        return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that signs itself."""
    key, cert = tmp_path / "key", tmp_path / "cert"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1"
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", key, "-out", cert]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return cert, key
