"""The module ollama_model against the real Ollama and, for pulls, a real registry."""

import hashlib
import http.server
import json
import os
import shutil
import threading
import time
import typing
import urllib.request

import pytest

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("empty")]


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def names(server):
    return [model["id"] for model in get(server.url + "/v1/models")["data"] or []]


def post(server, path, **body):
    data = json.dumps(body).encode()
    with urllib.request.urlopen(server.url + path, data=data, timeout=60) as answer:
        lines = [json.loads(line) for line in answer if line.strip()]
    assert not any("error" in line for line in lines), lines
    return lines[-1] if lines else None


def blobs(server):
    return {path.name for path in (server.models / "blobs").iterdir()}


@pytest.fixture
def digest(tiny_gguf):
    return hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()


@pytest.fixture
def folder(repo, tmp_path):
    return shutil.copytree(repo / "roles/model/files/tiny-r1/hf", tmp_path / "hf")


def test_a_gguf_becomes_a_model_once(keep, server, role, tiny_gguf, digest):
    planned = keep(check=True, gguf=tiny_gguf)
    assert planned["changed"] and names(server) == []
    assert planned["diff"]["before"] == {}
    assert planned["diff"]["after"]["parameters"]["num_ctx"] == 1024

    first = keep(gguf=tiny_gguf)
    assert first["changed"] and first["sha256"] == digest, first
    assert names(server) == ["tiny-r1:latest"]
    shown = post(server, "/api/show", model="tiny-r1")
    assert shown["template"] == role.template
    assert "thinking" in shown["capabilities"]

    for check in (True, False):
        again = keep(check=check, gguf=tiny_gguf)
        assert not again["changed"] and again["removed"] == []
        assert again["diff"]["before"] == again["diff"]["after"]


def test_weights_on_the_same_disk_are_not_stored_twice(keep, server, tmp_path, tiny_gguf, digest):
    own = tmp_path / "model.gguf"
    shutil.copy(tiny_gguf, own)
    own.chmod(0o644)
    before = own.stat()
    keep(gguf=own)
    stored = server.models / f"blobs/sha256-{digest}"
    assert stored.samefile(own)
    after = own.stat()
    assert (after.st_mtime_ns, after.st_uid) == (before.st_mtime_ns, before.st_uid)

    own.chmod(0o600)  # the server's user may not read it: it gets a copy through the API
    keep(state="absent")
    assert own.exists() and not stored.exists()
    keep(gguf=own)
    assert stored.exists() and not stored.samefile(own)


@pytest.mark.parametrize(
    "change", [{"template": "{{ .Prompt }}"}, {"parameters": {"num_ctx": 512, "stop": ["x"]}}]
)
def test_each_change_is_seen_and_made(keep, server, tiny_gguf, change):
    keep(gguf=tiny_gguf)
    before = blobs(server)
    planned = keep(check=True, gguf=tiny_gguf, **change)
    assert planned["changed"] and blobs(server) == before
    (key,) = change
    assert planned["diff"]["before"][key] != planned["diff"]["after"][key] == change[key]

    made = keep(gguf=tiny_gguf, **change)
    assert made["changed"] and made["removed"], "the old layers are gone"
    assert len(blobs(server)) == len(before)
    assert not keep(gguf=tiny_gguf, **change)["changed"]


def test_a_change_by_hand_is_put_right(keep, server, role, tmp_path, tiny_gguf):
    own = tmp_path / "model.gguf"
    shutil.copy(tiny_gguf, own)
    own.chmod(0o600)  # stored as a copy, so that Ollama may make another model of it
    keep(gguf=own)
    other = {"model": "tiny-r1", "from": "tiny-r1", "template": "{{ .Prompt }}"}
    post(server, "/api/create", **other)
    assert keep(gguf=own)["changed"]
    assert post(server, "/api/show", model="tiny-r1")["template"] == role.template


