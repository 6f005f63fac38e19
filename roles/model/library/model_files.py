#!/usr/bin/python
"""Bring one model's files to this host, whole and checked, or leave nothing behind."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: model_files
short_description: Fetch a model's files, check them, keep them
description:
  - Leaves C(root/model/precision) with the files and a C(.complete) marker, or nothing under
    that name. Half-fetched data waits in C(.PRECISION.partial) beside it and is resumed.
  - Sources are tried in the order given. A file that one source delivered is not fetched
    again from the next.
  - Every file is checked against its pinned SHA-256, else against the hash the hub names, and
    is held to that hash from then on.
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
options:
  root:
    description: Folder that holds all models.
    type: path
    required: true
  model:
    description: Name of the model, and of its folder.
    type: str
    required: true
  precision:
    description: Precision, and name of the folder inside the model's.
    type: str
    required: true
  download:
    description: >
      What to fetch: C(source) (bundled, file, http, s3, huggingface, modelscope, ollama, quantize),
      C(repository), C(revision), C(files) (list of C(path), C(bytes), C(sha256); a path may be a
      pattern where the source has a list; no files means all) and C(alternatives), a list of the
      same, tried when the first does not deliver. Of a C(file) source the repository is the
      absolute path of the file or folder; of C(http) it is the URL of the folder, whose
      C(SHA256SUMS), if there is one, lists the files that carry no C(sha256) here; of C(s3) it is
      C(s3://BUCKET/FOLDER), with the same list. Of C(quantize)
      there is also C(from), a dict of the same with its C(precision): the checkpoint, which is
      brought first and goes again where it was brought for this alone; C(bytes) of the result,
      C(memory_bytes) and C(seconds) that it takes to make it, C(imatrix), and C(pre_tokenizer).
    type: dict
    required: true
  verify:
    description: Read all files again and compare their hashes, not just sizes and times.
    type: bool
    default: false
  shipped:
    description: Folder of the bundled models. The action plugin fills it in.
    type: path
  max_perplexity_ratio:
    description: >
      How much more perplexity a quantized model may have than its checkpoint; 0 is a value for
      each precision.
    type: float
    default: 0
  keep_quantizer:
    description: Keep the environment of 5 GB that quantizes, for the next model.
    type: bool
    default: false
  quantizer:
    description: >
      C(program) that quantizes, C(text) to compare by and C(calibration). The action plugin fills
      it in.
    type: dict
    default: {}
  staged:
    description: >
      Files that the action plugin has carried to this host: path on the controller to path here.
    type: dict
    default: {}
  defer:
    description: Do not start anything that takes long; answer C(deferred=true) instead.
    type: bool
    default: false
  list_only:
    description: >
      Keep nothing, answer C(revision) and C(files) as the first source lists them. Files whose
      SHA-256 it does not name (small ones) are fetched for that and thrown away.
    type: bool
    default: false
  site:
    description: >
      Another host that has the model, asked before all other sources: C(url) and C(of), as
      M(model_share) gives them. The model counts as fetched from where that host has it from.
    type: dict
    default: {}
  site_token:
    description: The token that the other host wants to see. Handed to the client through a pipe.
    type: str
    default: ""
  stall_seconds:
    description: A source that brings less than 64 KiB in so many seconds is asked anew.
    type: int
    default: 60
  connections:
    description: Files, or pieces of large ones, that are fetched at once.
    type: int
    default: 4
  piece_bytes:
    description: A file of more bytes is fetched in pieces of so many, side by side.
    type: int
    default: 268435456
  max_rate_mb_s:
    description: Megabytes a second that all sources together may bring; 0 is no limit.
    type: float
    default: 0
  huggingface_endpoint:
    description: Base URL of the Hugging Face hub or a mirror.
    type: str
    default: https://huggingface.co
  huggingface_token:
    description: Token for gated models. Handed to the client through a pipe.
    type: str
    default: ""
  modelscope_endpoint:
    description: Base URL of ModelScope.
    type: str
    default: https://www.modelscope.cn
  ollama_registry:
    description: Base URL of an Ollama registry.
    type: str
    default: https://registry.ollama.ai
  s3_endpoint:
    description: Base URL of an S3 store; empty is AWS.
    type: str
    default: ""
  s3_region:
    description: Region of the bucket.
    type: str
    default: us-east-1
  s3_access_key_id:
    description: Name of the key for buckets that are not public.
    type: str
    default: ""
  s3_secret_access_key:
    description: The key's secret. Handed to the client through a pipe.
    type: str
    default: ""
  hub_venv:
    description: Folder for the hubs' clients; one environment each, made when first needed.
    type: path
    default: /opt/deepseek-r1/hub
  client:
    description: The program that fetches. The action plugin fills it in.
    type: str
    default: ""
  requirements:
    description: Hashed requirements of each client, by source. The action plugin fills it in.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Fetch a model
  model_files:
    root: /var/lib/deepseek-r1/models
    model: deepseek-r1-1.5b
    precision: q4_k_m
    download:
      source: ollama
      repository: deepseek-r1
      revision: 1.5b
      files:
        - path: deepseek-r1-1.5b-q4_k_m.gguf
          bytes: 1117320512
          sha256: aabd4debf0c8f08881923f2c25fc0fdeed24435271c2b3e92c4af36704040dbc
"""

RETURN = r"""
model_path:
  description: The GGUF file (the first of a split one), else the folder of config.json.
  type: str
  returned: always
source:
  description: Where the files came from, or would come from.
  type: str
  returned: always
files:
  description: Files with path, bytes and sha256.
  type: list
  elements: dict
  returned: always
bytes_fetched:
  description: Bytes that this run brought to the host.
  type: int
  returned: when files were fetched
deferred:
  description: True when a long fetch is due and O(defer) kept this call from starting it.
  type: bool
  returned: when O(defer) is set
transfer:
  description: Paths on the controller that have to be carried to this host first.
  type: list
  elements: str
  returned: when needed
quality:
  description: >
    Of a model that was quantized here: C(perplexity), C(source_perplexity), C(bits_per_weight),
    C(answer), C(source_answer).
  type: dict
  returned: when the model was quantized here
progress:
  description: File that tells how far a running fetch is.
  type: str
  returned: when O(deferred) is true
"""

