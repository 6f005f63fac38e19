"""A stranger's first hour on a bare Debian 12: deploy, crash, restart, other engine, away."""

import re
import time
from pathlib import Path

import pytest
from box import CLONE, PLAY, PORT
from hosts.shell import say

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

BACK_AFTER_CRASH = 60  # seconds


def test_check_mode_changes_nothing_on_a_fresh_machine(clean_box):
    box = clean_box()
    assert box.machine.run("command -v curl nginx redis-server sudo systemctl").output == ""
    assert box.machine.run("ls /usr/sbin/policy-rc.d; python3 -m venv /tmp/venv").rc != 0
    # Making the environment in the clone is no part of the check, so it comes first.
    box.play("make the environment", "bin/bootstrap").result.ok()
    skip = ("/tmp", "/run", f"{CLONE}/.venv", f"{CLONE}/reports", "/root/.ansible")
    before = box.machine.listing(skip=skip)
    run = box.deploy("make deploy, --check --diff on a fresh machine", "--check --diff")
    assert run.changed > 0, "a fresh machine has everything still to change"
    after = box.machine.listing(skip=skip)
    assert differences(before, after) == []
    assert box.machine.processes() == []


def test_deploy(box):
    run = box.first_deploy
    say(run.output[run.output.rfind("TASK [") :])
    assert run.changed > 0
    report = box.verified()
    for check in report["checks"]:
        say(f"  {check['name']:<16} passed {check['seconds']:7.3f} s  {check['detail'][:100]}")


def test_the_curl_line_works_when_pasted(box):
    lines = re.findall(r"^\W*(curl (?:.*\\\n)*.*)", box.first_deploy.output, re.MULTILINE)
    assert lines, "the last screen has no curl line"
    result = box.machine.run(lines[-1], cwd=CLONE).ok()
    assert '"reasoning_content"' in result.output
    assert '"content"' in result.output


def test_a_second_run_changes_nothing(box):
    run = box.deploy("make deploy, again")
    assert run.changed == 0, run.changes()
    box.verified()


def test_check_mode_tells_the_truth_on_a_deployed_machine(box):
    skip = ("/tmp", "/run", f"{CLONE}/.venv", f"{CLONE}/reports", "/root/.ansible", "/var/log")
    before = box.machine.listing("/etc", "/opt", "/usr", "/root", skip=skip)
    run = box.deploy("make deploy, --check --diff on a deployed machine", "--check --diff")
    assert run.changed == 0, run.changes()
    assert (
        differences(before, box.machine.listing("/etc", "/opt", "/usr", "/root", skip=skip)) == []
    )


def test_only_the_gateway_listens_beyond_loopback(box):
    beyond = {(ip, port) for ip, port in box.machine.listeners() if not ip.startswith("127.")}
    assert {port for ip, port in beyond if ip != "::1"} == {PORT}


def test_services_run_as_their_own_users_and_no_others_run(box):
    services = box.services()
    assert services["other"] == []
    for name in ("engine", "redis", "gateway", "supervisor"):
        assert services[name], f"{name} does not run"
    for process in services["supervisor"]:
        assert "supervisord" in process.command


def test_the_distributions_services_are_as_their_packages_left_them(box):
    assert box.machine.run("ls /usr/sbin/policy-rc.d").rc != 0
    # Verify compares every packaged file with what the package shipped.
    installed = [name for name in box.packages() if re.search("nginx|redis", name)]
    assert installed
    assert box.machine.run(f"dpkg --verify {' '.join(installed)}").ok().output == ""
    commands = [process.command for process in box.machine.processes()]
    assert not [c for c in commands if "/etc/nginx" in c or "/etc/redis" in c]


@pytest.mark.parametrize("service", ["engine", "redis", "gateway"])
def test_a_killed_service_comes_back(box, service):
    before = box.services()[service]
    box.machine.kill(*before)
    seconds = until_back(box, service, before)
    seconds += box.answers_within(BACK_AFTER_CRASH)
    say(f"[{seconds:7.1f} s] {service} killed (SIGKILL): answers again")


def test_a_killed_supervisor_is_brought_back_by_the_one_command(box):
    before = box.services()
    box.machine.kill(*before["supervisor"])
    start = time.monotonic()
    box.machine.run("deepseek-r1 start").ok()
    box.answers_within(BACK_AFTER_CRASH)
    say(
        f"[{time.monotonic() - start:7.1f} s] supervisor killed: `deepseek-r1 start`, answers again"
    )
    after = box.services()
    old = {process.pid for name in before for process in before[name]}
    assert not [p for name in after for p in after[name] if p.pid in old], "orphans of the old one"
    assert len(after["supervisor"]) == 1


def test_after_a_restart_of_the_machine_one_command_starts_all(box):
    box.machine.restart()
    assert box.machine.processes() == [], "nothing starts by itself without an init system"
    start = time.monotonic()
    box.machine.run("deepseek-r1 start").ok()
    box.answers_within(BACK_AFTER_CRASH)
    say(f"[{time.monotonic() - start:7.1f} s] machine restarted: `deepseek-r1 start`, answers")
    again = box.machine.run("deepseek-r1 start").ok()
    assert again.output == "", "a second start has nothing to do"


