"""Sentences that more than one part of the planner says."""

from __future__ import annotations

from .units import gib, number

ENGINE_NAMES = {
    "llamacpp": "llama.cpp",
    "ollama": "Ollama",
    "vllm": "vLLM",
    "sglang": "SGLang",
}


def sentence_of_need(label, memory, tokens, budget_of):
    """'deepseek-r1-14b q4_k_m needs 10.9 GiB (...), the host has 8.0 GiB.'"""
    parts = [f"weights {gib(memory.weights)}"]
    if memory.activation:
        parts.append(f"compute {gib(memory.activation)}")
    parts.append(f"KV cache of {number(tokens)} tokens {gib(tokens * memory.kv_per_token)}")
    parts.append(f"other {gib(memory.graphs + memory.other)}")
    left = memory.kv_tokens
    room = f"; that leaves room for {number(left)} tokens" if left else ""
    return (
        f"{label} needs {gib(memory.total(tokens))} ({', '.join(parts)}), "
        f"{budget_of} {gib(memory.budget)}{room}."
    )
