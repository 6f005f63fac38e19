"""Bytes of a model's weights, from its tensors.

GGUF: block sizes of ggml's formats, and llama.cpp's rule which tensors of a *_K_M file
get more bits. AWQ and GPTQ: 4 bits, with one 16-bit scale and one 4-bit zero per group
of 128. FP8: one byte; embeddings, head and norms stay at 16 bits in all three.
Compared with files on the hubs: within 0.1 % (tests/unit/test_plan_memory.py).
"""

from __future__ import annotations

from functools import cache

from .shapes import tensors
from .units import PlanError

# bytes per weight
_Q4_K, _Q5_K, _Q6_K, _Q8_0 = 144 / 256, 176 / 256, 210 / 256, 34 / 32
_INT4 = 0.5 + 2.5 / 128
# A GGUF carries its tokenizer: about 39 bytes per token of the vocabulary.
_GGUF_PER_TOKEN = 39

# Formats that only a user's own entry has: average bits per weight, as llama-quantize prints.
_AVERAGE_BITS = {
    "f16": 16, "q2_k": 3.4, "q3_k_m": 3.95, "q4_0": 4.6, "q4_1": 5.1, "q4_k_s": 4.65,
    "q5_0": 5.55, "q5_1": 6.05, "q5_k_s": 5.55, "q6_k": 6.57,
}  # fmt: skip

GGUF_PRECISIONS = ("q4_k_m", "q5_k_m", "q8_0", *_AVERAGE_BITS)
HF_PRECISIONS = ("bf16", "fp16", "fp8", "awq", "gptq")
PRECISIONS = HF_PRECISIONS + GGUF_PRECISIONS


def is_gguf(precision):
    return precision in GGUF_PRECISIONS


def _more_bits(layer, layers):
    """llama.cpp's use_more_bits: the first and last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _gguf_tensor(shape, precision, kind, layer):
    if kind in ("norm", "router"):
        return 4
    if precision in _AVERAGE_BITS:
        return _AVERAGE_BITS[precision] / 8
    if precision == "q8_0":
        return _Q8_0
    base = _Q4_K if precision == "q4_k_m" else _Q5_K
    if kind == "head" or (kind == "embed" and shape.tied):
        return _Q6_K
    if kind in ("attn_v", "ffn_down") and _more_bits(layer, shape.layers):
        return _Q6_K
    if kind == "attn_v" and shape.layers == 80 and base == _Q4_K:
        return _Q5_K  # llama.cpp's exception for 70B: eight heads share one v
    return base


def _hf_tensor(precision, kind):
    if precision in ("bf16", "fp16") or kind in ("norm", "embed", "head", "router"):
        return 2
    return 1 if precision == "fp8" else _INT4


def tensor_bytes(shape, precision):
    """Yield (kind, bytes) of every tensor at a precision."""
    if precision not in PRECISIONS:
        raise PlanError(
            f"precision: no size rule for '{precision}'; known: {', '.join(PRECISIONS)}."
        )
    for kind, layer, elements in tensors(shape):
        if is_gguf(precision):
            yield kind, elements * _gguf_tensor(shape, precision, kind, layer)
        else:
            yield kind, elements * _hf_tensor(precision, kind)


@cache
def computed_bytes(shape, precision):
    """Bytes of the checkpoint as computed from the shapes."""
    total = sum(size for _kind, size in tensor_bytes(shape, precision))
    if is_gguf(precision):
        total += _GGUF_PER_TOKEN * shape.vocab
    return int(total)


def file_bytes(model, precision):
    """Bytes of the checkpoint: the known file size, else computed from the shapes."""
    known = model.precisions[precision].get("bytes")
    return int(known) if known else computed_bytes(model.shape, precision)


@cache
def repacked_bytes(shape, precision):
    """Bytes that llama.cpp on an x86 CPU holds a second time, rearranged for its vector units
    (its log calls it CPU_REPACK): the 4-bit matrices of the layers. Read from a file of 1.5B's
    shapes: 596.5 MiB of 1,059.9."""
    if shape is None or precision != "q4_k_m":
        return 0
    total = 0
    for kind, layer, elements in tensors(shape):
        per_weight = _gguf_tensor(shape, precision, kind, layer)
        if layer is not None and per_weight == _Q4_K:
            total += elements * per_weight
    return int(total)


def embedding_bytes(shape, precision):
    """Bytes of the input embedding, which llama.cpp keeps in host memory."""
    if shape is None or shape.tied:
        return 0
    return int(next(size for kind, size in tensor_bytes(shape, precision) if kind == "embed"))
