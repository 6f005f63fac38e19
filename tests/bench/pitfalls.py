#!/usr/bin/env python3
"""Known pitfalls of caches and proxies before a model, tried on three of them in one run.

  python3.12 -m venv /tmp/litellm && /tmp/litellm/bin/pip install 'litellm[proxy]==1.106.2' redis
  .venv-test/bin/python tests/bench/pitfalls.py [--litellm /tmp/litellm/bin/python]

This gateway; nginx with proxy_cache on the request's body and proxy_cache_lock; LiteLLM's proxy
with its Redis cache, and two keys by its custom_auth. Each has the same engines: a STAND-IN whose
answers are numbered, so that a stored answer can be told from a new one; and the real llama-server
with the tiny model where the thoughts of a real answer matter. Takes about two minutes.

Prints a table, and ends with 1 when this gateway falls into one.
"""

import argparse
import http.client
import json
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from bench_parts import (
    ENGINE_KEY,
    KEYS,
    USER,
    Engine,
    Gateway,
    Programs,
    events,
    free_port,
    listens,
    openai_shaped,
    text_of,
    wait_until,
)

PATIENCE = 4  # seconds of an engine's silence that all three are told to bear
NGINX = """
worker_processes 1; daemon off; pid FOLDER/nginx.pid; error_log stderr error;
events { worker_connections 1024; }
http {
    access_log off; client_max_body_size 10m;
    client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/x; uwsgi_temp_path FOLDER/x; scgi_temp_path FOLDER/x;
    proxy_cache_path FOLDER/cache keys_zone=answers:10m;
    server {
        listen 127.0.0.1:PORT;
        location / {
            proxy_pass http://127.0.0.1:ENGINE; proxy_http_version 1.1;
            proxy_set_header Authorization "Bearer TOKEN"; proxy_read_timeout PATIENCEs;
            proxy_cache answers; proxy_cache_methods POST; proxy_cache_valid 200 1h;
            proxy_cache_key $request_uri$request_body; proxy_cache_lock on;
            proxy_cache_lock_age 60s; proxy_cache_lock_timeout 60s;
            add_header X-Cache $upstream_cache_status;
        }
    }
}
"""
# Keys of LiteLLM's own need a database; this is its way without one.
AUTHORITY = """
from fastapi import HTTPException
from litellm.proxy._types import UserAPIKeyAuth

KEYS = {}

async def known(request, api_key):
    if api_key not in KEYS:
        raise HTTPException(401, "unknown key")
    return UserAPIKeyAuth(api_key=api_key, user_id=KEYS[api_key], team_id=KEYS[api_key])
"""


class Side:
    """One of the three, before the stand-in and before the real engine."""

    def __init__(self, name, before_engine, before_llama, redis, engine):
        self.name, self.gateway, self.llama = name, before_engine, before_llama
        self.redis, self.engine = redis, engine

    def ask(self, prompt, what=0, **fields):
        """Ask "PROMPT, NAME", and tell the engine to do `what` about it."""
        prompt = self.prompt(prompt, what)
        return self.gateway.chat(prompt, **{"temperature": 0} | fields)

    def prompt(self, prompt, what=0):
        prompt = f"{prompt}, {self.name}"
        self.engine.told.pop(prompt, None)
        if what:
            self.engine.told[prompt] = what
        return prompt

    def calls(self, prompt) -> int:
        return self.engine.calls[f"{prompt}, {self.name}"]


PITFALLS = []


def pitfall(title):
    """Registers a function of a Side that returns whether all was right, and what was seen."""
    return lambda function: PITFALLS.append((title, function))


@pitfall("A long question gets another one's answer")
def long_bodies(side):
    wrong = {}
    for size in (20_000, 1_500_000):
        for letter in "ab":
            prompt = side.prompt(f"{letter * size} long {size}")
            answer = side.gateway.chat(prompt, temperature=0)
            if answer.status != 200 or prompt not in text_of(answer.body, False)[1]:
                wrong[f"{size // 1000} KB"] = True
    return not wrong, f"another one's answer at {' and '.join(wrong)}" if wrong else "its own"


