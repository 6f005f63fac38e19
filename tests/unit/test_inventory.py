"""The inventory that comes with the project: its examples are true and can be used as they are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
INVENTORY = REPO / "inventories/default"
SHARED = REPO / "roles/settings/defaults/main.yml"
ALL = INVENTORY / "group_vars/all.yml"
TITLE = re.compile(r"^# --- (.+?) -+$", re.MULTILINE)


def sections(path, setting):
    """{what a change costs: {name: value}}, of the lines that the pattern `setting` finds."""
    parts = TITLE.split(path.read_text(encoding="utf-8"))
    texts = ("\n".join(re.findall(setting, part, re.MULTILINE)) for part in parts[2::2])
    return {title: yaml.safe_load(text) for title, text in zip(parts[1::2], texts, strict=True)}


@pytest.fixture(scope="module")
def examples():
    """Settings of all.yml, which are written behind a `# `."""
    return sections(ALL, r"^# ([a-z]\w*: .+)$")


@pytest.fixture(scope="module")
def shared():
    return sections(SHARED, r"^([a-z]\w*: .+)$")


@pytest.fixture(scope="module")
def check(load_plugin):
    return load_plugin("roles/settings/action_plugins/check_settings.py")


def test_all_sets_nothing_by_itself():
    assert yaml.safe_load(ALL.read_text(encoding="utf-8")) is None


def test_every_example_is_a_setting_with_its_default(examples, check):
    specs, _names = check.load_roles(REPO / "roles")
    given = {name: value for part in examples.values() for name, value in part.items()}
    assert len(given) > 20
    assert {name: specs.get(name, {}).get("default") for name in given} == given
    assert [name for name in given if check.check_value(name, given[name], specs[name])] == []


def test_both_files_order_settings_by_the_same_costs(examples, shared):
    assert list(examples) == list(shared)
    for title, part in examples.items():
        mine = [name for name in part if any(name in names for names in shared.values())]
        assert mine == [name for name in shared[title] if name in part], title


def test_examples_of_hosts_are_an_inventory(tmp_path):
    """Every commented host and variable of hosts.yml, switched on, is what Ansible then reads."""
    text = (INVENTORY / "hosts.yml").read_text(encoding="utf-8")
    text = re.sub(r"^( *)# ( *[a-z][\w-]*:.*)$", r"\1\2", text, flags=re.MULTILINE)
    (tmp_path / "hosts.yml").write_text(text)
    command = [Path(sys.executable).with_name("ansible-inventory"), "-i", tmp_path, "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["tier_24gb"]["hosts"] == ["gpu-box"]
    hosts = told["_meta"]["hostvars"]
    assert hosts["gpu-box"]["ansible_user"] == "ubuntu"
    assert hosts["gpu-box"]["ansible_port"] == 2222
    assert hosts["gpu-box"]["ansible_ssh_private_key_file"] == "~/.ssh/gpu-box"
    assert hosts["rented-box"]["ansible_host"] == "connect.example.com"
    assert hosts["rented-box"]["ansible_port"] == 31022
    assert hosts["rented-box"]["ansible_user"] == "root"
