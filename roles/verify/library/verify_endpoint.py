#!/usr/bin/python
"""Prove a deployed endpoint through its users' door."""

import concurrent.futures
import contextlib
import http.client
import ipaddress
import json
import os
import random
import re
import socket
import ssl
import time
import urllib.parse
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: verify_endpoint
short_description: Prove a deployed endpoint through its users' door
description:
  - Knocks at the gateway like a client would and says of each promise whether it is kept.
    Changes nothing.
  - The action plugin of the same name runs these checks on the controller, or on the host where
    O(where=host), adds the memory check made by M(engine_memory) on the host, and writes the
    report.
  - A failed check does not fail the task; look at RV(passed).
options:
  url:
    description: Base URL of the gateway, without a trailing slash.
    type: str
    required: true
  api_key:
    description: A client's key.
    type: str
    required: true
  ca:
    description:
      - Certificate authority in PEM that signed the gateway's certificate. Empty means the
        system's own authorities.
    type: str
    default: ""
  model:
    description: Name under which the model is served.
    type: str
    required: true
  reasoning:
    description: Whether the model is expected to give its chain of thought.
    type: bool
    default: true
  cache:
    description: Whether the gateway is expected to cache deterministic answers.
    type: bool
    default: true
  question:
    description: The question asked.
    type: str
    default: What is 2+2?
  max_tokens:
    description: Most tokens one answer may have.
    type: int
    default: 512
  ready_timeout:
    description: Seconds to wait for the engine to become ready.
    type: int
    default: 120
  request_timeout:
    description: Seconds one answer may take.
    type: int
    default: 300
  closed_ports:
    description: Ports that must not answer on any address other machines can reach.
    type: list
    elements: int
    default: []
  where:
    description: Machine that knocks. Read by the action plugin.
    type: str
    choices: [controller, host]
    default: controller
  memory:
    description:
      - What M(engine_memory) is asked, and planned_bytes to compare it with. Read by the action
        plugin; empty leaves the memory check out.
    type: dict
    default: {}
  plan:
    description:
      - What M(engine_state) is asked, and kv_cache_tokens, kv_per_token and weights_bytes of the
        plan to compare its answer with. Read by the action plugin; empty leaves the check out.
    type: dict
    default: {}
  report:
    description: File on the controller for the report. Read by the action plugin; empty is none.
    type: str
    default: ""
author: The authors of this project
"""

EXAMPLES = r"""
- name: Prove the endpoint
  verify_endpoint:
    url: http://127.0.0.1:8080
    api_key: "{{ lookup('ansible.builtin.file', 'secrets/local/api_key') }}"
    model: deepseek-r1-1.5b
    report: reports/local/verify.json
  register: verify_result
"""

RETURN = r"""
passed:
  description: Whether every check passed.
  type: bool
  returned: always
endpoint:
  description: The base URL that was proved.
  type: str
  returned: always
checks:
  description: The checks in their order, each with name, passed, detail and seconds.
  type: list
  elements: dict
  returned: always
