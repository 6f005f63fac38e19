"""Every refusal, by its message, from the real ansible-playbook: all at once, before any change.

An ansible-playbook takes seconds to start, so each run holds as many wrong things as can be wrong
together. They are made wrong for real: a listener on the port, a tiny or read-only disk, another
machine type, a user without sudo.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
CHECKS = "tests/refusals/checks.yml"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and other users need root")


class Run:
    """The outcome of one playbook."""

    def __init__(self, done):
        self.output = done.stdout + done.stderr
        self.code = done.returncode
        blocks = re.findall(r"^    msg: \|-\n((?: {8}.*\n)+)", done.stdout, re.MULTILINE)
        self.message = [line.strip() for line in blocks[-1].splitlines()] if blocks else []
        self.problems = [re.sub(r"^\d+\. ", "", line) for line in self.message[1:]]

    def problem(self, start):
        found = [text for text in self.problems if text.startswith(start)]
        assert len(found) == 1, f"{start}: {len(found)} times in\n{self.output}"
        return found[0]

    def assert_refused(self, count):
        assert self.code == 2, self.output
        assert "changed=0 " in self.output, self.output
        assert "the first change" not in self.output
        plural = "1 problem:" if count == 1 else f"{count} problems:"
        assert self.message[0] == f"Refused, nothing was changed. {plural}"
        assert len(self.problems) == count, self.output
        for text in self.problems:
            assert re.match(r"[^:]+: ", text), text

    def assert_refused_for(self, expected):
        """expected: how each problem starts, and a part of what it says then."""
        for start, part in expected.items():
            assert part in self.problem(start)
        self.assert_refused(len(expected))


@pytest.fixture
def play(repo, tmp_path):
    """Run a playbook on host `box`, this machine, with the given settings."""

    def run(settings, *options, playbook=CHECKS, host="box", before=(), mounts="", root=repo):
        given = tmp_path / "settings.json"
        places = {"secrets_path": str(tmp_path / "secrets"), "__plan_report": ""}
        given.write_text(json.dumps(places | settings))
        inventory = tmp_path / "hosts.ini"
        inventory.write_text(
            f"{host} ansible_connection=local ansible_python_interpreter={sys.executable}\n"
        )
        command = [PLAYBOOK, "-i", inventory, playbook, "-e", f"@{given}", *options]
        if mounts:  # in a mount namespace of its own, gone with the run
            command = ["unshare", "-m", "sh", "-c", mounts + ' && exec "$@"', "sh", *command]
        done = subprocess.run(
            [str(part) for part in [*before, *command]],
            cwd=root,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "ANSIBLE_HOME": str(tmp_path / "ansible"),
                "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
                "COLUMNS": "1000",
            },
        )
        return Run(done)

    return run


@pytest.fixture
def held_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_wrong_values_and_a_wrong_host_are_refused_at_once(play, tmp_path, held_port):
    (tmp_path / "secrets").mkdir()
    for name, text, mode in [("api_key", "changeme", 0o600), ("api_key.bob", "k3y", 0o644)]:
        (tmp_path / "secrets" / name).write_text(text)
        (tmp_path / "secrets" / name).chmod(mode)
    (tmp_path / "os-release").write_text('ID=alpine\nVERSION_ID=3.20\nPRETTY_NAME="Alpine 3.20"\n')
    (tmp_path / "disk").mkdir()
    run = play(
        {
            "gateway_prot": 8080,
            "other_project_user": "x",
            "backup_dir": "/srv",
            "settings_ignore": ["backup_*"],
            "engine": "olama",
            "max_model_len": "8k",
            "gpu_memory_utilization": 90,
            "gateway_port": held_port,
            "engine_port": 70000,
            "api_keys": "default",
            "model_sources": ["modelscop"],
            "huggingface_endpoint": "huggingface.co",
            "model_fallback": "tiny-r1",
            "data_path": str(tmp_path / "disk"),
            "__inspect_os_release": str(tmp_path / "os-release"),
        },
        before=["setarch", "i686"],
        mounts=f"mount -t tmpfs -o ro none {tmp_path}/disk",
    )
    secrets = tmp_path / "secrets"
    expected = {
        "gateway_prot: value 8080": "did you mean gateway_port?",
        "other_project_user: value 'x'": "list it in settings_ignore",
        "engine: value 'olama'": "did you mean ollama?",
        "max_model_len: value '8k'": "give auto or a number above 0",
        "gpu_memory_utilization: value 90": "0.05 to 0.99",
        "engine_port: value 70000": "1 to 65535",
        "api_keys: value 'default'": "is text, not a list",
        "model_sources: value ['modelscop']": "modelscope, huggingface",
        "huggingface_endpoint: value 'huggingface.co'": "https://HOST",
        "model_fallback: value 'tiny-r1'": "only the host `local` may fall back",
        f"{secrets}/api_key: value (hidden) is a placeholder": "fix: rm",
        f"{secrets}/api_key.bob: value (hidden) is open to every user": "fix: chmod 600",
        f"{secrets}/api_key.bob: value (hidden) has 3 characters": "fix: rm",
        "operating system: value 'Alpine 3.20'": "Debian 12, Debian 13, Ubuntu 22.04, Ubuntu 24.04",
        "processor: value i686": "x86_64",
        f"gateway_port: value {held_port} is held by": f"(pid {os.getpid()}: ",
        "data_path: value": "read-only file system",
    }
    run.assert_refused_for(expected)
    assert "changeme" not in run.output


def test_contradictions_are_refused_at_once(play, free_port):
    port = free_port()
    run = play(
        {
            "engine": "llamacpp",
            "precision": "awq",
            "kv_cache_dtype": "fp8",
            "pipeline_parallel_size": 2,
            "gateway_port": port,
            "engine_port": port,
            "gateway_tls": "own",
            "max_num_batched_tokens": 8,
            "max_num_seqs": 16,
            "plan_hardware": {"ram_mib": 16000, "cpus": 4, "gpus": []},
            "tensor_parallel_size": 2,
            "gateway_cloud": {
                "base_url": "https://api.deepseek.com/v1",
                "key": "key-that-nobody-may-read",
                "models": {"deepseek-r1-14b": "deepseek-reasoner"},
                "tokens_per_day": 1000000,
            },
        },
    )
    assert "key-that-nobody-may-read" not in run.output
    expected = {
        "gateway_cloud: value (hidden) would send": "which gateway_keep_on_premises forbids",
        "precision: value 'awq'": "cannot be read by engine llamacpp",
        "kv_cache_dtype: value 'fp8'": "is not known to engine llamacpp",
        "pipeline_parallel_size: value 2": "means nothing to engine llamacpp",
        f"gateway_port: value {port}": "is also the value of engine_port",
        "gateway_tls_certificate: value ''": "while gateway_tls is own",
        "gateway_tls_key: value ''": "while gateway_tls is own",
        "max_num_batched_tokens: value 8": "is less than max_num_seqs, 16",
        "tensor_parallel_size: value 2": "more GPUs than plan_hardware has, 0",
    }
    run.assert_refused_for(expected)


def test_servers_of_others_and_containers_are_contradictions(play):
    run = play(
        {
            "model": "tiny-r1",
            "runtime": "compose",
            "images": "build",
            "host_python": "/opt/python/bin/python3",
            "engine": "llamacpp",
            "ollama_adopt": True,
            "gateway_redis": "127.0.0.1:6379",
            "kv_cache_dtype": "q8_0",
        },
    )
    expected = {
        "ollama_adopt: value True means nothing to engine llamacpp": "set engine to auto or ollama",
        "ollama_adopt: value True cannot be reached from containers": "set runtime to native",
        "gateway_redis: value '127.0.0.1:6379' cannot be reached": "gateway_redis auto, or",
        "kv_cache_dtype: value 'q8_0' is for the adopted Ollama to choose": "use auto",
        "host_python: value '/opt/python/bin/python3' is not in the image": "to /usr/bin/python3,",
    }
    run.assert_refused_for(expected)
    (form,) = play({"gateway_redis": "redis://here", "model": "tiny-r1"}).problems
    assert form.startswith("gateway_redis: value 'redis://here'")
    assert form.endswith("is no address of a Redis; fix: give auto, unix:/PATH or ADDRESS:PORT")


def test_what_vllm_in_a_container_cannot_do(play):
    """Before its image is pulled, which has 10 GB. The driver that is too old is a stand-in."""
    run = play(
        {
            "model": "tiny-r1",
            "runtime": "compose",
            "engine": "vllm",
            "vllm_python": "/opt/box/bin/python",
            "__nvidia_known": {"pci": "", "answers": True, "driver_version": "570.211.01"},
        },
        "--check",
        playbook="deploy.yml",
    )
    expected = {
        "vllm_python: value '/opt/box/bin/python' is on the host, not in the container": (
            "fix: leave it empty, or set runtime to native"
        ),
        "vllm_image: value docker.io/vllm/vllm-openai:v0.26.0 is built for NVIDIA cards": (
            "the plan is for the CPU; fix: set images to build, or name an image for CPUs"
        ),
        "engine: value vllm is CUDA 13 and needs driver 580 or newer, but the host has 570": (
            "fix: bring driver 580 or newer to the host, or set engine to ollama"
        ),
    }
    for start, part in expected.items():
        assert part in run.problem(start)
    assert run.code == 2 and "changed=0 " in run.output


NGINX = "daemon off; pid {0}/pid; error_log stderr; events {{}} http {{ server {{ listen {1}; }} }}"


def test_servers_of_others_come_with_a_way_to_live_with_them(play, background, free_port, tmp_path):
    web, cache, engine = free_port(), free_port(), free_port()

    def answers(port):
        def probe():
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        return probe

    (tmp_path / "nginx.conf").write_text(NGINX.format(tmp_path, web))
    background(["/usr/sbin/nginx", "-c", tmp_path / "nginx.conf"], ready=answers(web))
    redis = ["redis-server", "--port", cache, "--requirepass", "hush", "--save", ""]
    background(redis, ready=answers(cache), cwd=tmp_path)
    given = {"model": "tiny-r1", "gateway_port": web, "engine_port": engine, "ollama_adopt": True}
    run = play(given | {"gateway_redis": f"127.0.0.1:{cache}"})
    expected = {
        f"gateway_port: value {web} is held by nginx (pid ": "let your nginx pass to it",
        f"ollama_adopt: value true finds nothing on engine_port {engine}": "mostly 11434",
        f"gateway_redis: value '127.0.0.1:{cache}' cannot be used: it answers -NOAUTH": "auto",
    }
    run.assert_refused_for(expected)


def test_a_data_path_in_a_closed_folder_is_refused(play, tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    run = play({"model": "tiny-r1", "data_path": str(home / "data")})
    problem = run.problem(f"data_path: value {home}/data lies below {home}")
    assert problem.endswith(f"or chmod o+x {home}")
    run.assert_refused(1)


def test_too_little_disk_is_refused(play, tmp_path):
    (tmp_path / "disk").mkdir()
    run = play(
        {"model": "tiny-r1", "data_path": str(tmp_path / "disk")},
        mounts=f"mount -t tmpfs -o size=64m none {tmp_path}/disk",
    )
    assert re.search(r"needs [\d.]+ GiB of disk", run.problem("model: tiny-r1"))
    run.assert_refused(1)


def test_too_little_memory_is_refused_with_what_would_fit(play):
    run = play(
        {
            "model": "deepseek-r1-32b",
            "plan_hardware": {"ram_mib": 6000, "cpus": 4, "disk_free_mib": 90000},
        }
    )
    problem = run.problem("model: deepseek-r1-32b")
    assert re.search(r"needs [\d.]+ GiB", problem)
    assert "Instead: " in problem
    assert "deepseek-r1-1.5b q4_k_m" in problem


def test_a_setting_that_cannot_be_computed_is_refused_with_the_others(play):
    settings = {"precision": "{{ my_precision }}", "enigne": "ollama", "gateway_tls_kee": "hush"}
    run = play(settings)
    assert "did you mean gateway_tls_key?" in run.problem("gateway_tls_kee: value (hidden)")
    assert "'my_precision' is undefined" in run.problem("precision: value '{{ my_precision }}'")
    assert "did you mean engine?" in run.problem("enigne: value 'ollama'")
    run.assert_refused(3)
    assert "Look at the host" not in run.output


def test_no_sudo_is_refused(play, tmp_path):
    for folder in ("ansible", "remote", "home"):
        (tmp_path / folder).mkdir(mode=0o777)
        (tmp_path / folder).chmod(0o777)
    # An ordinary user who may read this clone, wherever it is; access(2) would not count that
    # capability without the bit.
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    user += ["--securebits=+no_setuid_fixup"]
    user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    user += ["env", f"HOME={tmp_path}/home", f"ANSIBLE_LOCAL_TEMP={tmp_path}/ansible/tmp"]
    run = play({"engin": "ollama", "model": "tiny-r1"}, before=user)
    assert "user nobody cannot become root (" in run.problem("no sudo: ")
    assert "--ask-become-pass" in run.problem("no sudo: ")
    run.problem("engin: value 'ollama'")
    run.assert_refused(2)


def test_a_world_writable_checkout_is_refused(play, repo, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(repo / "roles", clone / "roles")
    shutil.copy(repo / CHECKS, clone / "checks.yml")
    clone.chmod(0o777)
    (clone / "roles").chmod(0o777)
    run = play({"model": "tiny-r1"}, playbook="checks.yml", root=clone)
    for path in (clone, clone / "roles"):
        assert f"fix: chmod o-w '{path}'" in run.problem(f"checkout: value '{path}'")
    run.assert_refused(2)


def test_the_real_deploy_refuses_before_any_change(play):
    before = Path("/etc/deepseek-r1").exists()
    for options in [("--check", "--diff"), ()]:
        run = play({"gateway_prot": 1, "model": "tiny-r1"}, *options, playbook="deploy.yml")
        assert "did you mean gateway_port?" in run.problem("gateway_prot: value 1")
        run.assert_refused(1)
    assert Path("/etc/deepseek-r1").exists() == before


def test_a_release_of_ollama_that_cannot_be_fetched(play, free_port):
    """A host without a way to GitHub learns it before packages are installed."""
    url = f"http://127.0.0.1:{free_port()}/ollama-linux-amd64.tar.zst"
    settings = {"engine": "ollama", "model": "tiny-r1", "ollama_archive_url": url}
    run = play(settings | {"ollama_archive_sha256": "0" * 64}, playbook="deploy.yml")
    problem = run.problem(f"ollama_archive_url: value {url} cannot be fetched by the host")
    assert "refused" in problem
    assert "set ollama_archive to a file you bring" in problem
    run.assert_refused(1)


def test_a_card_without_a_driver_is_refused_with_all_that_is_wrong(play, tmp_path):
    """A stand-in for the card, with nouveau on it; no machine of the tests has one. apt is real."""
    card = tmp_path / "pci/0000:01:00.0"
    card.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("device", "0x23ff"), ("class", "0x030200")):
        (card / name).write_text(f"{text}\n")
    (tmp_path / "nouveau").mkdir()
    (card / "driver").symlink_to(tmp_path / "nouveau")
    run = play(
        {
            "model": "tiny-r1",
            "engine": "llamacpp",
            "nvidia_kernel": "6.0.0-0-none",
            "nvidia_driver_branch": "newest",
            "__inspect_pci": str(tmp_path / "pci"),
            "__nvidia_container": False,
        }
    )
    expected = {
        "nvidia_driver_branch: value 'newest'": "a branch such as 580",
        "kernel: value 6.0.0-0-none has no headers": "linux-headers-6.0.0-0-none is neither",
        "nvidia_reboot_allowed: value false and the driver nouveau has": "blacklist nouveau",
        "plan_hardware: value {} says nothing of card [10de:23ff] (Hopper)": "describe the host",
    }
    run.assert_refused_for(expected)
    assert not Path("/etc/apt/preferences.d/deepseek-r1-nvidia").exists()

    (card / "device").write_text("0x2330\n")
    (card / "driver").unlink()
    given = {"__inspect_pci": str(tmp_path / "pci"), "__nvidia_container": False}
    given |= {"model": "tiny-r1", "engine": "llamacpp", "nvidia_driver_branch": 999}
    run = play(given, "--check")
    offers = run.problem("nvidia_driver_branch: value 999 is not offered by nvidia_driver distri")
    assert re.search(r"which has \d{3}\.\d+", offers)
    assert play(given | {"nvidia_driver": "none"}, "--check").code == 0


def test_plays_without_preflight_refuse_wrong_settings_too(play):
    run = play({"engine": "olama"}, playbook="playbooks/plan.yml")
    assert "did you mean ollama?" in run.problem("engine: value 'olama'")
    assert run.code == 2


@pytest.mark.parametrize(
    "task",
    ["Make a system user for each service", "Write nginx's configuration", "Load the model*"],
)
def test_a_start_in_the_middle_is_explained(play, task):
    run = play({"model": "tiny-r1"}, "--check", "--start-at-task", task, playbook="deploy.yml")
    said = " ".join(run.output.split())
    assert run.code == 2, run.output
    assert "--start-at-task skipped the tasks that look at the host" in said
    assert "use --tags instead (host, model, engine, redis, gateway, services, verify)" in said
    assert "changed=0" in said


OURS = "import socket, sys, time; s = socket.create_server(('', int(sys.argv[1]))); time.sleep(60)"


def test_a_deployed_host_is_not_refused(play, background, free_port):
    port = free_port()

    def serves():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    background(
        [sys.executable, "-c", OURS, str(port), "/etc/deepseek-r1/gateway/nginx.conf"], ready=serves
    )
    run = play(
        {"gateway_port": port, "model": "tiny-r1", "model_fallback": "tiny-r1"},
        "--check",
        host="local",
    )
    assert run.code == 0, run.output
    assert "the first change" in run.output
