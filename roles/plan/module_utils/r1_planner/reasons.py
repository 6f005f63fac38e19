"""The plan in sentences: why this, why not the rest, what to do."""

from __future__ import annotations

from .units import duration, gib, number
from .words import ENGINE_NAMES


def of_quantizing(chosen, download):
    """One sentence on a GGUF file that no source has."""
    importance = " with an importance matrix" if download["imatrix"] else ""
    return (
        f"source: no hub has {chosen.label}, so it is made on the host{importance} from "
        f"{download['from']['precision']} ({gib(download['from']['bytes'])}), and used when its "
        f"perplexity is near enough to that one's. That takes about "
        f"{duration(download['seconds'])} when all is fetched; an estimate (docs/quantize.md)."
    )


def of_choice(found, wishes, fallback):
    """Sentences for the model, its precision, context, memory and speed."""
    held, model = found.memory, found.model
    where = f"on each of {found.gpus} GPUs" if found.gpus > 1 else "on the GPU"
    where = where if found.gpus else "in RAM"
    if not fallback:
        yield f"model: {_why_model(found, wishes)}"
    yield f"precision: {_why_precision(found, wishes)}"
    at_once = (
        f"each of {found.sequences} requests at once" if found.sequences > 1 else "one request"
    )
    yield (f"context: {number(found.context)} tokens for {at_once}{_why_context(found, wishes)}.")
    yield (
        f"memory: {gib(held.total(found.tokens))} {where} (weights {gib(held.weights)}, "
        f"KV cache of {number(found.tokens)} tokens {gib(found.tokens * held.kv_per_token)}, "
        f"the rest {gib(held.activation + held.graphs + held.other)}) of {gib(held.budget)} that "
        f"may be used{_dropped(held)}."
    )
    if found.tensor_parallel * found.pipeline_parallel > 1:
        yield (
            f"parallel: tensor {found.tensor_parallel} (it must divide the model's "
            f"{model.shape.heads} heads), pipeline {found.pipeline_parallel} (one per host)."
        )
    yield (
        f"speed: about {found.tokens_per_second:g} tokens per second for one user, limited by "
        f"{found.speed['limited_by']}; an estimate, not a measurement."
    )


def of_faster(chosen, alternatives):
    """The same model in 4 bits, where vLLM then answers one user faster than in fp8."""
    if chosen.precision != "fp8":
        return
    for one in alternatives:
        speed = one["decode_tokens_per_second_1"]
        if (one["model"], one["precision"]) == (chosen.model.name, "awq") and (
            speed > 1.05 * chosen.tokens_per_second
        ):
            yield (
                f"speed: with precision awq one user would get about {speed:.0f} tokens per "
                "second; fp8 is nearer to the original, and faster for many users at once."
            )


def _dropped(held):
    if not held.droppable:
        return ""
    return f"; {gib(held.droppable)} more of the file's pages stay until the system needs the room"


def _why_model(found, wishes):
    score = f"AIME 2024 {found.model.aime:g}" if found.model.aime else "no AIME score known"
    if wishes.model != "auto":
        return f"{found.model.name} ({score}), as you set it."
    if found.slow:
        return (
            f"{found.model.name} ({score}), the fastest that fits: none decodes "
            f"{wishes.min_tokens_per_second:g} tokens per second here."
        )
    return f"{found.model.name} ({score}), the most able that fits and is fast enough."


def _why_precision(found, wishes):
    if wishes.precision != "auto":
        return f"{found.precision}, as you set it."
    if found.precision == "q4_k_m":
        return (
            "q4_k_m, the smallest and fastest of the GGUF files in use; q5_k_m and q8_0 are "
            "nearer to the original and slower (set precision)."
        )
    why = {
        "fp8": "half the bytes of bf16, so about twice the speed and more room for context",
        "bf16": "the original weights; the card has no fp8 and they fit",
        "awq": "4 bits per weight, the best that fits with enough context",
        "gptq": "4 bits per weight, the best that fits with enough context",
    }
    return f"{found.precision}: {why.get(found.precision, 'the one the catalogue has')}."


def _why_context(found, wishes):
    if wishes.max_model_len:
        return ", as you set it"
    if found.context == found.model.max_positions:
        return ", the most the model was made for"
    return f", for the goal '{wishes.goal}'"


def of_fallback(chosen, fallback, why):
    return (
        f"NO MODEL SOURCE ANSWERS: {chosen.label} would be deployed here, but {why}. "
        f"So the built-in test model {fallback} is deployed instead: it shows that everything "
        "works and knows nine answers. Run again when a source answers."
    )


