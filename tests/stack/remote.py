"""A deployment on a test host, driven over SSH from a clone on this machine."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import testinfra
import yaml
from box import Box, Run
from hosts import clone
from hosts.machine import Result
from hosts.shell import say

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
RECAP = re.compile(
    r"^gpu-box\s+: ok=\d+\s+changed=(\d+)\s+unreachable=0\s+failed=0\s", re.MULTILINE
)


class RemoteBox(Box):
    """The controller's clone lies in `folder`; the host is called gpu-box in its inventory."""

    recap = RECAP

    def __init__(self, machine, repo: Path, folder: Path, **settings):
        self.folder = folder / "clone"
        if not self.folder.exists():
            clone.make(repo, self.folder)
        self.settings = {"model": "tiny-r1", "verify_ready_timeout": 180} | settings
        super().__init__(machine)
        self.infra = testinfra.get_host(f"docker://{machine.name}")
        self.inventory = folder / "inventory.yml"
        self.describe()

    def describe(self, **settings) -> None:
        """Write the inventory, with these settings changed from now on."""
        self.settings |= settings
        hosts = {"gpu-box": self.machine.inventory_lines() | self.settings}
        self.inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))

    @property
    def port(self) -> int:
        return self.settings.get("gateway_port", 80)

    def argv(self, playbook: str, *args: str) -> list[str]:
        return [str(PLAYBOOK), playbook, "-i", str(self.inventory), "-l", "gpu-box", *args]

    def start(self, log: Path, playbook: str = "deploy.yml") -> subprocess.Popen:
        """Start a playbook in a session of its own and return at once."""
        with log.open("wb") as stream:
            return subprocess.Popen(
                self.argv(playbook), cwd=self.folder, env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / ".ansible"),
            "COLUMNS": "200",
        }

    def play(self, title: str, playbook: str, *args: str, timeout: float = 900) -> Run:
        begin = time.monotonic()
        done = subprocess.run(
            self.argv(playbook, *args), cwd=self.folder, env=self.environment(), timeout=timeout,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        seconds = time.monotonic() - begin
        run = Run(Result(f"{playbook} {' '.join(args)}", done.returncode, done.stdout, seconds),
                  self.recap)  # fmt: skip
        found = self.recap.search(done.stdout)
        name = self.machine.name.removeprefix("deepseek-r1-test-")
        say(f"[{seconds:7.1f} s] {name}: {title}: exit {done.returncode}, "
            f"changed={found.group(1) if found else '?'}")  # fmt: skip
        return run

    def deploy(self, title: str, *args: str, **options) -> Run:
        return self.play(title, "deploy.yml", *args, **options)

    def verify(self, title: str = "verify, from outside") -> None:
        """playbooks/verify.yml knocks from this machine, through the user's door."""
        self.play(title, "playbooks/verify.yml").result.ok()
        self.verified()

    def teardown(self, *args: str) -> Run:
        run = self.play("teardown", "playbooks/teardown.yml", *args)
        run.result.ok()
        return run

    def change_keys(self, running) -> None:
        """Gives the first client a new key by its playbook; running(): what must stay as it is."""
        before, old = running(), self.key()
        assert self.play("keys, as they are", "playbooks/keys.yml").changed == 0
        self.play("a new key", "playbooks/keys.yml", "-e", "rotate=default").result.ok()
        assert self.key() != old
        deadline = time.monotonic() + 20  # the gateway reloads by itself
        while self.ask("/v1/models", key=old)[0] != 401:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert self.ask("/v1/models", key=self.key())[0] == 200
        assert running() == before
        assert self.play("keys, again", "playbooks/keys.yml").changed == 0

    def report(self, name: str):
        return yaml.safe_load((self.folder / f"reports/gpu-box/{name}.json").read_text())

    def key(self) -> str:
        return (self.folder / "secrets/gpu-box/api_key").read_text().strip()

    def logs(self) -> str:
        names = ("redis", "engine", "gateway")
        return "".join(
            self.machine.run(f"timeout 3 deepseek-r1 logs {name} | tail -n 20").output
            for name in names
        )