@pytest.mark.parametrize("quantize", ["", "q4_K_M"])
def test_a_folder_is_converted_once(keep, server, folder, quantize):
    first = keep(folder=folder, quantize=quantize)
    assert first["changed"], first
    level = post(server, "/api/show", model="tiny-r1")["details"]["quantization_level"]
    assert level == (quantize.upper() or "F16")
    assert f"sha256-{first['sha256']}" in blobs(server)
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"sha256-{weights}" not in blobs(server), "what was converted is not kept"

    second = keep(folder=folder, quantize=quantize)
    assert not second["changed"] and second["sha256"] == first["sha256"]

    os.utime(folder / "config.json")  # another time, the same content
    assert not keep(folder=folder, quantize=quantize)["changed"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    assert keep(check=True, folder=folder, quantize=quantize)["changed"]
    assert keep(folder=folder, quantize=quantize)["changed"]


def test_what_a_killed_run_left_is_removed(keep, server, tiny_gguf):
    keep(gguf=tiny_gguf)
    (server.models / "sources.json").unlink()
    for name in ("sha256-" + "0" * 64, "sha256-" + "1" * 64 + "-partial"):
        (server.models / "blobs" / name).write_text("left over")
    planned = keep(check=True, gguf=tiny_gguf)
    assert planned["changed"] and len(planned["removed"]) == 2
    assert keep(gguf=tiny_gguf)["removed"] == planned["removed"]
    assert not keep(gguf=tiny_gguf)["changed"]


def test_a_model_whose_weights_are_lost_is_made_again(keep, server, tiny_gguf, digest):
    keep(gguf=tiny_gguf)
    (server.models / f"blobs/sha256-{digest}").unlink()
    assert keep(gguf=tiny_gguf)["changed"]
    assert not keep(gguf=tiny_gguf)["changed"]


def test_an_absent_model_leaves_nothing(keep, server, tiny_gguf):
    assert not keep(state="absent")["changed"]
    keep(gguf=tiny_gguf)
    assert keep(state="absent", check=True)["changed"] and names(server) == ["tiny-r1:latest"]
    assert keep(state="absent")["changed"] and names(server) == []
    assert blobs(server) == set()


def test_it_is_loaded_with_the_context_that_was_planned(keep, server, tiny_gguf):
    loaded = keep(gguf=tiny_gguf, load=True)["loaded"]
    assert loaded["context_length"] == 1024
    assert get(server.url + "/api/ps")["models"][0]["context_length"] == 1024
    assert not keep(gguf=tiny_gguf, load=True)["changed"]


def test_a_context_the_model_cannot_have_is_refused(keep, tiny_gguf):
    done = keep(gguf=tiny_gguf, load=True, parameters={"num_ctx": 8192})
    assert done["failed"], done
    for words in ("8192", "4096", "max_model_len"):
        assert words in done["msg"]


# Pulls


@pytest.fixture
def library(server, registry, keep, tiny_gguf):
    """A registry with library/deepseek-r1:1.5b, pushed by the real client."""
    keep(gguf=tiny_gguf)
    name = f"http://{registry}/library/deepseek-r1:1.5b"
    post(server, "/api/copy", source="tiny-r1", destination=name)
    post(server, "/api/push", model=name, insecure=True)
    keep(name=f"{registry}/library/deepseek-r1:1.5b", state="absent")
    keep(state="absent")
    assert blobs(server) == set()
    return {"pull": "deepseek-r1:1.5b", "registry": f"http://{registry}"}


def test_a_pinned_model_of_a_registry_is_pulled(keep, server, role, library, digest):
    assert keep(check=True, sha256=digest, **library)["changed"] and names(server) == []
    first = keep(sha256=digest, **library)
    assert first["changed"] and first["sha256"] == digest, first
    assert names(server) == ["tiny-r1:latest"], "not under the library's name too"
    assert post(server, "/api/show", model="tiny-r1")["template"] == role.template
    second = keep(sha256=digest, **library)
    assert not second["changed"]
    shutil.rmtree(server.models / "manifests")
    assert keep(sha256=digest, **library)["changed"]


def test_other_weights_than_the_pinned_ones_are_refused(keep, server, library, digest):
    pinned = "0" * 64
    done = keep(sha256=pinned, **library)
    assert done["failed"]
    assert digest in done["msg"] and pinned in done["msg"] and "deepseek-r1:1.5b" in done["msg"]
    assert names(server) == [] and blobs(server) == set()


@pytest.fixture
def proxy(registry):
    """Stands before the registry: hides manifests from all but Ollama, hangs within blobs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        hangs = 0
        ranges: typing.ClassVar = []

        def do_GET(self):
            if self.headers["User-Agent"].startswith("Python"):
                self.send_error(401)
                return
            if "/blobs/" in self.path and self.headers["Host"].startswith("127.0.0.1"):
                self.send_response(307)
                self.send_header(
                    "Location", Handler.url.replace("127.0.0.1", "localhost") + self.path
                )
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            headers = {k: v for k, v in self.headers.items() if k in ("Accept", "Range")}
            request = urllib.request.Request(f"http://{registry}{self.path}", headers=headers)
            with urllib.request.urlopen(request, timeout=30) as answer:
                body = answer.read()
                self.send_response(answer.status)
                for name in ("Content-Type", "Content-Length", "Content-Range"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
            self.end_headers()
            if len(body) > 1 << 20 and "Range" in self.headers:
                Handler.ranges.append(self.headers["Range"])
                if Handler.hangs:
                    Handler.hangs -= 1
                    self.wfile.write(body[: 1 << 20])
                    self.wfile.flush()
                    time.sleep(6)
                    return
            self.wfile.write(body)

        def do_HEAD(self):
            request = urllib.request.Request(f"http://{registry}{self.path}", method="HEAD")
            with urllib.request.urlopen(request, timeout=30) as answer:
                self.send_response(answer.status)
                self.send_header("Content-Length", answer.headers["Content-Length"])
                self.end_headers()

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{server.server_port}"
    yield Handler
    server.shutdown()


def test_a_pull_that_hangs_goes_on_where_it_was(keep, library, proxy, digest):
    proxy.hangs = 1
    done = keep(sha256=digest, **{**library, "registry": proxy.url}, stall_timeout=2)
    assert done["changed"], done
    first, second = proxy.ranges
    assert first.startswith("bytes=0-") and not second.startswith("bytes=0-")


def test_weights_that_turn_out_wrong_are_thrown_away(keep, server, library, proxy, digest):
    done = keep(sha256="0" * 64, **{**library, "registry": proxy.url})
    assert done["failed"] and digest in done["msg"] and "0" * 64 in done["msg"]
    assert names(server) == [] and blobs(server) == set()


def test_a_missing_model_or_registry_is_named(keep, registry):
    pull = {"pull": "nothing:1b", "sha256": "0" * 64}
    done = keep(registry=f"http://{registry}", **pull)
    assert done["failed"] and "nothing/manifests/1b answers 404" in done["msg"]
    done = keep(registry="http://127.0.0.1:9", **pull)
    assert done["failed"] and "ollama_registry" in done["msg"]


# Refusals


def test_a_server_that_does_not_answer_is_named(module, tmp_path, tiny_gguf):
    done = module(
        "ollama_model",
        name="tiny-r1",
        url="http://127.0.0.1:9",
        models_path=tmp_path,
        gguf=tiny_gguf,
        start_timeout=0,
    )
    assert done["failed"] and "No Ollama answers at http://127.0.0.1:9" in done["msg"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gguf": "/no/such.gguf"}, "there is no file /no/such.gguf"),
        ({"folder": "/tmp"}, "no safetensors file in /tmp"),
        ({"pull": "deepseek-r1:1.5b"}, "sha256"),
        ({"pull": "a b", "sha256": "0" * 64}, "'a b' is no model name"),
        ({}, "gguf, folder, pull"),
    ],
)
def test_wrong_arguments_are_refused(keep, arguments, words):
    done = keep(**arguments)
    assert done["failed"] and words in done["msg"], done


def test_a_gguf_with_another_hash_is_refused(keep, tiny_gguf, digest):
    done = keep(gguf=tiny_gguf, sha256="0" * 64)
    assert done["failed"] and digest in done["msg"] and "0" * 64 in done["msg"]


def test_a_file_that_is_not_there_yet_is_fine_in_check_mode(keep):
    assert keep(check=True, gguf="/no/such.gguf")["changed"]
