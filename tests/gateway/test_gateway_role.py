"""What the roles write: judged by nginx and Redis themselves, run as Ansible would."""

import hashlib
import json
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import yaml
from gateway_parts import ENGINE_KEY, GROUP, KEYS, REPO, USER, Role, listens

UPSTREAM = {"name": "b", "address": "b.example", "port": 443, "tls": True}
UPSTREAM["key"] = "key-of-an-upstream"

PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"


def role(paths, **settings) -> Role:
    secrets = {"secrets_api_keys": KEYS, "secrets_engine_key": ENGINE_KEY}
    return Role("gateway", **({"__gateway_user": USER} | secrets | paths | settings))


def checked(gateway: Role, tmp_path) -> subprocess.CompletedProcess:
    """Run the role's own validation on its own configuration."""
    gateway.write()
    config = tmp_path / "tested.conf"
    config.write_text(gateway.rendered("nginx.conf.j2"))
    argv = shlex.split(gateway.variable("__gateway_test").replace("%s", str(config)))
    return subprocess.run(argv, capture_output=True, text=True)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gateway_address": "::", "gateway_port": 8080},
        {"gateway_workers": 4, "gateway_metrics_allow": ["10.0.0.0/8", "fd00::1"]},
        {"gateway_max_body": "1g", "gateway_log_level": "info", "gateway_connections": "100"},
        {"gateway_upstreams": [UPSTREAM]},
        {"gateway_model_digest": 'odd "quotes" and \\ {{ braces }}'},
    ],
)
def test_nginx_accepts_the_configuration_and_leaves_nothing(paths, tmp_path, settings):
    run = checked(role(paths, **settings), tmp_path)
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "run/gateway/nginx.pid").exists()
    made = {path.name: path.owner() for path in (tmp_path / "run/gateway").iterdir()}
    assert set(made.values()) == {USER}
    assert Path("/dev/null").is_char_device()


def test_validation_refuses_what_is_wrong(paths, tmp_path):
    run = checked(role(paths, gateway_max_body="lots"), tmp_path)
    assert run.returncode != 0
    assert "client_max_body_size" in run.stderr


def test_no_key_can_be_read_from_the_host(paths, tmp_path):
    gateway = role(paths)
    gateway.write()
    folder = tmp_path / "etc/gateway"
    text = "".join(path.read_text() for path in folder.iterdir())
    assert all(key["key"] not in text for key in KEYS)
    assert ENGINE_KEY not in (folder / "nginx.conf").read_text()
    assert {oct(path.stat().st_mode)[-3:] for path in folder.iterdir()} == {"640"}
    secrets = json.loads((folder / "secrets.json").read_text())
    assert secrets["keys"][1] == {
        "name": "second",
        "sha256": hashlib.sha256(KEYS[1]["key"].encode()).hexdigest(),
    }


def test_hash_changes_with_all_that_the_gateway_reads(paths):
    first = role(paths).service()
    assert role(paths).service() == first
    for change in (
        {"gateway_port": 81},
        {"gateway_cache_ttl": 5},
        {"secrets_engine_key": "other"},
        {"gateway_upstreams": [UPSTREAM]},
        {"gateway_upstreams": [UPSTREAM | {"key": "other"}]},
        {"secrets_api_keys": KEYS[:1]},
        {"__gateway_modules": ["hash"]},
    ):
        assert role(paths, **change).service()["config_hash"] != first["config_hash"]


def test_low_port_is_said_to_the_supervisor(paths):
    assert role(paths, gateway_port=80).service()["low_port"] is True
    assert role(paths, gateway_port="8080").service()["low_port"] is False


@pytest.mark.parametrize("name", ["gateway", "redis"])
def test_documented_defaults_are_the_real_ones(name):
    folder = REPO / "roles" / name
    defaults = yaml.safe_load((folder / "defaults/main.yml").read_text())
    specs = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    assert {key: option["default"] for key, option in options.items()} == defaults


def test_reload_takes_new_keys_and_cuts_no_stream(start_gateway, stand_in):
    event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    stand_in.streams(*[event, 0.1] * 12, b"data: [DONE]\n\n")
    gateway = start_gateway(stand_in.port)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS[1]["key"], max_retries=0)
    stream = iter(client.chat.completions.create(model="x", messages=[], stream=True))
    next(stream)
    gateway.role.variables["secrets_api_keys"] = [{"name": "third", "key": "key-of-third"}]
    gateway.role.write()
    subprocess.run(gateway.role.service()["reload"], check=True, capture_output=True)
    deadline = time.monotonic() + 5
    for key, status in (("key-of-third", 404), (KEYS[1]["key"], 401)):
        while gateway.ask("/v1/nothing", key=key).status != status:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(list(stream)) == 11


