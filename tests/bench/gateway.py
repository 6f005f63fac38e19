#!/usr/bin/env python3
"""What the gateway costs, beside plain nginx and LiteLLM's proxy, all in one run.

  .venv-test/bin/python tests/bench/gateway.py [--seconds 5] [--litellm PYTHON]

Needs two cores, wrk, and what the host has (nginx with its Lua modules, Redis). All listens on
loopback. The gateway under test has one core to itself; the load, Redis and the engine share the
other. The engine is a STAND-IN, an nginx that gives the same answer of 2 KB at once: what is
measured is what lies before it. PYTHON is an interpreter that has litellm[proxy] and redis.

Prints a row for each: requests per second, and milliseconds of the median and of 99 %.
"""

import argparse
import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gateway"))
from gateway_parts import KEYS, USER, Role, listens

TESTED, OTHERS = "0", "1"  # cores
ENGINE, PLAIN, GATEWAY, LITELLM = 18101, 18102, 18103, 18104
MESSAGE = {"role": "assistant", "reasoning_content": "so " * 300, "content": "word " * 200}
ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "tiny-r1",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 500, "total_tokens": 509},
}  # fmt: skip
NGINX = """
load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
worker_processes 1; daemon off; pid FOLDER/NAME.pid; error_log stderr error;
events { worker_connections 4096; }
http {
    access_log off; client_max_body_size 10m; client_body_buffer_size 2m;
    client_body_temp_path FOLDER/NAME.body; proxy_temp_path FOLDER/NAME.proxy;
    fastcgi_temp_path FOLDER/x; uwsgi_temp_path FOLDER/x; scgi_temp_path FOLDER/x;
    keepalive_requests 1000000;
    upstream engine { server 127.0.0.1:ENGINE; }
    server { listen 127.0.0.1:PORT; location / { WHAT } }
}
"""
SAYS = """default_type application/json; content_by_lua_block {
    ngx.req.read_body() ngx.print([=======[BODY]=======]) }"""
PASSES = "proxy_pass http://engine; proxy_http_version 1.1; proxy_buffering off;"
LITELLM_SETTINGS = {
    "model_list": [{
        "model_name": "tiny-r1",
        "litellm_params": {"model": "openai/tiny-r1", "api_key": "x",
                           "api_base": f"http://127.0.0.1:{ENGINE}/v1"},
    }],
    "litellm_settings": {"cache": True, "cache_params": {"type": "redis"}},
    "general_settings": {"master_key": KEYS[0]["key"]},
}  # fmt: skip
# wrk's program: the same question each time, or another one.
LOAD = """
local n = math.random(1e9)
function request()
    n = n + 1
    return wrk.format("POST", "/v1/chat/completions",
        {["Content-Type"] = "application/json", ["Authorization"] = "Bearer KEY"},
        (([=======[BODY]=======]):gsub("NUMBER", NUMBER)))
end
"""


