"""playbooks/keys.yml, played on a gateway that runs: keys come, change and go, streams go on."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from gateway_parts import REPO

BIN = Path(sys.executable).parent
COMMAND = [BIN / "ansible-playbook", "-i", "box,", "-c", "local"]
SAID = '{"object":"chat.completion","choices":[]}'
CHAT = {"messages": [{"role": "user", "content": "x"}]}


class Keys:
    def __init__(self, folder, paths):
        self.secrets = folder / "secrets"
        self.folder, self.paths, self.clients = folder, paths, ["first", "bob"]
        book = yaml.safe_load((REPO / "playbooks/keys.yml").read_text())
        for task in book[0]["tasks"]:
            if task.get("ansible.builtin.import_role", {}).get("name") == "inspect":
                del task["ansible.builtin.import_role"]
                task["ansible.builtin.set_fact"] = {
                    "inspect_result": {"manager": "{{ manager }}", "init": ""}
                }
        book[0]["become"] = False
        (folder / "keys.json").write_text(json.dumps(book))

    def play(self, *options, manager="supervisor", **settings):
        given = {
            "secrets_path": str(self.secrets),
            "secrets_keep_on_host": True,
            "data_path": str(self.folder / "data"),
            "api_keys": self.clients,
            "manager": manager,
            "settings_ignore": ["manager"],
            "__gateway_user": "root",
            "ansible_python_interpreter": sys.executable,
            **self.paths,
            **settings,
        }
        done = subprocess.run(
            [*COMMAND, self.folder / "keys.json", "-e", json.dumps(given), *options],
            cwd=REPO,
            capture_output=True,
            text=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(REPO / "ansible.cfg")},
        )
        for text in (self.contents() | self.copies()).values():
            assert text not in done.stdout + done.stderr
        return done

    def changed(self, *options, **settings):
        done = self.play(*options, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return int(re.search(r"changed=(\d+)", done.stdout).group(1))

    def refused(self, *options, **settings):
        done = self.play(*options, **settings)
        assert done.returncode == 2 and "changed=0" in done.stdout, done.stdout
        return " ".join(done.stdout.split())

    def contents(self, folder=None):
        folder = folder or self.secrets
        files = folder.iterdir() if folder.is_dir() else []
        return {path.name: path.read_text().strip() for path in files}

    def copies(self):
        return self.contents(self.folder / "data/secrets")


@pytest.fixture
def keys(tmp_path, paths):
    if os.getuid() != 0:
        pytest.skip("the role's files belong to root")
    return Keys(tmp_path, paths)


def opens(gateway, key):
    status = gateway.ask("/v1/chat/completions", CHAT, key=key).status
    assert status in (200, 401)
    return status == 200


def settled(gateway, key, wanted):
    """nginx has old workers take connections until the new ones do."""
    return any(opens(gateway, key) == wanted for _ in range(100))


def test_keys_come_change_and_go_while_a_stream_runs(keys, start_gateway, stand_in):
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n'
    stand_in.says(SAID)
    gateway = start_gateway(stand_in.port, gateway_cache_ttl=0)
    gateway_files = Path(keys.paths["r1_etc"]) / "gateway"
    others = {p: p.stat().st_mtime_ns for p in gateway_files.iterdir() if p.name != "secrets.json"}

    assert keys.changed("--diff") > 0
    made = keys.contents()
    assert settled(gateway, made["api_key"], True) and settled(gateway, made["api_key.bob"], True)
    assert settled(gateway, "key-of-default", False)
    assert keys.changed("--check", "--diff") == 0

    told = threading.Event()
    stand_in.streams(event % 1, told.wait, event % 2, b"data: [DONE]\n\n")
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    headers = {"Authorization": f"Bearer {made['api_key.bob']}", "Content-Type": "application/json"}
    body = json.dumps(CHAT | {"stream": True})
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert b'"1"' in response.readline()
    stand_in.says(SAID)

    assert keys.changed("--check", "--diff", "-e", "rotate=bob") > 0
    assert keys.contents() == made == keys.copies()
    assert keys.changed("--diff", "-e", "rotate=bob") > 0
    now = keys.contents()
    assert now != made and now | {"api_key.bob": made["api_key.bob"]} == made
    assert keys.copies() == now
    for path in keys.folder.rglob("*"):
        if path.is_file() and not path.is_relative_to(keys.folder / "run"):
            assert made["api_key.bob"].encode() not in path.read_bytes(), path
    assert settled(gateway, made["api_key.bob"], False)
    assert settled(gateway, now["api_key.bob"], True) and opens(gateway, now["api_key"])

    keys.clients = ["first", "carol"]
    assert keys.changed() > 0
    assert settled(gateway, now["api_key.bob"], False)
    assert settled(gateway, keys.contents()["api_key.carol"], True)

    told.set()
    rest = response.read()
    assert b'"2"' in rest and rest.endswith(b"data: [DONE]\n\n")
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_a_run_that_was_cut_short_is_finished_by_the_next(keys, start_gateway, stand_in):
    stand_in.says(SAID)
    gateway = start_gateway(stand_in.port, gateway_cache_ttl=0)
    keys.changed()
    made = keys.contents()
    # Cut after the new key was written on the controller, which is all that happened.
    (keys.secrets / "api_key").write_text("sk-made-by-a-run-that-was-cut-short-1\n")
    assert keys.changed() > 0
    assert settled(gateway, made["api_key"], False)
    assert settled(gateway, "sk-made-by-a-run-that-was-cut-short-1", True)
    # Cut before the reload: the file is there, and the gateway has not read it.
    done = keys.play("-e", "rotate=first", manager="compose", __compose_file="/nowhere")
    assert done.returncode == 2
    new = keys.contents()["api_key"]
    assert not opens(gateway, new) and opens(gateway, "sk-made-by-a-run-that-was-cut-short-1")
    assert keys.changed() > 0
    assert settled(gateway, new, True)
    assert settled(gateway, "sk-made-by-a-run-that-was-cut-short-1", False)
    assert keys.changed() == 0


def test_what_is_refused(keys, tmp_path):
    said = keys.refused("-e", "rotate=alice")
    assert "rotate: value alice is none of the clients in api_keys (first, bob); fix: name" in said
    said = keys.refused(manager="")
    assert "box has no deployment whose keys could change; fix:" in said
    assert "ansible-playbook deploy.yml -l box" in said
    assert keys.contents() == {}

    keys.secrets.mkdir(mode=0o700)
    (keys.secrets / "api_key").write_text("sk-brought-by-hand-Zq8vTr2LmXw9Kd\n")
    (tmp_path / "password").write_text("correct horse")
    vault = ["--vault-password-file", tmp_path / "password"]
    subprocess.run(
        [BIN / "ansible-vault", "encrypt", *vault, keys.secrets / "api_key"],
        check=True,
        capture_output=True,
    )
    before = keys.contents()
    said = keys.refused("-e", "rotate=first", *vault)
    assert "rotate: value first has a key that is encrypted" in said
    assert f"{keys.secrets}/api_key; fix: write a new key there with ansible-vault edit" in said
    assert keys.contents() == before