@pitfall("A field that changes the answer is not in the cache's key")
def fields_in_key(side):
    fields = {
        "guided_json": ({"type": "string"}, {"type": "object"}),
        "min_p": (0.1, 0.2),
        "chat_template_kwargs": ({"enable_thinking": True}, {"enable_thinking": False}),
        "repetition_penalty": (1.0, 1.1),
        "max_tokens": (10, 20),
        "response_format": ({"type": "text"}, {"type": "json_object"}),
    }
    missed = []
    for name, values in fields.items():
        answers = [side.ask(f"with {name}", **{name: value}) for value in values]
        if answers[0].status != 200 or side.calls(f"with {name}") != 2:
            missed.append(name)
    return not missed, f"missed: {', '.join(missed)}" if missed else "all in it"


@pitfall("One client's answer is given to another client")
def tenants(side):
    answers = [side.ask("whose", key=key["key"]) for key in KEYS]
    right = side.calls("whose") == 2 and {answer.status for answer in answers} == {200}
    return right, "to each its own" if right else "shared"


@pitfall("A conversation of 6 messages is never cached")
def conversations(side):
    prompt = side.prompt("six messages")
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(5)]
    body = {"model": "tiny-r1", "temperature": 0}
    body["messages"] = [*turns, {"role": "user", "content": prompt}]
    for _ in range(2):
        side.gateway.ask("/v1/chat/completions", body)
    calls = side.calls("six messages")
    return calls == 1, "cached" if calls == 1 else f"asked {calls} times"


@pitfall("20 identical questions at once are 20 calls of the engine")
def at_once(side):
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: side.ask("at once", 1), range(20)))
    calls, good = side.calls("at once"), sum(answer.status == 200 for answer in answers)
    return calls == 1 and good == 20, f"calls: {calls}; answers: {good}"


@pitfall("20 identical streams at once are 20 calls of the engine")
def streams_at_once(side):
    side.prompt("streams at once", 1)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: side.ask("streams at once", 1, stream=True), range(20)))
    calls = side.calls("streams at once")
    good = sum(answer.body.rstrip().endswith(b"[DONE]") for answer in answers)
    return calls == 1 and good == 20, f"calls: {calls}; answers: {good}"


@pitfall("10 that wait for an answer that fails are answered one after another")
def failures_at_once(side):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: side.ask("fails", "late 500"), range(10)))
    most = max(answer.seconds for answer in answers)
    failed = {answer.status for answer in answers} == {500}
    return failed and most < 5, f"{most:.1f} s for the last" + ("" if failed else ", not all 500")


@pitfall("Of 300 new questions within a moment some are not kept")
def many_at_once(side):
    prompts, answers = [f"many {number}" for number in range(300)], []
    for _ in range(2):
        with ThreadPoolExecutor(100) as pool:
            answers += pool.map(side.ask, prompts)
    # On a busy machine Redis may seem hung: then nothing is kept, and the answer says so.
    aside = {prompts[at % 300] for at, answer in enumerate(answers) if answer.cache == "BYPASS"}
    lost = sum(side.calls(prompt) != 1 for prompt in prompts if prompt not in aside)
    told = f", but for {len(aside)} while Redis was given up" if aside else ""
    return not lost, (f"{lost} are not" if lost else "all kept") + told


@pitfall("The next one waits in vain when the first of several askers leaves")
def leader_leaves(side):
    prompt = side.prompt("leader", 1.5)
    connection = leaves_open(side, prompt)
    time.sleep(0.5)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(side.gateway.chat, prompt, temperature=0)
        time.sleep(0.3)
        connection.close()
        answer = second.result()
    right = answer.status == 200 and answer.seconds < 3.5
    return right, f"{answer.status} after {answer.seconds:.1f} s"


def leaves_open(side, prompt, **more):
    """A connection that has asked, and has not read."""
    body = {"model": "tiny-r1", "temperature": 0} | more
    body["messages"] = [{"role": "user", "content": prompt}]
    return side.gateway.open("/v1/chat/completions", body, read=False)[0]


