"""The plan as a page a person reads."""

from __future__ import annotations

import textwrap

from .units import duration, gib
from .words import ENGINE_NAMES

_WIDTH = 96


def summary(plan):
    """Return the page as text."""
    rows = [("host", plan["host"])]
    if plan["fits"]:
        rows += _choice_rows(plan)
    else:
        rows.append(("fits", "no"))
        rows += [("why", problem) for problem in plan["problems"]]
    lines = [line for name, value in rows for line in _row(name, value)]
    if plan["reasons"]:
        lines += ["", "Why"]
        lines += [line for reason in plan["reasons"] for line in _wrapped(reason, "  - ")]
    if plan["alternatives"]:
        lines += ["", "What else would fit"]
        lines += [f"  {_alternative(one)}" for one in plan["alternatives"][:6]]
    return "\n".join(lines)


def _choice_rows(plan):
    held = plan.get("memory_per_gpu") or plan["memory"]
    each = " per GPU" if plan.get("memory_per_gpu") else ""
    yield "model", f"{plan['model']} {plan['precision']}"
    yield "engine", f"{ENGINE_NAMES[plan['engine']]} ({plan['runtime']})"
    yield "fits", "yes" if not plan["problems"] else "yes, but it cannot be deployed as it is"
    for problem in plan["problems"]:
        yield "problem", problem
    yield "context", f"{plan['max_model_len']:,} tokens x {plan['max_num_seqs']} requests at once"
    if plan["tensor_parallel_size"] * plan["pipeline_parallel_size"] > 1:
        yield (
            "parallel",
            f"tensor {plan['tensor_parallel_size']}, pipeline {plan['pipeline_parallel_size']}",
        )
    if plan["gpu_devices"]:
        yield "GPUs", ", ".join(plan["gpu_devices"])
    yield (
        "memory",
        f"{gib(held['total_bytes'])}{each}: weights {gib(held['weights_bytes'])}, KV cache "
        f"{gib(held['kv_cache_bytes'])} ({plan['kv_cache_dtype']}), rest "
        f"{gib(held['activation_bytes'] + held['cuda_graph_bytes'] + held['other_bytes'])}; "
        f"{gib(held['budget_bytes'])} may be used",
    )
    yield "speed", f"about {plan['estimate']['decode_tokens_per_second_1']:g} tokens/s for one user"
    if plan["download"]:
        found = plan["download"].get("from") or plan["download"]
        yield "download", f"{gib(found['bytes'])} from {found['source']}: {found['repository']}"
        if "from" in plan["download"]:
            took = duration(plan["download"]["seconds"])
            yield "quantize", f"about {took} on this host, when all is fetched"
        yield "disk", f"{gib(plan['disk_bytes'])} to be free under data_path"


def _row(name, value):
    return _wrapped(value, f"{name:<10}")


def _wrapped(text, first):
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _alternative(one):
    score = f"AIME {one['aime_2024']:g}" if one["aime_2024"] else "no AIME score"
    return (
        f"{one['model'] + ' ' + one['precision']:<28}{one['max_model_len']:>9,} tokens  "
        f"{gib(one['memory_bytes']):>9}  {one['decode_tokens_per_second_1']:>6g} tokens/s  {score}"
    )
