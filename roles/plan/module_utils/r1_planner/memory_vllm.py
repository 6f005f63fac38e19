"""What vLLM keeps on one GPU, part by part.

Read from vLLM 0.26.0's source and from 24 starts on an H100 and 2 on two H200
(tests/unit/data/vllm-*.jsonl, made by tests/bench/vllm_memory.py). vLLM itself computes, when it
starts:

    KV cache = gpu_memory_utilization x usable memory - weights - activation - non-torch

with `activation` the highest point of a trial run. It leaves out the CUDA context, the CUDA
graphs and the state of the requests, which have to fit into what the utilization leaves. Told
the KV cache outright (--kv-cache-memory-bytes) it takes that; what has to fit beside are the
weights, `Rank.running`, `Rank.non_torch` and `Rank.outside`.

T: max_num_batched_tokens. S: max_num_seqs. All results are bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import shapes
from .units import GIB, KIB, MIB

# Before vLLM asks: 527 MiB for CUDA's context. Outside torch while it runs: 230 MiB in every run.
CONTEXT = 527 * MIB
NON_TORCH = 230 * MIB
# On a CPU: its server, engine and worker, read from running ones: 3.1 GiB.
CPU_PROCESSES = 3328 * MIB
# With more than one rank: what NCCL and vLLM's own all-reduce take before vLLM looks at the card,
# and what is outside torch then. From two H200 with NVLink; more ranks are taken to need more.
NCCL, NON_TORCH_RANKS, NCCL_BEYOND_TWO = 970 * MIB, 68 * MIB, 512 * MIB
# cuBLAS's workspace, and scratch of compiled code.
_WORKSPACE, _COMPILED_SCRATCH = 33 * MIB, 50 * MIB
# torch reserves a little more than it hands out: 35 to 180 MiB.
FRAGMENTATION = 200 * MIB
# This share of a card stays free, for what these figures do not know.
MARGIN = 1 / 256

# vLLM captures a graph for each of these batch sizes, up to twice S and at most 512: in pieces
# between the attention layers for mixed batches, and whole for those up to S that only decode.
_GRAPHS_AT_MOST = 512
_GRAPHS_BASE = 140 * MIB
_GRAPH_PIECE = 132 * KIB  # each size and layer
_GRAPH_ROW = 2112  # each row of a whole graph's batch, and head: the attention's partial sums

# 4-bit matrices: bytes of scales, and AWQ's of zero points and of repacking, for each 128 weights.
_FOUR_BIT_EXTRA = {"gptq": 2, "awq": 3.9}
# Norms, biases and scales of a layer, each in a block of its own.
_LAYER_CRUMBS = MIB // 2
# Of each possible request and token of the vocabulary: counts for penalties, and three bitmasks.
_STATE_PER_TOKEN = 4.38
_ALL_REDUCE = 8 * MIB


def _block(size):
    """Bytes that torch takes for a tensor: large ones come in steps of 2 MiB."""
    return math.ceil(size / (2 * MIB)) * 2 * MIB if size >= 10 * MIB else int(size)


def capture_sizes(limit):
    """Batch sizes that vLLM captures up to a limit."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, _GRAPHS_AT_MOST + 1, 16)]
    return [size for size in sizes if size <= limit]