class Bench:
    def __init__(self, folder: Path, seconds: int):
        self.folder, self.seconds, self.running = folder, seconds, []

    def start(self, core: str, argv, port: int, **more) -> None:
        log = (self.folder / f"{port}.log").open("w")
        argv = ["taskset", "-c", core, *map(str, argv)]
        self.running.append(subprocess.Popen(argv, stdout=log, stderr=log, **more))
        deadline = time.monotonic() + 120
        while port and not listens(port):
            if self.running[-1].poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{argv} does not listen on {port}: {Path(log.name).read_text()[-2000:]}")
            time.sleep(0.1)

    def nginx(self, name: str, core: str, port: int, what: str) -> None:
        text = NGINX.replace("FOLDER", str(self.folder)).replace("NAME", name)
        text = text.replace("WHAT", what).replace("ENGINE", str(ENGINE)).replace("PORT", str(port))
        file = self.folder / f"{name}.conf"
        file.write_text(text)
        self.start(core, ["/usr/sbin/nginx", "-c", file, "-g", f"user {USER};"], port)

    def gateway(self) -> None:
        paths = {f"r1_{name}": str(self.folder / name) for name in ("etc", "run", "log")}
        for name in ("gateway", "redis"):
            (self.folder / "run" / name).mkdir(parents=True)
        redis = Role("redis", __redis_user=USER, **paths)
        redis.write()
        self.start(OTHERS, redis.argv(), 0)
        settings = {
            "gateway_port": GATEWAY, "engine_port": ENGINE, "gateway_address": "127.0.0.1",
            "secrets_api_keys": KEYS, "secrets_engine_key": "x", "__gateway_user": USER,
            "gateway_workers": 1,
        }  # fmt: skip
        role = Role("gateway", **paths, **settings)
        role.write()
        self.start(TESTED, role.argv(), GATEWAY)

    def litellm(self, python: str) -> None:
        self.start(OTHERS, ["redis-server", "--port", "18105", "--save", ""], 18105)
        file = self.folder / "litellm.json"
        file.write_text(json.dumps(LITELLM_SETTINGS))
        argv = [Path(python).with_name("litellm"), "--config", file, "--port", str(LITELLM)]
        environment = os.environ | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "18105"}
        self.start(TESTED, [*argv, "--host", "127.0.0.1"], LITELLM, env=environment)

    def load(self, port: int, connections: int, number: str, **asked) -> tuple:
        message = {"role": "user", "content": "NUMBER " + "word " * 100}
        body = json.dumps({"model": "tiny-r1", "temperature": 0, "messages": [message]} | asked)
        program = self.folder / "load.lua"
        text = LOAD.replace("KEY", KEYS[0]["key"]).replace("BODY", body)
        program.write_text(text.replace(", NUMBER)", f", {number})"))
        argv = ["taskset", "-c", OTHERS, "wrk", "-t1", f"-c{connections}", f"-d{self.seconds}s"]
        argv += ["--timeout", "30s", "--latency", "-s", str(program), f"http://127.0.0.1:{port}"]
        said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in said or "Socket errors" in said:
            sys.exit(f"{port}: {said}")
        rate = float(re.search(r"Requests/sec: +([\d.]+)", said).group(1))
        times = re.findall(r"^ +(?:50|99)% +([\d.]+)(us|ms|s)", said, re.MULTILINE)
        scale = {"us": 1e-3, "ms": 1, "s": 1e3}
        return rate, *(float(value) * scale[unit] for value, unit in times)


def large(port: int, count: int = 40) -> float:
    """Milliseconds of a question of 1 MB, each another one: the median."""
    took = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {KEYS[0]['key']}", "Content-Type": "application/json"}
    for number in range(count):
        message = {"role": "user", "content": f'{number} "quoted"\n' * 60000}
        body = json.dumps({"model": "tiny-r1", "temperature": 0, "messages": [message]})[: 10**6]
        body = body.rpartition("\\n")[0] + '"}]}'
        begin = time.monotonic()
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        answer.read()
        took.append(1000 * (time.monotonic() - begin))
        if answer.status != 200:
            sys.exit(f"{port}: {answer.status}")
    return statistics.median(took)


def show(what: str, measured: tuple) -> None:
    rate, median, most = measured
    print(f"| {what} | {rate:,.0f} | {median:.2f} | {most:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--litellm")
    asked = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed; fix: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), asked.seconds)
        Path(folder).chmod(0o755)
        try:
            run(bench, asked.litellm)
        finally:
            for process in reversed(bench.running):
                process.terminate()
                process.wait()


def run(bench: Bench, litellm: str | None) -> None:
    bench.nginx("engine", OTHERS, ENGINE, SAYS.replace("BODY", json.dumps(ANSWER)))
    bench.nginx("plain", TESTED, PLAIN, PASSES)
    bench.gateway()
    other, same = "n", '"same"'
    print("| | requests/s | median, ms | 99 %, ms |\n|---|---|---|---|")
    for count in (1, 32):
        show(f"plain nginx, {count} connections", bench.load(PLAIN, count, other))
        show(f"gateway, miss, {count}", bench.load(GATEWAY, count, other))
    for count in (1, 32, 256):
        show(f"gateway, hit, {count}", bench.load(GATEWAY, count, same))
    for count in (1, 32):
        show(f"gateway, hit as a stream, {count}", bench.load(GATEWAY, count, same, stream=True))
    if litellm:
        bench.litellm(litellm)
        for count in (1, 32):
            show(f"LiteLLM, miss, {count}", bench.load(LITELLM, count, other))
            show(f"LiteLLM, hit, {count}", bench.load(LITELLM, count, same))
    print(f"\n1 MB: plain nginx {large(PLAIN):.1f} ms, gateway {large(GATEWAY):.1f} ms")


if __name__ == "__main__":
    main()