def test_broken_reload_keeps_the_old_configuration(start_gateway, stand_in, paths):
    gateway = start_gateway(stand_in.port)
    Path(paths["r1_etc"], "gateway/secrets.json").write_text("{")
    subprocess.run(gateway.role.service()["reload"], check=True, capture_output=True)
    time.sleep(0.5)
    assert gateway.ask("/v1/nothing").status == 404


def test_quit_ends_the_gateway(start_gateway, stand_in, paths):
    gateway = start_gateway(stand_in.port)
    gateway.process.send_signal(3)
    assert gateway.process.wait(5) == 0
    assert not Path(paths["r1_run"], "gateway/nginx.pid").exists()


@pytest.fixture
def open_folder():
    """A folder that every user can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_runs_without_root_on_a_low_port(open_folder, background, free_port):
    """As the supervisor starts it: another user, no privilege but that of the port."""
    port = next(port for port in range(1023, 512, -1) if not listens(port))
    gateway = role(
        {"r1_etc": str(open_folder / "etc"), "r1_run": str(open_folder / "run")},
        gateway_port=port,
        gateway_address="127.0.0.1",
        engine_port=free_port(),
    )
    gateway.write()
    (open_folder / "run/gateway").mkdir(parents=True)
    shutil.chown(open_folder / "run/gateway", "nobody", "nogroup")
    for path in (open_folder / "etc/gateway").iterdir():
        shutil.chown(path, "root", "nogroup")
    drop = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs"]
    capability = "-all,+net_bind_service"
    drop += [f"--inh-caps={capability}", f"--ambient-caps={capability}", "--"]
    process = background([*drop, *gateway.service()["command"]], ready=lambda: listens(port))
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)
    assert caught.value.code == 503
    workers = subprocess.run(
        ["ps", "-o", "user=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert set(workers) == {"nobody"}
    assert "[warn]" not in process.log.read_text()
    assert "[alert]" not in process.log.read_text()


def play(tmp_path, paths, *extra, **settings) -> str:
    """Run the role's real tasks on this machine, below a folder of the test's own."""
    settings = (
        paths
        | {
            "secrets_path": str(tmp_path / "secrets"),
            "data_path": str(tmp_path / "data"),
            "secrets_api_keys": KEYS,
            "secrets_engine_key": ENGINE_KEY,
            "plan_result": {"engine": "llamacpp", "served_model_name": "x", "precision": "q8_0"}
            | {"download": {"files": []}, "max_model_len": 4096, "max_num_seqs": 2},
            "inspect_result": {"cpu": {"count": 2}},
            "__gateway_user": USER,
            "__redis_user": GROUP,
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        | settings
    )
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings))
    book = tmp_path / "play.yml"
    given = {"ansible.builtin.import_role": {"name": "secrets"}, "when": False}
    roles = {"pre_tasks": [given], "roles": ["redis", "gateway"]}
    book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, **roles}]))
    files = [REPO / f"roles/settings/{kind}/main.yml" for kind in ("defaults", "vars")]
    given = [part for path in [*files, file] for part in ("-e", f"@{path}")]
    argv = [PLAYBOOK, "-i", "test-host,", book, *given, "--diff"]
    run = subprocess.run(
        [*argv, *extra], capture_output=True, text=True, cwd=REPO, env=os.environ | {"TERM": "dumb"}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def played(tmp_path_factory, free_port):
    """The roles, played as a dry run, for real, and again; their output and folder."""
    if os.getuid() != 0:
        pytest.skip("the roles give files to root")
    folder = tmp_path_factory.mktemp("played")
    paths = {f"r1_{name}": str(folder / name) for name in ("etc", "run", "log")}
    for part in ("etc/gateway", "etc/redis", "run/gateway", "run/redis"):
        (folder / part).mkdir(parents=True)
    settings = {"gateway_tls": "self_signed", "gateway_port": free_port()}
    settings["gateway_server_names"] = ["gpu-box.example", "127.0.0.1", "::1"]
    settings["gateway_upstreams"] = [UPSTREAM]
    dry = play(folder, paths, "--check", **settings)
    left_by_dry = [str(path) for path in folder.rglob("*") if path.is_file()]
    first = play(folder, paths, **settings)
    again = play(folder, paths, **settings)
    return SimpleNamespace(**locals())


def test_dry_run_tells_what_it_would_do_and_does_nothing(played):
    assert "changed=0" not in played.dry
    assert "worker_processes" in played.dry  # the diff
    assert {Path(path).name for path in played.left_by_dry} == {"settings.json", "play.yml"}


def test_second_run_changes_nothing(played):
    assert "changed=0" not in played.first
    assert "changed=0" in played.again, played.again


def test_output_shows_no_secret(played):
    server_key = (played.folder / "secrets/tls/server.key").read_text().splitlines()[1]
    for output in (played.dry, played.first):
        for secret in (KEYS[0]["key"], ENGINE_KEY, UPSTREAM["key"], server_key):
            assert secret not in output


def test_names_of_upstreams_are_asked_of_the_hosts_name_servers(played):
    config = (played.folder / "etc/gateway/nginx.conf").read_text()
    text = Path("/etc/resolv.conf").read_text()
    first = next(line.split()[1] for line in text.splitlines() if line.startswith("nameserver"))
    assert f"    resolver {first}" in config
    assert "lua_ssl_trusted_certificate /etc/ssl/certs/ca-certificates.crt;" in config


def test_a_lost_authority_is_taken_from_the_host(played):
    made, copies = played.folder / "secrets/tls", played.folder / "data/secrets/tls"
    before = {path.name: path.read_text() for path in made.iterdir()}
    assert {path.name: path.read_text() for path in copies.iterdir()} == before
    assert {oct(path.stat().st_mode)[-3:] for path in copies.iterdir()} == {"600"}
    shutil.rmtree(made)
    play(played.folder, played.paths, **played.settings)
    assert {path.name: path.read_text() for path in made.iterdir()} == before
    assert oct((made / "ca.crt").stat().st_mode)[-3:] == "644"
    assert "changed=0" in play(played.folder, played.paths, **played.settings)


@pytest.mark.parametrize("kind", ["self_signed", "own"])
def test_tls(played, background, kind):
    made = played.folder / "secrets/tls"
    assert oct((made / "server.key").stat().st_mode)[-3:] == "600"
    settings = played.settings | {"gateway_tls": kind}
    if kind == "own":
        settings["gateway_tls_certificate"] = str(made / "server.crt")
        settings["gateway_tls_key"] = str(made / "server.key")
        (played.folder / "etc/gateway/tls.pem").unlink()
        play(played.folder, played.paths, **settings)
    gateway = role(played.paths, secrets_path=str(played.folder / "secrets"), **settings)
    trust = ssl.create_default_context(cafile=made / "ca.crt")

    def status(name):
        address = f"https://{name}:{settings['gateway_port']}/v1/models"
        try:
            urllib.request.urlopen(address, timeout=5, context=trust)
        except urllib.error.HTTPError as error:
            return error.code

    def ready():
        try:
            return status("127.0.0.1") == 401
        except urllib.error.URLError as error:
            assert not isinstance(error.reason, ssl.SSLError), error.reason
            return False

    background(gateway.argv(), ready=ready)
    with pytest.raises(urllib.error.URLError, match="certificate is not valid for 'localhost'"):
        status("localhost")
    with pytest.raises(urllib.error.URLError, match="unable to get local issuer"):
        urllib.request.urlopen(f"https://127.0.0.1:{settings['gateway_port']}/", timeout=5)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{settings['gateway_port']}/", timeout=5)
    assert json.load(caught.value)["error"]["code"] == "bad_request"


def test_redis_is_a_cache_and_nothing_else(redis, paths):
    def ask(*words):
        argv = ["redis-cli", "-s", str(redis.socket), *words]
        return subprocess.run(argv, capture_output=True, text=True).stdout.strip()

    assert ask("SET", "r1:x", "1", "EX", "5") == "OK"
    assert ask("GET", "r1:x") == "1"
    assert "maxmemory_policy:allkeys-lru" in ask("INFO", "memory")
    assert "maxmemory:268435456" in ask("INFO", "memory")
    for words in (
        ["FLUSHALL"],
        ["CONFIG", "SET", "dir", "/"],
        ["SAVE"],
        ["SHUTDOWN"],
        ["REPLICAOF", "127.0.0.1", "1"],
        ["MODULE", "LIST"],
        ["EVAL", "return 1", "0"],
        ["ACL", "LIST"],
        ["GET", "other"],
    ):
        assert ask(*words).startswith("NOPERM"), words
    assert oct(redis.socket.stat().st_mode)[-3:] == "770"
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    assert f"pid={redis.pid}," not in listening
    redis.terminate()
    assert redis.wait(5) == 0
    assert [path.name for path in Path(paths["r1_run"], "redis").iterdir()] == []
