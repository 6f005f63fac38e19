"""Several hosts in one run: each has its own plan and keys, and one that fails stops no other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
ROLES = ("settings", "inspect", "plan", "preflight", "secrets")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a host is deployed to by root")


@pytest.fixture
def run(repo, tmp_path, free_port):
    """The roles up to the first change, on this machine under three names and on one not there."""
    hosts = {
        "good": {"model": "tiny-r1", "gateway_port": free_port()},
        "wrong": {"model": "tiny-r1", "max_model_len": "8k"},
        "other": {"model": "tiny-r1", "gateway_port": free_port(), "api_keys": ["default", "bob"]},
        "away": {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": free_port(),
        },
    }
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    tasks = [{"ansible.builtin.import_role": {"name": role}} for role in ROLES]
    change = {"name": "Change", "ansible.builtin.debug": {"msg": "the first change"}}
    book = [{"hosts": "all", "gather_facts": False, "become": True, "tasks": [*tasks, change]}]
    (tmp_path / "play.json").write_text(json.dumps(book))
    places = {
        "ansible_python_interpreter": sys.executable,
        "data_path": str(tmp_path / "data/{{ inventory_hostname }}"),
        "secrets_path": str(tmp_path / "secrets/{{ inventory_hostname }}"),
        "__plan_report": str(tmp_path / "reports/{{ inventory_hostname }}/plan.json"),
    }
    return subprocess.run(
        [PLAYBOOK, "-i", tmp_path / "hosts.json", tmp_path / "play.json", "-c", "local",
         "-e", json.dumps(places)],
        cwd=repo,
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_CONFIG": str(repo / "ansible.cfg"), "COLUMNS": "1000"},
    )  # fmt: skip


def test_one_that_fails_stops_no_other(run, tmp_path):
    recap = dict(re.findall(r"^(\w+) +: (ok=.*)$", run.stdout, re.MULTILINE))
    assert "unreachable=1" in recap["away"], run.stdout
    assert "failed=1" in recap["wrong"] and "changed=0" in recap["wrong"]
    for name in ("good", "other"):
        assert "failed=0" in recap[name] and "changed=1" in recap[name]
    changed = run.stdout.partition("TASK [Change]")[2].partition("PLAY RECAP")[0]
    assert set(re.findall(r"^ok: \[(\w+)\]", changed, re.MULTILINE)) == {"good", "other"}
    refused = run.stdout.partition("fatal: [wrong]")[2].partition("TASK [")[0]
    assert "max_model_len: value '8k'" in refused
    assert "1 problem:" in refused

    secrets = {path.name: path for path in (tmp_path / "secrets").iterdir()}
    assert set(secrets) == {"good", "other"}
    assert {path.name for path in secrets["other"].iterdir()} == {
        "api_key",
        "api_key.bob",
        "engine_key",
    }
    keys = [path.read_text() for folder in secrets.values() for path in folder.iterdir()]
    assert len(set(keys)) == len(keys) == 5
    for name in ("good", "other"):
        plan = json.loads((tmp_path / f"reports/{name}/plan.json").read_text())
        assert (plan["host"], plan["fits"]) == (name, True)
        assert (tmp_path / f"data/{name}/secrets/engine_key").is_file()
