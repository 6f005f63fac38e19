#!/usr/bin/python
"""Keep one model of a local Ollama as described: weights, template, parameters."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_model
short_description: Keep one model of a local Ollama as described
description:
  - Makes a model of the Ollama server on the same host from a GGUF file, from a folder with
    safetensors, or from a model of a registry that is pinned by the SHA-256 of its weights.
  - Compares weights, template and parameters with what Ollama keeps under I(models_path), so a
    second run changes nothing and check mode needs no running server.
  - Weights on the same file system are hard linked into Ollama's store and need no second
    copy on disk.
  - Blobs that no model of the store refers to any more are removed, unless the store is I(shared).
options:
  name:
    description: Name under which the model answers.
    type: str
    required: true
  state:
    description: Whether the model is there.
    type: str
    choices: [present, absent]
    default: present
  url:
    description: Base URL of the server.
    type: str
    default: http://127.0.0.1:11434
  models_path:
    description: The server's OLLAMA_MODELS.
    type: path
    required: true
  record:
    description: File that remembers which models this module made; I(models_path)/sources.json
      where not given.
    type: path
  shared:
    description: The store is somebody else's too. Nothing but this model is touched, and a model
      of this name that is not of this module's making is refused.
    type: bool
    default: false
  gguf:
    description: GGUF file on the host.
    type: path
  folder:
    description: Folder on the host with safetensors, config.json and the tokenizer.
    type: path
  pull:
    description: Name in the registry, like C(deepseek-r1:14b). Needs I(sha256).
    type: str
  registry:
    description: Base URL of the registry. C(http) is right for a mirror on loopback only.
    type: str
    default: https://registry.ollama.ai
  sha256:
    description: SHA-256 of the weights that I(pull) or I(gguf) must have.
    type: str
  quantize:
    description: Precision to convert a I(folder) to, like C(q4_K_M); empty keeps the folder's.
    type: str
    default: ""
  template:
    description: Prompt template in Go's language.
    type: str
    default: ""
  parameters:
    description: The model's parameters, like C(num_ctx), C(temperature), C(stop).
    type: dict
    default: {}
  load:
    description:
      - Loads the model now and fails when its context is shorter than the parameter C(num_ctx).
        Loading is not counted as a change.
    type: bool
    default: false
  start_timeout:
    description: Seconds to wait for the server's first answer.
    type: int
    default: 60
  load_timeout:
    description: Seconds that loading may take.
    type: int
    default: 1800
  stall_timeout:
    description: Seconds without a new byte after which a pull is broken off and resumed.
    type: int
    default: 120
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Serve a GGUF as deepseek-r1-14b
  ollama_model:
    name: deepseek-r1-14b
    url: http://127.0.0.1:18000
    models_path: /var/lib/deepseek-r1/ollama
    gguf: /var/lib/deepseek-r1/models/deepseek-r1-14b/model.gguf
    template: "{{ lookup('ansible.builtin.file', 'r1.gotmpl') }}"
    parameters: {num_ctx: 16384, temperature: 0.6, top_p: 0.95}

- name: Serve a model of the Ollama library at pinned weights
  ollama_model:
    name: deepseek-r1-14b
    models_path: /var/lib/deepseek-r1/ollama
    pull: deepseek-r1:14b
    sha256: 6e9f90f02bb3b39b59e81916e8cfce9deb45aeaeb9a54a5be4414486b907dc1e
"""

RETURN = r"""
sha256:
  description: SHA-256 of the model's weights as Ollama keeps them.
  type: str
  returned: when the model is there
removed:
  description: Files of the store that no model needed any more.
  type: list
  elements: str
  returned: always
loaded:
  description: What /api/ps says of the loaded model (context_length, size, size_vram).
  type: dict
  returned: when load is set and not in check mode
"""

LIBRARY = "registry.ollama.ai"
WEIGHTS = "application/vnd.ollama.image.model"
TEMPLATE = "application/vnd.ollama.image.template"
PARAMETERS = "application/vnd.ollama.image.params"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONVERTIBLE = ("*.safetensors", "*.json", "tokenizer.model")
ATTEMPTS = 5


