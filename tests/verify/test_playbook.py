"""playbooks/verify.yml against the stand-in: what is printed, written and refused."""

import json

import pytest


def settings_for(stand_in):
    return {"gateway_port": stand_in.server_port, "verify_closed_ports": []}


def test_a_sound_deployment(deployed, play, stand_in):
    result = play(**settings_for(stand_in))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "12 of 12 checks passed" in result.stdout
    assert "changed=0" in result.stdout
    assert (deployed / "secrets/local/api_key").read_text().strip() not in result.stdout
    report = json.loads((deployed / "reports/local/verify.json").read_text())
    assert list(report) == ["host", "time", "endpoint", "passed", "checks"]
    assert report["host"] == "local"
    assert report["endpoint"] == stand_in.url
    assert report["passed"] is True
    assert len(report["checks"]) == 12
    for check in report["checks"]:
        assert list(check) == ["name", "passed", "detail", "seconds"]


def test_a_broken_deployment_fails_the_play(deployed, play, stand_in):
    stand_in.faults["never_hits"] = True
    result = play(**settings_for(stand_in))
    assert result.returncode != 0
    assert "11 of 12 checks passed; failed: cache" in result.stdout
    assert "deepseek-r1 logs redis" in result.stdout
    report = json.loads((deployed / "reports/local/verify.json").read_text())
    assert report["passed"] is False


def test_check_mode_proves_as_well(deployed, play, stand_in):
    assert play("--check", "--diff", **settings_for(stand_in)).returncode == 0
    stand_in.faults["never_hits"] = True
    result = play("--check", "--diff", **settings_for(stand_in))
    assert result.returncode != 0
    assert "failed: cache" in result.stdout


def test_the_host_can_knock_itself(deployed, play, stand_in):
    result = play(verify_from="host", **settings_for(stand_in))
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((deployed / "reports/local/verify.json").read_text())["passed"]


@pytest.mark.parametrize("missing", ["secrets/local/api_key", "reports/local/deployed.json"])
def test_without_a_deploy_it_says_so(deployed, play, stand_in, missing):
    (deployed / missing).unlink()
    result = play(**settings_for(stand_in))
    assert result.returncode != 0
    assert "was not deployed from this clone" in result.stdout
    assert "ansible-playbook deploy.yml -l local" in result.stdout
