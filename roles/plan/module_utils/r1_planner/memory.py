"""What an engine keeps in memory besides weights and KV cache, and the fit that follows.

`Memory` is per GPU, or for the whole process on a CPU. All figures in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from .units import GIB, MIB


@dataclass(frozen=True)
class Memory:
    weights: int
    kv_per_token: int
    activation: int
    graphs: int
    other: int
    budget: int  # what all of these may take together
    droppable: int = 0  # counted as the process's, but the system drops it when it needs room

    @property
    def fixed(self):
        return self.weights + self.activation + self.graphs + self.other

    @property
    def kv_tokens(self):
        """Tokens of KV cache that the rest of the budget holds; 0 when nothing is left."""
        return max(0, (self.budget - self.fixed) // max(1, self.kv_per_token))

    def total(self, tokens):
        return self.fixed + tokens * self.kv_per_token

    def as_dict(self, tokens):
        return {
            "total_bytes": self.total(tokens) + self.droppable,
            "weights_bytes": self.weights,
            "kv_cache_bytes": tokens * self.kv_per_token,
            "kv_cache_tokens": tokens,
            "activation_bytes": self.activation,
            "cuda_graph_bytes": self.graphs,
            "other_bytes": self.other,
            "droppable_bytes": self.droppable,
            "budget_bytes": self.budget,
        }


# llama.cpp computes a prompt in pieces of this many tokens (its default --ubatch-size).
LLAMA_UBATCH = 512
# llama-server's program, libraries and tokenizer; read from a running one.
LLAMA_PROCESS = 64 * MIB
# Ollama's server and the runner it starts: 75 MiB read from running ones, doubled.
OLLAMA_PROCESSES = 150 * MIB
# On a GPU: CUDA context and cuBLAS workspace of one process.
LLAMA_CUDA = 600 * MIB
# Each further card of a layer split: copies of the activations in flight, uneven layers.
LLAMA_SPLIT = 400 * MIB


def llama_compute(model, context, logits, ubatch=LLAMA_UBATCH):
    """Compute buffer of llama.cpp for one context of that many tokens.

    llama-server's log says 72.5, 80.5 and 128.5 MiB for the shapes of 1.5B at 8,192, 16,384
    and 65,536 tokens: a 16-bit mask of ubatch x context, and float32 rows of twice the
    feed-forward and about ten times the hidden width. `logits`: with room for a row of the
    vocabulary per token, as older versions and Ollama's own engine keep it.
    """
    if model.shape is None:
        return 512 * MIB + ubatch * 2 * context
    shape = model.shape
    ffn = max(shape.ffn, shape.expert_ffn * (shape.experts_active + 1))
    width = 2 * ffn + 10 * shape.hidden + (shape.vocab if logits else 0)
    return ubatch * (4 * width + 2 * context)


# vLLM, read from the log of 0.26.0 on an H100 (models of 7B and 32B; bf16, fp8, AWQ):
# non-torch memory 0.22 GiB in every run.
VLLM_NON_TORCH = int(0.22 * GIB)
# The CUDA context is outside vLLM's own account: 79.18 GiB usable, 78.66 free at start.
VLLM_CONTEXT = int(0.52 * GIB)
# Left free so that a fragmented start does not fail.
VLLM_MARGIN = int(0.25 * GIB)
# Peak activation: 3.09 GiB (32B, 8192 batched tokens), 1.49 GiB (32B, 2048): a base and a
# share per token, scaled by the widths; 7B is then 0.25 GiB under the estimate.
_ACTIVATION_BASE = 0.957 * GIB
_ACTIVATION_PER_TOKEN = 279_600 / (27648 + 5120)
_ACTIVATION_FP8 = 0.18 * GIB
# One size per captured batch: 0.54 GiB for 35 sizes and 28 layers, 0.85 for 64 layers.
_GRAPH_BASE, _GRAPH_PER_LAYER = 0.0083 * GIB, 0.000253 * GIB
# Loaded weights over file size: rotary tables, padding, AWQ's repacking.
_LOADED_EXTRA = {"bf16": 0.10, "fp8": 0.26, "awq": 0.55, "gptq": 0.55}


def vllm_activation(shape, batched_tokens, sequences, precision):
    """Peak activation of the profiling run."""
    per_token = _ACTIVATION_PER_TOKEN * (shape.hidden + shape.ffn)
    total = _ACTIVATION_BASE + batched_tokens * per_token
    # the sampler sorts one row of logits per sequence; measured with up to 256
    total += max(0, sequences - 256) * shape.vocab * 16
    return int(total + (_ACTIVATION_FP8 if precision == "fp8" else 0))


def vllm_graphs(shape, sequences, eager):
    """CUDA graphs: captured for batches of 1, 2, 4 and every multiple of 8."""
    if eager:
        return 0
    sizes = sum(1 for size in (1, 2, 4) if size <= sequences) + sequences // 8
    return int(sizes * (_GRAPH_BASE + _GRAPH_PER_LAYER * shape.layers))


def vllm_loading_extra(precision):
    return int(_LOADED_EXTRA.get(precision, 0.3) * GIB)
