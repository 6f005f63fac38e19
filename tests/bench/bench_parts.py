"""What the benches start: real programs on free ports of loopback, ended with the bench; and a
stand-in for an engine whose every answer tells which call of it that was."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gateway"))
from conftest import Gateway
from gateway_parts import ENGINE_KEY, KEYS, REPO, USER, Role, listens


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(ready, seconds: float, what: str) -> float:
    """Seconds it took; ends the program when it took longer than allowed."""
    begin = time.monotonic()
    while not ready():
        if time.monotonic() - begin > seconds:
            sys.exit(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - begin


class Programs:
    """Programs that run below a folder, each with a log there."""

    def __init__(self, folder: Path):
        self.folder, self.running = folder, []

    def start(self, argv, ready, seconds: float = 120, **more) -> subprocess.Popen:
        log = self.folder / f"{len(self.running)}-{Path(str(argv[0])).name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [str(part) for part in argv], stdout=stream, stderr=stream, **more
            )
        process.log = log
        self.running.append(process)

        def ready_or_dead():
            if process.poll() is not None:
                sys.exit(f"{argv[0]} ended: {log.read_text()[-2000:]}")
            return ready()

        wait_until(ready_or_dead, seconds, str(argv[0]))
        return process

    def stop(self) -> None:
        for process in reversed(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def paths(self, name: str) -> dict:
        for part in ("gateway", "redis"):
            (self.folder / name / "run" / part).mkdir(parents=True, exist_ok=True)
        return {f"r1_{part}": str(self.folder / name / part) for part in ("etc", "run", "log")}

    def redis(self, name: str) -> subprocess.Popen:
        """The project's Redis, for the gateway of the same name."""
        paths = self.paths(name)
        role = Role("redis", __redis_user=USER, **paths)
        role.write()
        path = str(Path(paths["r1_run"]) / "redis/redis.sock")

        def answers():
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(path) == 0

        return self.start(role.argv(), answers)

    def gateway(self, name: str, engine: int, **settings) -> Gateway:
        """The project's gateway, with the Redis of the same name."""
        own = {
            "gateway_port": free_port(), "engine_port": engine, "gateway_address": "127.0.0.1",
            "secrets_api_keys": KEYS, "secrets_engine_key": ENGINE_KEY, "__gateway_user": USER,
        }  # fmt: skip
        role = Role("gateway", **own | self.paths(name) | settings)
        role.write()
        port = role.variables["gateway_port"]
        return Gateway(self.start(role.argv(), lambda: listens(port)), port, role)

    def llama(self, port: int, *more) -> subprocess.Popen:
        """The real llama-server with the tiny model."""
        found = REPO.glob(".cache/llamacpp/lib/python*/site-packages/*/bin/llama-server")
        binary = next(found, None) or sys.exit("no llama-server; fix: run the gateway's tests once")
        model = REPO / "roles/model/files/tiny-r1/tiny-r1-q4_k_m.gguf"
        argv = [binary, "--model", model, "--alias", "tiny-r1", "--jinja", "--host", "127.0.0.1"]
        argv += ["--port", port, "--api-key", ENGINE_KEY, "--threads", "2", *more]
        engine = Gateway(None, port, None)

        def answers():
            return listens(port) and engine.ask("/health", key=ENGINE_KEY).status == 200

        return self.start(argv, answers)


class Engine:
    """A STAND-IN. It answers "COUNT of PROMPT", where COUNT tells which call of all this was, so
    that a stored answer can be told from a new one. `told[text]` makes it do something else where
    the prompt has this text, each time: a number of seconds to be silent first, or one of
      500, 429      that status, in a shape that is not OpenAI's
      "late 500"    the same after a second
      "cut"         an answer that breaks off, with the connection
      "no end"      a stream that ends without [DONE]
      "event"       a stream that ends in an error event
      "unfinished"  an answer without a finish reason
      "slowly"      a stream of a piece each 0.2 s, 25 of them
    """

    def __init__(self):
        self.told, self.calls, self.bodies, self.left = {}, Counter(), {}, []
        self.count = itertools.count(1)
        self.away = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.whole(200, {"object": "list", "data": [{"id": "tiny-r1", "object": "model"}]})

            def do_POST(self):
                if outer.away:
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers["Content-Length"]))
                asked = json.loads(body)
                prompt = asked["messages"][-1]["content"]
                outer.calls[prompt] += 1
                outer.bodies[prompt] = body
                what = next((do for text, do in outer.told.items() if text in prompt), 0)
                try:
                    self.answer(asked, prompt, what)
                except OSError:
                    outer.left.append(prompt)
                    self.close_connection = True

            def answer(self, asked, prompt, what):
                if what == "late 500":
                    time.sleep(1)
                    what = 500
                if what in (500, 429):
                    self.whole(what, {"detail": "the engine's own words"})
                    return
                if isinstance(what, (int, float)):
                    time.sleep(what)
                count = next(outer.count)
                text = f"{count} of {prompt}"
                reason = None if what == "unfinished" else "stop"
                head = {"id": f"chatcmpl-{count}", "created": 1, "model": "tiny-r1"}
                if not asked.get("stream"):
                    message = {"role": "assistant", "content": text}
                    choice = {"index": 0, "message": message, "finish_reason": reason}
                    usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
                    kind = {"object": "chat.completion", "choices": [choice], "usage": usage}
                    self.whole(200, head | kind, cut=what == "cut")
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                kind = head | {"object": "chat.completion.chunk"}
                pieces = [text] if what != "slowly" else [text[:10], *["x"] * 24]
                for at, piece in enumerate(pieces):
                    delta = {"content": piece} | ({} if at else {"role": "assistant"})
                    choice = {"index": 0, "delta": delta, "finish_reason": None}
                    self.event(kind | {"choices": [choice]})
                    time.sleep(0.2 if what == "slowly" else 0)
                if what == "cut":
                    raise OSError
                if what == "event":
                    self.event({"error": {"message": "out of memory", "code": 500}})
                else:
                    choice = {"index": 0, "delta": {}, "finish_reason": reason}
                    self.event(kind | {"choices": [choice]})
                if what != "no end":
                    self.chunk(b"data: [DONE]\n\n")
                self.wfile.write(b"0\r\n\r\n")

            def whole(self, status, value, cut=False):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:-20] if cut else data)
                self.close_connection |= cut

            def event(self, value):
                self.chunk(f"data: {json.dumps(value)}\n\n".encode())

            def chunk(self, data):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def leave(self) -> None:
        """No connection is taken any more, none that is open is answered."""
        if not self.away:
            self.away = True
            self.server.shutdown()
            self.server.server_close()


def events(body: bytes) -> list:
    """What a stream's events say: objects, and "[DONE]"."""
    lines = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(body: bytes, stream: bool) -> tuple[str, str]:
    """Thoughts and answer of a whole answer or a stream."""
    if stream:
        found = [item["choices"][0]["delta"] for item in events(body)
                 if item != "[DONE]" and item.get("choices")]  # fmt: skip
    else:
        found = [json.loads(body)["choices"][0]["message"]]
    return tuple(
        "".join(part.get(name) or "" for part in found) for name in ("reasoning_content", "content")
    )


def openai_shaped(answer) -> bool:
    """Whether an error's body has the shape that OpenAI's clients read."""
    try:
        error = answer.json()["error"]
        return {"message", "type", "code", "param"} <= set(error) and bool(error["message"])
    except (ValueError, KeyError, TypeError):
        return False
