"""What an engine keeps in memory besides weights and KV cache, and the fit that follows.

`Memory` is per GPU, or for the whole process on a CPU. All figures in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from .units import MIB


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
