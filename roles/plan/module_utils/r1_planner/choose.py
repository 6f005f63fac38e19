"""Which engine, model and precision: all combinations evaluated, the best one kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import cards, making, sources, weights
from .candidates import GGUF_ENGINES, evaluate
from .units import duration, gib
from .words import ENGINE_NAMES

# In this order; the first that fits is taken.
GGUF_ORDER = ("q4_k_m", "q5_k_m", "q8_0")
_HF_BY_CAPABILITY = ((8.9, ("fp8", "awq", "gptq", "bf16")), (8.0, ("bf16", "awq", "gptq")))
_HF_OLD = ("awq", "gptq")


def engines(hardware, wishes):
    """Return (engines in order of preference, reasons)."""
    if wishes.engine != "auto":
        return (wishes.engine,), [f"engine: {ENGINE_NAMES[wishes.engine]}, as you set it."]
    if not hardware.gpus and hardware.cpu_lacks:
        return ("ollama",), [
            "engine: Ollama, because the host has no NVIDIA GPU and its CPU lacks "
            f"{', '.join(hardware.cpu_lacks)}, which the pinned program of llama.cpp uses."
        ]
    if not hardware.gpus:
        return ("llamacpp",), [
            "engine: llama.cpp, because there is no NVIDIA GPU to use, which vLLM and SGLang need; "
            "it serves GGUF files on a CPU with one small process."
        ]
    gpu = hardware.gpus[0]
    why_not = wishes.engines_refused.get("vllm")
    if gpu.capability < cards.ENGINE_NEEDS["vllm"]:
        why_not = (
            f"needs compute capability {cards.ENGINE_NEEDS['vllm']}; "
            f"the {gpu.name} has {gpu.capability}"
        )
    if why_not:
        return ("ollama",), [f"engine: not vLLM, which {why_not}."]
    return ("vllm", "ollama"), [
        "engine: vLLM is tried first, since on a GPU it serves many requests at once; then Ollama."
    ]


def precisions(model, engine, hardware, wishes):
    """Precisions to try for a model, best first."""
    if wishes.precision != "auto":
        return (wishes.precision,)
    if engine in GGUF_ENGINES:
        order = GGUF_ORDER
    else:
        capability = hardware.gpus[0].capability if hardware.gpus else 0
        order = next((o for least, o in _HF_BY_CAPABILITY if capability >= least), _HF_OLD)
        order = order if hardware.gpus else ("bf16",)
    have = tuple(precision for precision in order if precision in model.precisions)
    return have or tuple(model.precisions)


def best_precision(model, engine, hardware, wishes, disk):
    """Return (Candidate, rejected): the first precision that fits and is fast enough, else
    the fastest that fits, else the one that needs least."""
    tried = []
    for precision in precisions(model, engine, hardware, wishes):
        found = evaluate(model, engine, precision, hardware, wishes)
        found = disk(found) if found.fits else found
        if found.fits and not found.slow:
            return found, tried
        tried.append(found)
    kept = min(tried, key=lambda one: (not one.fits, -one.tokens_per_second * one.fits, size(one)))
    return kept, [found for found in tried if found is not kept]


def size(found):
    """Bytes of a Candidate's files; more than anything when it cannot work at all."""
    return weights.file_bytes(found.model, found.precision) if found.memory else float("inf")


def source_check(disk, wishes, answers, present):
    """Return a function that turns a Candidate down when `disk` does, or when no source that has
    it answers while another one does."""
    answering = any(source.get("answers") for source in (answers or {}).values())
    some = answering or bool(wishes.bundle)

    def check(found):
        found = disk(found)
        if not some or not found.fits:
            return found
        download, errors = sources.find(
            found.model, found.precision, found.engine, wishes, answers, present
        )
        return found if download else replace(found, why_not=f"{found.label}: {'; '.join(errors)}.")

    return check


def disk_check(hardware, wishes, present, measured):
    """Return a function that turns a Candidate down when its files do not fit the disk, or when it
    is to be quantized and the checkpoint does not fit the memory, or that takes too long.

    `measured`: the free space is what a host has just now, which differs from run to run,
    so its figure stays out of the reasons.
    """

    def check(found):
        if sources.folder(found.model, found.precision) in present:
            return found
        download = sources.first(found.model, found.precision, wishes)
        needed = download.get("memory_bytes", 0)
        if needed > hardware.ram:
            why = (
                f"{found.label} is in no hub, and to make it from {download['from']['precision']} "
                f"takes {gib(needed)} of RAM, more than the {gib(hardware.ram)} there are. Make it "
                "on a larger machine and name the file in an entry of your own."
            )
            return replace(found, why_not=why)
        if download["source"] == "quantize":
            took = making.of(download["from"]["bytes"], found.precision, hardware, wishes).seconds
            if took > 60 * wishes.quantize_minutes:
                why = (
                    f"{found.label} is in no hub, and to make it from "
                    f"{download['from']['precision']} takes about {duration(took)} with "
                    f"{hardware.words}, more than model_quantize_minutes allows, "
                    f"{wishes.quantize_minutes}. Set it to {-(-took // 60)} or more, or make it on "
                    "a larger machine and name the file in an entry of your own."
                )
                return replace(found, why_not=why)
        if hardware.disk_free is None:
            return found
        needed = sources.disk_bytes(download, found.engine)
        if needed <= hardware.disk_free:
            return found
        free = "" if measured else f", {gib(hardware.disk_free)} is free"
        why = (
            f"{found.label} needs {gib(needed)} of disk under data_path, more than there is{free}."
        )
        return replace(found, why_not=why)

    return check


def ability(found):
    """Sort key: AIME 2024, then small and fast before large and slow."""
    return (found.model.aime or 0, found.tokens_per_second)


@dataclass(frozen=True)
class Choice:
    """What one engine can do: its best Candidate (or None) and the best of every model, with
    the precisions that were turned down on the way to the best."""

    top: object
    considered: tuple
    rejected: tuple

    @property
    def shown(self):
        return self.top or min(self.considered, key=size)


def choose(models, hardware, wishes, order, disk):
    """Return (the best Choice, the other engines' Choices)."""
    if wishes.model != "auto":
        pool = [models[wishes.model]]
    else:
        pool = [model for model in models.values() if model.auto]
    choices = [_of_engine(pool, engine, hardware, wishes, disk) for engine in order]
    best = choices[0]
    for choice in choices[1:]:
        if _better(choice.top, best.top):
            best = choice
    return best, [choice for choice in choices if choice is not best]


def _of_engine(pool, engine, hardware, wishes, disk):
    pairs = [best_precision(model, engine, hardware, wishes, disk) for model in pool]
    considered = [found for found, _rejected in pairs]
    fitting = [found for found in considered if found.fits and not found.slow]
    if not fitting:  # nothing is fast enough: then the fastest
        slow = [found for found in considered if found.fits]
        fitting = sorted(slow, key=lambda found: found.tokens_per_second)[-1:]
    top = max(fitting, key=ability) if fitting else None
    rejected = [one for found, less in pairs if found is top or len(pool) == 1 for one in less]
    return Choice(top, tuple(considered), tuple(rejected))


def _better(top, held):
    """Whether a later engine's best beats an earlier engine's: only by more ability."""
    if top is None or held is None:
        return top is not None
    return (not top.slow, top.model.aime or 0) > (not held.slow, held.model.aime or 0)
