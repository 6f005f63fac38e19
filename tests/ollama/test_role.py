"""The role ollama: its service, its refusals, its check mode."""

import subprocess

import pytest

pytestmark = pytest.mark.timeout(1200)  # the first use builds Ollama
ROLE = {"name": "Role", "ansible.builtin.include_role": {"name": "ollama"}}


def test_the_service_is_closed_and_keeps_the_planned_context(role, settings):
    environment = role.service["environment"]
    assert environment["OLLAMA_HOST"].startswith("127.0.0.1:")
    assert environment["OLLAMA_CONTEXT_LENGTH"] == str(settings["plan_result"]["max_model_len"])
    assert environment["OLLAMA_NUM_PARALLEL"] == "2"
    assert environment["OLLAMA_NO_CLOUD"] == "1"
    assert "OLLAMA_ORIGINS" not in environment
    assert role.service["user"] == "r1-engine"
    assert role.service["command"][0].startswith("/") and role.service["command"][1:] == ["serve"]


def test_the_program_reads_the_environment_as_meant(server):
    line = next(x for x in server.log.read_text().splitlines() if "server config" in x)
    for words in (
        "OLLAMA_CONTEXT_LENGTH:1024",
        "OLLAMA_NUM_PARALLEL:2",
        "OLLAMA_NO_CLOUD:true",
        "OLLAMA_NOPRUNE:true",
        "OLLAMA_LOAD_TIMEOUT:30m0s",
        "OLLAMA_KV_CACHE_TYPE:f16",
        "OLLAMA_FLASH_ATTENTION:false",
        "OLLAMA_KEEP_ALIVE:2562047h47m16.854775807s",
    ):
        assert words in line


def test_the_server_listens_on_loopback_only(server):
    listening = subprocess.run(
        ["ss", "-Hltnp"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    own = [line.split()[3] for line in listening if f"pid={server.pid}," in line]
    assert own == [server.url.removeprefix("http://")]


def test_a_quantized_cache_switches_flash_attention_on(settings, rendered):
    plan = {**settings["plan_result"], "kv_cache_dtype": "q8_0"}
    (found,) = rendered(settings, [{"plan_result": plan}], "ollama_service")
    environment = found["ollama_service"]["environment"]
    assert environment["OLLAMA_KV_CACHE_TYPE"] == "q8_0"
    assert environment["OLLAMA_FLASH_ATTENTION"] == "1"


REFUSED = [
    ({"ollama_version": "0.99.0"}, ["ollama_archive_sha256", "v0.99.0", "ollama_archive to"]),
    ({"ollama_archive_url": "http://mirror/x"}, ["ollama_archive_sha256", "http://mirror/x"]),
    ({"ollama_archive_sha256": "abc"}, ["ollama_archive_sha256", '"abc"', "sha256sum.txt"]),
    ({"inspect_result": {"arch": "riscv64"}}, ["x86_64 and aarch64 only"]),
    ({"ollama_archive": "/no/such"}, ["ollama_archive", "/no/such", "on the controller"]),
]
TAKEN = [{}, {"ollama_archive": __file__, "ollama_version": "0.99.0"}]


def test_a_release_that_cannot_be_checked_is_a_problem(settings, rendered):
    changes = [change for change, _words in REFUSED] + TAKEN
    found = [each["ollama_problems"] for each in rendered(settings, changes, "ollama_problems")]
    for (_change, words), problems in zip(REFUSED, found, strict=False):
        assert len(problems) == 1
        for word in words:
            assert word in problems[0]
    assert found[len(REFUSED) :] == [[], []]


def test_check_mode_on_a_fresh_host_tells_and_touches_nothing(play, settings, tmp_path):
    given = {**settings, "data_path": str(tmp_path / "data"), "r1_opt": str(tmp_path / "opt")}
    model = {"name": "ollama", "tasks_from": "model.yml"}
    tasks = [ROLE, {"name": "Model", "ansible.builtin.include_role": model}]
    done = play(tasks, given, "--check", "--diff")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=3 " in done.stdout  # the program, the folder, the model
    assert "<｜User｜>" in done.stdout  # the diff shows the template
    assert list(tmp_path.iterdir()) == []


def test_a_brought_program_is_installed(play, settings, ollama_binary, tmp_path):
    (tmp_path / "opt").mkdir()
    given = {**settings, "r1_opt": str(tmp_path / "opt"), "ollama_archive": str(ollama_binary)}
    given["__ollama_archive"] = {"stat": {"size": 1, "mtime": 2}}  # main.yml looks
    role = {"name": "ollama", "tasks_from": "install.yml"}
    done = play([{"name": "Install", "ansible.builtin.include_role": role}], given)
    assert done.returncode == 0, done.stdout + done.stderr
    (program,) = (tmp_path / "opt").glob("ollama/*/bin/ollama")
    assert program.read_bytes() == ollama_binary.read_bytes()
    assert [one.name for one in (tmp_path / "opt").iterdir()] == ["ollama"]


def test_the_role_itself_refuses_too(play, settings, tmp_path):
    given = {**settings, "data_path": str(tmp_path), "r1_opt": str(tmp_path)}
    done = play([ROLE], {**given, "ollama_version": "0.99.0"}, "--check")
    assert done.returncode == 2 and "ollama_archive_sha256" in done.stdout
