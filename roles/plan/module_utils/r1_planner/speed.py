"""Decode speed for one user: every new token reads all active weights once.

seconds per token = bytes read / (bandwidth x efficiency) + layers x time per layer

GPU, from vLLM on an H100 (3,350 GB/s): 7B bf16 158 to 160 tok/s, 7B fp8 231 to 236, 32B fp8 69
give an efficiency of 0.95 and 65 microseconds per layer, which hold on an H200, too; AWQ, 7B at
231 and 32B at 79, gives 0.82 and 96 microseconds; without CUDA graphs (7B at 56) a layer takes
476. CPU: see CPU_EFFICIENCY.
"""

from __future__ import annotations

from . import shapes, weights

GPU_EFFICIENCY = {"bf16": 0.95, "fp8": 0.95, "awq": 0.82, "gptq": 0.82}
# llama.cpp and Ollama on a GPU, not measured by this project: a cautious figure.
GGUF_GPU_EFFICIENCY = 0.55
LAYER_SECONDS = 65e-6
LAYER_SECONDS_FOUR_BIT = 96e-6
# A layer of experts takes several kernels more: a cautious figure, not measured here.
LAYER_SECONDS_EXPERTS = 250e-6
LAYER_SECONDS_EAGER = 476e-6
# Tensor parallel ranks wait for two all-reduces per layer: 2 microseconds in bf16 (7B at 297, 32B
# at 88) and 18 in AWQ (70B at 72) on two H200 with NVLink. Cards without it will take longer.
LAYER_SECONDS_TP = 10e-6
# llama.cpp's share of the bandwidth that hardware.py assumes. A file of 1.5B's shapes in q4_k_m
# decoded 13 to 14 tokens per second on 2 cores of an EPYC that had other work; this says 11.
CPU_EFFICIENCY = 0.70
# Threads meet several times per layer; felt by very small models alone.
LAYER_SECONDS_CPU = 100e-6


def bytes_per_token(model, precision, size):
    """Bytes read for one token: the weights without the input embedding, and of a mixture
    of experts only the active ones."""
    if model.shape is None:
        return size
    if model.shape.experts:
        return int(size * shapes.active_share(model.shape))
    return size - weights.embedding_bytes(model.shape, precision)


def estimate(model, precision, size, hardware, engine, tensor_parallel=1, eager=False):
    """Return {decode_tokens_per_second_1, limited_by} for one user."""
    read = bytes_per_token(model, precision, size)
    layers = model.shape.layers if model.shape else 32
    if not hardware.gpus:
        seconds = (
            read / (hardware.cpu_bandwidth * 1e9 * CPU_EFFICIENCY) + layers * LAYER_SECONDS_CPU
        )
        return {
            "decode_tokens_per_second_1": round(1 / seconds, 1),
            "limited_by": f"memory bandwidth of the CPU, taken as {hardware.cpu_bandwidth:g} GB/s",
        }
    gpu = hardware.gpus[0]
    experts = model.shape is not None and model.shape.experts
    four_bit = engine in ("vllm", "sglang") and precision in ("awq", "gptq")
    per_layer = LAYER_SECONDS_FOUR_BIT if four_bit else LAYER_SECONDS
    per_layer = LAYER_SECONDS_EXPERTS if experts else per_layer
    per_layer = max(per_layer, LAYER_SECONDS_EAGER) if eager else per_layer
    if engine in ("vllm", "sglang"):
        share = GPU_EFFICIENCY.get(precision, 0.6)
        moving = read / tensor_parallel / (gpu.bandwidth * 1e9 * share)
        per_layer += LAYER_SECONDS_TP if tensor_parallel > 1 else 0
    else:  # layers split over the cards run one after the other
        moving = read / (gpu.bandwidth * 1e9 * GGUF_GPU_EFFICIENCY)
    launching = layers * per_layer
    limit = f"memory bandwidth of the {gpu.name}, {gpu.bandwidth:,.0f} GB/s"
    if launching > moving:
        limit = "the launch of each layer's kernels, not the card's bandwidth"
    return {
        "decode_tokens_per_second_1": round(1 / (moving + launching), 1),
        "limited_by": limit,
    }
