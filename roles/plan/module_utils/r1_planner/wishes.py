"""The settings a plan follows, checked: names, numbers, and what they must be."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from .catalogue import nearest
from .units import PlanError, whole
from .weights import PRECISIONS

ENGINES = ("auto", "ollama", "vllm", "llamacpp", "sglang")
# What this version can put on a host. Plans for the others are made, deploys refused.
DEPLOYABLE_ENGINES = ("llamacpp", "ollama", "vllm")
RUNTIMES = ("auto", "compose", "native")
DEPLOYABLE_RUNTIMES = ("native", "compose")
GOALS = ("balanced", "latency", "throughput", "context")
KV_CACHE_DTYPES = (
    "auto", "f16", "bf16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2",
    "q8_0", "q5_1", "q5_0", "q4_1", "q4_0",
)  # fmt: skip
HUBS = ("modelscope", "huggingface", "ollama")

_CHOICES = {
    "engine": ENGINES,
    "runtime": RUNTIMES,
    "goal": GOALS,
    "precision": ("auto", *PRECISIONS),
    "kv_cache_dtype": KV_CACHE_DTYPES,
}
_WHOLE = {
    "max_model_len": 256,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 64,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
}


@dataclass(frozen=True)
class Wishes:
    """None in a number means auto."""

    engine: str = "auto"
    runtime: str = "auto"
    model: str = "auto"
    precision: str = "auto"
    goal: str = "balanced"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_dtype: str = "auto"
    enforce_eager: bool | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    model_sources: tuple = ("modelscope", "huggingface")
    bundle: dict = field(default_factory=dict)  # {path, models: {MODEL/PRECISION: files}}
    engines_refused: dict = field(default_factory=dict)  # {engine: what its driver lacks}
    min_context: int = 0  # 0: by hardware, see fit_llama
    min_tokens_per_second: float = 8
    memory_reserve_mib: int = 1024
    quantize_minutes: int = 720  # the most that making a model may take
    imatrix: bool = False  # whether GGUF is made with an importance matrix
    calibration: str = ""  # a text of the user's own for that, gptq and awq
    prompt_cache_mib: int = 256  # llama-server's cache of earlier prompts, in host memory


def _is_auto(value):
    return value is None or str(value).strip().lower() in ("", "auto")


def wishes_from(settings, models):
    """Return Wishes from plain settings; PlanError lists every fault."""
    problems, given = [], {}
    known = {entry.name for entry in fields(Wishes)}
    for key, value in settings.items():
        if key not in known:
            continue
        if key in _CHOICES:
            given[key] = _choice(key, value, _CHOICES[key], problems)
        elif key in _WHOLE:
            given[key] = None if _is_auto(value) else _whole(key, value, _WHOLE[key], problems)
        elif key not in ("gpu_memory_utilization", "enforce_eager", "model", "model_sources"):
            given[key] = value
    given["model"] = _choice("model", settings.get("model"), ("auto", *models), problems)
    given["gpu_memory_utilization"] = _share(settings.get("gpu_memory_utilization"), problems)
    given["enforce_eager"] = _flag(settings.get("enforce_eager"), problems)
    if settings.get("model_sources"):
        given["model_sources"] = _hubs(settings["model_sources"], problems)
    if problems:
        raise PlanError(problems)
    return Wishes(**given)


def _choice(key, value, choices, problems):
    text = "auto" if value is None else str(value)
    if text not in choices:
        more = " A model of your own goes into 'models'." if key == "model" else ""
        problems.append(
            f"{key}: '{text}' is not known.{nearest(text, choices)} "
            f"Known: {', '.join(choices)}.{more}"
        )
    return text


def _whole(key, value, least, problems):
    number = whole(value, least)
    if number is None:
        problems.append(f"{key}: {value!r} is not 'auto' or a whole number of at least {least}.")
    return number


def _share(value, problems):
    if _is_auto(value):
        return None
    try:
        share = float(str(value))
    except ValueError:
        share = 0.0
    if not 0.05 <= share <= 0.99:
        problems.append(
            f"gpu_memory_utilization: {value!r} is not 'auto' or a share from 0.05 to 0.99."
        )
        return None
    return share


def _flag(value, problems):
    if _is_auto(value):
        return None
    text = str(value).lower()
    if text not in ("true", "false", "yes", "no"):
        problems.append(f"enforce_eager: {value!r} is not 'auto', true or false.")
    return text in ("true", "yes")


def _hubs(value, problems):
    hubs = value if isinstance(value, (list, tuple)) else str(value).split(",")
    hubs = tuple(str(hub).strip() for hub in hubs)
    for hub in hubs:
        if hub not in HUBS:
            problems.append(
                f"model_sources: '{hub}' is not known.{nearest(hub, HUBS)} "
                f"Known: {', '.join(HUBS)}."
            )
    return hubs
