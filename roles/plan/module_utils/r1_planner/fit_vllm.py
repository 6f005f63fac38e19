"""vLLM: weights split over tensor and pipeline parallel ranks, the rest of a share of each
card becomes KV cache. SGLang is planned by the same rule (its own is not measured yet)."""

from __future__ import annotations

import math

from . import cards, fit_llama, kv, memory, speed, weights, words
from .units import GIB, number, round_down

# context, sequences and batched tokens that a goal asks for
GOALS = {
    "balanced": (32768, 64, 8192),
    "latency": (32768, 16, 2048),
    "throughput": (16384, 256, 8192),
    "context": (None, 8, 2048),
}
# Cards below this get small batches: activations would eat the context.
_LARGE_CARD = 40 * GIB
_SMALL_BATCH = (16, 2048)
_MOST_UTILIZATION = 0.95
_STEP = 1024


def fit(model, engine, precision, hardware, wishes):
    """Return the fields of a Candidate."""
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
        found = _fit(model, precision, hardware, wishes, dtype, ranks, pipeline)
        if found.pop("whole"):
            return found
        if best is None or fit_llama.worth(found) > fit_llama.worth(best):
            best = found
    return best


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


def account(model, precision, gpu, wishes, dtype, ranks, pipeline, sequences, batched):
    """Return the Memory of one rank and its gpu_memory_utilization."""
    shape = model.shape
    activation = memory.vllm_activation(shape, batched, sequences, precision)
    graphs = memory.vllm_graphs(shape, sequences, bool(wishes.enforce_eager))
    free = gpu.usable - memory.VLLM_CONTEXT - memory.VLLM_MARGIN - graphs
    most = min(_MOST_UTILIZATION, math.floor(free / gpu.usable * 100) / 100)
    share = wishes.gpu_memory_utilization or most
    # vLLM does not count its graphs and the context into the share it is given
    held = memory.Memory(
        weights=loaded_bytes(model, precision) // (ranks * pipeline)
        + memory.vllm_loading_extra(precision) // ranks,
        kv_per_token=kv.kv_bytes_per_token(model, dtype, ranks, pipeline),
        activation=activation,
        graphs=graphs,
        other=memory.VLLM_NON_TORCH,
        budget=int(share * gpu.usable) + graphs,
    )
    return held, share


def _fit(model, precision, hardware, wishes, dtype, ranks, pipeline):
    gpu = hardware.gpus[0]
    goal_context, sequences, batched = GOALS[wishes.goal]
    if gpu.usable < _LARGE_CARD:
        sequences, batched = min(sequences, _SMALL_BATCH[0]), min(batched, _SMALL_BATCH[1])
    sequences = wishes.max_num_seqs or sequences
    batched = wishes.max_num_batched_tokens or batched
    held, share = account(model, precision, gpu, wishes, dtype, ranks, pipeline, sequences, batched)
    least = fit_llama.least_context(model, wishes, True)
    wanted = wishes.max_model_len or min(goal_context or model.max_positions, model.max_positions)
    room = held.kv_tokens
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
        "kv_dtype": dtype,
        "eager": bool(wishes.enforce_eager),
        "speed": speed.estimate(
            model,
            precision,
            loaded_bytes(model, precision),
            hardware,
            "vllm",
            ranks,
            bool(wishes.enforce_eager),
        ),
        "whole": context >= wanted and context <= room,
    }
    if context > model.max_positions:
        found["why_not"] = (
            f"{model.name} was made for at most {number(model.max_positions)} tokens; "
            f"max_model_len asks for {number(context)}."
        )
    elif context > room:
        each = f"on each of {ranks * pipeline} GPUs, " if ranks * pipeline > 1 else ""
        found["why_not"] = words.sentence_of_need(
            f"{model.name} {precision}", held, context,
            f"{each}{share:.2f} of the {gpu.name} and its graphs are",
        )  # fmt: skip
    return found
