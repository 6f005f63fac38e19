"""SSH keys of the harness: one to enter test hosts with, one by which all of them are known."""

import fcntl
import shutil
from pathlib import Path

from . import debian, network
from .shell import CACHE, run

FOLDER = CACHE / "ssh"
CLIENT = FOLDER / "client"
HOST = FOLDER / "host"
KNOWN = FOLDER / "known_hosts"


def ensure() -> None:
    if not shutil.which("ssh"):
        debian.install("openssh-client")
    FOLDER.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for key in (CLIENT, HOST):
            if not key.exists():
                run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test-host", "-f", key)
        # Whoever answers at an address of the test hosts must have their key.
        addresses = ".".join(str(network.subnet()[0]).split(".")[:2]) + ".*"
        line = f"{addresses} {public(HOST)}"
        if not KNOWN.exists() or KNOWN.read_text() != line:  # a running ssh may read it
            KNOWN.write_text(line)


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text()


def options() -> list[str]:
    """Options of ssh: this key, these known hosts, nothing of the user's own."""
    return [
        "-o", f"UserKnownHostsFile={KNOWN}", "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes",
        "-o", "PreferredAuthentications=publickey", "-o", "ConnectTimeout=10",
    ]  # fmt: skip
