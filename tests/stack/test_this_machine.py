"""The same on this very machine, in short: it gets the stack, and loses it again."""

import json
import os
import pwd
import re
import shutil
from pathlib import Path

import pytest
import yaml
from box import NO_HUB, PLAY, RECAP
from hosts import clone, debian, image, machine
from hosts.shell import run, step
from model.hub import Hub

REPO = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

ASKED = os.environ.get("CI") == "true" or os.environ.get("STACK_ON_THIS_MACHINE") == "1"
OURS = [
    Path(path)
    for path in (
        "/etc/deepseek-r1",
        "/opt/deepseek-r1",
        "/run/deepseek-r1",
        "/var/log/deepseek-r1",
        "/usr/local/bin/deepseek-r1",
    )
]


@pytest.fixture(scope="module")
def deployed(repo, tmp_path_factory):
    """A clone that has deployed to this machine; taken away at the end."""
    if not ASKED:
        pytest.skip("set STACK_ON_THIS_MACHINE=1 to deploy to this machine itself")
    if os.geteuid() != 0 or debian.release().get("ID") != "debian":
        pytest.skip("this machine is no Debian, or you are not root on it")
    if there := [str(path) for path in OURS if path.exists()]:
        pytest.skip(f"this machine has a deployment already, left alone: {' '.join(there)}")
    copy = tmp_path_factory.mktemp("machine") / "clone"
    clone.make(repo, copy)
    try:
        with step("make deploy on this machine"):
            changed(run("make", "deploy", f"ARGS={NO_HUB}", cwd=copy))
        yield copy
    finally:
        with step("teardown on this machine"):
            run(copy / PLAY, "playbooks/teardown.yml", "-l", "local", cwd=copy)
    assert [path for path in OURS if path.exists()] == []
    accounts = Path("/etc/passwd").read_text() + Path("/etc/group").read_text()
    assert not re.search(r"^r1-", accounts, re.MULTILINE)


def test_deploy_verify_and_again(deployed):
    assert json.loads((deployed / "reports/local/verify.json").read_text())["passed"]
    with step("make deploy on this machine, again"):
        assert changed(run("make", "deploy", f"ARGS={NO_HUB}", cwd=deployed)) == 0
    with step("verify on this machine"):
        run(deployed / PLAY, "playbooks/verify.yml", "-l", "local", cwd=deployed)


def test_a_container_is_left_alone(deployed):
    """A container's user may have the number of one of ours; its processes are not ours."""
    if not shutil.which("docker"):
        pytest.skip("no Docker on this machine, so no container to harm")
    number = pwd.getpwnam("r1-engine").pw_uid
    with machine.Machine(image.CLEAN_DEBIAN12) as other:
        other.run(f"setpriv --reuid={number} --clear-groups sleep 300 > /dev/null & sleep 1").ok()
        assert [p.command for p in other.processes()] == ["sleep 300"]
        run("deepseek-r1", "restart")
        assert [p.command for p in other.processes()] == ["sleep 300"]


def test_a_model_that_a_hub_carries(deployed, tiny_gguf, tmp_path):
    """Found, planned, fetched by the hub's own client and served; the hub is a stand-in."""
    content = tiny_gguf.read_bytes()
    served = Hub({"tiny.gguf": content})
    own = {"repository": "o/n", "file": "tiny.gguf", "source": "huggingface"}
    shape = yaml.safe_load((REPO / "roles/plan/vars/catalogue.yml").read_text())
    shape = shape["__plan_catalogue"]["tiny-r1"]["shape"]
    case = tmp_path / "case.json"
    settings = {
        "models": {"hub-r1": own | {"precision": "q4_k_m", "bytes": len(content), "shape": shape}},
        "model": "hub-r1",
        "huggingface_endpoint": served.url,
    }
    case.write_text(json.dumps(settings))
    try:
        arguments = f"ARGS={NO_HUB} -e @{case}"
        with step("make deploy on this machine, a model from a hub"):
            output = run("make", "deploy", arguments, cwd=deployed)
        assert changed(output) > 0
        assert json.loads((deployed / "reports/local/verify.json").read_text())["passed"]
        plan = json.loads((deployed / "reports/local/deployed.json").read_text())
        assert (plan["model"], plan["download"]["source"]) == ("hub-r1", "huggingface")
        assert not plan["fallback"]
        assert changed(run("make", "deploy", arguments, cwd=deployed)) == 0
        assert served.sent <= 1.05 * len(content)
    finally:
        served.stop()


def changed(output: str) -> int:
    recap = RECAP.search(output)
    assert recap, output[-3000:]
    return int(recap.group(1))