CHUNK = 1 << 20
PIECE = 256 << 20  # a larger file is fetched in pieces of this size, side by side
# Less than this in stall_seconds is no delivery.
TRICKLE = 1 << 16
TRIES = 3  # in a row without a new byte
# Local files below this are copied at once, without the detour of a background job.
SMALL = 256 << 20
HASHERS = 4
HUBS = ("huggingface", "modelscope")
CLIENTS = (*HUBS, "s3")  # those with a client of their own
LOCAL = ("bundled", "file")
SETTINGS = {
    "huggingface": "huggingface_endpoint",
    "modelscope": "modelscope_endpoint",
    "s3": "s3_endpoint",
    "ollama": "ollama_registry",
}
FICLONE = 0x40049409


class SourceFailed(Exception):
    """This source does not deliver; the next may."""


class Fatal(Exception):
    """No source can help."""


def megabytes(count):
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count:,} bytes"


def write_json(path, value):
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(0o644)
    temporary.replace(path)


def read_json(path, default):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


def stamp(path):
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def is_pattern(path):
    return any(sign in path for sign in "*?[")


def checked_path(path):
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "" in parts:
        raise Fatal(f"The path '{path}' of a model file leaves the model's folder.")
    return path


def label(source):
    source = source.get("of", source)
    revision = "@" + source["revision"] if source.get("revision") else ""
    return "{} {}{}".format(source["source"], source.get("repository") or "", revision)


def door(source):
    """Where the bytes come from; a host that shares is named itself, not its hub."""
    return "another host, " + source["repository"] if "of" in source else label(source)


def same_on_another_hub(source, marker):
    """The hubs carry each other's repositories: a hub that is down today changes nothing."""
    return {source["source"], marker["source"]} == set(HUBS) and all(
        source.get(key) == marker.get(key) for key in ("repository", "revision")
    )


def sums_in(text):
    """SHA-256 by path, of what sha256sum wrote."""
    pairs = [line.split(maxsplit=1) for line in text.splitlines()]
    return {
        pair[1].lstrip("*").removeprefix("./"): pair[0].lower() for pair in pairs if len(pair) == 2
    }


def available_memory():
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))


class Progress:
    """A small file that says how far and how fast we are, rewritten about once a second."""

    def __init__(self, path, now=time.monotonic):
        self.path, self.now, self.last = path, now, 0.0
        self.samples = []  # (time, bytes) of the last twenty seconds or so
        self.one_at_a_time = threading.Lock()
        self.state = {"phase": "starting", "source": "", "done": 0, "total": 0, "beat": 0}

    def tell(self, force=False, **state):
        with self.one_at_a_time:
            self.write(force, state)

    def write(self, force, state):
        self.state.update(state)
        now = self.now()
        if not force and now - self.last < 1:
            return
        self.last = now
        self.state["beat"] += 1
        self.state |= self.pace(now)
        try:
            new = self.path.with_name("progress.new")
            new.write_text(json.dumps(self.state), encoding="utf-8")
            new.replace(self.path)
        except OSError:
            return  # a full disk shows where it matters

    def pace(self, now):
        done, total = self.state["done"], self.state["total"]
        if self.state["phase"] != "fetching":
            self.samples = []
            return {"bytes_per_second": None, "seconds_left": None}
        self.samples = [*self.samples, (now, done)][-20:]
        (start, first), (end, last) = self.samples[0], self.samples[-1]
        if end <= start or last <= first:
            return {"bytes_per_second": None, "seconds_left": None}
        rate = (last - first) / (end - start)
        return {"bytes_per_second": round(rate), "seconds_left": round((total - done) / rate)}


class Stalled:
    """Whether a count of bytes has stood still, or nearly so, for too long."""

    def __init__(self, seconds):
        self.seconds, self.count, self.since = seconds, None, 0

    def __call__(self, count):
        now = time.monotonic()
        if self.count is None or count >= self.count + TRICKLE:
            self.count, self.since = count, now
        return now - self.since > self.seconds