"""

# Signs of a chat template that leaks: think tags, <｜end▁of▁sentence｜>, <|im_end|> and the like.
LEAK = re.compile(r"</?think>|<[|｜][^<>|｜]{1,40}[|｜]>")
# A gateway that refuses connections for this long is not merely starting.
UNREACHABLE_AFTER = 20
# On a busy machine Redis may be slower than the gateway waits, which leaves it alone for 5 s then.
SLOW_REDIS_SECONDS = 6
# A tiny model's stream is over within 50 ms. On a busy machine this program may not run in that
# time and then finds all of it at once, so one such try proves nothing.
SHORT_STREAM_TRIES = 10


ARGUMENTS = {
    "url": {"type": "str", "required": True},
    "api_key": {"type": "str", "required": True, "no_log": True},
    "ca": {"type": "str", "default": ""},
    "model": {"type": "str", "required": True},
    "reasoning": {"type": "bool", "default": True},
    "cache": {"type": "bool", "default": True},
    "question": {"type": "str", "default": "What is 2+2?"},
    "max_tokens": {"type": "int", "default": 512, "no_log": False},
    "ready_timeout": {"type": "int", "default": 120},
    "request_timeout": {"type": "int", "default": 300},
    "closed_ports": {"type": "list", "elements": "int", "default": []},
    "where": {"type": "str", "choices": ["controller", "host"], "default": "controller"},
    "memory": {"type": "dict", "default": {}},
    "plan": {"type": "dict", "default": {}},
    "report": {"type": "str", "default": ""},
}


def shorten(text, limit=60):
    text = " ".join(str(text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Failed(Exception):
    """A check that failed: what came back, why that may be, what to run next."""

    def __init__(self, what, cause, advice):
        super().__init__(f"{what}. Likely cause: {cause}. Next: {advice}")


class Unreachable(Failed):
    """No HTTP answer at all. `final` when waiting cannot help."""

    def __init__(self, what, cause, advice, final=False):
        super().__init__(what, cause, advice)
        self.final = final


class Answer:
    def __init__(self, asked, response, raw, seconds):
        self.asked, self.raw, self.seconds = asked, raw, seconds
        self.status, self.headers = response.status, response.headers
        try:
            self.json = json.loads(raw)
        except ValueError:
            self.json = None

    def __str__(self):
        return f"{self.asked}: {self.status} {shorten(self.raw.decode('utf-8', 'replace'), 160)}"

    def error(self):
        """The OpenAI-shaped error, or None."""
        error = self.json.get("error") if isinstance(self.json, dict) else None
        if not isinstance(error, dict) or not {"message", "type", "code", "param"} <= set(error):
            return None
        return error if isinstance(error["message"], str) and error["message"] else None


class Door:
    """The gateway as a client meets it."""

    def __init__(self, url, key, ca, timeout):
        parts = urllib.parse.urlsplit(url)
        self.url, self.key, self.timeout = url, key, timeout
        self.host, self.tls = parts.hostname, parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.context = ssl.create_default_context(cadata=ca or None) if self.tls else None

    def connect(self, timeout):
        if self.tls:
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=timeout, context=self.context
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def send(self, connection, method, path, body, key):
        """Send a request and return the response whose body is still to be read."""
        headers = {"Accept": "application/json, text/event-stream"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def ask(self, method, path, body=None, key="", timeout=None):
        asked, start = f"{method} {self.url}{path}", time.monotonic()
        connection = self.connect(timeout or self.timeout)
        try:
            response = self.send(connection, method, path, body, key)
            answer = Answer(asked, response, response.read(), time.monotonic() - start)
        except (OSError, http.client.HTTPException) as error:
            raise self.unreachable(asked, error, timeout or self.timeout) from error
        finally:
            connection.close()
        if answer.status == 429:
            raise Failed(
                answer,
                "gateway_limits allows fewer requests a minute than these checks make, a dozen",
                "wait a minute and verify again, or raise gateway_limits",
            )
        return answer

    def stream(self, path, body):
        """Yield (seconds since the request, line) as the lines arrive; the response comes first."""
        asked, start = f"POST {self.url}{path} (stream)", time.monotonic()
        connection = self.connect(self.timeout)
        try:
            response = self.send(connection, "POST", path, body, self.key)
            yield response
            for line in response:
                yield time.monotonic() - start, line
        except (OSError, http.client.HTTPException) as error:
            raise self.unreachable(asked, error, self.timeout) from error
        finally:
            connection.close()

    def unreachable(self, asked, error, timeout):
        if isinstance(error, socket.gaierror):
            return Unreachable(
                f"{asked}: the name {self.host} cannot be resolved ({error.strerror})",
                "DNS does not know it on the machine that asks",
                "set verify_host to an address or a name that resolves",
                final=True,
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return Unreachable(
                f"{asked}: the TLS certificate is refused ({error.verify_message})",
                "the certificate is for another name or address, or from another authority",
                "set verify_host to a name in the certificate; `openssl s_client -connect "
                f"{self.host}:{self.port}` shows it; a new deploy renews a self-signed one",
                final=True,
            )
        if isinstance(error, ssl.SSLError):
            return Unreachable(
                f"{asked}: the TLS handshake failed ({error.reason or error})",
                "the port answers in plain HTTP, or something else listens there",
                "`deepseek-r1 logs gateway`, and compare gateway_tls with what is deployed",
                final=True,
            )
        if isinstance(error, ConnectionRefusedError):
            return Unreachable(
                f"{asked}: connection refused",
                f"the gateway is not running, or does not listen on port {self.port}",
                "`deepseek-r1 status`, then `deepseek-r1 logs gateway`",
            )
        if isinstance(error, TimeoutError) or "timed out" in str(error):
            return Unreachable(
                f"{asked}: no answer within {timeout:g} s",
                "a firewall drops the packets, or the engine hangs or is too slow",
                f"`deepseek-r1 status`, then `deepseek-r1 logs engine`; check that port "
                f"{self.port} is open; a slow model needs a larger verify_request_timeout",
            )
        if isinstance(error, (ConnectionResetError, http.client.HTTPException)):
            return Unreachable(
                f"{asked}: the connection was closed in the middle ({error!r})",
                "the gateway or engine stopped, or the port speaks TLS or another protocol",
                "`deepseek-r1 logs gateway`",
            )
        return Unreachable(
            f"{asked}: {error}",
            "the network between this machine and the host",
            f"look at routes and firewalls: `curl -v {self.url}/healthz`",
        )


class Visit:
    """What the checks of one run share."""

    def __init__(self, params):
        self.params = params
        self.door = Door(
            params["url"],
            params["api_key"],
            params["ca"],
            params["request_timeout"],
        )
        self.seed = random.SystemRandom().randrange(2**30)
        self.completion = None

    def chat(self, **more):
        """A deterministic question that no earlier run can have left in the cache."""
        request = {
            "model": self.params["model"],
            "messages": [{"role": "user", "content": self.params["question"]}],
            "max_tokens": self.params["max_tokens"],
            "temperature": 0,
            "seed": self.seed,
            **more,
        }
        return json.dumps(request).encode()

    def ask_again(self):
        return self.door.ask("POST", "/v1/chat/completions", self.chat(), key=self.door.key)

    def logs(self, service="engine"):
        return f"`deepseek-r1 logs {service}`"


def check_health(visit):
    start, pause, wait = time.monotonic(), 0.1, visit.params["ready_timeout"]
    while True:
        left = wait - (time.monotonic() - start)
        try:
            answer = visit.door.ask("GET", "/healthz", timeout=min(10, max(left, 3)))
            failed = None
        except Unreachable as error:
            answer, failed = None, error
            left = min(left, UNREACHABLE_AFTER - (time.monotonic() - start))
        if answer and answer.status == 200:
            return f"ready after {time.monotonic() - start:.1f} s"
        if answer and answer.status != 503:
            raise Failed(
                answer, "something else listens on this port", "`deepseek-r1 status`, gateway_port"
            )
        if left <= 0 or (failed and failed.final):
            raise failed or Failed(
                f"{answer}, still after {time.monotonic() - start:.0f} s",
                "the engine stopped, or is still loading the model",
                f"{visit.logs()}; a large model needs a larger verify_ready_timeout",
            )
        time.sleep(min(pause, left))
        pause = min(pause * 2, 2)


def check_models(visit):
    answer = visit.door.ask("GET", "/v1/models", key=visit.door.key)
    try:
        names = [model["id"] for model in answer.json["data"]]
    except (TypeError, KeyError):
        names = None
    if answer.status == 401:
        raise Failed(
            answer, "the key in secrets/ is not the deployed one", "deploy again, then verify"
        )
    if answer.status != 200 or names is None:
        raise Failed(answer, "the engine does not answer", visit.logs())
    if visit.params["model"] not in names:
        raise Failed(
            f"{answer.asked}: serves {', '.join(names) or 'nothing'}, not {visit.params['model']}",
            "another model was deployed since the plan was made",
            "deploy again, or plan again (playbooks/plan.yml)",
        )
    return f"serves {', '.join(names)}"


def refused_with_401(visit, key):
    for method, path, body in (
        ("GET", "/v1/models", None),
        ("POST", "/v1/chat/completions", visit.chat()),
    ):
        answer = visit.door.ask(method, path, body, key=key)
        if answer.status == 200:
            raise Failed(answer, "the gateway lets anyone in", visit.logs("gateway"))
        expect_error(visit, answer, 401)
    return "refused with an OpenAI-shaped 401"


def expect_error(visit, answer, *statuses):
    if answer.status not in statuses:
        wanted = " or ".join(map(str, statuses))
        raise Failed(
            f"{answer}, instead of {wanted}",
            "the gateway's configuration is not the deployed one, or the engine does not answer",
            visit.logs("gateway"),
        )
    if answer.error() is None:
        raise Failed(
            f"{answer}, which is not an OpenAI-shaped error (message, type, code, param)",
            "something other than the deployed gateway answers",
            visit.logs("gateway"),
        )


def check_no_key(visit):
    return refused_with_401(visit, "")


def check_wrong_key(visit):
    return refused_with_401(visit, "wrong-" + "0" * 40)


def check_completion(visit):
    answer = visit.door.ask("POST", "/v1/chat/completions", visit.chat(), key=visit.door.key)
    try:
        choice = answer.json["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        text, thought = message.get("content") or "", message.get("reasoning_content") or ""
    except (TypeError, KeyError, IndexError):
        choice = None
    if answer.status != 200 or choice is None:
        raise Failed(answer, "the engine failed while answering", visit.logs())
    visit.completion = answer
    tokens = (answer.json.get("usage") or {}).get("completion_tokens", "?")
    told = f"{tokens} tokens in {answer.seconds:.2f} s"
    if finish == "length":
        if not (thought or text).strip():
            raise Failed(
                f"{answer.asked}: {told} and not one of them visible",
                "a chat template that does not fit the model",
                visit.logs(),
            )
        return (
            f"{told}, cut at verify_max_tokens={visit.params['max_tokens']} "
            f"while {'answering' if text.strip() else 'thinking'}"
        )
    if finish != "stop" or not text.strip():
        raise Failed(
            f"{answer.asked}: finish_reason {finish}, content {shorten(text)!r}",
            "the engine stopped early, or its chat template does not fit the model",
            visit.logs(),
        )
    return f"{shorten(text)!r}, {told}"


def check_reasoning(visit):
    if visit.completion is None:
        raise Failed("not tried", "the completion failed", "see the check completion")
    message = visit.completion.json["choices"][0]["message"]
    return judge_reasoning(
        visit,
        visit.completion.asked,
        message.get("reasoning_content") or "",
        message.get("content") or "",
    )


def judge_reasoning(visit, asked, thought, text):
    for name, value in (("reasoning_content", thought), ("content", text)):
        leak = LEAK.search(value)
        if leak:
            raise Failed(
                f"{asked}: {name} holds {leak.group()!r}: {shorten(value)!r}",
                "the engine's chat template or reasoning parser does not fit the model",
                visit.logs(),
            )
    if not visit.params["reasoning"]:
        return "not a reasoning model; no special token in the answer"
    if not thought.strip():
        raise Failed(
            f"{asked}: no reasoning_content beside content {shorten(text)!r}",
            "the engine runs without its reasoning parser, or the template does not open <think>",
            visit.logs(),
        )
    return f"{len(thought)} characters of thought apart from {len(text)} of answer"


def read_stream(visit, seed):
    """Ask for a stream; return what was asked, [(seconds, delta)] and whether [DONE] ended it."""
    path = "/v1/chat/completions"
    asked = f"POST {visit.door.url}{path} (stream)"
    lines = visit.door.stream(path, visit.chat(stream=True, seed=seed))
    response = next(lines)
    kind = response.headers.get_content_type()
    if response.status != 200 or kind != "text/event-stream":
        body = b"".join(line for _, line in lines).decode("utf-8", "replace")
        raise Failed(
            f"{asked}: {response.status} {kind} {shorten(body, 160)}",
            "the engine failed, or does not stream",
            visit.logs(),
        )
    events, done = [], False
    for seconds, line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
            continue
        try:
            choices = json.loads(data).get("choices") or [{}]
            events.append((seconds, choices[0].get("delta") or {}))
        except (ValueError, AttributeError) as error:
            raise Failed(
                f"{asked}: an event that is no JSON: {shorten(data.decode('utf-8', 'replace'))}",
                "the engine broke off",
                visit.logs(),
            ) from error
    if not done or len(events) < 2:
        raise Failed(
            f"{asked}: {len(events)} events, {'then' if done else 'no'} [DONE] at the end",
            "the gateway or engine cut the stream, or the engine does not stream",
            f"{visit.logs('gateway')} and {visit.logs()}",
        )
    return asked, events


@contextlib.contextmanager
def woken_at_once():
    """Let no busy neighbour come between an arrival and its time, where this process may ask so."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (AttributeError, OSError):  # not Linux, not root
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def arrivals(events):
    """How many times something came in: one network read's events are handled within 0.1 ms."""
    times = [seconds for seconds, delta in events]
    return 1 + sum(later - times[number] > 0.0001 for number, later in enumerate(times[1:]))


