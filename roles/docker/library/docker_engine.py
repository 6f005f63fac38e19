#!/usr/bin/python
"""Ask the Docker engine of this host what it is and what it allows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: docker_engine
short_description: Ask the Docker engine of this host what it is and what it allows
description:
  - Waits until the engine answers, and changes nothing. In check mode a host may have no Docker
    yet; then there is nothing to wait for.
options:
  timeout:
    description: Seconds to wait for the engine's answer.
    type: int
    default: 60
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Ask Docker what it allows
  docker_engine:
  register: docker_engine
"""

RETURN = r"""
version:
  description: Version of the engine, as numbers; empty where none runs.
  type: list
  elements: int
  returned: always
open_files:
  description: Most open files that a container may be given; null where it is not known.
  type: int
  returned: always
cdi:
  description: NVIDIA's cards that Docker can give to a container by CDI, as C(nvidia.com/gpu=NAME).
    Empty where it is not allowed to, and for descriptions whose files are gone.
  type: list
  elements: str
  returned: always
forwards:
  description: Whether the kernel forwards published ports, so that containers see the clients'
    addresses. Where it is told not to, all clients look like the host.
  type: bool
  returned: always
"""


def engine_version():
    """(numbers, what docker said)."""
    done = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    numbers = re.findall(r"\d+", done.stdout.partition("-")[0].partition("+")[0])
    if done.returncode or not numbers:
        return [], (done.stderr or done.stdout).strip()
    return [int(number) for number in numbers], ""


def daemon():
    """Folder in /proc of the engine; None where it is out of sight."""
    mine = Path("/proc/self/ns/pid").readlink()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "comm").read_text().strip()
            if name == "dockerd" and (folder / "ns/pid").readlink() == mine:
                return folder
        except OSError:
            continue  # it ended
    return None


def open_files(folder):
    found = re.search(r"^Max open files +\d+ +(\d+)", (folder / "limits").read_text(), re.MULTILINE)
    return int(found.group(1)) if found else None


def forwards(folder):
    arguments = (folder / "cmdline").read_text().split("\0")
    if "--iptables=false" in arguments:
        return False
    named = re.search(r"\0--config-file[=\0]([^\0]+)", "\0".join(arguments))
    file = Path(named.group(1) if named else "/etc/docker/daemon.json")
    try:
        settings = json.loads(file.read_text())
    except (OSError, ValueError):
        return True
    return settings.get("iptables", True) is not False


def cdi():
    done = subprocess.run(
        ["docker", "info", "--format", "{{json .CDISpecDirs}}"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    folders = json.loads(done.stdout) if done.returncode == 0 else []
    files = [file for folder in folders or [] for file in sorted(Path(folder).glob("*"))]
    return [name for file in files if file.suffix in (".json", ".yaml") for name in cards(file)]


def cards(file):
    """By the lines of a CDI specification, in YAML or JSON; a host need not have a YAML reader."""
    text = file.read_text(errors="replace")

    def values(key):
        return re.findall(rf"\b{key}[\"']?: *[\"']?([^\s\"',}}\]]+)", text)

    if values("kind") != ["nvidia.com/gpu"]:
        return []
    if not all(Path(path).exists() for path in values("hostPath")):
        return []  # of a driver that was there before
    return [f"nvidia.com/gpu={name}" for name in values("name")]


def main():
    module = AnsibleModule(
        argument_spec={"timeout": {"type": "int", "default": 60}}, supports_check_mode=True
    )
    nothing = {"version": [], "open_files": None, "forwards": True, "cdi": []}
    there = shutil.which("docker")
    if module.check_mode and not (there and engine_version()[0]):
        module.exit_json(**nothing)
    end = time.monotonic() + module.params["timeout"]
    version, said = engine_version() if there else ([], "there is no program docker")
    while there and not version and time.monotonic() < end:
        time.sleep(0.2)
        version, said = engine_version()
    if not version:
        module.fail_json(
            msg=f"Docker does not answer: {said}. Look into its log (journalctl -u docker), repair "
            "it, or set runtime to native."
        )
    folder = daemon()
    seen = {"open_files": open_files(folder), "forwards": forwards(folder)} if folder else {}
    module.exit_json(**{**nothing, **seen, "version": version, "cdi": cdi()})


if __name__ == "__main__":
    main()
