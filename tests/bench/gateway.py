#!/usr/bin/env python3
"""What the gateway costs, beside plain nginx and LiteLLM's proxy, all in one run.

  python3.12 -m venv /tmp/litellm && /tmp/litellm/bin/pip install 'litellm[proxy]==1.106.2' redis
  .venv-test/bin/python tests/bench/gateway.py [--seconds 5] [--litellm /tmp/litellm/bin/python]

Needs two cores, wrk, and what the host has (nginx with its Lua modules, Redis). All listens on
loopback. The gateway under test has one core to itself; the load, Redis and the engine share the
other. The engine is a STAND-IN, an nginx that gives the same answer of 2 KB at once: what is
measured is what lies before it. Other work on the machine spoils the figures: run it alone.

Prints a row for each: requests per second, and milliseconds of the median and of 99 %; then what
2,000 open streams cost that are silent; then the goals, and whether they are met.
"""

import argparse
import http.client
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
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
worker_rlimit_nofile 16384; events { worker_connections 8192; }
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
# On another route: one event, then silence, then the end.
HOLDS = """default_type text/event-stream; content_by_lua_block {
    ngx.req.read_body()
    ngx.print('data: {"id":"1","choices":[{"index":0,"text":"x","finish_reason":null}]}\\n\\n')
    ngx.flush(true) ngx.sleep(SILENCE)
    ngx.print('data: {"id":"1","choices":[{"index":0,"text":"","finish_reason":"stop"}]}\\n\\n')
    ngx.print('data: [DONE]\\n\\n') }"""
STREAMS, SILENCE = 2000, 20  # seconds
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

    def start(self, core: str, argv, port: int, **more) -> subprocess.Popen:
        if port and listens(port):
            sys.exit(f"port {port} is taken: another bench runs")
        log = (self.folder / f"{port}.log").open("w")
        argv = ["taskset", "-c", core, *map(str, argv)]
        self.running.append(subprocess.Popen(argv, stdout=log, stderr=log, **more))
        deadline = time.monotonic() + 120
        while port and not listens(port):
            if self.running[-1].poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{argv} does not listen on {port}: {Path(log.name).read_text()[-2000:]}")
            time.sleep(0.1)
        return self.running[-1]

    def nginx(self, name: str, core: str, port: int, what: str) -> subprocess.Popen:
        text = NGINX.replace("FOLDER", str(self.folder)).replace("NAME", name)
        text = text.replace("WHAT", what).replace("ENGINE", str(ENGINE)).replace("PORT", str(port))
        file = self.folder / f"{name}.conf"
        file.write_text(text)
        return self.start(core, ["/usr/sbin/nginx", "-c", file, "-g", f"user {USER};"], port)

    def gateway(self) -> subprocess.Popen:
        paths = {f"r1_{name}": str(self.folder / name) for name in ("etc", "run", "log")}
        for name in ("gateway", "redis"):
            (self.folder / "run" / name).mkdir(parents=True)
        redis = Role("redis", __redis_user=USER, **paths)
        redis.write()
        self.start(OTHERS, redis.argv(), 0)
        settings = {
            "gateway_port": GATEWAY, "engine_port": ENGINE, "gateway_address": "127.0.0.1",
            "secrets_api_keys": KEYS, "secrets_engine_key": "x", "__gateway_user": USER,
            "gateway_workers": 1, "gateway_connections": 8192,
            "gateway_engine_requests": 2 * STREAMS,
        }  # fmt: skip
        role = Role("gateway", **paths, **settings)
        role.write()
        return self.start(TESTED, role.argv(), GATEWAY)

    def litellm(self, python: str) -> None:
        self.start(OTHERS, ["redis-server", "--port", "18105", "--save", ""], 18105)
        file = self.folder / "litellm.json"
        file.write_text(json.dumps(LITELLM_SETTINGS))
        argv = [Path(python).with_name("litellm"), "--config", file, "--port", str(LITELLM)]
        environment = os.environ | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "18105"}
        self.start(TESTED, [*argv, "--host", "127.0.0.1"], LITELLM, env=environment)

    def load(self, port: int, connections: int, number: str, **asked) -> tuple:
        body = question(**asked)
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


def question(**asked) -> str:
    message = {"role": "user", "content": "NUMBER " + "word " * 100}
    return json.dumps({"model": "tiny-r1", "temperature": 0, "messages": [message]} | asked)


def comes_from_the_cache(port: int, header: str, value: str | None, **asked) -> None:
    """Puts the answer into the cache, and ends the program unless it is found there."""
    body = question(**asked).replace("NUMBER", "same")
    headers = {"Authorization": f"Bearer {KEYS[0]['key']}", "Content-Type": "application/json"}
    for _ in range(20):  # after a failure Redis is left alone for a while
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        answer.read()
        said = answer.getheader(header)
        if answer.status == 200 and said and value in (None, said):
            return
        time.sleep(0.5)
    sys.exit(f"{port}: {answer.status}, {header}: {said}: no hit, so there is none to measure")


def by_cache() -> Counter:
    """How many requests the gateway had, by what its cache did."""
    connection = http.client.HTTPConnection("127.0.0.1", GATEWAY, timeout=30)
    connection.request("GET", "/metrics")
    text, found = connection.getresponse().read().decode(), Counter()
    pattern = r'^gateway_requests_total\{.*cache="(\w+)".*\} (\d+)'
    for kind, count in re.findall(pattern, text, re.MULTILINE):
        found[kind] += int(count)
    return found


