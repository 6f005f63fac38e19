"""The real Ollama, started as the role's service says, and the modules run as Ansible runs them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CONTEXT = 1024


def call(url, body=None, method=None):
    """Status and bytes of one request."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=data, method=method), timeout=60
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ready(url):
    def answers():
        try:
            return call(url)[0] == 200
        except OSError:
            return False

    return answers


@pytest.fixture(scope="session")
def ollama_binary():
    built = subprocess.run(
        [REPO / "tests/tools/build_ollama"], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(built.stdout.strip())


@pytest.fixture(scope="session")
def settings(free_port):
    """What earlier roles hand to the role ollama."""
    return {
        "plan_result": {
            "engine": "ollama",
            "served_model_name": "tiny-r1",
            "precision": "q4_k_m",
            "max_model_len": CONTEXT,
            "max_num_seqs": 2,
            "kv_cache_dtype": "f16",
            "engine_args": {"threads": 2, "gpu_layers": 0},
            "prompt": {"forced_think": True},
        },
        "inspect_result": {"arch": "x86_64", "ollama_owner": None, "uids": {}},
        "r1_manager": "supervisor",
        "r1_pulled": False,
        "r1_adopted_ollama": False,
        "r1_gpu_environment": {},
        "r1_engine_bind": "127.0.0.1",
        "r1_engine_memory_mib": 1024,
        "engine_port": free_port(),
        "model_path": str(REPO / "roles/model/files/tiny-r1/tiny-r1-q4_k_m.gguf"),
    }


@pytest.fixture(scope="session")
def play(tmp_path_factory):
    """Run tasks on this machine with the role's variables at hand; returns the process."""

    def run(tasks, settings, *arguments, callback="default"):
        folder = tmp_path_factory.mktemp("play")
        load = {"ansible.builtin.import_role": {"name": "ollama", "tasks_from": "model.yml"}}
        book = {"hosts": "all", "gather_facts": False, "vars": settings}
        book["tasks"] = [*tasks, {**load, "when": False}]  # imported for its variables
        (folder / "play.json").write_text(json.dumps([book]))
        (folder / "templates").symlink_to(REPO / "roles/ollama/templates")
        command = [BIN / "ansible-playbook", folder / "play.json", "-i", "local,", "-c", "local"]
        command += ["-e", "ansible_python_interpreter=python3"]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}
        environment["ANSIBLE_STDOUT_CALLBACK"] = callback
        return subprocess.run(
            [*command, *arguments], cwd=REPO, env=environment, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="session")
def rendered(play):
    """The values of the role's variables, for each of these changes of the settings."""

    def values(settings, changes, *names):
        text = "{" + ", ".join(f'"{name}": {{{{ {name} | to_json }}}}' for name in names) + "}"
        tasks = [{"name": "x", "ansible.builtin.debug": {"msg": text}, "vars": x} for x in changes]
        settings = {**settings, "data_path": "/data", "r1_opt": "/opt/r1"}
        done = play(tasks, settings, callback="ansible.posix.json")
        assert done.returncode == 0, done.stdout + done.stderr
        tasks = json.loads(done.stdout)["plays"][0]["tasks"][: len(changes)]
        return [json.loads(task["hosts"]["local"]["msg"]) for task in tasks]

    return values


@pytest.fixture(scope="session")
def role(ollama_binary, settings, rendered):
    """The role's service, template and parameters, with the program where it says."""
    root = Path(tempfile.mkdtemp(prefix="ollama-"))
    root.chmod(0o755)
    own = {"data_path": str(root), "r1_opt": str(root / "opt")}
    names = ("ollama_service", "__ollama_template", "__ollama_parameters", "__ollama_home")
    (found,) = rendered(settings, [own], *names)
    home = Path(found["__ollama_home"])
    (home / "bin").mkdir(parents=True)
    shutil.copy(ollama_binary, home / "bin/ollama")
    yield SimpleNamespace(
        service=found["ollama_service"],
        template=found["__ollama_template"],
        parameters=found["__ollama_parameters"],
    )
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def server(role):
    """Ollama with the service's command and environment and nothing else, without privileges."""
    environment = role.service["environment"]
    models = Path(environment["OLLAMA_MODELS"])
    models.mkdir()
    user = {}
    if os.geteuid() == 0:
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(models, "nobody", "nogroup")
    url = "http://" + environment["OLLAMA_HOST"]
    log = models.parent / "engine.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            role.service["command"],
            env={"PATH": os.environ["PATH"], **environment},
            cwd="/",
            stdout=stream,
            stderr=stream,
            **user,
        )
    try:
        wait_for(ready(url + "/api/version"), process, log)
        yield SimpleNamespace(url=url, models=models, log=log, pid=process.pid)
    finally:
        process.terminate()
        process.wait(20)


REGISTRY = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {root}/data}}}}
middleware: {{storage: [{{name: redirect, options: {{baseurl: "http://localhost:{blobs}"}}}}]}}
http: {{addr: "127.0.0.1:{port}"}}
"""
BLOBS = """\
daemon off; pid {root}/pid; error_log {root}/error.log; user root;
events {{}}
http {{ access_log {root}/access.log; server {{ listen 127.0.0.1:{blobs}; root {root}/data; }} }}
"""


@pytest.fixture(scope="session")
def registry(tmp_path_factory, free_port):
    """Debian's docker-registry; like Ollama's own it sends clients elsewhere for the blobs."""
    root, where = tmp_path_factory.mktemp("registry"), {"port": free_port(), "blobs": free_port()}
    (root / "config.yml").write_text(REGISTRY.format(root=root, **where))
    (root / "nginx.conf").write_text(BLOBS.format(root=root, **where))
    log = root / "log"
    with log.open("wb") as stream:
        processes = [
            subprocess.Popen([*command, root / file], stdout=stream, stderr=stream)
            for command, file in (
                (["docker-registry", "serve"], "config.yml"),
                (["/usr/sbin/nginx", "-c"], "nginx.conf"),
            )
        ]
    try:
        address = f"127.0.0.1:{where['port']}"
        wait_for(ready(f"http://{address}/v2/"), processes[0], log)
        yield address
    finally:
        for process in processes:
            process.terminate()
            process.wait(20)


def wait_for(condition, process, log, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"not ready: {log.read_text()[-2000:]}")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def module():
    """Run a module of the role with these arguments, by itself; returns its answer."""

    def run(module_name, check=False, **arguments):
        arguments = {key: str(v) if isinstance(v, Path) else v for key, v in arguments.items()}
        arguments.update(_ansible_check_mode=check, _ansible_diff=True)
        done = subprocess.run(
            [sys.executable, REPO / f"roles/ollama/library/{module_name}.py"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def keep(module, server, role):
    """ollama_model for this server, with the role's template and parameters unless given."""

    def run(name="tiny-r1", check=False, **arguments):
        given = {"template": role.template, "parameters": role.parameters, **arguments}
        return module(
            "ollama_model", check, name=name, url=server.url, models_path=server.models, **given
        )

    return run


@pytest.fixture
def empty(server):
    """Start and end without any model."""
    remove_all(server)
    yield
    remove_all(server)


def remove_all(server):
    for model in json.loads(call(server.url + "/api/tags")[1])["models"]:
        call(server.url + "/api/delete", {"model": model["name"]}, "DELETE")
    for path in server.models.glob("sources.json"):
        path.unlink()
