"""What the role compose hands to its fragments, and its module for images, without Docker."""

import json
from types import SimpleNamespace

import jinja2
import pytest
import yaml

UIDS = {
    "r1-redis": {"uid": 990, "gid": 980},
    "r1-engine": {"uid": 991, "gid": 981},
    "r1-gateway": {"uid": 992, "gid": 982},
}
COMMON = {"tasks": 64, "memory_mib": 100, "start_timeout": 30, "config_hash": "abc"}
REDIS = {
    "name": "redis", "user": "r1-redis", "image": "redis:7", "open_files": 1064,
    "command": ["redis-server", "/etc/deepseek-r1/redis/redis.conf"],
    "ready": ["redis-cli", "ping"], "stop_signal": "TERM", **COMMON,
}  # fmt: skip
ENGINE = {
    "name": "engine", "user": "r1-engine", "image": "llama:1", "open_files": 65536,
    "command": ["/app/llama-server", "--alias", 'a $model "quoted"', "--port", 18000],
    "environment": {"HOME": "/x", "NUMBER": 1}, "ready": ["curl", "http://127.0.0.1"],
    "writable": ["/data/ollama"], "mounts": ["/data/models"], "gpu": False, **COMMON,
}  # fmt: skip
GATEWAY = {
    "name": "gateway", "user": "r1-gateway", "image": "nginx:1", "open_files": 9216,
    "command": ["nginx", "-g", "daemon off; pid /run/nginx.pid;"], "ready": ["curl"],
    "stop_signal": "QUIT", "low_port": True, "reload": ["nginx"], **COMMON,
}  # fmt: skip
PULLED = {name: f"{name.partition(':')[0]}@sha256:1" for name in ("redis:7", "llama:1", "nginx:1")}


@pytest.fixture
def render(repo, load_plugin):
    """The project as a dict, for these services."""
    compose = load_plugin("roles/compose/filter_plugins/compose.py")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(repo / "compose"), trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip

    def run(*services, images="deepseek-r1/runtime:1", open_files=None, engine="llamacpp", gpus=(),
            cdi=(), **given):  # fmt: skip
        found = compose.compose_services(services, UIDS, images, open_files)
        variables = {
            "__compose_services": found, "__compose_project": "deepseek-r1",
            "__compose_file": "/x", "__compose_engine_modern": True, "compose_log_mib": 10,
            "compose_log_backups": 3, "gateway_port": 80, "gateway_address": "0.0.0.0",
            "r1_etc": "/etc/deepseek-r1", "r1_opt": "/opt/deepseek-r1",
            "r1_run": "/run/deepseek-r1", "r1_pulled": images != "deepseek-r1/runtime:1",
            "plan_result": {"engine": engine, "served_model_name": "tiny-r1"},
            "__compose_gpus": compose.compose_gpus(list(gpus), cdi),
        }  # fmt: skip
        text = environment.get_template("project.yml.j2").render({**variables, **given})
        return yaml.safe_load(text)

    return run


def test_all_services_are_locked_in(render):
    project = render(REDIS, ENGINE, GATEWAY)
    assert list(project["services"]) == ["redis", "engine", "gateway"]
    for service in project["services"].values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pull_policy"] == "never"
        assert service["mem_limit"] == "100m" and service["pids_limit"] == 64
        assert service["healthcheck"]["test"] and service["healthcheck"]["interval"]
    assert project["services"]["redis"]["network_mode"] == "none"
    assert project["services"]["engine"]["networks"] == ["inside"]
    assert project["networks"]["inside"] == {"internal": True}
    gateway = project["services"]["gateway"]
    assert gateway["ports"] == [{"target": 80, "published": "80", "host_ip": "0.0.0.0"}]
    assert gateway["group_add"] == ["980"], "may use Redis's socket"
    assert gateway["user"] == "992:982"


