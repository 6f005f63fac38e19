#!/usr/bin/python
"""Measure the memory of the engine's processes."""

import pwd
import re
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: engine_memory
short_description: Measure the memory of the engine's processes
description:
  - Adds up the main memory of all processes of a user, and what they hold on each GPU.
    Changes nothing.
options:
  user:
    description: Name of the user the engine runs as.
    type: str
    required: true
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


def processes_of(uid):
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == uid:
                found[folder.name] = measure(folder)
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
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
        {"user": {"type": "str", "required": True}, "gpu": {"type": "bool", "default": False}},
        supports_check_mode=True,
    )
    try:
        found = processes_of(pwd.getpwnam(module.params["user"]).pw_uid)
    except KeyError:
        found = {}
    module.exit_json(
        changed=False,
        processes=found,
        bytes=sum(process["bytes"] for process in found.values()),
        gpu_bytes=fullest_gpu(module, found) if module.params["gpu"] else None,
    )


if __name__ == "__main__":
    main()
