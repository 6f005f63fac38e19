"""Once per site: one host has the model, the others of the same deploy take it from there."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

MODULE = "roles/model/library/model_share.py"
FILES = {"config.json": b"{}", "weights/a b.safetensors": os.urandom(3_000_000)}
TOKEN = "a-token-for-this-test"


@pytest.fixture
def first(tmp_path):
    """The models of a host that has one, as model_files leaves it."""
    root = tmp_path / "first"
    listed = []
    for name, body in FILES.items():
        file = root / "m/q4_k_m" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
        digest = hashlib.sha256(body).hexdigest()
        listed.append({"path": name, "bytes": len(body), "sha256": digest, "mtime_ns": 1})
    (root / "m/q4_k_m/secret").write_text("beside the model, and no part of it")
    marker = {"source": "huggingface", "repository": "o/m", "revision": "abc", "files": listed}
    (root / "m/q4_k_m/.complete").write_text(json.dumps(marker))
    return root


@pytest.fixture
def share(repo, tmp_path, first):
    """Run the module as Ansible does; what was started is stopped at the end."""

    def run(state, **options):
        arguments = {"state": state, "root": str(first), "model": "m", "precision": "q4_k_m",
                     "address": "127.0.0.1", "token": TOKEN, **options}  # fmt: skip
        file = tmp_path / "share.json"
        file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        done = subprocess.run([sys.executable, repo / MODULE, file], capture_output=True, text=True)
        return json.loads(done.stdout)

    yield run
    run("stopped")


def get(url, path, token=TOKEN, **headers):
    request = urllib.request.Request(f"{url}/{path}", headers=headers)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def servers(token=TOKEN):
    """Processes of servers; none shows the token."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        assert token.encode() not in text
        if b"hmac.compare_digest(shown" in text:
            found.append(int(path.parent.name))
    return found


def test_the_model_goes_to_who_has_the_token_and_nothing_else_goes(share):
    offer = share("started")
    assert offer["changed"] is False and TOKEN not in json.dumps(offer)
    url = offer["url"]
    whole = FILES["weights/a b.safetensors"]
    assert get(url, "weights/a%20b.safetensors") == (200, whole)
    assert get(url, "weights/a%20b.safetensors", Range="bytes=1000-") == (206, whole[1000:])
    piece = get(url, "weights/a%20b.safetensors", Range="bytes=1000-1999")
    assert piece == (206, whole[1000:2000])
    assert get(url, "config.json", token=None) == (401, b"")
    assert get(url, "config.json", token="another") == (401, b"")
    for path in ("secret", ".complete", "../q4_k_m/secret", "", "%2e%2e/%2e%2e/etc/passwd"):
        assert get(url, path)[0] == 404, path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_it_runs_as_nobody_and_ends_when_told(share, first):
    share("started")
    (pid,) = servers()
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t65534\t65534" in status and "Groups:\t \n" in status
    note = first / "m/.q4_k_m.share"
    assert note.stat().st_mode & 0o777 == 0o600 and TOKEN not in note.read_text()
    share("stopped")
    deadline = time.monotonic() + 10
    while servers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not note.exists()
    assert share("stopped")["changed"] is False


def test_an_offer_that_a_killed_run_left_gives_way_to_the_next(share):
    before = share("started")["url"]
    after = share("started")["url"]
    assert before != after and get(after, "config.json")[0] == 200
    with pytest.raises(OSError):
        get(before, "config.json")


def test_it_ends_by_itself_when_nobody_asks(repo, first, load_plugin, background):
    module = load_plugin(MODULE)
    orders = {"folder": str(first / "m/q4_k_m"), "files": ["config.json"], "token": TOKEN,
              "address": "127.0.0.1", "port": 0, "idle": 2}  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-c", module.SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    server.stdin.write(json.dumps(orders).encode())
    server.stdin.close()
    url = f"http://127.0.0.1:{json.loads(server.stdout.readline())['port']}"
    assert get(url, "config.json")[0] == 200
    assert server.wait(30) == 0


@pytest.fixture
def site(repo, tmp_path):
    """Run the role on three hosts that are this machine, each with a folder of its own."""

    def run(hub, download, *flags, **settings):
        defaults = yaml.safe_load((repo / "roles/settings/defaults/main.yml").read_text())
        places = defaults | {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "data_path": str(tmp_path / "{{ inventory_hostname }}"),
            "r1_opt": str(repo / ".cache/hub-venv"),
            "huggingface_endpoint": hub.url,
            "modelscope_endpoint": hub.url,
            "ollama_registry": hub.url,
            "model_share_address": "127.0.0.1",
            **settings,
        }
        plan = {"model": "m", "precision": "q4_k_m", "download": download}
        hosts = {name: {"plan_result": plan} for name in ("one", "two", "three")}
        hosts["three"] = {"plan_result": {**plan, "model": "other"}}
        (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": places}}))
        tasks = [{"ansible.builtin.include_role": {"name": "model"}}]
        play = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
        (tmp_path / "play.json").write_text(json.dumps(play))
        done = subprocess.run(
            [Path(sys.executable).with_name("ansible-playbook"), "-i", tmp_path / "hosts.json",
             *flags, tmp_path / "play.json"],
            capture_output=True, text=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(repo / "ansible.cfg"), "COLUMNS": "1000",
                 "ANSIBLE_ROLES_PATH": str(repo / "roles")},
        )  # fmt: skip
        return done.stdout + done.stderr

    return run