class Fetch:
    def __init__(self, module, args=None):
        self.module = module
        self.args = args or module.params
        precision = self.args["precision"]
        root = module.tmpdir if self.args["list_only"] else self.args["root"]
        self.home = Path(root, self.args["model"])
        self.final = self.home / precision
        self.partial = self.home / f".{precision}.partial"
        self.old = self.home / f".{precision}.old"
        self.whole = self.partial / "model"
        self.raw = self.partial / "fetch"
        self.pins_path = self.home / ".pins.json"
        self.pins = read_json(self.pins_path, {})
        self.progress = Progress(self.partial / "progress.json")
        self.lock = self.revision = None
        self.fetched, self.quality = 0, None
        first = self.args["download"]
        self.sources = [first, *(first.get("alternatives") or [])]
        site = self.args.get("site") or {}
        if site.get("url"):
            about = {"source": "site", "repository": site["url"], "of": site["of"]}
            self.sources.insert(0, dict(about, files=site["of"]["files"]))
        self.verified, self.one_at_a_time = {}, threading.Lock()

    # What is there

    def marker(self):
        return read_json(self.final / ".complete", {})

    def good_files(self, marker):
        """Files of the final folder that are as they were when they were checked.

        A time that differs may come from a copy of the disk: then the hash decides.
        """
        good = {}
        for file in marker.get("files", []):
            path = self.final / file["path"]
            try:
                now = stamp(path)
                same = now["bytes"] == file["bytes"]
                if same and (self.args["verify"] or now["mtime_ns"] != file["mtime_ns"]):
                    self.progress.tell(phase="checking", total=file["bytes"], done=0)
                    same = self.sha256(path) == file["sha256"]
                file["mtime_ns"] = now["mtime_ns"]
            except OSError:
                same = False
            if same:
                good[file["path"]] = file
        return good

    def satisfied(self, marker, good):
        if not marker or len(good) != len(marker["files"]):
            return False
        return any(self.matches(source, marker, good) for source in self.sources)

    def matches(self, source, marker, good):
        same = label(source) == label(marker) or same_on_another_hub(source, marker)
        for file in self.wanted(source):
            if is_pattern(file["path"]):
                if not same or not fnmatch.filter(good, file["path"]):
                    return False
                continue
            have = good.get(file["path"])
            if have is None or (file.get("bytes") or have["bytes"]) != have["bytes"]:
                return False
            pin = file.get("sha256")
            if pin != have["sha256"] if pin else not same:
                return False
        if not same:
            return bool(source.get("files"))
        return not any(self.original_changed(source, file) for file in good.values())

    def original_changed(self, source, file):
        """A file of the user's own disk is not what it was when we copied it."""
        try:
            now = stamp(self.local_path(source, file["path"]))
        except OSError:
            return False  # it is gone; our copy is whole
        return now != file.get("origin", now)

    def wanted(self, source):
        return [dict(file, path=checked_path(file["path"])) for file in source.get("files") or []]

    def model_path(self, files):
        ggufs = sorted(path for path in files if path.endswith(".gguf"))
        configs = sorted((path for path in files if Path(path).name == "config.json"), key=len)
        if ggufs:
            return str(self.final / ggufs[0])
        return str((self.final / configs[0]).parent if configs else self.final)

    # One run

    def run(self):
        if self.args["list_only"]:
            return self.listing()
        marker = self.marker()
        good = self.good_files(marker)
        if self.satisfied(marker, good):
            if marker != self.marker() and not self.module.check_mode:
                write_json(self.final / ".complete", marker)  # new times, same bytes
            return self.result(marker, changed=False)
        if self.module.check_mode:
            return self.forecast(marker, good)
        deferred = {"deferred": True, "progress": str(self.progress.path), "changed": False}
        if self.args["defer"]:
            missing = self.carried_first()
            if missing:
                return {"transfer": missing, "changed": False}
            if self.takes_long() or not self.take_lock(wait=False):
                return deferred
        else:
            self.take_lock(wait=True)
        finished = self.finish_killed_run()
        marker = self.marker()
        good = self.good_files(marker)
        if self.satisfied(marker, good):
            return self.result(marker, changed=finished)
        self.prepare(marker, good)
        fetched = self.from_first_that_delivers()
        self.publish(fetched)
        return self.result(fetched, changed=True, before=marker)

    def noted(self, answer):
        """Write down which model the host is to serve: pruning leaves that one."""
        mark, name = Path(self.args["root"], ".deployed"), self.args["model"]
        text = f"{name}/{self.args['precision']}\n"
        if "source" not in answer or (mark.is_file() and mark.read_text() == text):
            return answer
        if not self.module.check_mode:
            new = mark.with_name(".deployed.new")
            new.write_text(text)
            new.replace(mark)
        return dict(answer, changed=True)

    def listing(self):
        source = self.sources[0]
        self.take_lock(wait=True)
        self.partial.mkdir()
        try:
            files = self.listed(source)
            unnamed = [file for file in files if not file.get("sha256")]
            self.require_room(unnamed)
            self.bring(source, unnamed, unnamed)
            for file in unnamed:
                file["sha256"] = self.sha256(self.raw_path(file))
        except SourceFailed as error:
            raise Fatal(f"{label(source)}: {error}") from error
        shown = [{key: file.get(key) for key in ("path", "bytes", "sha256")} for file in files]
        revision = self.revision or source.get("revision")
        return {"changed": False, "revision": revision, "files": shown}

    def finish_killed_run(self):
        """A run that died between its last two steps left all but the final name."""
        due = not self.final.exists() and (self.whole / ".complete").exists()
        if due:
            self.whole.rename(self.final)
            self.tidy()
        return due

    def tidy(self):
        shutil.rmtree(self.old, ignore_errors=True)
        shutil.rmtree(self.partial, ignore_errors=True)

    def carried_first(self):
        """Paths that only the controller has."""
        source = self.sources[0]
        if source["source"] == "quantize":
            inner = self.checkpoint(source)
            marker = inner.marker()
            whole = inner.satisfied(marker, inner.good_files(marker))
            return [] if whole else inner.carried_first()
        if source["source"] not in LOCAL:
            return []
        paths = [self.local_path(source, file["path"]) for file in self.wanted(source)]
        if source["source"] == "file" and not paths:
            paths = [Path(source["repository"])]
        return [str(path) for path in paths if not self.here(path).exists()]

    def takes_long(self):
        source = self.sources[0]
        if source["source"] not in LOCAL:
            return True
        try:
            return sum(file["bytes"] for file in self.listed_locally(source)) > SMALL
        except SourceFailed:
            return bool(self.sources[1:])

    def prepare(self, marker, good):
        for folder in (self.home, self.partial, self.whole, self.raw):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.rmtree(self.old, ignore_errors=True)
        recorded = read_json(self.partial / "verified.json", {})
        for path, file in recorded.items():
            try:
                wanted = {"bytes": file["bytes"], "mtime_ns": file["mtime_ns"]}
                if stamp(self.whole / path) == wanted:
                    self.verified[path] = file
            except OSError:
                continue
        for path, file in good.items():
            if path not in self.verified:
                target = self.whole / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                os.link(self.final / path, target)
                self.verified[path] = dict(file, of=label(marker))

    def from_first_that_delivers(self):
        reasons = []
        for source in self.sources:
            try:
                files = self.from_source(source)
            except SourceFailed as error:
                reasons.append(f"{door(source)}: {error}")
                continue
            for reason in reasons:
                self.module.warn("Source skipped: " + reason)
            self.quality = self.quality or source.get("of", {}).get("quality")
            told = source.get("of", source)
            marker = {
                "source": told["source"],
                "repository": told.get("repository"),
                "revision": told.get("revision"),
                "files": files,
            }
            return dict(marker, quality=self.quality) if self.quality else marker
        raise Fatal(
            "No source delivered {} {}. {} What was fetched is kept; run again to go on.".format(
                self.args["model"], self.args["precision"], " ".join(reasons)
            )
        )

    def listed(self, source):
        kind = source["source"]
        self.progress.tell(force=True, phase="starting", source=kind)
        if kind in LOCAL:
            return self.listed_locally(source)
        if kind in CLIENTS:
            return self.listed_by_hub(source)
        if kind == "ollama":
            return self.listed_by_ollama(source)
        if kind == "http":
            return self.listed_by_http(source)
        if kind == "site":
            return self.listed_by_site(source)
        if kind == "quantize":
            return self.placed(source, [dict(source["files"][0], bytes=source["bytes"])])
        raise Fatal(
            f"Unknown source '{kind}'. Known: bundled, file, http, s3, huggingface, "
            "modelscope, ollama, quantize."
        )

    def from_source(self, source):
        files = self.listed(source)
        for file in files:
            self.settle_pin(source, file)
        for _attempt in range(2):
            missing = [file for file in files if not self.have(source, file)]
            if not missing:
                break
            self.require_room(missing)
            self.bring(source, files, missing)
            # Reading a file again for its hash keeps one core busy, and a disk not half.
            with ThreadPoolExecutor(HASHERS) as pool:
                found = list(pool.map(lambda file: self.accept(source, file), missing))
            wrong = [text for texts in found for text in texts]
            if not wrong:
                break
        else:
            raise SourceFailed(" ".join(wrong))
        keep = ("path", "bytes", "sha256", "mtime_ns", "origin")
        return [
            {key: value for key, value in self.verified[file["path"]].items() if key in keep}
            for file in files
        ]

    def have(self, source, file):
        found = self.verified.get(file["path"])
        if not found or found["bytes"] != file["bytes"]:
            return False
        if file.get("expected"):
            return found["sha256"] == file["expected"]
        if file.get("origin"):
            return found.get("origin") == file["origin"]
        if file.get("git"):
            return not self.wrong_git_hash(file, self.whole / file["path"])
        return found.get("of") == label(source)

    def settle_pin(self, source, file):
        """The hash to expect: the catalogue's, the one held, or what the hub says."""
        held = self.pins.get(self.pin_name(source, file))
        pinned = file.get("pin")
        named = file.get("sha256")
        for name, value in (("the pin", pinned), ("the hash recorded at the first fetch", held)):
            if value and named and value != named:
                raise SourceFailed(
                    "{} has SHA-256 {} there, but {} is {}. It was changed under the same name; "
                    "nothing was fetched. If the change is meant, renew the pin (that of your own "
                    "entry; the project's by playbooks/lock.yml) and remove {}.".format(
                        file["path"], named, name, value, self.pins_path
                    )
                )
        file["expected"] = pinned or held or named

    def pin_name(self, source, file):
        return "{} {}".format(label(source), file["path"])

    def require_room(self, missing):
        need = sum(file["bytes"] for file in missing)
        for file in missing:
            need -= self.size_of_raw(file)
        status = os.statvfs(self.partial)
        free = status.f_bavail * status.f_frsize
        if need + (16 << 20) > free:
            raise Fatal(
                f"The disk of {self.home} has {megabytes(free)} free, {megabytes(need)} are still "
                "to be fetched. Free some space or set data_path to a larger disk; what was "
                "fetched is kept."
            )

    # Where unfinished data lies: by the hash it will have, so that any source can go on with it.

    def raw_folder(self, source, file):
        name = file.get("expected") or label(source)
        return self.raw / hashlib.sha256(name.encode()).hexdigest()[:16]

    @staticmethod
    def raw_path(file):
        return file["folder"] / file["path"]

    @staticmethod
    def part_path(file):
        return file["folder"] / (file["path"] + ".incomplete")

    def size_of_raw(self, file):
        """How much of it is there; of unfinished data what files/fetch.py wrote behind it."""
        try:
            if self.raw_path(file).exists():
                return min(self.raw_path(file).stat().st_size, file["bytes"])
            with self.part_path(file).open("rb") as part:
                size = part.seek(0, os.SEEK_END)
                part.seek(min(size, file["bytes"]))
                noted = [have for (have,) in struct.iter_unpack("<q", part.read())]
        except (OSError, struct.error):
            return 0
        return sum(noted) if noted else size

    # Lists

    def local_path(self, source, path):
        base = Path(source.get("repository") or "")
        if source["source"] == "bundled":
            return Path(self.args["shipped"] or "", base, path)
        return base if base.name == path and not base.is_dir() else base / path

    def here(self, path):
        return Path(self.args["staged"].get(str(path), path))

    def listed_locally(self, source):
        files = self.wanted(source)
        base = Path(source.get("repository") or "")
        if source["source"] == "file" and not files:
            if self.here(base).is_file():
                files = [{"path": base.name}]
            else:
                found = sorted(path for path in base.rglob("*") if path.is_file())
                files = [{"path": str(path.relative_to(base))} for path in found]
        if not files:
            raise SourceFailed(f"there is no file or folder {base}.")
        listed = []
        for file in files:
            path = self.local_path(source, file["path"])
            try:
                origin = stamp(self.here(path))
            except OSError as error:
                raise SourceFailed(
                    f"{path}: {error.strerror}. Correct the entry's path."
                ) from error
            if file.get("bytes") and file["bytes"] != origin["bytes"]:
                raise SourceFailed(
                    "{} has {} bytes, the catalogue says {}.".format(
                        path, origin["bytes"], file["bytes"]
                    )
                )
            listed.append(
                {
                    "path": file["path"],
                    "bytes": origin["bytes"],
                    "pin": file.get("sha256"),
                    "origin": origin if source["source"] == "file" else None,
                    "from": self.here(path),
                }
            )
        return self.placed(source, listed)

    def placed(self, source, files):
        for file in files:
            known = file.get("pin") or file.get("sha256")
            file["folder"] = self.raw_folder(source, dict(file, expected=known))
        return files

    def listed_by_hub(self, source):
        kind = source["source"]
        if self.args[SETTINGS[kind]]:
            self.require_answer(self.args[SETTINGS[kind]], SETTINGS[kind])
        answer = self.ask_client(source, "list")
        self.revision, sums = answer.get("revision"), sums_in(answer.get("sums", ""))
        found = {
            file["path"]: {"sha256": sums.get(file["path"]), **file} for file in answer["files"]
        }
        wanted = self.wanted(source) or [
            {"path": path} for path in sorted(found) if not path.startswith((".git", "SHA256SUMS"))
        ]
        listed = []
        for file in wanted:
            paths = [file["path"]]
            if is_pattern(file["path"]):
                paths = sorted(fnmatch.filter(found, file["path"]))
            if not paths or paths[0] not in found:
                raise SourceFailed("there is no file {}.".format(file["path"]))
            for path in paths:
                self.same_size(file, found[path]["bytes"])
                listed.append(dict(found[path], path=checked_path(path), pin=file.get("sha256")))
        if not listed:
            raise SourceFailed("there is no file in {}.".format(source["repository"]))
        return self.placed(source, listed)

    @staticmethod
    def same_size(file, size):
        if file.get("bytes") and file["bytes"] != size:
            raise SourceFailed(
                "{} has {} bytes there, the catalogue says {}. It was changed under the same "
                "name.".format(file["path"], size, file["bytes"])
            )

    def listed_by_ollama(self, source):
        self.require_answer(self.args["ollama_registry"], "ollama_registry")
        listed = []
        for file in self.wanted(source):
            digest, size = file.get("sha256"), file.get("bytes")
            if not (digest and size):
                layer = self.ollama_layer(source)
                named = layer["digest"].split(":", 1)[1]
                if not digest or digest == named:
                    size = layer["size"]
                digest = digest or named
            listed.append(
                {
                    "path": file["path"],
                    "bytes": size,
                    "sha256": digest,
                    "pin": file.get("sha256"),
                    "url": self.ollama_url(source, "blobs/sha256:" + digest),
                }
            )
        return self.placed(source, listed)

    def ollama_url(self, source, rest):
        name = source["repository"]
        name = name if "/" in name else "library/" + name
        return "{}/v2/{}/{}".format(self.args["ollama_registry"].rstrip("/"), name, rest)

    def ollama_layer(self, source):
        url = self.ollama_url(source, "manifests/" + (source.get("revision") or "latest"))
        accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
        try:
            request = urllib.request.Request(url, headers=accept)
            with urllib.request.urlopen(request, timeout=30) as response:
                layers = json.load(response)["layers"]
            return next(x for x in layers if x["mediaType"].endswith("ollama.image.model"))
        except (OSError, ValueError, KeyError, StopIteration) as error:
            raise SourceFailed(f"{url} holds no model: {error}.") from error

    def listed_by_site(self, source):
        url = source["repository"]
        self.require_answer(url, "model_share to false, or model_share_address")
        listed = [
            dict(file, pin=file["sha256"], url=f"{url}/{urllib.parse.quote(file['path'])}")
            for file in self.wanted(source)
        ]
        return self.placed(source, listed)

    def listed_by_http(self, source):
        base = source["repository"].rstrip("/")
        wanted = self.wanted(source)
        if all(file.get("sha256") and not is_pattern(file["path"]) for file in wanted) and wanted:
            sums = {}
        else:
            sums = self.http_sums(base)
        listed = []
        for file in wanted or [{"path": path} for path in sorted(sums)]:
            paths = [file["path"]]
            if is_pattern(file["path"]):
                paths = sorted(fnmatch.filter(sums, file["path"]))
            for path in paths:
                url = f"{base}/{urllib.parse.quote(path)}"
                size = self.http_size(url)
                self.same_size(file, size)
                found = {"path": checked_path(path), "bytes": size, "url": url}
                listed.append(dict(found, sha256=sums.get(path), pin=file.get("sha256")))
            if not paths:
                raise SourceFailed(f"{base}/SHA256SUMS lists no file {file['path']}.")
        if not listed:
            raise SourceFailed(
                f"{base}/SHA256SUMS lists no file, and the entry names none. Put one there "
                "(sha256sum * > SHA256SUMS), or give the entry's files."
            )
        return self.placed(source, listed)

    def http_answer(self, url, method):
        try:
            return urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30)
        except (OSError, ValueError) as error:
            if getattr(error, "code", None) == 404 and url.endswith("/SHA256SUMS"):
                return None
            raise SourceFailed(
                f"{url} is not to be had ({error}). Check the network and the entry's repository."
            ) from error

    def http_size(self, url):
        with self.http_answer(url, "HEAD") as answer:
            size = answer.headers.get("Content-Length", "")
        if not size.isdigit():
            raise SourceFailed(f"{url} does not say its size (Content-Length). Use another server.")
        return int(size)

    def http_sums(self, base):
        answer = self.http_answer(base + "/SHA256SUMS", "GET")
        if answer is None:
            return {}
        with answer:
            return sums_in(answer.read().decode("utf-8", "replace"))

    def require_answer(self, url, setting):
        """Any answer will do: it saves installing a client for a hub that is not there."""
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()
        except (OSError, ValueError) as error:
            raise SourceFailed(
                "{} does not answer ({}). Check the network and the proxy, or set {} to a "
                "mirror.".format(url, getattr(error, "reason", error), setting)
            ) from error

    # Clients of the hubs

    def client_python(self, kind):
        home = Path(self.args["hub_venv"])
        folder, python = home / kind, home / kind / "bin" / "python"
        text = self.args["requirements"].get(kind, "")
        want = hashlib.sha256((sys.version + text).encode()).hexdigest()
        complete = folder / ".complete"
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(home / f".{kind}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if read_json(complete, None) == want:
                return python
            if sys.version_info < (3, 10):  # noqa: UP036 - a host's Python may be older than ours
                raise SourceFailed(
                    f"its client needs Python 3.10 or newer, {sys.executable} is "
                    f"{sys.version.split()[0]}. Install a newer one and name it in "
                    "ansible_python_interpreter."
                )
            shutil.rmtree(folder, ignore_errors=True)
            lines = self.partial / "requirements.txt"
            lines.write_text(text, encoding="utf-8")
            self.install([sys.executable, "-m", "venv", folder])
            pip = [python, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
            self.install([*pip, "--disable-pip-version-check", "--require-hashes", "-r", lines])
            write_json(complete, want)
        finally:
            os.close(lock)
        return python

    def install(self, command):
        self.progress.tell(force=True, phase="installing")
        code, output = self.child(command, None, dict(os.environ), self.progress.tell)
        if code:
            raise SourceFailed(
                "its client cannot be installed: {} ended with {}: {}. Check that python3-venv is "
                "installed and that pip reaches its index.".format(
                    " ".join(str(part) for part in command[:4]), code, output.strip()[-600:]
                )
            )

    def child(self, command, given, environment, tick, fetched=None):
        """Run a program that ends when we end; its exit code and output.

        One that fetches nothing for too long is ended: its exit code is None.
        """
        libc = ctypes.CDLL(None)
        # In memory: what the program says has to be read on a full disk, too.
        with os.fdopen(os.memfd_create("output"), "w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.partial,
                env=environment,
                pass_fds=[self.lock],
                preexec_fn=lambda: libc.prctl(1, signal.SIGKILL),
            )
            process.stdin.write(json.dumps(given).encode())
            process.stdin.close()
            stalled = Stalled(self.args["stall_seconds"])
            while True:
                try:
                    code = process.wait(0.25)
                    break
                except subprocess.TimeoutExpired:
                    tick()
                if fetched and stalled(fetched()):
                    process.kill()
                    process.wait()
                    code = None
                    break
            log.seek(0)
            return code, log.read()

    def ask_client(self, source, action, files=(), tell=None):
        kind = source["source"]
        program = kind if kind in CLIENTS else "http"
        python = self.client_python(kind) if kind in CLIENTS else sys.executable
        scratch = str(self.partial / "client")
        environment = dict(
            os.environ,
            HF_ENDPOINT=self.args["huggingface_endpoint"].rstrip("/"),
            HF_HOME=scratch,
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_DISABLE_TELEMETRY="1",
            MODELSCOPE_ENDPOINT=self.args["modelscope_endpoint"].rstrip("/"),
            MODELSCOPE_CACHE=scratch,
            MODELSCOPE_HOME=scratch,
            MODELSCOPE_DOWNLOAD_MAX_RETRIES="1",  # by_client tries again
        )
        token = ""
        if kind == "huggingface":
            token = self.args["huggingface_token"]
        elif kind == "site":
            token = self.args["site_token"]
        elif kind == "s3":
            token = self.args["s3_secret_access_key"]
        wanted = ("path", "folder", "url")
        request = {
            "repository": source["repository"],
            "revision": source.get("revision") or {"huggingface": "main"}.get(kind, "master"),
            "commit": self.args["list_only"],
            "connections": self.args["connections"],
            "piece": self.args["piece_bytes"],
            # The line out is what is scarce, not the way to another host.
            "rate": 0 if kind == "site" else self.args["max_rate_mb_s"] * 1e6,
            "token": token,
            "endpoint": self.args["s3_endpoint"],
            "region": self.args["s3_region"],
            "key_id": self.args["s3_access_key_id"],
            "files": [
                dict({key: str(file[key]) for key in wanted if key in file}, bytes=file["bytes"])
                for file in files
            ],
        }
        command = [python, "-I", "-c", self.args["client"], program, action]
        code, output = self.child(
            command,
            request,
            environment,
            tell or self.progress.tell,
            lambda: sum(self.size_of_raw(file) for file in files),
        )
        if token:
            output = output.replace(token, "***")
        try:
            answer = json.loads(output.strip().splitlines()[-1])
        except (ValueError, IndexError):
            answer = {"error": output.strip()[-600:] or "the client was killed"}
        if code is None:
            answer = {"error": "it brought nothing for {stall_seconds} s".format(**self.args)}
        if "error" in answer:
            self.no_room(answer.get("errno"))
            status = answer.get("status")
            final = bool(status and 400 <= status < 500 and status not in (408, 416, 429))
            if action == "list" or final:
                raise SourceFailed(self.advice(source, answer))
        return answer

    def advice(self, source, answer):
        setting = SETTINGS.get(source["source"], "the entry's repository")
        fix = "Check the network and {} ({}).".format(
            setting, self.args.get(setting) or source["repository"]
        )
        if answer.get("status") in (401, 403) and source["source"] == "s3":
            fix = (
                "Set model_s3_access_key_id and model_s3_secret_access_key to a key that may list "
                "and read it, and s3_region to the bucket's."
            )
        elif answer.get("status") in (401, 403):
            fix = "If the model is gated, set model_huggingface_token to a token that may read it."
        elif answer.get("status") == 404:
            fix = "Check repository and revision."
        path = answer.get("path")
        error = answer["error"].strip().splitlines()[0][:600]
        return "{}{} {}".format(path + ": " if path else "", error, fix)

    def by_client(self, source, files, tell):
        failures = 0
        while True:
            files = [file for file in files if not self.raw_path(file).exists()]
            if not files:
                return
            before = sum(self.size_of_raw(file) for file in files)
            answer = self.ask_client(source, "fetch", files, tell)
            if "error" not in answer:
                return
            failures = 0 if sum(self.size_of_raw(file) for file in files) > before else failures + 1
            if failures == TRIES:
                raise SourceFailed(self.advice(source, answer))
            # A source that asks for a longer pause is a busy one.
            time.sleep(min(answer.get("retry_after") or 1 + failures, self.args["stall_seconds"]))

    # Bring and accept

    def bring(self, source, files, missing):
        total = sum(file["bytes"] for file in files)
        whole = total - sum(file["bytes"] for file in missing)
        start = sum(self.size_of_raw(file) for file in missing)

        def tell(force=False):
            done = whole + sum(self.size_of_raw(file) for file in missing)
            self.progress.tell(force, phase="fetching", done=done, total=total)

        tell(force=True)
        todo = [file for file in missing if not self.raw_path(file).exists()]
        for file in todo:
            self.raw_path(file).parent.mkdir(parents=True, exist_ok=True)
        try:
            if source["source"] in LOCAL:
                for file in todo:
                    self.by_copy(file, tell)
            elif source["source"] == "quantize":
                self.by_quantizing(source, files, missing)
            else:
                self.by_client(source, todo, tell)
        except OSError as error:
            self.no_room(error.errno)
            raise SourceFailed(str(error)) from error
        finally:
            end = sum(self.size_of_raw(file) for file in missing)
            self.fetched += max(0, end - start)

    def no_room(self, number):
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise Fatal(
                f"The disk of {self.home} is full. Free some space or set data_path to a larger "
                "disk, then run again: the fetch goes on where it stopped."
            )

    def by_copy(self, file, tell):
        part = self.part_path(file)
        with file["from"].open("rb") as source, part.open("wb") as copy:
            try:
                fcntl.ioctl(copy.fileno(), FICLONE, source.fileno())
            except OSError:
                while True:
                    block = source.read(CHUNK)
                    if not block:
                        break
                    copy.write(block)
                    tell()
        part.replace(self.raw_path(file))

    # Quantize

    def checkpoint(self, source):
        """The fetch of what is quantized, with the same lock, progress and pins."""
        given = source["from"]
        args = dict(self.args, precision=given["precision"], download=given, defer=False)
        inner = Fetch(self.module, args)
        inner.lock, inner.progress, inner.pins = self.lock, self.progress, self.pins
        return inner

    def by_quantizing(self, source, files, missing):
        """Both lists get the files that were made in place of the one they hold."""
        inner = self.checkpoint(source)
        self.require_room_to_quantize(source, inner)
        # Whether the checkpoint came for this alone has to outlive a killed run.
        ours = self.partial / "checkpoint-is-ours"
        if not inner.marker():
            ours.touch()
        checkpoint = inner.run()["model_path"]
        self.fetched += inner.fetched
        self.progress.tell(source="quantize")
        python = self.client_python("quantize")
        made = self.partial / "made"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        one_file = files[0]["path"].endswith(".gguf")
        wide = self.partial / "wide.gguf"
        request = {
            "checkpoint": checkpoint,
            "wide": str(wide),
            "narrow": str(made / files[0]["path"] if one_file else made),
            "precision": self.args["precision"],
            "pre_tokenizer": source.get("pre_tokenizer") or "",
            "threads": len(os.sched_getaffinity(0)),
            "calibration": self.args["quantizer"]["calibration"],
            "text": self.args["quantizer"]["text"],
            "most": self.args["max_perplexity_ratio"],
            "share": str(self.partial / "share"),
            "importance": str(self.partial / "importance.npz") if source.get("imatrix") else "",
        }
        if one_file:
            grows = (wide, source["from"]["bytes"])
            self.quantizer(python, "convert", request, "converting", grows)
            if request["importance"]:
                self.quantizer(python, "weigh", request, "weighing")
            grows = (Path(request["narrow"]), source["bytes"])
            self.quantizer(python, "quantize", request, "quantizing", grows)
            self.quality = self.quantizer(python, "check", request, "comparing")
            wide.unlink()
        else:
            self.quantizer(python, "compress", request, "quantizing")
            self.quality = self.quantizer(python, "compare", request, "comparing")
        found = sorted(path for path in made.rglob("*") if path.is_file())
        new = self.placed(
            source,
            [{"path": str(p.relative_to(made)), "bytes": p.stat().st_size} for p in found],
        )
        for file in new:
            self.raw_path(file).parent.mkdir(parents=True, exist_ok=True)
            (made / file["path"]).replace(self.raw_path(file))
            self.settle_pin(source, file)
        files[:], missing[:] = new, new
        if not self.args["keep_quantizer"]:
            shutil.rmtree(python.parents[1], ignore_errors=True)
        if ours.exists():
            shutil.rmtree(inner.final)

    def quantizer(self, python, action, request, phase, grows=None):
        """One step. How far it is shows the file that grows to so many bytes, else what it says."""
        share = Path(request["share"])
        share.unlink(missing_ok=True)

        def tell(force=False):
            if grows:
                done, total = grows[0].stat().st_size if grows[0].exists() else 0, grows[1]
            else:
                done, total = read_json(share, [0, 0])
            self.progress.tell(force, phase=phase, done=min(done, total), total=total)

        tell(force=True)
        environment = dict(
            os.environ, GGML_VK_VISIBLE_DEVICES="", GGML_NO_BACKTRACE="1", HF_HUB_OFFLINE="1"
        )
        # Behind all else: the host may be serving.
        command = ["nice", python, "-I", "-c", self.args["quantizer"]["program"], action]
        _code, output = self.child(command, request, environment, tell)
        try:
            answer = json.loads(output.strip().splitlines()[-1])
        except (ValueError, IndexError):
            self.no_room(errno.ENOSPC if "No space left" in output else None)
            raise Fatal(f"{phase} failed: {output.strip()[-900:]}") from None
        if "error" in answer:
            raise Fatal(answer["error"])
        return answer

    def require_room_to_quantize(self, source, inner):
        """The disk holds the checkpoint, a file of 16 bits and the result at once; the memory
        holds the checkpoint when the two are compared."""
        size = source["from"]["bytes"]
        need = size + source["bytes"] + (0 if inner.marker() else size)
        status = os.statvfs(self.partial)
        free = status.f_bavail * status.f_frsize
        if need + (16 << 20) > free:
            raise Fatal(
                f"The disk of {self.home} has {megabytes(free)} free, to quantize takes "
                f"{megabytes(need)}. Free some space or set data_path to a larger disk."
            )
        need, free = source["memory_bytes"], available_memory()
        if need > free:
            raise Fatal(
                f"To quantize {self.args['model']} takes {megabytes(need)} of memory, "
                f"{megabytes(free)} are free. Stop what uses it, or make the file on another "
                "machine and name it in an entry of your own."
            )

    def accept(self, source, file):
        """Check one fetched file and put it with the whole ones; a list of what is wrong."""
        raw = self.raw_path(file)
        self.progress.tell(force=True, phase="checking")
        size = raw.stat().st_size
        actual = self.sha256(raw)
        if size != file["bytes"] or (file["expected"] and actual != file["expected"]):
            raw.unlink()
            return [
                "{} is not what it should be: SHA-256 {} ({} bytes) instead of {} ({} bytes), "
                "fetched twice from {}. The file was thrown away. The source is damaged or "
                "was changed: use another one (model_sources).".format(
                    file["path"],
                    actual,
                    size,
                    file["expected"] or "unknown",
                    file["bytes"],
                    door(source),
                )
            ]
        if file.get("git") and not file["expected"]:
            wrong = self.wrong_git_hash(file, raw)
            if wrong:
                raw.unlink()
                return [wrong]
        target = self.whole / file["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        raw.chmod(0o644)
        if os.geteuid() == 0:
            os.chown(raw, 0, 0)
        self.sync(raw)
        raw.replace(target)
        good = dict(stamp(target), path=file["path"], sha256=actual, of=label(source))
        if file.get("origin"):
            good["origin"] = file["origin"]
        with self.one_at_a_time:
            self.verified[file["path"]] = good
            write_json(self.partial / "verified.json", self.verified)
        return []

    def wrong_git_hash(self, file, raw):
        digest = hashlib.sha1(b"blob %d\0" % file["bytes"])
        digest.update(raw.read_bytes())
        if digest.hexdigest() == file["git"]:
            return None
        return "{} is not what it should be: git hash {} instead of {}.".format(
            file["path"], digest.hexdigest(), file["git"]
        )

    @staticmethod
    def sync(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def sha256(self, path):
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(CHUNK), b""):
                digest.update(block)
                self.progress.tell()
        return digest.hexdigest()

    def publish(self, marker):
        if marker["source"] not in ("file", "quantize"):
            for file in marker["files"]:
                self.pins[self.pin_name(marker, file)] = file["sha256"]
        names = {file["path"] for file in marker["files"]}
        self.whole.chmod(0o755)
        for path in self.whole.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
            elif str(path.relative_to(self.whole)) not in names:
                path.unlink()
        write_json(self.whole / ".complete", marker)
        write_json(self.pins_path, self.pins)
        self.put_aside()
        self.whole.rename(self.final)
        self.sync(self.home)
        self.tidy()

    def put_aside(self):
        if self.final.is_dir():
            try:
                self.final.rename(self.old)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # A folder of a container's image cannot be renamed.
                shutil.rmtree(self.final)

    # Lock

    def take_lock(self, wait):
        self.home.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self.lock is None:
            self.lock = os.open(self.home, os.O_RDONLY)
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.5)

    # Answers

    def text(self, marker):
        if not marker:
            return ""
        lines = [label(marker)]
        lines += [
            "{path}  {bytes} bytes  sha256 {sha256}".format(
                path=file["path"],
                bytes=file.get("bytes") or "?",
                sha256=file.get("sha256") or "as the source says",
            )
            for file in marker.get("files") or []
        ]
        return "\n".join(lines) + "\n"

    def diff(self, before, after):
        return {
            "before_header": str(self.final),
            "after_header": str(self.final),
            "before": self.text(before),
            "after": self.text(after),
        }

    def result(self, marker, changed, before=None):
        answer = {
            "changed": changed,
            "model_path": self.model_path([file["path"] for file in marker["files"]]),
            "source": marker["source"],
            "files": marker["files"],
        }
        if marker.get("quality"):
            answer["quality"] = marker["quality"]
        if changed:
            answer["bytes_fetched"] = self.fetched
            answer["diff"] = self.diff(before, marker)
        return answer

    @staticmethod
    def have_already(file, good):
        return file.get("sha256") and good.get(file["path"], {}).get("sha256") == file["sha256"]

    @staticmethod
    def deed(source, due):
        if source["source"] == "quantize":
            return f"make {megabytes(due)} from {label(source['from'])}"
        return f"fetch {megabytes(due)} from {door(source)}"

    def forecast(self, marker, good):
        source = self.sources[0]
        files = source.get("files") or []
        missing = [file for file in files if not self.have_already(file, good)]
        due = sum(file.get("bytes") or 0 for file in missing)
        if not files or not all(file.get("bytes") for file in missing):
            due = source.get("bytes") or 0
        return {
            "changed": True,
            "model_path": self.model_path([file["path"] for file in files]),
            "source": source["source"],
            "files": files,
            "msg": f"Would {self.deed(source, due)}.",
            "diff": self.diff(marker, source),
        }


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "model": {"type": "str", "required": True},
            "precision": {"type": "str", "required": True},
            "download": {"type": "dict", "required": True},
            "verify": {"type": "bool", "default": False},
            "shipped": {"type": "path"},
            "max_perplexity_ratio": {"type": "float", "default": 0},
            "keep_quantizer": {"type": "bool", "default": False},
            "quantizer": {"type": "dict", "default": {}},
            "staged": {"type": "dict", "default": {}},
            "defer": {"type": "bool", "default": False},
            "list_only": {"type": "bool", "default": False},
            "site": {"type": "dict", "default": {}},
            "site_token": {"type": "str", "default": "", "no_log": True},
            "stall_seconds": {"type": "int", "default": 60},
            "connections": {"type": "int", "default": 4},
            "piece_bytes": {"type": "int", "default": PIECE},
            "max_rate_mb_s": {"type": "float", "default": 0},
            "huggingface_endpoint": {"type": "str", "default": "https://huggingface.co"},
            "huggingface_token": {"type": "str", "default": "", "no_log": True},
            "modelscope_endpoint": {"type": "str", "default": "https://www.modelscope.cn"},
            "ollama_registry": {"type": "str", "default": "https://registry.ollama.ai"},
            "s3_endpoint": {"type": "str", "default": ""},
            "s3_region": {"type": "str", "default": "us-east-1"},
            "s3_access_key_id": {"type": "str", "default": ""},
            "s3_secret_access_key": {"type": "str", "default": "", "no_log": True},
            "hub_venv": {"type": "path", "default": "/opt/deepseek-r1/hub"},
            "client": {"type": "str", "default": ""},
            "requirements": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    fetch = Fetch(module)
    try:
        try:
            answer = fetch.noted(fetch.run())
        except OSError as error:
            fetch.no_room(error.errno)
            raise
    except Fatal as error:
        module.fail_json(msg=str(error))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