@dataclass(frozen=True)
class Rank:
    """One GPU's share of a model.

    tensor_parallel, pipeline_parallel: numbers of ranks; sequences: S; batched: T.
    """

    shape: shapes.Shape
    precision: str
    sequences: int
    batched: int
    eager: bool = False
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def layers(self):
        return math.ceil(self.shape.layers / self.pipeline_parallel)

    @property
    def four_bit(self):
        return self.precision in ("awq", "gptq")

    @property
    def vocab(self):
        """Rows of the embedding and of the head on this rank."""
        return math.ceil(self.shape.vocab / self.tensor_parallel)

    @property
    def ffn(self):
        """Width of the widest feed-forward part: of a mixture of experts all active ones."""
        shape = self.shape
        experts = shape.expert_ffn * (shape.experts_active + shape.experts_shared)
        return math.ceil(max(shape.ffn, experts) / self.tensor_parallel)

    def weights(self, file_bytes):
        """Bytes that loading takes; file_bytes counts where shapes alone do not tell (experts)."""
        shape = self.shape
        if shape.mla or shape.experts:
            share = file_bytes / (self.tensor_parallel * self.pipeline_parallel)
            return int(share + GIB)
        embeddings = 2 if self.pipeline_parallel == 1 and not shape.tied else 1
        total = embeddings * _block(2 * self.vocab * shape.hidden)
        total += _block(2 * shape.max_position_embeddings * shape.head_dim)  # rotary table
        return int(total + self.layers * (self._layer() + _LAYER_CRUMBS))

    def _layer(self):
        """Bytes of one layer's four matrices: q, k and v in one, gate and up in one."""
        shape, ranks = self.shape, self.tensor_parallel
        heads = shape.heads / ranks + 2 * math.ceil(shape.kv_heads / ranks)
        hidden, inner = shape.hidden, shape.heads * shape.head_dim / ranks
        ffn = shape.ffn / ranks
        total = 0
        for rows, columns in (
            (hidden, heads * shape.head_dim), (inner, hidden), (hidden, 2 * ffn), (ffn, hidden),
        ):  # fmt: skip
            count = rows * columns
            if self.precision == "fp8":
                total += _block(count) + 4 * columns
            elif self.four_bit:
                total += _block(count / 2) + count * _FOUR_BIT_EXTRA[self.precision] / 128
            else:
                total += _block(2 * count)
        return total

    @property
    def forward(self):
        """The highest point of one step of T tokens, in the feed-forward part.

        Alive there: gate and up (2 x ffn), their product (ffn), and three or, uncompiled, four
        rows of the hidden width; 16 bits each. In fp8 the compiled product is written in 8
        bits, and the uncompiled one is copied.
        """
        ffn, hidden = self.ffn, self.shape.hidden
        if self.eager:
            row = 6 * ffn + 8 * hidden + (ffn if self.precision == "fp8" else 0)
        else:
            row = (5 if self.precision == "fp8" else 6) * ffn + 6 * hidden
        return self.batched * row

    @property
    def tuning(self):
        """The first start with compilation tries kernels on made-up inputs, one of which is the
        embedding: as large as the real one. A start with a warm compile cache does not."""
        if self.eager:
            return 0
        rows = 2.5 if self.precision == "fp8" else 2
        return int(2 * self.vocab * self.shape.hidden + 2 * rows * self.batched * self.shape.hidden)

    @property
    def sampling(self):
        """Logits of S requests in 16 and 32 bits; top-p is computed in place."""
        return 6 * self.sequences * self.shape.vocab

    @property
    def workspace(self):
        scratch = self.eager or self.four_bit
        return _WORKSPACE + (0 if scratch else _COMPILED_SCRATCH)

    @property
    def profiled(self):
        """Activation that vLLM's trial run measures at the first start."""
        forward = self.forward + (0 if self.four_bit else self.workspace)
        return max(forward, self.tuning, 2 * self.sequences * self.shape.vocab + self.workspace)

    @property
    def running(self):
        """Activation of real requests: a full step, or the sampling after it."""
        return max(self.forward, self.sampling) + self.workspace

    @property
    def state(self):
        """Requests' state on the GPU, and tables of its all-reduce, which vLLM's own account
        leaves out."""
        tables = _ALL_REDUCE if self.ranks > 1 else 0
        return int(_STATE_PER_TOKEN * self.sequences * self.shape.vocab) + tables

    @property
    def graphs(self):
        if self.eager:
            return 0
        mixed = capture_sizes(min(2 * self.sequences, self.batched, _GRAPHS_AT_MOST))
        decode = capture_sizes(self.sequences)
        heads = math.ceil(self.shape.heads / self.tensor_parallel)
        return (
            _GRAPHS_BASE
            + _GRAPH_PIECE * self.layers * len(mixed)
            + _GRAPH_ROW * heads * sum(decode)
        )

    @property
    def non_torch(self):
        return NON_TORCH if self.ranks == 1 else NON_TORCH_RANKS

    @property
    def ranks(self):
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def outside(self):
        """What vLLM's own account of its share leaves out, besides the KV cache."""
        nccl = (NCCL if self.ranks > 1 else 0) + (NCCL_BEYOND_TWO if self.ranks > 2 else 0)
        return CONTEXT + nccl + self.state + self.graphs + FRAGMENTATION