def fetched(hub):
    """How often the big file was asked for."""
    return len([line for line in hub.requests if "GET" in line and "safetensors" in line])


def test_hosts_of_one_run_fetch_once_and_every_model_by_itself(site, start_hub, tmp_path):
    hub = start_hub({"config.json": b"{}", "a.safetensors": FILES["weights/a b.safetensors"]})
    plan = {"source": "huggingface", "repository": "o/n", "revision": "main", "files": []}
    said = site(hub, plan, "-vvv")
    assert "failed=0" in said and "failed=1" not in said, said
    for name, model in (("one", "m"), ("two", "m"), ("three", "other")):
        file = tmp_path / name / "models" / model / "q4_k_m/a.safetensors"
        assert file.read_bytes() == FILES["weights/a b.safetensors"]
    assert fetched(hub) == 2, "once for m, once for other"
    markers = [
        json.loads((tmp_path / name / "models/m/q4_k_m/.complete").read_text())
        for name in ("one", "two")
    ]
    assert markers[0]["source"] == markers[1]["source"] == "huggingface"
    assert [file["sha256"] for file in markers[0]["files"]] == [
        file["sha256"] for file in markers[1]["files"]
    ]
    tokens = re.findall(r"\b(?:site_)?token: (\S+)", said)
    assert set(tokens) == {"''", "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"}, "none or hidden"
    assert not list(tmp_path.glob("*/models/m/.*.share")), "the offer is over"
    assert servers("no such token") == []

    asked = len(hub.requests)
    again = site(hub, plan)
    assert again.count("changed=0") == 3, again
    assert len(hub.requests) == asked


def test_switched_off_each_host_asks_the_hub(site, start_hub):
    hub = start_hub({"config.json": b"{}", "a.safetensors": FILES["weights/a b.safetensors"]})
    plan = {"source": "huggingface", "repository": "o/n", "revision": "main", "files": []}
    said = site(hub, plan, model_share=False)
    assert said.count("failed=0") == 3, said
    assert fetched(hub) == 3


def test_when_the_first_host_fails_the_next_asks_the_hub(site, start_hub, tmp_path):
    hub = start_hub({"config.json": b"{}", "a.safetensors": FILES["weights/a b.safetensors"]})
    (tmp_path / "one").write_text("no folder can be made here")
    plan = {"source": "huggingface", "repository": "o/n", "revision": "main", "files": []}
    said = site(hub, plan)
    assert said.count("failed=0") == 2 and said.count("failed=1") == 1, said
    file = tmp_path / "two/models/m/q4_k_m/a.safetensors"
    assert file.read_bytes() == FILES["weights/a b.safetensors"]


def test_a_port_that_is_taken_and_an_address_that_leads_nowhere(share, free_port, start_hub):
    taken = int(start_hub({}).url.rpartition(":")[2])
    answer = share("started", port=taken)
    assert answer["failed"] and f"127.0.0.1 port {taken} cannot be listened on" in answer["msg"]
    assert "Fix: see model_share_address and model_share_port" in answer["msg"]
    assert share("started", address="", peers=["127.0.0.1", "no-such-host.invalid"])["url"] == ""


def test_another_host_takes_it_and_knows_where_it_is_from(share, start_hub, model_files, tmp_path):
    """The hub is asked for nothing, and the next run, by itself, finds all in place."""
    hub = start_hub(dict(FILES))
    plan = {"source": "huggingface", "repository": "o/m", "revision": "abc",
            "files": [{"path": name, "bytes": len(body)} for name, body in FILES.items()],
            }  # fmt: skip
    offer = share("started")
    site = {"url": offer["url"], "of": offer["of"]}
    answer = model_files(plan, site=site, site_token=TOKEN, huggingface_endpoint=hub.url)
    assert answer.get("changed"), answer
    assert answer["source"] == "huggingface"
    home = tmp_path / "models/m/q4_k_m"
    assert {name: (home / name).read_bytes() for name in FILES} == FILES
    assert not model_files(plan, huggingface_endpoint=hub.url)["changed"]
    assert hub.requests == []


def test_a_host_that_does_not_give_it_is_passed_over(share, start_hub, entry, model_files):
    hub = start_hub(dict(FILES))
    plan = {"source": "http", "repository": f"{hub.url}/folder/",
            "files": [entry(name, body) for name, body in FILES.items()]}  # fmt: skip
    offer = share("started")
    site = {"url": offer["url"], "of": offer["of"]}
    answer = model_files(plan, site=site, site_token="wrong")
    assert answer.get("changed"), answer
    assert f"Source skipped: another host, {offer['url']}: " in json.dumps(answer["warnings"])
    assert answer["source"] == "http" and hub.requests
