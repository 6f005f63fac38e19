"""Renders the roles' real templates and service descriptions with Ansible's own Templar."""

import getpass
import grp
import os
import re
import signal
import socket
import time
from pathlib import Path

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

REPO = Path(__file__).resolve().parents[2]
USER = getpass.getuser()
KEYS = [{"name": "default", "key": "key-of-default"}, {"name": "second", "key": "key-of-second"}]
ENGINE_KEY = "key-of-the-engine"
GROUP = grp.getgrgid(os.getgid()).gr_name

init_plugin_loader()

# What the roles before these would have found out.
PLAN = {
    "engine": "llamacpp",
    "served_model_name": "tiny-r1",
    "precision": "q4_k_m",
    "max_model_len": 4096,
    "max_num_seqs": 256,
    "download": {"files": [{"path": "tiny-r1.gguf", "bytes": 1, "sha256": "00"}]},
}


def listens(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def until(true, seconds: float = 30):
    """Wait until true() is, and return what it gives."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def worker_pids(gateway) -> set[int]:
    path = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    return {int(pid) for pid in path.read_text().split()}


def reload(gateway, old: str = "", new: str = "") -> None:
    """Reload the configuration, with other words in it (old: a pattern); the old workers leave."""
    config = Path(gateway.role.variables["r1_etc"]) / "gateway/nginx.conf"
    text, count = re.subn(old, new, config.read_text())
    assert count
    config.write_text(text)
    before = worker_pids(gateway)
    gateway.process.send_signal(signal.SIGHUP)
    until(lambda: worker_pids(gateway) and not before & worker_pids(gateway))


class Role:
    """One role with the variables it would have in deploy.yml, and those given here."""

    def __init__(self, name: str, **variables):
        self.folder = REPO / "roles" / name
        self.loader = DataLoader()
        self.loader.set_basedir(str(self.folder))
        self.variables = {}
        for part in ("settings/defaults", "settings/vars", f"{name}/defaults", f"{name}/vars"):
            self.variables |= self._load(REPO / "roles" / part / "main.yml")
        self.variables |= {
            "role_path": str(self.folder),
            "ansible_search_path": [str(self.folder)],
            "inventory_hostname": "test-host",
            "plan_result": PLAN,
            "inspect_result": {"cpu": {"count": 2}},
        } | variables

    def _load(self, path: Path):
        return self.loader.load_from_file(str(path), trusted_as_template=True)

    def _value(self, data, **more):
        return Templar(self.loader, variables=self.variables | more).template(data)

    def variable(self, name: str):
        return self._value(self.variables[name])

    def tasks(self, file: str = "main") -> list[dict]:
        return self._load(self.folder / "tasks" / f"{file}.yml")

    def write(self, file: str = "main") -> None:
        """Do what the template tasks do, but for owner and validation."""
        for task in self.tasks(file):
            if module := task.get("ansible.builtin.template"):
                path = Path(self._value(module["dest"]))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.rendered(module["src"]))
                path.chmod(int(module["mode"], 8))
            elif part := task.get("ansible.builtin.import_tasks"):
                self.write(part.removesuffix(".yml"))

    def rendered(self, template: str) -> str:
        lookup = "{{ lookup('ansible.builtin.template', source) }}"
        return self._value(trust_as_template(lookup), source=template)

    def service(self) -> dict:
        """The facts that the role's last task sets: its service."""
        task = self.tasks()[-1]
        facts = self._value(task["ansible.builtin.set_fact"], **task.get("vars", {}))
        return next(iter(facts.values()))

    def argv(self) -> list[str]:
        """The service's command, for the user who runs the tests."""
        argv = list(self.service()["command"])
        if "-g" in argv and os.getuid() == 0:
            argv[argv.index("-g") + 1] += f" user {USER} {GROUP};"
        return argv