def is_streamed(events):
    """Whether the events came as they were made.

    A wholly buffered stream comes in one burst at its end, a partly buffered one in a few. So from
    the first to the last event at least a fifth of the whole time must pass. Of a model that needs
    20 ms or more for an event, at least half of the events must arrive apart; of a faster one at
    least three, since there even an honest network joins neighbours.
    """
    first, last = events[0][0], events[-1][0]
    enough = len(events) / 2 if last / len(events) >= 0.02 else 3
    return last - first >= last / 5 and arrivals(events) >= enough


def check_stream(visit):
    for attempt in range(1, SHORT_STREAM_TRIES + 1):
        with woken_at_once():
            asked, events = read_stream(visit, visit.seed + attempt)
        if is_streamed(events) or events[-1][0] > 1 or attempt == SHORT_STREAM_TRIES:
            break
        time.sleep(0.3)
    told = (
        f"{len(events)} events, {arrivals(events)} of them apart, "
        f"the first after {events[0][0]:.3f} s, the last after {events[-1][0]:.3f} s"
    )
    if not is_streamed(events):
        raise Failed(
            f"{asked}: {told}",
            "something between the engine and this client buffers the stream",
            f"{visit.logs('gateway')}; look for a proxy in front of the gateway",
        )
    parts = {"reasoning_content": [], "content": []}
    for number, (_, delta) in enumerate(events):
        for name, found in parts.items():
            if (delta.get(name) or "").strip():
                found.append((number, delta[name]))
    thoughts, texts = parts["reasoning_content"], parts["content"]
    judge_reasoning(
        visit, asked, "".join(text for _, text in thoughts), "".join(text for _, text in texts)
    )
    if thoughts and texts and thoughts[-1][0] > texts[0][0]:
        raise Failed(
            f"{asked}: content came before the end of reasoning_content",
            "the engine's reasoning parser does not fit the model",
            visit.logs(),
        )
    return told