class Refused(Exception):
    """A condition that ends the module with this message."""


class Broken(Exception):
    """A pull that may go on at the next attempt."""


def sha256_of(path):
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 22), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_data(data):
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def manifest_parts(name, host=LIBRARY):
    """The four folder names under which Ollama files a model name."""
    parts = name.split("/")
    parts[-1], _colon, tag = parts[-1].partition(":")
    parts = [host, "library"][: max(0, 3 - len(parts))] + parts + [tag or "latest"]
    if len(parts) != 4 or not all(re.fullmatch(r"\w[\w.:-]*", part) for part in parts):
        raise Refused(f"{name!r} is no model name; give [HOST/][NAMESPACE/]MODEL[:TAG].")
    return parts


class Store:
    """What Ollama keeps on disk, and beside it a record of what was made from what."""

    def __init__(self, root, record=None):
        self.root = Path(root)
        self.blobs = self.root / "blobs"
        self.record = Path(record or self.root / "sources.json")
        self.known = read_json(self.record) or {"files": {}, "made": {}}

    def manifest(self, parts):
        return self.root.joinpath("manifests", *parts)

    def blob(self, digest):
        return self.blobs / ("sha256-" + digest)

    def model(self, parts):
        """Weights, template and parameters of a model; None when it is not there whole."""
        manifest = read_json(self.manifest(parts)) or {"layers": []}
        layers = {layer["mediaType"]: layer["digest"][7:] for layer in manifest["layers"]}
        if WEIGHTS not in layers or not self.blob(layers[WEIGHTS]).exists():
            return None
        return {
            "weights": layers[WEIGHTS],
            "template": self.text(layers.get(TEMPLATE)),
            "parameters": json.loads(self.text(layers.get(PARAMETERS)) or "{}"),
        }

    def text(self, digest):
        if digest is None or not self.blob(digest).exists():
            return ""
        return self.blob(digest).read_text(encoding="utf-8")

    def unused(self):
        """Files no manifest refers to: an older model's, or a broken run's."""
        used = set()
        for path in (self.root / "manifests").glob("*/*/*/*"):
            manifest = read_json(path) or {}
            for layer in [*manifest.get("layers", []), manifest.get("config", {})]:
                used.add("sha256-" + layer.get("digest", "")[7:])
        return sorted(path for path in self.blobs.glob("*") if path.name not in used)

    def sha256(self, path):
        """The file's SHA-256; the file is read again only when its size or time has changed."""
        stat = Path(path).stat()
        seen = self.known["files"].get(path)
        if not seen or seen[:2] != [stat.st_size, stat.st_mtime_ns]:
            seen = [stat.st_size, stat.st_mtime_ns, sha256_of(path)]
            self.known["files"][path] = seen
        return seen[2]

    def note(self, parts, wanted):
        """Remembers that this manifest is what came of this wish."""
        self.known["made"]["/".join(parts)] = self.pair(parts, wanted)

    def owned(self, parts):
        """Whether a model of this name is free to take, or of our own making as it is."""
        manifest = self.manifest(parts)
        made = self.known["made"].get("/".join(parts))
        if not manifest.exists():
            return True
        return bool(made) and made[1] == sha256_of(manifest)

    def noted(self, parts, wanted):
        return self.known["made"].get("/".join(parts)) == self.pair(parts, wanted)

    def pair(self, parts, wanted):
        return [sha256_of_data(wanted), sha256_of(self.manifest(parts))]

    def save(self):
        files = self.known["files"]
        self.known["files"] = {path: files[path] for path in files if Path(path).exists()}
        folder = self.record.parent
        if not folder.is_dir() or self.known == read_json(self.record):
            return
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".sources-")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(self.known, stream, indent=1, sort_keys=True)
        Path(temporary).replace(self.record)


