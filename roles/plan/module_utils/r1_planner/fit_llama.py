"""llama.cpp and Ollama: a GGUF in host memory, or wholly on the GPUs, never in between."""

from __future__ import annotations

from . import kv, memory, speed, weights, words
from .units import MIB, gib, round_down

# context per request and parallel requests that a goal asks for
GOALS_CPU = {
    "balanced": (16384, 2),
    "latency": (16384, 1),
    "throughput": (8192, 4),
    "context": (None, 1),
}
GOALS_GPU = {
    "balanced": (32768, 2),
    "latency": (32768, 1),
    "throughput": (16384, 8),
    "context": (None, 1),
}
MIN_CONTEXT_CPU, MIN_CONTEXT_GPU = 8192, 16384
_STEP = 1024


def fit(model, engine, precision, hardware, wishes):
    """Return the fields of a Candidate."""
    if wishes.kv_cache_dtype.startswith("fp8"):
        name = words.ENGINE_NAMES[engine]
        return {"why_not": f"{name} has no fp8 KV cache; set kv_cache_dtype to q8_0 or auto."}
    tries = ("f16", "q8_0") if wishes.kv_cache_dtype == "auto" else (wishes.kv_cache_dtype,)
    best = None
    for count in _gpu_counts(hardware):
        for dtype in tries:
            found = _fit(model, engine, precision, hardware, wishes, dtype, count)
            if found.pop("whole"):
                return found
            if best is None or worth(found) > worth(best):
                best = found
    return best


def worth(found):
    """Sort key of two fits of one combination."""
    return (not found.get("why_not"), found["context"], found["sequences"])


def _gpu_counts(hardware):
    return range(1, len(hardware.gpus) + 1) if hardware.gpus else (0,)


def account(model, engine, precision, hardware, wishes, dtype, gpus, context):
    """Return the Memory of one GPU of `gpus`, or of the process on a CPU (gpus 0)."""
    size = weights.file_bytes(model, precision)
    compute = memory.llama_compute(model, context, logits=bool(gpus) or engine == "ollama")
    per_token = kv.kv_bytes_per_token(model, dtype)
    if gpus:
        size -= weights.embedding_bytes(model.shape, precision)
        other = memory.LLAMA_CUDA + (memory.LLAMA_SPLIT if gpus > 1 else 0)
        budget = hardware.gpus[0].left
        return memory.Memory(size // gpus, -(-per_token // gpus), compute, 0, other, budget)
    # what was copied stays mapped from the file, and is not read again
    copied = weights.repacked_bytes(model.shape, precision)
    other = memory.OLLAMA_PROCESSES
    if engine == "llamacpp":
        other = memory.LLAMA_PROCESS + wishes.prompt_cache_mib * MIB
    budget = max(0, hardware.ram - wishes.memory_reserve_mib * MIB)
    return memory.Memory(size, per_token, compute, 0, other, budget, copied)


def _fit(model, engine, precision, hardware, wishes, dtype, gpus):
    reserve = wishes.memory_reserve_mib * MIB
    goal_context, goal_slots = (GOALS_GPU if gpus else GOALS_CPU)[wishes.goal]
    least = least_context(model, wishes, bool(gpus))
    wanted = wishes.max_model_len or min(goal_context or model.max_positions, model.max_positions)
    slots = wishes.max_num_seqs or goal_slots

    def held_at(context):
        return account(model, engine, precision, hardware, wishes, dtype, gpus, context)

    context, held = wanted, held_at(wanted)
    while slots > 1 and not wishes.max_num_seqs and wanted * slots > held.kv_tokens:
        slots -= 1
    while not wishes.max_model_len and context > least and context * slots > held.kv_tokens:
        # a shorter context needs a smaller mask, which leaves more room: a few rounds
        context = max(least, round_down(min(held.kv_tokens // slots, context - 1), _STEP))
        held = held_at(context)
    room, tokens = held.kv_tokens, context * slots
    found = {
        "memory": held,
        "tokens": tokens,
        "context": context,
        "sequences": slots,
        "gpus": gpus,
        "kv_dtype": dtype,
        "batched_tokens": wishes.max_num_batched_tokens or 2048,
        "speed": speed.estimate(
            model, precision, weights.file_bytes(model, precision), hardware, engine
        ),
        "whole": context >= wanted and tokens <= room and slots >= goal_slots,
    }
    if context > model.max_positions:
        found["why_not"] = (
            f"{model.name} was made for at most {model.max_positions:,} tokens; "
            f"max_model_len asks for {context:,}."
        )
    elif tokens > room:
        found["why_not"] = words.sentence_of_need(
            f"{model.name} {precision}", held, tokens, _has(hardware, gpus, reserve)
        )
    return found


def least_context(model, wishes, gpu):
    """The context below which a plan is refused: an answer with its reasoning must fit."""
    least = wishes.min_context or (MIN_CONTEXT_GPU if gpu else MIN_CONTEXT_CPU)
    return min(least, model.max_positions)


def _has(hardware, gpus, reserve):
    if gpus:
        gpu = hardware.gpus[0]
        has = f"{gpu.name} has{' left' if gpu.taken else ''}"
        return f"on each of {gpus} GPUs, and each {has}" if gpus > 1 else f"the {has}"
    return ram_has(hardware, reserve)


def ram_has(hardware, reserve):
    """Start of a sentence on what the main memory offers an engine."""
    return f"the host's {gib(hardware.ram)} RAM less {gib(reserve)} for the system leave"