def cache_words(*answers):
    return [answer.headers.get("X-Cache", "absent") for answer in answers]


def check_cache(visit):
    first = visit.completion
    if first is None:
        raise Failed("not tried", "the completion failed", "see the check completion")
    second = visit.ask_again()
    if visit.params["cache"] and "BYPASS" in cache_words(first, second):
        time.sleep(SLOW_REDIS_SECONDS)
        visit.seed += 1
        first, second = visit.ask_again(), visit.ask_again()
    said = cache_words(first, second)
    told = f"X-Cache {said[0]} in {first.seconds:.3f} s, then {said[1]} in {second.seconds:.3f} s"
    if not visit.params["cache"]:
        return f"switched off by gateway_cache_ttl=0; {told}"
    if said != ["MISS", "HIT"]:
        raise Failed(
            f"{first.asked} twice: {told}, instead of MISS, then HIT",
            "the gateway cannot reach Redis",
            f"`deepseek-r1 status`, {visit.logs('redis')} and {visit.logs('gateway')}",
        )
    if first.raw != second.raw:
        raise Failed(
            f"{first.asked} twice: {told}, but with other bytes",
            "the cache gives the answer to another question",
            f"`deepseek-r1 stop`, and report it with {visit.logs('gateway')}",
        )
    return f"{told}, the same {len(first.raw)} bytes"


