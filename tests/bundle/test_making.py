"""playbooks/bundle.yml where nothing can be made: every reason at once, before anything is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = {"gpus": [], "ram_mib": 16000, "cpus": 4, "disk_free_mib": 500000}


@pytest.fixture
def make(repo, tmp_path):
    """Run the playbook for hosts that are not looked at."""

    def run(names, *flags, **settings):
        given = {"ansible_host": "nowhere.invalid", "model": "tiny-r1", "plan_hardware": SMALL}
        hosts = dict.fromkeys(names, given)
        (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
        argv = [Path(sys.executable).with_name("ansible-playbook"), "-i", tmp_path / "hosts.json"]
        places = {"__plan_report": str(tmp_path / "reports/{{ inventory_hostname }}/plan.json")}
        done = subprocess.run(
            [*argv, "playbooks/bundle.yml", *flags, "-e", json.dumps(settings | places)],
            cwd=repo, capture_output=True, text=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(repo / "ansible.cfg"), "COLUMNS": "1000"},
        )  # fmt: skip
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


def test_all_that_is_wrong_is_told_at_once(make, tmp_path):
    bundle = str(tmp_path / "bundle")
    code, said = make(["a", "b"], bundle=bundle, runtime="compose", docker_packages="docker")
    assert code == 2
    assert f"bundle: value {bundle} is one folder, and -l names 2 hosts; fix: name one" in said
    assert "images: value pull asks registries, which a closed network does not have; fix:" in said
    assert "docker_packages: value docker cannot go into a bundle; fix: set it to distr" in said
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_without_a_folder_and_a_plan_that_does_not_fit(make):
    code, said = make(["a"], model="deepseek-r1-70b")
    assert code == 2
    assert "bundle: value empty names no folder; fix: say where to make the bundle" in said
    assert "deepseek-r1-70b" in said and "RAM" in said


def test_check_mode_makes_nothing(make, tmp_path):
    bundle = tmp_path / "bundle"
    code, said = make(["a"], "--check", bundle=str(bundle), bundle_system="debian13")
    assert code == 0, said
    assert not bundle.exists()


def test_settings_that_are_wrong_by_themselves(make, tmp_path):
    code, said = make(["a"], bundle="relative/path", bundle_system="debian14")
    assert code == 2
    assert "bundle: value 'relative/path' from -e is not an absolute path; fix: give the" in said
    assert "bundle_system: value 'debian14' from -e is not one of its choices" in said
