"""vLLM itself, without a GPU: the engine of GPU hosts serves the test model on a CPU."""

import fcntl
import http.client
import json
import re
import sys
import time
from pathlib import Path

import openai_client
import pytest
import yaml
from hosts import image, shell
from hosts.remote import Remote
from remote import RemoteBox

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.stack, pytest.mark.timeout(2400)]

# Compiling the model takes as long as all else of a start: one that does is enough.
EAGER = {"enforce_eager": True}
HOSTS = {
    "systemd": (image.SYSTEMD_DEBIAN12, {}),
    "supervisor": (image.SSH_DEBIAN12, EAGER | {"gateway_port": 8080, "data_path": "/srv/data"}),
    "compose": (image.SYSTEMD_DEBIAN12, EAGER | {"runtime": "compose", "images": "build"}),
}


@pytest.fixture(scope="module")
def wheels() -> Path:
    """All wheels that the hosts need, in a folder: they ask no package index."""
    folder = shell.CACHE.parent / "wheels"
    options = ("--quiet", "--no-deps", "--require-hashes", "--dest", folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        for file in ("vllm/files/requirements-cpu.txt", "supervisor/files/requirements.txt"):
            lock = REPO / "roles" / file
            shell.run(sys.executable, "-m", "pip", "download", *options, "-r", lock)
    return folder


@pytest.mark.parametrize(
    "manager", ["systemd", "compose", pytest.param("supervisor", marks=pytest.mark.long)]
)
def test_vllm(manager, wheels, tmp_path):
    recipe, settings = HOSTS[manager]
    with Remote(recipe, "--volume", f"{wheels}:/wheels:ro") as host:
        box = RemoteBox(
            host, REPO, tmp_path, engine="vllm", host_wheels="/wheels", verify_ready_timeout=600,
            **settings,
        )  # fmt: skip
        if manager != "compose":
            refused(box)
        deployed(box, manager)
        for step in THEN[manager]:
            step(box)
        box.teardown()
        assert "vllm" not in host.run("ls -R /opt /etc/deepseek-r1 2>&1").output


def refused(box: RemoteBox) -> None:
    box.describe(vllm_args={"max-num-seq": 3})
    run = box.deploy("with a flag that vLLM does not have")
    box.describe(vllm_args={})
    assert run.result.rc and "Refused, nothing was changed." in run.output, run.output
    assert "vllm_args: value max-num-seq is no flag of the pinned vLLM" in run.output


def deployed(box: RemoteBox, manager: str) -> None:
    box.deploy("deploy").result.ok()
    box.verified()
    report = box.report("deployed")
    assert report["engine"] == "vllm"
    again = box.deploy("deploy again")
    assert again.changed == 0, again.changes()
    file = box.infra.file("/etc/deepseek-r1/engine/vllm.yml")
    assert (file.user, file.group, file.mode) == ("root", "r1-engine", 0o640)
    flags = yaml.safe_load(file.content_string)
    plan = box.report("plan")
    assert flags["kv-cache-memory-bytes"] == plan["kv_cache_memory_bytes"]
    told = (
        "ps -ww -eo args; systemctl show '*' -p Environment; deepseek-r1 logs engine 9999;"
        " docker inspect deepseek-r1-engine-1; cat /etc/deepseek-r1/compose/compose.yml"
    )
    everything = box.machine.run(told).output
    assert "non-default args" in everything
    assert flags["api-key"] not in everything
    assert box.machine.open_ports() == {22, box.port}
    openai_client.check(f"http://{box.machine.address}:{box.port}", box.key())


def locked_in(box: RemoteBox) -> None:
    """What vLLM compiles and keeps has its place, and nothing else of the host is open to it."""
    asked = "docker inspect deepseek-r1-engine-1 --format '{{json .HostConfig}}'"
    found = json.loads(box.machine.run(asked).ok().output)
    assert found["ReadonlyRootfs"] and found["CapDrop"] == ["ALL"] and not found["CapAdd"]
    assert found["Tmpfs"] == {"/tmp": "exec"} and found["IpcMode"] == "private"
    assert found["ShmSize"] > 2**28, "Docker's own is 64 MiB"
    writable = [bind for bind in found["Binds"] if not bind.endswith(":ro")]
    assert writable == ["/var/lib/deepseek-r1/vllm:/var/lib/deepseek-r1/vllm:rw"]
    packages = "dpkg-query -W -f '${db:Status-Status}' g++"
    assert box.machine.run(packages).output != "installed", "compiled is in the container alone"
    assert box.machine.run(f"docker exec deepseek-r1-engine-1 {packages}").output == "installed"


def another_flag(box: RemoteBox) -> None:
    """The engine alone is started anew, with the flag; this start and the next compile nothing."""
    others = {p.pid for p in box.machine.processes() if p.user in ("r1-redis", "r1-gateway")}
    box.describe(vllm_args={"max-num-seqs": 1}, **EAGER)
    assert box.deploy("with a flag of one's own").changed
    box.verified()
    assert others <= {p.pid for p in box.machine.processes()}
    assert "max-num-seqs: 1\n" in box.infra.file("/etc/deepseek-r1/engine/vllm.yml").content_string


def dies_and_comes_back(box: RemoteBox) -> None:
    box.machine.kill(*(p for p in box.machine.processes() if p.user == "r1-engine"))
    seconds = box.answers_within(400)
    shell.say(f"[{seconds:7.1f} s] vLLM killed (SIGKILL): answers again")
    assert box.deploy("after the crash").changed == 0


def leaves(box: RemoteBox) -> None:
    """A client that leaves in the middle of its answer ends the engine's work, by its own count."""
    most = 4000
    long = {
        "model": "tiny-r1", "stream": True, "max_tokens": most, "ignore_eos": True,
        "messages": [{"role": "user", "content": "What is 2+2?"}],
    }  # fmt: skip
    before = counted(box, "generation_tokens_total")
    connection = http.client.HTTPConnection(box.machine.address, box.port, timeout=60)
    headers = {"Authorization": f"Bearer {box.key()}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(long), headers)
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: {")
    answer.close()
    connection.close()
    deadline = time.monotonic() + 60
    while counted(box, "num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    made = counted(box, "generation_tokens_total") - before
    shell.say(f"a client left: vLLM made {made:.0f} of {most} tokens")
    assert 0 < made < most / 2


def counted(box: RemoteBox, name: str) -> float:
    """One of vLLM's own counts."""
    metrics = f"curl -sf http://127.0.0.1:{box.settings.get('engine_port', 18000)}/metrics"
    said = box.machine.run(metrics).ok().output
    return float(re.search(rf"^vllm:{name}{{.*}} (\S+)$", said, re.MULTILINE)[1])


# A start of vLLM takes more than a minute here; the rest other engines have shown.
THEN = {
    "systemd": (another_flag, dies_and_comes_back, leaves),
    "supervisor": (dies_and_comes_back,),
    "compose": (locked_in,),
}
