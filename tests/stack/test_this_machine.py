"""The same on this very machine, in short: it gets the stack, and loses it again."""

import json
import os
import re
from pathlib import Path

import pytest
from box import NO_HUB, PLAY, RECAP
from hosts import clone, debian
from hosts.shell import run, step

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

ASKED = os.environ.get("CI") == "true" or os.environ.get("STACK_ON_THIS_MACHINE") == "1"
OURS = [Path(p) for p in ("/etc/deepseek-r1", "/opt/deepseek-r1", "/run/deepseek-r1",
                          "/var/log/deepseek-r1", "/usr/local/bin/deepseek-r1")]  # fmt: skip


def test_deploy_verify_again_and_teardown(repo, tmp_path):
    if not ASKED:
        pytest.skip("set STACK_ON_THIS_MACHINE=1 to deploy to this machine itself")
    if os.geteuid() != 0 or debian.release().get("ID") != "debian":
        pytest.skip("this machine is no Debian, or you are not root on it")
    if any(path.exists() for path in OURS):
        pytest.skip("this machine has a deployment already; it is left alone")
    copy = tmp_path / "clone"
    clone.make(repo, copy)
    deploy = ["make", "deploy", f"ARGS={NO_HUB}"]
    try:
        with step("make deploy on this machine"):
            changed(run(*deploy, cwd=copy))
        assert json.loads((copy / "reports/local/verify.json").read_text())["passed"]
        with step("make deploy on this machine, again"):
            assert changed(run(*deploy, cwd=copy)) == 0
        with step("verify on this machine"):
            run(copy / PLAY, "playbooks/verify.yml", "-l", "local", cwd=copy)
    finally:
        with step("teardown on this machine"):
            run(copy / PLAY, "playbooks/teardown.yml", "-l", "local", cwd=copy)
    assert [path for path in OURS if path.exists()] == []
    accounts = Path("/etc/passwd").read_text() + Path("/etc/group").read_text()
    assert not re.search(r"^r1-", accounts, re.MULTILINE)


def changed(output: str) -> int:
    recap = RECAP.search(output)
    assert recap, output[-3000:]
    return int(recap.group(1))
