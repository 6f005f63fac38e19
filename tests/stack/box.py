"""What the stack tests do with a machine: deploy, look through the user's door, take away."""

import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from hosts.machine import Machine, Process, Result
from hosts.shell import say

CLONE = "/root/deepseek-r1"
PORT = 8080
# No hub answers, wherever the tests run: the bundled model is deployed, as on a machine offline.
NO_HUB = "-e modelscope_endpoint=http://127.0.0.1:9 -e huggingface_endpoint=http://127.0.0.1:9"
RECAP = re.compile(r"^local\s+: ok=\d+\s+changed=(\d+)\s+unreachable=0\s+failed=0\s", re.MULTILINE)
PLAY = ".venv/bin/ansible-playbook"


@dataclass
class Run:
    """A finished run of a playbook: its result, and the recap's number of changes."""

    result: Result
    recap: re.Pattern = RECAP

    @property
    def output(self) -> str:
        return self.result.output

    @property
    def seconds(self) -> float:
        return self.result.seconds

    @property
    def tasks(self) -> int:
        return self.output.count("\nTASK [")

    @property
    def changed(self) -> int:
        found = self.recap.search(self.result.ok().output)
        assert found, f"no clean recap in:\n{self.output[-3000:]}"
        return int(found.group(1))

    def changes(self) -> str:
        """The tasks that changed something, for a failed assertion."""
        tasks = re.split(r"^(?=TASK \[)", self.output, flags=re.MULTILINE)
        return "".join(task for task in tasks if re.search(r"^changed: ", task, re.MULTILINE))


class Box:
    port = PORT

    def __init__(self, machine: Machine, repo: Path | None = None):
        """Put a clone of the repository on the machine, unless it has one."""
        self.machine = machine
        if repo:
            held = machine.clone(repo, CLONE)
            say(f"the clone on {machine.name} is {held}")
        self.engine: str | None = None  # what is deployed now
        self.first_deploy: Run | None = None
        self.bare = machine.listing()
        self.bare_packages = self.packages()

    def play(self, title: str, command: str, **options) -> Run:
        result = self.machine.run(command, **{"cwd": CLONE} | options)
        run = Run(result)
        changed = RECAP.search(result.output)
        say(
            f"[{result.seconds:7.1f} s] {title}: exit {result.rc}, "
            f"changed={changed.group(1) if changed else '?'}"
        )
        return run

    def deploy_command(self, args: str = "") -> str:
        return f"make deploy ARGS='{NO_HUB} {args}'"

    def deploy(self, title: str, args: str = "", **options) -> Run:
        return self.play(title, self.deploy_command(args), **options)

    def want(self, engine: str, args: str = "") -> Run | None:
        """Have this engine deployed, whatever the test before left."""
        if self.engine == engine:
            return None
        self.engine = None
        run = self.deploy(f"make deploy, engine {engine}", f"-e engine={engine} {args}" if
                          engine != "llamacpp" else args)  # fmt: skip
        run.result.ok()
        self.engine = engine
        self.first_deploy = self.first_deploy or run
        return run

    def teardown(self, args: str = "") -> Run:
        self.engine = None
        run = self.play("teardown", f"{PLAY} playbooks/teardown.yml -l local {args}")
        run.result.ok()
        return run

    def verified(self) -> dict:
        """The last verify's report; fails when one of its checks failed."""
        report = self.report("verify")
        wrong = [check for check in report["checks"] if not check["passed"]]
        assert report["passed"] and not wrong, json.dumps(wrong, indent=2)
        return report

    def report(self, name: str) -> dict:
        return self.machine.json(f"{CLONE}/reports/local/{name}.json")

    # Through the user's door, from outside the machine

    def ask(self, path: str, body: dict | None = None, key: str | None = None):
        """(status, headers, body) of a request; status 0 when nobody answers."""
        request = urllib.request.Request(
            f"http://{self.machine.address}:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()
        except OSError as error:
            return 0, {}, str(error).encode()

    def key(self) -> str:
        return self.machine.read(f"{CLONE}/secrets/local/api_key").strip()

    def completion(self):
        """Ask something the tiny model knows; the seed keeps the answer from being a cached one."""
        model = json.loads(self.ask("/v1/models", key=self.key())[2])["data"][0]["id"]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "What is 2+2?"}],
            "temperature": 0,
            "seed": time.time_ns() % 2**31,
            "max_tokens": 200,
        }
        return self.ask("/v1/chat/completions", body, self.key())

    def answers_within(self, seconds: float) -> float:
        """Wait for a real completion; return the seconds it took, fail after `seconds`."""
        start = time.monotonic()
        said = ""
        while time.monotonic() - start < seconds:
            status, _, body = self.ask("/healthz")
            if status == 200:
                status, _, body = self.completion()
                if status == 200 and json.loads(body)["choices"][0]["message"]["content"]:
                    return time.monotonic() - start
            said = f"{status} {body[:500]!r}"
            time.sleep(0.1)
        raise AssertionError(f"no answer within {seconds} s; last: {said}\n{self.logs()}")

    def logs(self) -> str:
        return self.machine.run("tail -n 20 /var/log/deepseek-r1/*.log").output

    # What there is on the machine

    def services(self) -> dict[str, list[Process]]:
        """Our processes by service; `other` are those of nobody known."""
        found = {"supervisor": [], "engine": [], "redis": [], "gateway": [], "other": []}
        users = {"r1-engine": "engine", "r1-redis": "redis", "r1-gateway": "gateway"}
        for process in self.machine.processes():
            name = users.get(process.user)
            if name is None:
                name = "supervisor" if "supervisord" in process.command else "other"
            found[name].append(process)
        return found

    def packages(self) -> set[str]:
        return set(self.machine.run("dpkg-query -W -f '${Package}\\n'").ok().output.split())