@pitfall("A hung Redis holds requests up")
def hung_redis(side):
    if not side.redis:
        return True, "has none"
    side.redis.send_signal(signal.SIGSTOP)
    try:
        answers = [side.ask(f"hung {number}") for number in range(3)]
    finally:
        side.redis.send_signal(signal.SIGCONT)
    most = max(answer.seconds for answer in answers)
    good = {answer.status for answer in answers} == {200}
    return good and most < 1, f"{most:.2f} s" + ("" if good else ", and it fails")


@pitfall("The cache does not come back when Redis does")
def redis_again(side):
    if not side.redis:
        return True, "has none"
    begin = time.monotonic()
    for number in range(60):
        answers = [side.ask(f"again {number}") for _ in range(2)]
        if {a.status for a in answers} == {200} and side.calls(f"again {number}") == 1:
            return True, f"after {time.monotonic() - begin:.0f} s"
        time.sleep(0.2)
    return False, "not within a minute"


@pitfall("Thoughts are lost when a stream comes from the cache (real engine)")
def thoughts(side):
    asked = {"temperature": 0, "stream": True, "max_tokens": 300}
    first, second = (side.llama.chat("What is 2+2?", **asked).body for _ in range(2))
    said, again = text_of(first, True), text_of(second, True)
    ids = [{item["id"] for item in events(body) if "id" in item} for body in (first, second)]
    stored = ids[0] == ids[1]
    right = bool(said[0]) and said == again
    if not right:
        return False, "lost" if said[0] else "not even in the first answer"
    return stored, "kept" if stored else "not cached"


@pitfall("The second answer has other bytes than the first")
def same_bytes(side):
    different = []
    for stream in (False, True):
        prompt = f"bytes {stream}"
        answers = [side.ask(prompt, stream=stream) for _ in range(2)]
        if answers[0].body != answers[1].body or side.calls(prompt) != 1:
            different.append("streams" if stream else "whole answers")
    return not different, f"in {' and '.join(different)}" if different else "the same"


@pitfall("A whole answer does not serve a stream, or in the wrong form")
def forms(side):
    side.ask("forms")
    streamed = side.ask("forms", stream=True)
    side.ask("forms, other way", stream=True)
    whole = side.ask("forms, other way")
    right = (
        streamed.headers["Content-Type"].startswith("text/event-stream")
        and whole.headers["Content-Type"].startswith("application/json")
        and side.prompt("forms") in text_of(streamed.body, True)[1]
        and side.prompt("forms, other way") in text_of(whole.body, False)[1]
    )
    # The second way is only for who asked for the usage, which a whole answer has.
    calls = side.calls("forms")
    return right and calls == 1, ("shared" if calls == 1 else "asked again") if right else "wrong"


def asked_again(side, cases) -> tuple:
    """Whether after each of these failures the same question is put to the engine again."""
    kept = []
    for what, stream in cases:
        prompt = f"failure {what} {stream}"
        with suppress(OSError, http.client.HTTPException):  # a cut answer that looks cut
            side.ask(prompt, what, stream=stream)
        before = side.calls(prompt)
        answer = side.ask(prompt, stream=stream)
        if side.calls(prompt) == before or answer.status != 200:
            kept.append(f"{what}{' (stream)' if stream else ''}")
    return not kept, f"kept: {', '.join(kept)}" if kept else "not kept"


@pitfall("An error is kept as an answer")
def errors_kept(side):
    return asked_again(side, [(500, False), (429, False), ("event", True)])


@pitfall("A cut or unfinished answer is kept")
def cut_kept(side):
    cases = [("cut", False), ("cut", True), ("no end", True), ("unfinished", False)]
    return asked_again(side, [*cases, ("unfinished", True)])


@pitfall("A client that leaves keeps the engine working, or its part of an answer is kept")
def client_leaves(side):
    prompt = side.prompt("leaves", "slowly")
    connection = leaves_open(side, prompt, stream=True)
    connection.getresponse().read(10)
    connection.close()
    time.sleep(3)
    stopped = prompt in side.engine.left
    answer = side.gateway.chat(side.prompt("leaves"), temperature=0, stream=True)
    whole = prompt in text_of(answer.body, True)[1] and events(answer.body)[-1] == "[DONE]"
    seen = "the engine stops" if stopped else "the engine works on"
    return stopped and whole, seen + ("" if whole else ", and a part of the answer is kept")