def test_words_reach_the_program_as_they_are(render):
    """Compose replaces what looks like a variable of its own."""
    engine = render(REDIS, ENGINE, GATEWAY)["services"]["engine"]
    assert engine["command"][2] == 'a $$model "quoted"'
    assert engine["command"][4] == "18000"
    assert engine["environment"] == {"HOME": "/x", "NUMBER": "1"}


def test_a_changed_configuration_replaces_all_but_what_can_reload(render):
    services = render(REDIS, ENGINE, GATEWAY)["services"]
    assert services["redis"]["labels"] == {"deepseek-r1.config": "abc"}
    assert services["engine"]["labels"] == {"deepseek-r1.config": "abc"}
    assert "abc" not in json.dumps(services["gateway"])


CDI = [f"nvidia.com/gpu={name}" for name in ("0", "GPU-1", "GPU-3", "all")]


def test_no_cards_no_reservation(render):
    assert "deploy" not in render(REDIS, ENGINE, GATEWAY)["services"]["engine"]


@pytest.mark.parametrize("engine", ["llamacpp", "ollama", "vllm"])
@pytest.mark.parametrize(
    ("gpus", "cdi", "asked"),
    [
        ((), (), {"driver": "nvidia", "count": "all"}),
        ((), CDI, {"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"]}),
        (["GPU-1", "GPU-3"], (), {"driver": "nvidia", "device_ids": ["GPU-1", "GPU-3"]}),
        (
            ["GPU-1", "GPU-3"],
            CDI,
            {"driver": "cdi", "device_ids": ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-3"]},
        ),
        (["GPU-2"], CDI, {"driver": "nvidia", "device_ids": ["GPU-2"]}),
    ],
)
def test_cards_come_by_cdi_where_docker_knows_them_all(render, engine, gpus, cdi, asked):
    project = render(
        REDIS, ENGINE | {"gpu": True}, GATEWAY, engine=engine, gpus=gpus, cdi=cdi
    )["services"]["engine"]  # fmt: skip
    devices = project["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [asked | {"capabilities": ["gpu"]}]


def test_vllm_has_room_for_its_processes_and_its_compilers(render):
    engine = render(REDIS, ENGINE, GATEWAY, engine="vllm")["services"]["engine"]
    assert engine["shm_size"] == "50m", "half of the memory, as on a host"
    assert engine["tmpfs"] == "/tmp:exec"
    assert engine["volumes"] == [
        "/etc/deepseek-r1/engine:/etc/deepseek-r1/engine:ro",
        "/opt/deepseek-r1:/opt/deepseek-r1:ro",
        "/data/ollama:/data/ollama",
        "/data/models:/data/models:ro",
    ]
    assert engine["networks"] == ["inside"] and engine["entrypoint"] == []


def test_open_files_stay_within_what_docker_may_give(render):
    limits = [
        render(REDIS, ENGINE, GATEWAY, open_files=most)["services"]["engine"]["ulimits"]["nofile"]
        for most in (None, 20000, 1048576)
    ]
    assert limits == [65536, 20000, 65536]


def test_a_redis_of_ones_own_needs_no_socket(render):
    project = render(ENGINE, GATEWAY)
    assert "volumes" not in project and "redis" not in project["services"]
    assert project["services"]["gateway"]["volumes"] == [
        "/etc/deepseek-r1/gateway:/etc/deepseek-r1/gateway:ro"
    ]
    assert "group_add" not in project["services"]["gateway"]


def test_pulled_images_are_named_by_digest(render):
    services = render(REDIS, ENGINE, GATEWAY, images=PULLED)["services"]
    assert services["redis"]["image"] == "redis@sha256:1"
    mounts = services["engine"]["volumes"]
    assert "/opt/deepseek-r1:/opt/deepseek-r1:ro" not in mounts, "the program is in the image"
    built = render(REDIS, ENGINE, GATEWAY)["services"]["engine"]["volumes"]
    assert "/opt/deepseek-r1:/opt/deepseek-r1:ro" in built


@pytest.mark.parametrize(
    ("reference", "name", "digest"),
    [
        ("docker.io/library/redis:7.2.11", "docker.io/library/redis", ""),
        ("172.18.0.2:5000/ggml-org/llama.cpp:b1", "172.18.0.2:5000/ggml-org/llama.cpp", ""),
        ("127.0.0.1:5000/redis", "127.0.0.1:5000/redis", ""),
        ("redis:7@sha256:aa", "redis", "sha256:aa"),
        ("redis@sha256:aa", "redis", "sha256:aa"),
    ],
)
def test_parts_of_a_reference(load_plugin, reference, name, digest):
    assert load_plugin("roles/compose/library/held_images.py").parts(reference) == (name, digest)


def test_a_torn_lock_is_an_error_with_its_fix(load_plugin, tmp_path):
    module = load_plugin("roles/compose/library/held_images.py")
    lock = tmp_path / "images.json"
    lock.write_text("{")
    with pytest.raises(module.Refused, match=r"images.json is no JSON .* Fix: repair or remove it"):
        module.Images(lock, tmp_path / "pulled")


def test_how_docker_forwards(load_plugin, tmp_path):
    """Where the kernel does not forward, containers take all clients for the host."""
    module = load_plugin("roles/docker/library/docker_engine.py")
    settings = tmp_path / "daemon.json"
    process = tmp_path / "proc"
    process.mkdir()

    def forwards(arguments, text="{}"):
        settings.write_text(text)
        (process / "cmdline").write_text("\0".join(["dockerd", *arguments, ""]))
        return module.forwards(process)

    given = ["--config-file", str(settings)]
    assert forwards(given)
    assert not forwards(given, '{"iptables": false}')
    assert not forwards([f"--config-file={settings}"], '{"iptables": false}')
    assert not forwards([*given, "--iptables=false"])


SPECIFICATION = """\
---
cdiVersion: 0.5.0
containerEdits:
  hooks:
  - args: [nvidia-cdi-hook, update-ldcache]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/lib/libcuda.so.580.95.05
    hostPath: LIBRARY
devices:
- containerEdits:
    deviceNodes:
    - hostPath: /dev/null
      path: /dev/nvidia0
    - {path: /dev/nvidiactl, hostPath: /dev/null}
  name: "0"
- name: GPU-1
  containerEdits: {}
- containerEdits: {}
  name: all
kind: nvidia.com/gpu
"""


def test_cards_that_docker_knows_by_cdi(load_plugin, tmp_path):
    """YAML as nvidia-ctk writes it, or JSON; not of other makers, not of a driver that is gone."""
    module = load_plugin("roles/docker/library/docker_engine.py")
    file, library = tmp_path / "nvidia.yaml", tmp_path / "libcuda.so.580.95.05"
    text = SPECIFICATION.replace("LIBRARY", str(library))
    named = [f"nvidia.com/gpu={name}" for name in ("0", "GPU-1", "all")]
    file.write_text(text)
    assert module.cards(file) == [], "its library is of a driver that was there before"
    library.touch()
    assert module.cards(file) == named
    for dumped in (json.dumps(yaml.safe_load(text)), json.dumps(yaml.safe_load(text), indent=1)):
        file.write_text(dumped)
        assert module.cards(file) == named
    file.write_text(text.replace("nvidia.com/gpu", "nvidia.com/gds"))
    assert module.cards(file) == []


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('["FOLDER", "/no/such"]', ["nvidia.com/gpu=all"]),
        ("[]", []),
        ("null", []),
        ("", []),
    ],
)
def test_only_where_docker_may_use_cdi(load_plugin, tmp_path, monkeypatch, said, found):
    """A Docker that does not know CDI has no such field, one that may not use it no folders."""
    module = load_plugin("roles/docker/library/docker_engine.py")
    text = '{"kind": "nvidia.com/gpu", "devices": [{"name": "all"}]}'
    (tmp_path / "nvidia.json").write_text(text)
    (tmp_path / "notes.txt").write_text(text)
    done = SimpleNamespace(returncode=not said, stdout=said.replace("FOLDER", str(tmp_path)))
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: done)
    assert module.cdi() == found
