"""The services in containers: images, what a change touches, what comes back, who is left alone.

test_runtimes has the whole life of a deployment in containers, test_killed_deploys the kills.
"""

import json
import time
from pathlib import Path

import apt_repository
import docker_repository
import public_images
import pytest
from hosts import image, registry
from hosts.remote import Remote, docker_settings
from hosts.shell import say
from remote import RemoteBox

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]

PROJECT = "label=com.docker.compose.project=deepseek-r1"
COMPOSE = "docker compose -f /etc/deepseek-r1/compose/compose.yml"


def containers(box: RemoteBox, *filters: str) -> dict[str, tuple[str, str]]:
    """Name -> (id, time of start) of what Docker runs on the host."""
    options = " ".join(f"--filter {one}" for one in filters)
    form = "'{{.Name}} {{.Id}} {{.State.StartedAt}}'"
    said = box.machine.run(
        f"docker ps --quiet {options} | xargs --no-run-if-empty docker inspect --format {form}"
    )
    rows = (line.removeprefix("/").split() for line in said.ok().output.splitlines())
    return {name.removeprefix("deepseek-r1-").removesuffix("-1"): (i, t) for name, i, t in rows}


def words(run) -> str:
    return " ".join(run.output.split())


def touched(before: dict, after: dict) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def status(box: RemoteBox, path: str, options: str = "") -> str:
    """The HTTP status that the host itself gets."""
    form = "curl -s -o /dev/null -w '%{http_code}' --max-time 5"
    return box.machine.run(f"{form} {options} http://127.0.0.1:{box.port}{path}").output


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A deployment with the image built on a host where a container of somebody else runs."""
    with Remote(image.SYSTEMD_DEBIAN12) as host:
        settings = json.dumps(docker_settings() | {"features": {"cdi": True}})
        host.run(f"echo '{settings}' > /etc/docker/daemon.json; systemctl restart docker").ok()
        host.run(
            "tar -C / -ch bin/sleep lib64/ld-linux-x86-64.so.2 lib/x86_64-linux-gnu/libc.so.6"
            " | docker import - shop/web:1 && docker run --detach --name shop --publish 8099:8099"
            " shop/web:1 /bin/sleep infinity"
        ).ok()
        box = RemoteBox(
            host, REPO, tmp_path_factory.mktemp("built"), runtime="compose", images="build"
        )
        box.neighbour = containers(box, "name=shop")
        box.deploy("deploy").result.ok()
        yield box


def test_a_change_touches_no_more_than_it_must(built):
    before = containers(built)
    memory = built.infra.check_output("docker stats --no-stream --format '{{.Name}} {{.MemUsage}}'")
    say(f"memory: {', '.join(memory.splitlines())}")

    built.describe(gateway_max_body="11m")
    run = built.deploy("another setting of the gateway")
    assert run.changed and "Start what does not run" in run.changes()
    assert touched(before, containers(built)) == set(), "the gateway is only reloaded"
    form = "head -c 10700000 /dev/zero | curl -s -o /dev/null -w '%{http_code}' --data-binary @-"
    url = f"http://127.0.0.1:{built.port}/v1/completions"
    key = f"-H 'Authorization: Bearer {built.key()}' -H 'Content-Type: application/json'"
    assert built.machine.run(f"{form} {key} {url}").output == "400", "not 413: it has the new limit"
    assert built.deploy("again").changed == 0

    built.describe(redis_maxmemory="128mb")
    assert built.deploy("another setting of Redis").changed
    after = containers(built)
    assert touched(before, after) == {"redis"}
    built.verify()

    built.describe(llamacpp_prompt_cache_mib=128)
    assert built.deploy("another setting of the engine").changed
    assert touched(after, containers(built)) == {"engine"}
    assert built.deploy("again").changed == 0
    assert containers(built, "name=shop") == built.neighbour


def test_a_service_that_dies_comes_back(built):
    pids = [p for p in built.machine.processes() if p.user.startswith("r1-")]
    built.machine.kill(*pids)
    assert built.answers_within(30) < 30
    deadline = time.monotonic() + 60
    while len(containers(built, PROJECT, "health=healthy")) < 3 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(containers(built, PROJECT, "health=healthy")) == 3
    assert built.deploy("after the crash").changed == 0


def test_keys_change_by_their_playbook(built):
    built.change_keys(lambda: containers(built))


def test_metrics_are_for_the_host_alone(built):
    assert status(built, "/metrics") == "200"
    assert built.ask("/metrics")[0] == 403
    inside = f"curl -s -o /dev/null -w '%{{http_code}}' http://gateway:{built.port}/metrics"
    said = built.machine.run(f"{COMPOSE} exec -T engine {inside}")
    assert said.output == "403", "not for the engine either"


def test_containers_have_no_more_than_they_need(built):
    """What Docker says of them, and what they find when they try."""
    names = ("redis", "engine", "gateway")
    said = built.machine.run(
        f"docker inspect {' '.join(f'deepseek-r1-{name}-1' for name in names)}"
    )
    for name, found in zip(names, json.loads(said.ok().output), strict=True):
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["CapAdd"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert host["Memory"] > 0 and host["PidsLimit"] > 0 and host["Ulimits"]
        assert host["LogConfig"]["Config"] == {"max-file": "4", "max-size": "10m"}
        number, _, group = found["Config"]["User"].partition(":")
        assert int(number) > 0 and int(group) > 0
        published = {port for port, where in found["NetworkSettings"]["Ports"].items() if where}
        assert published == ({f"{built.port}/tcp"} if name == "gateway" else set())
    assert built.machine.run(f"{COMPOSE} exec -T engine touch /etc/x").rc
    way_out = "exec 3<>/dev/tcp/$0/80"
    assert built.machine.run(f"{COMPOSE} exec -T engine bash -c '{way_out}' 1.1.1.1").rc
    assert built.machine.run(f"{COMPOSE} exec -T redis ls /sys/class/net").ok().output == "lo\n"


def test_a_port_of_another_project_is_refused(built):
    built.describe(gateway_port=8099)
    run = built.deploy("on a port that another container has")
    built.describe(gateway_port=80)
    assert run.result.rc and "Refused, nothing was changed." in run.output
    assert "gateway_port: value 8099" in words(run)
    assert "shop" in run.output


def test_by_hand(built):
    """The command's verbs, and a build that was told to be renewed."""
    command = built.machine.run
    assert command("deepseek-r1 start").ok().output == ""
    assert "engine" in command("deepseek-r1 status").ok().output
    assert command("timeout 3 deepseek-r1 logs gateway").output
    before = containers(built)
    command("deepseek-r1 restart redis").ok()
    assert touched(before, containers(built)) == {"redis"}
    command("deepseek-r1 stop").ok()
    assert not containers(built, PROJECT)
    would = command("deepseek-r1 start --dry-run").ok().output
    assert sorted(would.split(":")[0] for would in would.splitlines()) == [
        "engine", "gateway", "redis"
    ]  # fmt: skip
    assert "redis: started" in command("deepseek-r1 start").ok().output
    assert command("deepseek-r1 start").ok().output == ""
    old = command("docker images --quiet deepseek-r1/runtime").output.split()
    built.describe(compose_build_stamp="2")
    assert built.deploy("the image built anew").changed
    new = command("docker images --quiet deepseek-r1/runtime").output.split()
    assert len(new) == 1 and new != old
    assert built.deploy("again").changed == 0


