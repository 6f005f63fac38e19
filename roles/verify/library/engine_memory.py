#!/usr/bin/python
"""Measure the memory of the engine's processes."""

import contextlib
import pwd
import re
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: engine_memory
short_description: Measure the memory of the engine's processes
description:
  - Adds up the main memory of all processes of a user, or of those of one name, and what they
    hold on each GPU. Changes nothing.
options:
  user:
    description: Name of the user the engine runs as.
    type: str
  port:
    description: TCP port that the engine holds, where its user is not known.
    type: int
  program:
    description: Name of the engine's processes, for a user who runs others too.
    type: str
  gpu:
    description: Whether to ask nvidia-smi too.
    type: bool
    default: false
author: The authors of this project
"""

EXAMPLES = r"""
- name: Measure the engine
  engine_memory:
    user: r1-engine
  register: engine
"""

RETURN = r"""
processes:
  description: The processes by number, each with its name, bytes and measure (pss or rss).
  type: dict
  returned: always
bytes:
  description: Main memory of all of them.
  type: int
  returned: always
gpu_bytes:
  description: Memory on the fullest GPU; null where O(gpu=false) or nvidia-smi cannot tell.
  type: int
  returned: always
"""


def kib(file, label):
    found = re.search(rf"^{label}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def measure(folder):
    """Proportional size; in a container even root may not see it, then the resident size."""
    try:
        size, how = kib(folder / "smaps_rollup", "Pss"), "pss"
    except OSError:
        size, how = kib(folder / "status", "VmRSS"), "rss"
    return {"name": (folder / "comm").read_text().strip(), "bytes": size, "measure": how}


def processes_of(uid, program=None):
    """A user's processes, of a program if one is named. Containers of others may use the same
    number: where any of them is outside containers, those inside are not counted."""
    found = [folder for folder in Path("/proc").glob("[0-9]*") if owner(folder) == uid]
    found = [folder for folder in found if program in (None, name(folder))]
    return [folder for folder in found if namespace(folder) == namespace()] or found


def namespace(folder=Path("/proc/self")):
    try:
        return (folder / "ns/pid").readlink()
    except OSError:  # it ended meanwhile, or, in a container, even root may not look
        return None


def owner(folder):
    try:
        return folder.stat().st_uid
    except FileNotFoundError:  # it ended meanwhile
        return None


def name(folder):
    try:
        return (folder / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


def user_of(port):
    """Number of the user whose process listens on a port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return int(fields[7])
    return None


def measured(folders):
    found = {}
    for folder in folders:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            found[folder.name] = measure(folder)
    return found


def fullest_gpu(module, pids):
    if not shutil.which("nvidia-smi"):
        return None
    query = ["--query-compute-apps=gpu_uuid,pid,used_gpu_memory", "--format=csv,noheader,nounits"]
    status, out, _ = module.run_command(["nvidia-smi", *query])
    used = {}
    for gpu, pid, mib in re.findall(r"^(\S+), (\d+), (\d+)$", out, re.MULTILINE):
        if pid in pids:
            used[gpu] = used.get(gpu, 0) + int(mib) * 1024**2
    return max(used.values()) if status == 0 and used else None


def main():
    module = AnsibleModule(
        {
            "user": {"type": "str"},
            "port": {"type": "int"},
            "program": {"type": "str"},
            "gpu": {"type": "bool", "default": False},
        },
        required_one_of=[("user", "port")],
        supports_check_mode=True,
    )
    user, port = module.params["user"], module.params["port"]
    try:
        uid = user_of(port) if port else pwd.getpwnam(user).pw_uid
        folders = [] if uid is None else processes_of(uid, module.params["program"])
    except KeyError:
        folders = []
    found = measured(folders)
    module.exit_json(
        changed=False,
        processes=found,
        bytes=sum(process["bytes"] for process in found.values()),
        gpu_bytes=fullest_gpu(module, found) if module.params["gpu"] else None,
    )


if __name__ == "__main__":
    main()