def hits(bench: Bench, what: str, connections: int, **asked) -> tuple:
    """A row of hits, with a word where some were none: on a busy machine Redis is given up."""
    comes_from_the_cache(GATEWAY, "X-Cache", "HIT", **asked)
    before = by_cache()
    measured = bench.load(GATEWAY, connections, '"same"', **asked)
    new = by_cache() - before
    lost = 1 - new["HIT"] / new.total()
    return show(f"{what}, {connections}" + (f" ({lost:.0%} were none)" if lost else ""), measured)


def resident(master: subprocess.Popen) -> int:
    """KiB in memory of the one worker."""
    children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
    status = Path(f"/proc/{children[0]}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE).group(1))


def silent_streams(port: int, master: subprocess.Popen) -> tuple[float, int]:
    """KiB in the worker for each of STREAMS open streams, and how many of them get their end."""
    body = '{"model":"tiny-r1","prompt":"x","stream":true,"temperature":0.6}'
    request = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {KEYS[0]['key']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    before, streams, whole = resident(master), [], 0
    try:
        for _ in range(STREAMS):
            streams.append(socket.create_connection(("127.0.0.1", port), timeout=SILENCE + 40))
            streams[-1].sendall(request)
        got = []
        for stream in streams:
            data = b""
            while b"data:" not in data and (piece := stream.recv(65536)):
                data += piece
            got.append(data)
        grown = resident(master) - before
        open_now = sum(b"[DONE]" not in data for data in got)
        if open_now < STREAMS:
            sys.exit(f"{port}: only {open_now} streams were open at once")
        for stream, data in zip(streams, got, strict=True):
            while piece := stream.recv(65536):
                data += piece
            whole += data.startswith(b"HTTP/1.1 200") and b"data: [DONE]\n\n" in data
    finally:
        for stream in streams:
            stream.close()
    return grown / STREAMS, whole


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


def show(what: str, measured: tuple) -> tuple:
    rate, median, most = measured
    print(f"| {what} | {rate:,.0f} | {median:.2f} | {most:.2f} |", flush=True)
    return measured


def goal(what: str, wanted: str, measured: float, met: bool) -> None:
    print(f"| {what} | {wanted} | {measured:,.2f} | {'yes' if met else 'no'} |")


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
    # Each stream is a file here, and two in the gateway.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    holds = HOLDS.replace("SILENCE", str(SILENCE))
    says = SAYS.replace("BODY", json.dumps(ANSWER))
    bench.nginx("engine", OTHERS, ENGINE, f"{says} }} location = /v1/completions {{ {holds}")
    plain = bench.nginx("plain", TESTED, PLAIN, PASSES)
    gateway = bench.gateway()
    other, same = "n", '"same"'
    print("| | requests/s | median, ms | 99 %, ms |\n|---|---|---|---|")
    direct, miss, hit = {}, {}, {}
    for count in (1, 32):
        direct[count] = show(f"plain nginx, {count} connections", bench.load(PLAIN, count, other))
        miss[count] = show(f"gateway, miss, {count}", bench.load(GATEWAY, count, other))
    for count in (1, 32, 256):
        hit[count] = hits(bench, "gateway, hit", count)
    for count in (1, 32):
        hits(bench, "gateway, hit as a stream", count, stream=True)
    rival = {}
    if litellm:
        bench.litellm(litellm)
        comes_from_the_cache(LITELLM, "x-litellm-cache-key", None)
        for count in (1, 32):
            show(f"LiteLLM, miss, {count}", bench.load(LITELLM, count, other))
            rival[count] = show(f"LiteLLM, hit, {count}", bench.load(LITELLM, count, same))
    plain_large, own_large = large(PLAIN), large(GATEWAY)
    print(f"\n1 MB: plain nginx {plain_large:.1f} ms, gateway {own_large:.1f} ms")
    print(f"\n| {STREAMS:,} silent streams, one worker | KiB a stream | whole |\n|---|---|---|")
    for name, port, master in (("plain nginx", PLAIN, plain), ("gateway", GATEWAY, gateway)):
        each, whole = silent_streams(port, master)
        print(f"| {name} | {each:.1f} | {whole:,} |", flush=True)

    print("\n| goal | wanted | measured | met |\n|---|---|---|---|")
    rate, added = hit[32][0], miss[1][1] - direct[1][1]
    goal("hits/s on one core, 32 connections", "10,000 or more", rate, rate >= 10000)
    if rival:
        times = rate / rival[32][0]
        goal("times LiteLLM's hits/s, 32 connections", "100 or more", times, times >= 100)
    goal("hit, median of 1 connection, ms", "0.15 or less", hit[1][1], hit[1][1] <= 0.15)
    goal("hit, 99 % of 1 connection, ms", "1 or less", hit[1][2], hit[1][2] <= 1)
    goal("miss over plain nginx, median, ms", "0.25 or less", added, added <= 0.25)
    more = own_large - plain_large
    goal("1 MB over plain nginx, median, ms", "10 or less", more, more <= 10)
    goal("silent streams that got their end", f"{STREAMS:,}", whole, whole == STREAMS)


if __name__ == "__main__":
    main()
