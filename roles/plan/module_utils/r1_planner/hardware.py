"""A host's hardware, from what inspect found or from the setting plan_hardware."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from . import devices
from .units import GIB, MIB, PlanError, number_of

# Without a GPU the memory bus sets the speed. Per core until the bus of a plain
# two-channel DDR4 board is full; set plan_memory_bandwidth_gb_s where you know better.
CPU_GBS_PER_CORE = 8
CPU_GBS_AT_MOST = 40

_KEYS = ("gpus", "ram_mib", "cpus", "disk_free_mib", "nodes", "memory_bandwidth_gb_s")


@dataclass(frozen=True)
class Hardware:
    gpus: tuple = ()  # those that can work together and are used, all equal
    ram: int = 0
    cpus: int = 1
    disk_free: int | None = None
    nodes: int = 1
    cpu_bandwidth: float = 0
    cpu_lacks: tuple = ()  # instructions that llama-server's program uses and the CPU does not have
    notes: tuple = field(default=())
    gpus_seen: int = 0
    gpus_if_idle: tuple = ()  # what gpus would be, if nobody else used them
    busy: tuple = ()  # who uses them, a part of a sentence for each card

    @property
    def words(self):
        parts = [f"{self.cpus} CPU cores, {self.ram / GIB:.1f} GiB RAM"]
        if self.gpus:
            first = self.gpus[0]
            parts.insert(0, f"{len(self.gpus)} x {first.name} ({first.memory_mib / 1024:.1f} GiB)")
        hosts = f"{self.nodes} hosts, each " if self.nodes > 1 else ""
        return hosts + ", ".join(parts)


def hardware_from(source, bandwidth=None, nodes=1, wanted=(), visible=None):
    """Return Hardware from the form of plan_hardware; PlanError lists every fault.

    wanted: the setting gpus. visible: what inspect says as gpus_visible, followed without it.
    """
    problems = []
    if not isinstance(source, dict):
        raise PlanError(f"plan_hardware: {source!r} is not a mapping with {', '.join(_KEYS)}.")
    for key in source:
        if key not in _KEYS:
            problems.append(f"plan_hardware.{key}: unknown key; known: {', '.join(_KEYS)}.")
    gpus = source.get("gpus") or []
    if not isinstance(gpus, list):
        problems.append(f"plan_hardware.gpus: {gpus!r} is not a list of cards.")
        gpus = []
    found = devices.read(gpus, problems)
    ram = number_of(source, "ram_mib", "plan_hardware.", problems)
    cpus = number_of(source, "cpus", "plan_hardware.", problems, 1)
    nodes = number_of(source, "nodes", "plan_hardware.", problems, nodes)
    disk = None
    if source.get("disk_free_mib") is not None:
        disk = number_of(source, "disk_free_mib", "plan_hardware.", problems, least=0) * MIB
    if problems:
        raise PlanError(problems)
    chosen = devices.choose(found, wanted, visible)
    speed = float(source.get("memory_bandwidth_gb_s") or bandwidth or 0)
    speed = speed or min(CPU_GBS_PER_CORE * cpus, CPU_GBS_AT_MOST)
    return Hardware(
        chosen.gpus, ram * MIB, cpus, disk, nodes, speed, notes=chosen.notes,
        gpus_seen=len(found), gpus_if_idle=chosen.if_idle, busy=chosen.busy,
    )  # fmt: skip


def from_inspection(found, bandwidth=None, nodes=1, llamacpp_cpu_flags=(), wanted=()):
    """Return Hardware from the result of inspect_host; wanted is the setting gpus.

    llamacpp_cpu_flags: names from /proc/cpuinfo of what llama-server's program needs.
    """
    flags = (found.get("cpu") or {}).get("flags") or llamacpp_cpu_flags
    hardware = hardware_from(
        {
            "gpus": found.get("gpus") or [],
            "ram_mib": found["ram_mib"],
            "cpus": (found.get("cpu") or {}).get("count", 1),
            "disk_free_mib": (found.get("disk") or {}).get("free_mib"),
        },
        bandwidth,
        nodes,
        wanted,
        found.get("gpus_visible"),
    )
    return replace(hardware, cpu_lacks=tuple(f for f in llamacpp_cpu_flags if f not in flags))