def check_error_shape(visit):
    unknown = visit.door.ask("GET", "/v1/no-such-route", key=visit.door.key)
    expect_error(visit, unknown, 404)
    broken = visit.door.ask("POST", "/v1/chat/completions", b'{"model": ', key=visit.door.key)
    expect_error(visit, broken, 400, 422, 500)  # llama-server calls it a 500
    return f"OpenAI-shaped: {unknown.status} on no such route, {broken.status} on broken JSON"


def check_admin_closed(visit):
    # Empty requests: an engine that does get them refuses them, in a shape that is not OpenAI's.
    verbs = (("POST", "/api/pull"), ("DELETE", "/api/delete"), ("POST", "/api/create"))
    for method, path in verbs:
        answer = visit.door.ask(method, path, b"{}", key=visit.door.key)
        if answer.status != 404 or answer.error() is None:
            raise Failed(
                f"{answer}, instead of the gateway's own 404",
                "the gateway passes the engine's admin verbs on to its clients",
                f"deploy again; {visit.logs('gateway')}",
            )
    return ", ".join(f"{method} {path}" for method, path in verbs) + ": 404"


def own_addresses():
    """This machine's addresses that other machines may reach."""
    found = []
    trie, table6 = Path("/proc/net/fib_trie"), Path("/proc/net/if_inet6")
    if trie.exists():
        found += re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", trie.read_text())
    if table6.exists():
        for line in table6.read_text().splitlines():
            number, _, _, scope = line.split()[:4]
            if scope != "20":  # link-local
                found.append(str(ipaddress.IPv6Address(int(number, 16))))
    return sorted({address for address in found if not ipaddress.ip_address(address).is_loopback})


