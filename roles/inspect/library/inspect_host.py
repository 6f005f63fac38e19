#!/usr/bin/python
"""Look at a host: what it is, what it has, who holds its ports, which hubs it can reach."""

from __future__ import annotations

import grp
import ipaddress
import json
import os
import platform
import pwd
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: inspect_host
short_description: Look at a host without changing it
description:
  - Collects in one call what a plan needs to know about a host. Every piece is read by itself;
    one that cannot be read becomes a sentence in C(problems), not a failure.
  - Needs Python 3.9 and its standard library. Without root, the holder of a port of another user
    is known by its user only.
options:
  data_path:
    description: Folder for models and state; it need not exist.
    type: str
    required: true
  ports:
    description: TCP ports to look at; what is no number is passed over.
    type: list
    elements: str
    default: []
  sources:
    description: Base URLs to try, by name.
    type: dict
    default: {}
  timeout:
    description: Seconds to wait for a source's answer.
    type: float
    default: 3
  own_paths:
    description: Folders of this project; a process that runs from them is ours.
    type: list
    elements: str
    default: [/etc/deepseek-r1, /opt/deepseek-r1]
  own_users:
    description: How names of this project's users begin.
    type: str
    default: r1-
  packages:
    description: Packages of the distribution to look for.
    type: list
    elements: str
    default: []
  policy_mark:
    description: Text by which this project knows its own /usr/sbin/policy-rc.d.
    type: str
    default: ""
  command:
    description: This project's command on the host; its second line names the manager.
    type: str
    default: /usr/local/bin/deepseek-r1
  compose_project:
    description: This project's name for docker compose.
    type: str
    default: deepseek-r1
  adopt_ollama:
    description: TCP port of an Ollama of somebody else's that is to serve; empty for none.
    type: str
    default: ""
  adopt_redis:
    description: Address of a Redis of somebody else's, C(unix:/path) or C(ADDRESS:PORT); empty
      for none.
    type: str
    default: ""
  gateway_user:
    description: User that must be able to open a Redis socket.
    type: str
    default: r1-gateway
  os_release:
    description: File that says which operating system this is.
    type: str
    default: /etc/os-release
  pci:
    description: Folder of the PCI devices.
    type: str
    default: /sys/bus/pci/devices
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Look at the host
  inspect_host:
    data_path: /var/lib/deepseek-r1
    ports: [80, 18000]
    sources: {modelscope: https://www.modelscope.cn}
  register: inspect_result
"""

RETURN = r"""
os:
  description: Operating system as C({id, version, pretty, codename, family}).
  type: dict
  returned: always
arch:
  description: Machine type, for example V(x86_64).
  type: str
  returned: always
python:
  description: Version of the Python that ran this module.
  type: str
  returned: always
glibc:
  description: Version of the C library, null where it is not glibc.
  type: str
  returned: always
user:
  description: Name of the user that ran this module; C(root) says whether it is root.
  type: str
  returned: always
cpu:
  description: Processor as C({model, count, flags}); the count obeys affinity and cgroup quota, and
    V(avx_vnni) is among the flags also where a hypervisor hides it and it works.
  type: dict
  returned: always
ram_mib:
  description: Main memory or the cgroup's limit, whichever is less; C(ram_available_mib) is free.
  type: int
  returned: always
disk:
  description: C({path, free_mib, read_only, closed}) of the nearest folder above O(data_path) that
    exists. C(closed) is the folder above O(data_path) that not every user may enter, or null.
  type: dict
  returned: always
gpus:
  description: Cards as C({index, name, uuid, memory_mib, memory_used_mib, compute_capability,
    mig, processes, slices}). C(processes) are those that hold its memory, each as C({pid, name,
    used_mib, ours}); C(slices) are a MIG card's, each as C({index, name, uuid, memory_mib,
    memory_used_mib, processes}).
  type: list
  elements: dict
  returned: always
gpus_visible:
  description: What an environment says of the cards to use, as C({variable, value, where}); null
    where none says anything.
  type: dict
  returned: always
cards:
  description: NVIDIA's PCI cards, with a driver or without, as C(lspci -nnk) writes them.
  type: str
  returned: always
driver_version:
  description: Version of the NVIDIA driver, null without one; C(cuda_version) is what it supports.
  type: str
  returned: always
init:
  description: V(systemd) or V(none).
  type: str
  returned: always
container:
  description: Whether the host is a container.
  type: bool
  returned: always
confined:
  description: Whether it may not run containers of its own, because it has not the rights of root.
  type: bool
  returned: always
