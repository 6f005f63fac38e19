"""One combination of engine, model and precision on one host: does it fit, with what?"""

from __future__ import annotations

from dataclasses import dataclass

from . import cards, fit_llama, fit_vllm, weights
from .memory import Memory
from .words import ENGINE_NAMES

GGUF_ENGINES = ("llamacpp", "ollama")


@dataclass(frozen=True)
class Candidate:
    model: object
    engine: str
    precision: str
    why_not: str = ""  # a sentence when it does not fit
    memory: Memory | None = None
    tokens: int = 0  # KV cache
    context: int = 0
    sequences: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    gpus: int = 0
    utilization: float | None = None
    kv_cache_bytes: int | None = None  # what vLLM is told outright
    kv_dtype: str = "f16"
    eager: bool = False
    batched_tokens: int = 0
    speed: dict | None = None
    slow: str = ""  # a sentence when it fits but decodes slower than is usable

    @property
    def fits(self):
        return not self.why_not

    @property
    def label(self):
        return f"{self.model.name} {self.precision}"

    @property
    def tokens_per_second(self):
        return self.speed["decode_tokens_per_second_1"] if self.speed else 0


def evaluate(model, engine, precision, hardware, wishes):
    """Return the Candidate of one combination."""
    refusal = _impossible(model, engine, precision, hardware, wishes)
    if refusal:
        return Candidate(model, engine, precision, why_not=refusal)
    fit = fit_llama.fit if engine in GGUF_ENGINES else fit_vllm.fit
    found = Candidate(model, engine, precision, **fit(model, engine, precision, hardware, wishes))
    if found.fits and found.tokens_per_second < wishes.min_tokens_per_second:
        slow = (
            f"{found.label} fits but would decode about {found.tokens_per_second:g} tokens per "
            f"second for one user, below the {wishes.min_tokens_per_second:g} that make a model "
            f"which thinks first usable (limited by {found.speed['limited_by']})."
        )
        return Candidate(**{**found.__dict__, "slow": slow})
    return found


def _impossible(model, engine, precision, hardware, wishes):
    """A sentence when the combination cannot work whatever the memory."""
    label, name = f"{model.name} {precision}", ENGINE_NAMES[engine]
    if precision not in model.precisions:
        have = ", ".join(model.precisions)
        return f"{label}: the catalogue has no such checkpoint; it has {have}."
    if weights.is_gguf(precision) != (engine in GGUF_ENGINES):
        kind = "GGUF files" if engine in GGUF_ENGINES else "safetensors checkpoints"
        return f"{label} is not for {name}, which loads {kind}."
    if engine not in GGUF_ENGINES and model.shape is None:
        return f"{label}: {name} needs the model's 'shape' (from config.json) to be planned."
    if not hardware.gpus:
        if engine == "sglang":
            return f"{label}: {name} needs an NVIDIA GPU and the host has none."
        if engine == "vllm" and precision != "bf16":
            return f"{label}: without a GPU {name} is given bf16; set precision to bf16."
        if hardware.nodes > 1:
            return f"{label}: {name} does not serve one model from several hosts."
        return ""
    if engine in GGUF_ENGINES and hardware.nodes > 1:
        return f"{label}: {name} does not serve one model from several hosts."
    gpu = hardware.gpus[0]
    if gpu.is_slice and engine == "llamacpp":
        return (
            f"{label}: {name}'s program reaches GPUs through Vulkan, which knows no MIG slices; "
            "set engine to ollama, or turn MIG off."
        )
    for what, needs in (
        (name, cards.ENGINE_NEEDS[engine]),
        (precision, cards.NEEDS.get(precision, 0)),
        ("an fp8 KV cache", cards.KV_FP8_NEEDS if wishes.kv_cache_dtype.startswith("fp8") else 0),
    ):
        if gpu.capability < needs:
            return (
                f"{label}: {what} needs compute capability {needs}, "
                f"the {gpu.name} has {gpu.capability}."
            )
    return ""
