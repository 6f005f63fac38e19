#!/usr/bin/env python3
"""Mixed load on the gateway while all around it fails: is every answer still the right one?

  .venv-test/bin/python tests/bench/chaos.py [--minutes 10]

Real parts alone: the gateway with two workers, its Redis, llama-server with the tiny model. First
the engine itself says what it answers to each question, one at a time and without the gateway. Then
clients with two keys ask those questions, whole and streamed, some again and some anew, beside
long streams, while in turn Redis is killed (SIGKILL), Redis hangs (SIGSTOP), the engine is killed,
the gateway is reloaded with another setting, and one of its workers is killed.

Checked: each answer word for word; an answer (told by its id) never goes to two keys; every error
is OpenAI-shaped, and comes only while the engine is away or a worker was killed; streams that span
a reload end in [DONE]; after each fault the service is back soon. Ends with 1 where one is not so.
"""

import argparse
import http.client
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

from bench_parts import (
    ENGINE_KEY,
    KEYS,
    Gateway,
    Programs,
    events,
    free_port,
    openai_shaped,
    text_of,
    wait_until,
)

TOPICS = ["What is 2+2?", "What is the capital of France?", "9.11 and 9.8, which is greater?",
          "How many Rs are there in the word 'strawberry'?", "Hello"]  # fmt: skip
MOST_TOKENS = 200
REST = 6  # seconds of calm before each fault
AWAY = 4  # seconds that what was killed or stopped stays away
SOON = 10  # seconds within which the service is back; Redis is left alone for 5 after a failure
AFTER = 1  # seconds that an error may still be on its way when the service is back
BROKEN = (OSError, http.client.HTTPException)


class Fault:
    """Something that happened, from `begin` to `end`, and what it may do to a request."""

    def __init__(self, name, allowed):
        self.name, self.allowed = name, allowed
        self.begin, self.end, self.back = time.monotonic(), None, None

    def overlaps(self, begin, end) -> bool:
        return begin < (self.end or end) + AFTER and end > self.begin