class Server:
    """The parts of Ollama's API that the module needs."""

    def __init__(self, url):
        self.url = url
        self.address = urllib.parse.urlsplit(url).netloc

    def send(self, method, path, body=None, timeout=60, headers=None):
        """Yields the connection with each line of the answer, read as JSON."""
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        try:
            if isinstance(body, dict):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            if answer.status >= 400:
                text = answer.read().decode(errors="replace").strip()
                raise Refused(f"Ollama refused {method} {path} with {answer.status}: {text}")
            for line in answer:
                if line.strip():
                    yield connection, json.loads(line)
        finally:
            connection.close()

    def call(self, method, path, body=None, timeout=60, headers=None):
        """The answer's last line; an error within the answer is raised too."""
        last = {}
        for _connection, last in self.send(method, path, body, timeout, headers):
            if "error" in last:
                raise Refused(f"Ollama refused {method} {path}: {last['error']}")
        return last

    def wait(self, seconds):
        end = time.monotonic() + seconds
        while True:
            try:
                return self.call("GET", "/api/version", timeout=5)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() > end:
                    raise Refused(
                        f"No Ollama answers at {self.url} within {seconds} s ({error}). "
                        "Look into the engine's log."
                    ) from error
                time.sleep(0.2)

    def upload(self, digest, path):
        size = {"Content-Length": str(Path(path).stat().st_size)}
        with Path(path).open("rb") as stream:
            self.call("POST", f"/api/blobs/sha256:{digest}", stream, None, size)

    def pull(self, name, insecure, stall, bytes_of):
        """One attempt. bytes_of[layer] tells how far each layer got, for the next one."""
        since = time.monotonic()
        body = {"model": name, "insecure": insecure}
        try:
            for connection, line in self.send("POST", "/api/pull", body, stall):
                if "error" in line:
                    raise Broken(line["error"])
                layer, done = line.get("digest"), line.get("completed", 0)
                if bytes_of.get(layer) != done:
                    bytes_of[layer], since = done, time.monotonic()
                elif time.monotonic() - since > stall:
                    raise Broken(f"no byte for {stall} s")
                if line.get("status", "").startswith("verifying") and connection.sock:
                    connection.sock.settimeout(None)  # it reads all weights, silently
        except (OSError, http.client.HTTPException) as error:
            raise Broken(str(error)) from error


