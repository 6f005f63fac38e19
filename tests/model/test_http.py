"""A folder of a plain web server, or of an object store that speaks HTTP, as a source."""

import hashlib
import os
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/plan/module_utils"))

from r1_planner.planner import make_plan
from r1_planner.units import PlanError

REPO = Path(__file__).resolve().parents[2]
WEIGHTS = os.urandom(3_000_000)
FILES = {"config.json": b"{}", "weights/a b.safetensors": WEIGHTS}


def sums(files: dict[str, bytes]) -> bytes:
    lines = [f"{hashlib.sha256(body).hexdigest()}  ./{name}" for name, body in files.items()]
    return "\n".join(lines).encode()


def folder(hub, files=()) -> dict:
    return {"source": "http", "repository": f"{hub.url}/folder/", "files": list(files)}


@pytest.fixture
def hub(start_hub):
    return start_hub(dict(FILES))


def test_all_files_of_the_folders_list(hub, model_files, tmp_path):
    hub.sums, hub.cut_after = sums(FILES), [len(sums(FILES)), 1_000_000]
    answer = model_files(folder(hub))
    assert answer.get("changed"), answer
    home = tmp_path / "models/m/q4_k_m"
    assert {name: (home / name).read_bytes() for name in FILES} == FILES
    assert answer["model_path"] == str(home)
    asked = len(hub.requests)
    assert not model_files(folder(hub))["changed"]
    assert len(hub.requests) == asked


def test_one_pinned_file_needs_no_list(hub, entry, model_files, tmp_path):
    wanted = entry("weights/a b.safetensors", WEIGHTS)
    assert model_files(folder(hub, [wanted])).get("changed")
    assert (tmp_path / "models/m/q4_k_m" / wanted["path"]).read_bytes() == WEIGHTS
    assert not [line for line in hub.requests if "SHA256SUMS" in line]


def test_without_any_hash_the_first_fetch_is_held(hub, entry, model_files, tmp_path):
    wanted = entry("config.json", b"{}", pinned=False)
    assert model_files(folder(hub, [wanted])).get("changed")
    (tmp_path / "models/m/q4_k_m/config.json").unlink()
    hub.files["config.json"] = b"[]"
    answer = model_files(folder(hub, [wanted]))
    assert answer["failed"]
    for body in (b"{}", b"[]"):
        assert hashlib.sha256(body).hexdigest() in answer["msg"]


def test_the_next_source_goes_on(hub, start_hub, entry, model_files):
    other = start_hub({"m.gguf": WEIGHTS})
    hub.files["m.gguf"], hub.dead_after = WEIGHTS, 1_200_000
    pinned = entry("m.gguf", WEIGHTS)
    library = {"source": "ollama", "repository": "n", "revision": "tag", "files": [pinned]}
    download = {**folder(hub, [pinned]), "alternatives": [library]}
    answer = model_files(download, ollama_registry=other.url)
    assert answer.get("changed"), answer
    assert hub.sent + other.sent <= 1.05 * len(WEIGHTS)


def test_refusals_say_what_to_do(hub, entry, model_files):
    answer = model_files(folder(hub))
    for text in (f"http {hub.url}/folder/", "sha256sum * > SHA256SUMS", "give the entry's files"):
        assert text in answer["msg"]
    answer = model_files(folder(hub, [entry("none.gguf", b"x")]))
    assert f"{hub.url}/folder/none.gguf is not to be had (HTTP Error 404" in answer["msg"]
    assert "Check the network and the entry's repository" in answer["msg"]
    answer = model_files(folder(hub, [{"path": "*.gguf"}]))
    assert "SHA256SUMS lists no file *.gguf" in answer["msg"]


def planned(repository: str) -> dict:
    source = {"source": "http", "repository": repository, "files": [{"path": "m.gguf"}]}
    hubs = {"source": ["modelscope"], "repository": "o/n", "files": [{"path": "m.gguf"}]}
    own = {"mine": {"precisions": {"q4_k_m": {"bytes": 10**9, "sources": [hubs, source]}}}}
    catalogue = yaml.safe_load((REPO / "roles/plan/vars/catalogue.yml").read_text())
    found = {"cpu": {"count": 2, "flags": ["avx2"]}, "ram_mib": 24000, "ram_available_mib": 23000}
    found["disk"] = {"path": "/var", "free_mib": 100_000}
    settings = {"model": "mine", "models": own}
    return make_plan("local", settings, catalogue["__plan_catalogue"], found, True)


def test_the_plan_asks_the_web_folder_first():
    download = planned("https://models.example/mine")["download"]
    assert (download["source"], download["repository"]) == ("http", "https://models.example/mine")
    assert [other["source"] for other in download["alternatives"]] == ["modelscope"]


@pytest.mark.parametrize(
    "url", ["models.example", "s3://bucket/r1", "https://u:p@models.example/", "https://m.example?t=1"]
)  # fmt: skip
def test_another_kind_of_address_is_refused(url):
    with pytest.raises(PlanError) as caught:
        planned(url)
    shown = url.removeprefix("https://u:p@")
    assert f"models.mine.precisions.q4_k_m.sources: repository '{shown}'" in str(caught.value)
    assert "the https:// URL of the folder" in str(caught.value)