tools:
  description: Which of C(docker), C(nvidia_smi) and C(apt) are there.
  type: dict
  returned: always
manager:
  description: What runs this project's services, V(systemd), V(supervisor) or V(compose); empty
    where nothing is deployed.
  type: str
  returned: always
docker:
  description: Docker as C({installed, running, version, compose}); version of the engine and of
    docker compose, each null without it.
  type: dict
  returned: always
ports:
  description: Asked ports that are held, each as C({pid, process, user, cmdline, ours,
    container, addresses}).
  type: dict
  returned: always
foreign:
  description: Servers of the kinds that this project runs which are not its own, as C({name, pid,
    cmdline, user, unit, ports}). What runs in containers does not count.
  type: list
  elements: dict
  returned: always
sources:
  description: Each source as C({url, answers, error}).
  type: dict
  returned: always
ollama_owner:
  description: Number of the user whom the folder C(ollama) under O(data_path) belongs to, null
    without one.
  type: int
  returned: always
models_present:
  description: Complete models under O(data_path) as C(NAME/PRECISION).
  type: list
  elements: str
  returned: always
adopted:
  description: What O(adopt_ollama) and O(adopt_redis) found, as C({ollama, redis}); each null when
    not asked for. C(ollama) is C({version, models_path, error}), C(redis) is C({error}).
  type: dict
  returned: always
packages_missing:
  description: Those of O(packages) that are not installed.
  type: list
  elements: str
  returned: always
packages_disturbed:
  description: Installed packages that installing the missing ones would touch, as C({name, action,
    old, new}) with the action V(removed), V(downgraded) or V(upgraded).
  type: list
  elements: dict
  returned: always
packages_conflict:
  description: Why apt cannot install the missing ones beside what is there, empty when it can or
    nobody knows yet.
  type: list
  elements: str
  returned: always
policy_left:
  description: A killed run left its /usr/sbin/policy-rc.d (see O(policy_mark)) behind.
  type: bool
  returned: always
users:
  description: This project's users, each with the groups it is in.
  type: dict
  returned: always
uids:
  description: The same users' numbers, each as C({uid, gid}).
  type: dict
  returned: always
problems:
  description: What could not be read, a sentence each.
  type: list
  elements: str
  returned: always
"""

MIB = 1024 * 1024
# Keeps apt from writing caches and a log: looking at a host leaves no trace on it.
NO_TRACE = tuple(
    f"--option=Dir::{name}"
    for name in ("Cache::pkgcache=", "Cache::srcpkgcache=", "Log::Planner=/dev/null")
)
# Processors that have AVX-VNNI, by maker, family and model (all models of AMD's family 26, Zen 5),
# and a program that uses it once and then returns. Clouds hide the flag from their machines.
HAS_AVX_VNNI = re.compile(r"GenuineIntel 6 (143|173|174|207)$|AuthenticAMD 26 ")
USE_AVX_VNNI = """
import ctypes, mmap, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("c4e27150c2c3"))  # {vex} vpdpbusd xmm0, xmm1, xmm2; ret
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
CGROUPS = Path("/sys/fs/cgroup")
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
NO_DOCKER = {"installed": False, "running": False, "version": None, "compose": None}
SERVERS = {"nginx", "openresty", "redis-server", "valkey-server", "ollama"}
GPU_DEVICES = "/dev/nvidia[0-9]*"
NO_SLICE = {"name": "slice", "uuid": None}
# What a driver too old to tell the compute capability says about its cards.
CAPABILITY_OF = {
    "Pascal": "6.1",
    "Volta": "7.0",
    "Turing": "7.5",
    "Ada Lovelace": "8.9",
    "Hopper": "9.0",
}


def read(path, default=""):
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return default


def operating_system(path):
    pairs = re.findall(r"^(\w+)=[\"']?(.*?)[\"']?$", read(path), re.MULTILINE)
    values = dict(pairs)
    name = values.get("ID", "unknown")
    like = [name, *values.get("ID_LIKE", "").split()]
    return {
        "id": name,
        "version": values.get("VERSION_ID", ""),
        "pretty": values.get("PRETTY_NAME", name),
        "codename": values.get("VERSION_CODENAME", ""),
        "family": "debian" if {"debian", "ubuntu"} & set(like) else like[-1],
    }


def glibc():
    try:
        return os.confstr("CS_GNU_LIBC_VERSION").split()[1]
    except (ValueError, OSError, AttributeError, IndexError):
        return None


