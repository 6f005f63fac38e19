"""The lock file: written from hubs, used by the plan, held to by the fetch."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "roles/plan/module_utils"))

from r1_planner import lock

REPO = Path(__file__).resolve().parents[2]
SHIPPED = json.loads((REPO / "roles/plan/files/lock.json").read_text())
(CATALOGUE,) = yaml.safe_load((REPO / "roles/plan/vars/catalogue.yml").read_text()).values()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"a": 1}', "m.safetensors": os.urandom(300_000)}
SMALL = {
    "m": {
        "precisions": {
            "bf16": {
                "sources": [
                    {"source": ["modelscope", "huggingface"], "repository": "o/n", "revision": None}
                ]
            }
        }
    }
}


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_the_shipped_lock_speaks_of_the_catalogue():
    shipped = {
        (name, precision, hub): entry["repository"]
        for name, precisions in SHIPPED.items()
        for precision, hubs in precisions.items()
        for hub, entry in hubs.items()
    }
    assert shipped == {
        (name, precision, source["source"]): source["repository"]
        for name, precision, source in lock.lockable(CATALOGUE)
    }
    for entry in (e for p in SHIPPED.values() for hubs in p.values() for e in hubs.values()):
        assert entry["resolved"] is bool(entry.get("files"))
        assert all(len(file["sha256"]) == 64 and file["bytes"] for file in entry.get("files", []))


@pytest.fixture
def locking(tmp_path, play, start_hub):
    """Return (hub, lock file, function that runs the role's tasks `lock`)."""
    hub, path = start_hub(dict(FILES)), tmp_path / "lock.json"
    catalogue = tmp_path / "catalogue.json"
    catalogue.write_text(json.dumps({"catalogue": SMALL}))

    def run(*flags, **settings) -> dict:
        given = {"__model_lock_file": str(path), "__model_catalogue": str(catalogue)}
        given |= {"huggingface_endpoint": hub.url, "modelscope_endpoint": hub.url, **settings}
        return play({}, *flags, tasks_from="lock.yml", **given)

    return hub, path, run


def test_lock_is_written_forecast_and_renewed(locking):
    hub, path, run = locking
    forecast = run("--check", "--diff")
    assert forecast["rc"] == 0 and forecast["changed"], forecast["out"]
    assert COMMIT in forecast["out"] and not path.exists()
    first = run()
    assert first["rc"] == 0 and first["changed"], first["out"]
    files = [{"path": n, "bytes": len(b), "sha256": digest(b)} for n, b in FILES.items()]
    common = {"repository": "o/n", "resolved": True, "files": files}
    assert json.loads(path.read_text()) == {
        "m": {
            "bf16": {
                "huggingface": {**common, "revision": COMMIT},
                "modelscope": {**common, "revision": "master"},
            }
        }
    }
    again = run()
    assert again["rc"] == 0 and not again["changed"], again["out"]

    hub.files["config.json"] = b"{}"
    renewed = run("--diff")
    assert renewed["changed"]
    assert digest(FILES["config.json"]) in renewed["out"] and digest(b"{}") in renewed["out"]
    assert digest(b"{}") in path.read_text()


def test_a_hub_that_is_down_keeps_what_was_known(locking):
    _hub, path, run = locking
    dead = {"modelscope_endpoint": "http://127.0.0.1:1"}
    first = run(**dead)
    assert first["rc"] == 0, first["out"]
    assert "Not resolved" in first["out"] and "modelscope_endpoint" in first["out"]
    entries = json.loads(path.read_text())["m"]["bf16"]
    assert entries["modelscope"] == {"repository": "o/n", "resolved": False}
    assert entries["huggingface"]["resolved"]
    again = run(huggingface_endpoint="http://127.0.0.1:1", **dead)
    assert again["rc"] == 0 and not again["changed"], again["out"]


def test_an_unknown_model_is_refused(locking):
    _hub, _path, run = locking
    answer = run(model_lock_models=["mm"])
    assert answer["rc"] != 0
    assert "model_lock_models: mm is not in the catalogue. Known: m." in answer["out"]


def locked(body: bytes) -> dict:
    file = {"path": "m.safetensors", "bytes": len(body), "sha256": digest(body)}
    entry = {"repository": "o/n", "resolved": True, "revision": COMMIT, "files": [file]}
    return {"m": {"bf16": {"huggingface": entry}}}


def test_the_plan_takes_the_locks_files_and_only_those():
    body = FILES["m.safetensors"]
    modelscope, huggingface = lock.apply(SMALL, locked(body))["m"]["precisions"]["bf16"]["sources"]
    assert huggingface["revision"] == COMMIT
    assert huggingface["files"][0]["sha256"] == digest(body)
    assert modelscope == {"source": "modelscope", "repository": "o/n", "revision": None}
    elsewhere = json.loads(json.dumps(locked(body)).replace("o/n", "o/other"))
    assert lock.apply(SMALL, elsewhere) == lock.split(SMALL)


def test_a_file_that_is_not_the_locked_one_is_refused_with_both_hashes(start_hub, model_files):
    hub = start_hub({"m.safetensors": FILES["m.safetensors"][::-1]})
    source = lock.apply(SMALL, locked(FILES["m.safetensors"]))["m"]["precisions"]["bf16"]
    answer = model_files(source["sources"][1], huggingface_endpoint=hub.url)
    assert answer["failed"] and not hub.sent
    for text in (
        digest(FILES["m.safetensors"]),
        digest(hub.files["m.safetensors"]),
        "changed under the same name",
        "playbooks/lock.yml",
    ):
        assert text in answer["msg"]
