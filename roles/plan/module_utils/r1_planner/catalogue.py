"""The models as objects; entries of the user's own are merged over the project's and checked."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from .shapes import Shape, shape_from
from .units import PlanError
from .weights import GGUF_PRECISIONS, PRECISIONS

SOURCES = ("bundled", "modelscope", "huggingface", "ollama", "http", "s3", "file")
# What is made on the host where no source has it, and from what. AWQ only where there is a GPU.
QUANTIZED_FROM, QUANTIZED = "bf16", (*GGUF_PRECISIONS, "fp8", "gptq", "awq")

_ENTRY_KEYS = (
    "title", "shape", "aime_2024", "auto", "auto_reason", "system_prompt", "forced_think",
    "kv_bytes_per_token", "pre_tokenizer", "precisions",
    # short form of an entry with one precision
    "precision", "path", "bytes", "sha256", "repository", "revision", "file", "source",
)  # fmt: skip
_PRECISION_KEYS = ("bytes", "loaded_bytes", "quantization", "sources")
_SOURCE_KEYS = ("source", "repository", "revision", "files", "path")
_SHORT = ("path", "sha256", "repository", "revision", "file", "source")


@dataclass(frozen=True)
class Model:
    name: str
    title: str
    shape: Shape | None
    precisions: dict
    aime: float | None = None
    auto: bool = True
    auto_reason: str = ""
    system_prompt: bool = False
    forced_think: bool = True
    kv_bytes_per_token: int = 0
    pre_tokenizer: str = ""  # llama.cpp's name for it, where its converter does not know it
    own: bool = field(default=False)

    @property
    def max_positions(self):
        return self.shape.max_position_embeddings if self.shape else 131072

    @property
    def largest_bytes(self):
        return max((entry.get("bytes") or 0) for entry in self.precisions.values())

    def with_made(self, precision, gpus):
        """The same with this precision, made on the host where no source has it."""
        makes = QUANTIZED_FROM in self.precisions and self.shape and precision in QUANTIZED
        if precision in self.precisions or not makes or (precision == "awq" and not gpus):
            return self
        made = {"sources": [{"source": "quantize", "from": QUANTIZED_FROM}]}
        return replace(self, precisions={**self.precisions, precision: made})


def nearest(value, known):
    """' Did you mean x?' for a name that is nearly one of known."""
    close = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def load(catalogue, own=None):
    """Return {name: Model} of the project's catalogue with the user's entries over it.

    Raises PlanError with every fault of every own entry.
    """
    if own is not None and not isinstance(own, dict):
        raise PlanError(f"models: {own!r} is not a mapping of model names to entries.")
    problems, found = [], {}
    entries = [(name, entry, False) for name, entry in catalogue.items()]
    entries += [(name, entry, True) for name, entry in (own or {}).items()]
    for name, entry, is_own in entries:
        try:
            if is_own and name in catalogue and isinstance(entry, dict):
                entry = {**catalogue[name], **entry}
                entry["precisions"] = {
                    **catalogue[name]["precisions"],
                    **(own[name].get("precisions") or {}),
                }
            found[name] = _model(name, entry, is_own and name not in catalogue)
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(problems)
    return found


def _model(name, entry, own):
    where = f"models.{name}"
    if not isinstance(entry, dict):
        raise PlanError(
            f"{where}: {entry!r} is not a mapping with 'shape' or 'bytes' and a source."
        )
    problems = [
        f"{where}.{key}: unknown key.{nearest(key, _ENTRY_KEYS)}"
        for key in entry
        if key not in _ENTRY_KEYS
    ]
    shape = None
    if entry.get("shape"):
        try:
            shape = shape_from(entry["shape"], where)
        except PlanError as error:
            problems += error.problems
    precisions = dict(entry.get("precisions") or {})
    if any(entry.get(key) for key in (*_SHORT, "bytes")):
        precisions[str(entry.get("precision", "q4_k_m"))] = _short_form(entry)
    problems += _faults(where, entry, precisions)
    if not problems:
        precisions = {key: one_hub_each(data) for key, data in precisions.items()}
    if problems:
        raise PlanError(problems)
    return Model(
        name=name,
        title=entry.get("title", name),
        shape=shape,
        precisions=precisions,
        aime=entry.get("aime_2024"),
        auto=bool(entry.get("auto", not own)),
        auto_reason=entry.get("auto_reason", "an entry of your own is used when you name it"),
        system_prompt=bool(entry.get("system_prompt", False)),
        forced_think=bool(entry.get("forced_think", True)),
        kv_bytes_per_token=int(entry.get("kv_bytes_per_token", 0)),
        pre_tokenizer=str(entry.get("pre_tokenizer") or ""),
        own=own,
    )


def _short_form(entry):
    """One precision written straight into the entry: path or repository, bytes, sha256."""
    kind = entry.get("source") or ("file" if entry.get("path") else "huggingface")
    source = {"source": kind, "revision": entry.get("revision"), "files": []}
    if entry.get("path"):
        source["path"] = entry["path"]
    if entry.get("repository"):
        source["repository"] = entry["repository"]
    name = entry.get("file") or str(entry.get("path", "")).rsplit("/", 1)[-1]
    if name:
        source["files"] = [
            {"path": name, "bytes": entry.get("bytes"), "sha256": entry.get("sha256")}
        ]
    return {"bytes": entry.get("bytes"), "sources": [source]}


def one_hub_each(data):
    """A source that names several hubs becomes one source for each."""
    sources = [{**source, "source": hub} for source in data["sources"] for hub in _hubs(source)]
    return {**data, "sources": sources}


def _hubs(source):
    named = source.get("source") if isinstance(source, dict) else None
    return named if isinstance(named, list) else [named]


def _is_base_url(url):
    parts = urlsplit(str(url or ""))
    plain = not (parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


def _is_s3_folder(url):
    return bool(re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]*[a-z0-9](/[^\s?#]*)?", str(url or "")))


def _faults(where, entry, precisions):
    if not precisions:
        yield (
            f"{where}: says nowhere what to load; give 'path: /FOLDER/FILE.gguf' with 'bytes', "
            "or 'repository' and 'file', or 'precisions'."
        )
    for precision, data in precisions.items():
        here = f"{where}.precisions.{precision}"
        if precision not in PRECISIONS:
            yield f"{here}: unknown precision; known: {', '.join(PRECISIONS)}."
            continue
        if not isinstance(data, dict):
            yield f"{here}: {data!r} is not a mapping with 'sources'."
            continue
        size = data.get("bytes")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            yield f"{here}.bytes: {size!r} is not the file's size in bytes."
        if not size and not entry.get("shape"):
            yield (
                f"{here}: its memory cannot be known; give 'bytes' (the size of the file) "
                "or 'shape' (from config.json)."
            )
        for key in data:
            if key not in _PRECISION_KEYS:
                yield f"{here}.{key}: unknown key.{nearest(key, _PRECISION_KEYS)}"
        yield from _source_faults(here, data.get("sources"))


def _source_faults(here, sources):
    if not sources or not isinstance(sources, list):
        yield f"{here}.sources: is empty; give 'path' or 'repository'."
        return
    for source in sources:
        if not set(_hubs(source)) <= set(SOURCES):
            yield f"{here}.sources: {source!r} needs 'source', one of {', '.join(SOURCES)}."
        elif not source.get("path") and not source.get("repository"):
            yield f"{here}.sources: {source['source']} needs 'path' or 'repository'."
        elif "http" in _hubs(source) and not _is_base_url(source.get("repository")):
            shown = str(source.get("repository")).rsplit("@", 1)[-1]  # no password in a log
            yield (
                f"{here}.sources: repository '{shown}' of source http is not the https:// URL of "
                "the folder that holds the files; give it whole, without a user, '?' or '#'."
            )
        elif "s3" in _hubs(source) and not _is_s3_folder(source.get("repository")):
            yield (
                f"{here}.sources: repository '{source.get('repository')}' of source s3 is not "
                "s3://BUCKET/FOLDER; the store's address goes into s3_endpoint."
            )
        else:
            for key in source:
                if key not in _SOURCE_KEYS:
                    yield f"{here}.sources.{key}: unknown key.{nearest(key, _SOURCE_KEYS)}"