class Chaos:
    def __init__(self, programs: Programs):
        self.programs, self.engine_port = programs, free_port()
        self.start_engine()
        self.answers = self.ask_the_engine()
        self.redis = programs.redis("chaos")
        self.gateway = programs.gateway("chaos", self.engine_port, gateway_workers=2)
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.faults, self.violations = [], []
        self.counts, self.owners, self.slowest = Counter(), {}, 0
        self.long_since = None  # when the long stream of now began
        self.number = itertools.count(1)

    def start_engine(self):
        more = ["--ctx-size", "16384", "--parallel", "4"]
        self.engine = self.programs.llama(self.engine_port, *more)

    def ask_the_engine(self) -> dict:
        """What it answers to each question; those that it fails at are left out."""
        engine, known = Gateway(None, self.engine_port, None), {}
        for topic in TOPICS:
            for number in range(12):
                prompt = f"{topic} ({number})"
                answer = engine.chat(prompt, key=ENGINE_KEY, **self.fields())
                if answer.status == 200:
                    known[prompt] = self.said(answer.body, False)
        return known

    @staticmethod
    def fields() -> dict:
        return {"temperature": 0, "top_p": 0.95, "max_tokens": MOST_TOKENS}

    @staticmethod
    def said(body: bytes, stream: bool) -> tuple:
        """Thoughts and answer, without the token that this engine leaves at the end."""
        return tuple(part.replace("<｜end▁of▁sentence｜>", "").strip()
                     for part in text_of(body, stream))  # fmt: skip

    # The load.

    def client(self, key: str, seed: int) -> None:
        chance = random.Random(seed)
        prompts = sorted(self.answers)
        while not self.over.is_set():
            prompt, stream = chance.choice(prompts), chance.random() < 0.5
            # A seed changes no answer at temperature 0, but makes a question of its own.
            anew = {"seed": next(self.number)} if chance.random() < 0.3 else {}
            more = {"Cache_Control": "no-store"} if chance.random() < 0.1 else {}
            begin = time.monotonic()
            try:
                answer = self.gateway.chat(
                    prompt, key=key, stream=stream, **self.fields(), **anew, **more
                )
            except BROKEN as error:
                self.judge(begin, type(error).__name__, f"no whole answer: {error!r}")
            else:
                self.check(begin, key, prompt, stream, answer)
            time.sleep(0.02)

    def long_streams(self, key: str) -> None:
        """Of some seconds each, one after another, so that each fault meets one."""
        body = {"model": "tiny-r1", "prompt": "long", "stream": True, "grammar": "root ::= [0-9 ]+",
                "ignore_eos": True, "temperature": 0.6, "max_tokens": 2500}  # fmt: skip
        while not self.over.is_set():
            begin = self.long_since = time.monotonic()
            try:
                answer = self.gateway.ask("/v1/completions", body, key=key, seconds=120)
            except BROKEN as error:
                self.judge(begin, type(error).__name__, f"a long stream was cut: {error!r}")
                continue
            if answer.status != 200:
                self.check(begin, key, "long", True, answer)
                time.sleep(0.2)
                continue
            found = events(answer.body)
            if not found or found[-1] != "[DONE]":
                self.judge(begin, "event", f"a long stream ends in {found[-1:]}")
            else:
                with self.lock:
                    self.counts["long streams"] += 1
                    now = time.monotonic()
                    for fault in self.faults:
                        if fault.name == "reload" and begin < fault.begin < now:
                            self.counts["long streams over a reload"] += 1

    def check(self, begin, key, prompt, stream, answer) -> None:
        with self.lock:
            self.counts["requests"] += 1
            self.counts[f"cache: {answer.cache}"] += 1
            self.slowest = max(self.slowest, answer.seconds if prompt != "long" else 0)
        if answer.status != 200:
            if not openai_shaped(answer):
                self.violation(f"{answer.status} in another shape: {answer.body[:200]!r}")
            return self.judge(begin, answer.status, f"{answer.status}: {answer.body[:200]!r}")
        found = events(answer.body) if stream else [answer.json()]
        if stream and found[-1:] != ["[DONE]"]:
            return self.judge(begin, "event", f"a stream ends in {found[-1:]}")
        said = self.said(answer.body, stream)
        if said != self.answers[prompt]:
            self.violation(f"{prompt} ({answer.cache}): {said}, not {self.answers[prompt]}")
        with self.lock:
            # Who got this answer first.
            owner = self.owners.setdefault(found[0]["id"], (key, prompt))
        if owner != (key, prompt):
            self.violation(f"{key} got on {prompt} what {owner[0]} got on {owner[1]}")
        return None

    def judge(self, begin, what, told) -> None:
        """An error: may one of the faults of its time have caused it?"""
        end = time.monotonic()
        kind = what if isinstance(what, int) or what == "event" else "broken off"
        with self.lock:
            self.counts[f"error: {kind}"] += 1
            causes = [fault for fault in self.faults if fault.overlaps(begin, end)]
        if not any(kind in fault.allowed for fault in causes):
            self.violation(f"{told}, while: {[fault.name for fault in causes] or 'nothing'}")

    def violation(self, text: str) -> None:
        with self.lock:
            self.violations.append(text)
        print(f"VIOLATION: {text}", flush=True)

    # The faults.

    def fault(self, name, allowed=()) -> Fault:
        fault = Fault(name, allowed)
        with self.lock:
            self.faults.append(fault)
        return fault

    def probe(self, **more):
        try:
            return self.gateway.chat("Hello (0)", **self.fields(), **more)
        except BROKEN:
            return None

    def served(self) -> bool:
        answer = self.probe(Cache_Control="no-store")
        return answer is not None and answer.status == 200

    def cached(self) -> bool:
        answer = self.probe()
        return answer is not None and answer.cache == "HIT"

    def ended(self, fault: Fault, back) -> None:
        """What was away is there again: how long until `back` is true?"""
        begin = time.monotonic()
        while not back():
            if time.monotonic() - begin > SOON:
                self.violation(f"{fault.name}: not back within {SOON} s")
                break
            time.sleep(0.05)
        fault.end = time.monotonic()
        fault.back = fault.end - begin

    def redis_killed(self) -> None:
        fault = self.fault("Redis killed")
        self.redis.kill()
        self.redis.wait()
        time.sleep(AWAY)
        self.redis = self.programs.redis("chaos")
        self.ended(fault, self.cached)

    def redis_hung(self) -> None:
        fault = self.fault("Redis hung")
        self.redis.send_signal(signal.SIGSTOP)
        time.sleep(AWAY)
        self.redis.send_signal(signal.SIGCONT)
        self.ended(fault, self.cached)

    def engine_killed(self) -> None:
        fault = self.fault("engine killed", (502, 503, 504, "event"))
        self.engine.kill()
        self.engine.wait()
        time.sleep(AWAY)
        self.start_engine()
        self.ended(fault, self.served)

    def reloaded(self) -> None:
        variables = self.gateway.role.variables
        old = set(self.workers())
        variables["gateway_cache_max_kib"] = 1536 - int(variables["gateway_cache_max_kib"])
        self.gateway.role.write()
        wait_until(lambda: self.long_since and 0.3 < time.monotonic() - self.long_since < 0.6, 60,
                   "a long stream to reload under")  # fmt: skip
        fault = self.fault("reload")
        self.gateway.process.send_signal(signal.SIGHUP)
        under = self.long_since
        self.ended(fault, lambda: len(set(self.workers()) - old) == 2 and self.served())
        # It is to end before the next fault.
        wait_until(lambda: self.long_since != under, 60, "the end of a long stream")

    def worker_killed(self) -> None:
        workers = self.workers()
        victim = random.choice(workers)
        fault = self.fault("worker killed", (502, 503, 504, "broken off"))
        os.kill(victim, signal.SIGKILL)
        self.ended(fault, lambda: victim not in self.workers() and self.served())

    def workers(self) -> list[int]:
        master = self.gateway.process.pid
        return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children")
                .read_text().split()]  # fmt: skip

    # The run.

    def run(self, minutes: float) -> None:
        random.seed(1)
        threads = [threading.Thread(target=self.client, args=(key["key"], 10 * n + i), daemon=True)
                   for n, key in enumerate(KEYS) for i in range(3)]  # fmt: skip
        threads += [threading.Thread(target=self.long_streams, args=(KEYS[1]["key"],), daemon=True)]
        for thread in threads:
            thread.start()
        begin = time.monotonic()
        turn = itertools.cycle([self.redis_killed, self.reloaded, self.engine_killed,
                                self.redis_hung, self.worker_killed])  # fmt: skip
        while time.monotonic() - begin < 60 * minutes:
            time.sleep(REST)
            next(turn)()
        time.sleep(REST)
        self.over.set()
        for thread in threads:
            thread.join(60)
        for line in self.gateway.process.log.read_text(errors="replace").splitlines():
            if "lua entry thread aborted" in line or "exited on signal 11" in line:
                self.violation(line[:400])
        if not self.counts["long streams over a reload"]:
            self.violation("no long stream went on over a reload: that was not tried")

    def report(self) -> None:
        by_name = defaultdict(list)
        for fault in self.faults:
            by_name[fault.name].append(fault.back)
        print("| fault | times | back after, s, at most |\n|---|---|---|")
        for name, back in by_name.items():
            print(f"| {name} | {len(back)} | {max(back):.1f} |")
        print("\n| | count |\n|---|---|")
        for name, count in sorted(self.counts.items()):
            print(f"| {name} | {count:,} |")
        print(f"| different answers of the engine | {len(self.owners):,} |")
        print(f"| slowest answer but for long streams, s | {self.slowest:.1f} |")
        print(f"| violations | {len(self.violations)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        programs = Programs(Path(folder))
        try:
            chaos = Chaos(programs)
            chaos.run(asked.minutes)
            chaos.report()
        finally:
            programs.stop()
    sys.exit(1 if chaos.violations else 0)


if __name__ == "__main__":
    main()