# STAND-IN for a card, which no machine of the tests has: its device is /dev/null.
CARD = """\
cdiVersion: "0.5.0"
kind: nvidia.com/gpu
devices:
- name: all
  containerEdits:
    deviceNodes: [{path: /dev/nvidia0, hostPath: /dev/null}]
"""
A10 = {"name": "NVIDIA A10", "memory_mib": 23028, "compute_capability": 8.6}


def test_cards_come_by_cdi(built):
    """A real Docker gives the engine the card; only the card is none."""
    built.machine.run(f"mkdir -p /etc/cdi && printf %s '{CARD}' > /etc/cdi/nvidia.yaml").ok()
    built.describe(engine="llamacpp", plan_hardware={"gpus": [A10], "ram_mib": 16000})
    run = built.deploy("with a card", "--skip-tags", "verify")
    run.result.ok()
    asked = "docker inspect --format '{{json .HostConfig.DeviceRequests}}' deepseek-r1-engine-1"
    (request,) = json.loads(built.machine.run(asked).ok().output)
    assert (request["Driver"], request["DeviceIDs"]) == ("cdi", ["nvidia.com/gpu=all"])
    assert built.machine.run(f"{COMPOSE} exec -T engine test -c /dev/nvidia0").rc == 0
    assert built.deploy("again", "--skip-tags", "verify").changed == 0
    built.describe(engine="auto", plan_hardware={})


