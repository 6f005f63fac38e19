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
    assert "else __plan_llamacpp_cpu_flags" in needs["cpu_flags"]
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
        "disk": {"read_only": False, "closed": None},
        "ports": {},
        "adopted": {"ollama": None, "redis": None},
        "foreign": [],
        "packages_disturbed": [],
        "packages_conflict": [],
        "problems": [],
    }


@pytest.fixture
def problems(preflight, rules, seen):
    wanted = {
        "ports": {"gateway_port": 80, "engine_port": 18000},
        "data_path": "/data",
        "become_error": "",
        "runtime": "auto",
        "adopt_ollama": "",
        "adopt_redis": "",
        "package_changes": False,
        "driver_told": False,
    }

    def join(settings=(), plan=None, **other):
        plan = {"engine": "llamacpp", "runtime": "native"} | (plan or {})
        return preflight.preflight_problems(settings, seen, plan, rules, wanted | other)

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
            {"read_only": True, "closed": None},
            "data_path: value /data lies on a read-only file system; fix: set data_path",
        ),
        (
            "disk",
            {"read_only": False, "closed": "/root"},
            "data_path: value /data lies below /root, which the users of the services may not"
            " enter; fix: set data_path to a folder that all may reach, or chmod o+x /root",
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


def test_a_driver_that_does_not_answer_is_told_of_once(problems, seen):
    """By the role nvidia, where that has to do with it; not at all, where no driver is wanted."""
    seen["problems"] = ["GPUs could not be read: nvidia-smi fails: mismatch", "memory: no"]
    assert len(problems()) == 2
    (found,) = problems(driver_told=True)
    assert "memory" in found


def test_processor_flags_count_for_llamacpp_alone(problems, seen):
    seen["cpu"] = {"model": "Core i7-4770", "flags": ["avx2", "fma", "f16c"]}
    (found,) = problems()
    assert found.startswith("processor: value 'Core i7-4770' lacks avx512f, ")
    assert found.endswith("fix: set engine to ollama")
    assert problems(plan={"engine": "ollama"}) == []


def holder(process, pid=7, **other):
    line = {"process": process, "pid": pid, "user": "root", "cmdline": f"{process}: master"}
    return {**line, "ours": False, "container": None, "addresses": ["127.0.0.1"], **other}


def test_ports(problems, seen):
    seen["ports"] = {
        "80": holder("python3"),
        "18000": {"pid": None, "process": None, "user": "bob", "cmdline": None, "ours": False},
    }
    gateway, engine = problems()
    assert gateway == (
        "gateway_port: value 80 is held by python3 (pid 7: python3: master); fix: stop it, or"
        " set gateway_port to a free port"
    )
    assert engine.startswith("engine_port: value 18000 is held by a process of user bob; fix:")
    for one in seen["ports"].values():
        one["ours"] = True
    assert problems() == []


def test_ports_of_servers_that_one_can_live_with(problems, seen):
    seen["ports"] = {"80": holder("nginx"), "18000": holder("ollama")}
    gateway, engine = problems()
    assert "held by nginx (pid 7: nginx: master); fix: set gateway_port to a free port" in gateway
    assert "proxy_pass http://127.0.0.1:PORT" in gateway
    assert "fix: set ollama_adopt to true to serve with it, or set engine_port" in engine
    seen["ports"] = {"80": holder("docker-proxy", container="shop-web-1")}
    (found,) = problems()
    assert found.startswith("gateway_port: value 80 is held by container shop-web-1; fix: stop it")


@pytest.mark.parametrize(
    ("held", "found", "what", "fix"),
    [
        (None, None, "finds nothing on engine_port 11434", "start your Ollama"),
        (holder("ollama", ours=True), None, "finds this project's own service", "mostly 11434"),
        (
            holder("python3"),
            {"error": "no Ollama of this host holds the port"},
            "finds python3 (pid 7: python3: master) on engine_port 11434: no Ollama of this host",
            "mostly 11434",
        ),
        (holder("ollama"), {"version": "0.5.13"}, "finds Ollama 0.5.13, 0.12.0 or", "update it"),
        (
            holder("ollama", addresses=["127.0.0.1", "0.0.0.0"]),
            {"version": "0.24.0"},
            "other machines reach at 127.0.0.1, 0.0.0.0, past the gateway's keys",
            "set OLLAMA_HOST=127.0.0.1:11434",
        ),
    ],
)
def test_an_ollama_that_cannot_be_adopted(problems, seen, held, found, what, fix):
    seen["ports"] = {"11434": held} if held else {}
    seen["adopted"]["ollama"] = {"version": None, "error": None} | (found or {})
    (text,) = problems(adopt_ollama=11434)
    assert text.startswith("ollama_adopt: value true ")
    assert what in text
    assert fix in text.partition("; fix: ")[2]
    assert text.endswith(", or set ollama_adopt to false")


def test_an_ollama_and_a_redis_that_can_be_adopted(problems, seen):
    seen["ports"] = {"11434": holder("ollama", addresses=["127.0.0.1", "::1"])}
    seen["adopted"] = {"ollama": {"version": "0.24.0", "error": None}, "redis": {"error": None}}
    assert problems(adopt_ollama=11434, adopt_redis="127.0.0.1:6379", ports={}) == []
    seen["adopted"]["redis"]["error"] = "it answers -NOAUTH Authentication required."
    (text,) = problems(adopt_ollama=11434, adopt_redis="127.0.0.1:6379", ports={})
    assert text.startswith("gateway_redis: value '127.0.0.1:6379' cannot be used: it answers -NOA")
    assert "without a password" in text


def test_what_apt_would_do_to_packages_of_others(problems, seen):
    seen["packages_disturbed"] = [
        {"name": "libc6", "action": "upgraded", "old": "2.36-9", "new": "2.36-10"},
        {"name": "nginx", "action": "upgraded", "old": "1.20.1-1", "new": "1.22.1-9"},
        {"name": "keydb", "action": "removed", "old": "6.3", "new": None},
        {"name": "libssl3", "action": "downgraded", "old": "3.0.19", "new": "3.0.17"},
    ]
    (text,) = problems()
    assert text == (
        "host_package_changes: value false forbids what apt would do: nginx 1.20.1-1 would be"
        " upgraded to 1.22.1-9; keydb 6.3 would be removed; libssl3 3.0.19 would be downgraded to"
        " 3.0.17; fix: bring these packages up to date yourself, set host_package_changes to true"
        " to allow it, or set runtime to compose"
    )
    assert problems(package_changes=True) == []
    seen["packages_disturbed"] = seen["packages_disturbed"][:1]
    assert problems() == [], "a newer library of the same source is no harm"
    seen["packages_conflict"] = ["libnginx-mod-http-lua : Depends: nginx-abi-1.22.1-7"]
    (text,) = problems()
    assert text.startswith("packages: value 'libnginx-mod-http-lua : Depends: nginx-abi-1.22.1-7'")
    assert text.endswith("remove what comes from another source, or set runtime to compose")
    assert problems(runtime="compose")[0].endswith("remove what comes from another source")


def test_neighbours(preflight, seen):
    assert preflight.neighbours(seen, {"adopt_ollama": "", "adopt_redis": ""}) == []
    nginx = {"name": "nginx", "pid": 812, "unit": "nginx.service", "ports": [80, 443]}
    ollama = {"name": "ollama", "pid": 9, "unit": None, "ports": [11434]}
    seen["foreign"] = [nginx, ollama]
    assert preflight.neighbours(seen, {"adopt_ollama": 11434, "adopt_redis": ""}) == [
        "nginx (pid 812, nginx.service, port 80 443) runs on this host; it is left alone",
        "ollama (pid 9, port 11434) runs on this host; it serves, as set",
    ]
