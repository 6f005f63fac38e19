"""A Docker engine on this machine: used when it answers, else installed from Debian and started."""

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

from . import debian
from .shell import CACHE, HostError, run, step

PACKAGES = ("docker.io", "docker-cli", "docker-compose", "docker-buildx")
# The oldest Debian whose packages have compose v2; its docker.io also runs on Debian 12.
SUITE = "trixie"


def answers() -> bool:
    return shutil.which("docker") is not None and (
        subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )


def ensure() -> None:
    """Return when `docker info` answers; install and start what is missing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if answers():
        return
    if os.geteuid() != 0:
        raise HostError("no Docker engine answers you. Fix: start it, or join the group docker")
    with (CACHE / "engine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test run may be at it
        if not shutil.which("dockerd"):
            install()
        if not answers():  # a package may have started its own service
            start()


def install() -> None:
    mine = debian.release()["VERSION_CODENAME"]
    folder = CACHE / "apt"
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(debian.sources(*{mine: 0, SUITE: 0}))
    config = folder / "apt.conf"
    config.write_text(
        f'Dir::Etc::SourceList "{folder}/sources.list";\n'
        'Dir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{folder}/lists";\n'
        f'Dir::Cache::Archives "{folder}/archives";\n'
        f'APT::Default-Release "{mine}";\n'
        'APT::Sandbox::User "root";\n'
    )
    with step(f"Docker engine of Debian {SUITE} installed"):
        debian.install("iptables", *(f"{package}/{SUITE}" for package in PACKAGES), config=config)


def start() -> None:
    """Start dockerd apart from this process, and leave the machine's forwarding as it was."""
    before = forward_policy()
    log = CACHE / "dockerd.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with step("Docker engine started"), log.open("ab") as stream:
        daemon = subprocess.Popen(
            ["dockerd", "--mtu", str(mtu())],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not answers():
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise HostError(f"dockerd does not answer: {log.read_text()[-2000:]}")
            time.sleep(0.2)
    if forward_policy() != before:
        run("iptables", "-P", "FORWARD", before)


def forward_policy() -> str:
    return run("iptables", "-S", "FORWARD").split()[2]


def mtu() -> int:
    """The largest packet the way out carries; a bridge with more would lose the larger ones."""
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        device, destination = line.split()[:2]
        if destination == "00000000":
            return int(Path(f"/sys/class/net/{device}/mtu").read_text())
    return 1500