def is_open(target):
    try:
        socket.create_connection(target, timeout=1).close()
    except OSError:
        return False
    return True


def check_ports_closed(visit):
    door, ports = visit.door, visit.params["closed_ports"]
    ports = [port for port in dict.fromkeys(ports) if port != door.port]
    try:
        addresses = sorted({found[4][0] for found in socket.getaddrinfo(door.host, door.port)})
    except OSError as error:
        raise door.unreachable(f"connecting to {door.host}", error, 1) from error
    if all(ipaddress.ip_address(address).is_loopback for address in addresses):
        addresses = own_addresses()
    if not addresses:
        return "this machine has loopback addresses only: nobody outside can reach any port"
    targets = [(address, port) for address in addresses for port in ports]
    with concurrent.futures.ThreadPoolExecutor(max_workers=32) as pool:
        tried = {target: pool.submit(is_open, target) for target in targets}
    opened = [target for target, attempt in tried.items() if attempt.result()]
    if opened:
        names = ", ".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in opened
        )
        raise Failed(
            f"connections to {names} are accepted, so other machines can get past the gateway",
            "a program listens beyond loopback: one of ours started by hand, or one of yours",
            f"on the host `ss -ltnp 'sport = :{opened[0][1]}'` names it; stop it or bind it to "
            "127.0.0.1; if it is meant to be open, take the port out of verify_closed_ports",
        )
    return f"nothing accepts at {', '.join(addresses)} on {', '.join(map(str, ports))}"


CHECKS = {
    "health": check_health,
    "models": check_models,
    "no_key": check_no_key,
    "wrong_key": check_wrong_key,
    "completion": check_completion,
    "reasoning": check_reasoning,
    "stream": check_stream,
    "cache": check_cache,
    "error_shape": check_error_shape,
    "admin_closed": check_admin_closed,
    "ports_closed": check_ports_closed,
}


def run_checks(params):
    """Make all checks; return them in the report's form."""
    visit, checks, shut = Visit(params), [], False
    for name, check in CHECKS.items():
        start = time.monotonic()
        try:
            if shut and name != "ports_closed":
                raise Failed("not tried", "the gateway cannot be reached", "see the check health")
            detail, passed = check(visit), True
        except Failed as error:
            detail, passed = str(error), False
            shut = shut or (name == "health" and isinstance(error, Unreachable))
        checks.append(
            {
                "name": name,
                "passed": passed,
                "detail": detail.replace(params["api_key"], "(the key)"),
                "seconds": round(time.monotonic() - start, 3),
            }
        )
    return checks


def main():
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    checks = run_checks(module.params)
    module.exit_json(
        changed=False,
        endpoint=module.params["url"],
        passed=all(check["passed"] for check in checks),
        checks=checks,
    )


if __name__ == "__main__":
    main()