def test_a_deploy_after_a_restart_of_the_machine_starts_all(box):
    box.machine.restart()
    run = box.deploy("make deploy, after a restart of the machine")
    assert run.changed > 0
    box.verified()


def test_idle_memory(box):
    services = box.services()
    figures = {}
    for name in ("gateway", "redis", "supervisor", "engine"):
        for process in services[name]:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            pss = re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)
            figures[name] = figures.get(name, 0) + int(pss.group(1)) / 1024
    for name, mib in figures.items():
        say(f"idle memory (PSS) of {name}: {mib:.1f} MiB")
    assert figures["gateway"] < 64
    assert figures["redis"] < 32
    assert figures["supervisor"] < 64


def test_engine_ollama_passes_the_same_verify(box, ollama_binary):
    box.machine.copy(ollama_binary, "/root/ollama")
    run = box.want("ollama", "-e ollama_archive=/root/ollama")
    assert run.changed > 0
    checks = [check["name"] for check in box.verified()["checks"]]
    say(f"verify with Ollama: {', '.join(checks)}")
    args = "-e engine=ollama -e ollama_archive=/root/ollama"
    again = box.deploy("make deploy, engine ollama, again", args)
    assert again.changed == 0, again.changes()
    assert "ollama" in " ".join(process.command for process in box.services()["engine"])


def test_back_to_llamacpp(box):
    box.verified()
    commands = " ".join(process.command for process in box.machine.processes())
    assert "llama-server" in commands
    assert "ollama" not in commands
    again = box.deploy("make deploy, back to llamacpp, again")
    assert again.changed == 0, again.changes()


def test_teardown_check_mode_changes_nothing(box):
    run = box.play("teardown, --check", f"{PLAY} playbooks/teardown.yml -l local --check --diff")
    assert run.changed > 0
    box.answers_within(5)


def test_teardown_leaves_models_secrets_and_packages(box):
    packages = box.packages() - box.bare_packages
    run = box.teardown()
    assert box.machine.processes() == []
    assert box.machine.listeners() == set()

    listed = set(re.findall(r"[\w.+-]+", run.output))
    wanted = set(box.machine.run("apt-mark showmanual").ok().output.split()) - box.bare_packages
    assert wanted - listed == set(), "packages that stay and are not listed"
    assert box.packages() - box.bare_packages == packages, "packages are left alone"

    accounts = box.machine.read("/etc/passwd") + box.machine.read("/etc/group")
    assert "r1-" not in accounts

    owned = set(box.machine.run("cat /var/lib/dpkg/info/*.list").ok().output.split("\n"))
    # /bin, /sbin and /lib are links into /usr.
    owned |= {f"/usr{path}" for path in owned if path.startswith(("/bin", "/sbin", "/lib"))}
    new = [path for path in differences(box.bare, box.machine.listing()) if path not in owned]
    stays = re.compile("|".join(f"(?:{pattern})" for pattern in MAY_STAY))
    left = [path for path in new if not stays.fullmatch(path)]
    assert left == []
    say(f"after teardown: {len(packages)} packages of the distribution stay, and no other file")

    again = box.teardown()
    assert again.changed == 0, again.changes()


def test_teardown_takes_the_models_when_told(box):
    box.teardown("-e host_remove_data=true")
    assert box.machine.run("ls /var/lib/deepseek-r1").rc != 0
    assert box.key(), "the secrets stay"


# What is there after a teardown and in no package's list of files.
MAY_STAY = (
    # ours, on purpose: models, and on the controller the clone with its secrets and reports
    r"/var/lib/deepseek-r1(/(models|secrets)(/.*)?)?",
    rf"{CLONE}(/.*)?",
    r"/root/ollama",
    # Ansible's and pip's own caches in root's home
    r"/root/\.(ansible|cache)(/.*)?",
    # what installing the distribution's packages writes besides their files
    r"/var/(lib/(dpkg|apt|systemd|ucf|python|pam)|cache)(/.*)?",
    r"/var/log/(apt|dpkg\.log|alternatives\.log)(/.*)?",
    r"/var/(lib|log)/(redis|nginx)(/.*)?",
    r"/var/www(/.*)?",
    r"/etc/(rc.\.d|alternatives|systemd|nginx/(modules|sites)-enabled|ssl/certs)(/.*)?",
    r"/etc/(ld\.so\.cache|(passwd|group|shadow|gshadow|subuid|subgid)-?|mailcap)",
    r"/usr/(lib|share)/.*/__pycache__(/.*)?",
    r"/usr/(s?bin|share/man)/.*",
    r"/(tmp|run)(/.*)?",
)


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Paths that came, went or changed; Python's own caches left out."""
    return sorted(
        path
        for path in before | after
        if before.get(path) != after.get(path) and "__pycache__" not in path
    )


def until_back(box, service, before, seconds=BACK_AFTER_CRASH) -> float:
    old = {process.pid for process in before}
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        now = box.services()[service]
        if now and not [process for process in now if process.pid in old]:
            return time.monotonic() - start
        time.sleep(0.1)
    raise AssertionError(f"{service} did not come back within {seconds} s")
