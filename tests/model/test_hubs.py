"""The real clients of the hubs against a stand-in on loopback that misbehaves."""

import hashlib
import json
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

WEIGHTS = random.Random(1).randbytes(3_000_000)
SOURCES = ["huggingface", "modelscope", "ollama"]
SETTING = {
    "huggingface": "huggingface_endpoint",
    "modelscope": "modelscope_endpoint",
    "ollama": "ollama_registry",
}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub(start_hub):
    return start_hub({"m.gguf": WEIGHTS})


@pytest.fixture
def wanted(entry):
    def make(source: str, pinned: bool = True, files: list | None = None) -> dict:
        return {
            "source": source,
            "repository": "n" if source == "ollama" else "o/n",
            "revision": "tag" if source == "ollama" else None,
            "files": files or [entry("m.gguf", WEIGHTS, pinned)],
        }

    return make


@pytest.mark.parametrize("source", SOURCES)
def test_fetched_once_through_cut_connections(source, hub, wanted, model_files, tmp_path):
    hub.cut_after = [900_000, 700_000]
    endpoint = {SETTING[source]: hub.url}
    answer = model_files(wanted(source), **endpoint)
    assert answer.get("changed"), answer
    assert (tmp_path / "models/m/q4_k_m/m.gguf").read_bytes() == WEIGHTS
    assert len(WEIGHTS) <= hub.sent <= 1.05 * len(WEIGHTS)
    assert sorted(path.name for path in (tmp_path / "models/m").iterdir()) == [
        ".pins.json",
        "q4_k_m",
    ]
    asked = len(hub.requests)
    assert not model_files(wanted(source), **endpoint)["changed"]
    assert len(hub.requests) == asked


@pytest.mark.parametrize("source", SOURCES)
def test_all_connections_together_keep_to_the_rate(source, start_hub, entry, wanted, model_files):
    parts = 1 if source == "ollama" else 3
    content = {f"{part}.gguf": WEIGHTS[part::parts] for part in range(parts)}
    hub = start_hub(content)
    download = wanted(source, files=[entry(path, data) for path, data in content.items()])
    start = time.monotonic()
    answer = model_files(download, max_rate_mb_s=1, **{SETTING[source]: hub.url})
    assert answer.get("bytes_fetched") == sum(map(len, content.values())), answer
    assert [file["sha256"] for file in answer["files"]] == [digest(x) for x in content.values()]
    assert time.monotonic() - start >= answer["bytes_fetched"] / 1e6


@pytest.mark.parametrize("source", SOURCES)
def test_a_killed_run_is_resumed(source, hub, wanted, model_files, killed_run, tmp_path):
    hub.rate = 1_500_000
    endpoint = {SETTING[source]: hub.url}
    killed_run(hub, 1_500_000, wanted(source), **endpoint)
    assert not (tmp_path / "models/m/q4_k_m").exists()

    time.sleep(0.3)  # what is under way in the stand-in's socket
    hub.rate = None
    before = hub.sent
    answer = model_files(wanted(source), **endpoint)
    assert answer.get("changed"), answer
    assert hub.sent - before < 2_000_000
    assert (tmp_path / "models/m/q4_k_m/m.gguf").read_bytes() == WEIGHTS


def test_a_run_killed_at_its_last_step_needs_no_hub(hub, wanted, model_files, tmp_path):
    assert model_files(wanted("ollama"), ollama_registry=hub.url).get("changed")
    final = tmp_path / "models/m/q4_k_m"
    partial = final.with_name(".q4_k_m.partial")
    partial.mkdir()
    final.rename(partial / "model")
    assert model_files(wanted("ollama"))["changed"]
    assert (final / "m.gguf").read_bytes() == WEIGHTS
    assert not partial.exists()
    assert not model_files(wanted("ollama"))["changed"]


@pytest.mark.parametrize("source", SOURCES)
def test_wrong_bytes_are_fetched_again_once_then_refused(
    source, hub, wanted, model_files, tmp_path
):
    wrong = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    hub.bodies["m.gguf"] = wrong
    answer = model_files(wanted(source), **{SETTING[source]: hub.url})
    assert answer["failed"]
    for text in ("m.gguf", digest(WEIGHTS), digest(wrong), source):
        assert text in answer["msg"]
    assert hub.sent == 2 * len(WEIGHTS)
    assert not (tmp_path / "models/m/q4_k_m").exists()


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_file_changed_under_its_name_is_refused(source, hub, wanted, model_files, tmp_path):
    endpoint = {SETTING[source]: hub.url}
    assert model_files(wanted(source, pinned=False), **endpoint).get("changed")
    (tmp_path / "models/m/q4_k_m/m.gguf").unlink()
    sent = hub.sent
    other = WEIGHTS[::-1]
    hub.files["m.gguf"] = other
    answer = model_files(wanted(source, pinned=False), **endpoint)
    assert answer["failed"]
    for text in (digest(WEIGHTS), digest(other), "changed under the same name"):
        assert text in answer["msg"]
    assert hub.sent == sent