def test_a_redis_that_is_adopted(built):
    """One that other machines reach, which a container does too; ours is gone meanwhile."""
    run = "docker run --detach --name cache --publish 6400:6379 --entrypoint redis-server"
    runtime = "$(docker images --quiet deepseek-r1/runtime)"
    built.machine.run(f"{run} {runtime} --protected-mode no --save ''").ok()
    built.describe(gateway_redis=f"{built.machine.address}:6400")
    assert built.deploy("with a Redis of the owner's").changed
    assert set(containers(built, PROJECT)) == {"engine", "gateway"}
    built.verified()  # among it: the second answer comes from the cache
    assert "r1:" in built.machine.run("docker exec cache redis-cli keys 'r1:*'").ok().output
    assert built.deploy("again").changed == 0
    built.describe(gateway_redis="auto")
    assert built.deploy("with its own Redis").changed
    built.machine.run("docker rm --force cache").ok()
    built.verified()


def test_a_replacement_that_is_cut_heals(built):
    """compose by itself stumbles over a container that it had begun to put in another's place.

    The old Redis is frozen, so that compose has to wait for it between the two, and is cut there.
    """
    built.machine.run(
        "sed -i 's/pids_limit: 64/pids_limit: 60/' /etc/deepseek-r1/compose/compose.yml;"
        " old=$(docker inspect --format '{{.State.Pid}}' deepseek-r1-redis-1);"
        " kill -STOP $old; setsid deepseek-r1 start &"
        " for i in $(seq 300); do"
        " docker ps --all --format '{{.Names}}' | grep -q _deepseek-r1-redis && break; sleep 0.1;"
        " done;"
        " pkill -KILL --full '^[d]ocker |[d]ocker-compose compose'; kill -CONT $old"
    )
    half = built.machine.run("docker ps --all --format '{{.Names}}'").ok().output
    assert "_deepseek-r1-redis-1" in half, "it was not cut at the moment that matters"
    built.deploy("after a cut replacement").result.ok()
    built.verified()
    assert len(containers(built, PROJECT, "health=healthy")) == 3
    assert built.deploy("again").changed == 0


def test_what_is_taken_away(built):
    """Nothing is left in Docker but what was there before."""
    built.teardown()
    for what in ("ps --all", "image ls", "network ls", "volume ls"):
        assert "deepseek" not in built.machine.run(f"docker {what}").ok().output
    assert containers(built) == built.neighbour
    assert built.teardown().changed == 0


@pytest.fixture(scope="module")
def public(llama_server_binary, ollama_binary):
    """The images in the tests' registry: setting -> name."""
    public_images.redis("library/redis:7.2.11-bookworm")
    public_images.openresty("openresty/openresty:1.27.1.2-0-bookworm")
    public_images.ollama("ollama/ollama:0.24.0", ollama_binary)
    public_images.llamacpp("ggml-org/llama.cpp:test", llama_server_binary)
    return {"llamacpp_image": registry.reference("ggml-org/llama.cpp:test")}


