"""A deploy killed at any moment heals by running again."""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from box import CLONE, Box
from hosts import image
from hosts.remote import Remote
from hosts.shell import say
from remote import RemoteBox

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]

POINTS = int(os.environ.get("STACK_KILLS", "2"))
SEED = int(os.environ.get("STACK_SEED", "3"))
REMOTE_POINTS = int(os.environ.get("STACK_REMOTE_KILLS", "1"))  # of each kind of remote host
AT_ONCE = min(4, os.cpu_count() or 1)


def test_a_deploy_killed_at_any_point_heals_by_running_again(shared_box, tmp_path):
    """Each kill meets a machine of its own, torn down: only the packages are there already."""
    shared_box.want("llamacpp")
    shared_box.teardown()
    shared_box.machine.run("rm -r /var/lib/deepseek-r1").ok()
    with shared_box.machine.copies() as copy, ThreadPoolExecutor(AT_ONCE) as workers:
        whole = next(workers.map(lambda _: whole_deploy(copy), range(AT_ONCE)))
        points = choose(whole.seconds, whole.tasks)
        say(f"seed {SEED}: {POINTS} kills, half by time and half by task (STACK_SEED, STACK_KILLS)")
        rows = list(workers.map(lambda point: kill_and_heal(copy, point, tmp_path), points))
    say("killed at s | healed in s | changed after | task at which it died")
    for row in rows:
        say(row)


def test_a_deploy_killed_while_packages_are_installed_heals(clean_box, tmp_path):
    box = clean_box()
    box.play("make the environment", "bin/bootstrap").result.ok()
    log = tmp_path / "killed.log"
    process = box.machine.start(box.deploy_command(), log, cwd=CLONE)
    wait_for(lambda: installs(box, "redis-server"))
    time.sleep(random.Random(SEED).uniform(0, 4))
    task = kill(box, process, log)
    unfinished = box.machine.run("dpkg --audit").output.count("\n ")
    heal(box, f"{task}, {unfinished} packages half installed")
    assert box.machine.run("ls /usr/sbin/policy-rc.d").rc != 0, "a policy is left behind"
    assert box.machine.run("dpkg --audit").ok().output == ""
    assert box.services()["other"] == []


# What is cut, in turn: the host (power) or the controller (kill).
REMOTE = {
    "systemd": (image.SYSTEMD_DEBIAN13, {}, ("power", "kill")),
    "compose": (
        image.SYSTEMD_DEBIAN12,
        {"runtime": "compose", "images": "build"},
        ("kill", "power"),
    ),
}


@pytest.mark.parametrize("manager", ["systemd", pytest.param("compose", marks=pytest.mark.long)])
def test_a_deploy_over_ssh_heals_after_a_kill_or_a_power_cut(manager, tmp_path):
    recipe, settings, cuts = REMOTE[manager]
    with Remote(recipe) as host:
        box = RemoteBox(host, REPO, tmp_path, **settings)
        box.deploy("deploy, which brings the packages").result.ok()
        box.teardown("-e", "host_remove_data=true")
        whole = box.deploy("deploy, not killed")
        whole.result.ok()
        rows = []
        for number, point in enumerate(choose(whole.seconds, whole.tasks, REMOTE_POINTS)):
            box.teardown("-e", "host_remove_data=true")
            power = cuts[number % 2] == "power"
            rows.append(cut_and_heal(box, point, tmp_path / f"{number}.log", power))
    say(f"{manager}: cut at s | healed in s | changed after | task at which it was cut")
    for row in rows:
        say(row)


def cut_and_heal(box: RemoteBox, point: tuple[int, float], log: Path, power: bool) -> str:
    tasks, seconds = point
    start = time.monotonic()
    process = box.start(log)
    let_run(process, log, tasks, seconds)
    moment = time.monotonic() - start
    if power:
        box.machine.restart()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    where = f"{'host off and on' if power else 'controller killed'}, {last_task(log)}"
    healed = heal(box, f"{moment:.1f} s, {where}")
    return f"{moment:6.1f} | {healed:6.1f} | 0 | {where}"


def test_packages_left_in_any_state_are_finished(clean_box):
    """Unpacked without its dependencies, and torn while it was unpacked, waited for or not."""
    box = clean_box()
    packages = ("libnginx-mod-http-lua", "libnginx-mod-http-ndk", "redis-server")
    box.machine.run(
        "apt-get -qq update && cd /tmp && apt-get -qq --option=APT::Sandbox::User=root download"
        f" {' '.join(packages)} && dpkg --unpack {'_*.deb '.join(packages)}_*.deb"
    ).ok()
    for torn in packages[1:]:
        box.machine.run(
            f"sed -i '/^Package: {torn}$/,/^$/s/^Status: .*/Status: install reinstreq"
            " half-installed/' /var/lib/dpkg/status"
        ).ok()
    assert box.machine.run("dpkg --audit").output.count("\n ") == 3
    box.deploy("make deploy over torn packages").result.ok()
    box.verified()
    assert box.machine.run("dpkg --audit").ok().output == ""
    assert box.deploy("once more").changed == 0


def installs(box, package: str) -> bool:
    """True while apt has dpkg unpack or configure it."""
    commands = [process.command for process in box.machine.processes()]
    return any("apt-get" in c and package in c for c in commands) and any(
        "dpkg" in c and "--status-fd" in c for c in commands
    )


def choose(seconds: float, tasks: int, points: int = POINTS) -> list[tuple[int, float]]:
    """Points to kill at: (tasks that have begun, seconds after that).

    Half are random moments, which mostly meet the few slow tasks; half are random tasks.
    """
    chance = random.Random(SEED)
    moments = [(0, chance.uniform(0.5, seconds)) for _ in range(points - points // 2)]
    return sorted(
        moments + [(chance.randint(1, tasks), chance.random()) for _ in range(points // 2)]
    )


def whole_deploy(copy):
    with copy() as machine:
        run = Box(machine).deploy("make deploy on a torn-down machine, not killed")
        run.result.ok()
        return run


def kill_and_heal(copy, point: tuple[int, float], folder) -> str:
    tasks, seconds = point
    log = folder / f"{point}.log"
    with copy() as machine:
        box = Box(machine)
        start = time.monotonic()
        process = machine.start(box.deploy_command(), log, cwd=CLONE)
        let_run(process, log, tasks, seconds)
        moment = time.monotonic() - start
        task = kill(box, process, log)
        healed = heal(box, f"{moment:.1f} s, {task}")
    return f"{moment:6.1f} | {healed:6.1f} | 0 | {task}"


def let_run(process, log: Path, tasks: int, seconds: float) -> None:
    """Until so many tasks have begun, and seconds after that; at most until it ends."""
    begun = b"\nTASK ["
    wait_for(lambda: log.read_bytes().count(begun) >= tasks or process.poll() is not None, 600)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def kill(box, process, log) -> str:
    """SIGKILL the deploy with all it started; return the task it was in."""
    box.machine.kill_tree("make deploy")
    process.wait(10)
    return last_task(log)


def last_task(log: Path) -> str:
    tasks = re.findall(r"^TASK \[(.*?)\]", log.read_text(errors="replace"), re.MULTILINE)
    return tasks[-1] if tasks else "before the first task"


def heal(box, where: str) -> float:
    """Run again: it must end well, and the run after it must have nothing to do."""
    healing = box.deploy(f"run again after a kill at {where}")
    healing.result.ok()
    box.verified()
    again = box.deploy(f"once more after a kill at {where}")
    assert again.changed == 0, again.changes()
    return healing.seconds


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.05)
