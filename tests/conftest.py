"""What more than one test needs: real programs at pinned versions, free ports, the tiny model."""

import importlib.util
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]
CACHE = REPO / ".cache"


def pytest_collection_modifyitems(items):
    """Files that may take longest go first, so that no worker is left with one of them at the end.
    How long a test may take, its mark `timeout` says."""
    longest = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0), mark.args[0] if mark else 0)
    items.sort(key=lambda item: -longest[item.path])


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def load_plugin():
    """Return a function that imports a module or plugin of a role: load_plugin("roles/...py")."""

    def load(path: str):
        file = REPO / path
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny_gguf() -> Path:
    """The R1-shaped test model that ships with the project (see roles/model/files/tiny-r1)."""
    return REPO / "roles/model/files/tiny-r1/tiny-r1-q4_k_m.gguf"


@pytest.fixture(scope="session")
def free_port():
    """Return a function that gives a TCP port nobody listens on, and another one each time. It is
    none that the kernel gives to whoever connects somewhere before the test listens on it."""
    given = set()

    def pick() -> int:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        while True:
            port = random.SystemRandom().randrange(lowest - 12000, lowest)
            with socket.socket() as probe:
                if port not in given and probe.connect_ex(("127.0.0.1", port)) != 0:
                    given.add(port)
                    return port

    return pick


def flags_lacking() -> list[str]:
    """What llama-server's program uses and this processor has not; a deploy refuses it, too."""
    plan = yaml.safe_load((REPO / "roles/plan/vars/main.yml").read_text())
    file = REPO / "roles/inspect/library/inspect_host.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.processor()["flags"]
    return [flag for flag in plan["__plan_llamacpp_cpu_flags"] if flag not in found]


@pytest.fixture(scope="session")
def llama_server_binary() -> Path:
    """The pinned llama-server the role llamacpp installs, unpacked once into .cache."""
    if lacking := flags_lacking():
        pytest.skip(f"llama-server's program needs a processor with {' '.join(lacking)}")
    lock = REPO / "roles/llamacpp/files/requirements.txt"
    venv = CACHE / "llamacpp"
    stamp = venv / ".lock"
    if not stamp.exists() or stamp.read_text() != lock.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run(
            [venv / "bin/pip", "install", "-q", "--require-hashes", "--no-deps", "-r", lock],
            check=True,
        )
        stamp.write_text(lock.read_text())
    return next(venv.glob("lib/python*/site-packages/*/bin/llama-server"))


@pytest.fixture
def background(tmp_path):
    """Start programs that end with the test: background(argv, ready=callable, **popen)."""
    running = []

    def start(argv, ready=None, seconds=30, **popen):
        log = tmp_path / f"{Path(str(argv[0])).name}-{len(running)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [str(part) for part in argv], stdout=stream, stderr=stream, **popen
            )
        process.log = log
        running.append(process)
        deadline = time.monotonic() + seconds
        while ready and not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{argv[0]} is not ready: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        return process

    yield start
    for process in reversed(running):
        process.terminate()
    for process in reversed(running):
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
