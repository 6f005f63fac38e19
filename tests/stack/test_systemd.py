"""What only systemd gives: units that tell the truth, are hardened, and leave the rest alone."""

import os
import re
import signal
import time

import pytest
from hosts import image
from hosts.remote import Remote
from hosts.shell import say
from remote import RemoteBox

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]

SERVICES = ("redis", "engine", "gateway")
EXPOSED = 3.0  # of 10, by systemd's own reckoning
MARKS = "/usr/sbin/policy-rc.d /run/systemd/system-preset/00-deepseek-r1.preset"


@pytest.fixture(scope="module")
def fresh(repo, tmp_path_factory):
    with Remote(image.SYSTEMD_DEBIAN13) as host:
        yield RemoteBox(host, repo, tmp_path_factory.mktemp("systemd"), engine="llamacpp")


@pytest.fixture(scope="module")
def box(fresh):
    fresh.deploy("deploy").result.ok()
    return fresh


def show(box, name: str, what: str) -> str:
    unit = f"deepseek-r1-{name}"
    return box.machine.run(f"systemctl show --property {what} --value {unit}").ok().output.strip()


def pids(box) -> dict[str, str]:
    return {name: show(box, name, "MainPID") for name in SERVICES}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def state(box, unit: str) -> tuple[bool, bool]:
    """Whether a unit of the distribution runs, and whether it would after a boot."""
    service = box.infra.service(unit)
    return service.is_running, service.is_enabled


def wait_for(condition, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.05)


def test_what_an_installation_cut_short_brought_does_not_start_at_boot(fresh, tmp_path):
    def installs(process):
        return "dpkg" in process.command and "--configure" in process.command

    deploy = fresh.start(tmp_path / "killed.log")
    wait_for(lambda: any(map(installs, fresh.machine.processes())), 120)
    wait_for(lambda: fresh.machine.run("test -e /lib/systemd/system/nginx.service").rc == 0)
    os.killpg(deploy.pid, signal.SIGKILL)
    fresh.machine.kill_tree("apt-get")
    deploy.wait(10)
    fresh.machine.restart()
    fresh.deploy("deploy after a cut among the packages").result.ok()
    assert state(fresh, "nginx") == state(fresh, "redis-server") == (False, False)
    assert fresh.machine.run(f"ls {MARKS}").output.count("No such file") == 2


def test_a_server_that_was_there_before_is_left_enabled(repo, tmp_path):
    with Remote(image.SYSTEMD_DEBIAN12) as host:
        host.run("apt-get -qq update && apt-get -qq install --yes nginx && nginx -t").ok()
        box = RemoteBox(host, repo, tmp_path, engine="llamacpp", gateway_port=8080)
        assert state(box, "nginx") == (True, True)
        box.deploy("deploy beside an nginx").result.ok()
        assert state(box, "nginx") == (True, True)
        assert state(box, "redis-server") == (False, False)
        box.teardown()
        assert state(box, "nginx") == (True, True)


def test_each_unit_is_hardened(box):
    for name in SERVICES:
        said = box.machine.run(f"systemd-analyze security --no-pager deepseek-r1-{name}").output
        figure = float(re.search(r"Overall exposure level .*: ([\d.]+)", said).group(1))
        say(f"exposure of {name}: {figure}")
        assert figure <= EXPOSED, said


@pytest.mark.parametrize("name", SERVICES)
def test_a_killed_service_comes_back(box, name):
    before = pids(box)
    begin = time.monotonic()
    box.machine.run(f"kill -9 {before[name]}").ok()
    wait_for(lambda: show(box, name, "MainPID") not in ("0", before[name]))
    box.answers_within(30)
    say(f"[{time.monotonic() - begin:7.1f} s] {name} killed (SIGKILL): answers again")
    assert changed(before, pids(box)) == {name}
    assert box.machine.run("deepseek-r1 start").ok().output == ""


def test_an_engine_that_loads_is_not_called_active(box):
    engine = "deepseek-r1-engine"
    # In one command on the host: the test model is loaded in less than a second.
    frozen = box.machine.run(
        f"systemctl restart --no-block {engine};"
        f" for i in $(seq 2000); do [ $(systemctl show --property SubState --value {engine}) ="
        f" start-post ] && exec systemctl kill --signal STOP --kill-whom main {engine}; done; false"
    )
    try:
        assert frozen.rc == 0, "it was never seen to load"
        time.sleep(2)
        assert show(box, "engine", "ActiveState") == "activating"
        status = box.machine.run("deepseek-r1 status")
        assert status.rc == 3
        assert re.search(f"{engine}.service +loaded +activating", status.output)
        assert box.ask("/healthz")[0] == 503
        assert show(box, "gateway", "ActiveState") == "active"
    finally:
        box.machine.run(f"systemctl kill --signal CONT --kill-whom main {engine}").ok()
    # `start` has nothing to do, but to wait.
    assert box.machine.run("deepseek-r1 start").ok().output == ""
    assert show(box, "engine", "ActiveState") == "active"


def test_a_change_touches_its_own_service_only(box):
    before = pids(box)
    box.describe(redis_log_level="verbose")
    box.deploy("deploy with another log level of Redis").result.ok()
    after = pids(box)
    assert changed(before, after) == {"redis"}

    # More workers: another configuration, and a limit that systemd sets on what runs.
    box.describe(gateway_workers=2)
    box.deploy("deploy with two gateway workers").result.ok()
    assert pids(box) == after
    assert show(box, "gateway", "MemoryMax") == str(768 * 2**20)
    assert box.machine.run("pgrep -cf 'nginx: worker process$'").output.strip() == "2"


def test_keys_change_by_their_playbook(box):
    box.change_keys(lambda: pids(box))


def test_a_change_that_was_written_and_not_applied_is_found(box):
    before = pids(box)
    # As a run leaves it that was killed before its last task.
    box.machine.run(
        "sed -i -E 's/^LimitCORE=.*/LimitCORE=1/; s/( mark redis ).*/\\1another/'"
        " /etc/systemd/system/deepseek-r1-redis.service"
        " && echo '# ' >> /etc/deepseek-r1/gateway/nginx.conf"
    ).ok()
    foretold = box.machine.run("deepseek-r1 start --dry-run").ok().output
    assert foretold == "units: read again\nredis: restarted\ngateway: reloaded\n"
    assert pids(box) == before
    assert box.machine.run("deepseek-r1 start").ok().output == foretold
    assert changed(before, pids(box)) == {"redis"}
    assert box.machine.run("deepseek-r1 start").ok().output == ""
    run = box.deploy("deploy that puts it right")
    assert run.changed > 0
    assert box.deploy("deploy again").changed == 0


def test_an_engine_that_cannot_start_fails_the_deploy_with_its_log(box):
    box.describe(llamacpp_extra_args=["--no-such-option"])
    run = box.deploy("deploy with an option that the engine does not know")
    assert run.result.rc
    assert "Job for deepseek-r1-engine.service failed" in run.output
    assert "error: invalid argument: --no-such-option" in run.output
    assert box.ask("/healthz")[0] == 503
    box.describe(llamacpp_extra_args=[])
    box.deploy("deploy without it").result.ok()
    box.verified()