class Model:
    def __init__(self, module):
        self.given = module.params
        self.check = module.check_mode
        self.store = Store(self.given["models_path"], self.given["record"])
        self.server = Server(self.given["url"])
        self.parts = manifest_parts(self.given["name"])
        registry = urllib.parse.urlsplit(self.given["registry"])
        self.insecure = registry.scheme == "http"
        self.pulled = self.given["pull"] and manifest_parts(self.given["pull"], registry.netloc)

    def present(self):
        sources = self.sources()
        wanted = {
            "weights": self.weights(sources) or "not there yet",
            "template": self.given["template"],
            "parameters": self.given["parameters"],
        }
        self.refuse_others()
        before = self.store.model(self.parts)
        right = before and (before == wanted or self.store.noted(self.parts, wanted))
        after = before if right else wanted
        if not right and not self.check:
            self.server.wait(self.given["start_timeout"])
            after = self.create(sources, wanted)
        tidied = self.tidy() if right or not self.check else []
        result = {
            "changed": not right or bool(tidied),
            "sha256": after["weights"],
            "removed": tidied,
        }
        if self.given["load"] and not self.check:
            result["loaded"] = self.load()
        return result, before or {}, after

    def refuse_others(self):
        if self.given["shared"] and not self.store.owned(self.parts):
            raise Refused(
                f"{self.title(self.parts)} in {self.store.root} was not made by this project; fix: "
                f"give yours another name (ollama cp {self.given['name']} NAME, ollama rm "
                f"{self.given['name']}), or choose another model"
            )

    def absent(self):
        self.refuse_others()
        before = self.store.model(self.parts)
        there = self.store.manifest(self.parts).exists()
        if there and not self.check:
            self.server.wait(self.given["start_timeout"])
            self.delete(self.parts)
        tidied = [] if there and self.check else self.tidy()
        return {"changed": there or bool(tidied), "removed": tidied}, before or {}, {}

    def sources(self):
        """The files the weights are made from: {name in the model: path}."""
        path = self.given["gguf"] or self.given["folder"]
        if self.check and path and not Path(path).exists():
            return {}  # an earlier task would bring it
        if self.given["gguf"]:
            if not Path(path).is_file():
                raise Refused(f"gguf: there is no file {path}.")
            return {"model.gguf": path}
        if not self.given["folder"]:
            return {}
        folder = Path(path)
        found = {path.name: str(path) for kind in CONVERTIBLE for path in folder.glob(kind)}
        if not any(name.endswith(".safetensors") for name in found):
            raise Refused(f"folder: there is no safetensors file in {folder}.")
        return found

    def weights(self, sources):
        """SHA-256 of the wanted weights; for a folder, of what they are converted from."""
        pinned = (self.given["sha256"] or "").lower()
        if self.pulled or not sources:
            return pinned
        digests = {name: self.store.sha256(path) for name, path in sources.items()}
        if self.given["folder"]:
            digests["quantize"] = self.given["quantize"].lower()
            return "converted from " + sha256_of_data(digests)
        if pinned and digests["model.gguf"] != pinned:
            raise Refused(
                f"gguf: {self.given['gguf']} has the SHA-256 {digests['model.gguf']}, "
                f"the pinned one is {pinned}."
            )
        return digests["model.gguf"]

    def create(self, sources, wanted):
        if self.pulled and not self.store.blob(wanted["weights"]).exists():
            self.pull(wanted["weights"])
        files = {name: self.store.sha256(path) for name, path in sources.items()}
        for name, path in sources.items():
            self.hand_over(files[name], path)
        files = files or {"model.gguf": wanted["weights"]}
        body = {
            "model": self.given["name"],
            "files": {name: f"sha256:{digest}" for name, digest in files.items()},
            "template": wanted["template"],
            "parameters": wanted["parameters"],
        }
        if self.given["folder"] and self.given["quantize"]:
            body["quantize"] = self.given["quantize"]
        with self.lent(wanted["weights"]):
            self.server.call("POST", "/api/create", body, timeout=None)
        made = self.store.model(self.parts)
        if not made or made["template"] != (wanted["template"] or made["template"]):
            raise Refused(
                f"Ollama made the model, but {self.store.root} does not show it. Is that its "
                "OLLAMA_MODELS, and is its version the one that ollama_version pins?"
            )
        self.store.note(self.parts, wanted)
        return made

    def hand_over(self, digest, path):
        """A hard link where all may read the file, an upload elsewhere."""
        blob = self.store.blob(digest)
        if blob.exists():
            return
        if Path(path).stat().st_mode & 0o004:
            try:
                os.link(Path(path).resolve(), blob)
                return
            except OSError:
                pass  # another file system, or one without links
        self.server.upload(digest, path)

    @contextlib.contextmanager
    def lent(self, digest):
        """Ollama sets the time of the weights it is given, which only their owner may do."""
        blob = self.store.blob(digest)
        linked = blob.exists() and blob.stat().st_nlink > 1
        if linked:
            was = blob.stat()
            os.chown(blob, self.store.blobs.stat().st_uid, -1)
        try:
            yield
        finally:
            if linked:
                os.chown(blob, was.st_uid, -1)
                os.utime(blob, ns=(was.st_atime_ns, was.st_mtime_ns))

    def pull(self, pinned):
        self.compare(self.offered(), pinned)
        name = ("http://" if self.insecure else "") + self.title(self.pulled)
        attempt, reached, bytes_of = 1, 0, {}
        while True:
            try:
                self.server.pull(name, self.insecure, self.given["stall_timeout"], bytes_of)
                break
            except Broken as error:
                if sum(bytes_of.values()) > reached:
                    attempt, reached = 1, sum(bytes_of.values())
                if attempt == ATTEMPTS:
                    raise Refused(
                        f"Pulling {name} failed {ATTEMPTS} times without progress: {error}. "
                        "Run again to resume, or name another registry in ollama_registry."
                    ) from error
                time.sleep(attempt)
                attempt += 1
        pulled = self.store.model(self.pulled)
        try:
            self.compare(pulled and pulled["weights"], pinned)
        except Refused:
            self.delete(self.pulled)
            raise

    def offered(self):
        """SHA-256 of the weights the registry names, so that a wrong tag costs no download."""
        host, space, model, tag = self.pulled
        scheme = urllib.parse.urlsplit(self.given["registry"]).scheme
        url = f"{scheme}://{host}/v2/{space}/{model}/manifests/{tag}"
        loopback = host.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")
        handlers = [urllib.request.ProxyHandler({})] if loopback else []
        try:
            opener = urllib.request.build_opener(*handlers)
            request = urllib.request.Request(url, headers={"Accept": MANIFEST})
            with opener.open(request, timeout=30) as answer:
                layers = json.load(answer)["layers"]
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return None  # Ollama itself may have the key to this registry
            raise Refused(f"{url} answers {error.code}: no such model there.") from error
        except (OSError, ValueError, KeyError) as error:
            raise Refused(f"{url} gives no model: {error}. Check ollama_registry.") from error
        return next((x["digest"][7:] for x in layers if x["mediaType"] == WEIGHTS), "")

    def compare(self, found, pinned):
        if found is not None and found != pinned:
            raise Refused(
                f"{self.title(self.pulled)} has weights with the SHA-256 {found or '(none)'}, "
                f"the pinned one is {pinned}. The tag now means another model, or the registry "
                "is not to be trusted."
            )

    def title(self, parts):
        return "/".join(parts[:3]) + ":" + parts[3]

    def delete(self, parts):
        self.server.call("DELETE", "/api/delete", {"model": self.title(parts)})

    def tidy(self):
        """Removes what nobody needs: the name that was pulled, and blobs without a model."""
        removed = []
        if self.given["shared"]:
            return removed
        if self.pulled and self.pulled != self.parts:
            manifest = self.store.manifest(self.pulled)
            if manifest.exists():
                removed.append(str(manifest))
                if not self.check:
                    manifest.unlink()
        for path in self.store.unused():
            removed.append(str(path))
            if not self.check:
                path.unlink()
        return removed

    def load(self):
        self.server.wait(self.given["start_timeout"])
        wanted = self.given["parameters"].get("num_ctx", 0)
        loaded = self.running()
        if not loaded or loaded["context_length"] < wanted:
            body = {"model": self.given["name"], "keep_alive": -1}
            self.server.call("POST", "/api/generate", body, self.given["load_timeout"])
            loaded = self.running()
        if not loaded or loaded["context_length"] < wanted:
            length = loaded["context_length"] if loaded else "nothing"
            raise Refused(
                f"{self.given['name']} is loaded with a context of {length}, not {wanted}: "
                "set max_model_len to what the model was trained for."
            )
        return {key: loaded[key] for key in ("context_length", "size", "size_vram")}

    def running(self):
        models = self.server.call("GET", "/api/ps")["models"]
        return next((x for x in models if manifest_parts(x["name"]) == self.parts), None)


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "url": {"type": "str", "default": "http://127.0.0.1:11434"},
            "models_path": {"type": "path", "required": True},
            "record": {"type": "path"},
            "shared": {"type": "bool", "default": False},
            "gguf": {"type": "path"},
            "folder": {"type": "path"},
            "pull": {"type": "str"},
            "registry": {"type": "str", "default": f"https://{LIBRARY}"},
            "sha256": {"type": "str"},
            "quantize": {"type": "str", "default": ""},
            "template": {"type": "str", "default": ""},
            "parameters": {"type": "dict", "default": {}},
            "load": {"type": "bool", "default": False},
            "start_timeout": {"type": "int", "default": 60},
            "load_timeout": {"type": "int", "default": 1800},
            "stall_timeout": {"type": "int", "default": 120},
        },
        mutually_exclusive=[("gguf", "folder", "pull")],
        required_if=[("state", "present", ("gguf", "folder", "pull"), True)],
        required_by={"pull": "sha256"},
        supports_check_mode=True,
    )
    try:
        model = Model(module)
        try:
            result, before, after = getattr(model, module.params["state"])()
        finally:
            if not module.check_mode:
                model.store.save()
    except (Refused, OSError, http.client.HTTPException) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
