#!/usr/bin/env python3
"""What the gateway costs before a real engine under load, and what is left of clients that leave.

  python tests/bench/engine_door.py --model NAME [--engine URL] [--gateway URL] [--streams 32,128]

Runs as root on a deployed host (vLLM), with its keys. The same streams go straight to the engine
and through the gateway, by turns; each asks for as many tokens as the others (`ignore_eos`), and no
two ask the same. Then clients leave in the middle, and the engine's own figures tell how long it
worked on. Prints a Markdown table and a line. Needs nothing but Python.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

PROCESSES = min(8, os.cpu_count() or 1)
numbers = itertools.count(time.time_ns())


def request_for(url: str, key: str, model: str, number: int, tokens: int) -> bytes:
    body = json.dumps({
        "model": model, "stream": True, "max_tokens": tokens, "ignore_eos": True,
        "temperature": 0.6, "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": f"{number}: tell me all about it."}],
    })  # fmt: skip
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return (head + body).encode()


async def stream(url: str, request: bytes, leave_after: float) -> tuple[float, int]:
    """Seconds to the first event, and tokens as the engine counted; may leave in the middle."""
    start = time.monotonic()
    reader, writer = await asyncio.open_connection(*urlsplit(url).netloc.split(":"))
    writer.write(request)
    said, first = b"", None
    while piece := await reader.read(65536):
        said = said[-1000:] + piece
        if first is None and b"data: {" in said:
            first = time.monotonic() - start
        if leave_after and time.monotonic() - start > leave_after:
            writer.transport.abort()
            return first or 0.0, 0
    writer.close()
    if first is None or b"data: [DONE]" not in said:
        raise SystemExit(f"{url}: no whole stream: {said[-300:]!r}")
    return first, int(re.findall(rb'"completion_tokens":\s*(\d+)', said)[-1])


def several(url: str, requests: list[bytes], leave_after: float) -> list[tuple[float, int]]:
    async def run():
        return await asyncio.gather(*(stream(url, one, leave_after) for one in requests))

    return asyncio.run(run())


def cpu_seconds() -> float:
    """Of the gateway's processes so far."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:13])) if folder.owner() == "r1-gateway" else 0
        except (OSError, KeyError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def metric(engine: str, name: str) -> float:
    text = urllib.request.urlopen(f"{engine}/metrics", timeout=10).read().decode()
    return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))


class Load:
    def __init__(self, asked):
        self.asked, self.pool = asked, ProcessPoolExecutor(PROCESSES)

    def run(self, url: str, key: str, streams: int, tokens: int, leave_after: float = 0):
        requests = [
            request_for(url, key, self.asked.model, next(numbers), tokens) for _ in range(streams)
        ]
        parts = [part for i in range(PROCESSES) if (part := requests[i::PROCESSES])]
        start, used = time.monotonic(), cpu_seconds()
        jobs = [self.pool.submit(several, url, part, leave_after) for part in parts]
        found = [one for job in jobs for one in job.result()]
        return found, time.monotonic() - start, cpu_seconds() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--engine", default="http://127.0.0.1:18000")
    parser.add_argument("--engine-key", default="secrets/local/engine_key", type=Path)
    parser.add_argument("--gateway", default="http://127.0.0.1:8080")
    parser.add_argument("--key", default="secrets/local/api_key", type=Path)
    parser.add_argument("--streams", default="1,32,128,256")
    parser.add_argument("--tokens", default=256, type=int)
    parser.add_argument("--times", default=3, type=int)
    asked = parser.parse_args()
    load = Load(asked)
    doors = {
        "engine": (asked.engine, asked.engine_key.read_text().strip()),
        "gateway": (asked.gateway, asked.key.read_text().strip()),
    }
    print("| streams | through | tokens/s | first event, median, ms | 99 % | CPU, us/token |")
    print("|---|---|---|---|---|---|")
    for streams in map(int, asked.streams.split(",")):
        load.run(*doors["engine"], streams, asked.tokens)  # warm
        rows = {name: [] for name in doors}
        for _, name in itertools.product(range(asked.times), doors):
            rows[name].append(load.run(*doors[name], streams, asked.tokens))
        for name, runs in rows.items():
            rate = statistics.median(
                sum(tokens for _, tokens in found) / wall for found, wall, _ in runs
            )
            firsts = sorted(1000 * first for found, _, _ in runs for first, _ in found)
            made = sum(tokens for found, _, _ in runs for _, tokens in found)
            cpu = 1e6 * sum(used for _, _, used in runs) / made
            print(
                f"| {streams} | {name} | {rate:,.0f} | {statistics.median(firsts):.1f} | "
                f"{firsts[int(0.99 * (len(firsts) - 1))]:.1f} | {cpu:.1f} |", flush=True,
            )  # fmt: skip
    before = metric(asked.engine, "vllm:generation_tokens_total")
    load.run(*doors["gateway"], 64, 4000, leave_after=1.5)
    left = time.monotonic()
    while metric(asked.engine, "vllm:num_requests_running"):
        time.sleep(0.02)
    seconds = time.monotonic() - left
    made = metric(asked.engine, "vllm:generation_tokens_total") - before
    print(f"\n64 clients left after 1.5 s: the engine was idle {seconds:.2f} s later, "
          f"with {made:,.0f} of {64 * 4000:,} tokens made.")  # fmt: skip


if __name__ == "__main__":
    main()