def test_another_hub_goes_on_where_one_died(start_hub, wanted, model_files, tmp_path):
    dying, alive = start_hub({"m.gguf": WEIGHTS}), start_hub({"m.gguf": WEIGHTS})
    dying.dead_after = 1_200_000
    download = {**wanted("ollama"), "alternatives": [wanted("huggingface")]}
    answer = model_files(download, ollama_registry=dying.url, huggingface_endpoint=alive.url)
    assert answer.get("changed"), answer
    assert answer["source"] == "huggingface"
    assert dying.sent + alive.sent <= 1.05 * len(WEIGHTS)
    assert "Source skipped: ollama n@tag" in json.dumps(answer["warnings"])
    assert not model_files(download)["changed"]


def test_a_hub_that_is_down_on_the_next_run_changes_nothing(hub, wanted, model_files):
    answer = model_files(wanted("modelscope", pinned=False), modelscope_endpoint=hub.url)
    assert answer.get("changed"), answer
    answer = model_files(wanted("huggingface", pinned=False))
    assert not answer.get("failed") and not answer["changed"]


def test_a_folder_by_patterns_with_unpinned_files(start_hub, wanted, model_files, tmp_path):
    files = {
        "config.json": b"{}",
        "a-00001-of-00002.safetensors": WEIGHTS[:1000],
        "a-00002-of-00002.safetensors": WEIGHTS[1000:9000],
        "README.md": b"not wanted",
    }
    hub = start_hub(files)
    patterns = [
        {"path": path, "bytes": None, "sha256": None} for path in ("*.json", "*.safetensors")
    ]
    for source in ("huggingface", "modelscope"):
        download = wanted(source, files=patterns)
        given = {SETTING[source]: hub.url, "model": source}
        answer = model_files(download, **given)
        assert answer.get("changed"), answer
        folder = tmp_path / "models" / source / "q4_k_m"
        assert answer["model_path"] == str(folder)
        assert {path.name for path in folder.iterdir()} == {".complete", *files} - {"README.md"}
        assert {file["path"]: file["sha256"] for file in answer["files"]} == {
            path: digest(body) for path, body in files.items() if path != "README.md"
        }
        assert not model_files(download, **given)["changed"]


def test_gated_models_need_a_token_that_shows_nowhere(hub, wanted, play):
    hub.token = "hf_secret_of_the_test"
    refused = play(wanted("huggingface"), huggingface_endpoint=hub.url)
    assert refused["rc"] != 0
    assert "set model_huggingface_token" in refused["out"]
    given = {"huggingface_endpoint": hub.url, "model_huggingface_token": hub.token}
    answer = play(wanted("huggingface"), "-vvv", **given)
    assert answer["rc"] == 0 and answer["changed"], answer["out"]
    assert hub.token not in answer["out"]


def test_dead_hub_then_the_next_with_progress(hub, wanted, play):
    hub.rate = 600_000
    download = {**wanted("modelscope"), "alternatives": [wanted("huggingface")]}
    forecast = play(download, "--check", huggingface_endpoint=hub.url)
    assert forecast["rc"] == 0 and forecast["changed"], forecast["out"]
    assert not hub.requests
    answer = play(download, huggingface_endpoint=hub.url)
    assert answer["rc"] == 0 and answer["changed"], answer["out"]
    assert "Source skipped: modelscope o/n" in answer["out"]
    assert "http://127.0.0.1:1 does not answer" in answer["out"]
    assert "[box] m: " in answer["out"] and " of 3 MB (" in answer["out"]
    assert json.loads(play.marker.read_text())["source"] == "huggingface"
    again = play(download, huggingface_endpoint=hub.url)
    assert again["rc"] == 0 and not again["changed"], again["out"]


def test_every_source_dead_says_what_to_do(wanted, play):
    download = {**wanted("modelscope"), "alternatives": [wanted("ollama")]}
    answer = play(download)
    assert answer["rc"] != 0
    for text in ("No source delivered m q4_k_m", "set modelscope_endpoint", "set ollama_registry"):
        assert text in answer["out"]


@pytest.mark.parametrize(
    ("status", "text"), [(404, "HTTP Error 404"), (503, None)], ids=["missing", "busy"]
)
def test_ollama_library_by_tag(status, text, hub, wanted, model_files):
    hub.refuse = [status]
    answer = model_files(wanted("ollama", pinned=False), ollama_registry=hub.url)
    if text:
        assert text in answer["msg"]
    else:
        assert answer.get("changed"), answer
        assert answer["files"][0]["sha256"] == digest(WEIGHTS)


def test_two_runs_at_once_fetch_once(hub, wanted, module_input):
    hub.rate = 1_500_000
    command, given = module_input(wanted("ollama"), ollama_registry=hub.url)
    runs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    # Both are read from: one that cannot say all it has to say holds the lock.
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda run: run.communicate(given.encode())[0], runs))
    answers = [json.loads(text) for text in said]
    assert sorted(answer["changed"] for answer in answers) == [False, True]
    assert hub.sent == len(WEIGHTS)
