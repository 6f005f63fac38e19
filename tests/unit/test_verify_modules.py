"""The verify role's modules: documented as they are, and measuring what is there."""

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

LIBRARY = Path(__file__).parents[2] / "roles/verify/library"
MIB = 1024**2


def load(name):
    spec = spec_from_file_location(name, LIBRARY / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_matches_the_arguments():
    module = load("verify_endpoint")
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]
    for options in (documented, module.ARGUMENTS):
        for option in options.values():
            option.pop("description", None)
            option.pop("no_log", None)
    assert documented == module.ARGUMENTS


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("2 + 2 = 4.", False),
        ("if a < b and b > c: <b>bold</b>", False),
        ("a <|> b", False),
        ("4</think>", True),
        ("4<｜end▁of▁sentence｜>", True),
        ("4<|im_end|>", True),
        ("<｜User｜>", True),
    ],
)
def test_what_is_a_leaked_token(text, leaks):
    assert bool(load("verify_endpoint").LEAK.search(text)) is leaks


@pytest.mark.parametrize(
    ("times", "streamed"),
    [
        ([0.5 + n * 0.05 for n in range(100)], True),
        ([0.010 + n * 0.001 for n in range(40)], True),
        # neighbours joined by a busy machine
        ([0.010 + n // 10 * 0.01 for n in range(40)], True),
        ([5.0] * 100, False),
        ([5.0 + n * 0.00001 for n in range(100)], False),
        # a slow model in bursts of sixteen events
        ([0.8 + n // 16 * 0.8 for n in range(100)], False),
        # nothing for long, then all within a moment
        ([9.0 + n * 0.001 for n in range(100)], False),
    ],
)
def test_what_counts_as_streamed(times, streamed):
    events = [(seconds, {"content": "a"}) for seconds in times]
    assert load("verify_endpoint").is_streamed(events) is streamed


def test_own_addresses_are_those_the_kernel_gives_out():
    addresses = load("verify_endpoint").own_addresses()
    assert not any(address.startswith("127.") or address == "::1" for address in addresses)
    shown = os.popen("hostname -I").read().split()
    assert {address for address in shown if not address.startswith("fe80")} <= set(addresses)


def test_memory_of_a_users_processes(background):
    memory = load("engine_memory")
    as_root = os.geteuid() == 0
    uid, user = (65534, {"user": "nobody"}) if as_root else (os.getuid(), {})

    def measured():
        return memory.measured(memory.processes_of(uid))

    def held():
        return max((found["bytes"] for found in measured().values()), default=0)

    python = "/usr/bin/python3" if as_root else sys.executable
    hold = f"a = b'x' * {64 * MIB}; import time; time.sleep(60)"
    process = background([python, "-c", hold], ready=lambda: held() >= 64 * MIB, **user)
    found = measured()[str(process.pid)]
    assert found["measure"] == "pss"
    assert found["name"].startswith("python")
    assert 64 * MIB <= found["bytes"] < 96 * MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace of processes")
def test_processes_of_others_containers_are_not_counted(background):
    """Their users are numbers, which may be the same as the engine's."""
    memory, uid = load("engine_memory"), 64123
    as_user = ["setpriv", f"--reuid={uid}", "sleep", "60"]
    background(["unshare", "--pid", "--fork", *as_user], ready=lambda: memory.processes_of(uid))
    (contained,) = memory.processes_of(uid)
    own = background(as_user, ready=lambda: memory.processes_of(uid) != [contained])
    assert [folder.name for folder in memory.processes_of(uid)] == [str(own.pid)]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a right away from root")
def test_a_root_who_may_not_look_at_namespaces_sees_the_processes(background):
    """As in a container, where nobody has CAP_SYS_PTRACE."""
    uid = 64124
    background(["setpriv", f"--reuid={uid}", "sleep", "60"])
    look = (
        "import sys; sys.path.insert(0, 'roles/verify/library'); import pwd\n"
        "import engine_memory, engine_state\n"
        f"pwd.getpwnam = lambda name: type('', (), dict(pw_uid={uid}))\n"
        f"print(len(engine_memory.processes_of({uid})), engine_state.started('x') is not None)"
    )
    drop = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    seen = subprocess.run(
        [*drop, sys.executable, "-c", look],
        cwd=LIBRARY.parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert seen.stdout.split() == ["1", "True"]


def test_memory_of_what_holds_a_port(background, free_port):
    """All of its user's processes that have its name, and no other."""
    memory, port = load("engine_memory"), free_port()
    serve = "import socket, sys, time; s = socket.create_server(('', int(sys.argv[1])));"
    process = background(
        ["/usr/bin/python3", "-c", serve + "time.sleep(60)", port],
        ready=lambda: memory.user_of(port) is not None,
    )
    other = background(["sleep", "60"])
    name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    found = memory.measured(memory.processes_of(memory.user_of(port), name))
    assert str(process.pid) in found
    assert str(other.pid) not in found
    assert memory.user_of(free_port()) is None


def test_memory_falls_back_to_the_resident_size(tmp_path):
    (tmp_path / "status").write_text("Name:\tollama\nVmRSS:\t    2048 kB\n")
    (tmp_path / "comm").write_text("ollama\n")
    measured = load("engine_memory").measure(tmp_path)
    assert measured == {"name": "ollama", "bytes": 2 * MIB, "measure": "rss"}


def test_the_fullest_gpu_of_the_engine(monkeypatch):
    """nvidia-smi is a stand-in: there is no GPU in the tests."""
    memory = load("engine_memory")
    shown = "GPU-a, 10, 100\nGPU-b, 11, 300\nGPU-b, 10, 50\nGPU-a, 99, 9000\nGPU-a, 12, [N/A]\n"
    monkeypatch.setattr(memory.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    module = SimpleNamespace(run_command=lambda argv: (0, shown, ""))
    assert memory.fullest_gpu(module, {"10": {}, "11": {}, "12": {}}) == 350 * MIB
    assert memory.fullest_gpu(module, {"98": {}}) is None


@pytest.mark.parametrize(
    ("kv_tokens", "weights", "passed", "told"),
    [
        (100_000, 10_000 * MIB, True, "100,000 tokens of KV cache, planned 100,000 (+0.00%)"),
        (97_100, 10_000 * MIB, True, "97,100 tokens of KV cache, planned 100,000 (-2.90%)"),
        (80_000, 10_000 * MIB, False, "(-20.00%)"),
        (100_000, 10_400 * MIB, True, "10,400 MiB of weights, planned 10,000 (+4.00%)"),
        (100_000, 10_600 * MIB, False, "10,600 MiB of weights, planned 10,000 (+6.00%)"),
        (None, None, True, "the engine does not tell its tokens of KV cache"),
    ],
)
def test_the_plan_is_held_against_the_engine(load_plugin, kv_tokens, weights, passed, told):
    judge = load_plugin("roles/verify/action_plugins/verify_endpoint.py").judge_plan
    plan = {"kv_cache_tokens": 100_000, "kv_per_token": 64 * 1024, "weights_bytes": 10_000 * MIB}
    found, detail = judge({"kv_tokens": kv_tokens, "weights_bytes": weights}, plan)
    assert found is passed
    assert told in detail
    assert ("Likely cause: " in detail) is not passed


def test_an_engine_that_cannot_be_asked(load_plugin):
    judge = load_plugin("roles/verify/action_plugins/verify_endpoint.py").judge_plan
    assert judge({"failed": True, "msg": "no python"}, {}) == (
        False,
        "engine_state failed on the host: no python",
    )
