"""Where a model's files come from: the first source that carries it and answers."""

from __future__ import annotations

from . import weights

HUB_NAMES = {
    "modelscope": "ModelScope",
    "huggingface": "Hugging Face",
    "ollama": "Ollama library",
    "http": "a web folder",
    "s3": "an S3 store",
}
_OWN = ("http", "s3")
_LOCAL = ("bundled", "file")  # bundled: it ships with the project
# What a model is quantized with (roles/model/files/requirements-quantize.in): whether to GGUF.
_QUANTIZERS = {True: "llama.cpp-b10434", False: "llmcompressor-0.14.0.1"}
_DISK_MARGIN = 512 * 1024 * 1024
# RAM to quantize, times the checkpoint: it is read into memory to be compared with the result;
# llmcompressor holds more beside it. Measured on 1.5B: 5.5 and 6.3 GB (docs/quantize.md).
_RAM_TIMES, _RAM_MARGIN = {True: 1, False: 1.5}, 1024**3


def folder(model, precision):
    """The model's folder under data_path/models."""
    return f"{model.name}/{precision}"


def order(engine, wishes, answers):
    """Sources in the order to ask, a folder of your own that an entry names first. Ollama asks its
    own library before the hubs; llama.cpp takes the library's GGUF last; the other engines cannot
    use it. Of the library, only one that was looked at (or, when nothing was looked at, any)."""
    hubs = [hub for hub in wishes.model_sources if hub != "ollama"]
    if engine in ("vllm", "sglang") or not (answers is None or "ollama" in answers):
        return [*_OWN, *hubs]
    return [*_OWN, "ollama", *hubs] if engine == "ollama" else [*_OWN, *hubs, "ollama"]


def find(model, precision, engine, wishes, answers, present):
    """Return (download, errors). Download is None when nothing that carries the model
    answers and its files are not on the host; errors name each hub, URL and error.

    `answers` is inspect's sources, None when nothing was looked at (all are taken to
    answer). Files already on the host need no hub: then the first hub that answers, else
    the first, is named.
    """
    data = model.precisions[precision]
    listed = {source["source"]: source for source in data["sources"]}
    if wishes.bundle and "bundled" not in listed:
        given = from_bundle(model, precision, wishes.bundle)
        error = f"the bundle {wishes.bundle['path']} does not hold it"
        return given, [] if given else [error]
    if "quantize" in listed:
        made_from = listed["quantize"]["from"]
        given, errors = find(model, made_from, engine, wishes, answers, present)
        if not given and folder(model, precision) in present:
            given, _errors = find(model, made_from, engine, wishes, None, present)
        return given and _quantized(model, precision, given, made_from), errors
    for kind in _LOCAL:
        if kind in listed:
            return {**download_of(model, precision, listed[kind]), "alternatives": []}, []
    errors, able = [], []
    carrying = [hub for hub in order(engine, wishes, answers) if hub in listed]
    for hub in carrying:
        state = (answers or {}).get(hub, {"answers": True})
        if state.get("answers"):
            able.append(listed[hub])
            continue
        error = str(state.get("error") or "no answer").rstrip(". ")
        errors.append(f"{HUB_NAMES[hub]} at {state.get('url')} does not answer: {error}")
    if not able and folder(model, precision) in present:
        able = [listed[hub] for hub in carrying][:1]
    if able:
        first, *others = [download_of(model, precision, source) for source in able]
        return {**first, "alternatives": others}, errors
    if not carrying:
        hubs = ", ".join(HUB_NAMES[hub] for hub in listed) or "no hub"
        errors.append(f"only {hubs} carries it, and model_sources does not list that")
    return None, errors


def first(model, precision, wishes):
    """The download that is looked at before any source was asked."""
    given = wishes.bundle and from_bundle(model, precision, wishes.bundle)
    return given or download_of(model, precision, model.precisions[precision]["sources"][0])


def from_bundle(model, precision, bundle):
    """The download of what a bundle holds; None where it holds other models."""
    files = bundle["models"].get(folder(model, precision))
    return files and {
        "source": "file",
        "repository": f"{bundle['path']}/models/{folder(model, precision)}",
        "revision": None,
        "files": files,
        "bytes": sum(file["bytes"] for file in files),
        "alternatives": [],
    }


def download_of(model, precision, source):
    """What the plan says about one source."""
    if source["source"] == "quantize":
        made_from = source["from"]
        given = download_of(model, made_from, model.precisions[made_from]["sources"][0])
        return _quantized(model, precision, given, made_from)
    files = [
        {"path": item["path"], "bytes": item.get("bytes"), "sha256": item.get("sha256")}
        for item in source.get("files") or []
    ]
    known = [item["bytes"] for item in files if item["bytes"]]
    size = sum(known) if files and len(known) == len(files) else None
    return {
        "source": source["source"],
        "repository": source.get("repository") or source.get("path"),
        "revision": source.get("revision"),
        "files": files,
        "bytes": size or weights.file_bytes(model, precision),
    }


def _quantized(model, precision, given, made_from):
    """The download of what is made on the host from another precision's download."""
    one_file = weights.is_gguf(precision)
    path = f"{model.name}-{precision}.gguf" if one_file else "config.json"
    return {
        "source": "quantize",
        "repository": given["repository"],
        "revision": f"{given['revision'] or 'first'}, {_QUANTIZERS[one_file]}",
        "files": [{"path": path, "bytes": None, "sha256": None}],
        "bytes": weights.file_bytes(model, precision),
        "from": {**given, "precision": made_from},
        "memory_bytes": int(given["bytes"] * _RAM_TIMES[one_file]) + _RAM_MARGIN,
        "pre_tokenizer": model.pre_tokenizer,
        "alternatives": [],
    }


def disk_bytes(download, engine):
    """Disk to keep free: the files, 5 % and 512 MiB. Ollama links GGUF files, converts others. To
    quantize takes the checkpoint and the same as one 16-bit file, beside the result."""
    if download["source"] == "quantize":
        size = download["bytes"] + 2 * download["from"]["bytes"]
        return int(size * 1.05) + _DISK_MARGIN
    linked = all(item["path"].endswith(".gguf") for item in download["files"])
    copies = 2 if engine == "ollama" and not linked else 1
    return int(download["bytes"] * copies * 1.05) + _DISK_MARGIN
