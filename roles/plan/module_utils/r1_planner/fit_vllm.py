"""vLLM: weights split over tensor and pipeline parallel ranks, and what a card has left besides
becomes KV cache. SGLang is planned by the same rule (its own is not measured yet).

The KV cache is computed here and told to vLLM outright, unless gpu_memory_utilization is set:
then vLLM computes it, and the plan says what it will find.
"""

from __future__ import annotations

import math

from . import cards, fit_llama, kv, memory, memory_vllm, speed, weights, words
from .units import MIB, gib, number, round_down

# What a goal asks for: context, and (sequences, batched tokens) in falling order. Each step down
# leaves more of the card to the KV cache; large batches of tokens read long prompts faster.
GOALS = {
    "balanced": (32768, ((64, 8192), (64, 4096), (32, 2048), (16, 1024), (8, 512))),
    "latency": (32768, ((16, 8192), (16, 4096), (16, 2048), (8, 1024), (8, 512))),
    "throughput": (16384, ((256, 8192), (128, 8192), (64, 4096), (32, 2048), (16, 1024), (8, 512))),
    "context": (None, ((8, 2048), (8, 1024), (8, 512))),
}
_STEP = 1024
BLOCK, CPU_BLOCK = 16, 128  # tokens: vLLM hands out its KV cache in blocks


def fit(model, engine, precision, hardware, wishes):
    """Return the fields of a Candidate."""
    if not hardware.gpus:
        return _fit_cpu(model, precision, hardware, wishes)
    ranks = tensor_parallel(model.shape, hardware, wishes)
    if isinstance(ranks, str):
        return {"why_not": ranks}
    pipeline = wishes.pipeline_parallel_size or hardware.nodes
    if ranks * pipeline > len(hardware.gpus) * hardware.nodes:
        return {
            "why_not": f"tensor_parallel_size {ranks} x pipeline_parallel_size {pipeline} needs "
            f"{ranks * pipeline} GPUs, there are {len(hardware.gpus) * hardware.nodes}."
        }
    if wishes.kv_cache_dtype in kv.GGML_ONLY:
        return {
            "why_not": f"kv_cache_dtype: {wishes.kv_cache_dtype} is llama.cpp's; vLLM takes fp8."
        }
    tries = [wishes.kv_cache_dtype]
    if wishes.kv_cache_dtype == "auto" and hardware.gpus[0].capability >= cards.KV_FP8_NEEDS:
        tries.append("fp8")
    best = None
    for dtype in tries:
        for sequences, batched in batches(wishes):
            found = _fit(
                model, precision, hardware, wishes, dtype, ranks, pipeline, sequences, batched
            )
            if found.pop("whole"):
                return found
            if best is None or fit_llama.worth(found) > fit_llama.worth(best):
                best = found
    return best