@pitfall("A random answer is kept for all")
def random_answers(side):
    prompt = side.prompt("random")
    body = {"model": "tiny-r1", "messages": [{"role": "user", "content": prompt}]}
    for _ in range(2):
        side.gateway.ask("/v1/chat/completions", body)
    calls = side.calls("random")
    return calls == 2, "not kept" if calls == 2 else "kept"


@pitfall("Cache-Control of the client is not obeyed")
def cache_control(side):
    ignored = []
    for control in ("no-cache", "no-store", "max-age=0"):
        prompt = f"control {control}"
        side.ask(prompt)
        side.ask(prompt, Cache_Control=control)
        if side.calls(prompt) != 2:
            ignored.append(control)
    side.ask("control, first", Cache_Control="no-store")
    side.ask("control, first")
    if side.calls("control, first") != 2:
        ignored.append("no-store of the first")
    return not ignored, f"ignored: {', '.join(ignored)}" if ignored else "obeyed"


@pitfall("Numbers beyond 2^53 are taken for each other, or changed")
def big_numbers(side):
    for seed in (9007199254740992, 9007199254740993):
        side.ask("big", seed=seed)
    sent = b"9007199254740993" in side.engine.bodies[side.prompt("big")]
    calls = side.calls("big")
    seen = "its own answer" if calls == 2 else "another one's answer"
    return sent and calls == 2, seen if sent else "changed on the way"


@pitfall("Of a key that stands twice in the JSON, cache and engine take different ones")
def twice(side):
    first, last = (json.dumps([{"role": "user", "content": side.prompt(x)}])
                   for x in ("twice, first", "twice, last"))  # fmt: skip
    body = f'{{"model":"tiny-r1","temperature":0,"messages":{first},"messages":{last}}}'
    side.gateway.ask("/v1/chat/completions", body.encode())
    names = ("twice, first", "twice, last")
    own = {name: text_of(side.ask(name).body, False)[1] for name in names}
    wrong = [name for name in names if f"of {side.prompt(name)}" not in own[name]]
    return not wrong, "another one's answer" if wrong else "right"


def status_and_shape(answer, allowed) -> tuple:
    shape = openai_shaped(answer)
    right = answer.status in allowed and shape
    if answer.status == 200:
        return False, "taken"
    return right, f"{answer.status}, {'' if shape else 'not '}OpenAI's shape"


@pitfall("The engine's 429 does not reach the client in OpenAI's shape")
def too_many(side):
    return status_and_shape(side.ask("too many", 429), (429,))


@pitfall("A silent engine: no 504 in OpenAI's shape")
def silent(side):
    return status_and_shape(side.ask("silent", PATIENCE + 6), (504,))


@pitfall("Broken JSON is answered as the server's failure")
def broken_json(side):
    answer = side.llama.ask("/v1/chat/completions", b'{"model":"tiny-r1","messages":[{"role"')
    return status_and_shape(answer, (400, 422))


@pitfall("An unknown key gets in, or is refused in another shape than OpenAI's")
def unknown_key(side):
    return status_and_shape(side.ask("who", key="nobody's"), (401,))


@pitfall("Too large a request is refused in another shape than OpenAI's")
def too_large(side):
    prompt = side.prompt("x" * 11_000_000)
    return status_and_shape(side.gateway.chat(prompt, temperature=0), (413,))


@pitfall("No engine: no 502 or 503 in OpenAI's shape")
def no_engine(side):
    side.engine.leave()
    return status_and_shape(side.ask("nobody there"), (502, 503))


def ours(programs: Programs, engine: Engine, llama: int) -> Side:
    redis = programs.redis("ours")
    programs.redis("ours-llama")
    return Side(
        "ours",
        programs.gateway("ours", engine.port, gateway_read_timeout=PATIENCE),
        programs.gateway("ours-llama", llama),
        redis,
        engine,
    )


