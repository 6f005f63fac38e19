"""A model's tensors from the figures of its config.json."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .units import PlanError


@dataclass(frozen=True)
class Shape:
    """Architecture figures; names follow config.json, shortened.

    MLA (DeepSeek-V3 family) is told by kv_lora > 0, a mixture of experts by experts > 0.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    head_dim: int = 128
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    max_position_embeddings: int = 131072
    q_lora: int = 0
    kv_lora: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    v_dim: int = 0
    experts: int = 0
    experts_active: int = 0
    experts_shared: int = 0
    expert_ffn: int = 0
    dense_layers: int = 0

    @property
    def mla(self):
        return self.kv_lora > 0

    @property
    def qkv_width(self):
        return (self.heads + 2 * self.kv_heads) * self.head_dim


def shape_from(entry, where):
    """Return the Shape of a catalogue entry's `shape`; PlanError names what is wrong."""
    known = {field.name: field for field in fields(Shape)}
    problems = []
    for key, value in entry.items():
        if key not in known:
            problems.append(f"{where}.shape: unknown key '{key}'; known: {', '.join(known)}.")
        elif known[key].type in ("int", int) and (
            isinstance(value, bool) or not isinstance(value, int) or value < 0
        ):
            problems.append(f"{where}.shape.{key}: {value!r} is not a whole number of at least 0.")
    for key in ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab"):
        if not entry.get(key):
            problems.append(f"{where}.shape: '{key}' is missing; take it from config.json.")
    if problems:
        raise PlanError(problems)
    return Shape(**entry)


def tensors(shape):
    """Yield (kind, layer, elements) for every tensor.

    Kinds: embed, head, norm (norms and biases, kept in high precision), attn (q, k, o
    and MLA's projections), attn_v, ffn (gate and up), ffn_down, router. Layer is None
    outside the layers. The sum over all is the parameter count.
    """
    width = shape.hidden
    yield "embed", None, shape.vocab * width
    if not shape.tied:
        yield "head", None, shape.vocab * width
    yield "norm", None, width
    for layer in range(shape.layers):
        yield "norm", layer, 2 * width
        yield from _attention(shape, layer)
        yield from _feed_forward(shape, layer)


def _attention(shape, layer):
    width = shape.hidden
    if shape.mla:
        qk_dim = shape.nope_dim + shape.rope_dim
        yield "norm", layer, shape.q_lora + shape.kv_lora
        yield "attn", layer, width * shape.q_lora + shape.q_lora * shape.heads * qk_dim
        yield "attn", layer, width * (shape.kv_lora + shape.rope_dim)
        yield "attn", layer, shape.kv_lora * shape.heads * (shape.nope_dim + shape.v_dim)
        yield "attn", layer, shape.heads * shape.v_dim * width
        return
    kv_width = shape.kv_heads * shape.head_dim
    yield "attn", layer, 2 * width * shape.heads * shape.head_dim + width * kv_width
    yield "attn_v", layer, width * kv_width
    if shape.qkv_bias:
        yield "norm", layer, shape.qkv_width
    if shape.qk_norm:
        yield "norm", layer, 2 * shape.head_dim


def _feed_forward(shape, layer):
    width = shape.hidden
    if not shape.experts or layer < shape.dense_layers:
        yield "ffn", layer, 2 * width * shape.ffn
        yield "ffn_down", layer, width * shape.ffn
        return
    count = shape.experts + shape.experts_shared
    yield "router", layer, (width + 1) * shape.experts
    yield "ffn", layer, 2 * width * shape.expert_ffn * count
    yield "ffn_down", layer, width * shape.expert_ffn * count


def parameters(shape):
    """Number of parameters."""
    return sum(elements for _kind, _layer, elements in tensors(shape))


def active_share(shape):
    """Share of the weights that one token reads: 1 for dense models (the row it looks up
    in the embedding is not worth counting, so the embedding is left out)."""
    read = total = 0
    for kind, layer, elements in tensors(shape):
        total += elements
        if kind == "embed" and not shape.tied:
            continue
        if kind.startswith("ffn") and shape.experts and layer >= shape.dense_layers:
            count = shape.experts + shape.experts_shared
            elements = elements * (shape.experts_active + shape.experts_shared) // count
        read += elements
    return read / total
