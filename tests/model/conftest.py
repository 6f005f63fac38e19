"""Run the role model in a real play, or its module alone."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
MODULE = REPO / "roles/model/library/model_files.py"
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: model, tasks_from: TASKS}
"""


@pytest.fixture(scope="session")
def entry():
    """Return a function that makes one line of a download's file list."""

    def make(path: str, content: bytes, pinned: bool = True) -> dict:
        digest = hashlib.sha256(content).hexdigest()
        return {"path": path, "bytes": len(content), "sha256": digest if pinned else None}

    return make


@pytest.fixture
def bundled(entry, tiny_gguf) -> dict:
    """The download of the model that ships with the project."""
    return {
        "source": "bundled",
        "repository": "tiny-r1",
        "revision": None,
        "files": [entry(tiny_gguf.name, tiny_gguf.read_bytes())],
    }


class Play:
    """The role in ansible-playbook, on this machine, into a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = folder / "data"
        self.home = self.data / "models/m/q4_k_m"
        self.marker = self.home / ".complete"

    def __call__(self, download: dict, *flags: str, tasks_from="main.yml", **settings) -> dict:
        variables = {
            "plan_result": {"model": "m", "precision": "q4_k_m", "download": download},
            "data_path": str(self.data),
            "r1_opt": str(REPO / ".cache/hub-venv"),
            "huggingface_endpoint": "http://127.0.0.1:1",
            "modelscope_endpoint": "http://127.0.0.1:1",
            "ollama_registry": "http://127.0.0.1:1",
            "s3_endpoint": "http://127.0.0.1:1",
            "s3_region": "us-east-1",
            "ansible_python_interpreter": sys.executable,
            **settings,
        }
        play, given = self.folder / "play.yml", self.folder / "vars.json"
        play.write_text(PLAY.replace("TASKS", tasks_from))
        given.write_text(json.dumps(variables))
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(REPO / "roles"),
            "ANSIBLE_NOCOLOR": "1",
        }
        done = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                *("-i", "box,", "-c", "local", "-e", f"@{given}"),
                *flags,
                play,
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        out = done.stdout + done.stderr
        return {"rc": done.returncode, "out": out, "changed": "changed=1" in out}


@pytest.fixture
def play(tmp_path) -> Play:
    return Play(tmp_path)


def arguments(folder: Path, download: dict, **more) -> str:
    """The module's arguments, as its stdin takes them."""
    values = {
        "root": str(folder / "models"),
        "model": "m",
        "precision": "q4_k_m",
        "download": download,
        "shipped": str(REPO / "roles/model/files"),
        "hub_venv": str(REPO / ".cache/hub-venv/hub"),
        "client": (REPO / "roles/model/files/fetch.py").read_text(),
        "requirements": {
            name: (REPO / f"roles/model/files/requirements-{name}.txt").read_text()
            for name in ("huggingface", "modelscope", "s3", "quantize")
        },
        "quantizer": {
            "program": (REPO / "roles/model/files/quantize.py").read_text(),
            "text": (REPO / "roles/model/files/perplexity.txt").read_text(),
            "calibration": (REPO / "roles/model/files/calibration.txt").read_text(),
        },
        **more,
    }
    return json.dumps({"ANSIBLE_MODULE_ARGS": values})


@pytest.fixture
def module_input(tmp_path):
    """Return a function that gives the module's command and its stdin."""

    def make(download: dict, **more) -> tuple[list, str]:
        return [sys.executable, MODULE], arguments(tmp_path, download, **more)

    return make


@pytest.fixture
def model_files(tmp_path):
    """Return a function that runs the module alone and gives its answer."""

    def run(download: dict, **more) -> dict:
        done = subprocess.run(
            [sys.executable, MODULE],
            input=arguments(tmp_path, download, **more),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def killed_run(module_input):
    """Return a function that runs the module and kills it once the hub has sent so many bytes."""

    def run(hub, size: int, download: dict, **more) -> None:
        command, given = module_input(download, **more)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        process.stdin.write(given.encode())
        process.stdin.close()
        deadline = time.monotonic() + 90
        while hub.sent < size:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()

    return run


def load_hub():
    spec = importlib.util.spec_from_file_location("model_hub", Path(__file__).with_name("hub.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Hub


@pytest.fixture
def start_hub():
    """Return a function that starts a stand-in hub with the given files."""
    running = []

    def start(files: dict[str, bytes]):
        running.append(load_hub()(files))
        return running[-1]

    yield start
    for hub in running:
        hub.stop()