def cgroup_folders(controller, text=None, root=CGROUPS):
    """This process's cgroup folders from its own up to the top: cgroup v2, or v1's controller."""
    for line in (read("/proc/self/cgroup") if text is None else text).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and (root / "cgroup.controllers").exists():
            top = root
        elif controller in controllers.split(","):
            top = root / controller
        else:
            continue
        folder = top / path.strip("/")
        yield folder
        while folder != top:
            folder = folder.parent
            yield folder
        return


def cgroup_cpus(folders):
    """The least CPU quota of some cgroup folders, in CPUs, or None."""
    found = []
    for folder in folders:
        quota, period = [*read(folder / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota = read(folder / "cpu.cfs_quota_us").strip()
            period = read(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def cgroup_memory(folders):
    """The least memory limit of some cgroup folders and what it leaves free, in bytes, or None."""
    limits, free = [], []
    for folder in folders:
        limit = read(folder / "memory.max") or read(folder / "memory.limit_in_bytes")
        if not limit.strip().isdigit() or int(limit) >= 1 << 62:
            continue
        used = read(folder / "memory.current") or read(folder / "memory.usage_in_bytes", "0")
        cache = re.search(r"^(?:total_)?inactive_file (\d+)", read(folder / "memory.stat"), re.M)
        limits.append(int(limit))
        free.append(int(limit) - int(used or 0) + int(cache.group(1) if cache else 0))
    return (min(limits), max(min(free), 0)) if limits else None


def processor():
    info = read("/proc/cpuinfo")

    def field(name):
        found = re.search(rf"^{name}\s*:\s*(.*)$", info, re.MULTILINE)
        return found.group(1) if found else ""

    flags = (field("flags") or field("Features")).split()
    kind = " ".join(field(name) for name in ("vendor_id", "cpu family", "model"))
    if "avx_vnni" not in flags and HAS_AVX_VNNI.match(kind) and runs(USE_AVX_VNNI):
        flags.append("avx_vnni")
    count = len(os.sched_getaffinity(0))
    quota = cgroup_cpus(cgroup_folders("cpu"))
    return {
        "model": field("model name") or platform.machine(),
        "count": max(1, min(count, int(quota))) if quota else count,
        "flags": flags,
    }


def runs(program):
    """Whether a small Python program ends well; one that the processor refuses is killed."""
    argv = [sys.executable, "-c", program]
    return subprocess.run(argv, capture_output=True, timeout=10, check=False).returncode == 0


def memory():
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", read("/proc/meminfo"), re.MULTILINE))
    total, free = int(info["MemTotal"]) * 1024, int(info["MemAvailable"]) * 1024
    limit = cgroup_memory(cgroup_folders("memory"))
    if limit:
        total, free = min(total, limit[0]), min(free, limit[1])
    return {"ram_mib": total // MIB, "ram_available_mib": free // MIB}


def disk(path):
    path = Path(path).absolute()
    above = [folder for folder in reversed(path.parents) if folder.is_dir()]
    closed = [str(folder) for folder in above if not folder.stat().st_mode & 0o001]
    while not path.is_dir():
        path = path.parent
    state = os.statvfs(path)
    return {
        "path": str(path),
        "free_mib": state.f_bavail * state.f_frsize // MIB,
        "read_only": bool(state.f_flag & os.ST_RDONLY),
        "closed": closed[0] if closed else None,
    }


def in_container():
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return True
    signs = read("/proc/1/environ") + read("/run/systemd/container")
    return "container=" in signs or bool(
        re.search(r"docker|kubepods|lxc|containerd", read("/proc/1/cgroup"))
    )


def confined():
    """Without the rights to mount and to set up networks there is no Docker."""
    rights = int((status(1, "CapBnd") or ["0"])[0], 16)
    return not (rights >> 21 & 1 and rights >> 12 & 1)


def pci_cards(folder):
    """NVIDIA's display and 3D controllers, in the form of `lspci -nnk`, which may be missing."""
    kinds = {"0300": "VGA compatible controller", "0302": "3D controller"}
    lines = []
    for device in sorted(Path(folder).glob("*")):
        kind = read(device / "class").strip()[2:6]
        if read(device / "vendor").strip() != "0x10de" or kind not in kinds:
            continue
        number = read(device / "device").strip()[2:]
        slot = device.name.removeprefix("0000:")
        lines.append(f"{slot} {kinds[kind]} [{kind}]: NVIDIA Corporation Device [10de:{number}]")
        if (device / "driver").exists():
            lines.append(f"\tKernel driver in use: {(device / 'driver').resolve().name}")
    return "\n".join(lines)


def mib(text):
    found = re.match(r"(\d+) MiB", text or "")
    return int(found.group(1)) if found else None


def parse_gpus(report, capabilities, listing="", ours=lambda pid, name: False):
    """Read `nvidia-smi -q -x`, `--query-gpu=index,compute_cap` and `-L` as text."""
    root = ElementTree.fromstring(report)
    known = dict(re.findall(r"^(\d+), *(\d+\.\d+)$", capabilities, re.MULTILINE))
    slices, gpus = listed_slices(listing), []
    for index, gpu in enumerate(root.findall("gpu")):
        architecture = gpu.findtext("product_architecture", "")
        processes = gpu_processes(gpu, ours)
        gpus.append(
            {
                "index": index,
                "name": gpu.findtext("product_name", "unknown"),
                "uuid": gpu.findtext("uuid"),
                **gpu_memory(gpu),
                "compute_capability": known.get(str(index), CAPABILITY_OF.get(architecture)),
                "mig": gpu.findtext("mig_mode/current_mig") == "Enabled",
                "processes": [process for _, process in processes],
                "slices": [
                    {
                        "index": int(part.findtext("index", "0")),
                        **slices.get((index, int(part.findtext("index", "0"))), NO_SLICE),
                        **gpu_memory(part),
                        "processes": [one for where, one in processes if where == instance(part)],
                    }
                    for part in gpu.findall("mig_devices/mig_device")
                ],
            }
        )
    return {
        "gpus": gpus,
        "driver_version": root.findtext("driver_version"),
        "cuda_version": root.findtext("cuda_version"),
    }


def listed_slices(listing):
    """Name and UUID of the MIG slices in `nvidia-smi -L`, by (card, slice)."""
    found, card = {}, None
    for line in listing.splitlines():
        head = re.match(r"GPU (\d+):", line)
        part = re.match(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: ([^)]+)\)", line)
        if head:
            card = int(head.group(1))
        elif part:
            found[card, int(part.group(2))] = {"name": part.group(1), "uuid": part.group(3)}
    return found


def gpu_memory(element):
    return {
        "memory_mib": mib(element.findtext("fb_memory_usage/total")),
        "memory_used_mib": mib(element.findtext("fb_memory_usage/used")),
    }


def instance(element):
    """The MIG instance that a slice is, or a process runs in."""
    return tuple(element.findtext(f"{kind}_instance_id", "N/A") for kind in ("gpu", "compute"))


def gpu_processes(gpu, ours):
    found = []
    for one in gpu.findall("processes/process_info"):
        pid, name = int(one.findtext("pid", "0")), one.findtext("process_name") or "unknown"
        process = {
            "pid": pid,
            "name": name.split()[0].rpartition("/")[2],
            "used_mib": mib(one.findtext("used_memory")),
            "ours": ours(pid, name),
        }
        found.append((instance(one), process))
    return found


def nvidia_smi(*arguments):
    done = subprocess.run(
        ["nvidia-smi", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        raise OSError("nvidia-smi fails: " + " ".join(done.stdout.split())[:300])
    return done.stdout


def graphics(own_paths, own_users, serving=None):
    """The cards; serving is the process of somebody else's Ollama that is to serve."""
    if not shutil.which("nvidia-smi"):
        return {}

    def ours(pid, name):
        uid = status(pid, "Uid")
        user = user_name(int(uid[0])) if uid else ""
        return (
            is_ours(pid, user, own_paths, own_users)
            or any(path in name for path in own_paths)
            or (serving is not None and serving in (pid, parent(pid)))
        )

    report = nvidia_smi("-q", "-x")
    try:
        capabilities = nvidia_smi("--query-gpu=index,compute_cap", "--format=csv,noheader")
    except OSError:
        capabilities = ""  # a driver before 510 does not know the question
    listing = nvidia_smi("-L") if "<current_mig>Enabled" in report else ""
    seen = parse_gpus(report, capabilities, listing, ours)
    if not any(gpu["processes"] for gpu in seen["gpus"]):
        add_unlisted(seen["gpus"], gpu_holders(own_users))
    return seen


def gpu_holders(own_users):
    """Our own processes that hold a GPU, as {pid: what they may see}; "" is everything.

    In a container nvidia-smi may list no processes; these are then what it does not list.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        uid = status(folder.name, "Uid")
        if not uid or not user_name(int(uid[0])).startswith(own_users):
            continue
        pid = int(folder.name)
        if as_owner(pid, "find", folder / "fd", "-lname", GPU_DEVICES):
            said = as_owner(pid, "cat", folder / "environ")
            found[pid] = environment(said).get("CUDA_VISIBLE_DEVICES", "")
    return found


def add_unlisted(gpus, holders):
    """Add our own processes to the cards that they may see."""
    for gpu in gpus:
        for device in gpu["slices"] or [gpu]:
            for pid, visible in holders.items():
                if not visible or device["uuid"] in visible.split(","):
                    name = read(f"/proc/{pid}/comm").strip()
                    process = {"pid": pid, "name": name, "used_mib": None, "ours": True}
                    device["processes"].append(process)


def environment(text):
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)


def lineage(pid):
    while pid:
        yield pid
        pid = parent(pid)


def visible_gpus(environments):
    """What the nearest of some environments, [(where, variables)], says of the cards to use.

    NVIDIA_VISIBLE_DEVICES counts by UUIDs only: its numbers are the host's, outside the container
    whose toolkit has hidden the rest already.
    """
    for name, form in (
        ("CUDA_VISIBLE_DEVICES", r".*"),
        ("NVIDIA_VISIBLE_DEVICES", r"(GPU|MIG)-.+"),
    ):
        for where, variables in environments:
            value = variables.get(name)
            if value is not None and re.fullmatch(form, value):
                return {"variable": name, "value": value, "where": where}
    return None


def environments():
    """This process's environment, those of what started it, and that of the first process."""
    pids = [pid for pid in lineage(os.getppid()) if pid != 1]
    texts = [environment(read(f"/proc/{pid}/environ")) for pid in pids]
    deploy = [("the environment of the deploy", one) for one in [dict(os.environ), *texts]]
    return [*deploy, ("the environment of process 1", environment(read("/proc/1/environ")))]


def address(text):
    """An address of /proc/net/tcp, whose words of 32 bits have the machine's byte order."""
    raw = bytes.fromhex(text)
    words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    found = ipaddress.ip_address(words)
    return str(getattr(found, "ipv4_mapped", None) or found)


def listeners(ports=None, tables=TABLES):
    """Sockets that listen, on one of the ports if given, as {inode: (port, user id, address)}."""
    found = {}
    for table in tables:
        for line in read(table).splitlines()[1:]:
            fields = line.split()
            where, _, port = fields[1].rpartition(":")
            if fields[3] == "0A" and (ports is None or int(port, 16) in ports):
                found[fields[9]] = (int(port, 16), int(fields[7]), address(where))
    return found


def socket_holders(inodes):
    """Processes that hold the sockets, as {inode: [pid, ...]}; only those we may look into."""
    found = {}
    for process in os.scandir("/proc"):
        if not process.name.isdigit():
            continue
        try:
            for descriptor in os.scandir(process.path + "/fd"):
                target = str(Path(descriptor.path).readlink())
                inode = target[8:-1] if target.startswith("socket:[") else None
                if inode in inodes:
                    found.setdefault(inode, []).append(int(process.name))
        except OSError:
            continue  # it ended, or is another user's
    return found


def sockets_of(user, inodes):
    """The same for the processes of one user, asked as that user: root in a container may not."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        if (status(process.name, "Uid") or [None])[0] == user:
            said = as_owner(
                process.name, "find", process / "fd", "-lname", "socket:*", "-printf", "%l "
            )
            for inode in re.findall(r"socket:\[(\d+)\]", said):
                if inode in inodes:
                    found.setdefault(inode, []).append(int(process.name))
    return found


def as_owner(pid, *argv):
    """What a command says with the numbers of a process's user and group."""
    user, group = (int((status(pid, field) or [0])[0]) for field in ("Uid", "Gid"))
    if os.geteuid() != 0 or user == 0:
        return ""
    options = {"capture_output": True, "text": True, "errors": "replace", "timeout": 20}
    return subprocess.run(argv, user=user, group=group, check=False, **options).stdout


def all_holders(sockets):
    found = socket_holders(sockets)
    for user in {str(uid) for inode, (_, uid, _) in sockets.items() if inode not in found}:
        found.update(sockets_of(user, sockets))
    return found


def user_name(number):
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def cmdline(pid):
    return read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()


def status(pid, field):
    found = re.search(rf"^{field}:\s*(.*)", read(f"/proc/{pid}/status"), re.MULTILINE)
    return found.group(1).split() if found else []


def parent(pid):
    return int((status(pid, "PPid") or [0])[0])


def is_ours(pid, user, own_paths, own_users):
    lines = [cmdline(pid), cmdline(parent(pid))] if pid else []
    return user.startswith(own_users) or any(path in line for path in own_paths for line in lines)


def holders(ports, own_paths, own_users, containers):
    sockets = listeners(ports)
    pids = all_holders(sockets) if sockets else {}
    held = {}
    for inode, (port, uid, where) in sockets.items():
        candidates = pids.get(inode, [])
        # A server's workers share its socket: name the one that started them.
        pid = next((pid for pid in candidates if parent(pid) not in candidates), None)
        user = user_name(uid)
        entry = {
            "pid": pid,
            "process": read(f"/proc/{pid}/comm").strip() or None if pid else None,
            "user": user,
            "cmdline": cmdline(pid)[:300] if pid else None,
            "ours": is_ours(pid, user, own_paths, own_users),
            "container": None,
            "addresses": [],
        }
        if not held.get(str(port), {}).get("pid"):
            entry["addresses"] = held.get(str(port), entry)["addresses"]
            held[str(port)] = entry
        held[str(port)]["addresses"].append(where)
    for port, (name, ours) in containers.items():
        if port in ports:  # Docker may forward a port without a process that listens
            nobody = dict.fromkeys(("pid", "process", "user", "cmdline"))
            entry = held.setdefault(str(port), {**nobody, "addresses": []})
            entry.update(container=name, ours=ours)
    return held


def foreign(own_paths, own_users):
    """Servers like ours that are not ours; each by its first process, none in a container."""
    depth = len(status("self", "NSpid"))
    sockets = listeners()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid, name = int(folder.name), read(folder / "comm").strip()
        if name in SERVERS and len(status(pid, "NSpid")) == depth:
            found[pid] = name
    held = all_holders(sockets) if found else {}
    seen = []
    for pid, name in sorted(found.items()):
        user = user_name(int((status(pid, "Uid") or [0])[0]))
        if found.get(parent(pid)) == name or is_ours(pid, user, own_paths, own_users):
            continue
        units = re.findall(r"/([^/\n]+\.service)", read(f"/proc/{pid}/cgroup"))
        ports = {sockets[inode][0] for inode, pids in held.items() if pid in pids}
        seen.append(
            {
                "name": name,
                "pid": pid,
                "cmdline": cmdline(pid)[:300],
                "user": user,
                "unit": units[-1] if units else None,
                "ports": sorted(ports),
            }
        )
    return seen


def ollama_store(pid):
    """Where an Ollama keeps its models, by its environment."""
    text = read(f"/proc/{pid}/environ")
    values = environment(text or as_owner(pid, "cat", f"/proc/{pid}/environ"))
    if values.get("OLLAMA_MODELS"):
        return values["OLLAMA_MODELS"]
    home = values.get("HOME") or pwd.getpwuid(int(status(pid, "Uid")[0])).pw_dir
    return f"{home}/.ollama/models"


def adopted_ollama(port, holder):
    found = {"version": None, "models_path": None, "error": None}
    here = len(status("self", "NSpid"))
    if not holder or holder["process"] != "ollama" or len(status(holder["pid"], "NSpid")) != here:
        return {**found, "error": "no Ollama of this host holds the port"}
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/api/version", timeout=5) as answer:
            version = json.load(answer)["version"]
    except (OSError, ValueError, KeyError) as error:
        return {**found, "error": f"it does not tell its version ({error})"}
    return {**found, "version": version, "models_path": ollama_store(holder["pid"])}


def may_open(path, user):
    """Whether a user, there yet or not, may use a socket of somebody else's."""
    state = path.stat()
    try:
        groups = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except KeyError:
        groups = []
    return bool(state.st_mode & 0o002) or (state.st_mode & 0o020 and state.st_gid in groups)


def adopted_redis(where, user):
    """Say PING to a Redis."""
    try:
        if where.startswith("unix:"):
            connection, path = socket.socket(socket.AF_UNIX), where[5:]
            connection.settimeout(3)
            connection.connect(path)
            if not may_open(Path(path), user):
                return {"error": f"user {user} may not open it"}
        else:
            host, _, port = where.rpartition(":")
            connection = socket.create_connection((host, int(port)), 3)
        with connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(200).decode(errors="replace").strip()
    except (OSError, ValueError) as error:
        return {"error": f"it cannot be reached ({error})"}
    return {"error": None if answer == "+PONG" else f"it answers {answer or 'nothing'}"}


def probe(url, timeout, answer):
    try:
        with urllib.request.urlopen(url, timeout=timeout):
            answer.update(answers=True, error=None)
    except urllib.error.HTTPError as error:
        answer.update(answers=error.code < 500, error=f"HTTP {error.code}")
    except (OSError, ValueError) as error:
        answer.update(error=str(getattr(error, "reason", error)))


def start_probes(sources, timeout):
    """Ask all sources at once; the threads end with the module, however slow a name server is."""
    answers, threads = {}, []
    for name, url in sources.items():
        answers[name] = {"url": url, "answers": False, "error": f"no answer in {timeout:g} s"}
        # The registry's answer to /v2/ costs nothing; a hub's first page may be slow to make.
        target = str(url).rstrip("/") + ("/v2/" if name == "ollama" else "/")
        thread = threading.Thread(target=probe, args=(target, timeout, answers[name]), daemon=True)
        thread.start()
        threads.append(thread)
    return answers, threads


def models_present(data_path):
    marks = Path(data_path, "models").glob("*/*/.complete")
    return sorted("/".join(mark.parts[-3:-1]) for mark in marks)


def owner(path):
    try:
        return Path(path).stat().st_uid
    except FileNotFoundError:
        return None


def packages_missing(packages):
    if not packages or not shutil.which("dpkg-query"):
        return packages
    argv = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *packages]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stdout
    found = {line.split()[0] for line in said.splitlines() if line.endswith(" installed")}
    return [name for name in packages if name not in found]


def disturbed(said, older):
    """What `apt-get --simulate` would do to installed packages; older(a, b) compares versions."""
    found = []
    for line in said.splitlines():
        gone = re.match(r"(?:Remv|Purg) (\S+) \[(\S+)\]", line)
        new = re.match(r"Inst (\S+) \[(\S+)\] \((\S+) ", line)
        if gone:
            name, old = gone.groups()
            found.append({"name": name, "action": "removed", "old": old, "new": None})
        elif new:
            name, old, to = new.groups()
            action = "downgraded" if older(to, old) else "upgraded"
            found.append({"name": name, "action": action, "old": old, "new": to})
    return found


def conflicts(said):
    """The lines in which apt says what does not go together."""
    if not re.search(r"^E: Unable to (correct problems|satisfy dependencies)", said, re.MULTILINE):
        return []  # no lists of packages yet, or torn ones: both are mended before the installation
    return [
        " ".join(line.split())
        for line in said.splitlines()
        if re.search(r" : (Pre)?(Depends|Conflicts|Breaks):|^\s+\d+\. .* (Depends|Conflicts)", line)
    ]


def older(one, other):
    argv = ["dpkg", "--compare-versions", one, "lt", other]
    return subprocess.run(argv, check=False, timeout=30).returncode == 0


def package_effects(missing):
    """What installing the missing packages would do to those that are there."""
    nothing = {"packages_disturbed": [], "packages_conflict": []}
    if not missing or not shutil.which("apt-get"):
        return nothing
    done = subprocess.run(
        ["apt-get", "--simulate", *NO_TRACE, "--no-install-recommends", "install", "--", *missing],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        return {**nothing, "packages_conflict": conflicts(done.stdout)}
    return {**nothing, "packages_disturbed": disturbed(done.stdout, older)}


def policy_left(mark):
    policy = Path("/usr/sbin/policy-rc.d")
    return bool(mark) and policy.is_file() and mark in policy.read_text(errors="replace")


def own_accounts(prefix):
    """This project's users: the groups each is in, and its numbers."""
    users, uids = {}, {}
    for account in pwd.getpwall():
        if account.pw_name.startswith(prefix):
            groups = os.getgrouplist(account.pw_name, account.pw_gid)
            users[account.pw_name] = sorted(grp.getgrgid(group).gr_name for group in groups)
            uids[account.pw_name] = {"uid": account.pw_uid, "gid": account.pw_gid}
    return {"users": users, "uids": uids}


def manager(command):
    """What the last deploy left in charge; before there was a choice it was a supervisor."""
    lines = read(command).splitlines()
    named = re.match(r"# manager: (\w+)", lines[1]) if len(lines) > 1 else None
    return named.group(1) if named else "supervisor" if lines else ""


def ask_docker(*arguments):
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=20, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def docker():
    if not shutil.which("docker"):
        return NO_DOCKER
    version = ask_docker("version", "--format", "{{.Server.Version}}")
    return {
        "installed": True,
        "running": bool(version),
        "version": version or None,
        "compose": ask_docker("compose", "version", "--short") or None,
    }


def published(project):
    """TCP ports of the host that containers have, as {port: (container, whether it is ours)}."""
    found = {}
    for line in ask_docker("ps", "--no-trunc", "--format", "{{json .}}").splitlines():
        container = json.loads(line)
        ours = f"com.docker.compose.project={project}" in container["Labels"].split(",")
        for low, high in re.findall(r":(\d+)(?:-(\d+))?->[\d-]+/tcp", container["Ports"]):
            for port in range(int(low), int(high or low) + 1):
                found[port] = (container["Names"], ours)
    return found


def main():
    module = AnsibleModule(
        argument_spec={
            "data_path": {"type": "str", "required": True},
            "ports": {"type": "list", "elements": "str", "default": []},
            "sources": {"type": "dict", "default": {}},
            "timeout": {"type": "float", "default": 3},
            "own_paths": {
                "type": "list",
                "elements": "str",
                "default": ["/etc/deepseek-r1", "/opt/deepseek-r1"],
            },
            "own_users": {"type": "str", "default": "r1-"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "policy_mark": {"type": "str", "default": ""},
            "command": {"type": "str", "default": "/usr/local/bin/deepseek-r1"},
            "compose_project": {"type": "str", "default": "deepseek-r1"},
            "adopt_ollama": {"type": "str", "default": ""},
            "adopt_redis": {"type": "str", "default": ""},
            "gateway_user": {"type": "str", "default": "r1-gateway"},
            "os_release": {"type": "str", "default": "/etc/os-release"},
            "pci": {"type": "str", "default": "/sys/bus/pci/devices"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    ports = {int(port) for port in asked["ports"] if port.isdigit()}
    problems = []

    def guarded(what, function, *arguments, default=None):
        try:
            return function(*arguments)
        except Exception as error:
            problems.append(f"{what} could not be read: {error}")
            return default

    sources, probes = start_probes(asked["sources"], asked["timeout"])
    own = asked["own_paths"], asked["own_users"]
    engine = guarded("docker", docker, default=dict(NO_DOCKER, installed=True))
    containers = {}
    if engine["running"]:
        containers = guarded("containers", published, asked["compose_project"], default={})
    missing = guarded("packages", packages_missing, asked["packages"], default=[])
    held = guarded("ports", holders, ports, *own, containers, default={})
    seen = {
        "os": guarded("operating system", operating_system, asked["os_release"], default={}),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "glibc": glibc(),
        "user": user_name(os.geteuid()),
        "root": os.geteuid() == 0,
        "cpu": guarded("processor", processor, default={"model": "", "count": 1, "flags": []}),
        "ram_mib": 0,
        "ram_available_mib": 0,
        "disk": guarded("disk", disk, asked["data_path"])
        or {"path": asked["data_path"], "free_mib": 0, "read_only": False, "closed": None},
        "gpus": [],
        "gpus_visible": guarded("environment", lambda: visible_gpus(environments())),
        "cards": guarded("PCI devices", pci_cards, asked["pci"], default=""),
        "driver_version": None,
        "cuda_version": None,
        "init": "systemd" if Path("/run/systemd/system").is_dir() else "none",
        "container": guarded("container", in_container, default=False),
        "confined": guarded("rights", confined, default=False),
        "tools": {
            "docker": bool(shutil.which("docker")),
            "nvidia_smi": bool(shutil.which("nvidia-smi")),
            "apt": bool(shutil.which("apt-get")),
        },
        "manager": guarded("manager", manager, asked["command"], default=""),
        "docker": engine,
        "ports": held,
        "adopted": {"ollama": None, "redis": None},
        "foreign": guarded("foreign servers", foreign, *own, default=[]),
        "packages_missing": missing,
        "packages_disturbed": [],
        "packages_conflict": [],
        "policy_left": guarded("policy", policy_left, asked["policy_mark"], default=False),
        "users": {},
        "uids": {},
        "ollama_owner": guarded("Ollama's store", owner, f"{asked['data_path']}/ollama"),
        "models_present": guarded("models", models_present, asked["data_path"], default=[]),
    }
    if port := asked["adopt_ollama"]:
        seen["adopted"]["ollama"] = guarded("Ollama", adopted_ollama, port, held.get(port))
    if where := asked["adopt_redis"]:
        redis = guarded("Redis", adopted_redis, where, asked["gateway_user"])
        seen["adopted"]["redis"] = redis
    seen.update(guarded("packages", package_effects, missing, default={}))
    seen.update(guarded("users", own_accounts, asked["own_users"], default={}))
    seen.update(guarded("memory", memory, default={}))
    serving = (held.get(asked["adopt_ollama"]) or {}).get("pid")
    seen.update(guarded("GPUs", graphics, *own, serving, default={}))
    for thread in probes:
        thread.join(asked["timeout"] + 0.2)
    module.exit_json(changed=False, sources=sources, problems=problems, **seen)


if __name__ == "__main__":
    main()