def test_images_are_pulled_once_and_held(public, tmp_path):
    """The digest of the first pull is what runs, whatever the tag means later."""
    with Remote(image.SYSTEMD_DEBIAN12) as host:
        box = RemoteBox(host, REPO, tmp_path, runtime="compose", **public)
        bad = box.deploy("no such registry", "-e", "redis_image=127.0.0.1:9/redis:7")
        assert bad.result.rc
        assert "redis_image: value 127.0.0.1:9/redis:7 cannot be pulled" in words(bad)
        assert "fix: set images to build, or name in redis_image a mirror" in words(bad)
        assert not containers(box)

        box.deploy("deploy, images pulled").result.ok()
        box.verified()
        held = json.loads(host.read("/var/lib/deepseek-r1/images.json"))
        assert len(held) == 3 and all(digest.startswith("sha256:") for digest in held.values())
        project = host.read("/etc/deepseek-r1/compose/compose.yml")
        assert all(f"{name.rpartition(':')[0]}@{held[name]}" in project for name in held)
        assert box.deploy("again").changed == 0

        # Another image under the same tag, and a host whose Docker has lost all images.
        public_images.redis("library/redis:7.2.11-bookworm", "another")
        assert box.deploy("the tag has moved").changed == 0
        host.run("deepseek-r1 stop && docker system prune --all --force").ok()
        box.deploy("the images are lost").result.ok()
        assert json.loads(host.read("/var/lib/deepseek-r1/images.json")) == held
        box.verified()

        box.describe(engine="ollama")
        box.deploy("Ollama's image").result.ok()
        box.verified()
        listed = host.run("docker images --format '{{.Repository}}'").ok().output
        assert "llama.cpp" not in listed, "the image of the engine before is gone"
        assert box.deploy("again").changed == 0
        box.teardown()
        assert host.run("docker images --quiet").ok().output == ""
        public_images.redis("library/redis:7.2.11-bookworm")


@pytest.fixture
def serve(tmp_path):
    """URL of a folder that test hosts can fetch from, and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    with apt_repository.served(folder) as url:
        yield url, folder


def test_docker_from_its_own_repository(serve, public, tmp_path):
    """apt takes the key with the pinned fingerprint, and no other that the mirror may offer."""
    url, folder = serve
    with Remote(image.SYSTEMD_DEBIAN13) as host:
        fingerprint = docker_repository.make(folder, host, "debian", "trixie")
        box = RemoteBox(
            host, REPO, tmp_path, runtime="compose", docker_packages="docker",
            docker_apt_url="http://127.0.0.1:9", **public,
        )  # fmt: skip
        run = box.deploy("no such mirror")
        assert run.result.rc and "docker_apt_url: value http://127.0.0.1:9 is of no use" in words(
            run
        )
        box.describe(docker_apt_url=url)
        run = box.deploy("a key that is not the pinned one")
        assert run.result.rc and "is not signed" in words(run)
        assert "the fingerprint of its key in docker_apt_key" in words(run)
        assert not box.infra.package("docker-ce").is_installed

        box.describe(docker_apt_key=fingerprint)
        box.deploy("the pinned key").result.ok()
        assert box.infra.package("docker-compose-plugin").is_installed
        assert box.infra.service("docker").is_enabled
        box.verified()
        assert box.deploy("again").changed == 0


def test_refused_where_docker_cannot_run(tmp_path):
    """Debian 12 has no compose v2, and this rented box may not run containers."""
    with Remote(image.SSH_DEBIAN12) as host:
        box = RemoteBox(
            host, REPO, tmp_path, runtime="compose", images="bundle", docker_apt_key="12AB"
        )
        run = box.deploy("on a rented box")
        said = words(run)
        assert run.result.rc and "Refused, nothing was changed. 4 problems:" in said
        assert "docker_packages: value distribution, but Debian 12 has no package of docker" in said
        assert "runtime: value compose, but this host is a container that may not run" in said
        assert "docker_apt_key: value 12AB is no fingerprint; fix: give its 40 digits" in said
        assert "images: value bundle needs a bundle to make them from; fix: say where it is" in said