def _fit_cpu(model, precision, hardware, wishes):
    """On a CPU: a KV cache for the requests at once, in main memory, nothing compiled."""
    if wishes.kv_cache_dtype not in ("auto", "bf16", "bfloat16"):
        return {"why_not": f"kv_cache_dtype: {wishes.kv_cache_dtype} needs a GPU with vLLM."}
    if (wishes.tensor_parallel_size or 1) * (wishes.pipeline_parallel_size or 1) > 1:
        return {"why_not": "tensor_parallel_size: without a GPU vLLM is one process; use 1."}
    goal_context, slots = fit_llama.GOALS_CPU[wishes.goal]
    context = wishes.max_model_len or min(goal_context or model.max_positions, model.max_positions)
    slots, batched = wishes.max_num_seqs or slots, wishes.max_num_batched_tokens or 2048
    reserve = wishes.memory_reserve_mib * MIB
    rank = memory_vllm.Rank(model.shape, precision, slots, batched, eager=True)
    held = memory.Memory(
        loaded_bytes(model, precision), kv.kv_bytes_per_token(model), rank.forward + rank.sampling,
        0, memory_vllm.CPU_PROCESSES, hardware.ram - reserve,
    )  # fmt: skip
    tokens = -(-context // CPU_BLOCK) * CPU_BLOCK * slots
    found = {
        "memory": held, "tokens": tokens, "context": context, "sequences": slots,
        "batched_tokens": max(batched, slots), "kv_cache_bytes": tokens * held.kv_per_token,
        "eager": True,
        "speed": speed.estimate(model, precision, held.weights, hardware, "vllm", 1, True),
    }  # fmt: skip
    if context > model.max_positions:
        found["why_not"] = _too_long(model, context)
    elif tokens > held.kv_tokens:
        found["why_not"] = words.sentence_of_need(
            f"{model.name} {precision}",
            held,
            tokens,
            fit_llama.ram_has(hardware, reserve),
        )
    return found


def _too_long(model, context):
    return (
        f"{model.name} was made for at most {number(model.max_positions)} tokens; "
        f"max_model_len asks for {number(context)}."
    )


def batches(wishes):
    """(max_num_seqs, max_num_batched_tokens) to try, in order; what is set is not varied."""
    steps = []
    for sequences, batched in GOALS[wishes.goal][1]:
        sequences = wishes.max_num_seqs or sequences
        batched = wishes.max_num_batched_tokens or max(batched, sequences)
        if (sequences, batched) not in steps:
            steps.append((sequences, batched))
    return steps


def tensor_parallel(shape, hardware, wishes):
    """Return the tensor parallel size, or a sentence why the wished one cannot be."""
    allowed = [size for size in (1, 2, 4, 8, 16) if shape.heads % size == 0]
    wished = wishes.tensor_parallel_size
    if wished and shape.heads % wished:
        sizes = ", ".join(str(size) for size in allowed)
        return (
            f"tensor_parallel_size: {wished} does not divide the model's {shape.heads} attention "
            f"heads; use one of {sizes}."
        )
    return wished or max(size for size in allowed if size <= max(1, len(hardware.gpus)))


def loaded_bytes(model, precision):
    """Bytes of weights that vLLM loads: the file's, or less where the file holds a part it
    leaves out (671B's multi-token prediction layer)."""
    return model.precisions[precision].get("loaded_bytes") or weights.file_bytes(model, precision)


def account(rank, model, gpu, wishes, dtype):
    """Return the Memory of a memory_vllm.Rank, its gpu_memory_utilization and, unless that was
    set, the KV cache in bytes that vLLM is to be told."""
    parallel = rank.tensor_parallel, rank.pipeline_parallel
    total, per_token = gpu.usable, kv.kv_bytes_per_token(model, dtype, *parallel)
    held = rank.weights(loaded_bytes(model, rank.precision))
    share = wishes.gpu_memory_utilization
    if share:
        # vLLM counts neither its graphs nor what is outside torch before it starts into its share
        own = memory.Memory(
            held, per_token, rank.profiled, rank.graphs, rank.non_torch,
            int(share * total) + rank.graphs,
        )  # fmt: skip
        return own, share, None
    other = rank.non_torch + rank.outside - rank.graphs
    budget = max(0, int(total * (1 - memory_vllm.MARGIN)) - gpu.taken)
    own = memory.Memory(held, per_token, rank.running, rank.graphs, other, budget)
    cache = round_down(own.kv_tokens, BLOCK) * per_token
    # the same cache by vLLM's own reckoning, as far as that lets it start
    counted = (held + cache + rank.profiled + rank.non_torch) / total
    return own, min(math.floor(counted * 100) / 100, _most_share(rank, gpu)), cache


def _most_share(rank, gpu):
    """The highest gpu_memory_utilization beside which vLLM's graphs and requests have room, and
    what others hold: vLLM does not start where less than its share is free."""
    left = rank.outside + max(0, rank.running - rank.profiled) + gpu.taken
    return math.floor((gpu.usable - left) / gpu.usable * 100) / 100


def _beside(gpu):
    return f" and for the {gib(gpu.taken)} that others use" if gpu.taken else ""


def _fit(model, precision, hardware, wishes, dtype, ranks, pipeline, sequences, batched):
    gpu = hardware.gpus[0]
    goal_context = GOALS[wishes.goal][0]
    eager = bool(wishes.enforce_eager)
    rank = memory_vllm.Rank(model.shape, precision, sequences, batched, eager, ranks, pipeline)
    held, share, cache = account(rank, model, gpu, wishes, dtype)
    least = fit_llama.least_context(model, wishes, True)
    wanted = wishes.max_model_len or min(goal_context or model.max_positions, model.max_positions)
    room = round_down(held.kv_tokens, BLOCK)
    context = wanted
    if not wishes.max_model_len and wanted > room:
        context = max(least, round_down(room, _STEP))
    found = {
        "memory": held,
        "tokens": room,
        "context": context,
        "sequences": sequences,
        "batched_tokens": batched,
        "gpus": ranks * pipeline,
        "tensor_parallel": ranks,
        "pipeline_parallel": pipeline,
        "utilization": share,
        "kv_cache_bytes": cache,
        "kv_dtype": dtype,
        "eager": eager,
        "speed": speed.estimate(
            model,
            precision,
            loaded_bytes(model, precision),
            hardware,
            "vllm",
            ranks,
            eager,
        ),
        "whole": context >= wanted and context <= room,
    }
    if context > model.max_positions:
        found["why_not"] = _too_long(model, context)
    elif share > (most := _most_share(rank, gpu)):
        found["why_not"] = (
            f"{model.name} {precision}: gpu_memory_utilization {share:.2f} leaves "
            f"{gib((1 - share) * gpu.usable)} of the {gpu.name} for what vLLM does not count "
            f"(CUDA's context, graphs, requests' state){_beside(gpu)}, which is too little; at "
            f"most {most:.2f}."
        )
    elif context > room:
        has = f"{share:.2f} of the {gpu.name} and its graphs are"
        if gpu.taken and not wishes.gpu_memory_utilization:
            has = f"the {gpu.name} has left"
        each = f"on each of {ranks * pipeline} GPUs, " if ranks * pipeline > 1 else ""
        found["why_not"] = words.sentence_of_need(
            f"{model.name} {precision}", held, context, each + has
        )
    return found
