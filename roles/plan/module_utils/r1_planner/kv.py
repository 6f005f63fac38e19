"""Bytes of the KV cache per token."""

from __future__ import annotations

import math

from .units import KIB

# bytes per element: 16 bit, fp8, ggml's block formats (bytes of a block of 32)
ELEMENT_BYTES = {
    "auto": 2, "f16": 2, "bf16": 2, "bfloat16": 2,
    "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1,
    "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32,
}  # fmt: skip
GGML_ONLY = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")

# For an own model without shapes: the widest KV of the distills in that class.
_GUESS_SMALL, _GUESS_LARGE, _SMALL_FILE = 144 * KIB, 320 * KIB, 9_000_000_000


def kv_bytes_per_token(model, dtype="f16", tensor_parallel=1, pipeline_parallel=1):
    """KV bytes one token takes on one rank.

    GQA: 2 (K and V) x layers x kv heads x head size; the heads are split over the tensor
    parallel ranks, and copied where there are more ranks than heads. MLA: one latent of
    kv_lora + rope per layer, the same on every rank.
    """
    size = ELEMENT_BYTES[dtype]
    shape = model.shape
    if model.kv_bytes_per_token:
        return int(model.kv_bytes_per_token * size / 2 / tensor_parallel / pipeline_parallel)
    if shape is None:
        guess = _GUESS_SMALL if model.largest_bytes < _SMALL_FILE else _GUESS_LARGE
        return int(guess * size / 2 / tensor_parallel / pipeline_parallel)
    layers = math.ceil(shape.layers / pipeline_parallel)
    if shape.mla:
        return int(layers * (shape.kv_lora + shape.rope_dim) * size)
    heads = math.ceil(shape.kv_heads / tensor_parallel)
    return int(2 * layers * heads * shape.head_dim * size)
