"""A host's GPUs: read, and chosen among, when some are hidden, in slices, busy or different.

A MIG slice is a device like a card. An engine gets one of them: a CUDA program sees one slice at
most, and slices have no way to each other (NVIDIA's MIG user guide, "CUDA Device Enumeration").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import cards
from .units import MIB, PlanError, gib, number_of

_KEYS = ("name", "memory_mib", "compute_capability")
_MORE = ("memory_used_mib", "uuid", "index", "mig", "processes", "slices")  # from inspect_host

# At most this much in use does not make a card busy: the driver's own (older ones count their
# reserve), a desktop.
IDLE_MIB = 1024
# What others use is rounded up to steps, lest each deploy plan anew for a few MiB more.
STEP_MIB = 256
_NONE_VISIBLE = ("", "-1", "none", "NoDevFiles")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_mib: int
    capability: float
    index: int = 0
    uuid: str | None = None
    parent: str | None = None  # UUID of the card that a slice is of
    whole_mib: int = 0  # memory of that card
    taken: int = 0  # bytes that others hold
    holders: str = ""  # 31.2 GiB are in use by python3 (pid 4711)

    @property
    def is_slice(self):
        return bool(self.whole_mib)

    @property
    def usable(self):
        if self.is_slice:  # what CUDA offers is what the driver reports
            return self.memory_mib * MIB
        return cards.usable_mib(self.name, self.memory_mib) * MIB

    @property
    def left(self):
        return max(0, self.usable - self.taken)

    @property
    def bandwidth(self):
        if not self.is_slice:
            return cards.bandwidth(self.name, self.memory_mib)
        return cards.slice_bandwidth(self.name, self.memory_mib, self.whole_mib)

    @property
    def device(self):
        """How CUDA knows it."""
        return self.uuid or str(self.index)

    @property
    def words(self):
        return f"GPU {self.index}" + (f", MIG slice {self.uuid}" if self.is_slice else "")

    def answers_to(self, name):
        if name.isdigit():
            return int(name) == self.index
        begin = name.lower()  # CUDA takes the first letters of a UUID for all of it
        return begin.startswith(("gpu-", "mig-")) and any(
            known.lower().startswith(begin) for known in (self.uuid, self.parent) if known
        )


@dataclass(frozen=True)
class Chosen:
    gpus: tuple = ()
    notes: tuple = ()
    if_idle: tuple = ()
    busy: tuple = ()


def read(entries, problems):
    """The Gpus of some entries in the form of plan_hardware.gpus or of inspect_host."""
    found = []
    for index, entry in enumerate(entries):
        found += _of_entry(entry, index, problems)
    return tuple(found)


def _of_entry(entry, position, problems):
    where = f"plan_hardware.gpus[{position}]"
    if not isinstance(entry, dict):
        problems.append(
            f"{where}: {entry!r} is not a card; write "
            "{name: NVIDIA L4, memory_mib: 23034, compute_capability: 8.9}."
        )
        return []
    for key in entry:
        if key not in (*_KEYS, *_MORE):
            problems.append(f"{where}.{key}: unknown key; known: {', '.join(_KEYS)}.")
    name, index = str(entry.get("name", "unknown GPU")), entry.get("index", position)
    known = cards.lookup(name) or (None, None, None)
    size = {"memory_mib": entry.get("memory_mib", known[0]) or known[0]}  # drivers may not tell
    memory = number_of(size, "memory_mib", f"{where}.", problems)
    value = entry.get("compute_capability") or known[2]
    try:
        capability = float(value)
    except (TypeError, ValueError):
        problems.append(f"{where}.compute_capability: {value!r} is not a number such as 8.9.")
        capability = 0.0
    gpu = Gpu(name, memory, capability, index, entry.get("uuid"))
    if not entry.get("mig"):
        return [replace(gpu, **_taken(entry))]
    slices = [part for part in entry.get("slices") or [] if part["memory_mib"] and part["uuid"]]
    if not slices:  # a device without room, for which `choose` has a sentence
        return [replace(gpu, memory_mib=0, whole_mib=memory)]
    return [
        replace(
            gpu, name=f"{name} MIG {part['name']}", memory_mib=part["memory_mib"],
            uuid=part["uuid"], parent=gpu.uuid, whole_mib=memory, **_taken(part),
        )
        for part in slices
    ]  # fmt: skip


def _taken(entry):
    """What others than this project's engine hold of a device: bytes, and a sentence's part."""
    processes = entry.get("processes") or []
    own = [one for one in processes if one.get("ours")]
    others = [one for one in processes if not one.get("ours")]
    told = sum(one.get("used_mib") or 0 for one in others)
    if any(one.get("used_mib") is None for one in own):
        taken = told  # ours has the rest
    else:
        rest = (entry.get("memory_used_mib") or 0) - sum(one["used_mib"] for one in own)
        taken = max(told, rest)
    if taken <= 0 or (not others and taken <= IDLE_MIB):
        return {}
    names = ", ".join(f"{one['name']} (pid {one['pid']})" for one in others)
    names = names or "what nvidia-smi does not list (another container, or a virtual machine)"
    steps = -(-taken // STEP_MIB) * STEP_MIB
    return {"taken": steps * MIB, "holders": f"{taken / 1024:.1f} GiB are in use by {names}"}


def choose(found, wanted=(), visible=None):
    """Return what to use of the Gpus found; PlanError says why there is nothing."""
    kept, notes = _named(found, wanted, visible)
    bare = [gpu for gpu in kept if not gpu.memory_mib]
    kept = [gpu for gpu in kept if gpu.memory_mib]
    if bare and not kept:
        raise PlanError([_bare(gpu) for gpu in bare])
    notes += [_bare(gpu) for gpu in bare]
    group, more = _equal(kept)
    gpus, busy = _free(group)
    notes += [*more, *busy]
    idle, _notes = _equal([replace(gpu, taken=0, holders="") for gpu in kept])
    told = tuple(f"{gpu.words}: {gpu.holders}" for gpu in kept if gpu.holders)
    return Chosen(tuple(gpus), tuple(notes), tuple(idle) if told else (), told)


def _bare(gpu):
    card = f"-i {gpu.index}"
    return (
        f"GPU {gpu.index} ({gpu.name}): MIG is on, but the card has no slices. Fix, as root: make "
        f"one of the whole card, 'nvidia-smi mig {card} -cgi 0 -C', or turn MIG off, "
        f"'nvidia-smi {card} -mig 0'."
    )


def _named(found, wanted, visible):
    """The Gpus that the setting gpus names, or the environment where that is empty.

    Numbers are nvidia-smi's, in an environment too; among different cards CUDA itself would count
    the fastest first, unless CUDA_DEVICE_ORDER says otherwise.
    """
    names, said = [str(name).strip() for name in wanted or ()], "gpus"
    if not names and visible and found:
        names = [name.strip() for name in visible["value"].split(",")]
        said = f"{visible['variable']} in {visible['where']}"
        if visible["variable"] == "NVIDIA_VISIBLE_DEVICES":  # its toolkit has applied it already
            names = [name for name in names if any(gpu.answers_to(name) for gpu in found)]
        elif names[0] in _NONE_VISIBLE:
            return [], [f"hardware: no GPU is used, as {said} hides them all; {_over(said)}."]
    if not names:
        return list(found), []
    unknown = [name for name in names if not any(gpu.answers_to(name) for gpu in found)]
    if unknown:
        there = ", ".join(dict.fromkeys(f"{gpu.index} ({gpu.name})" for gpu in found)) or "none"
        fix = "name them by number or by UUID ('nvidia-smi -L')"
        if said != "gpus":
            fix = f"set it right, or {_over(said)}"
        raise PlanError(
            f"gpus: {', '.join(unknown)} is no card of this host, which has {there}"
            f"{'' if said == 'gpus' else f'; {said} names it'}. Fix: {fix}."
        )
    kept = [gpu for gpu in found if any(gpu.answers_to(name) for name in names)]
    if len(kept) == len(found):
        return kept, []
    used = ", ".join(gpu.words for gpu in kept)
    also = "" if said == "gpus" else f"; {_over(said)}"
    return kept, [f"hardware: of {len(found)} GPUs only {used}, as {said} says{also}."]


def _over(said):
    return f"the setting gpus goes before {said.partition(' ')[0]}"


def _equal(gpus):
    """The Gpus that can work together, and why not the rest: the equal ones with most room."""
    groups = {}
    for gpu in gpus:
        alone = gpu.device if gpu.is_slice else None
        groups.setdefault((gpu.name, gpu.memory_mib, gpu.capability, alone), []).append(gpu)
    if len(groups) < 2:
        return list(gpus), []
    best = max(groups.values(), key=lambda group: sum(gpu.left for gpu in group))
    rest = [group for group in groups.values() if group is not best]
    if best[0].is_slice:
        return best, [
            f"hardware: {best[0].words} ({best[0].name}) is used, the one with most room; an "
            "engine can use one slice only."
        ]
    left = ", ".join(f"{len(group)} x {group[0].name}" for group in rest)
    return best, [
        f"The host has different cards; an engine splits a model evenly, so only the "
        f"{len(best)} x {best[0].name} are used and {left} stays idle."
    ]


def _free(group):
    """Of equal Gpus the free ones; where all are busy those that have most room together."""
    free = [gpu for gpu in group if gpu.taken <= IDLE_MIB * MIB]
    if not free:
        ranked = sorted(group, key=lambda gpu: -gpu.left)
        count = max(range(len(ranked) + 1), key=lambda n: n * ranked[n - 1].left if n else 0)
        free = ranked[: max(1, count)]
    notes = [f"hardware: {gpu.words}: {gpu.holders}; {_fate(gpu, free)}."
             for gpu in group if gpu.holders]  # fmt: skip
    taken = max((gpu.taken for gpu in free), default=0)
    return [replace(gpu, taken=taken) for gpu in free], notes


def _fate(gpu, used):
    if gpu not in used:
        return "it is not used"
    return f"{gib(gpu.left)} are left and planned with"
