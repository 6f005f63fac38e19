"""The joining of problems; tests/refusals runs the role for real."""

import copy

import pytest
import yaml


@pytest.fixture(scope="module")
def preflight(load_plugin):
    return load_plugin("roles/preflight/filter_plugins/preflight.py")


@pytest.fixture(scope="module")
def rules(repo):
    def variables(role):
        return yaml.safe_load((repo / f"roles/{role}/vars/main.yml").read_text(encoding="utf-8"))

    found = variables("preflight")["__preflight_rules"]
    needs = found["engines"]["llamacpp"]
    assert needs["cpu_flags"] == "{{ __plan_llamacpp_cpu_flags }}"
    needs["cpu_flags"] = variables("plan")["__plan_llamacpp_cpu_flags"]
    return found


@pytest.fixture
def seen(rules):
    """A host on which everything works."""
    return {
        "os": {"id": "debian", "version": "12", "pretty": "Debian GNU/Linux 12 (bookworm)"},
        "arch": "x86_64",
        "python": "3.11.2",
        "glibc": "2.36",
        "cpu": {"model": "EPYC", "flags": copy.copy(rules["engines"]["llamacpp"]["cpu_flags"])},
        "user": "alice",
        "root": True,
        "disk": {"read_only": False},
        "ports": {},
        "problems": [],
    }


@pytest.fixture
def problems(preflight, rules, seen):
    wanted = {
        "ports": {"gateway_port": 80, "engine_port": 18000},
        "data_path": "/data",
        "become_error": "",
    }

    def join(settings=(), plan=None, become_error=""):
        plan = {"engine": "llamacpp", "runtime": "native"} | (plan or {})
        return preflight.preflight_problems(
            settings, seen, plan, rules, wanted | {"become_error": become_error}
        )

    return join


def test_a_good_host_has_none(problems):
    assert problems() == []


def test_everything_is_joined_once(problems, seen):
    seen["root"] = False
    found = problems(
        settings=["engine: value 'x' is wrong; fix: y", "model: value 'z' is wrong; fix: y"],
        plan={
            "problems": [
                "model: value 'z' is not known; fix: y",
                "engine.x: no",
                "disk: too little; fix: y",
            ]
        },
    )
    assert [text.partition(":")[0] for text in found] == ["engine", "model", "no sudo", "disk"]


def test_the_message_is_numbered(preflight):
    message = preflight.preflight_refusal(["a: value 1 is wrong; fix: b", "c: value 2; fix: d"])
    assert message.splitlines() == [
        "Refused, nothing was changed. 2 problems:",
        "1. a: value 1 is wrong; fix: b",
        "2. c: value 2; fix: d",
    ]


def test_no_root(problems, seen):
    seen["root"] = False
    (found,) = problems(become_error="Task failed: early\nTask failed: Missing sudo password")
    assert found.startswith("no sudo: user alice cannot become root (Missing sudo password); fix:")
    assert "--ask-become-pass" in found


@pytest.mark.parametrize(
    ("key", "value", "start"),
    [
        (
            "os",
            {"id": "alpine", "version": "3.20", "pretty": "Alpine Linux v3.20"},
            "operating system: value 'Alpine Linux v3.20' is not supported; fix: use a host with"
            " Debian 12, Debian 13, Ubuntu 22.04, Ubuntu 24.04",
        ),
        (
            "os",
            {"id": "debian", "version": "11", "pretty": "Debian 11"},
            "operating system: value 'Debian 11' is not supported",
        ),
        ("arch", "aarch64", "processor: value aarch64 is not supported; fix: use a host with an"),
        ("python", "3.8.10", "python: value 3.8.10 is too old; fix: install Python 3.9 or newer"),
        ("glibc", "2.31", "glibc: value 2.31 is too old for engine llamacpp; fix:"),
        (
            "disk",
            {"read_only": True},
            "data_path: value /data lies on a read-only file system; fix: set data_path",
        ),
        (
            "problems",
            ["GPUs could not be read: nvidia-smi fails: mismatch", "container could not be read"],
            "host: value 'GPUs could not be read: nvidia-smi fails: mismatch' stands in the way",
        ),
    ],
)
def test_what_a_host_may_lack(problems, seen, key, value, start):
    seen[key] = value
    (found,) = problems()
    assert found.startswith(start)


def test_processor_flags_count_for_llamacpp_alone(problems, seen):
    seen["cpu"] = {"model": "Core i7-4770", "flags": ["avx2", "fma", "f16c"]}
    (found,) = problems()
    assert found.startswith("processor: value 'Core i7-4770' lacks avx512f, ")
    assert found.endswith("fix: set engine to ollama")
    assert problems(plan={"engine": "ollama"}) == []


def test_ports(problems, seen):
    nginx = {"pid": 7, "process": "nginx", "user": "root", "cmdline": "nginx: master process"}
    seen["ports"] = {
        "80": {**nginx, "ours": False},
        "18000": {"pid": None, "process": None, "user": "bob", "cmdline": None, "ours": False},
    }
    gateway, engine = problems()
    assert gateway == (
        "gateway_port: value 80 is held by nginx (pid 7: nginx: master process); fix: stop it, or"
        " set gateway_port to a free port"
    )
    assert engine.startswith("engine_port: value 18000 is held by a process of user bob; fix:")
    for holder in seen["ports"].values():
        holder["ours"] = True
    assert problems() == []
