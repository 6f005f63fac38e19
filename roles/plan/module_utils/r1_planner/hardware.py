"""A host's hardware, from what inspect found or from the setting plan_hardware."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from . import cards
from .units import GIB, MIB, PlanError, whole

# Without a GPU the memory bus sets the speed. Per core until the bus of a plain
# two-channel DDR4 board is full; set plan_memory_bandwidth_gb_s where you know better.
CPU_GBS_PER_CORE = 8
CPU_GBS_AT_MOST = 40

_GPU_KEYS = ("name", "memory_mib", "compute_capability")
_KEYS = ("gpus", "ram_mib", "cpus", "disk_free_mib", "nodes", "memory_bandwidth_gb_s")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_mib: int
    capability: float

    @property
    def usable(self):
        return cards.usable_mib(self.name, self.memory_mib) * MIB

    @property
    def bandwidth(self):
        return cards.bandwidth(self.name, self.memory_mib)


@dataclass(frozen=True)
class Hardware:
    gpus: tuple = ()
    ram: int = 0
    cpus: int = 1
    disk_free: int | None = None
    nodes: int = 1
    cpu_bandwidth: float = 0
    cpu_lacks: tuple = ()  # instructions that llama-server's program uses and the CPU does not have
    notes: tuple = field(default=())

    @property
    def words(self):
        parts = [f"{self.cpus} CPU cores, {self.ram / GIB:.1f} GiB RAM"]
        if self.gpus:
            first = self.gpus[0]
            parts.insert(0, f"{len(self.gpus)} x {first.name} ({first.memory_mib / 1024:.1f} GiB)")
        hosts = f"{self.nodes} hosts, each " if self.nodes > 1 else ""
        return hosts + ", ".join(parts)


def _whole(source, key, where, problems, default=None, least=1):
    value = source.get(key, default)
    number = whole(value, least)
    if number is None:
        problems.append(f"{where}{key}: {value!r} is not a whole number of at least {least}.")
        return least
    return number


def _gpu(entry, index, problems):
    where = f"plan_hardware.gpus[{index}]."
    if not isinstance(entry, dict):
        problems.append(
            f"plan_hardware.gpus[{index}]: {entry!r} is not a card; write "
            "{name: NVIDIA L4, memory_mib: 23034, compute_capability: 8.9}."
        )
        return Gpu("unknown", 1, 0.0)
    for key in entry:
        if key not in (*_GPU_KEYS, "memory_used_mib", "uuid", "index"):
            problems.append(f"{where}{key}: unknown key; known: {', '.join(_GPU_KEYS)}.")
    known = cards.lookup(str(entry.get("name", ""))) or (None, None, None)
    memory = _whole(entry, "memory_mib", where, problems, known[0])
    value = entry.get("compute_capability") or known[2]
    try:
        capability = float(value)
    except (TypeError, ValueError):
        problems.append(f"{where}compute_capability: {value!r} is not a number such as 8.9.")
        capability = 0.0
    return Gpu(str(entry.get("name", "unknown GPU")), memory, capability)


def hardware_from(source, bandwidth=None, nodes=1):
    """Return Hardware from the form of plan_hardware; PlanError lists every fault."""
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
    found = tuple(_gpu(entry, index, problems) for index, entry in enumerate(gpus))
    ram = _whole(source, "ram_mib", "plan_hardware.", problems)
    cpus = _whole(source, "cpus", "plan_hardware.", problems, 1)
    nodes = _whole(source, "nodes", "plan_hardware.", problems, nodes)
    disk = None
    if source.get("disk_free_mib") is not None:
        disk = _whole(source, "disk_free_mib", "plan_hardware.", problems, least=0) * MIB
    if problems:
        raise PlanError(problems)
    kept, notes = equal_cards(found)
    speed = float(source.get("memory_bandwidth_gb_s") or bandwidth or 0)
    speed = speed or min(CPU_GBS_PER_CORE * cpus, CPU_GBS_AT_MOST)
    return Hardware(kept, ram * MIB, cpus, disk, nodes, speed, notes=notes)


def from_inspection(found, bandwidth=None, nodes=1, llamacpp_cpu_flags=()):
    """Return Hardware from the result of inspect_host.

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
    )
    return replace(hardware, cpu_lacks=tuple(f for f in llamacpp_cpu_flags if f not in flags))


def equal_cards(gpus):
    """Keep the cards that can work together: the equal ones with the most memory in all."""
    groups = {}
    for gpu in gpus:
        groups.setdefault((gpu.name, gpu.memory_mib, gpu.capability), []).append(gpu)
    if len(groups) < 2:
        return tuple(gpus), ()
    best = max(groups.values(), key=lambda group: sum(gpu.memory_mib for gpu in group))
    left = ", ".join(
        f"{len(group)} x {name}" for (name, _m, _c), group in groups.items() if group is not best
    )
    return tuple(best), (
        f"The host has different cards; an engine splits a model evenly, so only the "
        f"{len(best)} x {best[0].name} are used and {left} stays idle.",
    )