def nginx(programs: Programs, engine: Engine, llama: int) -> Side:
    sides = []
    for number in (engine.port, llama):
        folder, port = programs.folder / f"nginx-{number}", free_port()
        folder.mkdir()
        text = NGINX.replace("FOLDER", str(folder)).replace("PORT", str(port))
        text = text.replace("TOKEN", ENGINE_KEY).replace("PATIENCE", str(PATIENCE))
        (folder / "nginx.conf").write_text(text.replace("ENGINE", str(number)))
        argv = ["/usr/sbin/nginx", "-c", folder / "nginx.conf", "-g", f"user {USER};"]
        process = programs.start(argv, lambda port=port: listens(port))
        sides.append(Gateway(process, port, None))
    return Side("nginx", *sides, None, engine)


def litellm(programs: Programs, engine: Engine, llama: int, python: str) -> Side:
    store = free_port()
    argv = ["/usr/bin/redis-server", "--port", store, "--bind", "127.0.0.1", "--save", ""]
    redis = programs.start(argv, lambda: listens(store), cwd=programs.folder)
    sides = []
    for number in (engine.port, llama):
        folder, port = programs.folder / f"litellm-{number}", free_port()
        folder.mkdir()
        keys = {key["key"]: key["name"] for key in KEYS}
        (folder / "authority.py").write_text(AUTHORITY.replace("KEYS = {}", f"KEYS = {keys}"))
        settings = {
            "model_list": [{
                "model_name": "tiny-r1",
                "litellm_params": {"model": "openai/tiny-r1", "api_key": ENGINE_KEY,
                                   "api_base": f"http://127.0.0.1:{number}/v1",
                                   "timeout": PATIENCE, "max_retries": 0},
            }],
            "litellm_settings": {
                "cache": True, "num_retries": 0, "telemetry": False,
                "cache_params": {"type": "redis", "host": "127.0.0.1", "port": store,
                                 "namespace": str(number)},
            },
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
            "general_settings": {"custom_auth": "authority.known",
                                 "master_key": "sk-" + "7c" * 32},  # it wants one
        }  # fmt: skip
        (folder / "settings.yaml").write_text(json.dumps(settings))
        argv = [Path(python).with_name("litellm"), "--config", folder / "settings.yaml"]
        argv += ["--host", "127.0.0.1", "--port", port, "--telemetry", "False"]
        process = programs.start(
            argv, lambda port=port: listens(port), cwd=folder,
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )  # fmt: skip
        sides.append(Gateway(process, port, None))
    side = Side("LiteLLM", *sides, redis, engine)
    wait_until(lambda: side.ask("warm").status == 200, 60, "LiteLLM answers")
    return side


def tried(function, side) -> tuple:
    try:
        return function(side)
    except Exception as error:  # whatever it is, the row says so
        return False, f"{type(error).__name__}: {error}"[:90]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--litellm", metavar="PYTHON", help="interpreter that has litellm[proxy]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        programs, engine, llama = Programs(Path(folder)), Engine(), free_port()
        try:
            programs.llama(llama, "--ctx-size", "4096")
            sides = [ours(programs, engine, llama), nginx(programs, engine, llama)]
            if asked.litellm:
                sides.append(litellm(programs, engine, llama, asked.litellm))
            fallen = compare(sides)
        finally:
            programs.stop()
    sys.exit(1 if fallen else 0)


def compare(sides) -> list:
    names = {"ours": "this gateway", "nginx": "nginx proxy_cache", "LiteLLM": "LiteLLM proxy"}
    print("| pitfall | " + " | ".join(names[side.name] for side in sides) + " |")
    print("|---" * (len(sides) + 1) + "|")
    fallen = []
    for title, function in PITFALLS:
        seen = [tried(function, side) for side in sides]
        cells = [f"{'ok' if good else '**no**'}: {text}" for good, text in seen]
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
        if not seen[0][0]:
            fallen.append(title)
    print(f"\n{len(PITFALLS)} pitfalls; this gateway falls into {len(fallen)}.")
    return fallen


if __name__ == "__main__":
    main()