def no_source(found, why, bundle):
    if bundle:
        held = ", ".join(sorted(bundle["models"])) or "none but tiny-r1, which the project ships"
        return (
            f"model: {why}, {found.label}. Fix: make the bundle anew with this host's settings "
            f"(playbooks/bundle.yml), or set model and precision to what it holds: {held}."
        )
    return (
        f"model: no source has {found.label}: {why}. Fix: set modelscope_endpoint, "
        "huggingface_endpoint or ollama_registry to a mirror that the host reaches, or bring the "
        f"file and name it: models: {{my-model: {{path: /FOLDER/FILE.gguf, precision: q4_k_m, "
        "bytes: SIZE}}, model: my-model."
    )


def of_other_engine(choice, chosen):
    """Why an engine that comes first in the order was not taken."""
    name = ENGINE_NAMES[choice.shown.engine]
    if choice.top is None:
        return f"engine: not {name}: {choice.shown.why_not}"
    return (
        f"engine: {ENGINE_NAMES[chosen.engine]}, not {name}, because the most able that {name} "
        f"could serve here is {choice.top.label} (AIME 2024 {choice.top.model.aime or 0:g})."
    )


def of_rejections(choice, chosen, models, wishes, hardware):
    """One sentence for every model that was not taken, and for the chosen one's precisions
    that were tried before. `chosen` may be the fallback, which is no part of the choice."""
    score = chosen.model.aime if chosen else None
    for found in choice.considered:
        if chosen is not None and found.model.name == chosen.model.name:
            continue
        if found.why_not or found.slow:
            yield f"rejected: {found.why_not or found.slow}"
        elif score:
            yield (
                f"rejected: {found.label} fits, but scores {found.model.aime or 0:g} in AIME 2024 "
                f"against {score:g}."
            )
    for found in choice.rejected:
        yield f"rejected: {found.why_not or found.slow}"
    if wishes.model == "auto":
        for model in models.values():
            if not model.auto and (chosen is None or model.name != chosen.model.name):
                yield f"rejected: {model.name}: {model.auto_reason}."


def of_misfit(found, largest, wishes):
    """Why what was asked for does not fit, in figures, and what would."""
    would = ["nothing in the catalogue would fit"]
    if largest is not None:
        would = [
            f"the most able that would fit is {largest.label} with {ENGINE_NAMES[largest.engine]} "
            f"and a context of {number(largest.context)} tokens"
        ]
    if found.memory and wishes.max_model_len:
        room = found.memory.kv_tokens
        room = room if found.utilization else room // max(1, found.sequences)
        if room:
            would.insert(0, f"max_model_len of at most {number(min(room, wishes.max_model_len))}")
    return f"model: {found.why_not} Instead: {'; or '.join(would)}."


def of_no_fit(hardware, smallest):
    return f"model: nothing fits {hardware.words}. The smallest: {smallest.why_not}"


def of_busy(hardware):
    """What others hold, where it would fit without them."""
    return (
        f"It would fit if nobody else used the GPUs: {'; '.join(hardware.busy)}. Fix: stop what "
        "uses them, set gpus to other cards, or wait until it ends."
    )


def not_deployable(setting, value, known):
    name = ENGINE_NAMES.get(value, value)
    return (
        f"{setting}: this version can plan for {name} but not deploy it; "
        f"set {setting} to auto or one of {', '.join(map(str, known))}."
    )


_MANAGERS = {
    "systemd": "systemd runs the services",
    "none": "a supervisor runs the services, for the host has no systemd",
    "": "systemd runs the services where the host has it, else a supervisor",
}


def runtime(chosen, asked, init):
    """Who starts the services; init is what the host was seen to run, empty where none looked."""
    if chosen == "compose":
        return "runtime: compose, as set; Docker runs each service in a container."
    why = "as set" if asked == chosen else "auto takes it, since it needs neither Docker nor images"
    return f"runtime: native, {why}; {_MANAGERS[init]}."


def alternative(found):
    """What else would fit, with what it would give."""
    held = found.memory
    return {
        "model": found.model.name,
        "precision": found.precision,
        "engine": found.engine,
        "max_model_len": found.context,
        "max_num_seqs": found.sequences,
        "memory_bytes": held.total(found.tokens),
        "aime_2024": found.model.aime,
        "decode_tokens_per_second_1": found.tokens_per_second,
    }
